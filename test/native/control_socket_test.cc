#include "link/control_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "harness.h"

namespace kvss {
namespace {

using proto::Status;
using test::Must;

/// Long enough for any machine: only a broken program waits for it to pass.
constexpr int kPatienceMs = 20'000;

struct Folder {
  std::string path;
  Folder() {
    char name[] = "/tmp/kvss-test-XXXXXX";
    CHECK(::mkdtemp(name) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string Socket() const { return path + "/control"; }
};

void WaitReadable(int fd) {
  pollfd wait{fd, POLLIN, 0};
  CHECK_EQ(::poll(&wait, 1, kPatienceMs), 1);
}

/// A listener and one connection to it.
struct Pair {
  Folder folder;
  ControlListener listener = Must(ControlListener::Listen(folder.Socket()));
  ControlSocket client = Must(ControlSocket::Connect(folder.Socket()));
  ControlSocket server = std::move(Must(listener.Accept()).value());
};

/// Another process that runs `work`, says so and waits to be killed.
class OtherProcess {
 public:
  explicit OtherProcess(const std::function<bool()>& work) {
    int ends[2];
    CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const UniqueFd ready(ends[0]);
    UniqueFd report(ends[1]);
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      const char done = work() ? 'y' : 'n';
      (void)!::write(report.get(), &done, 1);
      for (;;) ::pause();
    }
    report.Reset();
    char done = 'n';
    CHECK_EQ(::read(ready.get(), &done, 1), 1);
    CHECK_EQ(done, 'y');
  }
  ~OtherProcess() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(std::exchange(pid_, -1), nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

bool SendText(ControlSocket& socket, const std::string& text, const std::vector<UniqueFd>& descriptors = {}) {
  return socket.Send(reinterpret_cast<const uint8_t*>(text.data()), text.size(), descriptors).ok();
}

std::string TextOf(const ControlPacket& packet) { return {packet.bytes.begin(), packet.bytes.end()}; }

TEST("packets keep their borders and arrive in order") {
  Pair pair;
  CHECK(SendText(pair.client, "one"));
  CHECK(SendText(pair.client, "and two"));
  ControlPacket packet;
  CHECK(pair.server.Receive(&packet) == ControlSocket::Event::kPacket);
  CHECK_EQ(TextOf(packet), "one");
  CHECK(pair.server.Receive(&packet) == ControlSocket::Event::kPacket);
  CHECK_EQ(TextOf(packet), "and two");
  CHECK(pair.server.Receive(&packet) == ControlSocket::Event::kNothing);
}

TEST("descriptors arrive with their packet, in order, and close on exec") {
  Pair pair;
  int ends[2];
  CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
  std::vector<UniqueFd> sent;
  sent.emplace_back(ends[0]);
  sent.emplace_back(ends[1]);
  CHECK(SendText(pair.server, "pipe", sent));
  sent.clear();

  ControlPacket packet;
  CHECK(pair.client.Receive(&packet) == ControlSocket::Event::kPacket);
  CHECK_EQ(packet.descriptors.size(), 2u);
  for (const UniqueFd& descriptor : packet.descriptors) {
    CHECK_EQ(::fcntl(descriptor.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  }
  CHECK_EQ(::write(packet.descriptors[1].get(), "x", 1), 1);
  char byte = 0;
  CHECK_EQ(::read(packet.descriptors[0].get(), &byte, 1), 1);
  CHECK_EQ(byte, 'x');
}

TEST("as many descriptors as the protocol allows arrive, one more is refused") {
  Pair pair;
  std::vector<UniqueFd> many;
  for (uint32_t index = 0; index < proto::kMaxFrameDescriptors; ++index) many.emplace_back(::dup(0));
  CHECK(SendText(pair.client, "full", many));
  ControlPacket packet;
  CHECK(pair.server.Receive(&packet) == ControlSocket::Event::kPacket);
  CHECK_EQ(packet.descriptors.size(), proto::kMaxFrameDescriptors);
  many.emplace_back(::dup(0));
  CHECK(!SendText(pair.client, "over", many));
}

TEST("a packet of the largest size arrives, a longer one is not sent") {
  Pair pair;
  const std::string largest(proto::kMaxFrameBytes, 'x');
  CHECK(SendText(pair.client, largest));
  ControlPacket packet;
  CHECK(pair.server.Receive(&packet) == ControlSocket::Event::kPacket);
  CHECK(TextOf(packet) == largest);
  CHECK_EQ(pair.client.Send(packet.bytes.data(), proto::kMaxFrameBytes + 1, {}).error().status,
           Status::kLimitExceeded);
}

TEST("a packet that is too long ends the connection and nothing of it is kept") {
  Pair pair;
  const std::string longer(proto::kMaxFrameBytes + 1, 'x');
  // Past Send, as a hostile peer would, with a descriptor that must not stay open here.
  int ends[2];
  CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd out(ends[0]);
  UniqueFd in(ends[1]);
  iovec part{const_cast<char*>(longer.data()), longer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  *reinterpret_cast<int*>(CMSG_DATA(header)) = in.get();
  CHECK_EQ(::sendmsg(pair.client.fd(), &message, MSG_NOSIGNAL), static_cast<ssize_t>(longer.size()));
  in.Reset();

  ControlPacket packet;
  CHECK(pair.server.Receive(&packet) == ControlSocket::Event::kEnd);
  CHECK(packet.bytes.empty());
  CHECK(packet.descriptors.empty());
  // The last writing end is closed, so the pipe is at its end.
  char byte;
  WaitReadable(out.get());
  CHECK_EQ(::read(out.get(), &byte, 1), 0);
}

TEST("the end of the peer is the end of the connection") {
  Pair pair;
  { const ControlSocket gone = std::move(pair.client); }
  ControlPacket packet;
  CHECK(pair.server.Receive(&packet) == ControlSocket::Event::kEnd);
  CHECK(!SendText(pair.server, "hello?"));
}

TEST("what a peer says last is heard, also where it goes with words of ours unread") {
  Pair pair;
  CHECK(SendText(pair.client, "hello"));
  CHECK(SendText(pair.server, "not you"));
  { const ControlSocket gone = std::move(pair.server); }
  ControlPacket packet;
  CHECK(pair.client.Receive(&packet) == ControlSocket::Event::kPacket);
  CHECK_EQ(TextOf(packet), "not you");
  CHECK(pair.client.Receive(&packet) == ControlSocket::Event::kEnd);
}

TEST("sending to a peer that does not read says so instead of waiting") {
  Pair pair;
  const std::vector<uint8_t> frame(proto::kMaxFrameBytes, 'x');
  for (int sent = 0; sent < 10'000; ++sent) {
    Outcome outcome = pair.client.Send(frame.data(), frame.size(), {});
    if (outcome.ok()) continue;
    CHECK_EQ(outcome.error().status, Status::kLimitExceeded);
    return;
  }
  FAIL("the queue of the socket has no end");
}

TEST("a listener knows the pid and the user of its peer") {
  Pair pair;
  const ControlSocket::Peer peer = Must(pair.server.Identify());
  CHECK_EQ(peer.pid, ::getpid());
  CHECK_EQ(peer.uid, ::getuid());
}

TEST("the pidfd of a peer becomes readable when that process dies") {
  const Folder folder;
  ControlListener listener = Must(ControlListener::Listen(folder.Socket()));
  std::optional<ControlSocket> kept;
  OtherProcess other([&] {
    auto socket = ControlSocket::Connect(folder.Socket());
    if (!socket.ok()) return false;
    kept = std::move(socket.value());
    return true;
  });
  WaitReadable(listener.fd());
  const ControlSocket server = std::move(Must(listener.Accept()).value());
  const ControlSocket::Peer peer = Must(server.Identify());
  CHECK_EQ(peer.pid, other.pid());
  CHECK(peer.pidfd.valid());
  pollfd wait{peer.pidfd.get(), POLLIN, 0};
  CHECK_EQ(::poll(&wait, 1, 0), 0);
  other.Kill();
  WaitReadable(peer.pidfd.get());
}

TEST("accept answers nothing where nobody waits") {
  const Folder folder;
  ControlListener listener = Must(ControlListener::Listen(folder.Socket()));
  CHECK(!Must(listener.Accept()).has_value());
}

TEST("the socket belongs to its user alone") {
  const Folder folder;
  const ControlListener listener = Must(ControlListener::Listen(folder.Socket()));
  struct stat facts {};
  CHECK_EQ(::stat(folder.Socket().c_str(), &facts), 0);
  CHECK_EQ(facts.st_mode & 0777, 0600u);
}

TEST("the socket of a dead daemon is replaced") {
  const Folder folder;
  OtherProcess daemon([&] {
    static std::optional<ControlListener> listener;
    auto made = ControlListener::Listen(folder.Socket());
    if (!made.ok()) return false;
    listener.emplace(std::move(made.value()));
    return true;
  });
  CHECK(!ControlListener::Listen(folder.Socket()).ok());
  daemon.Kill();
  CHECK(std::filesystem::exists(folder.Socket()));
  CHECK(!ControlSocket::Connect(folder.Socket()).ok());
  const ControlListener listener = Must(ControlListener::Listen(folder.Socket()));
  CHECK(ControlSocket::Connect(folder.Socket()).ok());
}

TEST("a second listener at the same path is refused and does not disturb the first") {
  const Folder folder;
  ControlListener first = Must(ControlListener::Listen(folder.Socket()));
  CHECK_EQ(ControlListener::Listen(folder.Socket()).error().status, Status::kNotAllowed);
  CHECK(ControlSocket::Connect(folder.Socket()).ok());
  CHECK(Must(first.Accept()).has_value());
}

TEST("a socket that another program listens at is not taken away from it") {
  const Folder folder;
  const UniqueFd other(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  folder.Socket().copy(address.sun_path, sizeof(address.sun_path) - 1);
  CHECK_EQ(::bind(other.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  CHECK_EQ(::listen(other.get(), 1), 0);
  CHECK_EQ(ControlListener::Listen(folder.Socket()).error().status, Status::kNotAllowed);
  CHECK(std::filesystem::exists(folder.Socket()));
}

TEST("a regular file in the way is refused and stays") {
  const Folder folder;
  std::ofstream(folder.Socket()) << "precious";
  CHECK_EQ(ControlListener::Listen(folder.Socket()).error().status, Status::kNotAllowed);
  std::string content;
  std::ifstream(folder.Socket()) >> content;
  CHECK_EQ(content, "precious");
}

TEST("a link to a socket is refused and stays") {
  const Folder folder;
  const ControlListener target = Must(ControlListener::Listen(folder.path + "/target"));
  std::filesystem::create_symlink(folder.path + "/target", folder.Socket());
  CHECK_EQ(ControlListener::Listen(folder.Socket()).error().status, Status::kNotAllowed);
  CHECK(std::filesystem::is_symlink(folder.Socket()));
}

TEST("a path that is empty, too long or in no folder is refused") {
  const Folder folder;
  for (const std::string& path :
       {std::string(), folder.path + "/" + std::string(200, 'x'), folder.path + "/none/control"}) {
    CHECK_EQ(ControlListener::Listen(path).error().status, Status::kNotAllowed);
    CHECK_EQ(ControlSocket::Connect(path).error().status, Status::kNotAllowed);
  }
}

TEST("a listener that ends takes its socket away, and the path can be used again") {
  const Folder folder;
  { const ControlListener listener = Must(ControlListener::Listen(folder.Socket())); }
  CHECK(std::filesystem::is_empty(folder.path));
  CHECK(ControlListener::Listen(folder.Socket()).ok());
}

TEST("of many that want one path only one listens at a time") {
  const Folder folder;
  std::atomic<int> listening{0};
  std::atomic<int> listened{0};
  std::atomic<bool> alone{true};
  std::vector<std::thread> rivals;
  for (int rival = 0; rival < 4; ++rival) {
    rivals.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        auto listener = ControlListener::Listen(folder.Socket());
        if (!listener.ok()) continue;
        if (listening.fetch_add(1) != 0) alone = false;
        listened.fetch_add(1);
        struct stat facts {};
        if (::stat(folder.Socket().c_str(), &facts) != 0 || (facts.st_mode & 0777) != 0600) alone = false;
        listening.fetch_sub(1);
      }
    });
  }
  for (std::thread& rival : rivals) rival.join();
  CHECK(alone.load());
  CHECK(listened.load() > 0);
}

}  // namespace
}  // namespace kvss
