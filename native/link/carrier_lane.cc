#include "link/carrier_lane.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <bit>

#include "base/step.h"

namespace kvss {
namespace {

using proto::Opcode;
using proto::Status;
using proto::StreamType;

// Orders that are taken between two looks at the WIO lanes.
constexpr uint32_t kOrdersPerTurn = 256;

}  // namespace

Result<std::unique_ptr<CarrierLane>> CarrierLane::Start(Connections connections, Memory memory,
                                                        uint32_t window, bool checksums) {
  auto lane = Create(std::move(connections), memory, window, checksums);
  if (lane.ok()) lane.value()->thread_ = std::thread([raw = lane.value().get()] { raw->Loop(); });
  return lane;
}

Result<std::unique_ptr<CarrierLane>> CarrierLane::Create(Connections connections, Memory memory,
                                                         uint32_t window, bool checksums) {
  KVSS_CHECK(std::has_single_bit(window) && !connections.evict.empty() && !connections.refill.empty());
  std::unique_ptr<CarrierLane> lane(new CarrierLane(std::move(connections), memory, window, checksums));
  epoll_event stop{.events = EPOLLIN, .data = {.ptr = nullptr}};
  const int epoll = lane->epoll_.get();
  const bool watched = lane->epoll_.valid() && lane->stop_.valid() && lane->end_.valid() &&
                       ::epoll_ctl(epoll, EPOLL_CTL_ADD, lane->stop_.get(), &stop) == 0 &&
                       WatchLane(epoll, lane->order_.fd.get(), &lane->order_) &&
                       lane->payload_.WatchWith(epoll);
  if (!watched) return SystemError(Status::kLimitExceeded, "cannot start a carrier lane");
  return lane;
}

CarrierLane::CarrierLane(Connections connections, Memory memory, uint32_t window, bool checksums)
    : window_(window),
      memory_(memory),
      payload_(std::move(connections.evict), std::move(connections.refill), window, checksums, this),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      stop_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      end_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      evicts_(window),
      refills_(window) {
  order_.fd = std::move(connections.order);
}

CarrierLane::~CarrierLane() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  ::eventfd_write(stop_.get(), 1);
  thread_.join();
}

void CarrierLane::Loop() {
  while (!stopping_.load(std::memory_order_relaxed) && !broken_) {
    if (!Turn()) Wait(-1);
  }
}

bool CarrierLane::Turn() {
  if (broken_) return false;
  bool worked = TakeOrders();
  worked |= payload_.Pump();
  worked |= SendAcks();
  broken_ |= payload_.broken();
  if (broken_) ::eventfd_write(end_.get(), 1);
  return worked;
}

bool CarrierLane::TakeOrders() {
  bool worked = false;
  using Step = EntryReader<proto::TransferOrder>::Step;
  for (uint32_t taken = 0; taken < kOrdersPerTurn && order_.readable && !broken_; ++taken) {
    // A driver that does not read its acknowledgements gets no more orders taken.
    if (out_.size() / sizeof(proto::TransferAck) >= 4 * uint64_t{window_}) break;
    proto::TransferOrder order;
    const Step step = reader_.Next(order_.fd.get(), &order);
    if (step == Step::kWait) {
      order_.readable = false;
      break;
    }
    worked = true;
    broken_ = step != Step::kEntry || !Take(order);
  }
  return worked;
}

bool CarrierLane::Take(const proto::TransferOrder& order) {
  const auto opcode = static_cast<Opcode>(order.opcode);
  if ((opcode != Opcode::kEvict && opcode != Opcode::kRefill) || order.sequence == 0 || order.reserved != 0) {
    return false;
  }
  Orders& orders = OrdersOf(opcode);
  uint64_t& open = orders.open[order.sequence & (window_ - 1)];
  if (order.flags == proto::order_flag::kWithdraw) {
    // One that has been acknowledged meanwhile needs no second word.
    if (open == order.sequence) payload_.Withdraw(opcode, order.sequence);
    return order.sequence <= orders.last;
  }
  if (order.flags != 0 || order.sequence <= orders.last || open != 0 || order.place >= memory_.places ||
      order.piece_bytes != memory_.piece_bytes) {
    return false;
  }
  open = order.sequence;
  orders.last = order.sequence;
  KVSS_STEP("order taken by the carrier");
  const PayloadLanes::Piece piece{order.sequence, order.generation,
                                  memory_.data + order.place * memory_.stride_bytes, order.piece_bytes};
  if (opcode == Opcode::kEvict) {
    payload_.Send(piece);
  } else {
    payload_.Expect(piece);
  }
  return true;
}

void CarrierLane::Moved(Opcode opcode, uint64_t sequence, Status status) {
  OrdersOf(opcode).open[sequence & (window_ - 1)] = 0;
  proto::TransferAck ack{};
  ack.opcode = static_cast<uint16_t>(opcode);
  ack.status = static_cast<uint16_t>(status);
  ack.sequence = sequence;
  acks_.push_back(ack);
  KVSS_STEP("piece moved by the carrier, not acknowledged");
}

bool CarrierLane::SendAcks() {
  bool worked = false;
  if (!acks_.empty()) {
    AppendEntries(out_, StreamType::kAcks, acks_.data(), acks_.size());
    acks_.clear();
    KVSS_STEP("acknowledgements about to be sent");
    worked = true;
  }
  if (out_.empty() || !order_.writable) return worked;
  const StreamState state = out_.Flush(order_.fd.get());
  if (state == StreamState::kPartial) order_.writable = false;
  if (state == StreamState::kEnded) broken_ = true;
  return true;
}

void CarrierLane::Wait(int timeout_ms) {
  epoll_event events[16];
  const int count = ::epoll_wait(epoll_.get(), events, 16, timeout_ms);
  for (int index = 0; index < count; ++index) {
    auto* lane = static_cast<LaneEvents*>(events[index].data.ptr);
    if (lane != nullptr) lane->Note(events[index].events);
  }
}

}  // namespace kvss
