#include "shm/segments.h"

#include "harness.h"

namespace kvss {
namespace {

using test::Must;

constexpr uint32_t kEntries = 16;

struct Shared {
  SessionSegments daemon = Must(SessionSegments::Create(kEntries));

  Result<SessionSegments> Attach(uint32_t entries = kEntries) const {
    return SessionSegments::Attach(daemon.submit_object().fd(), daemon.status_object().fd(), entries);
  }
  void ExpectRefusal() const { CHECK_EQ(Attach().error().status, proto::Status::kBadVersion); }
};

TEST("what one side puts into the rings the other side takes out") {
  const Shared shared;
  const SessionSegments client = Must(shared.Attach());
  RingProducer<proto::Descriptor> evicts(client.evict_ring());
  RingProducer<proto::Descriptor> commands(client.command_ring());
  RingConsumer<proto::Descriptor> taken_evicts(shared.daemon.evict_ring());
  RingConsumer<proto::Descriptor> taken_commands(shared.daemon.command_ring());
  RingProducer<proto::Completion> completions(shared.daemon.completion_ring());
  RingConsumer<proto::Completion> finished(client.completion_ring());
  for (uint32_t index = 0; index < kEntries; ++index) {
    evicts.Put({.user_data = index});
    commands.Put({.user_data = 100 + index});
  }
  evicts.Publish();
  commands.Publish();
  // Both rings are full and neither has run into the other.
  CHECK_EQ(taken_evicts.Available().value(), kEntries);
  CHECK_EQ(taken_commands.Available().value(), kEntries);
  for (uint32_t index = 0; index < kEntries; ++index) {
    CHECK_EQ(taken_evicts.Take().user_data, index);
    CHECK_EQ(taken_commands.Take().user_data, 100 + index);
    completions.Put({.user_data = index});
    completions.Put({.user_data = 100 + index});
  }
  CHECK_EQ(completions.Room().value(), 0u);
  completions.Publish();
  CHECK_EQ(finished.Available().value(), 2 * kEntries);
}

TEST("a client cannot write the status segment") {
  const Shared shared;
  CHECK(!Mapping::Map(shared.daemon.status_object().fd(), 4096, Access::kReadWrite).ok());
  CHECK(Mapping::Map(shared.daemon.submit_object().fd(), 4096, Access::kReadWrite).ok());
}

TEST("attach refuses a segment that is not ready") {
  const Shared shared;
  shared.daemon.status().ready.store(0);
  shared.ExpectRefusal();
}

TEST("attach refuses a wrong magic") {
  const Shared status;
  status.daemon.status().magic = proto::kSubmitMagic;
  status.ExpectRefusal();
  const Shared submit;
  submit.daemon.submit().magic = 0;
  submit.ExpectRefusal();
}

TEST("attach refuses another version") {
  const Shared status;
  status.daemon.status().version = proto::kProtocolVersion + 1;
  status.ExpectRefusal();
  const Shared submit;
  submit.daemon.submit().version = proto::kProtocolVersion + 1;
  submit.ExpectRefusal();
}

TEST("attach refuses sizes and offsets that it did not compute itself") {
  for (const auto& spoil : {
           +[](const SessionSegments& segments) { segments.status().completion_entries *= 2; },
           +[](const SessionSegments& segments) { segments.status().completion_ring_offset += 64; },
           +[](const SessionSegments& segments) { segments.submit().ring_entries = 8; },
           +[](const SessionSegments& segments) { segments.submit().evict_ring_offset = 0; },
           +[](const SessionSegments& segments) { segments.submit().command_ring_offset += 64; },
       }) {
    const Shared shared;
    spoil(shared.daemon);
    shared.ExpectRefusal();
  }
}

TEST("attach refuses a ring size that was not agreed, and one that the protocol forbids") {
  const Shared shared;
  CHECK_EQ(shared.Attach(kEntries / 2).error().status, proto::Status::kBadVersion);
  CHECK_EQ(shared.Attach(proto::kMaxRingEntries).error().status, proto::Status::kBadLength);
  for (const uint32_t entries : {0u, 4u, 12u, 3 * kEntries, 2 * proto::kMaxRingEntries}) {
    CHECK_EQ(shared.Attach(entries).error().status, proto::Status::kBadVersion);
  }
}

TEST("attach refuses a memory object that is shorter than announced") {
  const Shared shared;
  const MemoryObject stub = Must(MemoryObject::Create("stub", 4096, HugePages::kNever));
  const int submit = shared.daemon.submit_object().fd();
  const int status = shared.daemon.status_object().fd();
  CHECK_EQ(SessionSegments::Attach(stub.fd(), status, kEntries).error().status, proto::Status::kBadLength);
  CHECK_EQ(SessionSegments::Attach(submit, stub.fd(), kEntries).error().status, proto::Status::kBadLength);
}

TEST("attach refuses the two segments in the wrong places") {
  const Shared shared;
  CHECK(!SessionSegments::Attach(shared.daemon.status_object().fd(), shared.daemon.submit_object().fd(),
                                 kEntries)
             .ok());
}

TEST("a counters segment names itself and can only be read") {
  const CountersSegment segment = Must(CountersSegment::Create(3));
  const Mapping reader =
      Must(Mapping::Map(segment.object().fd(), sizeof(proto::CountersSegment), Access::kRead));
  const auto* counters = reader.At<proto::CountersSegment>(0);
  CHECK_EQ(counters->magic, proto::kCountersMagic);
  CHECK_EQ(counters->version, uint32_t{proto::kProtocolVersion});
  CHECK_EQ(counters->shard, 3u);
  segment.counters().evicts.store(17);
  CHECK_EQ(counters->evicts.load(), 17u);
  CHECK(!Mapping::Map(segment.object().fd(), sizeof(proto::CountersSegment), Access::kReadWrite).ok());
}

}  // namespace
}  // namespace kvss
