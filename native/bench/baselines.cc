#include "bench/baselines.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "proto/kvss_proto.h"
#include "shm/memory_object.h"
#include "shm/ring.h"

namespace kvss::bench {
namespace {

using proto::Status;

/// Larger than the last-level cache of most machines.
constexpr uint64_t kLoopMemoryBytes = 256u << 20;

struct Acknowledgement {
  uint64_t piece = 0;
};

Result<Mapping> MakeMemory(uint64_t bytes) {
  auto object = MemoryObject::Create("kvss-bench", bytes, HugePages::kIfAvailable);
  if (!object.ok()) return object.error();
  auto mapping = Mapping::Map(object.value().fd(), object.value().bytes(), Access::kReadWrite);
  if (mapping.ok()) mapping.value().Populate();
  return mapping;
}

void Tune(int fd) {
  const int on = 1;
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  // As KVSS does: without it the loop has phases of less than half its speed.
  const int bytes = 2 << 20;
  (void)::setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
}

/// A connected pair, of the kind that two processes would have.
Result<std::pair<UniqueFd, UniqueFd>> ConnectedPair(bool unix_sockets) {
  if (unix_sockets) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      return SystemError(Status::kLimitExceeded, "socketpair");
    }
    return std::pair{UniqueFd(ends[0]), UniqueFd(ends[1])};
  }
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener.valid() || !client.valid() || ::bind(listener.get(), generic, length) != 0 ||
      ::listen(listener.get(), 1) != 0 || ::getsockname(listener.get(), generic, &length) != 0 ||
      ::connect(client.get(), generic, length) != 0) {
    return SystemError(Status::kLimitExceeded, "cannot connect a loopback pair");
  }
  UniqueFd server(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!server.valid()) return SystemError(Status::kLimitExceeded, "accept");
  Tune(client.get());
  Tune(server.get());
  return std::pair{std::move(client), std::move(server)};
}

bool SendAll(int fd, iovec* parts, size_t count) {
  while (count > 0) {
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = count;
    const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0) return false;
    auto left = static_cast<size_t>(sent);
    while (count > 0 && left >= parts->iov_len) {
      left -= parts->iov_len;
      ++parts;
      --count;
    }
    if (count > 0) {
      parts->iov_base = static_cast<std::byte*>(parts->iov_base) + left;
      parts->iov_len -= left;
    }
  }
  return true;
}

bool ReceiveAll(int fd, void* to, size_t bytes) {
  auto* at = static_cast<std::byte*>(to);
  while (bytes > 0) {
    const ssize_t received = ::recv(fd, at, bytes, 0);
    if (received <= 0) return false;
    at += received;
    bytes -= static_cast<size_t>(received);
  }
  return true;
}

/// Places of pieces in a memory, one after the other and round again.
class Places {
 public:
  Places(std::span<const std::byte> memory, uint32_t piece_bytes)
      : data_(memory.data()), count_(memory.size() / piece_bytes), piece_bytes_(piece_bytes) {}
  const std::byte* operator[](uint64_t piece) const { return data_ + piece % count_ * piece_bytes_; }

 private:
  const std::byte* data_;
  uint64_t count_;
  uint32_t piece_bytes_;
};

}  // namespace

Result<std::shared_ptr<std::byte>> MakeRuntimeMemory(uint64_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return SystemError(Status::kNoMemory, "cannot get memory for the bench");
  (void)::madvise(memory, bytes, MADV_HUGEPAGE);
  std::memset(memory, 1, bytes);
  return std::shared_ptr<std::byte>(static_cast<std::byte*>(memory),
                                    [bytes](std::byte* at) { ::munmap(at, bytes); });
}

Result<CopyLoop> CopyLoop::Create(uint64_t target_bytes) {
  auto target = MakeMemory(target_bytes);
  if (!target.ok()) return target.error();
  return CopyLoop(std::move(target.value()));
}

uint64_t CopyLoop::Run(std::span<const std::byte> source, uint32_t piece_bytes, uint64_t pieces) {
  const Places from({source.data(), source.size()}, piece_bytes);
  const Places to({target_.data(), target_.bytes()}, piece_bytes);
  const uint64_t started = MonotonicNanos();
  for (uint64_t piece = 0; piece < pieces; ++piece, ++at_) {
    std::memcpy(const_cast<std::byte*>(to[at_]), from[at_], piece_bytes);
  }
  return MonotonicNanos() - started;
}

Result<uint64_t> RunSocketLoop(const SocketPlan& plan) {
  // Kept: taking and filling it takes longer than a short loop.
  static Result<std::shared_ptr<std::byte>> source = MakeRuntimeMemory(kLoopMemoryBytes);
  static Result<Mapping> target = MakeMemory(kLoopMemoryBytes);
  if (!source.ok()) return source.error();
  if (!target.ok()) return target.error();
  std::vector<std::pair<UniqueFd, UniqueFd>> streams;
  // The last one carries the acknowledgements.
  for (uint32_t stream = 0; stream <= plan.streams; ++stream) {
    auto pair = ConnectedPair(plan.unix_sockets);
    if (!pair.ok()) return pair.error();
    streams.push_back(std::move(pair.value()));
  }
  const auto& [ack_in, ack_out] = streams.back();
  bool received = true;
  const uint64_t from = MonotonicNanos();
  std::thread receiver([&] {
    const Places places({target.value().data(), kLoopMemoryBytes}, plan.piece_bytes);
    for (uint64_t piece = 0; piece < plan.pieces && received; ++piece) {
      const int fd = streams[piece % plan.streams].second.get();
      proto::StreamHeader header;
      Acknowledgement ack{piece};
      received = ReceiveAll(fd, &header, sizeof(header)) &&
                 ReceiveAll(fd, const_cast<std::byte*>(places[piece]), plan.piece_bytes) &&
                 ::send(ack_out.get(), &ack, sizeof(ack), MSG_NOSIGNAL) == sizeof(ack);
    }
    // Whoever sends, or waits for an acknowledgement, must not wait for ever.
    if (!received) {
      for (auto& [client, server] : streams) ::shutdown(server.get(), SHUT_RDWR);
    }
  });
  const Places places({source.value().get(), kLoopMemoryBytes}, plan.piece_bytes);
  uint64_t ack_bytes = 0;
  bool sent = true;
  // Takes the acknowledgements that are there, or waits for one: left in the socket they would stop who sends
  // them.
  const auto take_acks = [&](bool wait) {
    Acknowledgement acks[64];
    const ssize_t bytes = ::recv(ack_in.get(), acks, sizeof(acks), wait ? 0 : MSG_DONTWAIT);
    if (bytes > 0) {
      ack_bytes += static_cast<uint64_t>(bytes);
    } else if (bytes == 0 || errno != EAGAIN) {
      sent = false;
    }
    return ack_bytes / sizeof(Acknowledgement);
  };
  for (uint64_t piece = 0; piece < plan.pieces && sent; ++piece) {
    while (sent && piece - take_acks(false) >= plan.window) take_acks(true);
    proto::StreamHeader header{};
    header.length = plan.piece_bytes;
    header.request_id = piece;
    iovec parts[] = {{&header, sizeof(header)}, {const_cast<std::byte*>(places[piece]), plan.piece_bytes}};
    sent = sent && SendAll(streams[piece % plan.streams].first.get(), parts, 2);
  }
  while (sent && ack_bytes / sizeof(Acknowledgement) < plan.pieces) take_acks(true);
  const uint64_t elapsed = MonotonicNanos() - from;
  if (!sent) {
    for (auto& [client, server] : streams) ::shutdown(client.get(), SHUT_RDWR);
  }
  receiver.join();
  if (!sent || !received) return Error{Status::kInternal, "the socket loop was interrupted"};
  return elapsed;
}

void RunRingLoop(uint32_t count, double* round_trip_ns) {
  constexpr uint32_t kEntries = 256;
  struct Side {
    alignas(64) std::atomic<uint64_t> head{0};
    alignas(64) std::atomic<uint64_t> tail{0};
    std::vector<proto::Descriptor> entries{kEntries};
    RingPlace<proto::Descriptor> place() { return {&head, &tail, entries.data(), kEntries}; }
  };
  Side there;
  Side back;
  std::thread echo([&] {
    RingConsumer<proto::Descriptor> in(there.place());
    RingProducer<proto::Descriptor> out(back.place());
    for (uint32_t left = count; left > 0;) {
      if (in.Available().value_or(0) == 0) continue;
      out.Put(in.Take());
      in.Release();
      out.Publish();
      --left;
    }
  });
  RingProducer<proto::Descriptor> out(there.place());
  RingConsumer<proto::Descriptor> in(back.place());
  proto::Descriptor descriptor{};
  for (uint32_t trip = 0; trip < count; ++trip) {
    const uint64_t from = MonotonicNanos();
    out.Put(descriptor);
    out.Publish();
    while (in.Available().value_or(0) == 0) {
    }
    descriptor = in.Take();
    in.Release();
    round_trip_ns[trip] = static_cast<double>(MonotonicNanos() - from);
  }
  echo.join();
}

}  // namespace kvss::bench
