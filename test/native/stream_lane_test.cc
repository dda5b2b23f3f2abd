// The driver's end of a session over streams: with WIO lanes of its own, and with an order lane to a carrier.
// Most tests take its turns themselves; those that need its thread have it start one.

#include "link/stream_lane.h"

#include <random>

#include "base/crc32c.h"
#include "lanes.h"

namespace kvss {
namespace {

using proto::Completion;
using proto::Descriptor;
using proto::Opcode;
using proto::Status;
using proto::StreamHeader;
using proto::StreamType;
using proto::TransferAck;
using proto::TransferOrder;
using test::Arena;
using test::Bytes;
using test::BytesOf;
using test::CheckPiece;
using test::EntryFrame;
using test::FarEnd;
using test::Frame;
using test::GenerationOf;
using test::kPatienceMs;
using test::Move;
using test::Moves;
using test::Must;
using test::PieceFrame;
using test::PieceOf;

constexpr uint32_t kWindow = 8;
constexpr uint32_t kPieceBytes = 512;
/// Far more than the kernel takes of a lane with a small buffer.
constexpr uint32_t kLargeBytes = 256 * 1024;
constexpr int kSmallBuffer = 8 * 1024;

enum class Way { kWio, kCarrier };
constexpr Way kBothWays[] = {Way::kWio, Way::kCarrier};

struct Options {
  Way way = Way::kWio;
  uint32_t lanes = 2;
  uint32_t piece_bytes = kPieceBytes;
  int near_bytes = 0;
  int far_bytes = 0;
  bool thread = false;
};

TransferAck AckOf(Opcode opcode, uint64_t sequence, Status status = Status::kOk) {
  return {
      .opcode = static_cast<uint16_t>(opcode), .status = static_cast<uint16_t>(status), .sequence = sequence};
}

/// A driver's lane with the ends of the shard, and of the carrier where it has one.
struct World {
  explicit World(Options options = {}) : way(options.way), arena(2 * kWindow, options.piece_bytes) {
    StreamLane::Connections connections;
    hio = FarEnd::Of(&connections.hio);
    if (way == Way::kCarrier) {
      carrier = FarEnd::Of(&connections.order);
    } else {
      evict.resize(options.lanes);
      refill.resize(options.lanes);
      connections.evict.resize(options.lanes);
      connections.refill.resize(options.lanes);
      for (uint32_t lane = 0; lane < options.lanes; ++lane) {
        evict[lane] = FarEnd::Of(&connections.evict[lane], options.near_bytes);
        refill[lane] = FarEnd::Of(&connections.refill[lane], 0, options.far_bytes);
      }
    }
    const auto start = options.thread ? StreamLane::Start : StreamLane::Create;
    lane = Must(start(std::move(connections), kWindow, false));
  }

  /// Submits an operation; its bytes are at this place, and its user data says which one it is.
  void Submit(Opcode opcode, uint64_t sequence, uint32_t place = 0) {
    StreamOrder order;
    order.descriptor = {.opcode = static_cast<uint16_t>(opcode),
                        .piece_bytes = arena.piece_bytes(),
                        .generation = GenerationOf(sequence),
                        .user_data = UserDataOf(opcode, sequence)};
    if (way == Way::kWio) order.memory = arena.place(place);
    order.place = place;
    if (opcode == Opcode::kEvict) arena.Write(place, PieceOf(sequence, arena.piece_bytes()));
    CHECK_EQ(lane->Submit(&order, 1), 1u);
  }
  static uint64_t UserDataOf(Opcode opcode, uint64_t sequence) {
    return static_cast<uint64_t>(opcode) << 32 | sequence;
  }

  /// The shard answers, and has finished so many of this opcode's queue without a gap.
  void Complete(Opcode opcode, uint64_t sequence, Status status, uint64_t count) {
    Complete({{opcode, sequence, status}}, opcode == Opcode::kEvict ? count : 0,
             opcode == Opcode::kEvict ? 0 : count);
  }
  /// The shard answers.
  void Complete(const std::vector<Move>& ends, uint64_t evict_count = 0, uint64_t command_count = 0) {
    std::vector<Completion> completions;
    for (const auto& [opcode, sequence, status] : ends) {
      completions.push_back({.opcode = static_cast<uint16_t>(opcode),
                             .status = static_cast<uint16_t>(status),
                             .user_data = UserDataOf(opcode, sequence),
                             .sequence = sequence,
                             .generation = GenerationOf(sequence)});
    }
    hio.Send(EntryFrame(StreamType::kCompletions, completions, evict_count, command_count));
  }
  /// The bytes of a refill come, or the carrier says that bytes have gone or come.
  void Transfer(Opcode opcode, uint64_t sequence, uint32_t place, Status status = Status::kOk) {
    if (way == Way::kCarrier) {
      carrier.Send(EntryFrame(StreamType::kAcks, std::vector{AckOf(opcode, sequence, status)}));
    } else if (opcode == Opcode::kRefill) {
      const Bytes piece = PieceOf(sequence, arena.piece_bytes());
      const uint32_t checksum = FrameChecksum(piece) ^ (status == Status::kOk ? 0 : 1);
      refill[sequence % refill.size()].Send(PieceFrame(sequence, GenerationOf(sequence), piece, checksum));
      arena.Want(place, piece);
    } else {
      CheckPiece(evict[sequence % evict.size()].AwaitFrame(), sequence,
                 PieceOf(sequence, arena.piece_bytes()));
    }
  }

  /// Operations that have finished and not been polled.
  Moves Poll() const {
    Completion completions[2 * kWindow];
    const uint32_t count = lane->Poll(completions, 2 * kWindow);
    Moves moves;
    for (const Completion& each : std::span(completions).first(count)) {
      moves.push_back({static_cast<Opcode>(each.opcode), each.sequence, static_cast<Status>(each.status)});
      CHECK_EQ(each.user_data, UserDataOf(moves.back().opcode, each.sequence));
    }
    return moves;
  }
  /// Without a thread: does all that can be done now, and answers what has finished.
  Moves Settle() const {
    do {
      lane->Wait(0);
    } while (lane->Turn());
    return Poll();
  }
  /// Entries that have come to the shard or the carrier and not been taken.
  template <typename Entry>
  static std::vector<Entry> Come(FarEnd& end) {
    std::vector<Entry> all;
    for (end.Read(); auto frame = end.Next();) {
      for (const Entry& entry : frame->Entries<Entry>()) all.push_back(entry);
    }
    return all;
  }
  std::vector<TransferOrder> Ordered() { return Come<TransferOrder>(carrier); }

  const Way way;
  FarEnd hio;
  FarEnd carrier;
  std::vector<FarEnd> evict;
  std::vector<FarEnd> refill;
  Arena arena;
  std::unique_ptr<StreamLane> lane;
};

TEST("an operation has finished when its completion and its bytes have come, whichever first") {
  for (const Way way : kBothWays) {
    for (const Opcode opcode : {Opcode::kEvict, Opcode::kRefill}) {
      World world({.way = way});
      world.Submit(opcode, 1, 3);
      world.Submit(opcode, 2, 4);
      CHECK_EQ(world.Settle(), Moves{});
      world.Complete({{opcode, 1, Status::kOk}});
      if (way == Way::kWio && opcode == Opcode::kEvict) {
        // They have gone already.
        CHECK_EQ(world.Settle(), Moves({{opcode, 1, Status::kOk}}));
        world.Transfer(opcode, 1, 3);
      } else {
        CHECK_EQ(world.Settle(), Moves{});
        world.Transfer(opcode, 1, 3);
        CHECK_EQ(world.Settle(), Moves({{opcode, 1, Status::kOk}}));
      }
      world.Transfer(opcode, 2, 4);
      CHECK_EQ(world.Settle(), Moves{});
      world.Complete({{opcode, 2, Status::kOk}});
      CHECK_EQ(world.Settle(), Moves({{opcode, 2, Status::kOk}}));
      CHECK(!world.lane->broken());
      world.arena.Check();
    }
  }
}

TEST("a piece can come before its refill has been sent, and waits for it") {
  World world;
  world.refill[1].Send(PieceFrame(1, GenerationOf(1), PieceOf(1, kPieceBytes)));
  CHECK_EQ(world.Settle(), Moves{});
  world.Submit(Opcode::kRefill, 1, 2);
  world.Complete({{Opcode::kRefill, 1, Status::kOk}});
  CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, 1, Status::kOk}}));
  world.arena.Want(2, PieceOf(1, kPieceBytes));
  world.arena.Check();
}

TEST("a carrier is told each evict and refill with its sequence, and no delete") {
  World world({.way = Way::kCarrier});
  world.Submit(Opcode::kEvict, 1, 7);
  world.Submit(Opcode::kRefill, 1, 3);
  world.Submit(Opcode::kDelete, 2);
  world.Submit(Opcode::kRefill, 3, 4);
  CHECK_EQ(world.Settle(), Moves{});
  const auto orders = world.Ordered();
  CHECK_EQ(orders.size(), 3u);
  const struct {
    Opcode opcode;
    uint64_t sequence;
    uint32_t place;
  } expected[] = {{Opcode::kEvict, 1, 7}, {Opcode::kRefill, 1, 3}, {Opcode::kRefill, 3, 4}};
  for (size_t index = 0; index < 3; ++index) {
    CHECK_EQ(orders[index].opcode, static_cast<uint16_t>(expected[index].opcode));
    CHECK_EQ(orders[index].flags, 0u);
    CHECK_EQ(orders[index].reserved, 0u);
    CHECK_EQ(orders[index].sequence, expected[index].sequence);
    CHECK_EQ(orders[index].generation, GenerationOf(expected[index].sequence));
    CHECK_EQ(orders[index].place, expected[index].place);
    CHECK_EQ(orders[index].piece_bytes, kPieceBytes);
  }
  CHECK_EQ(World::Come<Descriptor>(world.hio).size(), 4u);
  // A delete moves nothing.
  world.Complete({{Opcode::kDelete, 2, Status::kOk}});
  CHECK_EQ(world.Settle(), Moves({{Opcode::kDelete, 2, Status::kOk}}));
  world.arena.Check();
}

TEST("a refill that the shard refuses lets go of its memory, and its place in the window is used again") {
  World world;
  for (uint64_t sequence = 1; sequence <= 3 * kWindow; ++sequence) {
    world.Submit(Opcode::kRefill, sequence, 1);
    world.Complete({{Opcode::kRefill, sequence, Status::kMissEmpty}}, 0, sequence);
    CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, sequence, Status::kMissEmpty}}));
  }
  // A piece of it can only be a lie.
  world.refill[0].Send(PieceFrame(20, GenerationOf(20), PieceOf(20, kPieceBytes)));
  CHECK_EQ(world.Settle(), Moves{});
  CHECK(world.lane->broken());
  world.arena.Check();
}

TEST("an operation that the shard refuses is withdrawn from the carrier, and ends when that lets go") {
  for (const Opcode opcode : {Opcode::kEvict, Opcode::kRefill}) {
    for (const Status let_go : {Status::kCancelled, Status::kOk, Status::kTransferFailed}) {
      World world({.way = Way::kCarrier});
      world.Submit(opcode, 1, 1);
      CHECK_EQ(world.Settle(), Moves{});
      CHECK_EQ(world.Ordered().size(), 1u);
      world.Complete(opcode, 1, Status::kDeadline, 1);
      CHECK_EQ(world.Settle(), Moves{});
      const auto withdrawn = world.Ordered();
      CHECK_EQ(withdrawn.size(), 1u);
      CHECK_EQ(withdrawn[0].opcode, static_cast<uint16_t>(opcode));
      CHECK_EQ(withdrawn[0].flags, proto::order_flag::kWithdraw);
      CHECK_EQ(withdrawn[0].sequence, 1u);
      // The bytes may have been on their way already: that is no reason to believe in them.
      world.Transfer(opcode, 1, 1, let_go);
      CHECK_EQ(world.Settle(), Moves({{opcode, 1, Status::kDeadline}}));
      CHECK(world.Ordered().empty());
      CHECK(!world.lane->broken());
      // Nothing is withdrawn that has been acknowledged.
      world.Submit(opcode, 2, 1);
      CHECK_EQ(world.Settle(), Moves{});
      world.Transfer(opcode, 2, 1);
      CHECK_EQ(world.Settle(), Moves{});
      world.Complete(opcode, 2, Status::kDeadline, 2);
      CHECK_EQ(world.Settle(), Moves({{opcode, 2, Status::kDeadline}}));
      CHECK_EQ(world.Ordered().size(), 1u);
    }
  }
}

TEST("bytes that did not come as they should make a failure of what the shard calls done") {
  World wio;
  wio.Submit(Opcode::kRefill, 1, 1);
  wio.Transfer(Opcode::kRefill, 1, 1, Status::kTransferFailed);
  wio.Complete({{Opcode::kRefill, 1, Status::kOk}});
  CHECK_EQ(wio.Settle(), Moves({{Opcode::kRefill, 1, Status::kTransferFailed}}));
  // A carrier may have other reasons, of a later version too.
  for (const Status status : {Status::kTransferFailed, Status::kCancelled, Status::kInternal}) {
    for (const bool bytes_first : {false, true}) {
      World world({.way = Way::kCarrier});
      world.Submit(Opcode::kRefill, 1, 1);
      CHECK_EQ(world.Settle(), Moves{});
      if (bytes_first) world.Transfer(Opcode::kRefill, 1, 1, status);
      CHECK_EQ(world.Settle(), Moves{});
      world.Complete({{Opcode::kRefill, 1, Status::kOk}});
      if (!bytes_first) world.Transfer(Opcode::kRefill, 1, 1, status);
      CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, 1, Status::kTransferFailed}}));
    }
  }
}

TEST("nothing more is sent while a window of operations waits for its completions or its bytes") {
  for (const Opcode opcode : {Opcode::kEvict, Opcode::kRefill}) {
    World world({.way = Way::kCarrier});
    for (uint64_t sequence = 1; sequence <= kWindow + 2; ++sequence) world.Submit(opcode, sequence, 1);
    CHECK_EQ(world.Settle(), Moves{});
    CHECK_EQ(world.Ordered().size(), size_t{kWindow});
    CHECK_EQ(World::Come<Descriptor>(world.hio).size(), size_t{kWindow});
    // The shard has done with all of them, the carrier with none.
    std::vector<Move> ends;
    for (uint64_t sequence = 1; sequence <= kWindow; ++sequence)
      ends.push_back({opcode, sequence, Status::kOk});
    const bool evicts = opcode == Opcode::kEvict;
    world.Complete(ends, evicts ? kWindow : 0, evicts ? 0 : kWindow);
    CHECK_EQ(world.Settle(), Moves{});
    CHECK(world.Ordered().empty());
    // The first one makes room, not the second.
    world.Transfer(opcode, 2, 1);
    CHECK_EQ(world.Settle(), Moves({{opcode, 2, Status::kOk}}));
    CHECK(world.Ordered().empty());
    world.Transfer(opcode, 1, 1);
    CHECK_EQ(world.Settle(), Moves({{opcode, 1, Status::kOk}}));
    CHECK_EQ(world.Ordered().size(), 2u);
    CHECK_EQ(World::Come<Descriptor>(world.hio).size(), 2u);
    CHECK(!world.lane->broken());
  }
}

/// What a shard or a carrier may not do. Evict 1 and refill 1 are done, evict 2, refill 2 and delete 3 are on
/// their way; they are at place 2.
struct Attack {
  const char* name;
  void (*strike)(World&);
};

void Acknowledge(World& world, Opcode opcode, uint64_t sequence) {
  world.carrier.Send(EntryFrame(StreamType::kAcks, std::vector{AckOf(opcode, sequence)}));
}

/// A completion that is not the one of refill 2.
void Completed(World& world, void (*change)(Completion&)) {
  Completion completion{.opcode = static_cast<uint16_t>(Opcode::kRefill),
                        .status = static_cast<uint16_t>(Status::kOk),
                        .user_data = World::UserDataOf(Opcode::kRefill, 2),
                        .sequence = 2,
                        .generation = GenerationOf(2)};
  change(completion);
  world.hio.Send(EntryFrame(StreamType::kCompletions, std::vector{completion}));
}

const Attack kHostileShard[] = {
    {"a completion of what was never sent",
     [](World& world) {
       world.Complete({{Opcode::kEvict, 3, Status::kOk}});
     }},
    {"a completion of sequence 0",
     [](World& world) {
       world.Complete({{Opcode::kRefill, 0, Status::kOk}});
     }},
    {"a completion that comes twice",
     [](World& world) {
       world.Complete({{Opcode::kEvict, 2, Status::kOk}, {Opcode::kEvict, 2, Status::kOk}});
     }},
    {"a completion of what has finished",
     [](World& world) {
       world.Complete({{Opcode::kRefill, 1, Status::kOk}});
     }},
    {"a completion of a window ago",
     [](World& world) {
       Completed(world, [](Completion& completion) { completion.sequence = UINT64_MAX - kWindow + 3; });
     }},
    {"a completion with the user data of another",
     [](World& world) { Completed(world, [](Completion& completion) { completion.user_data += 1; }); }},
    {"a completion of another opcode",
     [](World& world) {
       Completed(world,
                 [](Completion& completion) { completion.opcode = static_cast<uint16_t>(Opcode::kDelete); });
     }},
    {"a completion of an opcode that does not exist",
     [](World& world) { Completed(world, [](Completion& completion) { completion.opcode = 99; }); }},
    {"a completion that counts more evicts than there were",
     [](World& world) {
       world.Complete({{Opcode::kRefill, 2, Status::kMissEmpty}}, 3, 2);
     }},
    {"a completion that counts more commands than there were",
     [](World& world) {
       world.Complete({{Opcode::kRefill, 2, Status::kMissEmpty}}, 1, 4);
     }},
    {"a frame of descriptors",
     [](World& world) { world.hio.Send(BytesOf(MakeHeader(StreamType::kDescriptors, 64, 0, 0))); }},
    {"a completion and a half",
     [](World& world) { world.hio.Send(BytesOf(MakeHeader(StreamType::kCompletions, 48, 0, 0))); }},
    {"a frame of nothing",
     [](World& world) { world.hio.Send(BytesOf(MakeHeader(StreamType::kCompletions, 0, 0, 0))); }},
    {"the end", [](World& world) { world.hio.Close(); }},
    {"the end in a completion",
     [](World& world) {
       world.hio.Send(BytesOf(MakeHeader(StreamType::kCompletions, 32, 0, 0), PieceOf(1, 31)));
       world.hio.Close();
     }},
};

const Attack kHostileLanes[] = {
    {"a piece that nobody asked for", [](World& world) { world.Transfer(Opcode::kRefill, 1, 1); }},
    {"the end of a refill lane", [](World& world) { world.refill[0].Close(); }},
    {"the end of an evict lane", [](World& world) { world.evict[0].Close(); }},
    {"bytes on an evict lane", [](World& world) { world.evict[1].Send(PieceOf(1, 1)); }},
};

const Attack kHostileCarrier[] = {
    {"an acknowledgement of what was never ordered",
     [](World& world) { Acknowledge(world, Opcode::kEvict, 3); }},
    {"an acknowledgement of sequence 0", [](World& world) { Acknowledge(world, Opcode::kEvict, 0); }},
    {"an acknowledgement of a delete", [](World& world) { Acknowledge(world, Opcode::kDelete, 3); }},
    {"an acknowledgement of a delete as a refill",
     [](World& world) { Acknowledge(world, Opcode::kRefill, 3); }},
    {"an acknowledgement of a refill as something else",
     [](World& world) { Acknowledge(world, static_cast<Opcode>(99), 2); }},
    {"an acknowledgement that comes twice",
     [](World& world) {
       Acknowledge(world, Opcode::kRefill, 2);
       Acknowledge(world, Opcode::kRefill, 2);
     }},
    {"an acknowledgement of what has finished", [](World& world) { Acknowledge(world, Opcode::kEvict, 1); }},
    {"a frame of orders",
     [](World& world) { world.carrier.Send(BytesOf(MakeHeader(StreamType::kOrders, 16, 0, 0))); }},
    {"an acknowledgement and a half",
     [](World& world) { world.carrier.Send(BytesOf(MakeHeader(StreamType::kAcks, 24, 0, 0))); }},
    {"a frame of nothing",
     [](World& world) { world.carrier.Send(BytesOf(MakeHeader(StreamType::kAcks, 0, 0, 0))); }},
    {"the end", [](World& world) { world.carrier.Close(); }},
};

void Survive(Way way, std::span<const Attack> attacks) {
  for (const Attack& attack : attacks) {
    World world({.way = way});
    for (uint64_t sequence = 1; sequence <= 2; ++sequence) {
      world.Submit(Opcode::kEvict, sequence, 2);
      world.Submit(Opcode::kRefill, sequence, sequence == 1 ? 1 : 3);
    }
    world.Submit(Opcode::kDelete, 3);
    CHECK_EQ(world.Settle(), Moves{});
    world.Transfer(Opcode::kRefill, 1, 1);
    if (way == Way::kCarrier) world.Transfer(Opcode::kEvict, 1, 2);
    world.Complete({{Opcode::kEvict, 1, Status::kOk}, {Opcode::kRefill, 1, Status::kOk}});
    CHECK_EQ(world.Settle().size(), 2u);
    attack.strike(world);
    Moves finished = world.Settle();
    if (!world.lane->broken()) FAIL(std::string(attack.name) + " does not break the lane");
    // At most the one that came twice, the first time.
    CHECK(finished.size() <= 1);
    world.arena.Check();
    // Nothing more happens, whatever comes.
    const StreamOrder order;
    CHECK_EQ(world.lane->Submit(&order, 1), 0u);
    if (world.hio.fd() >= 0)
      (void)world.hio.SendSome(BytesOf(MakeHeader(StreamType::kCompletions, 32, 0, 0)));
    for (FarEnd& end : world.refill) {
      if (end.fd() >= 0) (void)end.SendSome(PieceFrame(2, GenerationOf(2), PieceOf(2, kPieceBytes)));
    }
    CHECK_EQ(world.Settle(), Moves{});
    CHECK(!world.lane->Arm());
    world.arena.Check();
  }
}

TEST("a shard that answers what it was not asked breaks the lane") {
  for (const Way way : kBothWays) Survive(way, kHostileShard);
  Survive(Way::kWio, kHostileLanes);
}

TEST("a carrier that acknowledges what it was not told breaks the lane") {
  Survive(Way::kCarrier, kHostileCarrier);
}

TEST("an answer that is a window late is not taken for one of now") {
  for (const bool from_carrier : {false, true}) {
    World world({.way = Way::kCarrier});
    for (uint64_t sequence = 1; sequence <= 2 + kWindow; ++sequence) {
      world.Submit(Opcode::kRefill, sequence, 1);
      CHECK_EQ(world.Settle(), Moves{});
      if (sequence == 2 + kWindow) break;
      world.Transfer(Opcode::kRefill, sequence, 1);
      world.Complete(Opcode::kRefill, sequence, Status::kOk, sequence);
      CHECK_EQ(world.Settle().size(), 1u);
    }
    if (from_carrier) {
      Acknowledge(world, Opcode::kRefill, 2);
    } else {
      const Completion late{.opcode = static_cast<uint16_t>(Opcode::kRefill),
                            .user_data = World::UserDataOf(Opcode::kRefill, 2 + kWindow),
                            .sequence = 2};
      world.hio.Send(EntryFrame(StreamType::kCompletions, std::vector{late}));
    }
    CHECK_EQ(world.Settle(), Moves{});
    CHECK(world.lane->broken());
  }
}

TEST("a lane that is closed in the middle of everything touches its memory no more") {
  for (int round = 0; round < 5; ++round) {
    World world(
        {.piece_bytes = kLargeBytes, .near_bytes = kSmallBuffer, .far_bytes = kSmallBuffer, .thread = true});
    world.Submit(Opcode::kEvict, 1, 1);
    world.Submit(Opcode::kRefill, 1, 2);
    world.Submit(Opcode::kRefill, 2, 3);
    const Bytes frame = PieceFrame(2, GenerationOf(2), PieceOf(2, kLargeBytes));
    // The kernel holds a small part of it: the lane has taken the rest.
    world.refill[0].Send(std::span(frame).first(frame.size() / 2));
    world.lane.reset();
    world.arena.Ignore(3);
    (void)world.refill[0].SendSome(std::span(frame).subspan(frame.size() / 2));
    CHECK(world.refill[0].gone());
    world.arena.Check();
  }
}

TEST("a caller that sleeps hears of what finishes, and of the end") {
  for (const Way way : kBothWays) {
    World world({.way = way, .thread = true});
    const auto sleep = [&] {
      pollfd wait{world.lane->completion_wake_fd(), POLLIN, 0};
      CHECK_EQ(::poll(&wait, 1, kPatienceMs), 1);
      world.lane->Disarm();
    };
    for (uint64_t sequence = 1; sequence <= 200; ++sequence) {
      world.Submit(Opcode::kRefill, sequence, 1);
      world.Transfer(Opcode::kRefill, sequence, 1);
      world.Complete({{Opcode::kRefill, sequence, Status::kOk}}, 0, sequence);
      Moves moves;
      while (moves.empty()) {
        if (world.lane->Arm()) sleep();
        moves = world.Poll();
      }
      CHECK_EQ(moves, Moves({{Opcode::kRefill, sequence, Status::kOk}}));
      if (way == Way::kCarrier) (void)world.Ordered();
      (void)World::Come<Descriptor>(world.hio);
    }
    const bool armed = world.lane->Arm();
    CHECK(armed);
    (way == Way::kCarrier ? world.carrier : world.refill[0]).Close();
    sleep();
    CHECK(world.lane->broken());
    CHECK(!world.lane->Arm());
  }
}

/// Operations of one queue, as the shard and the carrier see them.
struct Queue {
  Opcode opcode;
  uint64_t submitted = 0;
  std::vector<uint32_t> places = {0};
  std::vector<Status> outcomes = {Status::kOk};
  std::vector<bool> completed = {true};
  std::vector<bool> moved = {true};
  std::vector<bool> finished = {true};

  /// Finished without a gap, as the shard counts.
  uint64_t Count() const {
    return static_cast<uint64_t>(std::ranges::find(completed, false) - completed.begin()) - 1;
  }
};

TEST("whatever comes in whatever order, each operation finishes once, and what finished well has its bytes") {
  for (const Way way : kBothWays) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      std::mt19937_64 random(seed);
      const auto one_in = [&](uint64_t count) { return random() % count == 0; };
      World world({.way = way, .lanes = 1 + static_cast<uint32_t>(random() % 3), .thread = true});
      constexpr uint64_t kOperations = 300;
      Queue evicts{.opcode = Opcode::kEvict};
      Queue refills{.opcode = Opcode::kRefill};
      uint64_t finished = 0;
      // What the shard and the carrier have been told.
      uint64_t evicts_told = 0;
      uint64_t refills_told = 0;
      std::vector<Move> withdrawn;
      std::vector<Move> ordered;
      while (finished < 2 * kOperations) {
        for (Queue* queue : {&evicts, &refills}) {
          const uint64_t next = queue->submitted + 1;
          // Its place must be free.
          if (next > kOperations || (next > kWindow && !queue->finished[next - kWindow]) || one_in(2))
            continue;
          queue->submitted = next;
          queue->places.push_back(static_cast<uint32_t>(next % kWindow + (queue == &evicts ? 0 : kWindow)));
          queue->outcomes.push_back(one_in(3) ? Status::kDeadline : Status::kOk);
          for (auto* list : {&queue->completed, &queue->moved, &queue->finished}) list->push_back(false);
          world.Submit(queue->opcode, next, queue->places.back());
        }
        for (const Descriptor& descriptor : World::Come<Descriptor>(world.hio)) {
          ++(descriptor.opcode == static_cast<uint16_t>(Opcode::kEvict) ? evicts_told : refills_told);
        }
        if (way == Way::kCarrier) {
          for (const TransferOrder& order : world.Ordered()) {
            auto& list = order.flags == 0 ? ordered : withdrawn;
            list.push_back({static_cast<Opcode>(order.opcode), order.sequence, Status::kOk});
          }
        }
        for (Queue* queue : {&evicts, &refills}) {
          const uint64_t told = queue == &evicts ? evicts_told : refills_told;
          for (uint64_t sequence = 1; sequence <= told; ++sequence) {
            const Status outcome = queue->outcomes[sequence];
            if (!queue->completed[sequence] && one_in(3)) {
              queue->completed[sequence] = true;
              world.Complete({{queue->opcode, sequence, outcome}}, evicts.Count(), refills.Count());
            }
            if (way == Way::kWio && queue == &refills && outcome == Status::kOk && !queue->moved[sequence] &&
                one_in(3)) {
              queue->moved[sequence] = true;
              const Bytes piece = PieceOf(sequence, kPieceBytes);
              world.refill[sequence % world.refill.size()].Send(
                  PieceFrame(sequence, GenerationOf(sequence), piece));
            }
          }
        }
        // A carrier moves what it was told to, unless the shard has refused it.
        for (auto* list : {&ordered, &withdrawn}) {
          std::erase_if(*list, [&](const Move& order) {
            Queue& queue = order.opcode == Opcode::kEvict ? evicts : refills;
            if (queue.moved[order.sequence]) return true;
            const bool withdrawal = list == &withdrawn;
            const bool comes =
                queue.outcomes[order.sequence] == Status::kOk || order.opcode == Opcode::kEvict;
            if ((!withdrawal && !comes) || !one_in(3)) return false;
            queue.moved[order.sequence] = true;
            world.Transfer(order.opcode, order.sequence, 0, withdrawal ? Status::kCancelled : Status::kOk);
            return true;
          });
        }
        for (FarEnd& end : world.evict) {
          for (end.Read(); auto frame = end.Next();) {
            const uint64_t sequence = frame->header.request_id;
            CheckPiece(*frame, sequence, PieceOf(sequence, kPieceBytes));
          }
        }
        for (const auto& [opcode, sequence, status] : world.Poll()) {
          Queue& queue = opcode == Opcode::kEvict ? evicts : refills;
          CHECK(queue.completed[sequence]);
          CHECK(!queue.finished[sequence]);
          CHECK_EQ(status, queue.outcomes[sequence]);
          CHECK(way == Way::kWio || queue.moved[sequence]);
          queue.finished[sequence] = true;
          ++finished;
          if (way == Way::kCarrier || opcode == Opcode::kEvict || status != Status::kOk) continue;
          CHECK(queue.moved[sequence]);
          const std::span at(world.arena.place(queue.places[sequence]), kPieceBytes);
          CHECK(std::ranges::equal(PieceOf(sequence, kPieceBytes), at));
          world.arena.Ignore(queue.places[sequence]);
        }
        CHECK(!world.lane->broken());
      }
      world.lane.reset();
      world.arena.Check();
    }
  }
}

}  // namespace
}  // namespace kvss
