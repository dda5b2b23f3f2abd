#pragma once

#include "base/result.h"
#include "proto/kvss_proto.h"
#include "shm/mapping.h"
#include "shm/memory_object.h"
#include "shm/ring.h"

namespace kvss {

/// The two segments that a session shares with one shard. Each has exactly one writer:
///   submit  written by the client: descriptors, the tails of its rings, the head of the completion ring
///   status  written by the engine: completions and their tail, the heads of the rings, both counters
/// The client can map the status segment only for reading, so a client can disturb nothing but its own
/// requests.
///
/// This class is either side's view of them. Ring places use sizes that this side computed itself.
class SessionSegments {
 public:
  /// The daemon's side: makes both segments, maps them and forbids others to write the status segment.
  static Result<SessionSegments> Create(uint32_t ring_entries);

  /// The client's side: maps what it was given and checks magic, version, sizes and the ready flag.
  static Result<SessionSegments> Attach(int submit_fd, int status_fd, uint32_t ring_entries);

  proto::SubmitSegment& submit() const { return *submit_map_.At<proto::SubmitSegment>(0); }
  proto::StatusSegment& status() const { return *status_map_.At<proto::StatusSegment>(0); }

  RingPlace<proto::Descriptor> evict_ring() const;
  RingPlace<proto::Descriptor> command_ring() const;
  RingPlace<proto::Completion> completion_ring() const;

  /// Memory objects to pass on; the daemon's side only.
  const MemoryObject& submit_object() const { return submit_object_; }
  const MemoryObject& status_object() const { return status_object_; }

  uint32_t ring_entries() const { return ring_entries_; }
  /// Twice the ring: everything that can be in flight at once fits, so the engine never has to wait for room.
  uint32_t completion_entries() const { return 2 * ring_entries_; }

 private:
  uint32_t ring_entries_ = 0;
  MemoryObject submit_object_;
  MemoryObject status_object_;
  Mapping submit_map_;
  Mapping status_map_;
};

/// Live figures of one shard: the engine writes, anyone who was given the descriptor reads.
class CountersSegment {
 public:
  static Result<CountersSegment> Create(uint32_t shard);

  proto::CountersSegment& counters() const { return *map_.At<proto::CountersSegment>(0); }
  const MemoryObject& object() const { return object_; }

 private:
  MemoryObject object_;
  Mapping map_;
};

/// Whether a number of ring entries is one that the protocol allows.
bool ValidRingEntries(uint32_t entries);

}  // namespace kvss
