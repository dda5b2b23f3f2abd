#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "base/result.h"
#include "shm/mapping.h"
#include "shm/memory_object.h"

namespace kvss {

/// Geometry of a grant: equal slots, each holding one piece.
struct GrantGeometry {
  uint32_t slots = 0;
  uint32_t piece_bytes = 0;
  uint64_t slot_bytes = 0;  ///< piece_bytes rounded up to a cache line, so that pieces never share one

  static Result<GrantGeometry> For(uint64_t slots, uint64_t piece_bytes);
  uint64_t bytes() const { return slots * slot_bytes; }
};

/// Memory that was cut out of the shard's budget for one grant. Goes back through ColumnAllocator::Free.
struct GrantMemory {
  GrantGeometry geometry;
  MemoryObject object;
  Mapping mapping;  ///< empty unless the shard itself moves the bytes
};

/// The memory of one shard.
///
/// The budget is taken from the system at start and held in a reserve, so that later grants cannot fail
/// because another program was quicker. A grant is a new memory object of exactly its size: the reserve gives
/// up as many pages as the grant takes. Free space is therefore a number and not a list of ranges, merges by
/// itself, and cannot fragment. Objects are never reused for another grant: whoever still has an old one
/// mapped, a stopped process for example, sees the zeros that Free left and nothing of the next owner.
///
/// Thread-safe; calls take as long as the kernel needs for the pages, so keep them off latency-critical
/// threads.
class ColumnAllocator {
 public:
  /// Takes `budget_bytes` from the system, or says that there is not so much.
  static Result<std::unique_ptr<ColumnAllocator>> Create(uint64_t budget_bytes, HugePages huge_pages);

  /// Fails with kNoMemory, and changes nothing, where less than geometry.bytes() is free.
  Result<GrantMemory> Allocate(const GrantGeometry& geometry);

  /// Scrubs the memory and returns it to the budget.
  void Free(GrantMemory memory);

  uint64_t budget_bytes() const { return budget_bytes_; }
  uint64_t free_bytes() const;
  /// Bytes that a grant of this geometry takes from the budget: whole pages.
  uint64_t Footprint(const GrantGeometry& geometry) const;
  bool huge_pages() const { return huge_pages_; }

 private:
  ColumnAllocator(MemoryObject reserve, uint64_t budget_bytes);

  /// Shrinks or grows the reserve until it holds what is free, as far as the system lets it.
  void HoldReserve();

  const uint64_t budget_bytes_;
  const bool huge_pages_;
  mutable std::mutex mutex_;
  MemoryObject reserve_;
  uint64_t granted_bytes_ = 0;
  uint64_t held_bytes_ = 0;
};

}  // namespace kvss
