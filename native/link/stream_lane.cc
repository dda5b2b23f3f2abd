#include "link/stream_lane.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <bit>

#include "base/crc32c.h"
#include "base/step.h"

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
  auto lane = Create(std::move(connections), window, checksums);
  if (lane.ok()) lane.value()->thread_ = std::thread([raw = lane.value().get()] { raw->Loop(); });
  return lane;
}

Result<std::unique_ptr<StreamLane>> StreamLane::Create(Connections connections, uint32_t window,
                                                       bool checksums) {
  KVSS_CHECK(std::has_single_bit(window));
  std::unique_ptr<StreamLane> lane(new StreamLane(std::move(connections), window, checksums));
  epoll_event wake{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
  bool watched = lane->epoll_.valid() && lane->order_wake_.valid() && lane->completion_wake_.valid() &&
                 ::epoll_ctl(lane->epoll_.get(), EPOLL_CTL_ADD, lane->order_wake_.get(), &wake) == 0;
  const int epoll = lane->epoll_.get();
  watched = watched && WatchLane(epoll, lane->hio_.fd.get(), &lane->hio_) && lane->payload_.WatchWith(epoll);
  if (lane->has_carrier()) watched = watched && WatchLane(epoll, lane->order_.fd.get(), &lane->order_);
  if (!watched) return SystemError(Status::kLimitExceeded, "cannot start a stream lane");
  return lane;
}

StreamLane::StreamLane(Connections connections, uint32_t window, bool checksums)
    : window_(window),
      payload_(std::move(connections.evict), std::move(connections.refill), window, checksums, this),
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
  order_.fd = std::move(connections.order);
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
  KVSS_STEP("orders put");
  orders_in_.Publish();
  WakeThread();
  KVSS_STEP("orders published");
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
    if (!Turn()) Wait(-1);
  }
}

bool StreamLane::Turn() {
  if (broken()) return false;
  bool worked = TakeOrders();
  worked |= Send(hio_, descriptors_out_);
  worked |= payload_.Pump();
  if (payload_.broken()) Break();
  worked |= ReceiveCompletions();
  if (has_carrier()) {
    worked |= ReceiveAcks();
    worked |= Send(order_, transfers_out_);
  }
  if (put_any_) {
    put_any_ = false;
    KVSS_STEP("completions finished, not published");
    completions_in_.Publish();
    KVSS_STEP("completions published to the caller");
    // Dekker with Arm.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (caller_sleeping_.load(std::memory_order_relaxed) != 0) ::eventfd_write(completion_wake_.get(), 1);
  }
  return worked;
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
    const uint64_t sequence = ++(evict ? evicts_sent_ : commands_sent_);
    Flight& flight = At(Flights(evict), sequence);
    ++active_;
    flight = Flight{.order = order, .active = true};
    MovePayload(order, sequence, flight);
    batch.push_back(order.descriptor);
    KVSS_STEP("order taken");
  }
  if (taken == 0) return false;
  orders_out_.Release();
  AppendEntries(descriptors_out_, StreamType::kDescriptors, batch.data(), batch.size());
  if (!transfers_.empty()) {
    AppendEntries(transfers_out_, StreamType::kOrders, transfers_.data(), transfers_.size());
    transfers_.clear();
  }
  return true;
}

void StreamLane::MovePayload(const StreamOrder& order, uint64_t sequence, Flight& flight) {
  const proto::Descriptor& descriptor = order.descriptor;
  const auto opcode = static_cast<Opcode>(descriptor.opcode);
  const PayloadLanes::Piece piece{sequence, descriptor.generation, order.memory, descriptor.piece_bytes};
  if (opcode != Opcode::kEvict && opcode != Opcode::kRefill) {
    flight.moved = true;
  } else if (has_carrier()) {
    proto::TransferOrder transfer{};
    transfer.opcode = descriptor.opcode;
    transfer.piece_bytes = descriptor.piece_bytes;
    transfer.sequence = sequence;
    transfer.generation = descriptor.generation;
    transfer.place = order.place;
    transfers_.push_back(transfer);
  } else if (opcode == Opcode::kEvict) {
    payload_.Send(piece);
  } else {
    payload_.Expect(piece);
  }
}

bool StreamLane::OrderRoom() {
  return evicts_sent_ - evict_count_.load(std::memory_order_relaxed) < window_ &&
         commands_sent_ - command_count_.load(std::memory_order_relaxed) < window_ &&
         !At(evicts_, evicts_sent_ + 1).active && !At(commands_, commands_sent_ + 1).active &&
         // Each operation in flight finds room for its completion, however long the caller does not poll.
         active_ < completions_in_.Room().value_or(0);
}

bool StreamLane::Send(Lane& lane, OutBuffer& out) {
  if (out.empty() || !lane.writable) return false;
  const StreamState state = out.Flush(lane.fd.get());
  if (state == StreamState::kPartial) lane.writable = false;
  if (state == StreamState::kEnded) Break();
  return true;
}

StreamLane::Flight* StreamLane::Find(uint16_t opcode, uint64_t sequence) {
  const bool evict = opcode == static_cast<uint16_t>(Opcode::kEvict);
  const uint64_t sent = evict ? evicts_sent_ : commands_sent_;
  if (sequence == 0 || sequence > sent || sent - sequence >= window_) return nullptr;
  Flight& flight = At(Flights(evict), sequence);
  return flight.active && flight.order.descriptor.opcode == opcode ? &flight : nullptr;
}

bool StreamLane::ReceiveCompletions() {
  bool worked = false;
  using Step = EntryReader<proto::Completion>::Step;
  while (!broken() && hio_.readable) {
    proto::Completion completion;
    const Step step = completions_reader_.Next(hio_.fd.get(), &completion);
    if (step == Step::kWait) {
      hio_.readable = false;
      break;
    }
    Flight* flight = step == Step::kEntry ? Find(completion.opcode, completion.sequence) : nullptr;
    const proto::StreamHeader& header = completions_reader_.header();
    // Who counts further than there is would have nothing sent any more.
    if (flight == nullptr || flight->answered || completion.user_data != flight->order.descriptor.user_data ||
        header.request_id > evicts_sent_ || header.generation > commands_sent_) {
      Break();
      break;
    }
    worked = true;
    flight->answered = true;
    KVSS_STEP("completion received");
    flight->completion = completion;
    // No piece follows a refill that was not served, and nobody wants the piece of an evict that has failed.
    if (!flight->moved && completion.status != static_cast<uint16_t>(Status::kOk)) {
      Withdraw(*flight, completion.sequence);
    }
    FinishIfComplete(*flight);
    evict_count_.store(std::max(evict_count_.load(std::memory_order_relaxed), header.request_id),
                       std::memory_order_release);
    command_count_.store(std::max(command_count_.load(std::memory_order_relaxed), header.generation),
                         std::memory_order_release);
  }
  return worked;
}

bool StreamLane::ReceiveAcks() {
  bool worked = false;
  using Step = EntryReader<proto::TransferAck>::Step;
  while (!broken() && order_.readable) {
    proto::TransferAck ack;
    const Step step = acks_reader_.Next(order_.fd.get(), &ack);
    if (step == Step::kWait) {
      order_.readable = false;
      break;
    }
    const Flight* flight = step == Step::kEntry ? Find(ack.opcode, ack.sequence) : nullptr;
    if (flight == nullptr || flight->moved) {
      Break();
      break;
    }
    worked = true;
    Moved(static_cast<Opcode>(ack.opcode), ack.sequence, static_cast<Status>(ack.status));
  }
  return worked;
}

void StreamLane::Moved(Opcode opcode, uint64_t sequence, Status status) {
  Flight& flight = At(Flights(opcode == Opcode::kEvict), sequence);
  flight.moved = true;
  flight.failed = status != Status::kOk;
  KVSS_STEP("piece moved");
  FinishIfComplete(flight);
}

void StreamLane::Withdraw(const Flight& flight, uint64_t sequence) {
  const auto opcode = static_cast<Opcode>(flight.order.descriptor.opcode);
  if (!has_carrier()) {
    payload_.Withdraw(opcode, sequence);
    return;
  }
  proto::TransferOrder withdrawal{};
  withdrawal.opcode = flight.order.descriptor.opcode;
  withdrawal.flags = proto::order_flag::kWithdraw;
  withdrawal.sequence = sequence;
  AppendEntries(transfers_out_, StreamType::kOrders, &withdrawal, 1);
}

void StreamLane::FinishIfComplete(Flight& flight) {
  if (!flight.active || !flight.answered || !flight.moved) return;
  flight.active = false;
  --active_;
  // What the shard has to say against it is nearer to the cause.
  if (flight.failed && flight.completion.status == static_cast<uint16_t>(Status::kOk)) {
    flight.completion.status = static_cast<uint16_t>(Status::kTransferFailed);
  }
  completions_in_.Put(flight.completion);
  put_any_ = true;
}

void StreamLane::Wait(int timeout_ms) {
  thread_sleeping_.store(1, std::memory_order_relaxed);
  // Dekker with WakeThread.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const bool orders = orders_out_.Available().value_or(0) > 0 && OrderRoom();
  epoll_event events[16];
  const int count = ::epoll_wait(epoll_.get(), events, 16, orders || stopping_.load() ? 0 : timeout_ms);
  thread_sleeping_.store(0, std::memory_order_relaxed);
  for (int index = 0; index < count; ++index) {
    auto* lane = static_cast<LaneEvents*>(events[index].data.ptr);
    if (lane != nullptr) lane->Note(events[index].events);
  }
}

void StreamLane::Break() {
  broken_.store(true, std::memory_order_release);
  // Dekker with Arm.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (caller_sleeping_.load(std::memory_order_relaxed) != 0) ::eventfd_write(completion_wake_.get(), 1);
}

}  // namespace kvss
