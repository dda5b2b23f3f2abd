#pragma once

#include <cstdint>
#include <vector>

#include "proto/kvss_proto.h"
#include "store/column_allocator.h"

namespace kvss {

/// What the engine knows of one slot. Private to the engine: no client maps it.
struct Slot {
  uint64_t generation = 0;  ///< of the last evict that started here; never falls
  uint64_t tenant_tag = 0;  ///< of that evict
  uint64_t last_evict =
      0;                 ///< sequence of the last evict accepted for this slot, to keep two of them in order
  uint32_t readers = 0;  ///< refills and scrubs that touch the bytes now
  proto::SlotState state = proto::SlotState::kEmpty;
};
static_assert(sizeof(Slot) == 32, "maxSlotsPerGrant counts on it");

/// The slots of one grant.
struct SlotTable {
  GrantGeometry geometry;
  std::vector<Slot> slots;
  uint32_t stored = 0;  ///< slots that hold a piece when a session gets the table

  explicit SlotTable(const GrantGeometry& geometry_in) : geometry(geometry_in), slots(geometry_in.slots) {}
};

}  // namespace kvss
