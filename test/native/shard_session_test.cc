// The rules of order of the shard core, one sentence each. The model test in test/core goes through their
// combinations; here is what each of them means.

#include "store/shard_session.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>

#include "harness.h"

namespace kvss {
namespace {

using proto::Completion;
using proto::Descriptor;
using proto::Opcode;
using proto::Status;

constexpr uint32_t kGrant = 3;
constexpr uint32_t kSlots = 4;
constexpr uint32_t kPieceBytes = 100;
constexpr uint32_t kWindow = 8;

struct With {
  uint64_t after = 0;
  uint64_t tenant = 1;
  uint32_t timeout_us = 0;
  bool scrub = false;
};

/// A session whose transfers end when the test says so.
class Bench : private TransferPort, private CompletionSink {
 public:
  Bench() { CHECK(session.AddGrant(kGrant, GeometryOf(kSlots)).ok()); }
  ~Bench() {
    session.Close(now);
    while (!running.empty()) End(running.begin()->first.first, running.begin()->first.second, false);
  }

  static GrantGeometry GeometryOf(uint32_t slots) {
    return test::Must(GrantGeometry::For(slots, kPieceBytes));
  }

  static Descriptor Make(Opcode opcode, uint32_t slot, uint64_t generation, With with) {
    return {.opcode = static_cast<uint16_t>(opcode),
            .flags = with.scrub ? proto::descriptor_flag::kScrub : uint16_t{0},
            .grant_id = kGrant,
            .slot = slot,
            .piece_bytes = kPieceBytes,
            .generation = generation,
            .tenant_tag = with.tenant,
            .after = with.after,
            .timeout_us = with.timeout_us};
  }

  uint64_t Evict(uint32_t slot, uint64_t generation, With with = {}) {
    session.AcceptEvict(Make(Opcode::kEvict, slot, generation, with), now);
    return ++evicts;
  }
  uint64_t Refill(uint32_t slot, uint64_t generation, With with = {}) {
    session.AcceptCommand(Make(Opcode::kRefill, slot, generation, with), now);
    return ++commands;
  }
  uint64_t Delete(uint32_t slot, uint64_t generation, With with = {}) {
    session.AcceptCommand(Make(Opcode::kDelete, slot, generation, with), now);
    return ++commands;
  }
  /// An evict that has finished.
  void Store(uint32_t slot, uint64_t generation, With with = {}) {
    const uint64_t evict = Evict(slot, generation, with);
    Done(TransferKind::kReceive, evict);
    CHECK_EQ(EvictStatus(evict), Status::kOk);
  }

  bool Runs(TransferKind kind, uint64_t sequence) const { return running.contains({kind, sequence}); }
  void Done(TransferKind kind, uint64_t sequence) { End(kind, sequence, true); }
  void Failed(TransferKind kind, uint64_t sequence) { End(kind, sequence, false); }

  const Completion* Find(bool evict, uint64_t sequence) const {
    const auto found = std::ranges::find_if(completions, [&](const Completion& completion) {
      return completion.sequence == sequence &&
             (completion.opcode == static_cast<uint16_t>(Opcode::kEvict)) == evict;
    });
    return found == completions.end() ? nullptr : &*found;
  }
  bool EvictFinished(uint64_t sequence) const { return Find(true, sequence) != nullptr; }
  bool CommandFinished(uint64_t sequence) const { return Find(false, sequence) != nullptr; }
  Status EvictStatus(uint64_t sequence) const {
    CHECK(EvictFinished(sequence));
    return static_cast<Status>(Find(true, sequence)->status);
  }
  Status CommandStatus(uint64_t sequence) const {
    CHECK(CommandFinished(sequence));
    return static_cast<Status>(Find(false, sequence)->status);
  }

  uint64_t now = 1'000'000;
  TransferState answer = TransferState::kPending;  ///< of Begin
  ShardTally tally;
  std::vector<Completion> completions;
  std::map<std::pair<TransferKind, uint64_t>, Transfer> running;
  std::vector<std::pair<TransferKind, uint64_t>> cancelled;
  std::vector<Transfer> begun;
  ShardSession session{kWindow, this, this, &tally};
  uint64_t evicts = 0;
  uint64_t commands = 0;

 private:
  TransferState Begin(const Transfer& transfer) override {
    begun.push_back(transfer);
    if (answer == TransferState::kPending) running[{transfer.kind, transfer.sequence}] = transfer;
    return answer;
  }
  void Cancel(TransferKind kind, uint64_t sequence) override { cancelled.emplace_back(kind, sequence); }
  void Complete(const Completion& completion) override { completions.push_back(completion); }

  void End(TransferKind kind, uint64_t sequence, bool succeeded) {
    CHECK_EQ(running.erase({kind, sequence}), 1u);
    session.TransferFinished(kind, sequence, succeeded, now);
  }
};

constexpr TransferKind kReceive = TransferKind::kReceive;
constexpr TransferKind kSend = TransferKind::kSend;
constexpr TransferKind kScrub = TransferKind::kScrub;

TEST("a transfer names the grant, the slot, where it lies and how long it is") {
  Bench bench;
  bench.Evict(2, 7);
  const Transfer& transfer = bench.begun.at(0);
  CHECK(transfer.kind == kReceive);
  CHECK_EQ(transfer.sequence, 1u);
  CHECK_EQ(transfer.grant_id, kGrant);
  CHECK_EQ(transfer.slot, 2u);
  CHECK_EQ(transfer.offset, 2u * 128u);
  CHECK_EQ(transfer.bytes, kPieceBytes);
  CHECK_EQ(transfer.generation, 7u);
}

TEST("a refill waits until evictCount has reached its afterEvict") {
  Bench bench;
  const uint64_t first = bench.Evict(0, 1);
  const uint64_t second = bench.Evict(1, 1);
  const uint64_t refill = bench.Refill(0, 1, {.after = 2});
  bench.Done(kReceive, first);
  CHECK(!bench.Runs(kSend, refill));
  bench.Done(kReceive, second);
  CHECK(bench.Runs(kSend, refill));
}

TEST("an evict waits until commandCount has reached its afterCommand") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t first = bench.Refill(0, 1);
  const uint64_t second = bench.Refill(0, 1);
  const uint64_t evict = bench.Evict(1, 1, {.after = 2});
  bench.Done(kSend, second);
  CHECK(!bench.Runs(kReceive, evict));
  bench.Done(kSend, first);
  CHECK(bench.Runs(kReceive, evict));
  CHECK_EQ(bench.tally.gated_evicts, 1u);
}

TEST("evictCount counts only a gapless run from the first evict") {
  Bench bench;
  const uint64_t first = bench.Evict(0, 1);
  const uint64_t second = bench.Evict(1, 1);
  const uint64_t third = bench.Evict(2, 1);
  bench.Done(kReceive, third);
  bench.Done(kReceive, second);
  CHECK_EQ(bench.session.evict_count(), 0u);
  bench.Done(kReceive, first);
  CHECK_EQ(bench.session.evict_count(), 3u);
}

TEST("commandCount counts only a gapless run from the first command") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t first = bench.Refill(0, 1);
  const uint64_t second = bench.Refill(0, 1);
  bench.Done(kSend, second);
  CHECK(bench.CommandFinished(second));
  CHECK_EQ(bench.session.command_count(), 0u);
  bench.Done(kSend, first);
  CHECK_EQ(bench.session.command_count(), 2u);
}

TEST("a failed evict counts as finished, with its status, and leaves its slot empty") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t evict = bench.Evict(0, 2);
  const uint64_t refill = bench.Refill(0, 2, {.after = 2});
  bench.Failed(kReceive, evict);
  CHECK_EQ(bench.EvictStatus(evict), Status::kTransferFailed);
  CHECK_EQ(bench.session.evict_count(), 2u);
  CHECK_EQ(bench.CommandStatus(refill), Status::kMissEmpty);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissOverwritten);
  CHECK_EQ(bench.tally.stored_slots, 0u);
}

TEST("a refused evict counts as finished too") {
  Bench bench;
  Descriptor bad = Bench::Make(Opcode::kEvict, kSlots, 1, {});
  bench.session.AcceptEvict(bad, bench.now);
  CHECK_EQ(bench.EvictStatus(1), Status::kBadSlot);
  CHECK_EQ(bench.session.evict_count(), 1u);
}

TEST("an evict into a slot that is being read waits, even where its descriptor names no command") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t first = bench.Refill(0, 1);
  const uint64_t second = bench.Refill(0, 1);
  const uint64_t evict = bench.Evict(0, 2, {.after = 0});
  CHECK(!bench.Runs(kReceive, evict));
  bench.Done(kSend, first);
  CHECK(!bench.Runs(kReceive, evict));
  bench.Failed(kSend, second);
  CHECK(bench.Runs(kReceive, evict));
  CHECK_EQ(bench.CommandStatus(first), Status::kOk);
  CHECK_EQ(bench.CommandStatus(second), Status::kTransferFailed);
}

TEST("an evict into another slot waits for no reader") {
  Bench bench;
  bench.Store(0, 1);
  bench.Refill(0, 1);
  CHECK(bench.Runs(kReceive, bench.Evict(1, 1)));
}

TEST("evicts into one slot run one after the other, in order") {
  Bench bench;
  const uint64_t first = bench.Evict(0, 1);
  const uint64_t second = bench.Evict(0, 2);
  const uint64_t third = bench.Evict(0, 3);
  CHECK(bench.Runs(kReceive, first));
  CHECK(!bench.Runs(kReceive, second));
  bench.Done(kReceive, first);
  CHECK(bench.Runs(kReceive, second));
  CHECK(!bench.Runs(kReceive, third));
  bench.Failed(kReceive, second);
  CHECK(bench.Runs(kReceive, third));
}

TEST("an evict never overtakes an earlier one into its slot, even when one between them ran out of time") {
  Bench bench;
  bench.Store(1, 1);
  const uint64_t reader = bench.Refill(1, 1);
  const uint64_t gated = bench.Evict(0, 1, {.after = reader});
  const uint64_t impatient = bench.Evict(0, 2, {.timeout_us = 1});
  const uint64_t last = bench.Evict(0, 3);
  bench.now += 1000;
  bench.session.ExpireDeadlines(bench.now);
  CHECK_EQ(bench.EvictStatus(impatient), Status::kDeadline);
  CHECK(!bench.Runs(kReceive, last));
  bench.Done(kSend, reader);
  CHECK(bench.Runs(kReceive, gated));
  CHECK(!bench.Runs(kReceive, last));
  bench.Done(kReceive, gated);
  CHECK(bench.Runs(kReceive, last));
}

TEST("an evict never runs beside another in its slot, even when one between them ran out of time") {
  Bench bench;
  const uint64_t running = bench.Evict(0, 1);
  const uint64_t impatient = bench.Evict(0, 2, {.timeout_us = 1});
  bench.now += 1000;
  bench.session.ExpireDeadlines(bench.now);
  CHECK_EQ(bench.EvictStatus(impatient), Status::kDeadline);
  const uint64_t last = bench.Evict(0, 3);
  CHECK(!bench.Runs(kReceive, last));
  bench.Done(kReceive, running);
  CHECK(bench.Runs(kReceive, last));
}

TEST("commands start in order: an open gate behind a closed one waits") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t gated = bench.Refill(1, 1, {.after = 2});
  const uint64_t open = bench.Refill(0, 1, {.after = 1});
  CHECK(!bench.Runs(kSend, open));
  const uint64_t evict = bench.Evict(1, 1);
  bench.Done(kReceive, evict);
  CHECK(bench.Runs(kSend, gated));
  CHECK(bench.Runs(kSend, open));
  CHECK_EQ(bench.tally.gated_commands, 2u);
}

TEST("evicts never wait for refills as a class") {
  Bench bench;
  bench.Store(0, 1);
  bench.Refill(0, 1);
  bench.Refill(0, 1, {.after = 100});
  for (uint32_t slot = 1; slot < kSlots; ++slot) CHECK(bench.Runs(kReceive, bench.Evict(slot, 1)));
  CHECK_EQ(bench.tally.gated_evicts, 0u);
}

TEST("a refill that names another generation is a miss and reads nothing") {
  Bench bench;
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissEmpty);
  bench.Store(0, 5);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 4)), Status::kMissOverwritten);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 6)), Status::kMissOverwritten);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 0)), Status::kMissOverwritten);
  CHECK_EQ(bench.tally.refill_misses, 4u);
  CHECK_EQ(bench.begun.size(), 1u);
}

TEST("a refill of a slot that is being written is a miss") {
  Bench bench;
  bench.Store(0, 1);
  bench.Evict(0, 2);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissOverwritten);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 2)), Status::kMissEmpty);
}

TEST("a refill with another tenant is a miss and an alarm, and reads nothing") {
  Bench bench;
  bench.Store(0, 1, {.tenant = 10});
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1, {.tenant = 11})), Status::kMissTenant);
  CHECK_EQ(bench.tally.tenant_alarms, 1u);
  CHECK_EQ(bench.tally.refill_misses, 1u);
  CHECK(bench.running.empty());
  CHECK(bench.Runs(kSend, bench.Refill(0, 1, {.tenant = 10})));
}

TEST("the tenant of a slot is that of its last evict") {
  Bench bench;
  bench.Store(0, 1, {.tenant = 10});
  bench.Store(0, 2, {.tenant = 11});
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 2, {.tenant = 10})), Status::kMissTenant);
  CHECK(bench.Runs(kSend, bench.Refill(0, 2, {.tenant = 11})));
}

TEST("the generation of a slot must rise with every evict") {
  Bench bench;
  bench.Store(0, 5);
  CHECK_EQ(bench.EvictStatus(bench.Evict(0, 5)), Status::kBadGeneration);
  CHECK_EQ(bench.EvictStatus(bench.Evict(0, 4)), Status::kBadGeneration);
  CHECK_EQ(bench.EvictStatus(bench.Evict(1, 0)), Status::kBadGeneration);
  CHECK(bench.Runs(kSend, bench.Refill(0, 5)));
  bench.Store(1, UINT64_MAX);
  CHECK_EQ(bench.EvictStatus(bench.Evict(1, 0)), Status::kBadGeneration);
  CHECK_EQ(bench.session.evict_count(), 6u);
}

TEST("a delete makes later refills miss, and a second delete") {
  Bench bench;
  bench.Store(0, 1);
  CHECK_EQ(bench.CommandStatus(bench.Delete(0, 2)), Status::kMissOverwritten);
  CHECK_EQ(bench.CommandStatus(bench.Delete(0, 1)), Status::kOk);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissEmpty);
  CHECK_EQ(bench.CommandStatus(bench.Delete(0, 1)), Status::kMissEmpty);
  CHECK_EQ(bench.tally.deletes, 1u);
  CHECK_EQ(bench.tally.delete_misses, 2u);
  CHECK_EQ(bench.tally.stored_slots, 0u);
}

TEST("a deleted generation does not come back") {
  Bench bench;
  bench.Store(0, 1);
  bench.Delete(0, 1);
  CHECK_EQ(bench.EvictStatus(bench.Evict(0, 1)), Status::kBadGeneration);
}

TEST("a refill that runs keeps the bytes although a delete has taken effect") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t refill = bench.Refill(0, 1);
  CHECK_EQ(bench.CommandStatus(bench.Delete(0, 1)), Status::kOk);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissEmpty);
  CHECK(!bench.Runs(kReceive, bench.Evict(0, 2)));
  bench.Done(kSend, refill);
  CHECK_EQ(bench.CommandStatus(refill), Status::kOk);
}

TEST("a scrub waits for the readers of its slot and runs before an evict that waits for them too") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t first = bench.Refill(0, 1);
  const uint64_t second = bench.Refill(0, 1);
  const uint64_t evict = bench.Evict(0, 2);
  const uint64_t scrub = bench.Delete(0, 1, {.scrub = true});
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissEmpty);
  bench.Done(kSend, first);
  CHECK(!bench.Runs(kScrub, scrub));
  bench.Done(kSend, second);
  CHECK(bench.Runs(kScrub, scrub));
  CHECK(!bench.Runs(kReceive, evict));
  bench.Done(kScrub, scrub);
  CHECK_EQ(bench.CommandStatus(scrub), Status::kOk);
  CHECK(bench.Runs(kReceive, evict));
  CHECK_EQ(bench.tally.scrubbed_bytes, uint64_t{kPieceBytes});
}

TEST("a scrub that waits for readers holds up no command on another slot") {
  Bench bench;
  bench.Store(0, 1);
  bench.Store(1, 1);
  bench.Refill(0, 1);
  bench.Delete(0, 1, {.scrub = true});
  CHECK(bench.Runs(kSend, bench.Refill(1, 1)));
}

TEST("a scrub that failed says so, and the piece is gone all the same") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t scrub = bench.Delete(0, 1, {.scrub = true});
  bench.Failed(kScrub, scrub);
  CHECK_EQ(bench.CommandStatus(scrub), Status::kTransferFailed);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissEmpty);
  CHECK_EQ(bench.tally.scrubbed_bytes, 0u);
}

TEST("a command that waits for its gate ends at its deadline and has no effect") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t refill = bench.Refill(0, 1, {.after = 100, .timeout_us = 5});
  const uint64_t scrub = bench.Delete(0, 1, {.after = 100, .timeout_us = 5});
  const uint64_t behind = bench.Refill(0, 1);
  CHECK_EQ(bench.session.next_deadline_ns(), bench.now + 5000);
  bench.session.ExpireDeadlines(bench.now + 4999);
  CHECK(!bench.CommandFinished(refill));
  bench.now += 5000;
  bench.session.ExpireDeadlines(bench.now);
  CHECK_EQ(bench.CommandStatus(refill), Status::kDeadline);
  CHECK_EQ(bench.CommandStatus(scrub), Status::kDeadline);
  // What stood behind them goes on, and finds the piece.
  CHECK(bench.Runs(kSend, behind));
  CHECK_EQ(bench.tally.deadlines, 2u);
}

TEST("an evict that waits for its gate ends at its deadline and leaves its slot empty") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t evict = bench.Evict(0, 2, {.after = 100, .timeout_us = 5});
  bench.now += 5000;
  bench.session.ExpireDeadlines(bench.now);
  CHECK_EQ(bench.EvictStatus(evict), Status::kDeadline);
  CHECK_EQ(bench.session.evict_count(), 2u);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissEmpty);
  CHECK_EQ(bench.tally.stored_slots, 0u);
}

TEST("an evict without a timeout waits ten minutes and no longer") {
  for (const uint32_t timeout_us : {0u, proto::kMaxOperationTimeoutUs, UINT32_MAX}) {
    Bench bench;
    bench.Evict(0, 1, {.after = 1, .timeout_us = timeout_us});
    CHECK_EQ(bench.session.next_deadline_ns(), bench.now + 600'000'000'000u);
  }
}

TEST("a running transfer is asked to stop at its deadline, once, and still ends the operation itself") {
  Bench bench;
  const uint64_t evict = bench.Evict(0, 1, {.timeout_us = 5});
  bench.now += 5000;
  bench.session.ExpireDeadlines(bench.now);
  bench.session.ExpireDeadlines(bench.now + 1);
  CHECK_EQ(bench.cancelled.size(), 1u);
  CHECK(!bench.EvictFinished(evict));
  CHECK(!bench.session.quiescent());
  // Until then nobody else touches the slot.
  const uint64_t next = bench.Evict(0, 2);
  CHECK(!bench.Runs(kReceive, next));
  bench.Failed(kReceive, evict);
  CHECK_EQ(bench.EvictStatus(evict), Status::kDeadline);
  CHECK(bench.Runs(kReceive, next));
}

TEST("a transfer that ends well after its deadline is well") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t refill = bench.Refill(0, 1, {.timeout_us = 5});
  bench.now += 5000;
  bench.session.ExpireDeadlines(bench.now);
  bench.Done(kSend, refill);
  CHECK_EQ(bench.CommandStatus(refill), Status::kOk);
  CHECK_EQ(bench.tally.deadlines, 0u);
}

TEST("two queues that wait for each other end at their deadlines") {
  Bench bench;
  const uint64_t evict = bench.Evict(0, 1, {.after = 1, .timeout_us = 10});
  const uint64_t refill = bench.Refill(0, 1, {.after = 1, .timeout_us = 20});
  bench.now += 10'000;
  bench.session.ExpireDeadlines(bench.now);
  CHECK_EQ(bench.EvictStatus(evict), Status::kDeadline);
  CHECK_EQ(bench.CommandStatus(refill), Status::kMissEmpty);
  CHECK(bench.session.idle());
}

TEST("closing cancels what waits, asks what runs to stop, and is quiescent when that has ended") {
  Bench bench;
  bench.Store(0, 1);
  bench.Store(2, 1);
  const uint64_t evict = bench.Evict(1, 1);
  const uint64_t refill = bench.Refill(0, 1);
  const uint64_t gated_evict = bench.Evict(1, 2);
  const uint64_t scrub_behind_reader = bench.Delete(0, 1, {.scrub = true});
  const uint64_t gated_refill = bench.Refill(0, 1, {.after = 100});
  bench.session.Close(bench.now);
  CHECK_EQ(bench.EvictStatus(gated_evict), Status::kCancelled);
  CHECK_EQ(bench.CommandStatus(gated_refill), Status::kCancelled);
  CHECK_EQ(bench.CommandStatus(scrub_behind_reader), Status::kCancelled);
  CHECK_EQ(bench.cancelled.size(), 2u);
  CHECK(!bench.session.quiescent());
  bench.Failed(kReceive, evict);
  bench.Failed(kSend, refill);
  CHECK(bench.session.quiescent());
  CHECK(bench.session.idle());
  // The end of the session is no operation that ran out of time.
  CHECK_EQ(bench.EvictStatus(evict), Status::kCancelled);
  CHECK_EQ(bench.CommandStatus(refill), Status::kCancelled);
  CHECK_EQ(bench.tally.deadlines, 0u);
  CHECK_EQ(bench.tally.stored_slots, 0u);
}

TEST("nothing starts after a session was closed") {
  Bench bench;
  const uint64_t evict = bench.Evict(0, 1);
  bench.Evict(0, 2);
  bench.Refill(0, 1, {.after = 1});
  bench.session.Close(bench.now);
  const size_t begun = bench.begun.size();
  bench.Done(kReceive, evict);
  CHECK_EQ(bench.begun.size(), begun);
  CHECK_EQ(bench.tally.stored_slots, 0u);
}

TEST("a port that ends every transfer at once leaves nothing unfinished") {
  Bench bench;
  bench.answer = TransferState::kDone;
  for (uint64_t round = 1; round <= 100; ++round) {
    const uint64_t evict = bench.Evict(0, round);
    CHECK_EQ(bench.EvictStatus(evict), Status::kOk);
    CHECK_EQ(bench.CommandStatus(bench.Refill(0, round, {.after = evict})), Status::kOk);
    CHECK(bench.session.idle());
  }
  CHECK_EQ(bench.session.evict_count(), 100u);
  CHECK_EQ(bench.tally.evict_bytes, 100u * kPieceBytes);
  CHECK_EQ(bench.tally.refill_bytes, 100u * kPieceBytes);
}

TEST("a port that refuses every transfer leaves nothing stored") {
  Bench bench;
  bench.answer = TransferState::kFailed;
  CHECK_EQ(bench.EvictStatus(bench.Evict(0, 1)), Status::kTransferFailed);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissEmpty);
  CHECK_EQ(bench.tally.evict_faults, 1u);
  CHECK_EQ(bench.tally.stored_slots, 0u);
}

TEST("one event can set off a chain through both queues") {
  Bench bench;
  const uint64_t first = bench.Evict(0, 1);
  // Gates only open downwards: evict 1, refill 1, evict 2, refill 2, evict 3.
  bench.Refill(0, 1, {.after = 1});
  bench.Evict(0, 2, {.after = 1});
  bench.Refill(0, 2, {.after = 2});
  bench.Evict(0, 3, {.after = 2});
  bench.answer = TransferState::kDone;
  bench.Done(kReceive, first);
  CHECK(bench.session.idle());
  CHECK_EQ(bench.session.evict_count(), 3u);
  CHECK_EQ(bench.tally.refills, 2u);
}

TEST("the window of a queue is how many of its operations may be unfinished") {
  Bench bench;
  for (uint32_t index = 0; index < kWindow; ++index) {
    CHECK_EQ(bench.session.CommandRoom(), kWindow - index);
    bench.Refill(0, 1, {.after = 1});
  }
  CHECK_EQ(bench.session.CommandRoom(), 0u);
  CHECK_EQ(bench.session.EvictRoom(), kWindow);
  bench.Store(0, 1);
  for (uint64_t sequence = kWindow; sequence > 1; --sequence) bench.Done(kSend, sequence);
  // The first one still holds the place of all.
  CHECK_EQ(bench.session.CommandRoom(), 0u);
  bench.Done(kSend, 1);
  CHECK_EQ(bench.session.CommandRoom(), kWindow);
}

TEST("descriptors are refused by the first thing that is wrong with them") {
  struct Case {
    Status status;
    void (*spoil)(Descriptor&);
  };
  const Case cases[] = {
      {Status::kBadOpcode, [](Descriptor& d) { d.opcode = 0; }},
      {Status::kBadOpcode, [](Descriptor& d) { d.opcode = 4; }},
      {Status::kBadOpcode, [](Descriptor& d) { d.flags = 2; }},
      {Status::kBadOpcode, [](Descriptor& d) { d.flags = proto::descriptor_flag::kScrub; }},
      {Status::kBadOpcode, [](Descriptor& d) { d.reserved0 = 1; }},
      {Status::kBadOpcode, [](Descriptor& d) { d.reserved1 = 1; }},
      {Status::kBadGrant, [](Descriptor& d) { d.grant_id = kGrant + 1; }},
      {Status::kBadSlot, [](Descriptor& d) { d.slot = kSlots; }},
      {Status::kBadLength, [](Descriptor& d) { d.piece_bytes = kPieceBytes + 1; }},
      {Status::kBadLength, [](Descriptor& d) { d.piece_bytes = 0; }},
  };
  for (const Opcode opcode : {Opcode::kEvict, Opcode::kRefill}) {
    for (const auto& [status, spoil] : cases) {
      Bench bench;
      Descriptor descriptor = Bench::Make(opcode, 0, 1, {});
      spoil(descriptor);
      opcode == Opcode::kEvict ? bench.session.AcceptEvict(descriptor, bench.now)
                               : bench.session.AcceptCommand(descriptor, bench.now);
      CHECK_EQ(bench.completions.at(0).status, static_cast<uint16_t>(status));
      CHECK_EQ(bench.completions.at(0).sequence, 1u);
      CHECK(bench.begun.empty());
      CHECK(bench.session.idle());
    }
  }
}

TEST("an operation in the wrong queue is refused") {
  Bench bench;
  bench.Store(0, 1);
  bench.session.AcceptCommand(Bench::Make(Opcode::kEvict, 0, 2, {}), bench.now);
  CHECK_EQ(bench.completions.back().status, static_cast<uint16_t>(Status::kBadOpcode));
  bench.session.AcceptEvict(Bench::Make(Opcode::kRefill, 0, 1, {}), bench.now);
  CHECK_EQ(bench.completions.back().status, static_cast<uint16_t>(Status::kBadOpcode));
  bench.session.AcceptEvict(Bench::Make(Opcode::kDelete, 0, 1, {}), bench.now);
  CHECK_EQ(bench.completions.back().status, static_cast<uint16_t>(Status::kBadOpcode));
  bench.session.AcceptCommand(Bench::Make(Opcode::kRefill, 0, 1, {}), bench.now);
  CHECK(bench.Runs(kSend, 2));
}

TEST("slots of two grants with one number are two slots") {
  Bench bench;
  CHECK(bench.session.AddGrant(kGrant + 1, Bench::GeometryOf(kSlots)).ok());
  bench.Store(0, 1);
  Descriptor other = Bench::Make(Opcode::kRefill, 0, 1, {});
  other.grant_id = kGrant + 1;
  bench.session.AcceptCommand(other, bench.now);
  CHECK_EQ(bench.completions.back().status, static_cast<uint16_t>(Status::kMissEmpty));
}

TEST("a grant is only removed while nothing is unfinished, and then knows nothing any more") {
  Bench bench;
  const uint64_t evict = bench.Evict(0, 1);
  CHECK_EQ(bench.session.RemoveGrant(kGrant).error().status, Status::kNotAllowed);
  bench.Done(kReceive, evict);
  CHECK_EQ(bench.tally.stored_slots, 1u);
  CHECK(bench.session.RemoveGrant(kGrant).ok());
  CHECK_EQ(bench.tally.stored_slots, 0u);
  CHECK_EQ(bench.session.RemoveGrant(kGrant).error().status, Status::kBadGrant);
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kBadGrant);
  CHECK(bench.session.AddGrant(kGrant, Bench::GeometryOf(kSlots)).ok());
  CHECK_EQ(bench.CommandStatus(bench.Refill(0, 1)), Status::kMissEmpty);
}

TEST("what the slots hold at the end goes to the next session, generations and tags with it") {
  Bench first;
  first.Store(0, 5, {.tenant = 7});
  first.Store(1, 6, {.tenant = 8});
  first.CommandStatus(first.Delete(1, 6));
  first.session.Close(first.now);
  CHECK_EQ(first.tally.stored_slots, 0u);
  Bench second;
  CHECK(second.session.RemoveGrant(kGrant).ok());
  CHECK(second.session.AddGrant(kGrant, first.session.TakeTable(kGrant)).ok());
  CHECK_EQ(second.tally.stored_slots, 1u);
  CHECK_EQ(second.CommandStatus(second.Refill(0, 5, {.tenant = 8})), Status::kMissTenant);
  CHECK_EQ(second.CommandStatus(second.Refill(0, 4, {.tenant = 7})), Status::kMissOverwritten);
  CHECK_EQ(second.CommandStatus(second.Refill(1, 6, {.tenant = 8})), Status::kMissEmpty);
  CHECK_EQ(second.EvictStatus(second.Evict(1, 6)), Status::kBadGeneration);
  const uint64_t refill = second.Refill(0, 5, {.after = second.evicts, .tenant = 7});
  CHECK(second.Runs(kSend, refill));
  second.Done(kSend, refill);
  second.Store(0, 7);
}

TEST("a table is taken once, and only of a grant that there is") {
  Bench bench;
  bench.session.Close(bench.now);
  CHECK(bench.session.TakeTable(kGrant + 1) == nullptr);
  CHECK(bench.session.TakeTable(kGrant) != nullptr);
  CHECK(bench.session.TakeTable(kGrant) == nullptr);
}

TEST("an evict that is cut while its bytes come leaves a slot that is empty, and its generation used") {
  Bench bench;
  bench.Store(0, 1);
  const uint64_t evict = bench.Evict(0, 4);
  bench.session.Close(bench.now);
  // Even where the port says that all bytes had come: nobody was told.
  bench.Done(kReceive, evict);
  const auto table = bench.session.TakeTable(kGrant);
  CHECK(table->slots[0].state == proto::SlotState::kEmpty);
  CHECK_EQ(table->slots[0].generation, 4u);
  CHECK_EQ(table->stored, 0u);
}

TEST("what waited at the end leaves no slot that could hold something else than it says") {
  Bench bench;
  for (uint32_t slot = 0; slot < kSlots; ++slot) bench.Store(slot, 1 + slot);
  bench.Evict(0, 9, {.after = 100});
  bench.Delete(1, 2, {.after = 100});
  bench.Refill(2, 3, {.after = 100});
  bench.session.Close(bench.now);
  // A driver writes its slots before it submits.
  Descriptor untaken = Bench::Make(Opcode::kEvict, 3, 20, {});
  bench.session.Void(untaken);
  untaken.slot = kSlots;
  bench.session.Void(untaken);
  untaken.grant_id = kGrant + 1;
  bench.session.Void(untaken);
  const auto table = bench.session.TakeTable(kGrant);
  CHECK(table->slots[0].state == proto::SlotState::kEmpty);
  CHECK_EQ(table->slots[0].generation, 9u);
  CHECK(table->slots[1].state == proto::SlotState::kEmpty);
  CHECK_EQ(table->slots[1].generation, 2u);
  CHECK(table->slots[2].state == proto::SlotState::kStored);
  CHECK(table->slots[3].state == proto::SlotState::kEmpty);
  CHECK_EQ(table->slots[3].generation, 20u);
  CHECK_EQ(table->stored, 1u);
}

TEST("latencies are counted by the power of two that they stay below") {
  const std::pair<uint64_t, size_t> cases[] = {
      {0, 0}, {127, 0}, {128, 1}, {255, 1}, {256, 2}, {uint64_t{1} << 29, 23}, {uint64_t{1} << 40, 23}};
  for (const auto& [nanos, bucket] : cases) {
    Bench bench;
    const uint64_t evict = bench.Evict(0, 1);
    bench.now += nanos;
    bench.Done(kReceive, evict);
    CHECK_EQ(bench.tally.evict_latency.at(bucket), 1u);
    CHECK_EQ(std::accumulate(bench.tally.evict_latency.begin(), bench.tally.evict_latency.end(), uint64_t{0}),
             1u);
  }
}

TEST("every evict and refill is counted exactly once") {
  Bench bench;
  bench.Store(0, 1, {.tenant = 5});
  bench.Failed(kReceive, bench.Evict(1, 1));
  bench.Evict(0, 1);
  bench.Done(kSend, bench.Refill(0, 1, {.tenant = 5}));
  bench.Failed(kSend, bench.Refill(0, 1, {.tenant = 5}));
  bench.Refill(0, 1, {.tenant = 6});
  bench.Refill(1, 1);
  bench.Refill(kSlots, 1);
  const ShardTally& tally = bench.tally;
  CHECK_EQ(tally.evicts, 1u);
  CHECK_EQ(tally.evict_faults, 2u);
  CHECK_EQ(tally.evict_bytes, uint64_t{kPieceBytes});
  CHECK_EQ(tally.refills, 1u);
  CHECK_EQ(tally.refill_misses, 2u);
  CHECK_EQ(tally.refill_faults, 2u);
  CHECK_EQ(tally.refill_bytes, uint64_t{kPieceBytes});
  CHECK_EQ(tally.stored_slots, 1u);
}

}  // namespace
}  // namespace kvss
