#include "engine/stream_session.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "base/step.h"
#include "link/stream_listener.h"

namespace kvss {
namespace {

using proto::Opcode;
using proto::Status;
using proto::StreamType;

// Bounds of a turn: enough to amortise it, few enough that other sessions, and the evicts of this one, do not
// wait.
constexpr uint32_t kDescriptorsPerTurn = 256;
constexpr size_t kFramesPerTurn = 16;

bool IsEvict(const proto::Descriptor& descriptor) {
  return descriptor.opcode == static_cast<uint16_t>(Opcode::kEvict);
}

/// Visits the lanes that are there: they are numbered by their clients, and may come in any order.
template <typename Lanes, typename Visit>
void ForEach(const Lanes& lanes, Visit&& visit) {
  for (const auto& lane : lanes) {
    if (lane) visit(*lane);
  }
}

}  // namespace

StreamSession::StreamSession(uint64_t id, uint32_t window, bool checksums, ShardTally* tally)
    : EngineSession(id), window_(window), checksums_(checksums), core_(window, this, this, tally) {}

StreamSession::~StreamSession() = default;

Outcome StreamSession::AddLane(proto::LaneKind kind, uint32_t stream, UniqueFd fd) {
  TuneStream(fd.get());
  Lane* lane = nullptr;
  if (kind == proto::LaneKind::kHio && stream == 0 && !hio_) {
    hio_ = std::make_unique<Lane>();
    lane = hio_.get();
  } else if (kind == proto::LaneKind::kWioEvict) {
    lane = Enter(evict_lanes_, stream);
  } else if (kind == proto::LaneKind::kWioRefill) {
    lane = Enter(refill_lanes_, stream);
  }
  // Answered here: the other side may use the lane as soon as it is welcome, and nothing else may be sent
  // before.
  AnswerLane(fd.get(), lane != nullptr ? Status::kOk : Status::kNotAllowed);
  if (lane == nullptr)
    return Error{Status::kNotAllowed, "the session cannot have this lane, or has it already"};
  KVSS_STEP("lane welcome, not watched");
  lane->fd = std::move(fd);
  Watch(*lane);
  return Nothing{};
}

template <typename AnyLane>
AnyLane* StreamSession::Enter(std::vector<std::unique_ptr<AnyLane>>& lanes, uint32_t stream) {
  if (stream >= proto::kMaxWioStreams) return nullptr;
  if (lanes.size() <= stream) lanes.resize(stream + 1);
  if (lanes[stream]) return nullptr;
  lanes[stream] = std::make_unique<AnyLane>();
  return lanes[stream].get();
}

void StreamSession::Watch(Lane& lane) {
  if (epoll_fd_ < 0) return;
  // The engine would never hear that a lane is ready again: better none at all than one that is deaf.
  if (!WatchLane(epoll_fd_, lane.fd.get(), &lane)) Fail(SessionFault::kLaneEnded);
}

void StreamSession::WatchWith(int epoll_fd) {
  epoll_fd_ = epoll_fd;
  if (hio_) Watch(*hio_);
  ForEach(evict_lanes_, [this](EvictLane& lane) { Watch(lane); });
  ForEach(refill_lanes_, [this](RefillLane& lane) { Watch(lane); });
}

void StreamSession::UnwatchWith(int epoll_fd) {
  const auto remove = [epoll_fd](const Lane& lane) {
    (void)::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, lane.fd.get(), nullptr);
  };
  if (hio_) remove(*hio_);
  ForEach(evict_lanes_, remove);
  ForEach(refill_lanes_, remove);
  epoll_fd_ = -1;
}

Outcome StreamSession::AddGrant(uint32_t grant_id, GrantMemory* memory, std::unique_ptr<SlotTable> table) {
  Outcome added = core_.AddGrant(grant_id, std::move(table));
  if (added.ok()) grants_.emplace(grant_id, memory->mapping.data());
  return added;
}

Outcome StreamSession::RemoveGrant(uint32_t grant_id) {
  Outcome removed = core_.RemoveGrant(grant_id);
  if (removed.ok()) grants_.erase(grant_id);
  return removed;
}

bool StreamSession::Pump(uint64_t now_ns) {
  if (failed()) return false;
  bool worked = TakeDescriptors(now_ns);
  ForEach(evict_lanes_, [&](EvictLane& lane) { worked |= Receive(lane, now_ns); });
  core_.ExpireDeadlines(now_ns);
  worked |= FinishCancelled(now_ns);
  ForEach(refill_lanes_, [&](RefillLane& lane) { worked |= Send(lane, now_ns); });
  worked |= SendCompletions();
  return worked;
}

bool StreamSession::CanTakeDescriptors() const {
  if (!hio_ || (!hio_->readable && !holding_)) return false;
  // A client that does not read its completions gets no more operations taken.
  if (completions_.size() + out_.size() / sizeof(proto::Completion) >= 2 * window_) return false;
  return !holding_ || (IsEvict(held_) ? core_.EvictRoom() : core_.CommandRoom()) > 0;
}

bool StreamSession::TakeDescriptors(uint64_t now_ns) {
  uint32_t taken = 0;
  while (taken < kDescriptorsPerTurn && CanTakeDescriptors()) {
    if (!holding_) {
      const auto step = descriptors_.Next(hio_->fd.get(), &held_);
      using Step = EntryReader<proto::Descriptor>::Step;
      if (step == Step::kWait) {
        hio_->readable = false;
        break;
      }
      if (step != Step::kEntry) {
        Fail(step == Step::kEnded ? SessionFault::kLaneEnded : SessionFault::kProtocol);
        return taken > 0;
      }
      holding_ = true;
      // Whether there is room for it is the loop's question.
      continue;
    }
    holding_ = false;
    ++taken;
    KVSS_STEP("descriptor taken from a lane");
    IsEvict(held_) ? core_.AcceptEvict(held_, now_ns) : core_.AcceptCommand(held_, now_ns);
  }
  return taken > 0;
}

TransferState StreamSession::Begin(const Transfer& transfer) {
  std::byte* slot = grants_.at(transfer.grant_id) + transfer.offset;
  switch (transfer.kind) {
    case TransferKind::kReceive:
      incoming_.emplace(transfer.sequence, Incoming{slot, transfer.bytes, transfer.generation});
      return TransferState::kPending;
    case TransferKind::kSend: {
      if (refill_lanes_.empty()) return TransferState::kFailed;
      RefillLane* lane = refill_lanes_[transfer.sequence % refill_lanes_.size()].get();
      if (lane == nullptr) return TransferState::kFailed;
      proto::StreamHeader header =
          MakeHeader(StreamType::kPayload, transfer.bytes, transfer.sequence, transfer.generation);
      if (checksums_) header.checksum = FrameChecksum({slot, transfer.bytes});
      lane->queue.push_back({header, slot, 0});
      return TransferState::kPending;
    }
    case TransferKind::kScrub:
      // No client maps this memory, so nothing can be wrong with its pages.
      std::memset(slot, 0, transfer.bytes);
      return TransferState::kDone;
  }
  return TransferState::kFailed;
}

void StreamSession::Cancel(TransferKind kind, uint64_t sequence) {
  if (kind == TransferKind::kReceive) {
    const auto found = incoming_.find(sequence);
    if (found == incoming_.end()) return;
    ForEach(evict_lanes_, [&](EvictLane& lane) {
      // The rest is still to come over this lane, but no longer into the slot.
      if (lane.state == EvictLane::State::kPayload && lane.header.request_id == sequence) {
        lane.state = EvictLane::State::kDiscard;
      }
    });
    incoming_.erase(found);
    cancelled_.emplace_back(kind, sequence);
    return;
  }
  ForEach(refill_lanes_, [&](RefillLane& lane) {
    const auto found = std::ranges::find(lane.queue, sequence,
                                         [](const OutFrame& frame) { return frame.header.request_id; });
    if (found == lane.queue.end()) return;
    if (found->sent > 0) {
      // Half a frame has gone out and the reader takes no more. The lane cannot be used for anything else.
      Fail(SessionFault::kLaneEnded);
      return;
    }
    lane.queue.erase(found);
    cancelled_.emplace_back(kind, sequence);
  });
}

bool StreamSession::FinishCancelled(uint64_t now_ns) {
  if (cancelled_.empty()) return false;
  for (const auto& [kind, sequence] : std::exchange(cancelled_, {})) {
    core_.TransferFinished(kind, sequence, false, now_ns);
  }
  return true;
}

bool StreamSession::Receive(EvictLane& lane, uint64_t now_ns) {
  bool worked = false;
  size_t left = kLaneBytesPerTurn;
  for (size_t frames = 0; frames < kFramesPerTurn && !failed(); ++frames) {
    if (lane.state == EvictLane::State::kHeader && !ReceiveHeader(lane)) return worked;
    if (lane.state == EvictLane::State::kParked) Route(lane);
    if (lane.state == EvictLane::State::kParked || failed() || !lane.readable) return worked;
    worked = true;
    const size_t before = lane.have;
    const size_t end = std::min<size_t>(lane.header.length, before + left);
    StreamState state;
    if (lane.state == EvictLane::State::kPayload) {
      state = ReceiveInto(lane.fd.get(), {lane.slot, end}, &lane.have);
    } else {
      std::byte scrap[4096];
      size_t have = 0;
      do {
        have = 0;
        const size_t wanted = std::min(sizeof(scrap), end - lane.have);
        state = ReceiveInto(lane.fd.get(), {scrap, wanted}, &have);
        lane.have += have;
      } while (state == StreamState::kDone && lane.have < end);
    }
    left -= lane.have - before;
    if (state == StreamState::kEnded) {
      Fail(SessionFault::kLaneEnded);
      return worked;
    }
    if (state == StreamState::kPartial) {
      lane.readable = false;
      return worked;
    }
    // The others first; the rest in another turn.
    if (lane.have < lane.header.length) return worked;
    const bool stored = lane.state == EvictLane::State::kPayload;
    lane.state = EvictLane::State::kHeader;
    lane.have = 0;
    if (!stored) continue;
    incoming_.erase(lane.header.request_id);
    KVSS_STEP("piece received whole");
    core_.TransferFinished(TransferKind::kReceive, lane.header.request_id,
                           ChecksumHolds(lane.header, {lane.slot, lane.header.length}), now_ns);
  }
  return worked;
}

bool StreamSession::ReceiveHeader(EvictLane& lane) {
  if (!lane.readable) return false;
  const StreamState state =
      ReceiveInto(lane.fd.get(), std::as_writable_bytes(std::span(&lane.header, 1)), &lane.have);
  if (state == StreamState::kPartial) {
    lane.readable = false;
    return false;
  }
  if (state == StreamState::kEnded ||
      !ValidHeader(lane.header, StreamType::kPayload, proto::kMaxPieceBytes)) {
    Fail(state == StreamState::kEnded ? SessionFault::kLaneEnded : SessionFault::kProtocol);
    return false;
  }
  lane.have = 0;
  lane.state = EvictLane::State::kParked;
  return true;
}

/// Decides where the payload behind a header goes: into its slot, to nowhere, or not yet anywhere.
void StreamSession::Route(EvictLane& lane) {
  const uint64_t sequence = lane.header.request_id;
  const auto found = incoming_.find(sequence);
  if (found == incoming_.end()) {
    // Its descriptor has not come yet or waits for its gate; or the evict has ended without its bytes.
    if (core_.EvictEnded(sequence)) lane.state = EvictLane::State::kDiscard;
    if (sequence == 0 || sequence > core_.evicts_accepted() + window_) Fail(SessionFault::kProtocol);
    return;
  }
  Incoming& incoming = found->second;
  if (incoming.begun || incoming.bytes != lane.header.length ||
      incoming.generation != lane.header.generation) {
    Fail(SessionFault::kProtocol);
    return;
  }
  incoming.begun = true;
  lane.slot = incoming.slot;
  lane.state = EvictLane::State::kPayload;
  KVSS_STEP("piece about to be received");
}

bool StreamSession::Send(RefillLane& lane, uint64_t now_ns) {
  if (lane.readable) {
    // Nothing is ever sent on this lane towards us: it can only have ended.
    lane.readable = false;
    std::byte unexpected;
    size_t have = 0;
    const StreamState state = ReceiveInto(lane.fd.get(), {&unexpected, 1}, &have);
    if (state != StreamState::kPartial) {
      Fail(state == StreamState::kEnded ? SessionFault::kLaneEnded : SessionFault::kProtocol);
      return true;
    }
  }
  if (!lane.writable || lane.queue.empty()) return false;
  // Finishing a transfer may start others, which join the queue behind.
  const StreamState state =
      SendFrames(lane.fd.get(), lane.queue, kFramesPerTurn, [&](const proto::StreamHeader& header) {
        KVSS_STEP("piece sent whole");
        core_.TransferFinished(TransferKind::kSend, header.request_id, true, now_ns);
      });
  if (state == StreamState::kPartial) lane.writable = false;
  if (state == StreamState::kEnded) Fail(SessionFault::kLaneEnded);
  return true;
}

void StreamSession::Complete(const proto::Completion& completion) { completions_.push_back(completion); }

bool StreamSession::SendCompletions() {
  if (!hio_) return false;
  const bool worked = !completions_.empty();
  if (worked) {
    AppendEntries(out_, StreamType::kCompletions, completions_.data(), completions_.size(),
                  core_.evict_count(), core_.command_count());
    completions_.clear();
    KVSS_STEP("completions about to be sent");
  }
  if (out_.empty() || !hio_->writable) return worked;
  switch (out_.Flush(hio_->fd.get())) {
    case StreamState::kDone:
      break;
    case StreamState::kPartial:
      hio_->writable = false;
      break;
    case StreamState::kEnded:
      Fail(SessionFault::kLaneEnded);
      break;
  }
  return true;
}

bool StreamSession::HasWork() {
  if (failed()) return fault_unreported();
  if (!cancelled_.empty() || !completions_.empty() || CanTakeDescriptors()) return true;
  bool work = hio_ && hio_->writable && !out_.empty();
  ForEach(evict_lanes_, [&](EvictLane& lane) {
    const uint64_t sequence = lane.header.request_id;
    const bool parked = lane.state == EvictLane::State::kParked;
    work |= parked ? incoming_.contains(sequence) || core_.EvictEnded(sequence) : lane.readable;
  });
  ForEach(refill_lanes_,
          [&](RefillLane& lane) { work |= lane.readable || (lane.writable && !lane.queue.empty()); });
  return work;
}

bool StreamSession::Unfinished() { return !failed() && (!core_.idle() || holding_ || !out_.empty()); }

void StreamSession::Close(uint64_t now_ns) {
  core_.Close(now_ns);
  FinishCancelled(now_ns);
  // What was half on its way ends here: the lanes are closed, so nothing touches the slots any more.
  hio_.reset();
  KVSS_STEP("lanes half closed");
  evict_lanes_.clear();
  std::vector<uint64_t> half_sent;
  ForEach(refill_lanes_, [&](RefillLane& lane) {
    for (const OutFrame& frame : lane.queue) half_sent.push_back(frame.header.request_id);
  });
  refill_lanes_.clear();
  for (const uint64_t sequence : half_sent)
    core_.TransferFinished(TransferKind::kSend, sequence, false, now_ns);
  KVSS_CHECK(core_.quiescent());
}

}  // namespace kvss
