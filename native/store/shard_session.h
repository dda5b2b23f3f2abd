#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "proto/kvss_proto.h"
#include "store/slot_table.h"
#include "store/transfer_port.h"

namespace kvss {

/// What a ShardSession did, for the counters of its shard. Plain numbers: the engine publishes them.
struct ShardTally {
  static constexpr size_t kLatencyBuckets = 24;

  uint64_t evicts = 0;
  uint64_t evict_faults = 0;
  uint64_t evict_bytes = 0;
  uint64_t refills = 0;
  uint64_t refill_misses = 0;
  uint64_t refill_faults = 0;
  uint64_t refill_bytes = 0;
  uint64_t deletes = 0;
  uint64_t delete_misses = 0;
  uint64_t tenant_alarms = 0;
  uint64_t deadlines = 0;
  uint64_t gated_evicts = 0;
  uint64_t gated_commands = 0;
  uint64_t scrubbed_bytes = 0;
  uint64_t stored_slots = 0;
  std::array<uint64_t, kLatencyBuckets> evict_latency{};
  std::array<uint64_t, kLatencyBuckets> refill_latency{};
};

/// Takes the completions of a ShardSession.
class CompletionSink {
 public:
  virtual ~CompletionSink() = default;
  virtual void Complete(const proto::Completion& completion) = 0;
};

/// The shard core: one driver session on one shard, as a state machine. No threads, no I/O, no clock of its
/// own: whoever owns it feeds descriptors and time and moves the bytes.
///
/// Two queues, one story:
///  - evicts start as soon as nothing they must wait for is left: `afterCommand` commands finished, earlier
///    evicts into the same slot finished, nobody reading the slot. They may overtake each other between
///    different slots; evictCount only ever counts a gapless run from the first.
///  - refills and deletes start in order, each once evictCount has reached its `afterEvict`. They may finish
///  out
///    of order; commandCount counts a gapless run.
/// Both gates name earlier operations only. A client that names later ones waits for its own deadline.
///
/// Safe overwrite holds whatever a client writes into its descriptors: an evict never starts while a refill
/// or a scrub touches its slot, and a refill never starts on a slot that does not hold exactly the generation
/// and tenant that it names.
class ShardSession {
 public:
  /// `window` is how many operations of each queue may be unfinished at once, a power of two.
  ShardSession(uint32_t window, TransferPort* port, CompletionSink* sink, ShardTally* tally);
  ~ShardSession();

  Outcome AddGrant(uint32_t grant_id, const GrantGeometry& geometry) {
    return AddGrant(grant_id, std::make_unique<SlotTable>(geometry));
  }
  /// A grant whose slots hold something: the table is what TakeTable gave of another session.
  Outcome AddGrant(uint32_t grant_id, std::unique_ptr<SlotTable> table);
  /// Fails with kNotAllowed while operations of the session are unfinished, since any of them may touch the
  /// grant.
  Outcome RemoveGrant(uint32_t grant_id);

  /// How many more operations of a queue can be accepted now.
  uint32_t EvictRoom() const { return evicts_.Room(); }
  uint32_t CommandRoom() const { return commands_.Room(); }

  /// Takes one operation over; the caller has seen room for it. Completes it at once where it can.
  void AcceptEvict(const proto::Descriptor& descriptor, uint64_t now_ns);
  void AcceptCommand(const proto::Descriptor& descriptor, uint64_t now_ns);

  /// The port finished a transfer for which Begin had answered kPending.
  void TransferFinished(TransferKind kind, uint64_t sequence, bool succeeded, uint64_t now_ns);

  /// Ends waiting operations whose time is up, and asks running ones to stop.
  void ExpireDeadlines(uint64_t now_ns);
  /// When ExpireDeadlines has something to do next; UINT64_MAX where nothing waits.
  uint64_t next_deadline_ns() const { return next_deadline_ns_; }

  /// Ends the session: waiting operations are cancelled, running transfers are asked to stop. The memory of
  /// its grants may be freed once quiescent() is true.
  void Close(uint64_t now_ns);
  bool quiescent() const { return running_ == 0; }
  /// What the slots of a grant hold after the end, for a session that goes on with them; null if there is no
  /// such grant. Only where the session is closed and quiescent.
  std::unique_ptr<SlotTable> TakeTable(uint32_t grant_id);
  /// An operation was asked for and never ran, and the session is closed. Its slot is empty from now on: an
  /// evict may have been written in place already, and what was to be deleted is not to come back.
  void Void(const proto::Descriptor& descriptor);
  /// The slots of a grant; null if there is no such grant.
  const SlotTable* Table(uint32_t grant_id) const { return FindGrant(grant_id); }
  /// No operation is accepted and unfinished.
  bool idle() const {
    return evicts_.finished == evicts_.accepted && commands_.finished == commands_.accepted;
  }

  /// Whether an evict that was accepted has finished, in whatever way.
  bool EvictEnded(uint64_t sequence) {
    return sequence <= evicts_.finished ||
           (sequence <= evicts_.accepted && evicts_.At(sequence).state == OperationState::kFinished);
  }
  uint64_t evicts_accepted() const { return evicts_.accepted; }

  uint64_t evict_count() const { return evicts_.finished; }
  uint64_t command_count() const { return commands_.finished; }

 private:
  /// Tests only: tips bits of the slot table over.
  friend struct ShardSessionPeek;

  enum class OperationState : uint8_t {
    kFinished,
    kWaiting,          ///< for its gate
    kAwaitingReaders,  ///< a scrubbing delete that took effect while a refill still read the slot
    kRunning,          ///< the port touches the slot
  };

  struct Operation {
    proto::Descriptor descriptor{};
    uint64_t accepted_ns = 0;
    uint64_t deadline_ns = 0;
    uint64_t earlier_evict = 0;  ///< evicts that wait: the last one into the same slot before this one
    OperationState state = OperationState::kFinished;
    bool cancelled = false;
  };

  /// The unfinished operations of one queue, by sequence.
  struct Window {
    std::vector<Operation> operations;
    uint64_t accepted = 0;  ///< sequence of the last accepted operation
    uint64_t finished = 0;  ///< all operations up to this one have finished
    uint64_t started = 0;   ///< commands only: all up to this one have started or finished
    uint32_t waiting = 0;

    explicit Window(uint32_t size) : operations(size) {}
    Operation& At(uint64_t sequence) { return operations[sequence & (operations.size() - 1)]; }
    uint32_t Room() const { return static_cast<uint32_t>(operations.size() - (accepted - finished)); }
  };

  Operation& Enter(Window& window, const proto::Descriptor& descriptor, uint64_t now_ns);
  proto::Status Check(const proto::Descriptor& descriptor, bool evict_queue, SlotTable** table) const;
  SlotTable* FindGrant(uint32_t grant_id) const;

  bool EvictMayStart(const Operation& operation, const Slot& slot);
  /// Whether an evict and all earlier ones into its slot have finished.
  bool FinishedWithEarlier(uint64_t evict);
  void StartEvict(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns);
  void StartCommand(uint64_t sequence, Operation& operation, uint64_t now_ns);
  void StartRefill(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns);
  void StartDelete(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns);
  void Scrub(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns);
  void ScrubAfterReaders(const Operation& refill, SlotTable& table, uint64_t now_ns);
  void Begin(TransferKind kind, uint64_t sequence, Operation& operation, const SlotTable& table,
             uint64_t now_ns);

  void FinishEvict(uint64_t sequence, proto::Status status, uint64_t now_ns);
  void FinishCommand(uint64_t sequence, proto::Status status, uint64_t now_ns);
  void Finish(Window& window, uint64_t sequence, proto::Status status);
  /// Starts whatever has become startable, until nothing more has.
  void Progress(uint64_t now_ns);
  bool StartWaitingEvicts(uint64_t now_ns);
  bool StartReadyCommands(uint64_t now_ns);
  void ExpireWindow(Window& window, uint64_t now_ns);
  void ForgetOverwritten(const Operation& evict);
  static TransferKind CommandKind(const Operation& operation);

  Window evicts_;
  Window commands_;
  std::unordered_map<uint32_t, std::unique_ptr<SlotTable>> grants_;
  TransferPort* const port_;
  CompletionSink* const sink_;
  ShardTally* const tally_;
  uint64_t next_deadline_ns_ = UINT64_MAX;
  uint32_t running_ = 0;
  uint32_t scrubs_awaiting_readers_ = 0;
  std::vector<proto::Descriptor> never_ran_;  ///< waited when the session was closed
  bool in_progress_ = false;
  bool closed_ = false;
};

}  // namespace kvss
