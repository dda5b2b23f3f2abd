#pragma once

#include <sys/types.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/unique_fd.h"
#include "proto/kvss_proto.h"

namespace kvss {

/// What epoll has said of a stream. Who waits with an epoll stores it here; who moves bytes takes it back.
struct LaneEvents {
  bool readable = true;
  bool writable = true;

  void Note(uint32_t epoll_events);
};

/// Enters a stream into an epoll, edge-triggered; the data of its events is the LaneEvents.
bool WatchLane(int epoll_fd, int fd, LaneEvents* lane);

/// Bytes of one lane that are moved before others have their turn. A piece may be a gigabyte, and a peer may
/// send, or take, as fast as this side does: without a bound the kernel would never say that there is no
/// more.
constexpr size_t kLaneBytesPerTurn = 4u << 20;

/// What came of moving bytes over a stream that never blocks.
enum class StreamState : uint8_t {
  kDone,     ///< all of it
  kPartial,  ///< what the kernel took or had; ask again when the stream is ready
  kEnded,    ///< the other side has gone
};

/// Receives until `bytes` is full, counting up in `*have`.
StreamState ReceiveInto(int fd, std::span<std::byte> bytes, size_t* have);

/// Sends a header and a payload as one run of bytes, counting up in `*sent` over both.
StreamState SendFrame(int fd, std::span<const std::byte> header, std::span<const std::byte> payload,
                      size_t* sent);

/// A frame with payload that is to be sent; the payload stays where it is.
struct OutFrame {
  proto::StreamHeader header{};
  const std::byte* payload = nullptr;
  size_t sent = 0;  ///< bytes of header and payload that the kernel has taken
};

/// Sends frames from the front of a queue, several with one call, and takes those out that have gone whole:
/// `finished` is called with the header of each, after it has left the queue. At most `limit` frames, and
/// little more than kLaneBytesPerTurn. kPartial where the kernel takes no more, kDone otherwise.
template <typename Finished>
StreamState SendFrames(int fd, std::deque<OutFrame>& queue, size_t limit, Finished&& finished);

/// One call of SendFrames to the kernel: answers with the bytes that it took, below 0 as sendmsg does.
ssize_t SendSome(int fd, const std::deque<OutFrame>& queue, size_t frames);

/// The header of a frame of this side.
proto::StreamHeader MakeHeader(proto::StreamType type, uint32_t length, uint64_t request_id,
                               uint64_t generation);

/// Whether a header that came in is of this protocol and of one of the wanted type, and no longer than
/// `max_length`.
bool ValidHeader(const proto::StreamHeader& header, proto::StreamType type, uint32_t max_length);

/// Whether what came is what a header's checksum says; true where it says nothing.
bool ChecksumHolds(const proto::StreamHeader& header, std::span<const std::byte> payload);

/// Sets what every lane and every control connection wants: no delay for small frames, buffers that fit, and
/// that the kernel asks whether the other side is still there.
void TuneStream(int fd);

/// Bytes that wait to be sent, in order.
class OutBuffer {
 public:
  void Append(const void* data, size_t bytes);
  /// Sends what the kernel takes.
  StreamState Flush(int fd);
  bool empty() const { return at_ == bytes_.size(); }
  size_t size() const { return bytes_.size() - at_; }
  /// Memory that it holds: less than three times the most that ever waited.
  size_t footprint() const { return bytes_.capacity(); }

 private:
  std::vector<std::byte> bytes_;
  size_t at_ = 0;
};

/// Appends a frame of entries.
template <typename Entry>
void AppendEntries(OutBuffer& out, proto::StreamType type, const Entry* entries, size_t count,
                   uint64_t request_id = 0, uint64_t generation = 0) {
  const proto::StreamHeader header =
      MakeHeader(type, static_cast<uint32_t>(count * sizeof(Entry)), request_id, generation);
  out.Append(&header, sizeof(header));
  out.Append(entries, count * sizeof(Entry));
}

/// Reads entries of one type that travel in frames, in bounded steps and without waiting for whole frames.
template <typename Entry>
class EntryReader {
 public:
  explicit EntryReader(proto::StreamType type) : type_(type) {}

  enum class Step : uint8_t { kEntry, kWait, kEnded, kCorrupt };

  /// Takes the next entry. kWait where it has not come yet.
  Step Next(int fd, Entry* entry) {
    if (left_ == 0) {
      const StreamState state = ReceiveInto(fd, std::as_writable_bytes(std::span(&header_, 1)), &have_);
      if (state != StreamState::kDone) return state == StreamState::kPartial ? Step::kWait : Step::kEnded;
      have_ = 0;
      // A frame of nothing is none: whoever sent them without end would never be waited for.
      if (!ValidHeader(header_, type_, UINT32_MAX) || header_.length == 0 ||
          header_.length % sizeof(Entry) != 0)
        return Step::kCorrupt;
      left_ = header_.length;
    }
    const StreamState state = ReceiveInto(fd, std::as_writable_bytes(std::span(&entry_, 1)), &have_);
    if (state != StreamState::kDone) return state == StreamState::kPartial ? Step::kWait : Step::kEnded;
    have_ = 0;
    left_ -= sizeof(Entry);
    *entry = entry_;
    return Step::kEntry;
  }

  /// Header of the frame that the last entry came in.
  const proto::StreamHeader& header() const { return header_; }

 private:
  const proto::StreamType type_;
  proto::StreamHeader header_{};
  Entry entry_{};
  size_t have_ = 0;
  uint32_t left_ = 0;
};

template <typename Finished>
StreamState SendFrames(int fd, std::deque<OutFrame>& queue, size_t limit, Finished&& finished) {
  size_t bytes = 0;
  while (limit > 0 && bytes < kLaneBytesPerTurn && !queue.empty()) {
    const ssize_t taken = SendSome(fd, queue, limit);
    if (taken < 0) {
      if (errno == EINTR) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK ? StreamState::kPartial : StreamState::kEnded;
    }
    bytes += static_cast<size_t>(taken);
    for (auto left = static_cast<size_t>(taken); left > 0 && !queue.empty();) {
      OutFrame& frame = queue.front();
      const size_t wanted = sizeof(frame.header) + frame.header.length - frame.sent;
      if (left < wanted) {
        frame.sent += left;
        break;
      }
      left -= wanted;
      --limit;
      const proto::StreamHeader header = frame.header;
      queue.pop_front();
      finished(header);
    }
  }
  return StreamState::kDone;
}

}  // namespace kvss
