// The carrier between a driver and a shard that both do as they like. Most tests take its turns themselves;
// those that need its thread have it start one.

#include "link/carrier_lane.h"

#include <random>
#include <set>

#include "base/crc32c.h"
#include "lanes.h"

namespace kvss {
namespace {

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
constexpr uint32_t kPlaces = 2 * kWindow;
constexpr uint32_t kPieceBytes = 512;
/// Far more than the kernel takes of a lane with a small buffer.
constexpr uint32_t kLargeBytes = 256 * 1024;
constexpr int kSmallBuffer = 8 * 1024;

TransferOrder Withdrawal(Opcode opcode, uint64_t sequence) {
  return {
      .opcode = static_cast<uint16_t>(opcode), .flags = proto::order_flag::kWithdraw, .sequence = sequence};
}

struct Options {
  uint32_t lanes = 2;
  uint32_t piece_bytes = kPieceBytes;
  int near_bytes = 0;
  int far_bytes = 0;
  bool checksums = false;
  bool thread = false;
};

/// A carrier with its memory, and the far ends of all its lanes.
struct World {
  explicit World(Options options = {})
      : evict(options.lanes), refill(options.lanes), arena(kPlaces, options.piece_bytes) {
    CarrierLane::Connections connections;
    connections.evict.resize(options.lanes);
    connections.refill.resize(options.lanes);
    driver = FarEnd::Of(&connections.order);
    for (uint32_t lane = 0; lane < options.lanes; ++lane) {
      evict[lane] = FarEnd::Of(&connections.evict[lane], options.near_bytes);
      refill[lane] = FarEnd::Of(&connections.refill[lane], 0, options.far_bytes);
    }
    const auto start = options.thread ? CarrierLane::Start : CarrierLane::Create;
    const CarrierLane::Memory memory{arena.data(), kPlaces, arena.stride(), options.piece_bytes};
    carrier = Must(start(std::move(connections), memory, kWindow, options.checksums));
  }

  TransferOrder OrderFor(Opcode opcode, uint64_t sequence, uint32_t place) const {
    return {.opcode = static_cast<uint16_t>(opcode),
            .piece_bytes = arena.piece_bytes(),
            .sequence = sequence,
            .generation = GenerationOf(sequence),
            .place = place};
  }
  void Order(const std::vector<TransferOrder>& orders) {
    driver.Send(EntryFrame(StreamType::kOrders, orders));
  }
  /// Has the piece of a place sent, made for this sequence.
  Bytes OrderEvict(uint64_t sequence, uint32_t place) {
    const Bytes piece = PieceOf(sequence, arena.piece_bytes());
    arena.Write(place, piece);
    Order({OrderFor(Opcode::kEvict, sequence, place)});
    return piece;
  }
  void OrderRefill(uint64_t sequence, uint32_t place) { Order({OrderFor(Opcode::kRefill, sequence, place)}); }
  void Withdraw(Opcode opcode, uint64_t sequence) { Order({Withdrawal(opcode, sequence)}); }
  /// The shard sends the piece of a refill over some lane.
  Bytes Serve(uint64_t sequence, uint32_t lane) {
    const Bytes piece = PieceOf(sequence, arena.piece_bytes());
    refill[lane].Send(PieceFrame(sequence, GenerationOf(sequence), piece));
    return piece;
  }

  /// The acknowledgements that have been read.
  Moves TakeAcks() {
    Moves acks;
    while (auto frame = driver.Next()) {
      CHECK_EQ(frame->header.type, static_cast<uint16_t>(StreamType::kAcks));
      for (const TransferAck& ack : frame->Entries<TransferAck>()) {
        CHECK_EQ(ack.reserved, 0u);
        acks.push_back({static_cast<Opcode>(ack.opcode), ack.sequence, static_cast<Status>(ack.status)});
      }
    }
    return acks;
  }
  /// Without a thread: does all that can be done now, and answers what was acknowledged.
  Moves Settle() {
    do {
      carrier->Wait(0);
    } while (carrier->Turn());
    driver.Read();
    return TakeAcks();
  }
  /// With a thread: waits until so many more acknowledgements have come.
  Moves Await(size_t count) {
    Moves acks = TakeAcks();
    while (acks.size() < count) {
      CHECK(driver.AwaitMore());
      for (const Move& ack : TakeAcks()) acks.push_back(ack);
    }
    CHECK_EQ(acks.size(), count);
    return acks;
  }
  bool has_ended() const {
    pollfd look{carrier->end_fd(), POLLIN, 0};
    return ::poll(&look, 1, 0) == 1;
  }

  FarEnd driver;
  std::vector<FarEnd> evict;
  std::vector<FarEnd> refill;
  Arena arena;
  std::unique_ptr<CarrierLane> carrier;
};

TEST("a carrier sends and receives what it is told to, byte for byte, and acknowledges each once") {
  World world({.lanes = 3});
  std::vector<Bytes> evicted;
  std::vector<TransferOrder> orders;
  for (uint64_t sequence = 1; sequence <= kWindow; ++sequence) {
    const auto place = static_cast<uint32_t>(sequence - 1);
    evicted.push_back(PieceOf(sequence, kPieceBytes));
    world.arena.Write(place, evicted.back());
    orders.push_back(world.OrderFor(Opcode::kEvict, sequence, place));
    // Deletes have taken the other numbers.
    if (sequence % 2 == 0) orders.push_back(world.OrderFor(Opcode::kRefill, sequence, kWindow + place));
    if (sequence % 4 == 0) world.Order(std::exchange(orders, {}));
  }
  CHECK_EQ(world.Settle().size(), size_t{kWindow});
  for (uint64_t sequence = 1; sequence <= kWindow; ++sequence) {
    CheckPiece(world.evict[sequence % 3].AwaitFrame(), sequence, evicted[sequence - 1]);
  }
  for (uint64_t sequence = kWindow; sequence > 0; sequence -= 2) {
    world.arena.Want(static_cast<uint32_t>(kWindow + sequence - 1), world.Serve(sequence, sequence % 3));
    CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, sequence, Status::kOk}}));
  }
  for (FarEnd& lane : world.evict) CHECK(lane.Silent());
  CHECK_EQ(world.carrier->bytes_sent(), uint64_t{kWindow} * kPieceBytes);
  CHECK_EQ(world.carrier->bytes_received(), uint64_t{kWindow} / 2 * kPieceBytes);
  world.arena.Check();
}

TEST("a piece that overtakes its order waits for it, and lands where the order says") {
  World world;
  const Bytes third = world.Serve(3, 0);
  const Bytes first = world.Serve(1, 1);
  CHECK_EQ(world.Settle(), Moves{});
  world.arena.Check();
  world.OrderRefill(1, 15);
  CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, 1, Status::kOk}}));
  world.arena.Want(15, first);
  world.OrderRefill(3, 0);
  CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, 3, Status::kOk}}));
  world.arena.Want(0, third);
  world.arena.Check();
}

TEST("an acknowledgement says where bytes are not what their checksum says") {
  World world({.checksums = true});
  const Bytes sent = world.OrderEvict(1, 0);
  CHECK_EQ(world.Settle(), Moves({{Opcode::kEvict, 1, Status::kOk}}));
  CHECK_EQ(world.evict[1].AwaitFrame().header.checksum, FrameChecksum(sent));
  world.OrderRefill(1, 1);
  world.OrderRefill(2, 2);
  const Bytes piece = PieceOf(9, kPieceBytes);
  world.refill[0].Send(PieceFrame(1, GenerationOf(1), piece, FrameChecksum(piece) + 1));
  CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, 1, Status::kTransferFailed}}));
  world.refill[0].Send(PieceFrame(2, GenerationOf(2), piece, FrameChecksum(piece)));
  CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, 2, Status::kOk}}));
  CHECK(!world.carrier->broken());
}

TEST("a withdrawn order is acknowledged once: at once, or when the half that has begun has gone whole") {
  World world({.lanes = 1, .piece_bytes = kLargeBytes, .near_bytes = kSmallBuffer});
  const Bytes first = world.OrderEvict(1, 1);
  world.OrderEvict(2, 2);
  world.OrderRefill(1, 3);
  world.OrderRefill(2, 4);
  const Bytes piece = PieceOf(2, kLargeBytes);
  const Bytes frame = PieceFrame(2, GenerationOf(2), piece);
  size_t sent = world.refill[0].SendSome(frame);
  CHECK(sent > 0 && sent < frame.size());
  CHECK_EQ(world.Settle(), Moves{});

  world.Order({Withdrawal(Opcode::kEvict, 1), Withdrawal(Opcode::kEvict, 2), Withdrawal(Opcode::kRefill, 1),
               Withdrawal(Opcode::kRefill, 2)});
  CHECK_EQ(world.Settle(),
           Moves({{Opcode::kEvict, 2, Status::kCancelled}, {Opcode::kRefill, 1, Status::kCancelled}}));

  Moves acks;
  while (acks.size() < 2) {
    world.evict[0].Read();
    if (sent < frame.size()) sent += world.refill[0].SendSome(std::span(frame).subspan(sent));
    for (const Move& ack : world.Settle()) acks.push_back(ack);
  }
  std::ranges::sort(acks, {}, &Move::sequence);
  CHECK_EQ(acks, Moves({{Opcode::kEvict, 1, Status::kOk}, {Opcode::kRefill, 2, Status::kOk}}));
  CheckPiece(world.evict[0].AwaitFrame(), 1, first);
  CHECK(world.evict[0].Silent());
  world.arena.Want(4, piece);
  world.arena.Check();

  // All four have had their word.
  world.Order({Withdrawal(Opcode::kEvict, 1), Withdrawal(Opcode::kEvict, 2), Withdrawal(Opcode::kRefill, 1),
               Withdrawal(Opcode::kRefill, 2)});
  CHECK_EQ(world.Settle(), Moves{});
  CHECK(!world.carrier->broken());
}

TEST("a place in the window is free again when its order has been acknowledged, however it ended") {
  World world;
  for (uint64_t sequence = 1; sequence <= 5 * kWindow; sequence += 2) {
    world.OrderRefill(sequence, 1);
    world.OrderRefill(sequence + 1, 2);
    world.Withdraw(Opcode::kRefill, sequence);
    world.arena.Want(2, world.Serve(sequence + 1, 0));
    CHECK_EQ(world.Settle(), Moves({{Opcode::kRefill, sequence, Status::kCancelled},
                                    {Opcode::kRefill, sequence + 1, Status::kOk}}));
    world.arena.Check();
  }
}

/// What somebody does that may not be. Evicts and refills 1 to 4 have been done, and refill 5 has been
/// ordered to place 5.
struct Attack {
  const char* name;
  void (*strike)(World&);
};

void Changed(World& world, void (*change)(TransferOrder&), Opcode opcode = Opcode::kRefill,
             uint64_t sequence = 6) {
  TransferOrder order = world.OrderFor(opcode, sequence, 6);
  change(order);
  world.Order({order});
}

/// A frame on the order lane that is not what it says.
void Framed(World& world, void (*change)(StreamHeader&)) {
  const TransferOrder order = world.OrderFor(Opcode::kEvict, 5, 6);
  StreamHeader header = MakeHeader(StreamType::kOrders, sizeof(order), 0, 0);
  change(header);
  world.driver.Send(BytesOf(header, std::as_bytes(std::span(&order, 1))));
}

const Attack kHostileDriver[] = {
    {"a place behind the last one",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.place = kPlaces; }); }},
    {"a place far beyond the memory",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.place = UINT32_MAX; }); }},
    {"an evict from a place behind the last one",
     [](World& world) {
       Changed(
           world, [](TransferOrder& order) { order.place = kPlaces; }, Opcode::kEvict);
     }},
    {"a piece that is too long",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.piece_bytes += 1; }); }},
    {"an evict of more than the piece",
     [](World& world) {
       Changed(
           world, [](TransferOrder& order) { order.piece_bytes *= 2; }, Opcode::kEvict);
     }},
    {"a piece that is too short",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.piece_bytes -= 1; }); }},
    {"a piece of nothing",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.piece_bytes = 0; }); }},
    {"a piece of four gigabytes",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.piece_bytes = UINT32_MAX; }); }},
    {"sequence 0", [](World& world) { Changed(world, [](TransferOrder& order) { order.sequence = 0; }); }},
    {"a sequence that was there",
     [](World& world) {
       Changed(
           world, [](TransferOrder&) {}, Opcode::kRefill, 5);
     }},
    {"a sequence that goes back",
     [](World& world) {
       Changed(
           world, [](TransferOrder&) {}, Opcode::kEvict, 3);
     }},
    {"one that is a window ahead of an unfinished one",
     [](World& world) {
       Changed(
           world, [](TransferOrder&) {}, Opcode::kRefill, 5 + kWindow);
     }},
    {"more than a window at once",
     [](World& world) {
       for (uint64_t sequence = 6; sequence <= 5 + kWindow; ++sequence) world.OrderRefill(sequence, 6);
     }},
    {"opcode 0", [](World& world) { Changed(world, [](TransferOrder& order) { order.opcode = 0; }); }},
    {"a delete",
     [](World& world) {
       Changed(world, [](TransferOrder& order) { order.opcode = static_cast<uint16_t>(Opcode::kDelete); });
     }},
    {"an opcode that does not exist",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.opcode = 0x0101; }); }},
    {"a flag that does not exist",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.flags = 2; }); }},
    {"a withdrawal with a flag that does not exist",
     [](World& world) {
       Changed(
           world, [](TransferOrder& order) { order.flags = 3; }, Opcode::kRefill, 5);
     }},
    {"reserved that is not zero",
     [](World& world) { Changed(world, [](TransferOrder& order) { order.reserved = 1; }); }},
    {"a withdrawal with reserved that is not zero",
     [](World& world) {
       TransferOrder order = Withdrawal(Opcode::kRefill, 5);
       order.reserved = 1;
       world.Order({order});
     }},
    {"a withdrawal of what was never ordered", [](World& world) { world.Withdraw(Opcode::kRefill, 6); }},
    {"a withdrawal of sequence 0", [](World& world) { world.Withdraw(Opcode::kEvict, 0); }},
    {"a withdrawal of a delete", [](World& world) { world.Withdraw(Opcode::kDelete, 5); }},
    {"a good order before a bad one",
     [](World& world) {
       TransferOrder bad = world.OrderFor(Opcode::kRefill, 7, kPlaces);
       world.Order({world.OrderFor(Opcode::kRefill, 6, 6), bad});
     }},
    {"wrong magic", [](World& world) { Framed(world, [](StreamHeader& header) { header.magic += 1; }); }},
    {"another version",
     [](World& world) { Framed(world, [](StreamHeader& header) { header.version += 1; }); }},
    {"a frame of acknowledgements",
     [](World& world) {
       Framed(world, [](StreamHeader& header) { header.type = static_cast<uint16_t>(StreamType::kAcks); });
     }},
    {"a frame of descriptors",
     [](World& world) {
       Framed(world,
              [](StreamHeader& header) { header.type = static_cast<uint16_t>(StreamType::kDescriptors); });
     }},
    {"a frame of no type",
     [](World& world) { Framed(world, [](StreamHeader& header) { header.type = 0; }); }},
    {"an order and a half",
     [](World& world) { Framed(world, [](StreamHeader& header) { header.length = 48; }); }},
    {"a frame of nothing",
     [](World& world) { Framed(world, [](StreamHeader& header) { header.length = 0; }); }},
    {"half a header and the end",
     [](World& world) {
       world.driver.Send({BytesOf(MakeHeader(StreamType::kOrders, 32, 0, 0)).data(), 17});
       world.driver.Close();
     }},
    {"half an order and the end",
     [](World& world) {
       const auto frame = EntryFrame(StreamType::kOrders, std::vector{world.OrderFor(Opcode::kEvict, 5, 6)});
       world.driver.Send(std::span(frame).first(frame.size() - 8));
       world.driver.Close();
     }},
    {"the end", [](World& world) { world.driver.Close(); }},
};

const Attack kHostileShard[] = {
    {"a piece that has come already", [](World& world) { world.Serve(4, 0); }},
    {"a piece with sequence 0", [](World& world) { world.Serve(0, 1); }},
    {"a piece that is too long",
     [](World& world) { world.refill[0].Send(PieceFrame(5, GenerationOf(5), PieceOf(5, kPieceBytes + 1))); }},
    {"a piece of another generation",
     [](World& world) { world.refill[0].Send(PieceFrame(5, GenerationOf(4), PieceOf(5, kPieceBytes))); }},
    {"a piece without magic",
     [](World& world) {
       Bytes frame = PieceFrame(5, GenerationOf(5), PieceOf(5, kPieceBytes));
       frame[0] = std::byte{0};
       world.refill[1].Send(frame);
     }},
    {"bytes on an evict lane", [](World& world) { world.evict[0].Send(PieceOf(1, 3)); }},
    {"the end of a refill lane", [](World& world) { world.refill[0].Close(); }},
    {"the end of an evict lane", [](World& world) { world.evict[1].Close(); }},
};

void Survive(std::span<const Attack> attacks) {
  for (const Attack& attack : attacks) {
    World world;
    for (uint64_t sequence = 1; sequence <= 4; ++sequence) {
      world.OrderEvict(sequence, 1);
      world.OrderRefill(sequence, 2);
      world.arena.Want(2, world.Serve(sequence, 0));
      CHECK_EQ(world.Settle().size(), 2u);
    }
    for (FarEnd& lane : world.evict) {
      lane.Read();
      while (lane.Next()) {
      }
    }
    world.OrderRefill(5, 5);
    CHECK_EQ(world.Settle(), Moves{});
    CHECK(!world.has_ended());
    attack.strike(world);
    (void)world.Settle();
    if (!world.carrier->broken() || !world.has_ended())
      FAIL(std::string(attack.name) + " does not end the lane");
    for (FarEnd& lane : world.evict) CHECK(lane.fd() < 0 || lane.Silent());
    world.arena.Check();
    // What comes now finds nobody.
    for (FarEnd& lane : world.refill) {
      if (lane.fd() >= 0) (void)lane.SendSome(PieceFrame(5, GenerationOf(5), PieceOf(5, kPieceBytes)));
    }
    CHECK_EQ(world.Settle(), Moves{});
    world.carrier.reset();
    world.arena.Check();
  }
}

TEST("a driver that orders what cannot be loses its lane, and no memory is touched") {
  Survive(kHostileDriver);
}

TEST("a shard that breaks the protocol ends the lane of its carrier, and no memory is touched") {
  Survive(kHostileShard);
}

TEST("a piece that ends in the middle ends the lane, and was never acknowledged") {
  World world;
  world.OrderRefill(1, 1);
  world.refill[0].Send({PieceFrame(1, GenerationOf(1), PieceOf(1, kPieceBytes)).data(), 100});
  CHECK_EQ(world.Settle(), Moves{});
  world.refill[0].Close();
  CHECK_EQ(world.Settle(), Moves{});
  CHECK(world.has_ended());
  world.arena.Ignore(1);
  world.arena.Check();
}

TEST("a driver that reads no acknowledgements gets no more orders taken, and finds all of them in the end") {
  World world;
  // Far more than the kernel holds.
  constexpr uint64_t kMany = 200'000;
  uint64_t taken = 0;
  Bytes waiting;
  const auto push = [&] {
    const size_t sent = world.driver.SendSome(waiting);
    waiting.erase(waiting.begin(), waiting.begin() + static_cast<ptrdiff_t>(sent));
    do {
      world.carrier->Wait(0);
    } while (world.carrier->Turn());
    return sent > 0;
  };
  while (taken < kMany && (waiting.empty() || push())) {
    if (!waiting.empty()) continue;
    ++taken;
    waiting = EntryFrame(StreamType::kOrders, std::vector{world.OrderFor(Opcode::kRefill, taken, 1),
                                                          Withdrawal(Opcode::kRefill, taken)});
  }
  CHECK(!world.carrier->broken());
  CHECK(taken < kMany);
  uint64_t acknowledged = 0;
  while (acknowledged < taken) {
    if (!waiting.empty()) push();
    for (const Move& ack : world.Settle()) {
      CHECK_EQ(ack, Move({Opcode::kRefill, ++acknowledged, Status::kCancelled}));
    }
  }
  world.arena.Check();
}

TEST("a shard that reads nothing is sent no more than its lanes hold, and everything in the end") {
  World world({.lanes = 2, .piece_bytes = kLargeBytes, .near_bytes = kSmallBuffer});
  for (uint64_t sequence = 1; sequence <= kWindow; ++sequence) world.OrderEvict(sequence, sequence);
  CHECK_EQ(world.Settle(), Moves{});
  // The other way goes on meanwhile.
  world.OrderRefill(1, 0);
  const Bytes piece = PieceOf(1, kLargeBytes);
  const Bytes frame = PieceFrame(1, GenerationOf(1), piece);
  for (size_t sent = 0; sent < frame.size();) {
    sent += world.refill[0].SendSome(std::span(frame).subspan(sent));
    CHECK_EQ(world.Settle().size(), sent == frame.size() ? 1u : 0u);
  }
  world.arena.Want(0, piece);
  for (size_t acknowledged = 0; acknowledged < kWindow; acknowledged += world.Settle().size()) {
    for (FarEnd& lane : world.evict) lane.Read();
  }
  for (uint64_t sequence = 1; sequence <= kWindow; ++sequence) {
    CheckPiece(world.evict[sequence % 2].AwaitFrame(), sequence, PieceOf(sequence, kLargeBytes));
  }
  world.arena.Check();
}

TEST("a carrier that is closed in the middle of everything touches its memory no more") {
  for (int round = 0; round < 5; ++round) {
    World world(
        {.piece_bytes = kLargeBytes, .near_bytes = kSmallBuffer, .far_bytes = kSmallBuffer, .thread = true});
    world.OrderEvict(1, 1);
    world.OrderRefill(1, 2);
    world.OrderRefill(2, 3);
    const Bytes frame = PieceFrame(2, GenerationOf(2), PieceOf(2, kLargeBytes));
    // The kernel holds a small part of it: the carrier has taken the rest.
    world.refill[0].Send(std::span(frame).first(frame.size() / 2));
    world.carrier.reset();
    world.arena.Ignore(3);
    (void)world.refill[0].SendSome(std::span(frame).subspan(frame.size() / 2));
    (void)world.refill[1].SendSome(PieceFrame(1, GenerationOf(1), PieceOf(1, kLargeBytes)));
    CHECK(world.refill[0].gone());
    world.arena.Check();
  }
}

/// Transfers of one kind, as the driver and the shard see them.
struct Kind {
  Opcode opcode;
  uint64_t ordered = 0;
  std::vector<bool> refused = {false};  ///< the shard does not serve it
  std::vector<bool> withdrawn = {false};
  std::vector<std::optional<Status>> ends = {Status::kOk};  ///< by sequence

  bool room() const { return ordered < kWindow || ends[ordered + 1 - kWindow].has_value(); }
};

TEST("whatever comes in whatever order, each order is acknowledged once, and every byte is right") {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    std::mt19937_64 random(seed);
    const auto one_in = [&](uint64_t count) { return random() % count == 0; };
    const uint32_t piece_bytes = one_in(2) ? 700 : 40'000;
    const auto lanes = 1 + static_cast<uint32_t>(random() % 3);
    World world({.lanes = lanes,
                 .piece_bytes = piece_bytes,
                 .near_bytes = kSmallBuffer,
                 .checksums = one_in(2),
                 .thread = true});
    constexpr uint64_t kOrders = 200;
    Kind evicts{.opcode = Opcode::kEvict};
    Kind refills{.opcode = Opcode::kRefill};
    std::vector<std::pair<Bytes, size_t>> outgoing(lanes);
    std::multiset<uint64_t> arrived;
    uint64_t open = 0;
    const auto order = [&](Kind& kind) {
      const uint64_t sequence = ++kind.ordered;
      kind.refused.push_back(one_in(3));
      kind.withdrawn.push_back(false);
      kind.ends.emplace_back();
      ++open;
      if (kind.opcode == Opcode::kEvict) {
        world.OrderEvict(sequence, static_cast<uint32_t>(sequence % kWindow));
        return;
      }
      // The shard and the word of it travel different ways.
      const bool early = one_in(2);
      if (!early) world.OrderRefill(sequence, static_cast<uint32_t>(kWindow + sequence % kWindow));
      if (!kind.refused[sequence]) {
        auto& [bytes, sent] = outgoing[sequence % lanes];
        const Bytes piece = PieceOf(sequence, piece_bytes);
        const Bytes frame = PieceFrame(sequence, GenerationOf(sequence), piece, FrameChecksum(piece));
        bytes.insert(bytes.end(), frame.begin(), frame.end());
        sent += world.refill[sequence % lanes].SendSome(std::span(bytes).subspan(sent));
      }
      if (early) world.OrderRefill(sequence, static_cast<uint32_t>(kWindow + sequence % kWindow));
    };
    while (open > 0 || evicts.ordered + refills.ordered < 2 * kOrders) {
      for (Kind* kind : {&evicts, &refills}) {
        if (kind->ordered < kOrders && kind->room() && one_in(2)) order(*kind);
        for (uint64_t sequence = 1; sequence <= kind->ordered; ++sequence) {
          if (kind->ends[sequence] || kind->withdrawn[sequence] || !kind->refused[sequence] || !one_in(3))
            continue;
          kind->withdrawn[sequence] = true;
          world.Withdraw(kind->opcode, sequence);
        }
      }
      for (uint32_t lane = 0; lane < lanes; ++lane) {
        auto& [bytes, sent] = outgoing[lane];
        if (one_in(2)) {
          const size_t part = std::min<size_t>(bytes.size() - sent, random() % (2 * piece_bytes));
          sent += world.refill[lane].SendSome(std::span(bytes).subspan(sent, part));
        }
        if (one_in(2)) world.evict[lane].Read(random() % (2 * piece_bytes));
        while (auto frame = world.evict[lane].Next()) {
          const uint64_t sequence = frame->header.request_id;
          CHECK_EQ(sequence % lanes, lane);
          CheckPiece(*frame, sequence, PieceOf(sequence, piece_bytes));
          arrived.insert(sequence);
        }
      }
      world.driver.Read();
      for (const auto& [opcode, sequence, status] : world.TakeAcks()) {
        Kind& kind = opcode == Opcode::kEvict ? evicts : refills;
        CHECK(sequence >= 1 && sequence <= kind.ordered);
        CHECK(!kind.ends[sequence].has_value());
        kind.ends[sequence] = status;
        --open;
        if (status == Status::kCancelled) {
          CHECK(kind.withdrawn[sequence]);
          continue;
        }
        CHECK_EQ(status, Status::kOk);
        if (opcode == Opcode::kEvict) continue;
        CHECK(!kind.refused[sequence]);
        const auto place = static_cast<uint32_t>(kWindow + sequence % kWindow);
        CHECK(std::ranges::equal(PieceOf(sequence, piece_bytes),
                                 std::span(world.arena.place(place), piece_bytes)));
        world.arena.Ignore(place);
      }
      CHECK(!world.driver.gone());
    }
    CHECK(!world.has_ended());
    world.carrier.reset();
    for (FarEnd& lane : world.evict) {
      lane.Read();
      while (auto frame = lane.Next()) arrived.insert(frame->header.request_id);
      CHECK_EQ(lane.pending(), 0u);
    }
    for (uint64_t sequence = 1; sequence <= evicts.ordered; ++sequence) {
      CHECK_EQ(arrived.count(sequence), evicts.ends[sequence] == Status::kOk ? 1u : 0u);
    }
    world.arena.Check();
  }
}

}  // namespace
}  // namespace kvss
