#pragma once

#include <sys/eventfd.h>

#include "base/unique_fd.h"
#include "engine/engine_session.h"
#include "engine/shared_memory_port.h"
#include "shm/segments.h"
#include "store/shard_session.h"

namespace kvss {

/// What a driver needs to reach its session on this shard.
struct SessionEndpoints {
  UniqueFd submit_segment;
  UniqueFd status_segment;
  UniqueFd submit_wake;      ///< eventfd: the client writes it when the engine sleeps
  UniqueFd completion_wake;  ///< pipe, to be read empty: the engine writes it when the client sleeps
};

/// A session in the same host: rings in shared memory, and slots that the client maps itself.
class RingSession final : public EngineSession, private CompletionSink {
 public:
  static Result<std::unique_ptr<RingSession>> Create(uint64_t id, uint32_t ring_entries, ShardTally* tally);

  Result<SessionEndpoints> Endpoints() const;

  using EngineSession::AddGrant;
  Outcome AddGrant(uint32_t grant_id, GrantMemory* memory, std::unique_ptr<SlotTable> table) override;
  const SlotTable* Table(uint32_t grant_id) const override { return core_.Table(grant_id); }
  Outcome RemoveGrant(uint32_t grant_id) override;
  bool Pump(uint64_t now_ns) override;
  bool HasWork() override;
  bool Unfinished() override;
  uint64_t next_deadline_ns() const override { return failed() ? UINT64_MAX : core_.next_deadline_ns(); }
  void AnnounceSleep(bool sleeping) override;
  void WatchWith(int epoll_fd) override;
  void UnwatchWith(int epoll_fd) override;
  /// Readers in place can tell from now on that the bytes may go.
  void Close(uint64_t now_ns) override;
  std::unique_ptr<SlotTable> TakeTable(uint32_t grant_id) override;

 private:
  RingSession(uint64_t id, SessionSegments segments, ShardTally* tally);

  void Complete(const proto::Completion& completion) override;
  enum class Queue { kEvict, kCommand };
  RingConsumer<proto::Descriptor>& Ring(Queue queue) {
    return queue == Queue::kEvict ? evict_ring_ : command_ring_;
  }
  /// Descriptors of a queue that can be accepted now. Finds out about corrupt ring positions.
  uint32_t Takeable(Queue queue);
  bool Drain(Queue queue, uint32_t limit, uint64_t now_ns);
  /// What the client has submitted and nobody has taken never runs.
  void VoidUntaken(Queue queue);
  void Publish();

  SessionSegments segments_;
  UniqueFd submit_wake_;
  UniqueFd completion_wake_;         ///< the end that the engine writes
  UniqueFd client_completion_wake_;  ///< the client's end; kept, so that there always is somebody to write to
  RingConsumer<proto::Descriptor> evict_ring_;
  RingConsumer<proto::Descriptor> command_ring_;
  RingProducer<proto::Completion> completion_ring_;
  SharedMemoryPort port_;
  ShardSession core_;
  uint32_t unpublished_ = 0;
  uint64_t accepted_ = 0;   ///< descriptors taken from both rings
  uint64_t completed_ = 0;  ///< completions put
};

}  // namespace kvss
