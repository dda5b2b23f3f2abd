#include "bench/peer_client.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <deque>
#include <optional>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "proto/kvss_proto.h"

namespace kvss::bench {
namespace {

using proto::Status;

/// As redis-benchmark names its keys, so that each finds what the other has stored.
std::string KeyName(uint64_t key) {
  char name[32];
  std::snprintf(name, sizeof(name), "key:%012llu", static_cast<unsigned long long>(key));
  return name;
}

/// What goes before a value that is stored, or all of a request to get one.
std::string RequestOf(const PeerPlan& plan, uint64_t key) {
  const std::string name = KeyName(key);
  const std::string bytes = std::to_string(plan.piece_bytes);
  const bool set = plan.operation == PeerOperation::kSet;
  if (plan.protocol == PeerProtocol::kMemcached) {
    return set ? "set " + name + " 0 0 " + bytes + "\r\n" : "get " + name + "\r\n";
  }
  const std::string named = "$" + std::to_string(name.size()) + "\r\n" + name + "\r\n";
  return set ? "*3\r\n$3\r\nSET\r\n" + named + "$" + bytes + "\r\n" : "*2\r\n$3\r\nGET\r\n" + named;
}

std::string_view StoredReply(PeerProtocol protocol) {
  return protocol == PeerProtocol::kRedis ? "+OK\r\n" : "STORED\r\n";
}

/// What goes before a value that comes back.
std::string ValueHead(const PeerPlan& plan, uint64_t key) {
  const std::string bytes = std::to_string(plan.piece_bytes);
  if (plan.protocol == PeerProtocol::kRedis) return "$" + bytes + "\r\n";
  return "VALUE " + KeyName(key) + " 0 " + bytes + "\r\n";
}

std::string_view ValueTail(PeerProtocol protocol) {
  return protocol == PeerProtocol::kRedis ? "\r\n" : "\r\nEND\r\n";
}

/// The line that begins there, or what is there of it, for people.
std::string FirstLine(std::string_view bytes) {
  std::string line;
  for (const char byte : bytes.substr(0, std::min<size_t>(bytes.find('\r'), 120))) {
    line += byte >= ' ' && byte <= '~' ? byte : '?';
  }
  return "'" + line + "'";
}

Result<UniqueFd> Connect(const PeerPlan& plan) {
  const bool unix_socket = !plan.unix_path.empty();
  UniqueFd fd(::socket(unix_socket ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return SystemError(Status::kLimitExceeded, "socket");
  // A store that is silent must not hold up the suite for ever.
  const timeval patience{plan.patience_ms / 1000, static_cast<suseconds_t>(plan.patience_ms % 1000) * 1000};
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  int connected;
  if (unix_socket) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (plan.unix_path.size() >= sizeof(address.sun_path)) {
      return Error{Status::kLimitExceeded, "the path of the socket is too long: " + plan.unix_path};
    }
    std::memcpy(address.sun_path, plan.unix_path.data(), plan.unix_path.size());
    connected = ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
  } else {
    const int on = 1;
    (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(plan.port);
    connected = ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
  }
  if (connected != 0) return SystemError(Status::kInternal, "cannot connect to the peer");
  return fd;
}

enum class Step { kMoved, kBlocked, kFailed };

/// One connection and its share of the keys: each `connections`-th, beginning with `first`.
class Conversation {
 public:
  Conversation(const PeerPlan& plan, UniqueFd fd, uint32_t first)
      : plan_(plan), fd_(std::move(fd)), first_(first), set_(plan.operation == PeerOperation::kSet) {
    total_ = plan.pieces > first ? (plan.pieces - first + plan.connections - 1) / plan.connections : 0;
  }

  bool Finished() const { return answered_ == total_; }
  /// A request that was begun is ended; and gets are asked for in bundles, half the window at a time.
  bool HasToSend() const {
    if (sent_bytes_ > 0) return true;
    if (sent_ == total_) return false;
    const uint64_t unanswered = sent_ - answered_;
    return set_ ? unanswered < plan_.depth : unanswered <= plan_.depth / 2;
  }
  bool AwaitsReply() const { return sent_ > answered_; }
  int fd() const { return fd_.get(); }
  const std::optional<Error>& error() const { return error_; }

  /// Sends the next value, or the next bundle of requests for values, as far as the socket takes it.
  Step Send(int flags) {
    if (sent_bytes_ == 0) BeginRequest();
    const std::string_view tail = set_ ? "\r\n" : "";
    const size_t value_bytes = set_ ? plan_.piece_bytes : 0;
    std::array<iovec, 3> parts{{{request_.data(), request_.size()},
                                {set_ ? Source(sent_) : nullptr, value_bytes},
                                {const_cast<char*>(tail.data()), tail.size()}}};
    const size_t whole = request_.size() + value_bytes + tail.size();
    while (sent_bytes_ < whole) {
      msghdr message = After(parts, sent_bytes_);
      const ssize_t sent = ::sendmsg(fd_.get(), &message, flags | MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno == EINTR) continue;
        if (errno == EAGAIN && flags != 0) return Step::kBlocked;
        return NothingSent();
      }
      sent_bytes_ += static_cast<size_t>(sent);
      parts = {{{request_.data(), request_.size()},
                {set_ ? Source(sent_) : nullptr, value_bytes},
                {const_cast<char*>(tail.data()), tail.size()}}};
      // Somebody else may have something to do.
      if (flags != 0 && sent_bytes_ < whole) return Step::kMoved;
    }
    sent_bytes_ = 0;
    sent_ += bundle_;
    return Step::kMoved;
  }

  Step Receive(int flags) { return set_ ? ReceiveStored(flags) : ReceiveValue(flags); }

  /// Nothing may come that nobody asked for.
  bool Quiet() {
    std::array<char, 128> more;
    const ssize_t received = ::recv(fd_.get(), more.data(), more.size(), MSG_DONTWAIT);
    if (received < 0 && errno == EAGAIN) return true;
    if (received <= 0) {
      Fail("the connection ended after the last reply");
    } else {
      Fail("answered more than it was asked: " + FirstLine({more.data(), static_cast<size_t>(received)}));
    }
    return false;
  }

 private:
  uint64_t KeyOf(uint64_t request) const { return (first_ + request * plan_.connections) % plan_.keys; }
  std::byte* Source(uint64_t request) const {
    return plan_.memory.data() + KeyOf(request) * plan_.piece_bytes;
  }
  std::byte* Target(uint64_t request) const { return Source(request) + plan_.keys * plan_.piece_bytes; }

  void BeginRequest() {
    bundle_ = set_ ? 1 : std::min<uint64_t>(plan_.depth - (sent_ - answered_), total_ - sent_);
    request_.clear();
    for (uint64_t each = 0; each < bundle_; ++each) request_ += RequestOf(plan_, KeyOf(sent_ + each));
  }

  /// What is left of three parts when `done` bytes of them are.
  static msghdr After(std::array<iovec, 3>& parts, size_t done) {
    size_t first = 0;
    while (first < parts.size() - 1 && done >= parts[first].iov_len) done -= parts[first++].iov_len;
    parts[first].iov_base = static_cast<std::byte*>(parts[first].iov_base) + done;
    parts[first].iov_len -= done;
    msghdr message{};
    message.msg_iov = parts.data() + first;
    message.msg_iovlen = parts.size() - first;
    return message;
  }

  /// As many short replies as have come.
  Step ReceiveStored(int flags) {
    const std::string_view wanted = StoredReply(plan_.protocol);
    std::array<char, 4096> replies;
    const size_t most = (sent_ - answered_) * wanted.size() - received_bytes_;
    const ssize_t received = ::recv(fd_.get(), replies.data(), std::min(replies.size(), most), flags);
    if (received <= 0) return NothingReceived(received, flags);
    const std::string_view come(replies.data(), static_cast<size_t>(received));
    // Where the reply that is being compared begins, and what of it had come before.
    size_t begin = 0;
    std::string before(wanted.substr(0, received_bytes_));
    for (size_t at = 0; at < come.size(); ++at) {
      if (come[at] != wanted[received_bytes_])
        return Unexpected(wanted, before + std::string(come.substr(begin)));
      if (++received_bytes_ < wanted.size()) continue;
      received_bytes_ = 0;
      ++answered_;
      begin = at + 1;
      before.clear();
    }
    return Step::kMoved;
  }

  /// The next value, straight into its place, as far as it has come.
  Step ReceiveValue(int flags) {
    if (received_bytes_ == 0) head_wanted_ = ValueHead(plan_, KeyOf(answered_));
    const std::string_view tail_wanted = ValueTail(plan_.protocol);
    const size_t head_bytes = head_wanted_.size();
    const size_t value_end = head_bytes + plan_.piece_bytes;
    const size_t whole = value_end + tail_wanted.size();
    std::byte* const place = Target(answered_);
    std::array<iovec, 3> parts{
        {{head_.data(), head_bytes}, {place, plan_.piece_bytes}, {tail_.data(), tail_wanted.size()}}};
    msghdr message = After(parts, received_bytes_);
    // Only who has been told that a value comes may wait for all of it.
    const bool all = flags == 0 && received_bytes_ >= head_bytes;
    const ssize_t received = ::recvmsg(fd_.get(), &message, flags | (all ? MSG_WAITALL : 0));
    if (received <= 0) return NothingReceived(received, flags);
    const size_t before = received_bytes_;
    received_bytes_ += static_cast<size_t>(received);
    if (before < head_bytes) {
      const size_t come = std::min(received_bytes_, head_bytes);
      if (std::string_view(head_.data(), come) != std::string_view(head_wanted_).substr(0, come)) {
        const size_t in_place = std::min<size_t>(received_bytes_ - come, 120);
        return Unexpected(head_wanted_, std::string(head_.data(), come) +
                                            std::string(reinterpret_cast<const char*>(place), in_place));
      }
    }
    if (received_bytes_ > value_end) {
      const std::string_view tail(tail_.data(), received_bytes_ - value_end);
      if (tail != tail_wanted.substr(0, tail.size())) {
        return Fail("the value of " + KeyName(KeyOf(answered_)) + " does not end where it was said to",
                    Status::kBadFrame);
      }
    }
    if (received_bytes_ == whole) {
      received_bytes_ = 0;
      ++answered_;
    }
    return Step::kMoved;
  }

  /// Who does not take a value may have said why.
  Step NothingSent() {
    const std::string why = errno == EAGAIN ? "took no bytes for " + Patience() : "sending: " + ErrnoText();
    std::array<char, 128> reply;
    const ssize_t received = ::recv(fd_.get(), reply.data(), reply.size(), MSG_DONTWAIT);
    if (received <= 0) return Fail(why);
    return Unexpected(set_ ? StoredReply(plan_.protocol) : std::string_view(head_wanted_),
                      std::string(reply.data(), static_cast<size_t>(received)));
  }

  Step NothingReceived(ssize_t received, int flags) {
    if (received == 0) return Fail("closed the connection in the middle of the work");
    if (errno == EINTR) return Step::kMoved;
    if (errno != EAGAIN) return Fail("receiving: " + ErrnoText());
    return flags != 0 ? Step::kBlocked : Fail("did not answer for " + Patience());
  }

  /// `line` is what has come since the last good reply. The rest of it is worth waiting for a moment.
  Step Unexpected(std::string_view wanted, std::string line) {
    while (line.find('\r') == std::string::npos && line.size() < 120) {
      pollfd waiting{fd_.get(), POLLIN, 0};
      std::array<char, 128> more;
      if (::poll(&waiting, 1, 100) <= 0) break;
      const ssize_t received = ::recv(fd_.get(), more.data(), more.size(), MSG_DONTWAIT);
      if (received <= 0) break;
      line.append(more.data(), static_cast<size_t>(received));
    }
    return Fail(std::string(set_ ? "SET" : "GET") + " of " + KeyName(KeyOf(answered_)) +
                    " was answered with " + FirstLine(line) + " instead of " + FirstLine(wanted),
                Status::kBadFrame);
  }

  Step Fail(const std::string& what, Status status = Status::kTransferFailed) {
    error_ = Error{status, what};
    return Step::kFailed;
  }

  std::string Patience() const { return std::to_string(plan_.patience_ms) + " ms"; }
  static std::string ErrnoText() { return std::strerror(errno); }

  const PeerPlan& plan_;
  UniqueFd fd_;
  uint64_t first_;
  bool set_;
  uint64_t total_;
  /// Requests that have gone as a whole, and replies that have come as a whole.
  uint64_t sent_ = 0;
  uint64_t answered_ = 0;
  /// Requests that go together, their text, and how much of that and of the value has gone.
  uint64_t bundle_ = 0;
  std::string request_;
  size_t sent_bytes_ = 0;
  /// How much of the next reply has come.
  size_t received_bytes_ = 0;
  std::string head_wanted_;
  std::array<char, 64> head_;
  std::array<char, 16> tail_;
  std::optional<Error> error_;
};

/// Alone in its thread a conversation blocks: that is one system call less for each wait.
bool TalkAlone(Conversation& conversation) {
  while (!conversation.Finished()) {
    if (conversation.HasToSend() && conversation.Send(0) == Step::kFailed) return false;
    if (!conversation.AwaitsReply()) continue;
    if (conversation.Receive(conversation.HasToSend() ? MSG_DONTWAIT : 0) == Step::kFailed) return false;
  }
  return conversation.Quiet();
}

bool TalkToAll(std::deque<Conversation>& conversations, uint32_t patience_ms) {
  for (;;) {
    bool finished = true;
    bool moved = false;
    for (auto& each : conversations) {
      if (each.Finished()) continue;
      finished = false;
      Step sent = each.HasToSend() ? each.Send(MSG_DONTWAIT) : Step::kBlocked;
      Step received = Step::kBlocked;
      if (sent != Step::kFailed && each.AwaitsReply()) received = each.Receive(MSG_DONTWAIT);
      if (sent == Step::kFailed || received == Step::kFailed) return false;
      moved |= sent == Step::kMoved || received == Step::kMoved;
    }
    if (finished) break;
    if (moved) continue;
    std::vector<pollfd> waiting;
    for (auto& each : conversations) {
      if (each.Finished()) continue;
      const int sending = each.HasToSend() ? POLLOUT : 0;
      const int receiving = each.AwaitsReply() ? POLLIN : 0;
      waiting.push_back({each.fd(), static_cast<short>(sending | receiving), 0});
    }
    // Who is silent too long is told so by the call that blocks.
    if (::poll(waiting.data(), waiting.size(), static_cast<int>(patience_ms)) != 0) continue;
    for (auto& each : conversations) {
      if (!each.Finished()) return TalkAlone(each);
    }
  }
  return std::all_of(conversations.begin(), conversations.end(), [](auto& each) { return each.Quiet(); });
}

bool Talk(const PeerPlan& plan, std::deque<Conversation>& conversations) {
  if (conversations.size() == 1) return TalkAlone(conversations.front());
  if (!plan.threads) return TalkToAll(conversations, plan.patience_ms);
  std::vector<char> well(conversations.size());
  std::vector<std::thread> threads;
  for (size_t each = 0; each < conversations.size(); ++each) {
    threads.emplace_back([&, each] {
      well[each] = TalkAlone(conversations[each]);
      // The others need not go on.
      if (!well[each]) {
        for (auto& other : conversations) ::shutdown(other.fd(), SHUT_RDWR);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return std::all_of(well.begin(), well.end(), [](char each) { return each != 0; });
}

/// Spoils the places that values go to, a byte of each page: what has not come is not taken for right.
void SpoilTargets(const PeerPlan& plan, uint64_t bytes) {
  constexpr uint64_t kPageBytes = 4096;
  std::byte* const target = plan.memory.data() + plan.keys * plan.piece_bytes;
  for (uint64_t at = 0; at < bytes; at += kPageBytes) target[at] = ~plan.memory[at];
}

Outcome CompareValues(const PeerPlan& plan, uint64_t values) {
  for (uint64_t key = 0; key < values; ++key) {
    const std::byte* const sent = plan.memory.data() + key * plan.piece_bytes;
    if (std::memcmp(sent, sent + plan.keys * plan.piece_bytes, plan.piece_bytes) != 0) {
      return Error{Status::kInternal, KeyName(key) + " came back with other bytes than it was set to"};
    }
  }
  return Nothing{};
}

}  // namespace

Result<uint64_t> RunPeerTransfer(const PeerPlan& plan) {
  const uint64_t values = std::min(plan.pieces, plan.keys);
  if (plan.connections == 0 || plan.depth == 0 || plan.piece_bytes == 0 || values == 0 ||
      plan.memory.size() < 2 * plan.keys * plan.piece_bytes) {
    return Error{Status::kBadLength, "this is no plan for a transfer: something in it is zero or too small"};
  }
  std::deque<Conversation> conversations;
  for (uint32_t first = 0; first < plan.connections; ++first) {
    auto fd = Connect(plan);
    if (!fd.ok()) return fd.error();
    conversations.emplace_back(plan, std::move(fd.value()), first);
  }
  const bool get = plan.operation == PeerOperation::kGet;
  if (get) SpoilTargets(plan, values * plan.piece_bytes);
  const uint64_t from = MonotonicNanos();
  const bool well = Talk(plan, conversations);
  const uint64_t elapsed = MonotonicNanos() - from;
  if (!well) {
    // A wrong answer says more than a connection that ended because of it.
    std::vector<Error> errors;
    for (const auto& each : conversations) {
      if (each.error()) errors.push_back(*each.error());
    }
    const auto answered = [](const Error& error) { return error.status == Status::kBadFrame; };
    const auto said = std::find_if(errors.begin(), errors.end(), answered);
    return said == errors.end() ? errors.front() : *said;
  }
  if (get) {
    auto compared = CompareValues(plan, values);
    if (!compared.ok()) return compared.error();
  }
  return elapsed;
}

}  // namespace kvss::bench
