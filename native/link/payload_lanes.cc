#include "link/payload_lanes.h"

#include <sys/epoll.h>

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/step.h"

namespace kvss {
namespace {

using proto::Opcode;
using proto::Status;
using proto::StreamType;

// Pieces that are sent on one lane before the others have their turn.
constexpr size_t kFramesPerTurn = 256;

}  // namespace

PayloadLanes::PayloadLanes(std::vector<UniqueFd> evict, std::vector<UniqueFd> refill, uint32_t window,
                           bool checksums, PayloadSink* sink)
    : window_(window), checksums_(checksums), sink_(sink), expected_(window) {
  KVSS_CHECK(std::has_single_bit(window));
  for (UniqueFd& fd : evict) {
    evict_.push_back(std::make_unique<EvictLane>());
    evict_.back()->fd = std::move(fd);
  }
  for (UniqueFd& fd : refill) {
    refill_.push_back(std::make_unique<RefillLane>());
    refill_.back()->fd = std::move(fd);
  }
}

bool PayloadLanes::WatchWith(int epoll_fd) {
  const auto watch = [epoll_fd](const auto& lane) { return WatchLane(epoll_fd, lane->fd.get(), lane.get()); };
  return std::ranges::all_of(evict_, watch) && std::ranges::all_of(refill_, watch);
}

void PayloadLanes::Send(const Piece& piece) {
  proto::StreamHeader header =
      MakeHeader(StreamType::kPayload, piece.bytes, piece.sequence, piece.generation);
  if (checksums_) header.checksum = FrameChecksum({piece.memory, piece.bytes});
  evict_[piece.sequence % evict_.size()]->queue.push_back({header, piece.memory, 0});
}

void PayloadLanes::Expect(const Piece& piece) {
  expected_[piece.sequence & (window_ - 1)] = piece;
  last_expected_ = piece.sequence;
}

void PayloadLanes::Withdraw(Opcode opcode, uint64_t sequence) {
  if (opcode == Opcode::kRefill) {
    Piece& piece = expected_[sequence & (window_ - 1)];
    if (piece.memory == nullptr || piece.sequence != sequence) return;
    const bool coming = std::ranges::any_of(refill_, [&](const auto& lane) {
      return lane->memory != nullptr && lane->header.request_id == sequence;
    });
    // A shard that has begun to send a piece sends all of it, or ends the lane.
    if (coming) return;
    piece.memory = nullptr;
    sink_->Moved(opcode, sequence, Status::kCancelled);
    return;
  }
  for (const auto& lane : evict_) {
    const auto frame =
        std::ranges::find(lane->queue, sequence, [](const OutFrame& each) { return each.header.request_id; });
    // What has half gone has to go whole: the lane would be out of step.
    if (frame == lane->queue.end() || frame->sent > 0) continue;
    lane->queue.erase(frame);
    sink_->Moved(opcode, sequence, Status::kCancelled);
    return;
  }
}

bool PayloadLanes::Pump() {
  bool worked = false;
  for (const auto& lane : evict_) worked |= SendOn(*lane);
  for (const auto& lane : refill_) worked |= ReceiveOn(*lane);
  return worked;
}

bool PayloadLanes::SendOn(EvictLane& lane) {
  if (lane.readable) {
    // Nothing is ever sent towards us on this lane: it can only have ended.
    lane.readable = false;
    std::byte unexpected;
    size_t have = 0;
    if (ReceiveInto(lane.fd.get(), {&unexpected, 1}, &have) != StreamState::kPartial) {
      broken_ = true;
      return true;
    }
  }
  if (broken_ || !lane.writable || lane.queue.empty()) return false;
  const StreamState state =
      SendFrames(lane.fd.get(), lane.queue, kFramesPerTurn, [&](const proto::StreamHeader& header) {
        bytes_sent_.store(bytes_sent() + header.length, std::memory_order_relaxed);
        sink_->Moved(Opcode::kEvict, header.request_id, Status::kOk);
      });
  if (state == StreamState::kPartial) lane.writable = false;
  if (state == StreamState::kEnded) broken_ = true;
  return true;
}

bool PayloadLanes::ReceiveOn(RefillLane& lane) {
  bool worked = false;
  while (!broken_) {
    if (lane.have_header && lane.memory == nullptr && !Match(lane)) return worked;
    if (!lane.readable) return worked;
    const bool header = !lane.have_header;
    const StreamState state =
        header ? ReceiveInto(lane.fd.get(), std::as_writable_bytes(std::span(&lane.header, 1)), &lane.have)
               : ReceiveInto(lane.fd.get(), {lane.memory, lane.header.length}, &lane.have);
    if (state == StreamState::kEnded) broken_ = true;
    if (state == StreamState::kPartial) lane.readable = false;
    if (state != StreamState::kDone) return worked;
    worked = true;
    lane.have = 0;
    lane.have_header = header;
    if (header) continue;
    const bool intact = ChecksumHolds(lane.header, {lane.memory, lane.header.length});
    lane.memory = nullptr;
    expected_[lane.header.request_id & (window_ - 1)].memory = nullptr;
    bytes_received_.store(bytes_received() + lane.header.length, std::memory_order_relaxed);
    sink_->Moved(Opcode::kRefill, lane.header.request_id, intact ? Status::kOk : Status::kTransferFailed);
  }
  return worked;
}

bool PayloadLanes::Match(RefillLane& lane) {
  const proto::StreamHeader& header = lane.header;
  if (!ValidHeader(header, StreamType::kPayload, proto::kMaxPieceBytes)) {
    broken_ = true;
    return false;
  }
  if (header.request_id > last_expected_) return false;
  const Piece& piece = expected_[header.request_id & (window_ - 1)];
  const bool taken = std::ranges::any_of(refill_, [&](const auto& other) {
    return other->memory != nullptr && other->header.request_id == header.request_id;
  });
  // Everything is compared with what was asked: bytes of another operation must not reach this memory.
  if (piece.memory == nullptr || piece.sequence != header.request_id || piece.bytes != header.length ||
      piece.generation != header.generation || taken) {
    broken_ = true;
    return false;
  }
  lane.memory = piece.memory;
  KVSS_STEP("memory of a piece found");
  return true;
}

}  // namespace kvss
