// The runtime's ends of WIO lanes, pumped by the test, against far ends that send and read as they like.

#include "link/payload_lanes.h"

#include <sys/epoll.h>

#include <random>

#include "base/crc32c.h"
#include "lanes.h"

namespace kvss {
namespace {

using proto::Opcode;
using proto::Status;
using proto::StreamHeader;
using proto::StreamType;
using test::Arena;
using test::Bytes;
using test::BytesOf;
using test::CheckPiece;
using test::FarEnd;
using test::Frame;
using test::GenerationOf;
using test::Move;
using test::Moves;
using test::PieceFrame;
using test::PieceOf;

constexpr uint32_t kWindow = 8;
constexpr uint32_t kPieceBytes = 512;
/// Far more than the kernel takes of a lane with a small buffer.
constexpr uint32_t kLargeBytes = 256 * 1024;
constexpr int kSmallBuffer = 8 * 1024;

struct Options {
  uint32_t lanes = 2;
  uint32_t piece_bytes = kPieceBytes;
  int near_bytes = 0;
  bool checksums = false;
};

/// Lanes and both of their ends.
class World final : public PayloadSink {
 public:
  explicit World(Options options = {})
      : evict(options.lanes),
        refill(options.lanes),
        arena(2 * kWindow, options.piece_bytes),
        epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    std::vector<UniqueFd> evict_ends(options.lanes);
    std::vector<UniqueFd> refill_ends(options.lanes);
    for (uint32_t lane = 0; lane < options.lanes; ++lane) {
      evict[lane] = FarEnd::Of(&evict_ends[lane], options.near_bytes);
      refill[lane] = FarEnd::Of(&refill_ends[lane]);
    }
    lanes = std::make_unique<PayloadLanes>(std::move(evict_ends), std::move(refill_ends), kWindow,
                                           options.checksums, this);
    CHECK(lanes->WatchWith(epoll_.get()));
  }

  PayloadLanes::Piece At(uint64_t sequence, uint32_t place) {
    return {sequence, GenerationOf(sequence), arena.place(place), arena.piece_bytes()};
  }
  /// Sends the piece at a place, made for this sequence.
  Bytes Send(uint64_t sequence, uint32_t place) {
    const Bytes piece = PieceOf(sequence, arena.piece_bytes());
    arena.Write(place, piece);
    lanes->Send(At(sequence, place));
    return piece;
  }
  void Expect(uint64_t sequence, uint32_t place) { lanes->Expect(At(sequence, place)); }
  /// The shard sends the piece of a refill over some lane.
  Bytes Serve(uint64_t sequence, uint32_t lane) {
    const Bytes piece = PieceOf(sequence, arena.piece_bytes());
    refill[lane].Send(PieceFrame(sequence, GenerationOf(sequence), piece));
    return piece;
  }

  /// Moves all that can be moved now, and answers what has been.
  Moves Pump() {
    do {
      epoll_event events[32];
      const int count = ::epoll_wait(epoll_.get(), events, 32, 0);
      for (int index = 0; index < count; ++index) {
        static_cast<LaneEvents*>(events[index].data.ptr)->Note(events[index].events);
      }
    } while (lanes->Pump());
    return std::exchange(moves_, {});
  }

  std::vector<FarEnd> evict;
  std::vector<FarEnd> refill;
  Arena arena;
  std::unique_ptr<PayloadLanes> lanes;

 private:
  void Moved(Opcode opcode, uint64_t sequence, Status status) override {
    moves_.push_back({opcode, sequence, status});
  }

  UniqueFd epoll_;
  Moves moves_;
};

TEST("pieces are sent byte for byte, each over the lane of its sequence") {
  World world({.lanes = 3});
  std::vector<Bytes> pieces;
  Moves sent;
  for (uint64_t sequence = 1; sequence <= kWindow; ++sequence) {
    pieces.push_back(world.Send(sequence, static_cast<uint32_t>(sequence)));
  }
  CHECK_EQ(world.Pump().size(), size_t{kWindow});
  for (uint64_t sequence = 1; sequence <= kWindow; ++sequence) {
    const Frame frame = world.evict[sequence % 3].AwaitFrame();
    CheckPiece(frame, sequence, pieces[sequence - 1]);
    CHECK_EQ(frame.header.checksum, 0u);
  }
  for (FarEnd& lane : world.evict) CHECK(lane.Silent());
  CHECK_EQ(world.lanes->bytes_sent(), uint64_t{kWindow} * kPieceBytes);
  world.arena.Check();
}

TEST("pieces are received byte for byte, over whichever lane they come") {
  World world({.lanes = 3});
  for (uint64_t sequence = 1; sequence <= kWindow; ++sequence) world.Expect(sequence, sequence % 8);
  CHECK_EQ(world.Pump(), Moves{});
  for (uint64_t sequence = kWindow; sequence >= 1; --sequence) {
    world.arena.Want(sequence % 8, world.Serve(sequence, sequence * 5 % 3));
    CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, sequence, Status::kOk}}));
    world.arena.Check();
  }
  CHECK_EQ(world.lanes->bytes_received(), uint64_t{kWindow} * kPieceBytes);
}

TEST("a piece that comes before anybody expects it waits, and so does what is behind it") {
  World world;
  const Bytes third = world.Serve(3, 0);
  const Bytes first = world.Serve(1, 0);
  const Bytes second = world.Serve(2, 1);
  CHECK_EQ(world.Pump(), Moves{});
  world.arena.Check();
  world.Expect(1, 1);
  // Behind the third one.
  CHECK_EQ(world.Pump(), Moves{});
  world.Expect(2, 2);
  CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, 2, Status::kOk}}));
  world.arena.Want(2, second);
  world.arena.Check();
  world.Expect(3, 3);
  CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, 3, Status::kOk}, {Opcode::kRefill, 1, Status::kOk}}));
  world.arena.Want(1, first);
  world.arena.Want(3, third);
  world.arena.Check();
}

TEST("a piece comes in bit by bit, and is whole before anybody hears of it") {
  World world;
  world.Expect(1, 5);
  const Bytes piece = PieceOf(1, kPieceBytes);
  const Bytes frame = PieceFrame(1, GenerationOf(1), piece);
  for (size_t at = 0; at < frame.size(); ++at) {
    CHECK_EQ(world.Pump(), Moves{});
    world.refill[1].Send({frame.data() + at, 1});
  }
  CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, 1, Status::kOk}}));
  world.arena.Want(5, piece);
  world.arena.Check();
}

TEST("sent pieces carry a checksum where it was asked for") {
  World world({.checksums = true});
  const Bytes piece = world.Send(1, 0);
  world.Pump();
  CHECK_EQ(world.evict[1].AwaitFrame().header.checksum, FrameChecksum(piece));
}

TEST("a piece that is not what its checksum says has moved and failed, whether or not this side sends any") {
  for (const bool checksums : {false, true}) {
    World world({.checksums = checksums});
    for (uint64_t sequence = 1; sequence <= 3; ++sequence) world.Expect(sequence, sequence);
    const Bytes piece = PieceOf(1, kPieceBytes);
    world.refill[0].Send(PieceFrame(1, GenerationOf(1), piece, FrameChecksum(piece) ^ 1));
    world.refill[1].Send(PieceFrame(2, GenerationOf(2), piece, FrameChecksum(piece)));
    world.refill[0].Send(PieceFrame(3, GenerationOf(3), piece, 0));
    Moves moves = world.Pump();
    std::ranges::sort(moves, {}, &Move::sequence);
    CHECK_EQ(moves, Moves({{Opcode::kRefill, 1, Status::kTransferFailed},
                           {Opcode::kRefill, 2, Status::kOk},
                           {Opcode::kRefill, 3, Status::kOk}}));
    CHECK(!world.lanes->broken());
  }
}

TEST("an evict that is withdrawn before a byte of it has gone is never sent") {
  World world({.lanes = 1, .piece_bytes = kLargeBytes, .near_bytes = kSmallBuffer});
  const Bytes first = world.Send(1, 1);
  CHECK_EQ(world.Pump(), Moves{});
  world.Send(2, 2);
  const Bytes third = world.Send(3, 3);
  world.lanes->Withdraw(Opcode::kEvict, 2);
  CHECK_EQ(world.Pump(), Moves({{Opcode::kEvict, 2, Status::kCancelled}}));
  Moves moves;
  while (moves.size() < 2) {
    world.evict[0].Read();
    for (const Move& move : world.Pump()) moves.push_back(move);
  }
  CHECK_EQ(moves, Moves({{Opcode::kEvict, 1, Status::kOk}, {Opcode::kEvict, 3, Status::kOk}}));
  CheckPiece(world.evict[0].AwaitFrame(), 1, first);
  CheckPiece(world.evict[0].AwaitFrame(), 3, third);
  CHECK(world.evict[0].Silent());
}

TEST("an evict that is withdrawn when a part of it has gone goes whole") {
  World world({.lanes = 1, .piece_bytes = kLargeBytes, .near_bytes = kSmallBuffer});
  const Bytes piece = world.Send(1, 1);
  CHECK_EQ(world.Pump(), Moves{});
  CHECK(world.evict[0].Read(1) == 1);
  world.lanes->Withdraw(Opcode::kEvict, 1);
  Moves moves = world.Pump();
  CHECK_EQ(moves, Moves{});
  while (moves.empty()) {
    world.evict[0].Read();
    moves = world.Pump();
  }
  CHECK_EQ(moves, Moves({{Opcode::kEvict, 1, Status::kOk}}));
  CheckPiece(world.evict[0].AwaitFrame(), 1, piece);
}

TEST("a refill that is withdrawn before a byte of it has come leaves its memory alone") {
  World world;
  world.Expect(1, 1);
  world.Expect(2, 2);
  world.lanes->Withdraw(Opcode::kRefill, 1);
  CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, 1, Status::kCancelled}}));
  world.arena.Want(2, world.Serve(2, 0));
  CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, 2, Status::kOk}}));
  world.arena.Check();
  // The shard has said that it does not come.
  world.Serve(1, 1);
  CHECK_EQ(world.Pump(), Moves{});
  CHECK(world.lanes->broken());
  world.arena.Check();
}

TEST("a refill that is withdrawn when a part of it has come is received to its end") {
  const Bytes piece = PieceOf(1, kPieceBytes);
  const Bytes frame = PieceFrame(1, GenerationOf(1), piece);
  for (const size_t part : {sizeof(StreamHeader), sizeof(StreamHeader) + 100}) {
    World world;
    world.Expect(1, 1);
    world.refill[0].Send({frame.data(), part});
    CHECK_EQ(world.Pump(), Moves{});
    world.lanes->Withdraw(Opcode::kRefill, 1);
    CHECK_EQ(world.Pump(), Moves{});
    world.refill[0].Send({frame.data() + part, frame.size() - part});
    CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, 1, Status::kOk}}));
    world.arena.Want(1, piece);
    world.arena.Check();
  }
}

TEST("what has moved already is not reported again when it is withdrawn") {
  World world;
  world.Send(1, 1);
  world.Expect(1, 2);
  world.arena.Want(2, world.Serve(1, 0));
  CHECK_EQ(world.Pump().size(), 2u);
  // As its place in the window has been taken by another one.
  world.Expect(1 + kWindow, 3);
  world.lanes->Withdraw(Opcode::kEvict, 1);
  world.lanes->Withdraw(Opcode::kRefill, 1);
  CHECK_EQ(world.Pump(), Moves{});
  world.arena.Want(3, world.Serve(1 + kWindow, 0));
  CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, 1 + kWindow, Status::kOk}}));
  world.arena.Check();
}

/// What a shard does that no shard may do. Refill 5 is expected at place 5, all before it have come.
struct Attack {
  const char* name;
  void (*strike)(World&);
  bool touches = false;  ///< the place of refill 5, which it may
};

Bytes Changed(void (*change)(StreamHeader&)) {
  StreamHeader header = MakeHeader(StreamType::kPayload, kPieceBytes, 5, GenerationOf(5));
  change(header);
  return BytesOf(header, PieceOf(5, kPieceBytes));
}

Bytes Header(uint64_t sequence, uint32_t length) {
  return BytesOf(MakeHeader(StreamType::kPayload, length, sequence, GenerationOf(sequence)));
}

const Attack kAttacks[] = {
    {"a piece that has come already", [](World& world) { world.Serve(4, 0); }},
    {"sequence 0", [](World& world) { world.Serve(0, 0); }},
    {"a window ago",
     [](World& world) {
       world.Expect(5 + kWindow, 6);
       world.Serve(5, 0);
     }},
    {"a window ago with the generation of now",
     [](World& world) {
       world.Expect(5 + kWindow, 6);
       world.refill[0].Send(PieceFrame(5, GenerationOf(5 + kWindow), PieceOf(5, kPieceBytes)));
     }},
    {"too short", [](World& world) { world.refill[0].Send(Header(5, kPieceBytes - 1)); }},
    {"too long", [](World& world) { world.refill[0].Send(Header(5, kPieceBytes + 1)); }},
    {"empty", [](World& world) { world.refill[0].Send(Header(5, 0)); }},
    {"longer than any piece", [](World& world) { world.refill[0].Send(Header(900, UINT32_MAX)); }},
    {"another generation",
     [](World& world) {
       world.refill[0].Send(Changed([](StreamHeader& header) { header.generation += 1; }));
     }},
    {"wrong magic",
     [](World& world) { world.refill[0].Send(Changed([](StreamHeader& header) { header.magic ^= 1; })); }},
    {"wrong version",
     [](World& world) { world.refill[0].Send(Changed([](StreamHeader& header) { header.version += 1; })); }},
    {"a frame of another type",
     [](World& world) {
       world.refill[0].Send(Changed(
           [](StreamHeader& header) { header.type = static_cast<uint16_t>(StreamType::kCompletions); }));
     }},
    {"the same piece twice, one after the other",
     [](World& world) {
       world.Serve(5, 0);
       world.Serve(5, 1);
     },
     true},
    {"the same piece on two lanes at once",
     [](World& world) {
       world.refill[0].Send(Header(5, kPieceBytes));
       CHECK_EQ(world.Pump(), Moves{});
       world.Serve(5, 1);
     },
     true},
    {"the end between two pieces", [](World& world) { world.refill[1].Close(); }},
    {"the end in a header",
     [](World& world) {
       world.refill[0].Send({Header(5, kPieceBytes).data(), 7});
       world.refill[0].Close();
     }},
    {"the end in a piece",
     [](World& world) {
       world.refill[0].Send(Header(5, kPieceBytes));
       world.refill[0].Send(PieceOf(5, 100));
       world.refill[0].Close();
     },
     true},
    {"the end of an evict lane", [](World& world) { world.evict[1].Close(); }},
    {"bytes towards us on an evict lane", [](World& world) { world.evict[0].Send(PieceOf(0, 1)); }},
};

TEST("a shard that breaks the protocol breaks the lanes and touches no memory but that of its own piece") {
  for (const Attack& attack : kAttacks) {
    World world;
    for (uint64_t sequence = 1; sequence <= 5; ++sequence) world.Expect(sequence, sequence);
    for (uint64_t sequence = 1; sequence < 5; ++sequence) {
      world.arena.Want(sequence, world.Serve(sequence, sequence % 2));
    }
    CHECK_EQ(world.Pump().size(), 4u);
    attack.strike(world);
    world.Pump();
    if (!world.lanes->broken()) FAIL(std::string(attack.name) + " does not break the lanes");
    if (attack.touches) world.arena.Ignore(5);
    world.arena.Check();
    // And nothing more is sent or received.
    world.Send(1, 9);
    world.Expect(6, 6);
    if (world.refill[1].fd() >= 0)
      (void)world.refill[1].SendSome(PieceFrame(6, GenerationOf(6), PieceOf(6, kPieceBytes)));
    CHECK_EQ(world.Pump(), Moves{});
    if (world.evict[1].fd() >= 0) CHECK(world.evict[1].Silent());
    world.arena.Check();
  }
}

TEST("a piece that nobody will ever expect stands still and does no harm to other lanes") {
  World world;
  world.refill[0].Send(Header(UINT64_MAX, 17));
  world.Expect(1, 1);
  world.arena.Want(1, world.Serve(1, 1));
  CHECK_EQ(world.Pump(), Moves({{Opcode::kRefill, 1, Status::kOk}}));
  CHECK(!world.lanes->broken());
  world.arena.Check();
}

/// One operation of the long test, and what has become of it.
struct Operation {
  Opcode opcode;
  uint64_t sequence;
  uint32_t place;
  bool refused = false;  ///< the shard does not serve it, or has no use for it
  bool withdrawn = false;
  bool served = false;  ///< the shard has sent the piece, or a part of it
  std::optional<Status> moved;
};

TEST("whatever comes in whatever order, every operation moves once, and every byte is right") {
  for (uint64_t seed = 1; seed <= 16; ++seed) {
    std::mt19937_64 random(seed);
    const auto one_in = [&](uint64_t count) { return random() % count == 0; };
    const uint32_t piece_bytes = one_in(2) ? 700 : 40'000;
    World world({.lanes = 1 + static_cast<uint32_t>(random() % 3),
                 .piece_bytes = piece_bytes,
                 .near_bytes = kSmallBuffer,
                 .checksums = one_in(2)});
    const size_t lanes = world.refill.size();
    std::vector<Operation> evicts;
    std::vector<Operation> refills;
    // What the shard has still to send on each lane.
    std::vector<std::pair<Bytes, size_t>> outgoing(lanes);
    std::vector<std::vector<uint64_t>> arrived(lanes);
    const auto find = [&](Opcode opcode, uint64_t sequence) -> Operation& {
      return (opcode == Opcode::kEvict ? evicts : refills).at(sequence - 1);
    };
    const auto free_slot = [&](const std::vector<Operation>& operations) {
      return operations.size() < kWindow || operations[operations.size() - kWindow].moved.has_value();
    };
    size_t open = 0;
    for (int step = 0; step < 600 || open > 0; ++step) {
      CHECK(step < 100'000);
      if (step < 600 && free_slot(evicts) && one_in(4)) {
        const uint64_t sequence = evicts.size() + 1;
        evicts.push_back({Opcode::kEvict, sequence, static_cast<uint32_t>(sequence % kWindow), one_in(3)});
        world.Send(sequence, evicts.back().place);
        ++open;
      }
      if (step < 600 && free_slot(refills) && one_in(4)) {
        const uint64_t sequence = refills.size() + 1;
        const auto place = static_cast<uint32_t>(kWindow + sequence % kWindow);
        refills.push_back({Opcode::kRefill, sequence, place, one_in(3)});
        // The shard may be faster than the word of it.
        auto& [bytes, sent] = outgoing[sequence % lanes];
        if (!refills.back().refused) {
          const Bytes piece = PieceOf(sequence, piece_bytes);
          const Bytes frame = PieceFrame(sequence, GenerationOf(sequence), piece, FrameChecksum(piece));
          bytes.insert(bytes.end(), frame.begin(), frame.end());
          if (one_in(2)) world.refill[sequence % lanes].Send(std::span(bytes).subspan(sent, 1)), ++sent;
        }
        world.Expect(sequence, place);
        ++open;
      }
      for (auto* operations : {&evicts, &refills}) {
        for (Operation& operation : *operations) {
          if (operation.moved || operation.withdrawn || !operation.refused || !one_in(20)) continue;
          operation.withdrawn = true;
          world.lanes->Withdraw(operation.opcode, operation.sequence);
        }
      }
      for (size_t lane = 0; lane < lanes; ++lane) {
        auto& [bytes, sent] = outgoing[lane];
        if (one_in(2)) {
          const size_t part = std::min<size_t>(bytes.size() - sent, random() % (2 * piece_bytes));
          sent += world.refill[lane].SendSome(std::span(bytes).subspan(sent, part));
        }
        if (one_in(2)) world.evict[lane].Read(random() % (2 * piece_bytes));
        while (auto frame = world.evict[lane].Next()) {
          CheckPiece(*frame, frame->header.request_id, PieceOf(frame->header.request_id, piece_bytes));
          arrived[lane].push_back(frame->header.request_id);
        }
      }
      for (const auto& [opcode, sequence, status] : world.Pump()) {
        Operation& operation = find(opcode, sequence);
        CHECK(!operation.moved);
        operation.moved = status;
        --open;
        if (status == Status::kCancelled) {
          CHECK(operation.withdrawn);
        } else {
          CHECK_EQ(status, Status::kOk);
          if (opcode == Opcode::kRefill) {
            CHECK(!operation.refused);
            world.arena.Want(operation.place, PieceOf(sequence, piece_bytes));
          }
        }
      }
      CHECK(!world.lanes->broken());
    }
    for (size_t lane = 0; lane < lanes; ++lane) {
      for (world.evict[lane].Read(); auto frame = world.evict[lane].Next();) {
        arrived[lane].push_back(frame->header.request_id);
      }
      CHECK(world.evict[lane].Silent());
    }
    for (const Operation& evict : evicts) {
      const auto& lane = arrived[evict.sequence % lanes];
      CHECK_EQ(std::ranges::count(lane, evict.sequence), evict.moved == Status::kOk ? 1 : 0);
    }
    world.arena.Check();
  }
}

}  // namespace
}  // namespace kvss
