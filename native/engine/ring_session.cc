#include "engine/ring_session.h"

#include <fcntl.h>
#include <sys/epoll.h>

#include <algorithm>

#include "base/step.h"

namespace kvss {
namespace {

// How many descriptors of one queue are taken in a turn: enough to amortise the turn, few enough that other
// sessions and the evicts of this one do not wait long.
constexpr uint32_t kEvictsPerTurn = 256;
constexpr uint32_t kCommandsPerTurn = 128;
// Commands that are handled before the next look whether an evict has come: a look costs next to nothing, as
// long as there is none.
constexpr uint32_t kCommandsBetweenLooks = 4;

/// What a wake is: of the size that a read of an eventfd takes, which clients once had here.
constexpr uint64_t kWake = 1;

}  // namespace

Result<std::unique_ptr<RingSession>> RingSession::Create(uint64_t id, uint32_t ring_entries,
                                                         ShardTally* tally) {
  auto segments = SessionSegments::Create(ring_entries);
  if (!segments.ok()) return segments.error();
  std::unique_ptr<RingSession> session(new RingSession(id, std::move(segments.value()), tally));
  // The engine never reads or writes this one, so it cannot be held up by it.
  session->submit_wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!session->submit_wake_.valid()) return SystemError(proto::Status::kLimitExceeded, "eventfd");
  // A pipe and no eventfd: who holds a copy of a descriptor can switch it to blocking for all who do, and
  // could then stop the engine at a full eventfd. The ends of a pipe have flags of their own.
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return SystemError(proto::Status::kLimitExceeded, "pipe2");
  session->client_completion_wake_ = UniqueFd(ends[0]);
  session->completion_wake_ = UniqueFd(ends[1]);
  KVSS_STEP("session made");
  return session;
}

RingSession::RingSession(uint64_t id, SessionSegments segments, ShardTally* tally)
    : EngineSession(id),
      segments_(std::move(segments)),
      evict_ring_(segments_.evict_ring()),
      command_ring_(segments_.command_ring()),
      completion_ring_(segments_.completion_ring()),
      core_(segments_.ring_entries(), &port_, this, tally) {}

Result<SessionEndpoints> RingSession::Endpoints() const {
  SessionEndpoints endpoints;
  const std::pair<UniqueFd*, int> copies[] = {
      {&endpoints.submit_segment, segments_.submit_object().fd()},
      {&endpoints.status_segment, segments_.status_object().fd()},
      {&endpoints.submit_wake, submit_wake_.get()},
      {&endpoints.completion_wake, client_completion_wake_.get()},
  };
  for (const auto& [to, from] : copies) {
    *to = UniqueFd(::fcntl(from, F_DUPFD_CLOEXEC, 0));
    if (!to->valid())
      return SystemError(proto::Status::kLimitExceeded, "cannot duplicate a session descriptor");
  }
  return endpoints;
}

Outcome RingSession::AddGrant(uint32_t grant_id, GrantMemory* memory, std::unique_ptr<SlotTable> table) {
  Outcome added = core_.AddGrant(grant_id, std::move(table));
  if (added.ok()) port_.AddGrant(grant_id, &memory->object);
  return added;
}

Outcome RingSession::RemoveGrant(uint32_t grant_id) {
  Outcome removed = core_.RemoveGrant(grant_id);
  if (removed.ok()) port_.RemoveGrant(grant_id);
  return removed;
}

bool RingSession::Pump(uint64_t now_ns) {
  if (failed()) return false;
  bool worked = Drain(Queue::kEvict, kEvictsPerTurn, now_ns);
  // Evicts are the critical path: what they have come to is not kept until the commands are through.
  Publish();
  worked |= Drain(Queue::kCommand, kCommandsPerTurn, now_ns);
  core_.ExpireDeadlines(now_ns);
  Publish();
  return worked;
}

uint32_t RingSession::Takeable(Queue queue) {
  if (failed()) return 0;
  const std::optional<uint32_t> waiting = Ring(queue).Available();
  const std::optional<uint32_t> room = completion_ring_.Room();
  if (!waiting || !room) {
    Fail(SessionFault::kRing);
    return 0;
  }
  // Every accepted operation must find room for its completion, so that the core never has to wait for the
  // client.
  const uint64_t unfinished = accepted_ - completed_;
  const uint32_t completions = *room > unfinished ? static_cast<uint32_t>(*room - unfinished) : 0;
  return std::min({*waiting, queue == Queue::kEvict ? core_.EvictRoom() : core_.CommandRoom(), completions});
}

bool RingSession::Drain(Queue queue, uint32_t limit, uint64_t now_ns) {
  const uint32_t batch = std::min(Takeable(queue), limit);
  if (batch == 0) return false;
  RingConsumer<proto::Descriptor>& ring = Ring(queue);
  for (uint32_t taken = 0; taken < batch; ++taken) {
    // The rest of the commands waits for another turn where an evict has come; the first ones never do.
    if (queue == Queue::kCommand && taken > 0 && taken % kCommandsBetweenLooks == 0 &&
        evict_ring_.Available() != 0u) {
      break;
    }
    const proto::Descriptor descriptor = ring.Take();
    ++accepted_;
    KVSS_STEP("descriptor taken from a ring");
    queue == Queue::kEvict ? core_.AcceptEvict(descriptor, now_ns) : core_.AcceptCommand(descriptor, now_ns);
  }
  KVSS_STEP("descriptors handled");
  ring.Release();
  KVSS_STEP("ring released");
  return true;
}

void RingSession::Complete(const proto::Completion& completion) {
  ++completed_;
  ++unpublished_;
  completion_ring_.Put(completion);
  KVSS_STEP("completion put");
}

void RingSession::Publish() {
  if (unpublished_ == 0) return;
  unpublished_ = 0;
  completion_ring_.Publish();
  KVSS_STEP("completions published");
  // After the completions: who sees the count has the reasons. Partner: the acquire loads in ShardLane.
  segments_.status().evict_count.store(core_.evict_count(), std::memory_order_release);
  segments_.status().command_count.store(core_.command_count(), std::memory_order_release);
  KVSS_STEP("counts published");
  // Dekker with ShardLane::Arm: the client stores clientSleeping, fences and looks at completionTail; here
  // the tail is stored, then the fence, then the flag is read. At least one of the two sees the other.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (segments_.submit().client_sleeping.load(std::memory_order_relaxed) != 0) {
    // Where it is full the client has wakes enough.
    (void)!::write(completion_wake_.get(), &kWake, sizeof(kWake));
    KVSS_STEP("client woken");
  }
}

bool RingSession::HasWork() {
  // Descriptors that cannot be taken yet are no work: ShardLane::Poll wakes the engine once it has made room.
  return Takeable(Queue::kEvict) > 0 || Takeable(Queue::kCommand) > 0 || fault_unreported();
}

bool RingSession::Unfinished() {
  if (failed()) return false;
  return !core_.idle() || evict_ring_.Available().value_or(0) > 0 ||
         command_ring_.Available().value_or(0) > 0;
}

void RingSession::Close(uint64_t now_ns) {
  core_.Close(now_ns);
  // Transfers of this port end inside Begin, so nothing can be running here.
  KVSS_CHECK(core_.quiescent());
  KVSS_STEP("session ended, memory not yet revoked");
  // Before any page of a grant is taken away. Partner: the acquire fence in ShardLane::revoked, which stands
  // between the reading of a slot and the look at this flag: who has read a byte of a page that was gone sees
  // the flag.
  segments_.status().revoked.store(1, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  KVSS_STEP("memory revoked");
}

std::unique_ptr<SlotTable> RingSession::TakeTable(uint32_t grant_id) {
  VoidUntaken(Queue::kEvict);
  VoidUntaken(Queue::kCommand);
  return misbehaved() ? nullptr : core_.TakeTable(grant_id);
}

void RingSession::VoidUntaken(Queue queue) {
  RingConsumer<proto::Descriptor>& ring = Ring(queue);
  // One look: a client that goes on submitting has closed its connection, and nobody takes that any more.
  const std::optional<uint32_t> waiting = ring.Available();
  if (!waiting) return Fail(SessionFault::kRing);
  for (uint32_t taken = 0; taken < *waiting; ++taken) core_.Void(ring.Take());
  KVSS_STEP("untaken descriptors void");
}

void RingSession::WatchWith(int epoll_fd) {
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
  // Where the kernel refuses, the engine's heartbeat still finds the work: slow, but not stuck.
  (void)::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, submit_wake_.get(), &event);
}

void RingSession::UnwatchWith(int epoll_fd) {
  (void)::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, submit_wake_.get(), nullptr);
}

void RingSession::AnnounceSleep(bool sleeping) {
  segments_.status().engine_sleeping.store(sleeping ? 1 : 0, std::memory_order_relaxed);
}

}  // namespace kvss
