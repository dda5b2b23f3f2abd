// A client on another host that sends what it likes over its lanes, in any order and in any pieces, and reads
// as slowly as it likes. It plays against a real StreamSession over socket pairs, with an epoll as the engine
// uses it. What it sent it reads again with a parser of its own, and so knows what may come back.

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <array>
#include <optional>
#include <tuple>

#include "base/crc32c.h"
#include "engine/stream_session.h"
#include "fuzz.h"

namespace kvss::fuzz {
namespace {

using proto::Completion;
using proto::Descriptor;
using proto::LaneKind;
using proto::Opcode;
using proto::Status;
using proto::StreamHeader;
using proto::StreamType;

constexpr uint32_t kWindow = 8;
constexpr uint32_t kLanes = 2;  ///< of each direction
/// Turns in which any amount of work that these sockets can hold is done.
constexpr int kManyTurns = 5000;

using Bytes = std::vector<uint8_t>;

/// The client's end of a connection.
struct Pipe {
  UniqueFd fd;
  Bytes sent;      ///< everything that the kernel took
  Bytes waiting;   ///< what it did not take yet
  Bytes received;  ///< everything that came, without the welcome
  size_t parsed = 0;
  bool welcomed = false;
  bool ended = false;  ///< the client has said goodbye

  bool open() const { return fd.valid(); }

  void Send(std::span<const uint8_t> bytes) {
    waiting.insert(waiting.end(), bytes.begin(), bytes.end());
    Flush();
  }
  bool Flush() {
    if (!open() || waiting.empty()) return false;
    const ssize_t taken = ::send(fd.get(), waiting.data(), waiting.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (taken <= 0) return false;
    sent.insert(sent.end(), waiting.begin(), waiting.begin() + taken);
    waiting.erase(waiting.begin(), waiting.begin() + taken);
    return true;
  }
  bool Read(size_t limit) {
    bool any = false;
    uint8_t buffer[4096];
    while (open() && limit > 0) {
      const ssize_t got = ::recv(fd.get(), buffer, std::min(limit, sizeof(buffer)), MSG_DONTWAIT);
      if (got <= 0) break;
      received.insert(received.end(), buffer, buffer + got);
      limit -= static_cast<size_t>(got);
      any = true;
    }
    if (!welcomed && received.size() >= sizeof(proto::LaneWelcome)) {
      welcomed = true;
      received.erase(received.begin(), received.begin() + sizeof(proto::LaneWelcome));
    }
    return any;
  }
  /// The next whole frame that came, or nothing.
  std::optional<StreamHeader> NextFrame(std::span<const uint8_t>* payload) {
    StreamHeader header;
    if (!welcomed || received.size() - parsed < sizeof(header)) return std::nullopt;
    std::memcpy(&header, received.data() + parsed, sizeof(header));
    FUZZ_EXPECT(header.magic == proto::kStreamMagic && header.version == proto::kProtocolVersion);
    if (received.size() - parsed - sizeof(header) < header.length) return std::nullopt;
    *payload = {received.data() + parsed + sizeof(header), header.length};
    parsed += sizeof(header) + header.length;
    return header;
  }
};

/// A piece that this client sent whole.
struct SentPiece {
  StreamHeader header;
  size_t lane = 0;
  size_t at = 0;  ///< of its bytes in what was sent on the lane
};

class HostileStream {
 public:
  explicit HostileStream(bool checksums)
      : checksums_(checksums),
        epoll_(::epoll_create1(EPOLL_CLOEXEC)),
        session_(std::make_unique<StreamSession>(1, kWindow, checksums, &tally_)) {
    session_->WatchWith(epoll_.get());
    AddGrant(1);
    AddGrant(7);
  }

  ~HostileStream() { Finish(); }

  void Play(Script script) {
    while (!script.over()) Step(script);
  }

 private:
  void Step(Script& script) {
    const uint8_t step = script.Byte();
    const uint32_t lane = step >> 4 & 1;
    switch (step % 16) {
      case 0:
        AddLane(script.Byte());
        break;
      case 1:
        SendDescriptors(script);
        break;
      case 2:
      case 3:
        SendPiece(script, lane, step % 16 == 3);
        break;
      case 4: {
        // Bytes as they are, some of them many times.
        const auto bytes = script.Bytes(script.Byte());
        const size_t times = step & 128 ? script.Byte() : 1;
        Bytes all;
        for (size_t time = 0; time < times; ++time) all.insert(all.end(), bytes.begin(), bytes.end());
        PipeOf(step >> 4)->Send(all);
        break;
      }
      case 5:
        (void)PipeOf(step >> 4)->Read(script.Byte() * 16 + 1);
        break;
      case 6:
        // Half a goodbye, or a whole one.
        PipeOf(step >> 4)->ended = true;
        if (step & 128) {
          (void)::shutdown(PipeOf(step >> 4)->fd.get(), SHUT_WR);
        } else {
          PipeOf(step >> 4)->fd.Reset();
        }
        break;
      case 7:
        now_ns_ += uint64_t{1} << (script.Byte() % 44);
        break;
      case 8:
        AddGrant(script.Byte() % 4 * 2 + 1);
        break;
      case 9:
        RemoveGrant(script.Byte() % 4 * 2 + 1);
        break;
      case 10:
        // The rest of a piece that was half sent.
        EndPiece(lane);
        break;
      case 11:
        Settle();
        break;
      default:
        Turn();
        break;
    }
  }

  Pipe* PipeOf(uint32_t which) {
    switch (which % 5) {
      case 0:
        return &hio_;
      case 1:
      case 2:
        return &evict_[which % 5 - 1];
      default:
        return &refill_[which % 5 - 3];
    }
  }

  // --- what the client does --------------------------------------------------------------------------------

  void AddLane(uint8_t which) {
    const LaneKind kind = which % 4 == 0   ? LaneKind::kHio
                          : which % 4 == 1 ? LaneKind::kWioEvict
                          : which % 4 == 2 ? LaneKind::kWioRefill
                                           : LaneKind::kControl;
    // The last one is a number that no session may have.
    const uint32_t stream = std::array{0u, 1u, 1u, proto::kMaxWioStreams}[which >> 2 & 3];
    int ends[2];
    FUZZ_EXPECT(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    // As little room as the kernel allows, so that pieces go out in parts.
    const int little = 1;
    (void)::setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &little, sizeof(little));
    Pipe client;
    client.fd = UniqueFd(ends[0]);
    Pipe* place = nullptr;
    if (kind == LaneKind::kHio) place = stream == 0 ? &hio_ : nullptr;
    if (kind == LaneKind::kWioEvict) place = stream < kLanes ? &evict_[stream] : nullptr;
    if (kind == LaneKind::kWioRefill) place = stream < kLanes ? &refill_[stream] : nullptr;
    const bool expected = place != nullptr && !place->welcomed;
    const Outcome added = session_->AddLane(kind, stream, UniqueFd(ends[1]));
    FUZZ_EXPECT(added.ok() == expected);
    FUZZ_EXPECT(client.Read(sizeof(proto::LaneWelcome)) && client.welcomed);
    if (expected) *place = std::move(client);
  }

  void AddGrant(uint32_t id) {
    if (grants_.contains(id)) return;
    auto grant = std::make_unique<Grant>(id, id == 7 ? 2 : 4, id == 7 ? 5000 : 100, true);
    FUZZ_EXPECT(session_->AddGrant(id, &grant->memory).ok());
    grants_.emplace(id, std::move(grant));
  }

  void RemoveGrant(uint32_t id) {
    // What ended before has to be known as what it was.
    Settle();
    const Outcome removed = session_->RemoveGrant(id);
    if (!grants_.contains(id)) {
      FUZZ_EXPECT(removed.error().status == Status::kBadGrant);
      return;
    }
    if (!removed.ok()) return;
    grants_.erase(id);
    // A grant that is given under the same number later is another one.
    ++lives_[id];
  }

  void SendDescriptors(Script& script) {
    const uint8_t count = script.Byte() % 10;
    Bytes frame(sizeof(StreamHeader));
    for (int index = 0; index < count; ++index) {
      const bool evict = script.Byte() & 1;
      const Descriptor descriptor = TakeDescriptor(script, evict, grants_);
      const auto* bytes = reinterpret_cast<const uint8_t*>(&descriptor);
      frame.insert(frame.end(), bytes, bytes + sizeof(descriptor));
    }
    const StreamHeader header = MakeHeader(StreamType::kDescriptors,
                                           static_cast<uint32_t>(frame.size() - sizeof(StreamHeader)), 0, 0);
    std::memcpy(frame.data(), &header, sizeof(header));
    hio_.Send(frame);
  }

  /// A piece as the last descriptors want it, or with something wrong; whole, or only its beginning.
  void SendPiece(Script& script, uint32_t lane, bool odd) {
    const uint8_t shape = script.Byte();
    ParseDescriptors();
    const uint64_t sequence = odd ? script.Byte() % 32 : next_piece_++;
    StreamHeader header = MakeHeader(StreamType::kPayload, shape & 1 ? 5000 : 100, sequence, 1);
    if (const Ledger::Entry* entry = Sent(sent_evicts_, sequence)) {
      header.length = entry->descriptor.piece_bytes;
      header.generation = entry->descriptor.generation;
    }
    Bytes piece(std::min<uint32_t>(header.length, 8192));
    const uint8_t fill = script.Byte();
    for (size_t at = 0; at < piece.size(); ++at) piece[at] = static_cast<uint8_t>(fill + at * 7);
    if (shape & 2) header.checksum = FrameChecksum(std::as_bytes(std::span(piece)));
    if (shape & 4) header.checksum ^= 1;
    if (shape & 8) {
      const size_t at = script.Byte() % (sizeof(header) - 3);
      const auto value = script.Take<uint32_t>();
      std::memcpy(reinterpret_cast<uint8_t*>(&header) + at, &value, sizeof(value));
    }
    Bytes frame(sizeof(header));
    std::memcpy(frame.data(), &header, sizeof(header));
    frame.insert(frame.end(), piece.begin(), piece.end());
    const size_t now = shape & 16 ? std::min<size_t>(script.Take<uint16_t>(), frame.size()) : frame.size();
    evict_[lane].Send(std::span(frame).first(now));
    rest_[lane].assign(frame.begin() + static_cast<ptrdiff_t>(now), frame.end());
  }

  void EndPiece(uint32_t lane) {
    evict_[lane].Send(rest_[lane]);
    rest_[lane].clear();
  }

  static const Ledger::Entry* Sent(const Ledger& ledger, uint64_t sequence) {
    return ledger.Knows(sequence) ? &ledger.entries[sequence - 1] : nullptr;
  }

  // --- the engine's turn -----------------------------------------------------------------------------------

  void TakeEvents() {
    epoll_event events[16];
    const int count = ::epoll_wait(epoll_.get(), events, 16, 0);
    for (int index = 0; index < count; ++index) {
      if (auto* lane = static_cast<LaneEvents*>(events[index].data.ptr)) lane->Note(events[index].events);
    }
  }

  bool Turn() {
    for (Pipe* pipe : AllPipes()) (void)pipe->Flush();
    TakeEvents();
    const bool was_faulty = fault_.has_value();
    const ShardTally before = tally_;
    const bool worked = session_->Pump(now_ns_);
    if (was_faulty) FUZZ_EXPECT(!worked && std::memcmp(&before, &tally_, sizeof(tally_)) == 0);
    if (const std::optional<SessionFault> fault = session_->ReportFault()) {
      FUZZ_EXPECT(!fault_ && *fault != SessionFault::kRing);
      fault_ = fault;
      FUZZ_EXPECT(!session_->ReportFault() && !session_->HasWork() && !session_->Unfinished());
      FUZZ_EXPECT(session_->next_deadline_ns() == UINT64_MAX);
    }
    // An engine that is told of work that no turn does would never sleep again.
    if (!worked && !fault_) FUZZ_EXPECT(!session_->HasWork());
    ExpectNoStrangeBytes();
    ExpectFewWaiting();
    return worked;
  }

  /// A client that does not read its completions gets no more operations taken, or they would pile up here.
  void ExpectFewWaiting() const {
    if (!hio_.open()) return;
    int unread = 0;
    FUZZ_EXPECT(::ioctl(hio_.fd.get(), FIONREAD, &unread) == 0);
    const uint64_t finished = tally_.evicts + tally_.evict_faults + tally_.refills + tally_.refill_misses +
                              tally_.refill_faults + tally_.deletes + tally_.delete_misses;
    const uint64_t waiting_at_most = uint64_t{5} * kWindow * sizeof(Completion);
    FUZZ_EXPECT(finished * sizeof(Completion) <=
                hio_.received.size() + static_cast<uint64_t>(unread) + waiting_at_most);
  }

  std::array<Pipe*, 1 + 2 * kLanes> AllPipes() {
    return {&hio_, &evict_[0], &evict_[1], &refill_[0], &refill_[1]};
  }

  /// Turns until nothing moves any more, with a client that reads all there is.
  void Settle() {
    for (int turn = 0; turn < kManyTurns; ++turn) {
      bool moved = Turn();
      for (Pipe* pipe : AllPipes()) {
        moved |= pipe->Read(SIZE_MAX);
        moved |= pipe->Flush();
      }
      if (!moved) return Collect();
    }
    FUZZ_EXPECT(!"work without end");
  }

  /// Between and behind the slots nothing ever changes.
  void ExpectNoStrangeBytes() {
    for (const auto& [id, grant] : grants_) {
      for (uint32_t slot = 0; slot < grant->geometry().slots; ++slot) {
        const auto actual = grant->ActualPiece(slot);
        std::ranges::copy(actual, grant->ExpectedPiece(slot).begin());
      }
      FUZZ_EXPECT(grant->Untouched());
    }
  }

  // --- what came back --------------------------------------------------------------------------------------

  /// Reads again what was sent, as the protocol says that it is to be read.
  void ParseDescriptors() {
    while (!descriptors_broken_) {
      if (descriptors_left_ == 0) {
        StreamHeader header;
        if (hio_.sent.size() - descriptors_at_ < sizeof(header)) return;
        std::memcpy(&header, hio_.sent.data() + descriptors_at_, sizeof(header));
        descriptors_at_ += sizeof(header);
        descriptors_broken_ = !Sound(header, StreamType::kDescriptors) || header.length == 0 ||
                              header.length % sizeof(Descriptor) != 0;
        descriptors_left_ = header.length;
        continue;
      }
      Descriptor descriptor;
      if (hio_.sent.size() - descriptors_at_ < sizeof(descriptor)) return;
      std::memcpy(&descriptor, hio_.sent.data() + descriptors_at_, sizeof(descriptor));
      descriptors_at_ += sizeof(descriptor);
      descriptors_left_ -= sizeof(descriptor);
      const bool evict = descriptor.opcode == static_cast<uint16_t>(Opcode::kEvict);
      (evict ? sent_evicts_ : sent_commands_).entries.push_back({descriptor, now_ns_});
    }
  }

  static bool Sound(const StreamHeader& header, StreamType type) {
    return header.magic == proto::kStreamMagic && header.version == proto::kProtocolVersion &&
           header.type == static_cast<uint16_t>(type);
  }

  /// The whole pieces that were sent for an evict, on any lane.
  bool WasSent(uint64_t sequence, const Descriptor& evict, std::span<const uint8_t> bytes) const {
    for (const Pipe& pipe : evict_) {
      for (size_t at = 0; pipe.sent.size() - at >= sizeof(StreamHeader);) {
        StreamHeader header;
        std::memcpy(&header, pipe.sent.data() + at, sizeof(header));
        at += sizeof(header);
        if (!Sound(header, StreamType::kPayload) || pipe.sent.size() - at < header.length) break;
        const std::span piece(pipe.sent.data() + at, header.length);
        if (header.request_id == sequence && header.generation == evict.generation &&
            header.length == evict.piece_bytes && ChecksumHolds(header, std::as_bytes(piece)) &&
            (bytes.empty() || std::ranges::equal(piece, bytes))) {
          return true;
        }
        at += header.length;
      }
    }
    return false;
  }

  /// Judges all that has been read so far.
  void Collect() {
    ParseDescriptors();
    std::span<const uint8_t> payload;
    while (const auto header = hio_.NextFrame(&payload)) {
      FUZZ_EXPECT(Sound(*header, StreamType::kCompletions));
      FUZZ_EXPECT(header->length > 0 && header->length % sizeof(Completion) == 0);
      for (size_t at = 0; at < payload.size(); at += sizeof(Completion)) {
        Completion completion;
        std::memcpy(&completion, payload.data() + at, sizeof(completion));
        Judge(completion);
      }
      FUZZ_EXPECT(header->request_id == sent_evicts_.finished);
      FUZZ_EXPECT(header->generation == sent_commands_.finished);
    }
    for (Pipe& pipe : refill_) {
      while (const auto header = pipe.NextFrame(&payload)) JudgePiece(*header, payload);
    }
  }

  void Judge(const Completion& completion) {
    const bool evict = completion.opcode == static_cast<uint16_t>(Opcode::kEvict);
    Ledger& queue = evict ? sent_evicts_ : sent_commands_;
    FUZZ_EXPECT(queue.Knows(completion.sequence));
    const Descriptor descriptor = queue.At(completion.sequence).descriptor;
    FUZZ_EXPECT(completion.opcode == descriptor.opcode && completion.slot == descriptor.slot);
    FUZZ_EXPECT(completion.user_data == descriptor.user_data);
    queue.Finish(completion.sequence);
    const auto status = static_cast<Status>(completion.status);
    if (status != Status::kOk) return;
    FUZZ_EXPECT((evict ? sent_commands_ : sent_evicts_).finished >= descriptor.after);
    const auto slot = std::tuple(descriptor.grant_id, lives_[descriptor.grant_id], descriptor.slot);
    if (evict) {
      FUZZ_EXPECT(WasSent(completion.sequence, descriptor, {}));
      FUZZ_EXPECT(descriptor.generation > stored_[slot].descriptor.generation);
      stored_[slot] = {descriptor, completion.sequence};
      return;
    }
    // Nothing else may have been evicted into the slot before this has finished.
    FUZZ_EXPECT(stored_[slot].descriptor.generation == descriptor.generation && descriptor.generation != 0);
    if (descriptor.opcode != static_cast<uint16_t>(Opcode::kRefill)) return;
    FUZZ_EXPECT(stored_[slot].descriptor.tenant_tag == descriptor.tenant_tag);
    served_[completion.sequence] = stored_[slot];
    JudgeServed(completion.sequence);
  }

  void JudgePiece(const StreamHeader& header, std::span<const uint8_t> payload) {
    FUZZ_EXPECT(Sound(header, StreamType::kPayload) && ChecksumHolds(header, std::as_bytes(payload)));
    FUZZ_EXPECT((header.checksum != 0) == checksums_);
    FUZZ_EXPECT(pieces_.emplace(header.request_id, Bytes(payload.begin(), payload.end())).second);
    const Ledger::Entry* refill = Sent(sent_commands_, header.request_id);
    FUZZ_EXPECT(refill != nullptr && refill->descriptor.opcode == static_cast<uint16_t>(Opcode::kRefill));
    FUZZ_EXPECT(header.length == refill->descriptor.piece_bytes);
    FUZZ_EXPECT(header.generation == refill->descriptor.generation);
    // The completion of a piece that has gone out whole is never anything but ok; it may still be to come.
    FUZZ_EXPECT(served_.contains(header.request_id) || !refill->done);
    JudgeServed(header.request_id);
  }

  /// Once both the completion and the piece have come: never other bytes than those that were stored.
  void JudgeServed(uint64_t sequence) {
    const auto served = served_.find(sequence);
    const auto piece = pieces_.find(sequence);
    if (served == served_.end() || piece == pieces_.end()) return;
    FUZZ_EXPECT(WasSent(served->second.sequence, served->second.descriptor, piece->second));
  }

  // --- the end ---------------------------------------------------------------------------------------------

  void Finish() {
    Settle();
    // Whatever was accepted ends by its deadline, and makes room for what waits behind it.
    for (uint64_t before = UINT64_MAX; !fault_ && before != Done();) {
      before = Done();
      now_ns_ += kForeverNs;
      Settle();
    }
    if (!fault_ && hio_.open()) {
      ExpectAllFinished();
      ExpectSoundLanes();
    }
    session_->UnwatchWith(epoll_.get());
    session_->Close(now_ns_);
    FUZZ_EXPECT(tally_.stored_slots == 0);
    ExpectNoStrangeBytes();
    session_.reset();
  }

  void ExpectAllFinished() {
    FUZZ_EXPECT(!session_->Unfinished());
    FUZZ_EXPECT(sent_evicts_.Unfinished() == 0 && sent_commands_.Unfinished() == 0);
    for (const auto& [sequence, evict] : served_) FUZZ_EXPECT(pieces_.contains(sequence));
    for (const auto& [sequence, bytes] : pieces_) FUZZ_EXPECT(served_.contains(sequence));
  }
  /// A session that is still served has been sent nothing that has to end it, and has all its lanes.
  void ExpectSoundLanes() const {
    const uint64_t accepted = sent_evicts_.entries.size();
    for (const Pipe& pipe : evict_) {
      bool stands = false;
      for (size_t at = 0; !stands && pipe.sent.size() - at >= sizeof(StreamHeader);) {
        StreamHeader header;
        std::memcpy(&header, pipe.sent.data() + at, sizeof(header));
        at += sizeof(header);
        FUZZ_EXPECT(Sound(header, StreamType::kPayload) && header.length <= proto::kMaxPieceBytes);
        FUZZ_EXPECT(header.request_id != 0 && header.request_id <= accepted + kWindow);
        // A piece that is too early stands there, and so does what is behind it: also the end.
        stands = header.request_id > accepted;
        if (pipe.sent.size() - at < header.length) break;
        at += header.length;
      }
      FUZZ_EXPECT(stands || !pipe.welcomed || !pipe.ended);
    }
    for (const Pipe& pipe : refill_) FUZZ_EXPECT(!pipe.welcomed || !pipe.ended);
    FUZZ_EXPECT(!descriptors_broken_ && !hio_.ended);
  }

  uint64_t Done() const { return sent_evicts_.done + sent_commands_.done; }

  struct Stored {
    Descriptor descriptor{};
    uint64_t sequence = 0;
  };

  const bool checksums_;
  ShardTally tally_;
  Grants grants_;
  UniqueFd epoll_;
  std::unique_ptr<StreamSession> session_;
  Pipe hio_;
  Pipe evict_[kLanes];
  Pipe refill_[kLanes];
  Bytes rest_[kLanes];
  uint64_t now_ns_ = 1'000'000'000;
  uint64_t next_piece_ = 1;
  std::optional<SessionFault> fault_;

  size_t descriptors_at_ = 0;
  uint32_t descriptors_left_ = 0;
  bool descriptors_broken_ = false;
  Ledger sent_evicts_;
  Ledger sent_commands_;
  std::map<uint32_t, uint32_t> lives_;
  std::map<std::tuple<uint32_t, uint32_t, uint32_t>, Stored> stored_;  ///< by grant, its life, and slot
  std::map<uint64_t, Stored> served_;                                  ///< refills that ended with ok
  std::map<uint64_t, Bytes> pieces_;                                   ///< that came, by sequence
};

}  // namespace

void PlayStream(std::span<const uint8_t> input) {
  Script script(input);
  const bool checksums = script.Byte() & 1;
  HostileStream(checksums).Play(script);
}

}  // namespace kvss::fuzz
