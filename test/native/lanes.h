#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "base/unique_fd.h"
#include "harness.h"
#include "link/stream.h"

/// What the tests of lanes share: the far ends of lanes, and memory that shows who has written to it.
namespace kvss::test {

/// Long enough for any machine: only a broken program waits for it to pass.
constexpr int kPatienceMs = 20'000;

using Bytes = std::vector<std::byte>;

/// Bytes that no two pieces share.
inline Bytes PieceOf(uint64_t key, size_t bytes) {
  std::vector<uint64_t> words(bytes / sizeof(uint64_t) + 1);
  uint64_t state = key * 0x9e3779b97f4a7c15 + 1;
  for (uint64_t& word : words) {
    state = state * 6364136223846793005 + 1442695040888963407;
    word = state ^ state >> 32;
  }
  Bytes piece(bytes);
  std::memcpy(piece.data(), words.data(), bytes);
  return piece;
}

struct Frame {
  proto::StreamHeader header{};
  Bytes body;

  template <typename Entry>
  std::vector<Entry> Entries() const {
    CHECK_EQ(body.size() % sizeof(Entry), 0u);
    std::vector<Entry> entries(body.size() / sizeof(Entry));
    std::memcpy(entries.data(), body.data(), body.size());
    return entries;
  }
};

inline Bytes BytesOf(const proto::StreamHeader& header, std::span<const std::byte> body = {}) {
  Bytes bytes(sizeof(header) + body.size());
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::ranges::copy(body, bytes.begin() + sizeof(header));
  return bytes;
}

/// What these tests give an operation.
inline uint64_t GenerationOf(uint64_t sequence) { return 1000 + sequence; }

/// A frame with one piece.
inline Bytes PieceFrame(uint64_t sequence, uint64_t generation, std::span<const std::byte> piece,
                        uint32_t checksum = 0) {
  proto::StreamHeader header =
      MakeHeader(proto::StreamType::kPayload, static_cast<uint32_t>(piece.size()), sequence, generation);
  header.checksum = checksum;
  return BytesOf(header, piece);
}

inline void CheckPiece(const Frame& frame, uint64_t sequence, const Bytes& piece) {
  CHECK_EQ(frame.header.magic, proto::kStreamMagic);
  CHECK_EQ(frame.header.version, proto::kProtocolVersion);
  CHECK_EQ(frame.header.type, static_cast<uint16_t>(proto::StreamType::kPayload));
  CHECK_EQ(frame.header.request_id, sequence);
  CHECK_EQ(frame.header.generation, GenerationOf(sequence));
  CHECK(frame.body == piece);
}

/// How an operation ended, for those that do not see its bytes.
struct Move {
  proto::Opcode opcode;
  uint64_t sequence;
  proto::Status status;
  bool operator==(const Move&) const = default;
};
using Moves = std::vector<Move>;
inline std::ostream& operator<<(std::ostream& out, const Move& move) {
  return out << Show(move.opcode) << "/" << move.sequence << "/" << Show(move.status);
}
inline std::ostream& operator<<(std::ostream& out, const Moves& moves) {
  for (const Move& move : moves) out << move << " ";
  return out;
}

/// A frame of entries.
template <typename Entry>
Bytes EntryFrame(proto::StreamType type, const std::vector<Entry>& entries, uint64_t request_id = 0,
                 uint64_t generation = 0) {
  const auto body = std::as_bytes(std::span(entries));
  return BytesOf(MakeHeader(type, static_cast<uint32_t>(body.size()), request_id, generation), body);
}

/// The other side of a lane, in the hands of a test.
class FarEnd {
 public:
  FarEnd() = default;

  /// Makes a connection; `*near` is the end for the lane. `near_bytes`: about what the kernel takes of what
  /// that end sends before it is read, `far_bytes` likewise for this end; 0 for as much as it likes.
  static FarEnd Of(UniqueFd* near, int near_bytes = 0, int far_bytes = 0) {
    int ends[2];
    CHECK_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    *near = UniqueFd(ends[0]);
    FarEnd far;
    far.fd_ = UniqueFd(ends[1]);
    if (near_bytes > 0) LimitBuffer(ends[0], near_bytes);
    if (far_bytes > 0) LimitBuffer(ends[1], far_bytes);
    return far;
  }

  /// Sends all of it, and waits where the lane does not read.
  void Send(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const size_t taken = SendSome(bytes);
      bytes = bytes.subspan(taken);
      if (taken == 0) Await(POLLOUT);
    }
  }
  /// Sends what the kernel takes; nothing where the lane has gone.
  size_t SendSome(std::span<const std::byte> bytes) {
    const ssize_t taken = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN && errno != EWOULDBLOCK) gone_ = true;
    return taken < 0 ? 0 : static_cast<size_t>(taken);
  }

  /// Reads what has come, at most so many bytes, and answers how many there were.
  size_t Read(size_t limit = SIZE_MAX) {
    size_t total = 0;
    while (total < limit) {
      constexpr size_t kMost = 16 * 1024;
      const size_t have = in_.size();
      const size_t wanted = std::min(limit - total, kMost);
      in_.resize(have + wanted);
      const ssize_t got = ::recv(fd_.get(), in_.data() + have, wanted, MSG_DONTWAIT);
      in_.resize(have + static_cast<size_t>(std::max<ssize_t>(got, 0)));
      if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) gone_ = true;
      if (got <= 0) break;
      total += static_cast<size_t>(got);
    }
    return total;
  }

  /// The next frame, where all of it has been read.
  std::optional<Frame> Next() {
    Frame frame;
    if (in_.size() < sizeof(frame.header)) return std::nullopt;
    std::memcpy(&frame.header, in_.data(), sizeof(frame.header));
    const size_t whole = sizeof(frame.header) + frame.header.length;
    if (in_.size() < whole) return std::nullopt;
    frame.body.assign(in_.begin() + sizeof(frame.header), in_.begin() + static_cast<ptrdiff_t>(whole));
    in_.erase(in_.begin(), in_.begin() + static_cast<ptrdiff_t>(whole));
    return frame;
  }
  /// Waits for more and reads it. Answers false at the end.
  bool AwaitMore() {
    while (Read() == 0) {
      if (gone_) return false;
      Await(POLLIN);
    }
    return true;
  }
  /// The next frame; waits for it.
  Frame AwaitFrame() {
    for (;;) {
      if (auto frame = Next()) return std::move(*frame);
      CHECK(AwaitMore());
    }
  }

  /// Whether nothing has come that was not read.
  bool Silent() {
    Read();
    return in_.empty();
  }
  /// Bytes of a frame that has not come whole.
  size_t pending() const { return in_.size(); }
  /// Whether the lane has been seen to be closed.
  bool gone() const { return gone_; }
  int fd() const { return fd_.get(); }
  void Close() { fd_.Reset(); }

 private:
  static void LimitBuffer(int fd, int bytes) {
    CHECK_EQ(::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)), 0);
  }
  void Await(short events) const {
    pollfd wait{fd_.get(), events, 0};
    CHECK_EQ(::poll(&wait, 1, kPatienceMs), 1);
  }

  UniqueFd fd_;
  Bytes in_;
  bool gone_ = false;
};

/// Equal places of one piece each with something recognisable in and around all of them.
class Arena {
 public:
  static constexpr size_t kMarginBytes = 4096;
  static constexpr size_t kGapBytes = 64;

  Arena(uint32_t places, uint32_t piece_bytes)
      : places_(places),
        piece_bytes_(piece_bytes),
        bytes_(PieceOf(0xca9a5e, 2 * kMarginBytes + places * stride())),
        wanted_(bytes_) {}

  uint32_t places() const { return places_; }
  uint32_t piece_bytes() const { return piece_bytes_; }
  size_t stride() const { return piece_bytes_ + kGapBytes; }
  std::byte* data() { return bytes_.data() + kMarginBytes; }
  std::byte* place(uint32_t place) { return data() + place * stride(); }

  /// Writes a piece, as a runtime does before it is evicted.
  void Write(uint32_t place, const Bytes& piece) {
    std::ranges::copy(piece, this->place(place));
    Want(place, piece);
  }
  /// From now on this is what has to be at a place.
  void Want(uint32_t place, const Bytes& piece) {
    std::ranges::copy(piece, wanted_.begin() + static_cast<ptrdiff_t>(kMarginBytes + place * stride()));
  }
  /// Anything may be at a place.
  void Ignore(uint32_t place) {
    const std::byte* from = this->place(place);
    Want(place, {from, from + piece_bytes_});
  }
  /// Throws where any byte, in a place or outside, is not what it has to be.
  void Check() const {
    const auto [at, wanted] = std::ranges::mismatch(bytes_, wanted_);
    if (at == bytes_.end()) return;
    const auto offset = at - bytes_.begin() - static_cast<ptrdiff_t>(kMarginBytes);
    FAIL("byte " + std::to_string(offset) + " of the memory is not what it has to be; a place has " +
         std::to_string(piece_bytes_) + " bytes and its stride " + std::to_string(stride()));
  }

 private:
  const uint32_t places_;
  const uint32_t piece_bytes_;
  Bytes bytes_;
  Bytes wanted_;
};

}  // namespace kvss::test
