#include "link/stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/crc32c.h"
#include "base/step.h"

namespace kvss {

void LaneEvents::Note(uint32_t epoll_events) {
  readable |= (epoll_events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) != 0;
  writable |= (epoll_events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
}

bool WatchLane(int epoll_fd, int fd, LaneEvents* lane) {
  epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data = {.ptr = lane}};
  return ::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

StreamState ReceiveInto(int fd, std::span<std::byte> bytes, size_t* have) {
  while (*have < bytes.size()) {
    const ssize_t received = ::recv(fd, bytes.data() + *have, bytes.size() - *have, MSG_DONTWAIT);
    if (received > 0) {
      *have += static_cast<size_t>(received);
      KVSS_STEP("bytes received");
    } else if (received < 0 && errno == EINTR) {
      continue;
    } else {
      return received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? StreamState::kPartial
                                                                       : StreamState::kEnded;
    }
  }
  return StreamState::kDone;
}

StreamState SendFrame(int fd, std::span<const std::byte> header, std::span<const std::byte> payload,
                      size_t* sent) {
  const size_t total = header.size() + payload.size();
  while (*sent < total) {
    iovec parts[2];
    size_t count = 0;
    if (*sent < header.size()) {
      parts[count++] = {const_cast<std::byte*>(header.data()) + *sent, header.size() - *sent};
    }
    const size_t from = *sent > header.size() ? *sent - header.size() : 0;
    if (from < payload.size())
      parts[count++] = {const_cast<std::byte*>(payload.data()) + from, payload.size() - from};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = count;
    const ssize_t written = ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (written >= 0) {
      *sent += static_cast<size_t>(written);
      KVSS_STEP("bytes sent");
    } else if (errno != EINTR) {
      return errno == EAGAIN || errno == EWOULDBLOCK ? StreamState::kPartial : StreamState::kEnded;
    }
  }
  return StreamState::kDone;
}

ssize_t SendSome(int fd, const std::deque<OutFrame>& queue, size_t frames) {
  // Sixteen frames of a header and a payload: enough to make small pieces cheap, and large ones fill the
  // socket anyway.
  std::array<iovec, 32> parts;
  size_t count = 0;
  size_t room = kLaneBytesPerTurn;
  for (const OutFrame& frame : queue) {
    if (frames-- == 0 || count + 2 > parts.size() || room == 0) break;
    constexpr size_t kHeader = sizeof(frame.header);
    auto* header = const_cast<std::byte*>(reinterpret_cast<const std::byte*>(&frame.header));
    if (frame.sent < kHeader) parts[count++] = {header + frame.sent, kHeader - frame.sent};
    const size_t from = frame.sent > kHeader ? frame.sent - kHeader : 0;
    const size_t bytes = std::min<size_t>(frame.header.length - from, room);
    parts[count++] = {const_cast<std::byte*>(frame.payload) + from, bytes};
    room -= bytes;
  }
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = count;
  const ssize_t taken = ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  KVSS_STEP("part of the pieces sent");
  return taken;
}

proto::StreamHeader MakeHeader(proto::StreamType type, uint32_t length, uint64_t request_id,
                               uint64_t generation) {
  proto::StreamHeader header{};
  header.magic = proto::kStreamMagic;
  header.version = proto::kProtocolVersion;
  header.type = static_cast<uint16_t>(type);
  header.length = length;
  header.request_id = request_id;
  header.generation = generation;
  return header;
}

bool ValidHeader(const proto::StreamHeader& header, proto::StreamType type, uint32_t max_length) {
  return header.magic == proto::kStreamMagic && header.version == proto::kProtocolVersion &&
         header.type == static_cast<uint16_t>(type) && header.length <= max_length;
}

bool ChecksumHolds(const proto::StreamHeader& header, std::span<const std::byte> payload) {
  return header.checksum == 0 || header.checksum == FrameChecksum(payload);
}

namespace {

constexpr int kUnixSendBytes = 1 << 20;
constexpr int kTcpReceiveBytes = 2 << 20;

/// The most that a process without privileges may ask for a receive buffer.
int ReceiveLimit() {
  static const int limit = [] {
    std::ifstream file("/proc/sys/net/core/rmem_max");
    int bytes = 0;
    return file >> bytes ? bytes : 0;
  }();
  return limit;
}

void SizeBuffers(int fd) {
  int family = 0;
  socklen_t length = sizeof(family);
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) != 0) return;
  const auto set = [fd](int option, int bytes) {
    return ::setsockopt(fd, SOL_SOCKET, option, &bytes, sizeof(bytes)) == 0;
  };
  if (family == AF_UNIX) {
    // A Unix socket does not grow its buffer by itself as TCP does, and says that it can be written only when
    // three quarters of it are empty: with the small one that it has, the two sides would take turns.
    if (!set(SO_SNDBUFFORCE, kUnixSendBytes)) (void)set(SO_SNDBUF, kUnixSendBytes);
    return;
  }
  // TCP grows its receive buffer to tens of megabytes, which leave the cache and are so long on their way
  // that the sender begins to repeat itself: less than half the throughput on loopback, for seconds. These
  // four (the kernel doubles the number) are a window for 400 Gbit/s over 80 us. A buffer that was asked for
  // does not grow any more: better none than a small one.
  if (!set(SO_RCVBUFFORCE, kTcpReceiveBytes) && ReceiveLimit() >= kTcpReceiveBytes) {
    (void)set(SO_RCVBUF, kTcpReceiveBytes);
  }
}

}  // namespace

void TuneStream(int fd) {
  const int on = 1;
  // Refused for Unix sockets, which neither delay nor lose the other side unnoticed.
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  // A host that vanishes says no goodbye: after half a minute without a sign of it, it is gone.
  const int idle_s = 15;
  const int interval_s = 5;
  const int probes = 3;
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
  (void)::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  SizeBuffers(fd);
}

void OutBuffer::Append(const void* data, size_t bytes) {
  // What has been sent goes, also while a slow reader sees to it that something always waits; not each time,
  // or the rest would be moved for every few bytes.
  if (at_ >= bytes_.size() - at_) {
    bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<ptrdiff_t>(at_));
    at_ = 0;
  }
  const auto* from = static_cast<const std::byte*>(data);
  bytes_.insert(bytes_.end(), from, from + bytes);
}

StreamState OutBuffer::Flush(int fd) {
  if (empty()) return StreamState::kDone;
  const std::span<const std::byte> rest(bytes_.data() + at_, bytes_.size() - at_);
  size_t sent = 0;
  const StreamState state = SendFrame(fd, rest, {}, &sent);
  at_ += sent;
  return state;
}

}  // namespace kvss
