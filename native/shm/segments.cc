#include "shm/segments.h"

#include "base/step.h"

namespace kvss {
namespace {

// The rings start on a page of their own behind the header.
constexpr uint64_t kRingsOffset = 4096;
static_assert(kRingsOffset >= sizeof(proto::SubmitSegment) && kRingsOffset >= sizeof(proto::StatusSegment));

uint64_t RingBytes(uint32_t entries) { return uint64_t{entries} * sizeof(proto::Descriptor); }
uint64_t SubmitBytes(uint32_t entries) { return kRingsOffset + 2 * RingBytes(entries); }
uint64_t StatusBytes(uint32_t entries) {
  return kRingsOffset + 2 * uint64_t{entries} * sizeof(proto::Completion);
}

Error Mismatch(const std::string& what) {
  return Error{proto::Status::kBadVersion, "the daemon's " + what + " does not look as this version expects"};
}

}  // namespace

bool ValidRingEntries(uint32_t entries) {
  return entries >= proto::kMinRingEntries && entries <= proto::kMaxRingEntries &&
         (entries & (entries - 1)) == 0;
}

Result<SessionSegments> SessionSegments::Create(uint32_t ring_entries) {
  KVSS_CHECK(ValidRingEntries(ring_entries));
  SessionSegments segments;
  segments.ring_entries_ = ring_entries;

  auto submit = MemoryObject::Create("kvss-submit", SubmitBytes(ring_entries), HugePages::kNever);
  if (!submit.ok()) return submit.error();
  segments.submit_object_ = std::move(submit.value());
  auto status = MemoryObject::Create("kvss-status", StatusBytes(ring_entries), HugePages::kNever);
  if (!status.ok()) return status.error();
  segments.status_object_ = std::move(status.value());

  auto submit_map =
      Mapping::Map(segments.submit_object_.fd(), segments.submit_object_.bytes(), Access::kReadWrite);
  if (!submit_map.ok()) return submit_map.error();
  segments.submit_map_ = std::move(submit_map.value());
  auto status_map =
      Mapping::Map(segments.status_object_.fd(), segments.status_object_.bytes(), Access::kReadWrite);
  if (!status_map.ok()) return status_map.error();
  segments.status_map_ = std::move(status_map.value());
  if (Outcome sealed = segments.status_object_.ForbidNewWriters(); !sealed.ok()) return sealed.error();

  proto::SubmitSegment& submit_header = segments.submit();
  submit_header.magic = proto::kSubmitMagic;
  submit_header.version = proto::kProtocolVersion;
  submit_header.segment_bytes = segments.submit_object_.bytes();
  submit_header.ring_entries = ring_entries;
  submit_header.evict_ring_offset = kRingsOffset;
  submit_header.command_ring_offset = static_cast<uint32_t>(kRingsOffset + RingBytes(ring_entries));

  proto::StatusSegment& status_header = segments.status();
  status_header.magic = proto::kStatusMagic;
  status_header.version = proto::kProtocolVersion;
  status_header.segment_bytes = segments.status_object_.bytes();
  status_header.completion_entries = segments.completion_entries();
  status_header.completion_ring_offset = kRingsOffset;
  KVSS_STEP("segments not ready");
  for (std::atomic<uint64_t>* position :
       {&submit_header.evict_tail, &submit_header.command_tail, &submit_header.completion_head,
        &status_header.evict_head, &status_header.command_head, &status_header.completion_tail}) {
    position->store(kFirstPosition, std::memory_order_relaxed);
  }
  // Published last. Partner: the acquire load in Attach.
  status_header.ready.store(1, std::memory_order_release);
  return segments;
}

Result<SessionSegments> SessionSegments::Attach(int submit_fd, int status_fd, uint32_t ring_entries) {
  if (!ValidRingEntries(ring_entries)) return Mismatch("ring size");
  SessionSegments segments;
  segments.ring_entries_ = ring_entries;
  auto submit_map = Mapping::Map(submit_fd, SubmitBytes(ring_entries), Access::kReadWrite);
  if (!submit_map.ok()) return submit_map.error();
  segments.submit_map_ = std::move(submit_map.value());
  auto status_map = Mapping::Map(status_fd, StatusBytes(ring_entries), Access::kRead);
  if (!status_map.ok()) return status_map.error();
  segments.status_map_ = std::move(status_map.value());

  const proto::StatusSegment& status = segments.status();
  // Partner: the release store in Create.
  if (status.ready.load(std::memory_order_acquire) != 1) return Mismatch("status segment (not ready)");
  if (status.magic != proto::kStatusMagic || status.version != proto::kProtocolVersion ||
      status.completion_entries != segments.completion_entries() ||
      status.completion_ring_offset != kRingsOffset) {
    return Mismatch("status segment");
  }
  const proto::SubmitSegment& submit = segments.submit();
  if (submit.magic != proto::kSubmitMagic || submit.version != proto::kProtocolVersion ||
      submit.ring_entries != ring_entries || submit.evict_ring_offset != kRingsOffset ||
      submit.command_ring_offset != kRingsOffset + RingBytes(ring_entries)) {
    return Mismatch("submit segment");
  }
  return segments;
}

RingPlace<proto::Descriptor> SessionSegments::evict_ring() const {
  return {&status().evict_head, &submit().evict_tail,
          submit_map_.At<proto::Descriptor>(kRingsOffset, ring_entries_), ring_entries_};
}

RingPlace<proto::Descriptor> SessionSegments::command_ring() const {
  return {&status().command_head, &submit().command_tail,
          submit_map_.At<proto::Descriptor>(kRingsOffset + RingBytes(ring_entries_), ring_entries_),
          ring_entries_};
}

RingPlace<proto::Completion> SessionSegments::completion_ring() const {
  return {&submit().completion_head, &status().completion_tail,
          status_map_.At<proto::Completion>(kRingsOffset, completion_entries()), completion_entries()};
}

Result<CountersSegment> CountersSegment::Create(uint32_t shard) {
  CountersSegment segment;
  auto object = MemoryObject::Create("kvss-counters", sizeof(proto::CountersSegment), HugePages::kNever);
  if (!object.ok()) return object.error();
  segment.object_ = std::move(object.value());
  auto map = Mapping::Map(segment.object_.fd(), segment.object_.bytes(), Access::kReadWrite);
  if (!map.ok()) return map.error();
  segment.map_ = std::move(map.value());
  if (Outcome sealed = segment.object_.ForbidNewWriters(); !sealed.ok()) return sealed.error();
  segment.counters().magic = proto::kCountersMagic;
  segment.counters().version = proto::kProtocolVersion;
  segment.counters().shard = shard;
  return segment;
}

}  // namespace kvss
