#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/result.h"
#include "link/payload_lanes.h"

namespace kvss {

/// The carrier's end of a session with one shard: takes orders from a driver, moves the pieces between its
/// memory and the WIO lanes that it has opened to the shard, and acknowledges each. Has a thread of its own.
///
/// The driver counts the operations and the shard checks them; the carrier checks that both speak of the same
/// one. A driver that orders nonsense, or more than a window of a kind at once, loses its lanes.
class CarrierLane final : private PayloadSink {
 public:
  struct Connections {
    UniqueFd order;
    std::vector<UniqueFd> evict;
    std::vector<UniqueFd> refill;
  };

  /// Equal places, one piece each.
  struct Memory {
    std::byte* data = nullptr;
    uint32_t places = 0;
    uint64_t stride_bytes = 0;
    uint32_t piece_bytes = 0;
  };

  static Result<std::unique_ptr<CarrierLane>> Start(Connections connections, Memory memory, uint32_t window,
                                                    bool checksums);
  /// Without a thread: whoever has it calls Turn.
  static Result<std::unique_ptr<CarrierLane>> Create(Connections connections, Memory memory, uint32_t window,
                                                     bool checksums);
  /// Stops the thread: nothing touches the memory afterwards.
  ~CarrierLane();

  /// Does what can be done without waiting and answers whether there was anything. The thread does nothing
  /// else.
  bool Turn();
  /// Waits until there may be something to do, at most so long; -1 for ever.
  void Wait(int timeout_ms);
  /// A lane has ended, or the driver or the shard broke the protocol: nothing more will be moved.
  bool broken() const { return broken_; }

  /// Readable once the lane has ended by itself.
  int end_fd() const { return end_.get(); }
  uint64_t bytes_sent() const { return payload_.bytes_sent(); }
  uint64_t bytes_received() const { return payload_.bytes_received(); }

 private:
  CarrierLane(Connections connections, Memory memory, uint32_t window, bool checksums);

  struct OrderLane : LaneEvents {
    UniqueFd fd;
  };

  void Loop();
  bool TakeOrders();
  /// Answers false where the order cannot be.
  bool Take(const proto::TransferOrder& order);
  bool SendAcks();
  void Moved(proto::Opcode opcode, uint64_t sequence, proto::Status status) override;

  /// Transfers of one kind that have been ordered and not acknowledged, by sequence.
  struct Orders {
    explicit Orders(uint32_t window) : open(window) {}
    std::vector<uint64_t> open;  ///< 0 where there is none
    uint64_t last = 0;
  };
  Orders& OrdersOf(proto::Opcode opcode) { return opcode == proto::Opcode::kEvict ? evicts_ : refills_; }

  const uint32_t window_;
  const Memory memory_;
  OrderLane order_;
  PayloadLanes payload_;
  UniqueFd epoll_;
  UniqueFd stop_;
  UniqueFd end_;
  EntryReader<proto::TransferOrder> reader_{proto::StreamType::kOrders};
  std::vector<proto::TransferAck> acks_;  ///< not yet in out_
  OutBuffer out_;
  Orders evicts_;
  Orders refills_;
  bool broken_ = false;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace kvss
