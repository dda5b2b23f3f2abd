// A bit that tips over in a descriptor, on its way through shared memory, or in the slot table of the engine:
// what comes of it is what was stored or a miss, never other bytes, and every operation ends.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>

#include "engine/shard_host.h"
#include "harness.h"
#include "link/shard_lane.h"
#include "store/shard_session.h"

namespace kvss {

struct ShardSessionPeek {
  static Slot& SlotOf(ShardSession& session, uint32_t grant_id, uint32_t slot) {
    return session.grants_.at(grant_id)->slots[slot];
  }
};

namespace {

using proto::Completion;
using proto::Descriptor;
using proto::Opcode;
using proto::Status;
using test::Must;

constexpr uint32_t kGrant = 1;
constexpr uint32_t kSlots = 8;
constexpr uint32_t kPieceBytes = 256;
constexpr uint64_t kTenant = 0x7e7e7e7e;
constexpr size_t kBits = 8 * sizeof(Descriptor);
constexpr int kPatienceMs = 20'000;

/// A driver and its shard: what it has stored, and under which generation.
struct World {
  std::unique_ptr<ShardHost> host = Must(ShardHost::Create(
      {.budget_bytes = 1 << 16, .huge_pages = HugePages::kNever, .engine = {.mode = HioMode::kBuffered}},
      [](uint64_t, SessionFault) {}));
  std::unique_ptr<ShardLane> lane;
  Mapping slots;
  std::array<uint64_t, kSlots> stored{};
  uint64_t generation = 0;

  World() {
    SessionEndpoints endpoints = Must(host->OpenSession(1, 8));
    lane = Must(ShardLane::Attach(std::move(endpoints.submit_segment), std::move(endpoints.status_segment),
                                  std::move(endpoints.submit_wake), std::move(endpoints.completion_wake), 8));
    const GrantedMemory granted = Must(host->AddGrant(1, kGrant, kSlots, kPieceBytes));
    slots = Must(Mapping::Map(granted.descriptor.get(), kSlots * kPieceBytes, Access::kReadWrite));
    for (uint32_t slot = 0; slot < kSlots; ++slot) Store(slot, kBits);
  }

  Descriptor Operation(Opcode opcode, uint32_t slot) const {
    Descriptor descriptor{};
    descriptor.opcode = static_cast<uint16_t>(opcode);
    descriptor.grant_id = kGrant;
    descriptor.slot = slot;
    descriptor.piece_bytes = kPieceBytes;
    descriptor.generation = opcode == Opcode::kEvict ? generation : stored[slot];
    descriptor.tenant_tag = kTenant;
    // Soon over for one that waits for what never comes.
    descriptor.timeout_us = 20'000;
    descriptor.user_data = 42;
    return descriptor;
  }

  /// Submits an operation with one bit tipped over; kBits for none. Every operation ends.
  Completion Run(Descriptor descriptor, size_t bit) {
    const auto queue = descriptor.opcode == static_cast<uint16_t>(Opcode::kEvict)
                           ? ShardLane::Queue::kEvict
                           : ShardLane::Queue::kCommand;
    std::array<uint8_t, sizeof(Descriptor)> bytes;
    std::memcpy(bytes.data(), &descriptor, sizeof(descriptor));
    if (bit < kBits) bytes[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    std::memcpy(&descriptor, bytes.data(), sizeof(descriptor));
    // A tipped deadline may be ten minutes, and a tipped gate may never open.
    if (descriptor.timeout_us > 20'000 || descriptor.timeout_us == 0) descriptor.timeout_us = 20'000;
    CHECK_EQ(lane->Submit(queue, &descriptor, 1), 1u);
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
    Completion completion;
    while (lane->Poll(&completion, 1) == 0) {
      CHECK(std::chrono::steady_clock::now() < give_up);
      std::this_thread::yield();
    }
    return completion;
  }

  void Store(uint32_t slot, size_t bit) {
    ++generation;
    std::byte* const piece = slots.data() + slot * kPieceBytes;
    for (uint32_t at = 0; at < kPieceBytes; at += sizeof(generation)) {
      std::memcpy(piece + at, &generation, sizeof(generation));
    }
    const Descriptor evict = Operation(Opcode::kEvict, slot);
    const Completion completion = Run(evict, bit);
    // What the driver believes: one that it has not asked for in this way has not finished.
    const bool mine = completion.user_data == evict.user_data;
    stored[slot] = mine && completion.status == static_cast<uint16_t>(Status::kOk) ? generation : 0;
  }

  /// Whether a refill of a slot says that it is good; its bytes have to be good then.
  bool Holds(uint32_t slot, size_t bit = kBits) {
    if (stored[slot] == 0) return false;
    const Descriptor refill = Operation(Opcode::kRefill, slot);
    const Completion completion = Run(refill, bit);
    const bool mine = completion.user_data == refill.user_data;
    if (!mine || completion.status != static_cast<uint16_t>(Status::kOk)) return false;
    for (uint32_t at = 0; at < kPieceBytes; at += sizeof(uint64_t)) {
      uint64_t word;
      std::memcpy(&word, slots.data() + slot * kPieceBytes + at, sizeof(word));
      CHECK_EQ(word, stored[slot]);
    }
    return true;
  }
};

TEST("a bit that tips over in an evict costs columns and never gives other bytes") {
  size_t lost = 0;
  for (size_t bit = 0; bit < kBits; ++bit) {
    World world;
    world.Store(3, bit);
    size_t held = 0;
    for (uint32_t slot = 0; slot < kSlots; ++slot) held += world.Holds(slot);
    lost += held < kSlots;
    // Two at most: the one that was stored, and the one that was named instead.
    CHECK(held + 2 >= kSlots);
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      world.Store(slot, kBits);
    }
  }
  std::cout << "# " << lost << " of " << kBits << " bits were noticed as a miss" << std::endl;
  CHECK(lost > kBits / 2);
}

TEST("a bit that tips over in a refill is a miss, or makes no difference") {
  size_t missed = 0;
  size_t deleted = 0;
  World world;
  for (size_t bit = 0; bit < kBits; ++bit) {
    missed += !world.Holds(3, bit);
    if (world.Holds(3)) continue;
    ++deleted;
    world.Store(3, kBits);
    CHECK(world.Holds(3));
  }
  std::cout << "# " << missed << " of " << kBits << " bits were noticed as a miss" << std::endl;
  CHECK(missed > kBits / 2);
  // One bit makes a delete of it, which is what it then does.
  CHECK_EQ(deleted, 1u);
}

/// A shard core over memory of a few numbers: a piece is one number, which is its generation. Transfers end
/// at once, time passes when the test says so.
class Table : private TransferPort, private CompletionSink {
 public:
  static constexpr uint32_t kPieces = 4;
  static constexpr uint64_t kTimeoutNs = 1'000'000;

  Table() { CHECK(session.AddGrant(kGrant, Must(GrantGeometry::For(kPieces, sizeof(uint64_t)))).ok()); }
  ~Table() { session.Close(now_); }

  /// Stores the next generation in a slot as a client does: bytes first. Answers whether the shard says that
  /// it did.
  bool Store(uint32_t slot) {
    memory[slot] = ++generation;
    stored[slot] = generation;
    return Run(Opcode::kEvict, slot) == Status::kOk;
  }
  Status Refill(uint32_t slot) { return Run(Opcode::kRefill, slot); }

  void Flip(uint32_t slot, size_t bit) {
    auto* bytes = reinterpret_cast<uint8_t*>(&ShardSessionPeek::SlotOf(session, kGrant, slot));
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
  }

  std::array<uint64_t, kPieces> memory{};
  std::array<uint64_t, kPieces> stored{};
  uint64_t generation = 0;

 private:
  Status Run(Opcode opcode, uint32_t slot) {
    Descriptor descriptor{};
    descriptor.opcode = static_cast<uint16_t>(opcode);
    descriptor.grant_id = kGrant;
    descriptor.slot = slot;
    descriptor.piece_bytes = sizeof(uint64_t);
    descriptor.generation = stored[slot];
    descriptor.tenant_tag = kTenant;
    descriptor.timeout_us = kTimeoutNs / 1000;
    last_.reset();
    opcode == Opcode::kEvict ? session.AcceptEvict(descriptor, now_)
                             : session.AcceptCommand(descriptor, now_);
    // One that waits, perhaps for ever, ends at its deadline.
    now_ += kTimeoutNs;
    session.ExpireDeadlines(now_);
    CHECK(last_.has_value());
    CHECK(session.idle());
    return static_cast<Status>(last_->status);
  }

  TransferState Begin(const Transfer&) override { return TransferState::kDone; }
  void Cancel(TransferKind, uint64_t) override {}
  void Complete(const Completion& completion) override { last_ = completion; }

  uint64_t now_ = 1;
  std::optional<Completion> last_;
  ShardTally tally_;
  ShardSession session{8, this, this, &tally_};
};

TEST("a bit that tips over in the slot table is a miss of that slot, or makes no difference") {
  size_t missed = 0;
  size_t lost = 0;
  for (size_t bit = 0; bit < 8 * sizeof(Slot); ++bit) {
    Table table;
    for (uint32_t slot = 0; slot < Table::kPieces; ++slot) CHECK(table.Store(slot));
    table.Flip(2, bit);
    const auto check = [&](uint32_t slot) {
      const Status status = table.Refill(slot);
      if (status == Status::kOk) CHECK_EQ(table.memory[slot], table.stored[slot]);
      return status == Status::kOk;
    };
    missed += !check(2);
    // Nobody else's slot has anything to do with it, before and after the slot is used again.
    for (const uint32_t other : {0, 1, 3}) CHECK(check(other));
    const bool again = table.Store(2);
    CHECK(check(2) == again);
    lost += !again;
    for (const uint32_t other : {0, 1, 3}) CHECK(check(other) && table.Store(other) && check(other));
  }
  std::cout << "# " << missed << " of " << 8 * sizeof(Slot) << " bits were noticed as a miss, " << lost
            << " cost the slot until its session ends" << std::endl;
  // All of the generation, of the tenant, and of the state.
  CHECK(missed >= 128);
  CHECK(lost < missed);
}

}  // namespace
}  // namespace kvss
