#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/result.h"

namespace kvss {

enum class Access { kRead, kReadWrite };

/// A shared mapping of a whole memory object, excluded from core dumps and from forked children. Move-only.
class Mapping {
 public:
  static Result<Mapping> Map(int fd, uint64_t bytes, Access access);

  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        mapped_bytes_(std::exchange(other.mapped_bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping() { Unmap(); }

  /// Fills the page tables, so that first touches do not fault one by one. Only speed depends on it.
  void Populate() const;

  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

  /// The T at a byte offset. The range is ours to get right, so a wrong one stops the program.
  template <typename T>
  T* At(uint64_t offset, uint64_t count = 1) const {
    KVSS_CHECK(offset % alignof(T) == 0 && offset <= bytes_ && count <= (bytes_ - offset) / sizeof(T));
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  void Unmap();

  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t mapped_bytes_ = 0;  ///< of whole pages
};

}  // namespace kvss
