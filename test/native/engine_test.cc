// The engine, its sessions and the driver's lane as they run in a daemon: real threads, real rings. Both
// sanitizers run this file.

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <future>
#include <mutex>
#include <set>

#include "engine/shard_host.h"
#include "harness.h"
#include "link/shard_lane.h"

namespace kvss {
namespace {

using proto::Completion;
using proto::Descriptor;
using proto::Opcode;
using proto::Status;
using Queue = ShardLane::Queue;
using test::Must;

constexpr uint64_t kTenant = 77;
constexpr uint32_t kGrant = 1;
constexpr uint32_t kPieceBytes = 4096;
/// Long enough for any machine: only a broken program waits for it to pass.
constexpr int kPatienceMs = 20'000;
constexpr uint64_t kPatienceNs = uint64_t{kPatienceMs} * 1'000'000;

/// The sessions that were reported corrupt, and a way to wait for the first report.
struct Reports {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<uint64_t> sessions;

  ShardEngine::FaultHandler Handler() {
    return [this](uint64_t session, SessionFault) {
      std::lock_guard lock(mutex);
      sessions.push_back(session);
      changed.notify_all();
    };
  }
  std::vector<uint64_t> AwaitOne() {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, std::chrono::milliseconds(kPatienceMs), [&] { return !sessions.empty(); });
    return sessions;
  }
};

Descriptor Evict(uint32_t slot, uint64_t generation, uint64_t after = 0, uint64_t user_data = 0) {
  return {.opcode = static_cast<uint16_t>(Opcode::kEvict),
          .grant_id = kGrant,
          .slot = slot,
          .piece_bytes = kPieceBytes,
          .generation = generation,
          .tenant_tag = kTenant,
          .after = after,
          .user_data = user_data};
}

Descriptor Refill(uint32_t slot, uint64_t generation, uint64_t after = 0, uint64_t user_data = 0) {
  Descriptor descriptor = Evict(slot, generation, after, user_data);
  descriptor.opcode = static_cast<uint16_t>(Opcode::kRefill);
  return descriptor;
}

Descriptor Delete(uint32_t slot, uint64_t generation, uint64_t after = 0, uint64_t user_data = 0) {
  Descriptor descriptor = Evict(slot, generation, after, user_data);
  descriptor.opcode = static_cast<uint16_t>(Opcode::kDelete);
  descriptor.flags = proto::descriptor_flag::kScrub;
  return descriptor;
}

/// A driver's end of one session, and the two segments as a hostile client would map them.
struct Client {
  std::unique_ptr<ShardLane> lane;
  Mapping submit;
  UniqueFd submit_wake;
  Mapping slots;

  static Client Of(SessionEndpoints endpoints, uint32_t entries) {
    Client client;
    client.submit = Must(Mapping::Map(endpoints.submit_segment.get(), 4096, Access::kReadWrite));
    client.submit_wake = UniqueFd(::dup(endpoints.submit_wake.get()));
    client.lane = Must(
        ShardLane::Attach(std::move(endpoints.submit_segment), std::move(endpoints.status_segment),
                          std::move(endpoints.submit_wake), std::move(endpoints.completion_wake), entries));
    return client;
  }

  proto::SubmitSegment& header() const { return *submit.At<proto::SubmitSegment>(0); }

  void Submit(Queue queue, const Descriptor& descriptor) const {
    CHECK_EQ(lane->Submit(queue, &descriptor, 1), 1u);
  }

  /// Sleeps until completions are there, and takes them.
  std::vector<Completion> AwaitSome() const {
    Completion taken[64];
    for (;;) {
      const uint32_t count = lane->Poll(taken, 64);
      if (count > 0) return {taken, taken + count};
      if (!lane->Arm()) continue;
      pollfd wait{lane->completion_wake_fd(), POLLIN, 0};
      CHECK_EQ(::poll(&wait, 1, kPatienceMs), 1);
      lane->Disarm();
    }
  }
  std::vector<Completion> Await(size_t count) const {
    std::vector<Completion> all;
    while (all.size() < count) {
      for (const Completion& completion : AwaitSome()) all.push_back(completion);
    }
    CHECK_EQ(all.size(), count);
    return all;
  }
  Status AwaitStatus() const { return static_cast<Status>(Await(1)[0].status); }
};

struct Shard {
  Reports reports;
  std::unique_ptr<ShardHost> host;

  explicit Shard(HioMode mode = HioMode::kBuffered, uint64_t budget_bytes = 256 * kPieceBytes)
      : host(Must(ShardHost::Create(
            {.budget_bytes = budget_bytes, .huge_pages = HugePages::kNever, .engine = {.mode = mode}},
            reports.Handler()))) {}

  Client Open(uint64_t session, uint32_t entries = 8, uint32_t slots = 16) const {
    Client client = Client::Of(Must(host->OpenSession(session, entries)), entries);
    const GrantedMemory granted = Must(host->AddGrant(session, kGrant, slots, kPieceBytes));
    client.slots = Must(Mapping::Map(granted.descriptor.get(), granted.object_bytes, Access::kReadWrite));
    return client;
  }
  const proto::CountersSegment& counters() const { return host->counters().counters(); }
  /// Returns once the engine has looked at every ring after this was called.
  void AwaitTurn() const {
    // Each is a task on the engine; see Engine::AwaitTurn.
    host->Drain(0);
    host->Drain(0);
  }
};

/// The engine without a host, where a test has to stop it or to look into a session.
struct Engine {
  Reports reports;
  GrantMemory memory{Must(GrantGeometry::For(16, kPieceBytes)),
                     Must(MemoryObject::Create("test", 16 * kPieceBytes, HugePages::kNever)),
                     {}};
  std::unique_ptr<ShardEngine> engine =
      Must(ShardEngine::Start({.mode = HioMode::kBuffered}, reports.Handler()));

  Client Open(uint64_t id, uint32_t entries = 8) {
    auto session = Must(RingSession::Create(id, entries, engine->tally()));
    CHECK(session->AddGrant(kGrant, &memory).ok());
    Client client = Client::Of(Must(session->Endpoints()), entries);
    engine->Attach(std::move(session));
    return client;
  }
  /// Returns once the engine has looked at every ring after this was called.
  void AwaitTurn() {
    // The second task runs in a later turn than the first, and each turn ends with a look at the rings.
    engine->Run([] {});
    engine->Run([] {});
  }
};

/// Keeps an engine busy with a task until released.
class Stopped {
 public:
  explicit Stopped(ShardEngine* engine) {
    running_ = std::async(std::launch::async, [this, engine] {
      engine->Run([&] {
        entered_.set_value();
        released_.get_future().wait();
      });
    });
    entered_.get_future().wait();
  }
  ~Stopped() {
    released_.set_value();
    running_.wait();
  }

 private:
  std::promise<void> entered_;
  std::promise<void> released_;
  std::future<void> running_;
};

/// What one driver does in the long test: overwrites its slots again and again, each evict behind the
/// commands on what it replaces, and reads every piece back.
void DriveManyOperations(const Client& client, uint32_t slots, uint64_t evicts) {
  const uint64_t commands = 2 * evicts;
  std::vector<uint64_t> last_command(slots);
  uint64_t evicts_issued = 0;
  uint64_t commands_issued = 0;
  uint64_t finished = 0;
  std::set<std::pair<bool, uint64_t>> seen;
  std::vector<Descriptor> evict_backlog;
  std::vector<Descriptor> command_backlog;
  const auto push = [&](Queue queue, std::vector<Descriptor>& backlog) {
    const uint32_t taken = client.lane->Submit(queue, backlog.data(), static_cast<uint32_t>(backlog.size()));
    backlog.erase(backlog.begin(), backlog.begin() + taken);
  };
  while (finished < evicts + commands) {
    // More than the rings hold: they are full most of the time.
    while (evicts_issued < evicts && evict_backlog.size() < 24 && command_backlog.size() < 48) {
      const uint32_t slot = static_cast<uint32_t>(evicts_issued % slots);
      const uint64_t generation = evicts_issued / slots + 1;
      evict_backlog.push_back(Evict(slot, generation, last_command[slot], ++evicts_issued));
      command_backlog.push_back(Refill(slot, generation, evicts_issued, ++commands_issued));
      last_command[slot] = ++commands_issued;
      command_backlog.push_back(generation % 2 == 0 ? Delete(slot, generation, evicts_issued, commands_issued)
                                                    : Refill(slot, generation, 0, commands_issued));
    }
    push(Queue::kEvict, evict_backlog);
    push(Queue::kCommand, command_backlog);
    for (const Completion& completion : client.AwaitSome()) {
      const bool evict = completion.opcode == static_cast<uint16_t>(Opcode::kEvict);
      CHECK_EQ(completion.status, static_cast<uint16_t>(Status::kOk));
      CHECK_EQ(completion.user_data, completion.sequence);
      CHECK(seen.emplace(evict, completion.sequence).second);
      ++finished;
    }
  }
  CHECK_EQ(client.lane->evict_count(), evicts);
  CHECK_EQ(client.lane->command_count(), commands);
}

void TwoSessionsInThreads(HioMode mode) {
  constexpr uint64_t kEvicts = 1500;
  Shard shard(mode);
  const Client first = shard.Open(1, 8);
  const Client second = shard.Open(2, 32);
  std::future<void> other = std::async(std::launch::async, [&] { DriveManyOperations(second, 5, kEvicts); });
  DriveManyOperations(first, 16, kEvicts);
  other.get();
  CHECK(shard.host->Drain(kPatienceNs));
  CHECK_EQ(shard.counters().evicts.load(), 2 * kEvicts);
  CHECK_EQ(shard.counters().evict_faults.load(), 0u);
  CHECK_EQ(shard.counters().refills.load() + shard.counters().deletes.load(), 4 * kEvicts);
  CHECK_EQ(shard.counters().refill_misses.load(), 0u);
  CHECK_EQ(shard.counters().scrubbed_bytes.load(), shard.counters().deletes.load() * kPieceBytes);
  uint64_t in_buckets = 0;
  for (const auto& bucket : shard.counters().evict_latency) in_buckets += bucket.load();
  CHECK_EQ(in_buckets, 2 * kEvicts);
}

TEST("two sessions in threads finish thousands of operations, each exactly once, on an engine that sleeps") {
  TwoSessionsInThreads(HioMode::kBuffered);
}
TEST("two sessions in threads finish thousands of operations, each exactly once, on an adaptive engine") {
  TwoSessionsInThreads(HioMode::kAdaptive);
}
TEST(
    "two sessions in threads finish thousands of operations, each exactly once, on an engine that never "
    "sleeps") {
  TwoSessionsInThreads(HioMode::kLatency);
}

TEST("a completion says which operation it ends and what became of the slot") {
  Shard shard;
  const Client client = shard.Open(1);
  client.Submit(Queue::kEvict, Evict(3, 5, 0, 4711));
  const Completion evicted = client.Await(1)[0];
  CHECK_EQ(evicted.opcode, static_cast<uint16_t>(Opcode::kEvict));
  CHECK_EQ(evicted.slot, 3u);
  CHECK_EQ(evicted.user_data, 4711u);
  CHECK_EQ(evicted.sequence, 1u);
  CHECK_EQ(evicted.generation, 5u);
  client.Submit(Queue::kCommand, Refill(3, 4, 0, 4712));
  const Completion missed = client.Await(1)[0];
  CHECK_EQ(missed.status, static_cast<uint16_t>(Status::kMissOverwritten));
  CHECK_EQ(missed.user_data, 4712u);
  CHECK_EQ(missed.generation, 5u);
}

TEST("a full ring takes no more until the engine has taken some") {
  Engine engine;
  const Client client = engine.Open(1);
  std::vector<Descriptor> many;
  for (uint32_t index = 0; index < 20; ++index) many.push_back(Evict(index % 16, 1 + index / 16));
  {
    const Stopped stopped(engine.engine.get());
    CHECK_EQ(client.lane->Submit(Queue::kEvict, many.data(), 20), 8u);
    CHECK_EQ(client.lane->Submit(Queue::kEvict, many.data() + 8, 12), 0u);
    // The other ring has room of its own.
    CHECK_EQ(client.lane->Submit(Queue::kCommand, many.data(), 20), 8u);
  }
  CHECK_EQ(client.Await(16).size(), 16u);
  CHECK_EQ(client.lane->Submit(Queue::kEvict, many.data() + 8, 12), 8u);
  client.Await(8);
  engine.engine->Detach(1);
}

TEST("a client that does not read its completions stops being served, and gets all of them in the end") {
  Engine engine;
  const Client client = engine.Open(1);
  uint64_t submitted = 0;
  for (;;) {
    const Descriptor next = Evict(submitted % 16, submitted + 1, 0, submitted + 1);
    if (client.lane->Submit(Queue::kEvict, &next, 1) == 0) break;
    ++submitted;
    engine.AwaitTurn();
  }
  // The completion ring is full, and behind it the evict ring.
  CHECK_EQ(submitted, client.lane->completion_entries() + client.lane->ring_entries());
  CHECK_EQ(client.lane->evict_count(), client.lane->completion_entries());
  std::set<uint64_t> seen;
  for (const Completion& completion : client.Await(submitted)) {
    CHECK_EQ(completion.status, static_cast<uint16_t>(Status::kOk));
    CHECK(seen.insert(completion.user_data).second);
  }
  engine.engine->Detach(1);
}

TEST("a session that does not read its completions holds up no other session") {
  Shard shard;
  const Client idle = shard.Open(1);
  const Client busy = shard.Open(2);
  for (uint64_t round = 1; round <= 100; ++round) {
    const Descriptor evict = Evict(0, round);
    idle.lane->Submit(Queue::kEvict, &evict, 1);
    busy.Submit(Queue::kEvict, evict);
    CHECK_EQ(busy.AwaitStatus(), Status::kOk);
  }
}

/// Lets a client spoil its submit segment and expects that it alone is reported, while the other session goes
/// on.
void ExpectOnlySpoilerReported(const std::function<void(const Client&)>& spoil) {
  Shard shard;
  const Client hostile = shard.Open(1);
  const Client honest = shard.Open(2);
  hostile.Submit(Queue::kEvict, Evict(0, 1));
  hostile.AwaitStatus();
  honest.Submit(Queue::kEvict, Evict(0, 1));
  honest.AwaitStatus();

  spoil(hostile);
  ::eventfd_write(hostile.submit_wake.get(), 1);
  CHECK(shard.reports.AwaitOne() == std::vector<uint64_t>{1});
  // Nothing more of this session is served, whatever it says now.
  hostile.header().evict_tail.store(1);
  hostile.header().completion_head.store(1);
  for (uint64_t generation = 2; generation < 50; ++generation) {
    honest.Submit(Queue::kEvict, Evict(0, generation));
    CHECK_EQ(honest.AwaitStatus(), Status::kOk);
  }
  CHECK(shard.host->Drain(kPatienceNs));
  CHECK_EQ(shard.counters().evicts.load(), 2u + 48u);
  CHECK_EQ(shard.counters().ring_faults.load(), 1u);
  const uint64_t free_before = shard.host->allocator().free_bytes();
  shard.host->CloseSession(1);
  CHECK_EQ(shard.host->allocator().free_bytes(), free_before + 16 * kPieceBytes);
  CHECK(shard.reports.AwaitOne() == std::vector<uint64_t>{1});
}

TEST("a client whose evict tail is impossible is reported, and only it") {
  ExpectOnlySpoilerReported([](const Client& client) { client.header().evict_tail.store(1'000'000); });
}
TEST("a client whose command tail is impossible is reported, and only it") {
  ExpectOnlySpoilerReported([](const Client& client) { client.header().command_tail.store(UINT64_MAX); });
}
TEST("a client whose tail goes back is reported, and only it") {
  ExpectOnlySpoilerReported([](const Client& client) { client.header().evict_tail.store(0); });
}
TEST("a client whose completion head is impossible is reported, and only it") {
  ExpectOnlySpoilerReported([](const Client& client) { client.header().completion_head.store(2); });
}
TEST("a client that scribbles over its whole submit segment is reported, and only it") {
  ExpectOnlySpoilerReported([](const Client& client) {
    auto* words = client.submit.At<std::atomic<uint64_t>>(0, 64);
    for (uint32_t word = 0; word < 64; ++word) words[word].store(uint64_t{0x5a5a5a5a5a5a5a5a} * (word + 1));
  });
}

TEST("an impossible position that the engine finds on its way to sleep is reported too") {
  Engine engine;
  const Client client = engine.Open(7);
  bool work = false;
  engine.engine->WithSession(7, [&](EngineSession* session) {
    client.header().evict_tail.store(1'000'000);
    // What SleepUntilWork asks: it must not sleep over this.
    work = session->HasWork();
  });
  CHECK(work);
  CHECK(engine.reports.AwaitOne() == std::vector<uint64_t>{7});
  engine.AwaitTurn();
  CHECK_EQ(engine.engine->counters().counters().ring_faults.load(), 1u);
  engine.engine->Detach(7);
}

TEST("a corrupt session with an old deadline lets the engine sleep") {
  Engine engine;
  const Client client = engine.Open(7);
  Descriptor gated = Refill(0, 1, 1);
  gated.timeout_us = 1;
  uint64_t before = 0;
  uint64_t after = 0;
  engine.engine->WithSession(7, [&](EngineSession* session) {
    (void)client.lane->Submit(Queue::kCommand, &gated, 1);
    session->Pump(0);
    before = session->next_deadline_ns();
    client.header().evict_tail.store(1'000'000);
    session->Pump(0);
    after = session->next_deadline_ns();
  });
  CHECK_EQ(before, 1000u);
  CHECK_EQ(after, UINT64_MAX);
  engine.engine->Detach(7);
}

TEST("a client that spoils its wake holds up no other session") {
  Shard shard(HioMode::kBuffered);
  const Client hostile = shard.Open(1);
  const Client honest = shard.Open(2);
  // Blocking from now on, for everybody who has a copy of this descriptor, and as full as it can be.
  const int wake = hostile.lane->completion_wake_fd();
  CHECK_EQ(::fcntl(wake, F_SETFL, 0), 0);
  const uint64_t full = UINT64_MAX - 1;
  (void)!::write(wake, &full, sizeof(full));
  const UniqueFd again(::open(("/proc/self/fd/" + std::to_string(wake)).c_str(), O_WRONLY | O_NONBLOCK));
  for (std::array<char, 4096> junk{}; again.valid() && ::write(again.get(), junk.data(), junk.size()) > 0;) {
  }
  hostile.header().client_sleeping.store(1);
  for (uint64_t generation = 1; generation < 10; ++generation) {
    hostile.Submit(Queue::kEvict, Evict(0, generation));
    honest.Submit(Queue::kEvict, Evict(0, generation));
    CHECK_EQ(honest.AwaitStatus(), Status::kOk);
    while (hostile.lane->evict_count() < generation) std::this_thread::yield();
    Completion ignored[8];
    (void)hostile.lane->Poll(ignored, 8);
  }
}

TEST("descriptors full of nonsense are refused one by one and the session goes on") {
  Shard shard;
  const Client client = shard.Open(1);
  const auto refused = [&](Queue queue, const std::function<void(Descriptor&)>& spoil) {
    Descriptor descriptor = queue == Queue::kEvict ? Evict(0, 1) : Refill(0, 1);
    spoil(descriptor);
    client.Submit(queue, descriptor);
    return client.AwaitStatus();
  };
  for (const Queue queue : {Queue::kEvict, Queue::kCommand}) {
    CHECK_EQ(refused(queue, [](Descriptor& d) { d.opcode = 0xffff; }), Status::kBadOpcode);
    CHECK_EQ(refused(queue, [](Descriptor& d) { d.flags = 0x8000; }), Status::kBadOpcode);
    CHECK_EQ(refused(queue, [](Descriptor& d) { d.reserved0 = 1; }), Status::kBadOpcode);
    CHECK_EQ(refused(queue, [](Descriptor& d) { d.reserved1 = 1; }), Status::kBadOpcode);
    CHECK_EQ(refused(queue, [](Descriptor& d) { d.grant_id = UINT32_MAX; }), Status::kBadGrant);
    CHECK_EQ(refused(queue, [](Descriptor& d) { d.slot = 16; }), Status::kBadSlot);
    CHECK_EQ(refused(queue, [](Descriptor& d) { d.slot = UINT32_MAX; }), Status::kBadSlot);
    CHECK_EQ(refused(queue, [](Descriptor& d) { d.piece_bytes += 1; }), Status::kBadLength);
  }
  client.Submit(Queue::kEvict, Evict(0, 1));
  CHECK_EQ(client.AwaitStatus(), Status::kOk);
}

TEST("a sleeping engine wakes for every single submission") {
  Shard shard(HioMode::kBuffered);
  const Client client = shard.Open(1);
  // An engine that nobody woke would only look up once a second, and this test would not end in time. The
  // same holds for the next two.
  for (uint64_t generation = 1; generation <= 500; ++generation) {
    client.Submit(Queue::kEvict, Evict(0, generation));
    CHECK_EQ(client.AwaitStatus(), Status::kOk);
    client.Submit(Queue::kCommand, Refill(0, generation, generation));
    CHECK_EQ(client.AwaitStatus(), Status::kOk);
  }
  CHECK(shard.counters().sleeps.load() > 0);
}

TEST("a sleeping engine wakes for a deadline") {
  Shard shard(HioMode::kBuffered);
  const Client client = shard.Open(1);
  Descriptor never = Refill(0, 1, 1);
  never.timeout_us = 1000;
  for (uint64_t round = 1; round <= 100; ++round) {
    client.Submit(Queue::kCommand, never);
    CHECK_EQ(client.AwaitStatus(), Status::kDeadline);
    CHECK_EQ(client.lane->command_count(), round);
  }
}

TEST("a sleeping engine wakes when a client makes room for completions") {
  Shard shard(HioMode::kBuffered);
  const Client client = shard.Open(1);
  uint64_t generation = 0;
  for (int round = 0; round < 100; ++round) {
    // Three rings full: two of completions, and one of evicts that the engine leaves where they are.
    for (uint32_t burst = 0; burst < 3; ++burst) {
      for (uint32_t index = 0; index < 8; ++index) client.Submit(Queue::kEvict, Evict(0, ++generation));
      shard.AwaitTurn();
    }
    client.Await(24);
  }
}

TEST("an engine wakes no client that has not asked for it") {
  Shard shard;
  const Client client = shard.Open(1);
  client.Submit(Queue::kEvict, Evict(0, 1));
  CHECK(shard.host->Drain(kPatienceNs));
  pollfd wait{client.lane->completion_wake_fd(), POLLIN, 0};
  CHECK_EQ(::poll(&wait, 1, 0), 0);
  // Completions that are there already are told at once, and nothing is asked for.
  CHECK(!client.lane->Arm());
  CHECK_EQ(client.AwaitStatus(), Status::kOk);
}

TEST("drain waits for operations whose gate is closed") {
  Shard shard;
  const Client client = shard.Open(1);
  client.Submit(Queue::kCommand, Refill(0, 1, 1));
  CHECK(!shard.host->Drain(0));
  shard.AwaitTurn();
  CHECK(!shard.host->Drain(0));
  client.Submit(Queue::kEvict, Evict(0, 1));
  CHECK(shard.host->Drain(kPatienceNs));
  CHECK_EQ(client.lane->evict_count(), 1u);
  CHECK_EQ(client.lane->command_count(), 1u);
}

TEST("drain waits for descriptors that the engine cannot take yet") {
  Engine engine;
  const Client client = engine.Open(1);
  for (uint64_t submitted = 0; submitted < 24; ++submitted) {
    client.Submit(Queue::kEvict, Evict(0, submitted + 1));
    engine.AwaitTurn();
  }
  CHECK(!engine.engine->Drain(0));
  client.Await(24);
  CHECK(engine.engine->Drain(kPatienceNs));
  engine.engine->Detach(1);
}

TEST("drain does not wait for a corrupt session") {
  Shard shard;
  const Client client = shard.Open(1);
  client.Submit(Queue::kCommand, Refill(0, 1, 1));
  client.header().evict_tail.store(1'000'000);
  ::eventfd_write(client.submit_wake.get(), 1);
  shard.reports.AwaitOne();
  CHECK(shard.host->Drain(0));
}

TEST("closing a session frees its memory, and what it kept mapped reads zeros") {
  Shard shard;
  const uint64_t budget = shard.host->allocator().free_bytes();
  const Client client = shard.Open(1);
  CHECK_EQ(shard.host->allocator().free_bytes(), budget - 16 * kPieceBytes);
  std::memset(client.slots.data(), 0xa5, client.slots.bytes());
  client.Submit(Queue::kEvict, Evict(0, 1));
  CHECK_EQ(client.AwaitStatus(), Status::kOk);
  // One that waits for its gate when the session ends.
  client.Submit(Queue::kCommand, Refill(0, 1, 100));

  shard.host->CloseSession(1);
  CHECK_EQ(shard.host->allocator().free_bytes(), budget);
  CHECK(std::all_of(client.slots.data(), client.slots.data() + client.slots.bytes(),
                    [](std::byte byte) { return byte == std::byte{0}; }));
  CHECK_EQ(shard.counters().sessions.load(), 0u);
  CHECK_EQ(shard.counters().stored_slots.load(), 0u);
  // Harmless where there is nothing left to close.
  shard.host->CloseSession(1);
}

TEST("who reads a slot in place and finds it gone can tell that the memory was taken away") {
  Shard shard;
  const Client client = shard.Open(1);
  std::memset(client.slots.data(), 0xa5, client.slots.bytes());
  CHECK(!client.lane->revoked());
  std::atomic<bool> reading{false};
  std::atomic<bool> closed{false};
  std::future<bool> reader = std::async(std::launch::async, [&] {
    const auto* words = client.slots.At<std::atomic<uint64_t>>(0, client.slots.bytes() / sizeof(uint64_t));
    for (uint64_t at = 0;; at = (at + 512) % (client.slots.bytes() / sizeof(uint64_t))) {
      const bool last = closed.load();
      const bool gone = words[at].load(std::memory_order_relaxed) == 0;
      reading.store(true);
      if (gone || last) return gone && client.lane->revoked();
      std::this_thread::yield();
    }
  });
  while (!reading.load()) std::this_thread::yield();
  shard.host->CloseSession(1);
  closed.store(true);
  CHECK(reader.get());
}

TEST("a grant that is given back revokes no other memory of its session") {
  Shard shard;
  const Client client = shard.Open(1);
  CHECK(shard.host->AddGrant(1, 2, 1, kPieceBytes).ok());
  CHECK(shard.host->RemoveGrant(1, 2).ok());
  CHECK(!client.lane->revoked());
}

TEST("a delete with scrub leaves zeros in its slot and in no other") {
  Shard shard;
  const Client client = shard.Open(1);
  std::memset(client.slots.data(), 0xa5, client.slots.bytes());
  client.Submit(Queue::kEvict, Evict(2, 1));
  CHECK_EQ(client.AwaitStatus(), Status::kOk);
  client.Submit(Queue::kCommand, Delete(2, 1, 1));
  CHECK_EQ(client.AwaitStatus(), Status::kOk);
  for (uint64_t at = 0; at < client.slots.bytes(); ++at) {
    const bool scrubbed = at / kPieceBytes == 2;
    CHECK(client.slots.data()[at] == std::byte{scrubbed ? uint8_t{0} : uint8_t{0xa5}});
  }
}

TEST("a session can be opened once, with a ring size that the protocol allows") {
  Shard shard;
  for (const uint32_t entries : {0u, 4u, 9u, 2 * proto::kMaxRingEntries}) {
    CHECK_EQ(shard.host->OpenSession(1, entries).error().status, Status::kLimitExceeded);
  }
  const Client client = shard.Open(1);
  CHECK_EQ(shard.host->OpenSession(1, 8).error().status, Status::kNotAllowed);
  client.Submit(Queue::kEvict, Evict(0, 1));
  CHECK_EQ(client.AwaitStatus(), Status::kOk);
}

TEST("a grant that is refused costs nothing of the budget") {
  Shard shard;
  const Client client = shard.Open(1);
  const uint64_t free_bytes = shard.host->allocator().free_bytes();
  CHECK_EQ(shard.host->AddGrant(1, kGrant, 1, kPieceBytes).error().status, Status::kBadGrant);
  CHECK_EQ(shard.host->AddGrant(9, 1, 1, kPieceBytes).error().status, Status::kNotAllowed);
  CHECK_EQ(shard.host->AddGrant(1, 2, 1000, kPieceBytes).error().status, Status::kNoMemory);
  CHECK_EQ(shard.host->AddGrant(1, 2, 0, kPieceBytes).error().status, Status::kLimitExceeded);
  CHECK_EQ(shard.host->allocator().free_bytes(), free_bytes);
  for (uint32_t grant = 2; grant <= proto::kMaxGrantsPerSession; ++grant) {
    CHECK(shard.host->AddGrant(1, grant, 1, kPieceBytes).ok());
  }
  const uint64_t before_last = shard.host->allocator().free_bytes();
  CHECK_EQ(shard.host->AddGrant(1, 1000, 1, kPieceBytes).error().status, Status::kLimitExceeded);
  CHECK_EQ(shard.host->allocator().free_bytes(), before_last);
}

TEST("a grant comes back only when no operation can touch it any more") {
  Shard shard;
  const Client client = shard.Open(1);
  const uint64_t free_bytes = shard.host->allocator().free_bytes();
  client.Submit(Queue::kCommand, Refill(0, 1, 1));
  shard.AwaitTurn();
  CHECK_EQ(shard.host->RemoveGrant(1, kGrant).error().status, Status::kNotAllowed);
  CHECK_EQ(shard.host->RemoveGrant(1, 5).error().status, Status::kBadGrant);
  CHECK_EQ(shard.host->RemoveGrant(5, kGrant).error().status, Status::kBadGrant);
  std::memset(client.slots.data(), 0xa5, client.slots.bytes());
  client.Submit(Queue::kEvict, Evict(0, 1));
  client.Await(2);
  CHECK(shard.host->RemoveGrant(1, kGrant).ok());
  CHECK_EQ(shard.host->allocator().free_bytes(), free_bytes + 16 * kPieceBytes);
  CHECK(std::all_of(client.slots.data(), client.slots.data() + client.slots.bytes(),
                    [](std::byte byte) { return byte == std::byte{0}; }));
  client.Submit(Queue::kCommand, Refill(0, 1));
  CHECK_EQ(client.AwaitStatus(), Status::kBadGrant);
  CHECK_EQ(shard.counters().stored_slots.load(), 0u);
}

TEST("sessions come and go while another one works") {
  Shard shard;
  const Client steady = shard.Open(1, 8, 16);
  std::future<void> working = std::async(std::launch::async, [&] { DriveManyOperations(steady, 16, 500); });
  for (uint64_t session = 2; session < 60; ++session) {
    const Client passing = shard.Open(session);
    passing.Submit(Queue::kEvict, Evict(0, 1));
    if (session % 2 == 0) CHECK_EQ(passing.AwaitStatus(), Status::kOk);
    shard.host->CloseSession(session);
  }
  working.get();
}

/// Whether a memory object is all zeros, read as somebody would who kept a descriptor.
bool AllZero(const Mapping& mapping) {
  return std::all_of(mapping.data(), mapping.data() + mapping.bytes(),
                     [](std::byte byte) { return byte == std::byte{0}; });
}

TEST("a parked grant goes on in another session: bytes, generations, tags, and new rings") {
  Shard shard;
  const Client first = shard.Open(1);
  std::memset(first.slots.data(), 0xa5, first.slots.bytes());
  first.Submit(Queue::kEvict, Evict(3, 5));
  first.Submit(Queue::kEvict, Evict(4, 6));
  first.Await(2);
  const uint64_t free_bytes = shard.host->allocator().free_bytes();
  // While the session lives nothing of it can be had.
  CHECK_EQ(shard.host->ResumeGrant(1, 2, {1, kGrant}).error().status, Status::kNothingParked);
  CHECK(shard.host->ParkSession(1, {kGrant, 99}) == std::vector<uint32_t>{kGrant});
  CHECK_EQ(shard.host->allocator().free_bytes(), free_bytes);
  CHECK_EQ(shard.counters().stored_slots.load(), 0u);

  Client second = Client::Of(Must(shard.host->OpenSession(2, 8)), 8);
  const GrantedMemory granted = Must(shard.host->ResumeGrant(2, kGrant, {1, kGrant}));
  CHECK_EQ(granted.geometry.slots, 16u);
  CHECK_EQ(granted.object_bytes, uint64_t{16} * kPieceBytes);
  const Mapping slots =
      Must(Mapping::Map(granted.descriptor.get(), granted.object_bytes, Access::kReadWrite));
  CHECK_EQ(slots.data()[3 * kPieceBytes], std::byte{0xa5});
  CHECK_EQ(shard.counters().stored_slots.load(), 2u);
  second.Submit(Queue::kCommand, Refill(3, 5));
  CHECK_EQ(second.AwaitStatus(), Status::kOk);
  second.Submit(Queue::kEvict, Evict(4, 6));
  CHECK_EQ(second.AwaitStatus(), Status::kBadGeneration);
  CHECK_EQ(second.lane->evict_count(), 1u);

  const auto entries = Must(shard.host->ReadSlots(2, kGrant, 3, 3));
  CHECK_EQ(entries.size(), 3u);
  CHECK_EQ(entries[0].generation, 5u);
  CHECK_EQ(entries[0].tenant_tag, kTenant);
  CHECK_EQ(entries[0].state, static_cast<uint32_t>(proto::SlotState::kStored));
  CHECK_EQ(entries[2].generation, 0u);
  CHECK_EQ(entries[2].state, static_cast<uint32_t>(proto::SlotState::kEmpty));
  CHECK_EQ(shard.host->ReadSlots(2, kGrant, 14, 3).error().status, Status::kBadSlot);
  CHECK_EQ(shard.host->ReadSlots(2, kGrant, 17, 0).error().status, Status::kBadSlot);
  CHECK_EQ(shard.host->ReadSlots(2, 9, 0, 1).error().status, Status::kBadGrant);
  CHECK_EQ(shard.host->ReadSlots(1, kGrant, 0, 1).error().status, Status::kBadGrant);

  // Once only, and it ends as any other grant does.
  CHECK_EQ(shard.host->ResumeGrant(2, 3, {1, kGrant}).error().status, Status::kNothingParked);
  shard.host->CloseSession(2);
  CHECK(AllZero(slots));
  CHECK(AllZero(first.slots));
  CHECK_EQ(shard.host->allocator().free_bytes(), shard.host->allocator().budget_bytes());
}

TEST("parked memory that is dropped, or that cannot be resumed, is scrubbed and free") {
  Shard shard;
  for (const bool resumed : {false, true}) {
    const Client client = shard.Open(1);
    std::memset(client.slots.data(), 0xa5, client.slots.bytes());
    CHECK_EQ(shard.host->ParkSession(1, {kGrant}).size(), 1u);
    CHECK(!AllZero(client.slots));
    if (resumed) {
      CHECK_EQ(shard.host->ResumeGrant(7, kGrant, {1, kGrant}).error().status, Status::kNotAllowed);
    } else {
      shard.host->DropParked({1, kGrant});
    }
    CHECK(AllZero(client.slots));
    CHECK_EQ(shard.host->allocator().free_bytes(), shard.host->allocator().budget_bytes());
    shard.host->DropParked({1, kGrant});
  }
}

TEST("a shard that ends scrubs what is parked") {
  Client client;
  {
    Shard shard;
    client = shard.Open(1);
    std::memset(client.slots.data(), 0xa5, client.slots.bytes());
    CHECK_EQ(shard.host->ParkSession(1, {kGrant}).size(), 1u);
  }
  CHECK(AllZero(client.slots));
}

TEST("slots that a descriptor names which nobody had taken are empty when they are parked") {
  Engine engine;
  const Client client = engine.Open(1);
  uint64_t submitted = 0;
  for (;;) {
    const Descriptor next = Evict(submitted % 16, submitted + 1);
    if (client.lane->Submit(Queue::kEvict, &next, 1) == 0) break;
    ++submitted;
    engine.AwaitTurn();
  }
  // The completions have not been read, so as many as the ring holds were not taken any more.
  const uint64_t taken = client.lane->completion_entries();
  CHECK_EQ(submitted, taken + client.lane->ring_entries());
  const auto session = engine.engine->Detach(1);
  const auto table = session->TakeTable(kGrant);
  CHECK(table != nullptr);
  for (uint64_t evict = taken; evict < submitted; ++evict) {
    CHECK(table->slots[evict % 16].state == proto::SlotState::kEmpty);
    CHECK_EQ(table->slots[evict % 16].generation, evict + 1);
  }
  for (uint64_t evict = submitted - 16; evict < taken; ++evict) {
    CHECK(table->slots[evict % 16].state == proto::SlotState::kStored);
    CHECK_EQ(table->slots[evict % 16].generation, evict + 1);
  }
}

TEST("nothing is parked of a client whose ring positions are impossible") {
  Engine engine;
  const Client client = engine.Open(1);
  client.header().command_tail.store(1'000'000);
  CHECK(engine.engine->Detach(1)->TakeTable(kGrant) == nullptr);
  Shard shard;
  const Client spoiler = shard.Open(1);
  spoiler.header().evict_tail.store(1'000'000);
  CHECK(shard.host->ParkSession(1, {kGrant}).empty());
  CHECK_EQ(shard.host->allocator().free_bytes(), shard.host->allocator().budget_bytes());
}

TEST("a shard ends with sessions open") {
  Client client;
  {
    Shard shard;
    client = shard.Open(1);
    client.Submit(Queue::kCommand, Refill(0, 1, 5));
  }
  // What the client still has mapped stays readable: it just never hears again.
  CHECK_EQ(client.lane->command_count(), 0u);
  const Descriptor late = Evict(0, 1);
  CHECK_EQ(client.lane->Submit(Queue::kEvict, &late, 1), 1u);
}

}  // namespace
}  // namespace kvss
