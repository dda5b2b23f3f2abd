#include "store/shard_session.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/step.h"

namespace kvss {
namespace {

using proto::Opcode;
using proto::SlotState;
using proto::Status;

size_t LatencyBucket(uint64_t nanos) {
  const size_t bits = static_cast<size_t>(std::bit_width(nanos));
  return std::min(bits < 7 ? 0 : bits - 7, ShardTally::kLatencyBuckets - 1);
}

uint64_t DeadlineOf(const proto::Descriptor& descriptor, uint64_t now_ns) {
  const uint64_t timeout_us = descriptor.timeout_us == 0
                                  ? proto::kMaxOperationTimeoutUs
                                  : std::min(descriptor.timeout_us, proto::kMaxOperationTimeoutUs);
  return now_ns + timeout_us * 1000;
}

bool IsMiss(Status status) {
  return status == Status::kMissEmpty || status == Status::kMissOverwritten || status == Status::kMissTenant;
}

}  // namespace

ShardSession::ShardSession(uint32_t window, TransferPort* port, CompletionSink* sink, ShardTally* tally)
    : evicts_(window), commands_(window), port_(port), sink_(sink), tally_(tally) {
  KVSS_CHECK(std::has_single_bit(window));
}

ShardSession::~ShardSession() { KVSS_CHECK(quiescent()); }

Outcome ShardSession::AddGrant(uint32_t grant_id, std::unique_ptr<SlotTable> table) {
  if (grants_.size() >= proto::kMaxGrantsPerSession) {
    return Error{Status::kLimitExceeded, "a session may hold " + std::to_string(proto::kMaxGrantsPerSession) +
                                             " grants on one shard"};
  }
  if (table->stored > 0) tally_->stored_slots += table->stored;
  const bool added = grants_.emplace(grant_id, std::move(table)).second;
  KVSS_CHECK(added);
  return Nothing{};
}

Outcome ShardSession::RemoveGrant(uint32_t grant_id) {
  SlotTable* table = FindGrant(grant_id);
  if (table == nullptr) return Error{Status::kBadGrant, "no grant " + std::to_string(grant_id)};
  if (!idle()) return Error{Status::kNotAllowed, "the session has unfinished operations"};
  for (const Slot& slot : table->slots) tally_->stored_slots -= slot.state == SlotState::kStored;
  grants_.erase(grant_id);
  return Nothing{};
}

SlotTable* ShardSession::FindGrant(uint32_t grant_id) const {
  const auto found = grants_.find(grant_id);
  return found == grants_.end() ? nullptr : found->second.get();
}

ShardSession::Operation& ShardSession::Enter(Window& window, const proto::Descriptor& descriptor,
                                             uint64_t now_ns) {
  KVSS_CHECK(window.Room() > 0 && !closed_);
  Operation& operation = window.At(++window.accepted);
  operation.descriptor = descriptor;
  operation.accepted_ns = now_ns;
  operation.deadline_ns = DeadlineOf(descriptor, now_ns);
  operation.earlier_evict = 0;
  operation.state = OperationState::kWaiting;
  operation.cancelled = false;
  ++window.waiting;
  return operation;
}

Status ShardSession::Check(const proto::Descriptor& descriptor, bool evict_queue, SlotTable** table) const {
  const auto opcode = static_cast<Opcode>(descriptor.opcode);
  const bool known =
      evict_queue ? opcode == Opcode::kEvict : opcode == Opcode::kRefill || opcode == Opcode::kDelete;
  const uint16_t allowed = opcode == Opcode::kDelete ? proto::descriptor_flag::kAll : 0;
  if (!known || (descriptor.flags & ~allowed) != 0 || descriptor.reserved0 != 0 ||
      descriptor.reserved1 != 0) {
    return Status::kBadOpcode;
  }
  *table = FindGrant(descriptor.grant_id);
  if (*table == nullptr) return Status::kBadGrant;
  if (descriptor.slot >= (*table)->geometry.slots) return Status::kBadSlot;
  if (descriptor.piece_bytes != (*table)->geometry.piece_bytes) return Status::kBadLength;
  return Status::kOk;
}

void ShardSession::AcceptEvict(const proto::Descriptor& descriptor, uint64_t now_ns) {
  Operation& operation = Enter(evicts_, descriptor, now_ns);
  KVSS_STEP("evict accepted");
  const uint64_t sequence = evicts_.accepted;
  SlotTable* table = nullptr;
  if (const Status status = Check(descriptor, true, &table); status != Status::kOk) {
    FinishEvict(sequence, status, now_ns);
    return Progress(now_ns);
  }
  Slot& slot = table->slots[descriptor.slot];
  operation.earlier_evict = std::exchange(slot.last_evict, sequence);
  if (EvictMayStart(operation, slot)) {
    StartEvict(sequence, operation, *table, now_ns);
    return Progress(now_ns);
  }
  ++tally_->gated_evicts;
  next_deadline_ns_ = std::min(next_deadline_ns_, operation.deadline_ns);
}

bool ShardSession::EvictMayStart(const Operation& operation, const Slot& slot) {
  return commands_.finished >= operation.descriptor.after && slot.readers == 0 &&
         FinishedWithEarlier(operation.earlier_evict);
}

bool ShardSession::FinishedWithEarlier(uint64_t evict) {
  // An evict that ran out of time has finished before those that it waited for, so one look is not enough.
  while (evict > evicts_.finished) {
    const Operation& operation = evicts_.At(evict);
    if (operation.state != OperationState::kFinished) return false;
    evict = operation.earlier_evict;
  }
  return true;
}

void ShardSession::StartEvict(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns) {
  Slot& slot = table.slots[operation.descriptor.slot];
  operation.earlier_evict = 0;
  if (operation.descriptor.generation <= slot.generation) {
    return FinishEvict(sequence, Status::kBadGeneration, now_ns);
  }
  // From here on the old bytes may change, so the old piece is gone whatever becomes of this evict.
  tally_->stored_slots -= slot.state == SlotState::kStored;
  slot.generation = operation.descriptor.generation;
  slot.tenant_tag = operation.descriptor.tenant_tag;
  slot.state = SlotState::kWriting;
  KVSS_STEP("slot stamped");
  Begin(TransferKind::kReceive, sequence, operation, table, now_ns);
}

void ShardSession::Begin(TransferKind kind, uint64_t sequence, Operation& operation, const SlotTable& table,
                         uint64_t now_ns) {
  const proto::Descriptor& descriptor = operation.descriptor;
  Window& window = kind == TransferKind::kReceive ? evicts_ : commands_;
  operation.state = OperationState::kRunning;
  --window.waiting;
  ++running_;
  KVSS_STEP("transfer about to begin");
  const TransferState state = port_->Begin(
      {kind, sequence, descriptor.grant_id, descriptor.slot, descriptor.slot * table.geometry.slot_bytes,
       descriptor.piece_bytes, descriptor.generation, descriptor.user_data});
  if (state != TransferState::kPending) {
    TransferFinished(kind, sequence, state == TransferState::kDone, now_ns);
  } else {
    next_deadline_ns_ = std::min(next_deadline_ns_, operation.deadline_ns);
  }
}

void ShardSession::AcceptCommand(const proto::Descriptor& descriptor, uint64_t now_ns) {
  Operation& operation = Enter(commands_, descriptor, now_ns);
  KVSS_STEP("command accepted");
  Progress(now_ns);
  if (operation.state == OperationState::kWaiting) {
    ++tally_->gated_commands;
    next_deadline_ns_ = std::min(next_deadline_ns_, operation.deadline_ns);
  }
}

void ShardSession::StartCommand(uint64_t sequence, Operation& operation, uint64_t now_ns) {
  SlotTable* table = nullptr;
  if (const Status status = Check(operation.descriptor, false, &table); status != Status::kOk) {
    return FinishCommand(sequence, status, now_ns);
  }
  if (static_cast<Opcode>(operation.descriptor.opcode) == Opcode::kRefill) {
    StartRefill(sequence, operation, *table, now_ns);
  } else {
    StartDelete(sequence, operation, *table, now_ns);
  }
}

void ShardSession::StartRefill(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns) {
  Slot& slot = table.slots[operation.descriptor.slot];
  if (slot.generation != operation.descriptor.generation) {
    return FinishCommand(sequence, slot.generation == 0 ? Status::kMissEmpty : Status::kMissOverwritten,
                         now_ns);
  }
  if (slot.state != SlotState::kStored) return FinishCommand(sequence, Status::kMissEmpty, now_ns);
  if (slot.tenant_tag != operation.descriptor.tenant_tag)
    return FinishCommand(sequence, Status::kMissTenant, now_ns);
  ++slot.readers;
  Begin(TransferKind::kSend, sequence, operation, table, now_ns);
}

void ShardSession::StartDelete(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns) {
  Slot& slot = table.slots[operation.descriptor.slot];
  if (slot.generation != operation.descriptor.generation) {
    return FinishCommand(sequence, slot.generation == 0 ? Status::kMissEmpty : Status::kMissOverwritten,
                         now_ns);
  }
  if (slot.state != SlotState::kStored) return FinishCommand(sequence, Status::kMissEmpty, now_ns);
  // Later refills miss from now on; a refill that already runs keeps the bytes until it has finished.
  slot.state = SlotState::kEmpty;
  --tally_->stored_slots;
  KVSS_STEP("slot deleted, not scrubbed");
  if ((operation.descriptor.flags & proto::descriptor_flag::kScrub) == 0) {
    return FinishCommand(sequence, Status::kOk, now_ns);
  }
  if (slot.readers == 0) return Scrub(sequence, operation, table, now_ns);
  operation.state = OperationState::kAwaitingReaders;
  --commands_.waiting;
  ++scrubs_awaiting_readers_;
}

void ShardSession::Scrub(uint64_t sequence, Operation& operation, SlotTable& table, uint64_t now_ns) {
  // Counts as a reader: an evict must not write what the scrub is about to erase.
  ++table.slots[operation.descriptor.slot].readers;
  Begin(TransferKind::kScrub, sequence, operation, table, now_ns);
}

void ShardSession::ScrubAfterReaders(const Operation& refill, SlotTable& table, uint64_t now_ns) {
  for (uint64_t sequence = commands_.finished + 1; sequence <= commands_.started; ++sequence) {
    Operation& operation = commands_.At(sequence);
    if (operation.state != OperationState::kAwaitingReaders ||
        operation.descriptor.grant_id != refill.descriptor.grant_id ||
        operation.descriptor.slot != refill.descriptor.slot) {
      continue;
    }
    --scrubs_awaiting_readers_;
    ++commands_.waiting;
    operation.state = OperationState::kWaiting;
    return Scrub(sequence, operation, table, now_ns);
  }
}

void ShardSession::TransferFinished(TransferKind kind, uint64_t sequence, bool succeeded, uint64_t now_ns) {
  Window& window = kind == TransferKind::kReceive ? evicts_ : commands_;
  Operation& operation = window.At(sequence);
  KVSS_CHECK(operation.state == OperationState::kRunning);
  KVSS_STEP("transfer finished, slot not marked");
  --running_;
  SlotTable* table = FindGrant(operation.descriptor.grant_id);
  Slot& slot = table->slots[operation.descriptor.slot];
  const Status status = succeeded             ? Status::kOk
                        : closed_             ? Status::kCancelled
                        : operation.cancelled ? Status::kDeadline
                                              : Status::kTransferFailed;
  switch (kind) {
    case TransferKind::kReceive:
      slot.state = succeeded && !closed_ ? SlotState::kStored : SlotState::kEmpty;
      tally_->stored_slots += slot.state == SlotState::kStored;
      FinishEvict(sequence, status, now_ns);
      break;
    case TransferKind::kSend:
      --slot.readers;
      FinishCommand(sequence, status, now_ns);
      // Before any evict that waits for this slot: the delete was asked for earlier.
      if (slot.readers == 0 && scrubs_awaiting_readers_ > 0) ScrubAfterReaders(operation, *table, now_ns);
      break;
    case TransferKind::kScrub:
      --slot.readers;
      tally_->scrubbed_bytes += succeeded ? operation.descriptor.piece_bytes : 0;
      FinishCommand(sequence, status, now_ns);
      break;
  }
  Progress(now_ns);
}

void ShardSession::FinishEvict(uint64_t sequence, Status status, uint64_t now_ns) {
  const Operation& operation = evicts_.At(sequence);
  if (status == Status::kOk) {
    ++tally_->evicts;
    tally_->evict_bytes += operation.descriptor.piece_bytes;
    ++tally_->evict_latency[LatencyBucket(now_ns - operation.accepted_ns)];
  } else {
    ++tally_->evict_faults;
    tally_->deadlines += status == Status::kDeadline;
  }
  Finish(evicts_, sequence, status);
}

void ShardSession::FinishCommand(uint64_t sequence, Status status, uint64_t now_ns) {
  const Operation& operation = commands_.At(sequence);
  const bool refill = static_cast<Opcode>(operation.descriptor.opcode) == Opcode::kRefill;
  tally_->deadlines += status == Status::kDeadline;
  tally_->tenant_alarms += status == Status::kMissTenant;
  if (status == Status::kOk) {
    ++(refill ? tally_->refills : tally_->deletes);
    if (refill) {
      tally_->refill_bytes += operation.descriptor.piece_bytes;
      ++tally_->refill_latency[LatencyBucket(now_ns - operation.accepted_ns)];
    }
  } else if (IsMiss(status)) {
    ++(refill ? tally_->refill_misses : tally_->delete_misses);
  } else {
    tally_->refill_faults += refill;
  }
  Finish(commands_, sequence, status);
}

void ShardSession::Finish(Window& window, uint64_t sequence, Status status) {
  Operation& operation = window.At(sequence);
  KVSS_CHECK(operation.state != OperationState::kFinished);
  window.waiting -= operation.state == OperationState::kWaiting;
  operation.state = OperationState::kFinished;
  KVSS_STEP("operation finished, not counted");
  while (window.finished < window.accepted &&
         window.At(window.finished + 1).state == OperationState::kFinished) {
    ++window.finished;
  }
  const proto::Descriptor& descriptor = operation.descriptor;
  const SlotTable* table = FindGrant(descriptor.grant_id);
  const bool slot_known = table != nullptr && descriptor.slot < table->geometry.slots;
  sink_->Complete({descriptor.opcode, static_cast<uint16_t>(status), descriptor.slot, descriptor.user_data,
                   sequence, slot_known ? table->slots[descriptor.slot].generation : 0});
}

void ShardSession::Progress(uint64_t now_ns) {
  // Starting an operation may finish it and come back here: the outermost call does the looping.
  if (in_progress_ || closed_) return;
  in_progress_ = true;
  while (StartReadyCommands(now_ns) || StartWaitingEvicts(now_ns)) {
  }
  in_progress_ = false;
}

bool ShardSession::StartReadyCommands(uint64_t now_ns) {
  const uint64_t before = commands_.started;
  while (commands_.started < commands_.accepted) {
    const uint64_t sequence = commands_.started + 1;
    Operation& operation = commands_.At(sequence);
    const bool waiting = operation.state == OperationState::kWaiting;  // otherwise its deadline has passed
    if (waiting && evicts_.finished < operation.descriptor.after) break;
    ++commands_.started;
    if (waiting) StartCommand(sequence, operation, now_ns);
  }
  return commands_.started != before;
}

bool ShardSession::StartWaitingEvicts(uint64_t now_ns) {
  bool moved = false;
  for (uint64_t sequence = evicts_.finished + 1; evicts_.waiting > 0 && sequence <= evicts_.accepted;
       ++sequence) {
    Operation& operation = evicts_.At(sequence);
    if (operation.state != OperationState::kWaiting) continue;
    SlotTable* table = FindGrant(operation.descriptor.grant_id);
    if (!EvictMayStart(operation, table->slots[operation.descriptor.slot])) continue;
    StartEvict(sequence, operation, *table, now_ns);
    moved = true;
  }
  return moved;
}

void ShardSession::ExpireDeadlines(uint64_t now_ns) {
  if (now_ns < next_deadline_ns_) return;
  next_deadline_ns_ = UINT64_MAX;
  ExpireWindow(evicts_, now_ns);
  ExpireWindow(commands_, now_ns);
  Progress(now_ns);
}

void ShardSession::ExpireWindow(Window& window, uint64_t now_ns) {
  const bool evict = &window == &evicts_;
  for (uint64_t sequence = window.finished + 1; sequence <= window.accepted; ++sequence) {
    Operation& operation = window.At(sequence);
    if (operation.state == OperationState::kFinished || operation.cancelled) continue;
    if (operation.deadline_ns > now_ns) {
      next_deadline_ns_ = std::min(next_deadline_ns_, operation.deadline_ns);
    } else if (operation.state == OperationState::kRunning) {
      operation.cancelled = true;
      port_->Cancel(evict ? TransferKind::kReceive : CommandKind(operation), sequence);
    } else if (operation.state == OperationState::kWaiting && evict) {
      ForgetOverwritten(operation);
      FinishEvict(sequence, Status::kDeadline, now_ns);
    } else if (operation.state == OperationState::kWaiting) {
      FinishCommand(sequence, Status::kDeadline, now_ns);
    }
    // A delete that awaits readers has taken effect already; the readers' own deadlines end it.
  }
}

void ShardSession::ForgetOverwritten(const Operation& evict) {
  // A client in the same host writes the slot before it submits the evict, so the old bytes are gone even
  // though the evict never ran.
  Slot& slot = FindGrant(evict.descriptor.grant_id)->slots[evict.descriptor.slot];
  if (slot.state == SlotState::kStored && slot.generation < evict.descriptor.generation) {
    slot.state = SlotState::kEmpty;
    --tally_->stored_slots;
  }
}

TransferKind ShardSession::CommandKind(const Operation& operation) {
  return static_cast<Opcode>(operation.descriptor.opcode) == Opcode::kDelete ? TransferKind::kScrub
                                                                             : TransferKind::kSend;
}

void ShardSession::Close(uint64_t now_ns) {
  closed_ = true;
  for (Window* window : {&evicts_, &commands_}) {
    for (uint64_t sequence = window->finished + 1; sequence <= window->accepted; ++sequence) {
      Operation& operation = window->At(sequence);
      const bool evict = window == &evicts_;
      if (operation.state == OperationState::kRunning) {
        if (!std::exchange(operation.cancelled, true)) {
          port_->Cancel(evict ? TransferKind::kReceive : CommandKind(operation), sequence);
        }
      } else if (operation.state != OperationState::kFinished) {
        never_ran_.push_back(operation.descriptor);
        evict ? FinishEvict(sequence, Status::kCancelled, now_ns)
              : FinishCommand(sequence, Status::kCancelled, now_ns);
      }
    }
  }
  for (const auto& [grant_id, table] : grants_) {
    for (const Slot& slot : table->slots) tally_->stored_slots -= slot.state == SlotState::kStored;
  }
}

void ShardSession::Void(const proto::Descriptor& descriptor) {
  KVSS_CHECK(closed_);
  SlotTable* table = FindGrant(descriptor.grant_id);
  if (table == nullptr || descriptor.slot >= table->geometry.slots) return;
  Slot& slot = table->slots[descriptor.slot];
  const auto opcode = static_cast<Opcode>(descriptor.opcode);
  if (opcode == Opcode::kEvict) {
    // Kept, so that whoever goes on with the slot chooses a higher one: nothing may ever pass for this evict.
    slot.generation = std::max(slot.generation, descriptor.generation);
    slot.state = SlotState::kEmpty;
  } else if (opcode == Opcode::kDelete && slot.generation == descriptor.generation) {
    slot.state = SlotState::kEmpty;
  }
}

std::unique_ptr<SlotTable> ShardSession::TakeTable(uint32_t grant_id) {
  KVSS_CHECK(closed_ && quiescent());
  for (const proto::Descriptor& descriptor : std::exchange(never_ran_, {})) Void(descriptor);
  const auto found = grants_.find(grant_id);
  if (found == grants_.end()) return nullptr;
  std::unique_ptr<SlotTable> table = std::move(found->second);
  grants_.erase(found);
  table->stored = 0;
  for (Slot& slot : table->slots) {
    KVSS_CHECK(slot.readers == 0 && slot.state != SlotState::kWriting);
    slot.last_evict = 0;
    table->stored += slot.state == SlotState::kStored;
  }
  return table;
}

}  // namespace kvss
