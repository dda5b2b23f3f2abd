#include "engine/shard_engine.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>

#include "base/clock.h"
#include "link/stream.h"

namespace kvss {
namespace {

// An engine that sleeps looks up this often even when nobody wakes it, so that its heartbeat tells it from a
// dead one.
constexpr uint64_t kHeartbeatNs = 1'000'000'000;

// Turns between two looks at the counters while the engine is busy.
constexpr uint64_t kTurnsPerPublish = 256;

// Where there are more than a few sessions, one that had nothing to do for about a millisecond is looked at
// in every 16th turn only, so that those that do nothing cost the others next to nothing.
constexpr size_t kFewSessions = 8;
constexpr uint32_t kQuietTurns = 4096;
constexpr uint64_t kTurnsPerLook = 16;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Result<std::unique_ptr<ShardEngine>> ShardEngine::Start(const EngineOptions& options, FaultHandler on_fault) {
  auto counters = CountersSegment::Create(options.shard);
  if (!counters.ok()) return counters.error();
  std::unique_ptr<ShardEngine> engine(
      new ShardEngine(options, std::move(counters.value()), std::move(on_fault)));
  engine->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  engine->task_wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {}};
  if (!engine->epoll_.valid() || !engine->task_wake_.valid() ||
      ::epoll_ctl(engine->epoll_.get(), EPOLL_CTL_ADD, engine->task_wake_.get(), &event) != 0) {
    return SystemError(proto::Status::kLimitExceeded, "cannot start a shard engine");
  }
  engine->thread_ = std::thread([raw = engine.get()] { raw->Loop(); });
  ::pthread_setname_np(engine->thread_.native_handle(),
                       ("kvss-shard-" + std::to_string(options.shard)).c_str());
  return engine;
}

ShardEngine::ShardEngine(const EngineOptions& options, CountersSegment counters, FaultHandler on_fault)
    : options_(options), counters_(std::move(counters)), on_fault_(std::move(on_fault)) {}

ShardEngine::~ShardEngine() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  ::eventfd_write(task_wake_.get(), 1);
  thread_.join();
}

void ShardEngine::Run(const std::function<void()>& task) {
  std::future<void> done;
  {
    std::lock_guard lock(tasks_mutex_);
    tasks_.push_back({&task, {}});
    done = tasks_.back().done.get_future();
    // Partner: the acquire load in RunTasks.
    tasks_waiting_.store(true, std::memory_order_release);
  }
  ::eventfd_write(task_wake_.get(), 1);
  done.wait();
}

void ShardEngine::Attach(std::unique_ptr<EngineSession> session) {
  Run([&] {
    session->WatchWith(epoll_.get());
    streams_ += session->uses_streams();
    sessions_.push_back(std::move(session));
  });
}

std::unique_ptr<EngineSession> ShardEngine::Detach(uint64_t session_id) {
  std::unique_ptr<EngineSession> detached;
  Run([&] {
    const auto found =
        std::ranges::find(sessions_, session_id, [](const auto& session) { return session->id(); });
    if (found == sessions_.end()) return;
    detached = std::move(*found);
    sessions_.erase(found);
    detached->UnwatchWith(epoll_.get());
    streams_ -= detached->uses_streams();
    detached->Close(MonotonicNanos());
  });
  return detached;
}

void ShardEngine::WithSession(uint64_t session_id, const std::function<void(EngineSession*)>& task) {
  Run([&] { task(Find(session_id)); });
}

bool ShardEngine::Drain(uint64_t timeout_ns) {
  const uint64_t deadline = MonotonicNanos() + timeout_ns;
  for (;;) {
    bool busy = false;
    Run([&] {
      busy = std::ranges::any_of(sessions_, [](const auto& session) { return session->Unfinished(); });
    });
    if (!busy) return true;
    if (MonotonicNanos() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

EngineSession* ShardEngine::Find(uint64_t session_id) {
  const auto found =
      std::ranges::find(sessions_, session_id, [](const auto& session) { return session->id(); });
  return found == sessions_.end() ? nullptr : found->get();
}

void ShardEngine::Loop() {
  uint64_t idle_since = MonotonicNanos();
  while (!stopping_.load(std::memory_order_relaxed)) {
    bool worked = RunTasks();
    worked |= PumpSessions();
    if (++turns_ % kTurnsPerPublish == 0) PublishCounters();
    if (worked) {
      idle_since = 0;
      continue;
    }
    if (options_.mode == HioMode::kBuffered) {
      SleepUntilWork();
      continue;
    }
    if (options_.mode == HioMode::kAdaptive) {
      const uint64_t now = MonotonicNanos();
      if (idle_since == 0) idle_since = now;
      if (now - idle_since >= uint64_t{options_.spin_us} * 1000) {
        SleepUntilWork();
        idle_since = 0;
        continue;
      }
    }
    Pause();
  }
  RunTasks();
}

bool ShardEngine::RunTasks() {
  // Partner: the release store in Run.
  if (!tasks_waiting_.load(std::memory_order_acquire)) return false;
  tasks_waiting_.store(false, std::memory_order_relaxed);
  std::vector<Task> tasks;
  {
    std::lock_guard lock(tasks_mutex_);
    tasks.swap(tasks_);
  }
  for (Task& task : tasks) {
    (*task.run)();
    PublishCounters();
    task.done.set_value();
  }
  return true;
}

bool ShardEngine::PumpSessions() {
  if (sessions_.empty()) return false;
  if (streams_ > 0) TakeEvents(0);
  const uint64_t now = MonotonicNanos();
  bool worked = false;
  const bool skip_quiet = sessions_.size() > kFewSessions;
  uint64_t turn = turns_;
  for (const auto& session : sessions_) {
    // Not all quiet ones in the same turn.
    if (skip_quiet && session->quiet_turns > kQuietTurns && ++turn % kTurnsPerLook != 0) continue;
    const bool active = session->Pump(now);
    session->quiet_turns =
        active || session->uses_streams() ? 0 : std::min(session->quiet_turns, kQuietTurns) + 1;
    worked |= active;
    if (const auto fault = session->ReportFault()) {
      ring_faults_ += *fault != SessionFault::kLaneEnded;
      on_fault_(session->id(), *fault);
    }
  }
  return worked;
}

void ShardEngine::TakeEvents(int timeout_ms) {
  epoll_event events[64];
  const int count = ::epoll_wait(epoll_.get(), events, 64, timeout_ms);
  for (int index = 0; index < count; ++index) {
    // Rings are looked at anyway, so for them it is enough to be awake. Streams are told which of them is
    // ready.
    auto* lane = static_cast<LaneEvents*>(events[index].data.ptr);
    if (lane != nullptr) lane->Note(events[index].events);
  }
}

void ShardEngine::SleepUntilWork() {
  for (const auto& session : sessions_) session->AnnounceSleep(true);
  // Dekker with ShardLane::Submit: the client stores its tail, fences and reads engineSleeping; here the flag
  // is stored, then the fence, then the tails are read. At least one of the two sees the other.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  uint64_t wake_at = MonotonicNanos() + kHeartbeatNs;
  bool work = tasks_waiting_.load(std::memory_order_relaxed) || stopping_.load(std::memory_order_relaxed);
  for (const auto& session : sessions_) {
    work |= session->HasWork();
    wake_at = std::min(wake_at, session->next_deadline_ns());
  }
  PublishCounters();
  if (!work) {
    ++sleeps_;
    const uint64_t now = MonotonicNanos();
    TakeEvents(wake_at <= now ? 0 : static_cast<int>((wake_at - now) / 1'000'000 + 1));
  }
  for (const auto& session : sessions_) {
    session->AnnounceSleep(false);
    // Whoever has woken the engine is looked at in the next turn.
    session->quiet_turns = 0;
  }
}

void ShardEngine::PublishCounters() {
  proto::CountersSegment& out = counters_.counters();
  const auto put = [](std::atomic<uint64_t>& to, uint64_t value) {
    to.store(value, std::memory_order_relaxed);
  };
  put(out.heartbeat, turns_);
  put(out.sessions, sessions_.size());
  put(out.evicts, tally_.evicts);
  put(out.evict_faults, tally_.evict_faults);
  put(out.evict_bytes, tally_.evict_bytes);
  put(out.refills, tally_.refills);
  put(out.refill_misses, tally_.refill_misses);
  put(out.refill_faults, tally_.refill_faults);
  put(out.refill_bytes, tally_.refill_bytes);
  put(out.deletes, tally_.deletes);
  put(out.delete_misses, tally_.delete_misses);
  put(out.tenant_alarms, tally_.tenant_alarms);
  put(out.deadlines, tally_.deadlines);
  put(out.gated_evicts, tally_.gated_evicts);
  put(out.gated_commands, tally_.gated_commands);
  put(out.scrubbed_bytes, tally_.scrubbed_bytes);
  put(out.ring_faults, ring_faults_);
  put(out.sleeps, sleeps_);
  put(out.stored_slots, tally_.stored_slots);
  for (size_t bucket = 0; bucket < ShardTally::kLatencyBuckets; ++bucket) {
    put(out.evict_latency[bucket], tally_.evict_latency[bucket]);
    put(out.refill_latency[bucket], tally_.refill_latency[bucket]);
  }
}

}  // namespace kvss
