#include "link/stream_listener.h"

#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/step.h"
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

Result<SocketAddress> Resolve(const StreamAddress& address, int flags = 0) {
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
  hints.ai_flags = AI_NUMERICSERV | flags;
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
  KVSS_STEP("stream accepted");
  return accepted;
}

Result<LaneOpening> LaneOpening::Begin(const StreamAddress& address, const proto::LaneHello& hello) {
  std::string name = NameOf(address);
  auto resolved = Resolve(address, AI_NUMERICHOST);
  if (!resolved.ok()) return resolved.error();
  const SocketAddress& to = resolved.value();
  UniqueFd fd(::socket(to.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return SystemError(Status::kLimitExceeded, "socket");
  TuneStream(fd.get());
  if (::connect(fd.get(), to.get(), to.length) != 0 && errno != EINPROGRESS) {
    return SystemError(Status::kNotAllowed, "cannot connect to a KVSS daemon at " + name);
  }
  return LaneOpening(std::move(name), std::move(fd), hello);
}

Result<LaneOpening::Wait> LaneOpening::Continue() {
  if (sent_ < sizeof(hello_)) {
    socklen_t length = sizeof(errno);
    if (::getsockopt(fd(), SOL_SOCKET, SO_ERROR, &errno, &length) != 0 || errno != 0) {
      return SystemError(Status::kNotAllowed, "cannot connect to a KVSS daemon at " + name_);
    }
    switch (SendFrame(fd(), std::as_bytes(std::span(&hello_, 1)), {}, &sent_)) {
      case StreamState::kPartial:
        return Wait::kWritable;
      case StreamState::kEnded:
        return Error{Status::kNotAllowed, name_ + " does not take a connection"};
      case StreamState::kDone:
        return Wait::kReadable;
    }
  }
  switch (ReceiveInto(fd(), std::as_writable_bytes(std::span(&welcome_, 1)), &have_)) {
    case StreamState::kPartial:
      return Wait::kReadable;
    case StreamState::kEnded:
      return Error{Status::kNotAllowed, name_ + " closed the connection before it was welcome"};
    case StreamState::kDone:
      break;
  }
  if (welcome_.magic != proto::kLaneMagic) return Error{Status::kBadFrame, name_ + " is not a KVSS daemon"};
  if (welcome_.version != proto::kProtocolVersion) {
    return Error{Status::kBadVersion, name_ + " speaks protocol version " + std::to_string(welcome_.version)};
  }
  if (welcome_.status != static_cast<uint16_t>(Status::kOk)) {
    return Error{static_cast<Status>(welcome_.status), name_ + " refused the lane"};
  }
  return Wait::kNothing;
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
