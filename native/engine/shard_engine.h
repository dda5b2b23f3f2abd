#pragma once

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/engine_session.h"
#include "shm/segments.h"

namespace kvss {

/// How an engine waits for work.
enum class HioMode : uint8_t {
  kLatency,   ///< never sleeps
  kBuffered,  ///< sleeps as soon as there is nothing to do
  kAdaptive,  ///< looks for work for `spin_us`, then sleeps
};

struct EngineOptions {
  uint32_t shard = 0;
  HioMode mode = HioMode::kAdaptive;
  uint32_t spin_us = 20;
};

/// The thread that drives the sessions of one shard. Everything that a session does happens on this thread;
/// other threads hand it short tasks.
class ShardEngine {
 public:
  /// Called from the engine thread when a session must be ended.
  using FaultHandler = std::function<void(uint64_t session_id, SessionFault fault)>;

  static Result<std::unique_ptr<ShardEngine>> Start(const EngineOptions& options, FaultHandler on_fault);
  /// Stops the thread. Sessions must have been detached.
  ~ShardEngine();

  /// Runs a task on the engine thread and waits for it. Must not be called from the engine thread.
  void Run(const std::function<void()>& task);

  void Attach(std::unique_ptr<EngineSession> session);
  /// Closes a session and hands it back once nothing touches its memory any more; null if there is no such
  /// session.
  std::unique_ptr<EngineSession> Detach(uint64_t session_id);
  /// Runs `task` with the session on the engine thread; the argument is null if there is no such session.
  void WithSession(uint64_t session_id, const std::function<void(EngineSession*)>& task);
  /// Answers once every descriptor that clients have submitted so far has been finished, or at the deadline.
  bool Drain(uint64_t timeout_ns);

  ShardTally* tally() { return &tally_; }
  const CountersSegment& counters() const { return counters_; }

 private:
  ShardEngine(const EngineOptions& options, CountersSegment counters, FaultHandler on_fault);

  struct Task {
    const std::function<void()>* run;
    std::promise<void> done;
  };

  void Loop();
  bool RunTasks();
  bool PumpSessions();
  void TakeEvents(int timeout_ms);
  void SleepUntilWork();
  void PublishCounters();
  EngineSession* Find(uint64_t session_id);

  const EngineOptions options_;
  CountersSegment counters_;
  FaultHandler on_fault_;
  ShardTally tally_;
  UniqueFd epoll_;
  UniqueFd task_wake_;
  std::vector<std::unique_ptr<EngineSession>> sessions_;
  int streams_ = 0;  ///< sessions whose sockets epoll is asked about
  uint64_t turns_ = 0;
  uint64_t sleeps_ = 0;
  uint64_t ring_faults_ = 0;

  std::mutex tasks_mutex_;
  std::vector<Task> tasks_;
  std::atomic<bool> tasks_waiting_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace kvss
