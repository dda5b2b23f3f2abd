#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "link/payload_lanes.h"
#include "shm/ring.h"

namespace kvss {

/// An operation and where its bytes are: in the memory of this process, or at a place of the carrier.
struct alignas(64) StreamOrder {
  proto::Descriptor descriptor{};
  std::byte* memory = nullptr;
  uint32_t place = 0;
  uint32_t padding[13]{};
};
static_assert(sizeof(StreamOrder) == 128);

/// The driver's end of a session with one shard over streams, with a thread that does the sending and
/// receiving. The caller's thread submits and polls as with ShardLane.
///
/// The payload goes one of two ways. With WIO lanes it goes from and to the memory that an order names, and
/// that memory has to stay until the operation's completion has come, or the lane has been stopped. With an
/// order lane another process, the carrier, has the WIO lanes and the memory: it is told what to move, and
/// its acknowledgement takes the place of the bytes.
class StreamLane final : private PayloadSink {
 public:
  struct Connections {
    UniqueFd hio;
    UniqueFd order;  ///< to a carrier; invalid where there are WIO lanes
    std::vector<UniqueFd> evict;
    std::vector<UniqueFd> refill;
  };

  /// `checksums`: payload that is sent carries one. What comes in is checked wherever it has one.
  static Result<std::unique_ptr<StreamLane>> Start(Connections connections, uint32_t window, bool checksums);
  /// Without a thread: whoever has it calls Turn.
  static Result<std::unique_ptr<StreamLane>> Create(Connections connections, uint32_t window, bool checksums);
  /// Stops the thread: nothing touches the caller's memory afterwards.
  ~StreamLane();

  /// Does what can be done without waiting and answers whether there was anything. The thread does nothing
  /// else.
  bool Turn();
  /// Waits until there may be something to do, at most so long; -1 for ever.
  void Wait(int timeout_ms);

  /// Hands over as many of `count` orders as there is room for and answers how many.
  uint32_t Submit(const StreamOrder* orders, uint32_t count);
  uint32_t Poll(proto::Completion* completions, uint32_t limit);
  /// As ShardLane::Arm.
  bool Arm();
  void Disarm();
  int completion_wake_fd() const { return completion_wake_.get(); }

  /// A connection has ended or the other side broke the protocol: nothing more will complete.
  bool broken() const { return broken_.load(std::memory_order_acquire); }

  uint64_t evict_count() const { return evict_count_.load(std::memory_order_acquire); }
  uint64_t command_count() const { return command_count_.load(std::memory_order_acquire); }
  uint32_t window() const { return window_; }
  bool has_carrier() const { return order_.fd.valid(); }
  /// Bytes of pieces that this process has sent and received.
  uint64_t payload_bytes() const { return payload_.bytes_sent() + payload_.bytes_received(); }

 private:
  StreamLane(Connections connections, uint32_t window, bool checksums);

  struct Lane : LaneEvents {
    UniqueFd fd;
  };

  /// What is known of an operation in flight, by sequence in its queue.
  struct Flight {
    StreamOrder order{};
    proto::Completion completion{};
    bool active = false;
    bool answered = false;  ///< the completion has come
    bool moved = false;     ///< all bytes have gone or come, or never will
    bool failed = false;    ///< they never will, or are not those that their checksum names
  };

  void Loop();
  bool TakeOrders();
  void MovePayload(const StreamOrder& order, uint64_t sequence, Flight& flight);
  bool Send(Lane& lane, OutBuffer& out);
  bool ReceiveCompletions();
  bool ReceiveAcks();
  /// The bytes of an operation have gone or come.
  void Moved(proto::Opcode opcode, uint64_t sequence, proto::Status status) override;
  /// The operation has ended and its bytes are of no use any more.
  void Withdraw(const Flight& flight, uint64_t sequence);
  /// Whether one more order of either queue may go out.
  bool OrderRoom();
  void FinishIfComplete(Flight& flight);
  std::vector<Flight>& Flights(bool evict) { return evict ? evicts_ : commands_; }
  Flight& At(std::vector<Flight>& flights, uint64_t sequence) { return flights[sequence & (window_ - 1)]; }
  /// The operation that a completion or an acknowledgement is about; null where there is no such thing.
  Flight* Find(uint16_t opcode, uint64_t sequence);
  void WakeThread();
  void Break();

  const uint32_t window_;
  Lane hio_;
  Lane order_;
  PayloadLanes payload_;
  UniqueFd epoll_;
  UniqueFd order_wake_;
  UniqueFd completion_wake_;

  // Rings between the caller's thread and this one.
  std::atomic<uint64_t> orders_head_{kFirstPosition}, orders_tail_{kFirstPosition};
  std::atomic<uint64_t> completions_head_{kFirstPosition}, completions_tail_{kFirstPosition};
  std::vector<StreamOrder> order_entries_;
  std::vector<proto::Completion> completion_entries_;
  RingProducer<StreamOrder> orders_in_;
  RingConsumer<StreamOrder> orders_out_;
  RingProducer<proto::Completion> completions_in_;
  RingConsumer<proto::Completion> completions_out_;
  std::atomic<uint32_t> caller_sleeping_{0};
  std::atomic<uint32_t> thread_sleeping_{0};

  // Of the thread alone.
  uint32_t active_ = 0;  ///< operations in flight
  uint64_t evicts_sent_ = 0;
  uint64_t commands_sent_ = 0;
  std::vector<Flight> evicts_;
  std::vector<Flight> commands_;
  OutBuffer descriptors_out_;
  OutBuffer transfers_out_;
  std::vector<proto::TransferOrder> transfers_;  ///< not yet in transfers_out_
  EntryReader<proto::Completion> completions_reader_{proto::StreamType::kCompletions};
  EntryReader<proto::TransferAck> acks_reader_{proto::StreamType::kAcks};
  bool put_any_ = false;

  std::atomic<uint64_t> evict_count_{0};
  std::atomic<uint64_t> command_count_{0};
  std::atomic<bool> broken_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace kvss
