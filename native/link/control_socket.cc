#include "link/control_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/step.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace kvss {
namespace {

using proto::Status;

Result<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return Error{Status::kNotAllowed, "the socket path '" + path + "' must have 1 to " +
                                          std::to_string(sizeof(address.sun_path) - 1) + " characters"};
  }
  std::ranges::copy(path, address.sun_path);
  return address;
}

Result<UniqueFd> MakeSocket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return SystemError(Status::kLimitExceeded, "socket");
  return fd;
}

std::string LockPath(const std::string& path) { return path + ".lock"; }

/// Takes the lock beside a socket, or says that a live daemon has it.
Result<UniqueFd> TakeLock(const std::string& path) {
  const std::string lock_path = LockPath(path);
  for (;;) {
    UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock.valid()) return SystemError(Status::kNotAllowed, "cannot open " + lock_path);
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      return Error{Status::kNotAllowed, "another KVSS daemon is already listening at " + path};
    }
    // A daemon that ended may have removed the name between our open and our lock; a lock on a file without a
    // name keeps nobody out.
    struct stat held {};
    struct stat named {};
    if (::fstat(lock.get(), &held) == 0 && ::stat(lock_path.c_str(), &named) == 0 &&
        held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
      return lock;
    }
  }
}

}  // namespace

Result<ControlSocket> ControlSocket::Connect(const std::string& path) {
  auto address = AddressOf(path);
  if (!address.ok()) return address.error();
  auto fd = MakeSocket();
  if (!fd.ok()) return fd.error();
  if (::connect(fd.value().get(), reinterpret_cast<sockaddr*>(&address.value()), sizeof(sockaddr_un)) != 0) {
    return SystemError(Status::kNotAllowed, "cannot connect to a KVSS daemon at " + path);
  }
  return ControlSocket(std::move(fd.value()));
}

Outcome ControlSocket::Send(const uint8_t* bytes, size_t length, const std::vector<UniqueFd>& descriptors) {
  if (length > proto::kMaxFrameBytes || descriptors.size() > proto::kMaxFrameDescriptors) {
    return Error{Status::kLimitExceeded,
                 "a control frame of " + std::to_string(length) + " bytes is too long"};
  }
  iovec part{const_cast<uint8_t*>(bytes), length};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * proto::kMaxFrameDescriptors)]{};
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptors.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
    int* out = reinterpret_cast<int*>(CMSG_DATA(header));
    for (const UniqueFd& descriptor : descriptors) *out++ = descriptor.get();
  }
  ssize_t sent;
  do {
    sent = ::sendmsg(fd(), &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  KVSS_STEP("control frame sent");
  // Frames are small and answers are awaited one by one: a stream that takes only a part of one has a peer
  // that does not read.
  if (sent >= 0 && static_cast<size_t>(sent) < length) {
    return Error{Status::kLimitExceeded, "cannot send a control frame: the peer does not read"};
  }
  if (sent < 0) {
    const bool full = errno == EAGAIN || errno == EWOULDBLOCK;
    return SystemError(full ? Status::kLimitExceeded : Status::kNotAllowed, "cannot send a control frame");
  }
  return Nothing{};
}

ControlSocket::Event ControlSocket::ReceiveFromStream(ControlPacket* packet) {
  constexpr size_t kHeader = sizeof(proto::FrameHeader);
  for (;;) {
    size_t wanted = kHeader;
    if (partial_.size() >= kHeader) {
      proto::FrameHeader header;
      std::memcpy(&header, partial_.data(), kHeader);
      // A header that makes no sense is handed on alone: whoever decodes it says what is wrong and ends the
      // connection.
      const bool sound =
          header.magic == proto::kFrameMagic && header.payload_bytes <= proto::kMaxFrameBytes - kHeader;
      if (sound) wanted += header.payload_bytes;
      if (partial_.size() == wanted) {
        packet->bytes = std::exchange(partial_, {});
        KVSS_STEP("control frame received from a stream");
        packet->descriptors.clear();
        return Event::kPacket;
      }
    }
    const size_t have = partial_.size();
    partial_.resize(wanted);
    const ssize_t received = ::recv(fd(), partial_.data() + have, wanted - have, MSG_DONTWAIT);
    partial_.resize(have + static_cast<size_t>(std::max<ssize_t>(received, 0)));
    if (received > 0 || (received < 0 && errno == EINTR)) continue;
    return received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? Event::kNothing : Event::kEnd;
  }
}

ControlSocket::Event ControlSocket::Receive(ControlPacket* packet) {
  if (framing_ == Framing::kStream) return ReceiveFromStream(packet);
  packet->bytes.resize(proto::kMaxFrameBytes);
  packet->descriptors.clear();
  iovec part{packet->bytes.data(), packet->bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * proto::kMaxFrameDescriptors)]{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t received;
  // A peer that closes with words of ours unread resets the connection, and the kernel tells that once,
  // before what the peer had said: a refusal, perhaps.
  bool reset = false;
  do {
    received = ::recvmsg(fd(), &message, MSG_CMSG_CLOEXEC);
  } while (received < 0 && (errno == EINTR || (errno == ECONNRESET && !std::exchange(reset, true))));
  if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Event::kNothing;
  // Taken over first, so that they are closed whatever else is wrong with the packet.
  if (received >= 0) {
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      const int* in = reinterpret_cast<const int*>(CMSG_DATA(header));
      for (size_t index = 0; index < count; ++index) packet->descriptors.emplace_back(in[index]);
    }
  }
  if (received <= 0 || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    packet->bytes.clear();
    packet->descriptors.clear();
    return Event::kEnd;
  }
  packet->bytes.resize(static_cast<size_t>(received));
  KVSS_STEP("control frame received");
  return Event::kPacket;
}

Result<ControlSocket::Peer> ControlSocket::Identify() const {
  if (framing_ == Framing::kStream) return Peer{0, static_cast<uid_t>(-1), {}};
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(fd(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
    return SystemError(Status::kInternal, "cannot ask who the peer is");
  }
  Peer peer{credentials.pid, credentials.uid, {}};
  // SO_PEERPIDFD names the very process that connected; pidfd_open could find a later one with its number.
  int pidfd = -1;
  length = sizeof(pidfd);
  if (::getsockopt(fd(), SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) != 0) {
    pidfd = static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0));
  }
  peer.pidfd = UniqueFd(pidfd);
  return peer;
}

Result<ControlListener> ControlListener::Listen(const std::string& path) {
  auto address = AddressOf(path);
  if (!address.ok()) return address.error();
  auto lock = TakeLock(path);
  if (!lock.ok()) return lock.error();
  struct stat facts {};
  if (::lstat(path.c_str(), &facts) == 0) {
    // The lock is ours, so a socket here belongs to a daemon that is dead. Anything else is somebody's file.
    if (!S_ISSOCK(facts.st_mode)) return Error{Status::kNotAllowed, path + " exists and is not a socket"};
    if (auto live = ControlSocket::Connect(path); live.ok()) {
      return Error{Status::kNotAllowed, "another program is listening at " + path};
    }
    if (::unlink(path.c_str()) != 0) return SystemError(Status::kNotAllowed, "cannot replace " + path);
  }
  auto fd = MakeSocket();
  if (!fd.ok()) return fd.error();
  KVSS_STEP("lock taken, not bound");
  // Before bind, which gives the file the mode of the socket: there is no moment in which others may connect.
  (void)::fchmod(fd.value().get(), 0600);
  const int bound =
      ::bind(fd.value().get(), reinterpret_cast<sockaddr*>(&address.value()), sizeof(sockaddr_un));
  if (bound != 0) return SystemError(Status::kNotAllowed, "cannot bind " + path);
  KVSS_STEP("bound, not listening");
  if (::listen(fd.value().get(), 64) != 0)
    return SystemError(Status::kNotAllowed, "cannot listen at " + path);
  return ControlListener(path, std::move(fd.value()), std::move(lock.value()));
}

ControlListener::~ControlListener() {
  if (!fd_.valid()) return;
  ::unlink(path_.c_str());
  KVSS_STEP("socket removed, lock not");
  // While the lock is still held: who opened the file meanwhile finds that its name has gone, and tries
  // again.
  ::unlink(LockPath(path_).c_str());
}

Result<std::optional<ControlSocket>> ControlListener::Accept() {
  UniqueFd fd(::accept4(this->fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.valid()) return std::optional<ControlSocket>(ControlSocket(std::move(fd)));
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ECONNABORTED || errno == EINTR) {
    return std::optional<ControlSocket>();
  }
  return SystemError(Status::kLimitExceeded, "cannot accept a connection");
}

}  // namespace kvss
