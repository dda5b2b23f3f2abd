#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "link/stream.h"
#include "shm/ring.h"

namespace kvss {

/// An operation and where its bytes are in the memory of this process.
struct alignas(64) StreamOrder {
  proto::Descriptor descriptor{};
  std::byte* memory = nullptr;
  uint64_t padding[7]{};
};
static_assert(sizeof(StreamOrder) == 128);

/// The driver's end of a session with one shard over streams, with a thread that does the sending and
/// receiving. The caller's thread submits and polls as with ShardLane; payload goes from and to the memory
/// that an order names, and that memory has to stay until the operation's completion has come, or the lane
/// has been stopped.
class StreamLane {
 public:
  struct Connections {
    UniqueFd hio;
    std::vector<UniqueFd> evict;
    std::vector<UniqueFd> refill;
  };

  /// `checksums`: payload that is sent carries one. What comes in is checked wherever it has one.
  static Result<std::unique_ptr<StreamLane>> Start(Connections connections, uint32_t window, bool checksums);
  /// Stops the thread: nothing touches the caller's memory afterwards.
  ~StreamLane();

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

 private:
  StreamLane(Connections connections, uint32_t window, bool checksums);

  struct Socket {
    UniqueFd fd;
    bool readable = true;
    bool writable = true;
  };

  struct EvictSocket : Socket {
    std::deque<OutFrame> queue;  ///< payload of evicts that has not gone out
  };

  struct RefillSocket : Socket {
    proto::StreamHeader header{};
    std::byte* memory = nullptr;  ///< where the payload goes; null while a header is read
    size_t have = 0;
  };

  /// What is known of an operation in flight, by sequence in its queue.
  struct Flight {
    StreamOrder order{};
    proto::Completion completion{};
    bool active = false;
    bool answered = false;  ///< the completion has come
    bool damaged = false;   ///< the bytes that came are not those that its checksum names
    bool moved = false;     ///< all bytes have gone or come
  };

  void Loop();
  bool TakeOrders();
  bool SendDescriptors();
  bool SendPayload(EvictSocket& socket);
  bool ReceivePayload(RefillSocket& socket);
  bool ReceiveCompletions();
  /// Whether one more order of either queue may go out.
  bool OrderRoom();
  void FinishIfComplete(Flight& flight);
  /// After an evict was answered: its payload is of no use any more unless half of it has gone.
  void DropPayload(uint64_t sequence);
  Flight& At(std::vector<Flight>& flights, uint64_t sequence) { return flights[sequence & (window_ - 1)]; }
  void Wait();
  void WakeThread();
  void Break();

  const uint32_t window_;
  const bool checksums_;
  Socket hio_;
  std::vector<std::unique_ptr<EvictSocket>> evict_;
  std::vector<std::unique_ptr<RefillSocket>> refill_;
  UniqueFd epoll_;
  UniqueFd order_wake_;
  UniqueFd completion_wake_;

  // Rings between the caller's thread and this one.
  std::atomic<uint64_t> orders_head_{0}, orders_tail_{0}, completions_head_{0}, completions_tail_{0};
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
  OutBuffer out_;
  EntryReader<proto::Completion> reader_{proto::StreamType::kCompletions};
  bool put_any_ = false;

  std::atomic<uint64_t> evict_count_{0};
  std::atomic<uint64_t> command_count_{0};
  std::atomic<bool> broken_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace kvss
