#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/engine_session.h"
#include "link/stream.h"
#include "shm/mapping.h"

namespace kvss {

/// A session over streams: one HIO lane for descriptors and completions, WIO lanes for payload. Evicts and
/// refills use different lanes, so that neither blocks the other. Bytes go from the socket straight into the
/// slot and from the slot straight into the socket.
///
/// Nothing is buffered without limit: descriptors are taken only while the shard core has room for them,
/// payload only for an evict that has started, and what a slow reader does not take stays in the slot.
class StreamSession final : public EngineSession, private CompletionSink, private TransferPort {
 public:
  /// `checksums`: payload that is sent carries one. What comes in is checked wherever it has one.
  StreamSession(uint64_t id, uint32_t window, bool checksums, ShardTally* tally);
  ~StreamSession() override;

  /// Adds lane `stream` of its kind and tells the other side that it is welcome, or that it is not.
  Outcome AddLane(proto::LaneKind kind, uint32_t stream, UniqueFd fd);

  using EngineSession::AddGrant;
  Outcome AddGrant(uint32_t grant_id, GrantMemory* memory, std::unique_ptr<SlotTable> table) override;
  const SlotTable* Table(uint32_t grant_id) const override { return core_.Table(grant_id); }
  Outcome RemoveGrant(uint32_t grant_id) override;
  bool Pump(uint64_t now_ns) override;
  bool HasWork() override;
  bool Unfinished() override;
  uint64_t next_deadline_ns() const override { return failed() ? UINT64_MAX : core_.next_deadline_ns(); }
  void AnnounceSleep(bool) override {}
  void WatchWith(int epoll_fd) override;
  void UnwatchWith(int epoll_fd) override;
  bool uses_streams() const override { return true; }
  void Close(uint64_t now_ns) override;
  std::unique_ptr<SlotTable> TakeTable(uint32_t grant_id) override {
    return misbehaved() ? nullptr : core_.TakeTable(grant_id);
  }

 private:
  struct Lane : LaneEvents {
    UniqueFd fd;
  };

  /// Where the payload of an evict that has started belongs.
  struct Incoming {
    std::byte* slot = nullptr;
    uint32_t bytes = 0;
    uint64_t generation = 0;
    bool begun = false;  ///< a lane is receiving it
  };

  struct EvictLane : Lane {
    enum class State : uint8_t { kHeader, kParked, kPayload, kDiscard };
    State state = State::kHeader;
    proto::StreamHeader header{};
    size_t have = 0;  ///< bytes of the header or the payload that have come
    std::byte* slot = nullptr;
  };

  struct RefillLane : Lane {
    std::deque<OutFrame> queue;
  };

  void Complete(const proto::Completion& completion) override;
  TransferState Begin(const Transfer& transfer) override;
  void Cancel(TransferKind kind, uint64_t sequence) override;

  template <typename AnyLane>
  static AnyLane* Enter(std::vector<std::unique_ptr<AnyLane>>& lanes, uint32_t stream);
  bool CanTakeDescriptors() const;
  bool TakeDescriptors(uint64_t now_ns);
  bool Receive(EvictLane& lane, uint64_t now_ns);
  bool ReceiveHeader(EvictLane& lane);
  void Route(EvictLane& lane);
  bool Send(RefillLane& lane, uint64_t now_ns);
  bool FinishCancelled(uint64_t now_ns);
  bool SendCompletions();
  void Watch(Lane& lane);

  std::unique_ptr<Lane> hio_;
  EntryReader<proto::Descriptor> descriptors_{proto::StreamType::kDescriptors};
  std::vector<proto::Completion> completions_;  ///< not yet in out_
  OutBuffer out_;
  std::vector<std::unique_ptr<EvictLane>> evict_lanes_;
  std::vector<std::unique_ptr<RefillLane>> refill_lanes_;
  std::unordered_map<uint32_t, std::byte*> grants_;
  std::unordered_map<uint64_t, Incoming> incoming_;
  /// A descriptor that was read and found no room in the core.
  proto::Descriptor held_{};
  bool holding_ = false;
  /// Transfers that were cancelled before a byte moved.
  std::vector<std::pair<TransferKind, uint64_t>> cancelled_;
  const uint32_t window_;
  const bool checksums_;
  int epoll_fd_ = -1;
  ShardSession core_;
};

}  // namespace kvss
