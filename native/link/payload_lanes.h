#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "link/stream.h"

namespace kvss {

/// Hears that the piece of an operation has been sent or received, or that nothing more of it will be. Its
/// memory is not touched any more.
class PayloadSink {
 public:
  virtual void Moved(proto::Opcode opcode, uint64_t sequence, proto::Status status) = 0;

 protected:
  ~PayloadSink() = default;
};

/// The runtime's ends of the WIO lanes of one session on one shard: sends the pieces of evicts from memory
/// and receives the pieces of refills into memory. Has no thread: its owner calls Pump, and its epoll says
/// when.
///
/// Everything that comes in is compared with what is expected. A piece that nobody expects yet waits in its
/// lane, because the word of it may travel another way; one that nobody can expect breaks the lanes.
class PayloadLanes {
 public:
  struct Piece {
    uint64_t sequence = 0;
    uint64_t generation = 0;
    std::byte* memory = nullptr;
    uint32_t bytes = 0;
  };

  /// `window`: most operations of each queue that are unfinished at once, a power of two. `checksums`: pieces
  /// that are sent carry one; what comes in is checked wherever it has one.
  PayloadLanes(std::vector<UniqueFd> evict, std::vector<UniqueFd> refill, uint32_t window, bool checksums,
               PayloadSink* sink);

  /// Enters the lanes into an epoll; the data of their events is a LaneEvents.
  bool WatchWith(int epoll_fd);

  bool sends() const { return !evict_.empty(); }
  bool receives() const { return !refill_.empty(); }

  /// Sends a piece. Sequences rise.
  void Send(const Piece& piece);
  /// Receives a piece. Sequences rise.
  void Expect(const Piece& piece);
  /// The operation has ended without its bytes. Reports it moved with `cancelled`, now or when the rest of a
  /// piece that is half on its way has gone. Does nothing where it has moved already.
  void Withdraw(proto::Opcode opcode, uint64_t sequence);

  /// Moves what can be moved without waiting and answers whether there was anything.
  bool Pump();
  /// A lane has ended, or the other side broke the protocol.
  bool broken() const { return broken_; }

  uint64_t bytes_sent() const { return bytes_sent_.load(std::memory_order_relaxed); }
  uint64_t bytes_received() const { return bytes_received_.load(std::memory_order_relaxed); }

 private:
  struct Lane : LaneEvents {
    UniqueFd fd;
  };
  struct EvictLane : Lane {
    std::deque<OutFrame> queue;
  };
  struct RefillLane : Lane {
    proto::StreamHeader header{};
    std::byte* memory = nullptr;  ///< where the piece goes; null while its header has not been matched
    bool have_header = false;
    size_t have = 0;  ///< bytes of the header, or of the piece
  };

  bool SendOn(EvictLane& lane);
  bool ReceiveOn(RefillLane& lane);
  /// Finds the memory for the piece behind a header. Answers false where nobody expects it yet, or ever.
  bool Match(RefillLane& lane);

  const uint32_t window_;
  const bool checksums_;
  PayloadSink* const sink_;
  std::vector<std::unique_ptr<EvictLane>> evict_;
  std::vector<std::unique_ptr<RefillLane>> refill_;
  std::vector<Piece> expected_;  ///< by sequence; memory is null where nothing is expected
  uint64_t last_expected_ = 0;
  bool broken_ = false;
  std::atomic<uint64_t> bytes_sent_{0};
  std::atomic<uint64_t> bytes_received_{0};
};

}  // namespace kvss
