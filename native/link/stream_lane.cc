#include "link/stream_lane.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <bit>

#include "base/crc32c.h"

namespace kvss {
namespace {

using proto::Opcode;
using proto::Status;
using proto::StreamType;

// Orders that are taken between two looks at the sockets.
constexpr uint32_t kOrdersPerTurn = 256;

}  // namespace

Result<std::unique_ptr<StreamLane>> StreamLane::Start(Connections connections, uint32_t window,
                                                      bool checksums) {
  KVSS_CHECK(std::has_single_bit(window));
  std::unique_ptr<StreamLane> lane(new StreamLane(std::move(connections), window, checksums));
  epoll_event wake{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
  bool watched = lane->epoll_.valid() && lane->order_wake_.valid() && lane->completion_wake_.valid() &&
                 ::epoll_ctl(lane->epoll_.get(), EPOLL_CTL_ADD, lane->order_wake_.get(), &wake) == 0;
  const auto watch = [&](Socket& socket) {
    TuneStream(socket.fd.get());
    epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data = {.ptr = &socket}};
    watched = watched && ::epoll_ctl(lane->epoll_.get(), EPOLL_CTL_ADD, socket.fd.get(), &event) == 0;
  };
  watch(lane->hio_);
  for (const auto& socket : lane->evict_) watch(*socket);
  for (const auto& socket : lane->refill_) watch(*socket);
  if (!watched) return SystemError(Status::kLimitExceeded, "cannot start a stream lane");
  lane->thread_ = std::thread([raw = lane.get()] { raw->Loop(); });
  return lane;
}

StreamLane::StreamLane(Connections connections, uint32_t window, bool checksums)
    : window_(window),
      checksums_(checksums),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      order_wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      completion_wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      order_entries_(2 * window),
      completion_entries_(2 * window),
      orders_in_({&orders_head_, &orders_tail_, order_entries_.data(), 2 * window}),
      orders_out_({&orders_head_, &orders_tail_, order_entries_.data(), 2 * window}),
      completions_in_({&completions_head_, &completions_tail_, completion_entries_.data(), 2 * window}),
      completions_out_({&completions_head_, &completions_tail_, completion_entries_.data(), 2 * window}),
      evicts_(window),
      commands_(window) {
  hio_.fd = std::move(connections.hio);
  for (UniqueFd& fd : connections.evict) {
    evict_.push_back(std::make_unique<EvictSocket>());
    evict_.back()->fd = std::move(fd);
  }
  for (UniqueFd& fd : connections.refill) {
    refill_.push_back(std::make_unique<RefillSocket>());
    refill_.back()->fd = std::move(fd);
  }
}

StreamLane::~StreamLane() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  ::eventfd_write(order_wake_.get(), 1);
  thread_.join();
}

uint32_t StreamLane::Submit(const StreamOrder* orders, uint32_t count) {
  const uint32_t batch = std::min(count, orders_in_.Room().value_or(0));
  if (batch == 0 || broken()) return 0;
  for (uint32_t index = 0; index < batch; ++index) orders_in_.Put(orders[index]);
  orders_in_.Publish();
  WakeThread();
  return batch;
}

uint32_t StreamLane::Poll(proto::Completion* completions, uint32_t limit) {
  const uint32_t batch = std::min(limit, completions_out_.Available().value_or(0));
  if (batch == 0) return 0;
  for (uint32_t index = 0; index < batch; ++index) completions[index] = completions_out_.Take();
  completions_out_.Release();
  // The thread may have left orders in the ring for want of room that it has now.
  if (orders_in_.Unconsumed()) WakeThread();
  return batch;
}

void StreamLane::WakeThread() {
  // Dekker with Wait.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (thread_sleeping_.load(std::memory_order_relaxed) != 0) ::eventfd_write(order_wake_.get(), 1);
}

bool StreamLane::Arm() {
  caller_sleeping_.store(1, std::memory_order_relaxed);
  // Dekker with the end of Loop's turn, and with Break.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (completions_out_.Available().value_or(0) == 0 && !broken()) return true;
  Disarm();
  return false;
}

void StreamLane::Disarm() {
  caller_sleeping_.store(0, std::memory_order_relaxed);
  eventfd_t ignored;
  (void)::eventfd_read(completion_wake_.get(), &ignored);
}

void StreamLane::Loop() {
  while (!stopping_.load(std::memory_order_relaxed) && !broken()) {
    bool worked = TakeOrders();
    worked |= SendDescriptors();
    for (const auto& socket : evict_) worked |= SendPayload(*socket);
    for (const auto& socket : refill_) worked |= ReceivePayload(*socket);
    worked |= ReceiveCompletions();
    if (put_any_) {
      put_any_ = false;
      completions_in_.Publish();
      // Dekker with Arm.
      std::atomic_thread_fence(std::memory_order_seq_cst);
      if (caller_sleeping_.load(std::memory_order_relaxed) != 0) ::eventfd_write(completion_wake_.get(), 1);
    }
    if (!worked) Wait();
  }
}

bool StreamLane::TakeOrders() {
  uint32_t taken = 0;
  std::vector<proto::Descriptor> batch;
  for (uint32_t waiting = orders_out_.Available().value_or(0); taken < std::min(waiting, kOrdersPerTurn);
       ++taken) {
    // The shard takes no more than a window of each queue, and the bytes of a counted operation may still be
    // on their way: an order that would be one too many waits in the ring.
    if (!OrderRoom()) break;
    const StreamOrder order = orders_out_.Take();
    const bool evict = order.descriptor.opcode == static_cast<uint16_t>(Opcode::kEvict);
    std::vector<Flight>& flights = evict ? evicts_ : commands_;
    const uint64_t sequence = ++(evict ? evicts_sent_ : commands_sent_);
    Flight& flight = At(flights, sequence);
    ++active_;
    flight = Flight{order, {},    true,
                    false, false, order.descriptor.opcode == static_cast<uint16_t>(Opcode::kDelete)};
    batch.push_back(order.descriptor);
    if (evict && !evict_.empty()) {
      proto::StreamHeader header = MakeHeader(StreamType::kPayload, order.descriptor.piece_bytes, sequence,
                                              order.descriptor.generation);
      if (checksums_) header.checksum = FrameChecksum({order.memory, header.length});
      evict_[sequence % evict_.size()]->queue.push_back({header, order.memory, 0});
    } else if (evict) {
      flight.moved = true;  // another process carries the payload
    }
    if (!evict && refill_.empty()) flight.moved = true;
  }
  if (taken == 0) return false;
  orders_out_.Release();
  const proto::StreamHeader header = MakeHeader(
      StreamType::kDescriptors, static_cast<uint32_t>(batch.size() * sizeof(proto::Descriptor)), 0, 0);
  out_.Append(&header, sizeof(header));
  out_.Append(batch.data(), batch.size() * sizeof(proto::Descriptor));
  return true;
}

bool StreamLane::OrderRoom() {
  return evicts_sent_ - evict_count_.load(std::memory_order_relaxed) < window_ &&
         commands_sent_ - command_count_.load(std::memory_order_relaxed) < window_ &&
         !At(evicts_, evicts_sent_ + 1).active && !At(commands_, commands_sent_ + 1).active &&
         // Each operation in flight finds room for its completion, however long the caller does not poll.
         active_ < completions_in_.Room().value_or(0);
}

bool StreamLane::SendDescriptors() {
  if (out_.empty() || !hio_.writable) return false;
  const StreamState state = out_.Flush(hio_.fd.get());
  if (state == StreamState::kPartial) hio_.writable = false;
  if (state == StreamState::kEnded) Break();
  return true;
}

bool StreamLane::SendPayload(EvictSocket& socket) {
  if (!socket.writable || socket.queue.empty()) return false;
  const StreamState state =
      SendFrames(socket.fd.get(), socket.queue, kOrdersPerTurn, [&](const proto::StreamHeader& header) {
        Flight& flight = At(evicts_, header.request_id);
        flight.moved = true;
        FinishIfComplete(flight);
      });
  if (state == StreamState::kPartial) socket.writable = false;
  if (state == StreamState::kEnded) Break();
  return true;
}

bool StreamLane::ReceivePayload(RefillSocket& socket) {
  bool worked = false;
  while (!broken() && socket.readable) {
    StreamState state;
    if (socket.memory == nullptr) {
      state =
          ReceiveInto(socket.fd.get(), std::as_writable_bytes(std::span(&socket.header, 1)), &socket.have);
      if (state == StreamState::kDone) {
        Flight& flight = At(commands_, socket.header.request_id);
        const proto::Descriptor& asked = flight.order.descriptor;
        // Everything is compared with what was asked: bytes of another request must not reach this memory.
        if (!ValidHeader(socket.header, StreamType::kPayload, proto::kMaxPieceBytes) || !flight.active ||
            flight.moved || socket.header.request_id > commands_sent_ ||
            commands_sent_ - socket.header.request_id >= window_ ||
            socket.header.length != asked.piece_bytes || socket.header.generation != asked.generation) {
          Break();
          return true;
        }
        socket.memory = flight.order.memory;
        socket.have = 0;
        continue;
      }
    } else {
      state = ReceiveInto(socket.fd.get(), {socket.memory, socket.header.length}, &socket.have);
      if (state == StreamState::kDone) {
        Flight& flight = At(commands_, socket.header.request_id);
        flight.damaged = !ChecksumHolds(socket.header, {socket.memory, socket.header.length});
        socket.memory = nullptr;
        socket.have = 0;
        flight.moved = true;
        FinishIfComplete(flight);
        worked = true;
        continue;
      }
    }
    if (state == StreamState::kEnded) Break();
    socket.readable = false;
  }
  return worked;
}

bool StreamLane::ReceiveCompletions() {
  bool worked = false;
  using Step = EntryReader<proto::Completion>::Step;
  while (!broken() && hio_.readable) {
    proto::Completion completion;
    const Step step = reader_.Next(hio_.fd.get(), &completion);
    if (step == Step::kWait) {
      hio_.readable = false;
      break;
    }
    if (step != Step::kEntry) {
      Break();
      break;
    }
    worked = true;
    const bool evict = completion.opcode == static_cast<uint16_t>(Opcode::kEvict);
    std::vector<Flight>& flights = evict ? evicts_ : commands_;
    Flight& flight = At(flights, completion.sequence);
    const uint64_t sent = evict ? evicts_sent_ : commands_sent_;
    if (completion.sequence == 0 || completion.sequence > sent || sent - completion.sequence >= window_ ||
        !flight.active || flight.answered || completion.user_data != flight.order.descriptor.user_data) {
      Break();
      break;
    }
    flight.answered = true;
    flight.completion = completion;
    if (evict && !flight.moved) DropPayload(completion.sequence);
    // No payload follows a refill that was not served.
    if (!evict && completion.status != static_cast<uint16_t>(Status::kOk)) flight.moved = true;
    FinishIfComplete(flight);
    evict_count_.store(std::max(evict_count_.load(std::memory_order_relaxed), reader_.header().request_id),
                       std::memory_order_release);
    command_count_.store(
        std::max(command_count_.load(std::memory_order_relaxed), reader_.header().generation),
        std::memory_order_release);
  }
  return worked;
}

void StreamLane::DropPayload(uint64_t sequence) {
  for (const auto& socket : evict_) {
    const auto job = std::ranges::find(socket->queue, sequence,
                                       [](const OutFrame& each) { return each.header.request_id; });
    if (job == socket->queue.end() || job->sent > 0) continue;
    socket->queue.erase(job);
    At(evicts_, sequence).moved = true;
    return;
  }
}

void StreamLane::FinishIfComplete(Flight& flight) {
  if (!flight.active || !flight.answered || !flight.moved) return;
  flight.active = false;
  --active_;
  if (flight.damaged) flight.completion.status = static_cast<uint16_t>(Status::kTransferFailed);
  completions_in_.Put(flight.completion);
  put_any_ = true;
}

void StreamLane::Wait() {
  thread_sleeping_.store(1, std::memory_order_relaxed);
  // Dekker with WakeThread.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const bool orders = orders_out_.Available().value_or(0) > 0 && OrderRoom();
  epoll_event events[16];
  const int count = ::epoll_wait(epoll_.get(), events, 16, orders || stopping_.load() ? 0 : -1);
  thread_sleeping_.store(0, std::memory_order_relaxed);
  for (int index = 0; index < count; ++index) {
    auto* socket = static_cast<Socket*>(events[index].data.ptr);
    if (socket == nullptr) continue;
    socket->readable |= (events[index].events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) != 0;
    socket->writable |= (events[index].events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
  }
}

void StreamLane::Break() {
  broken_.store(true, std::memory_order_release);
  // Dekker with Arm.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (caller_sleeping_.load(std::memory_order_relaxed) != 0) ::eventfd_write(completion_wake_.get(), 1);
}

}  // namespace kvss
