#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace kvss {

/// Whether a memory object may be backed by huge pages.
enum class HugePages {
  kNever,
  kIfAvailable,  ///< tries the huge page pool first and falls back to ordinary pages
};

/// Anonymous shared memory: a memfd that is reached by descriptor and never by name.
///
/// Every byte is backed by a page before Create returns, so that a shortage is an error here and not a
/// SIGBUS later. The size is sealed. The kernel hands out zeroed pages, so a new object holds no one's data.
class MemoryObject {
 public:
  static Result<MemoryObject> Create(const std::string& label, uint64_t bytes, HugePages huge_pages);

  MemoryObject() = default;
  MemoryObject(MemoryObject&&) = default;
  MemoryObject& operator=(MemoryObject&&) = default;

  int fd() const { return fd_.get(); }
  uint64_t bytes() const { return bytes_; }
  bool huge_pages() const { return huge_pages_; }
  bool valid() const { return fd_.valid(); }

  /// A descriptor for another process. Move-only; closed unless it is sent.
  Result<UniqueFd> Duplicate() const;

  /// After this nobody can add seals. For memory that a client may write: a seal of its own against writing
  /// would also keep us from scrubbing and from giving the pages back.
  Outcome ForbidMoreSeals();

  /// After this nobody can map the object for writing any more, by this descriptor or a copy of it. Mappings
  /// that exist keep working: map first, then call this, then give the descriptor away.
  Outcome ForbidNewWriters();

  /// Overwrites a range with zeros. Never raises SIGBUS, even if another process has punched holes in it.
  Outcome Zero(uint64_t offset, uint64_t length);

  /// Gives all pages back to the kernel. Whoever still has the object mapped sees zeros from now on.
  void DiscardPages();

  /// Gives the pages of a range back, or takes pages for it again.
  Outcome DiscardRange(uint64_t offset, uint64_t length);
  Outcome PopulateRange(uint64_t offset, uint64_t length);

  /// Smallest unit of allocation, in bytes: the page size that backs this object.
  uint64_t granule() const;
  static uint64_t Granule(bool huge_pages);

 private:
  Outcome ReplacePages(uint64_t offset, uint64_t length);
  static Result<MemoryObject> CreateWith(const std::string& label, uint64_t bytes, bool huge_pages);

  UniqueFd fd_;
  uint64_t bytes_ = 0;
  bool huge_pages_ = false;
};

}  // namespace kvss
