#include "link/stream_listener.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/clock.h"
#include "link/stream.h"

namespace kvss {
namespace {

using proto::Status;

struct SocketAddress {
  int family = AF_UNSPEC;
  sockaddr_storage storage{};
  socklen_t length = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

std::string NameOf(const StreamAddress& address) {
  return address.port ? address.host_or_path + ":" + std::to_string(*address.port) : address.host_or_path;
}

Result<SocketAddress> Resolve(const StreamAddress& address) {
  SocketAddress out;
  if (!address.port) {
    sockaddr_un path{};
    path.sun_family = AF_UNIX;
    if (address.host_or_path.empty() || address.host_or_path.size() >= sizeof(path.sun_path)) {
      return Error{Status::kNotAllowed, "'" + address.host_or_path + "' is no path for a socket"};
    }
    std::ranges::copy(address.host_or_path, path.sun_path);
    out.family = AF_UNIX;
    out.length = sizeof(path);
    std::memcpy(&out.storage, &path, sizeof(path));
    return out;
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(*address.port);
  const int failure = ::getaddrinfo(address.host_or_path.c_str(), port.c_str(), &hints, &found);
  if (failure != 0) return Error{Status::kNotAllowed, NameOf(address) + ": " + ::gai_strerror(failure)};
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  out.family = found->ai_family;
  out.length = found->ai_addrlen;
  std::memcpy(&out.storage, found->ai_addr, found->ai_addrlen);
  return out;
}

/// Waits until a socket is ready or the time is up.
bool WaitFor(int fd, short events, uint64_t deadline_ns) {
  for (;;) {
    const uint64_t now = MonotonicNanos();
    if (now >= deadline_ns) return false;
    pollfd wait{fd, events, 0};
    const int ready = ::poll(&wait, 1, static_cast<int>((deadline_ns - now) / 1'000'000 + 1));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

}  // namespace

Result<StreamListener> StreamListener::Listen(const StreamAddress& address) {
  auto resolved = Resolve(address);
  if (!resolved.ok()) return resolved.error();
  const SocketAddress& at = resolved.value();
  UniqueFd fd(::socket(at.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return SystemError(Status::kLimitExceeded, "socket");
  const int on = 1;
  if (at.family != AF_UNIX) (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  // Before bind, which gives the file of a Unix socket the mode of the socket.
  (void)::fchmod(fd.get(), 0600);
  // The control socket's lock guards this path as well, so what is there is a dead daemon's.
  if (at.family == AF_UNIX) ::unlink(address.host_or_path.c_str());
  const int bound = ::bind(fd.get(), at.get(), at.length);
  if (bound != 0 || ::listen(fd.get(), 128) != 0) {
    return SystemError(Status::kNotAllowed, "cannot listen on " + NameOf(address));
  }
  uint16_t port = 0;
  if (at.family != AF_UNIX) {
    sockaddr_storage actual{};
    socklen_t length = sizeof(actual);
    (void)::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&actual), &length);
    port = ntohs(actual.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&actual)->sin6_port
                                              : reinterpret_cast<sockaddr_in*>(&actual)->sin_port);
  }
  return StreamListener(std::move(fd), port);
}

UniqueFd StreamListener::Accept() {
  UniqueFd accepted(::accept4(fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (accepted.valid()) TuneStream(accepted.get());
  return accepted;
}

Result<UniqueFd> ConnectLane(const StreamAddress& address, const proto::LaneHello& hello, int timeout_ms) {
  const uint64_t deadline = MonotonicNanos() + static_cast<uint64_t>(std::max(timeout_ms, 1)) * 1'000'000;
  const std::string name = NameOf(address);
  auto resolved = Resolve(address);
  if (!resolved.ok()) return resolved.error();
  const SocketAddress& to = resolved.value();
  UniqueFd fd(::socket(to.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return SystemError(Status::kLimitExceeded, "socket");
  TuneStream(fd.get());
  const Error late{Status::kDeadline, name + " did not answer within " + std::to_string(timeout_ms) + " ms"};
  if (::connect(fd.get(), to.get(), to.length) != 0) {
    if (errno != EINPROGRESS)
      return SystemError(Status::kNotAllowed, "cannot connect to a KVSS daemon at " + name);
    if (!WaitFor(fd.get(), POLLOUT, deadline)) return late;
    socklen_t length = sizeof(errno);
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &errno, &length) != 0 || errno != 0) {
      return SystemError(Status::kNotAllowed, "cannot connect to a KVSS daemon at " + name);
    }
  }
  size_t sent = 0;
  if (SendFrame(fd.get(), std::as_bytes(std::span(&hello, 1)), {}, &sent) != StreamState::kDone) {
    return Error{Status::kNotAllowed, name + " does not take a connection"};
  }
  proto::LaneWelcome welcome{};
  for (size_t have = 0;;) {
    switch (ReceiveInto(fd.get(), std::as_writable_bytes(std::span(&welcome, 1)), &have)) {
      case StreamState::kPartial:
        if (!WaitFor(fd.get(), POLLIN, deadline)) return late;
        continue;
      case StreamState::kEnded:
        return Error{Status::kNotAllowed, name + " closed the connection before it was welcome"};
      case StreamState::kDone:
        break;
    }
    break;
  }
  if (welcome.magic != proto::kLaneMagic) return Error{Status::kBadFrame, name + " is not a KVSS daemon"};
  if (welcome.version != proto::kProtocolVersion) {
    return Error{Status::kBadVersion, name + " speaks protocol version " + std::to_string(welcome.version)};
  }
  if (welcome.status != static_cast<uint16_t>(Status::kOk)) {
    return Error{static_cast<Status>(welcome.status), name + " refused the lane"};
  }
  return fd;
}

void AnswerLane(int fd, Status status) {
  proto::LaneWelcome welcome{};
  welcome.magic = proto::kLaneMagic;
  welcome.version = proto::kProtocolVersion;
  welcome.status = static_cast<uint16_t>(status);
  size_t sent = 0;
  (void)SendFrame(fd, std::as_bytes(std::span(&welcome, 1)), {}, &sent);
}

}  // namespace kvss
