#include "shm/memory_object.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/round_up.h"
#include "base/step.h"

namespace kvss {
namespace {

constexpr uint64_t kHugePageBytes = 2u << 20;
constexpr uint64_t kSmallPageBytes = 4096;

/// fallocate, repeated while a signal interrupts it: a large range takes long enough for that to happen.
int Fallocate(int fd, int mode, uint64_t offset, uint64_t length) {
  int outcome;
  do {
    outcome = ::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length));
  } while (outcome != 0 && errno == EINTR);
  return outcome;
}

}  // namespace

uint64_t MemoryObject::Granule(bool huge_pages) { return huge_pages ? kHugePageBytes : kSmallPageBytes; }
uint64_t MemoryObject::granule() const { return Granule(huge_pages_); }

Result<MemoryObject> MemoryObject::Create(const std::string& label, uint64_t bytes, HugePages huge_pages) {
  // Below one huge page the rounding would waste more than the translation saves.
  if (huge_pages == HugePages::kIfAvailable && bytes >= kHugePageBytes) {
    Result<MemoryObject> huge = CreateWith(label, bytes, true);
    if (huge.ok()) return huge;
  }
  return CreateWith(label, bytes, false);
}

Result<MemoryObject> MemoryObject::CreateWith(const std::string& label, uint64_t bytes, bool huge_pages) {
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge_pages ? MFD_HUGETLB | MFD_HUGE_2MB : 0u);
  MemoryObject object;
  object.fd_ = UniqueFd(::memfd_create(label.c_str(), flags));
  if (!object.fd_.valid()) return SystemError(proto::Status::kNoMemory, "memfd_create");
  KVSS_STEP("memory object made");
  object.bytes_ = RoundUp(std::max<uint64_t>(bytes, 1), Granule(huge_pages));
  object.huge_pages_ = huge_pages;
  if (::ftruncate(object.fd(), static_cast<off_t>(object.bytes_)) != 0) {
    return SystemError(proto::Status::kNoMemory,
                       "cannot size a memory object of " + std::to_string(bytes) + " bytes");
  }
  if (Outcome populated = object.PopulateRange(0, object.bytes_); !populated.ok()) return populated.error();
  KVSS_STEP("memory object filled, not sealed");
  // Nobody may change the size any more: a shrunk object would turn every access behind its end into SIGBUS.
  if (::fcntl(object.fd(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return SystemError(proto::Status::kInternal, "cannot seal a memory object");
  }
  return object;
}

Result<UniqueFd> MemoryObject::Duplicate() const {
  UniqueFd copy(::fcntl(fd(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid())
    return SystemError(proto::Status::kLimitExceeded, "cannot duplicate a memory descriptor");
  return copy;
}

Outcome MemoryObject::ForbidMoreSeals() {
  if (::fcntl(fd(), F_ADD_SEALS, F_SEAL_SEAL) != 0) {
    return SystemError(proto::Status::kInternal, "cannot seal a memory object against other seals");
  }
  return Nothing{};
}

Outcome MemoryObject::ForbidNewWriters() {
  if (::fcntl(fd(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0) {
    return SystemError(proto::Status::kInternal, "cannot make a memory object read-only for others");
  }
  return Nothing{};
}

Outcome MemoryObject::Zero(uint64_t offset, uint64_t length) {
  KVSS_CHECK(offset <= bytes_ && length <= bytes_ - offset);
  // hugetlbfs has no write().
  if (huge_pages_) return ReplacePages(offset, length);
  static constexpr std::array<char, 64 * 1024> kZeros{};
  while (length > 0) {
    const ssize_t written =
        ::pwrite(fd(), kZeros.data(), std::min<uint64_t>(length, kZeros.size()), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    // Who holds a copy of the descriptor can switch it to appending for all who do.
    if (written <= 0) return ReplacePages(offset, length);
    KVSS_STEP("part of a slot scrubbed");
    offset += static_cast<uint64_t>(written);
    length -= static_cast<uint64_t>(written);
  }
  return Nothing{};
}

Outcome MemoryObject::ReplacePages(uint64_t offset, uint64_t length) {
  // Punching zeroes partial pages and frees whole ones, populating takes them back.
  if (Outcome punched = DiscardRange(offset, length); !punched.ok()) return punched;
  return PopulateRange(offset, length);
}

void MemoryObject::DiscardPages() {
  if (valid()) (void)DiscardRange(0, bytes_).ok();
}

Outcome MemoryObject::DiscardRange(uint64_t offset, uint64_t length) {
  if (length == 0) return Nothing{};
  if (Fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) != 0) {
    return SystemError(proto::Status::kInternal, "cannot give memory back");
  }
  return Nothing{};
}

Outcome MemoryObject::PopulateRange(uint64_t offset, uint64_t length) {
  if (length == 0) return Nothing{};
  if (Fallocate(fd(), 0, offset, length) != 0) {
    return SystemError(proto::Status::kNoMemory, "cannot get " + std::to_string(length) + " bytes of memory");
  }
  return Nothing{};
}

}  // namespace kvss
