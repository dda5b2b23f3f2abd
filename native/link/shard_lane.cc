#include "link/shard_lane.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/step.h"

namespace kvss {

Result<std::unique_ptr<ShardLane>> ShardLane::Attach(UniqueFd submit_segment, UniqueFd status_segment,
                                                     UniqueFd submit_wake, UniqueFd completion_wake,
                                                     uint32_t ring_entries) {
  auto segments = SessionSegments::Attach(submit_segment.get(), status_segment.get(), ring_entries);
  if (!segments.ok()) return segments.error();
  return std::unique_ptr<ShardLane>(
      new ShardLane(std::move(segments.value()), std::move(submit_wake), std::move(completion_wake)));
}

ShardLane::ShardLane(SessionSegments segments, UniqueFd submit_wake, UniqueFd completion_wake)
    : segments_(std::move(segments)),
      submit_wake_(std::move(submit_wake)),
      completion_wake_(std::move(completion_wake)),
      evict_ring_(segments_.evict_ring()),
      command_ring_(segments_.command_ring()),
      completion_ring_(segments_.completion_ring()) {}

uint32_t ShardLane::Submit(Queue queue, const proto::Descriptor* descriptors, uint32_t count) {
  RingProducer<proto::Descriptor>& ring = Ring(queue);
  const uint32_t batch = std::min(count, ring.Room().value_or(0));
  if (batch == 0) return 0;
  for (uint32_t index = 0; index < batch; ++index) ring.Put(descriptors[index]);
  KVSS_STEP("descriptors put");
  ring.Publish();
  KVSS_STEP("descriptors published");
  WakeEngine();
  KVSS_STEP("engine woken");
  return batch;
}

void ShardLane::WakeEngine() {
  // Dekker with ShardEngine::SleepUntilWork: the tail (or, in Poll, the head of the completion ring) has been
  // stored; fence, then look at the flag. The engine stores the flag, fences, then looks at the rings.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (segments_.status().engine_sleeping.load(std::memory_order_relaxed) != 0)
    ::eventfd_write(submit_wake_.get(), 1);
}

uint32_t ShardLane::Poll(proto::Completion* completions, uint32_t limit) {
  const uint32_t batch = std::min(limit, completion_ring_.Available().value_or(0));
  if (batch == 0) return 0;
  for (uint32_t index = 0; index < batch; ++index) completions[index] = completion_ring_.Take();
  KVSS_STEP("completions taken");
  completion_ring_.Release();
  KVSS_STEP("completions released");
  // The engine may have left descriptors in the rings for want of room that it has now.
  if (evict_ring_.Unconsumed() || command_ring_.Unconsumed()) WakeEngine();
  return batch;
}

bool ShardLane::Arm() {
  segments_.submit().client_sleeping.store(1, std::memory_order_relaxed);
  // Dekker with EngineSession::Publish.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (completion_ring_.Available().value_or(0) == 0) return true;
  Disarm();
  return false;
}

void ShardLane::Disarm() {
  segments_.submit().client_sleeping.store(0, std::memory_order_relaxed);
  // Takes out whatever wakes are there, so that the next wait does not end at once. More than fit in here are
  // one wake too many and no harm.
  std::array<std::byte, 4096> ignored;
  (void)!::read(completion_wake_.get(), ignored.data(), ignored.size());
}

}  // namespace kvss
