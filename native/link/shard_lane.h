#pragma once

#include <memory>

#include "base/result.h"
#include "base/unique_fd.h"
#include "shm/segments.h"

namespace kvss {

/// The driver's end of a session with one shard over shared memory: both submission rings, the completion
/// ring and the wakes. One thread.
class ShardLane {
 public:
  static Result<std::unique_ptr<ShardLane>> Attach(UniqueFd submit_segment, UniqueFd status_segment,
                                                   UniqueFd submit_wake, UniqueFd completion_wake,
                                                   uint32_t ring_entries);

  enum class Queue { kEvict, kCommand };

  /// Publishes as many of `count` descriptors as the ring has room for and answers how many. Wakes the engine
  /// only where it sleeps.
  uint32_t Submit(Queue queue, const proto::Descriptor* descriptors, uint32_t count);

  /// Copies up to `limit` completions out and answers how many.
  uint32_t Poll(proto::Completion* completions, uint32_t limit);

  /// Before the caller waits for completion_wake_fd(): asks the engine to write it. Answers false, and asks
  /// for nothing, where completions are there already.
  bool Arm();
  /// After the wait, or instead of it.
  void Disarm();
  int completion_wake_fd() const { return completion_wake_.get(); }

  uint64_t evict_count() const { return segments_.status().evict_count.load(std::memory_order_acquire); }
  uint64_t command_count() const { return segments_.status().command_count.load(std::memory_order_acquire); }
  /// Whether the daemon has begun to take the session's memory away. While this is false after a slot was
  /// read, what was read is what was stored.
  bool revoked() const {
    // Partner: the release store in EngineSession::Close.
    std::atomic_thread_fence(std::memory_order_acquire);
    return segments_.status().revoked.load(std::memory_order_relaxed) != 0;
  }

  uint32_t ring_entries() const { return segments_.ring_entries(); }
  uint32_t completion_entries() const { return segments_.completion_entries(); }

 private:
  ShardLane(SessionSegments segments, UniqueFd submit_wake, UniqueFd completion_wake);
  RingProducer<proto::Descriptor>& Ring(Queue queue) {
    return queue == Queue::kEvict ? evict_ring_ : command_ring_;
  }
  void WakeEngine();

  SessionSegments segments_;
  UniqueFd submit_wake_;
  UniqueFd completion_wake_;
  RingProducer<proto::Descriptor> evict_ring_;
  RingProducer<proto::Descriptor> command_ring_;
  RingConsumer<proto::Completion> completion_ring_;
};

}  // namespace kvss
