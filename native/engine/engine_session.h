#pragma once

#include <sys/eventfd.h>

#include "base/unique_fd.h"
#include "engine/shared_memory_port.h"
#include "shm/segments.h"
#include "store/shard_session.h"

namespace kvss {

/// What a driver needs to reach its session on this shard.
struct SessionEndpoints {
  UniqueFd submit_segment;
  UniqueFd status_segment;
  UniqueFd submit_wake;      ///< eventfd: the client writes it when the engine sleeps
  UniqueFd completion_wake;  ///< eventfd: the engine writes it when the client sleeps
};

/// One driver session as the engine sees it: its rings, its shard core and its wakes. The engine thread alone
/// uses it once it is attached.
class EngineSession final : private CompletionSink {
 public:
  static Result<std::unique_ptr<EngineSession>> Create(uint64_t id, uint32_t ring_entries, ShardTally* tally);

  Result<SessionEndpoints> Endpoints() const;

  Outcome AddGrant(uint32_t grant_id, const GrantGeometry& geometry, MemoryObject* object);
  Outcome RemoveGrant(uint32_t grant_id);

  /// Takes a bounded number of descriptors from both rings, evicts first, and publishes what finished.
  /// Answers whether there was anything to do. After a ring position that cannot be, the session is corrupt
  /// for good.
  bool Pump(uint64_t now_ns);
  /// Answers true once, after the session has become corrupt, wherever that was found.
  bool ReportCorrupt() { return corrupt_ && !std::exchange(reported_, true); }

  /// Descriptors wait in a ring and could be taken, or a corrupt session waits to be reported.
  bool HasWork();
  /// Something that the client has submitted has not finished. Never of a corrupt session, which is not
  /// served.
  bool Unfinished();
  uint64_t next_deadline_ns() const { return corrupt_ ? UINT64_MAX : core_.next_deadline_ns(); }

  /// Tells the client whether it has to wake the engine after a submission.
  void AnnounceSleep(bool sleeping);
  int submit_wake_fd() const { return submit_wake_.get(); }

  /// Ends the session. Readers in place can tell from now on that the bytes may go.
  void Close(uint64_t now_ns);
  bool quiescent() const { return core_.quiescent(); }
  uint64_t id() const { return id_; }

 private:
  EngineSession(uint64_t id, SessionSegments segments, ShardTally* tally);

  void Complete(const proto::Completion& completion) override;
  enum class Queue { kEvict, kCommand };
  RingConsumer<proto::Descriptor>& Ring(Queue queue) {
    return queue == Queue::kEvict ? evict_ring_ : command_ring_;
  }
  /// Descriptors of a queue that can be accepted now. Finds out about corrupt ring positions.
  uint32_t Takeable(Queue queue);
  bool Drain(Queue queue, uint32_t limit, uint64_t now_ns);
  void Publish();

  const uint64_t id_;
  SessionSegments segments_;
  UniqueFd submit_wake_;
  UniqueFd completion_wake_;
  RingConsumer<proto::Descriptor> evict_ring_;
  RingConsumer<proto::Descriptor> command_ring_;
  RingProducer<proto::Completion> completion_ring_;
  SharedMemoryPort port_;
  ShardSession core_;
  uint32_t unpublished_ = 0;
  uint64_t accepted_ = 0;   ///< descriptors taken from both rings
  uint64_t completed_ = 0;  ///< completions put
  bool corrupt_ = false;
  bool reported_ = false;
};

}  // namespace kvss
