#include "store/column_allocator.h"

#include <memory>

#include "base/round_up.h"
#include "base/step.h"

namespace kvss {
Result<GrantGeometry> GrantGeometry::For(uint64_t slots, uint64_t piece_bytes) {
  if (piece_bytes == 0 || piece_bytes > proto::kMaxPieceBytes) {
    return Error{proto::Status::kLimitExceeded, "a piece of " + std::to_string(piece_bytes) +
                                                    " bytes is outside 1.." +
                                                    std::to_string(proto::kMaxPieceBytes)};
  }
  if (slots == 0 || slots > proto::kMaxSlotsPerGrant) {
    return Error{proto::Status::kLimitExceeded, "a grant of " + std::to_string(slots) +
                                                    " slots is outside 1.." +
                                                    std::to_string(proto::kMaxSlotsPerGrant)};
  }
  GrantGeometry geometry;
  geometry.slots = static_cast<uint32_t>(slots);
  geometry.piece_bytes = static_cast<uint32_t>(piece_bytes);
  geometry.slot_bytes = RoundUp(piece_bytes, proto::kCacheLineBytes);
  return geometry;
}

Result<std::unique_ptr<ColumnAllocator>> ColumnAllocator::Create(uint64_t budget_bytes,
                                                                 HugePages huge_pages) {
  auto reserve = MemoryObject::Create("kvss-reserve", budget_bytes, huge_pages);
  if (!reserve.ok()) return reserve.error();
  // What the rounding to whole pages added stays in the reserve and is not promised to anyone.
  return std::unique_ptr<ColumnAllocator>(new ColumnAllocator(std::move(reserve.value()), budget_bytes));
}

ColumnAllocator::ColumnAllocator(MemoryObject reserve, uint64_t budget_bytes)
    : budget_bytes_(budget_bytes),
      huge_pages_(reserve.huge_pages()),
      reserve_(std::move(reserve)),
      held_bytes_(reserve_.bytes()) {}

uint64_t ColumnAllocator::free_bytes() const {
  std::lock_guard lock(mutex_);
  return budget_bytes_ - granted_bytes_;
}

uint64_t ColumnAllocator::Footprint(const GrantGeometry& geometry) const {
  return RoundUp(geometry.bytes(), MemoryObject::Granule(huge_pages_));
}

Result<GrantMemory> ColumnAllocator::Allocate(const GrantGeometry& geometry) {
  const uint64_t footprint = Footprint(geometry);
  {
    std::lock_guard lock(mutex_);
    const uint64_t free = budget_bytes_ - granted_bytes_;
    if (footprint > free) {
      return Error{proto::Status::kNoMemory, std::to_string(geometry.slots) + " slots of " +
                                                 std::to_string(geometry.slot_bytes) + " bytes need " +
                                                 std::to_string(footprint) + " bytes, " +
                                                 std::to_string(free) + " are free"};
    }
    granted_bytes_ += footprint;
    HoldReserve();
  }
  KVSS_STEP("reserve made room");
  // Rounded up here so that the object is whole pages of the same kind as the reserve that made room for it.
  auto object = MemoryObject::Create("kvss-grant", footprint,
                                     huge_pages_ ? HugePages::kIfAvailable : HugePages::kNever);
  // The owner of the grant writes it, but may not keep us from scrubbing it.
  const Outcome sealed = object.ok() ? object.value().ForbidMoreSeals() : Outcome(object.error());
  if (!sealed.ok()) {
    std::lock_guard lock(mutex_);
    granted_bytes_ -= footprint;
    HoldReserve();
    return sealed.error();
  }
  return GrantMemory{geometry, std::move(object.value()), {}};
}

void ColumnAllocator::Free(GrantMemory memory) {
  // Also what scrubs: the pages go back to the kernel, which zeroes them before anyone gets them again, and
  // remaining mappings of this object read zeros at once.
  KVSS_STEP("grant about to be scrubbed");
  memory.object.DiscardPages();
  KVSS_STEP("grant scrubbed, not free");
  std::lock_guard lock(mutex_);
  granted_bytes_ -= Footprint(memory.geometry);
  HoldReserve();
}

void ColumnAllocator::HoldReserve() {
  const uint64_t wanted = reserve_.bytes() - granted_bytes_;
  if (wanted < held_bytes_) {
    if (reserve_.DiscardRange(wanted, held_bytes_ - wanted).ok()) held_bytes_ = wanted;
  } else if (wanted > held_bytes_) {
    // Where the system has become too full for this, the next Allocate finds out and says so.
    if (reserve_.PopulateRange(held_bytes_, wanted - held_bytes_).ok()) held_bytes_ = wanted;
  }
}

}  // namespace kvss
