#include "shm/mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/round_up.h"

namespace kvss {

Result<Mapping> Mapping::Map(int fd, uint64_t bytes, Access access) {
  // A mapping longer than the object would raise SIGBUS at its end; the object says how long it is.
  struct stat facts {};
  if (::fstat(fd, &facts) != 0) return SystemError(proto::Status::kInternal, "fstat of a memory object");
  if (bytes == 0 || static_cast<uint64_t>(facts.st_size) < bytes) {
    return Error{proto::Status::kBadLength, "a memory object of " + std::to_string(facts.st_size) +
                                                " bytes was announced with " + std::to_string(bytes)};
  }
  // Whole pages, also of huge ones: the kernel neither advises nor unmaps a part of one.
  const auto page = static_cast<uint64_t>(facts.st_blksize);
  const uint64_t length = std::min(RoundUp(bytes, page), static_cast<uint64_t>(facts.st_size));
  const int protection = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* data = ::mmap(nullptr, length, protection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return SystemError(proto::Status::kNoMemory, "cannot map a memory object");
  Mapping mapping;
  mapping.data_ = static_cast<std::byte*>(data);
  mapping.bytes_ = bytes;
  mapping.mapped_bytes_ = length;
  // Slots are prompts in another form: neither a core file nor a forked child may hold them.
  if (::madvise(data, length, MADV_DONTDUMP) != 0 || ::madvise(data, length, MADV_DONTFORK) != 0) {
    return SystemError(proto::Status::kInternal, "cannot keep a mapping out of core dumps");
  }
  return mapping;
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Unmap();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    mapped_bytes_ = std::exchange(other.mapped_bytes_, 0);
  }
  return *this;
}

void Mapping::Populate() const {
#ifndef MADV_POPULATE_WRITE
  constexpr int MADV_POPULATE_WRITE = 23;
#endif
  (void)::madvise(data_, mapped_bytes_, MADV_POPULATE_WRITE);
}

void Mapping::Unmap() {
  if (data_ != nullptr) ::munmap(data_, mapped_bytes_);
  data_ = nullptr;
  bytes_ = 0;
  mapped_bytes_ = 0;
}

}  // namespace kvss
