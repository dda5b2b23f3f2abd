#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "base/result.h"
#include "store/column_allocator.h"
#include "store/shard_session.h"

namespace kvss {

/// Why a session cannot be served any more.
enum class SessionFault : uint8_t {
  kRing,       ///< impossible ring positions
  kProtocol,   ///< frames that cannot be
  kLaneEnded,  ///< a connection has gone
};

/// One driver session as an engine serves it, whatever its requests travel over. The engine thread alone uses
/// it once it is attached.
class EngineSession {
 public:
  explicit EngineSession(uint64_t id) : id_(id) {}
  virtual ~EngineSession() = default;
  EngineSession(const EngineSession&) = delete;
  EngineSession& operator=(const EngineSession&) = delete;

  uint64_t id() const { return id_; }

  /// The memory must outlive the grant. The slots are what `table` says.
  virtual Outcome AddGrant(uint32_t grant_id, GrantMemory* memory, std::unique_ptr<SlotTable> table) = 0;
  Outcome AddGrant(uint32_t grant_id, GrantMemory* memory) {
    return AddGrant(grant_id, memory, std::make_unique<SlotTable>(memory->geometry));
  }
  virtual const SlotTable* Table(uint32_t grant_id) const = 0;
  virtual Outcome RemoveGrant(uint32_t grant_id) = 0;

  /// Does a bounded amount of what there is to do, evicts first, and publishes what finished. Answers whether
  /// there was anything. After a fault the session does nothing more.
  virtual bool Pump(uint64_t now_ns) = 0;
  /// Answers with the fault once, after the session has failed, wherever that was found.
  std::optional<SessionFault> ReportFault() {
    return fault_ && !std::exchange(reported_, true) ? fault_ : std::nullopt;
  }

  /// Pump would find something, or a fault waits to be reported.
  virtual bool HasWork() = 0;
  /// Something that the client has submitted has not finished. Never of a failed session, which is not
  /// served.
  virtual bool Unfinished() = 0;
  virtual uint64_t next_deadline_ns() const = 0;

  /// Tells the client whether it has to wake the engine after a submission.
  virtual void AnnounceSleep(bool sleeping) = 0;
  /// Enters, or takes out, what wakes the engine while it sleeps. Event data is a LaneEvents, or null.
  virtual void WatchWith(int epoll_fd) = 0;
  virtual void UnwatchWith(int epoll_fd) = 0;

  /// Whether the engine has to ask epoll between turns.
  virtual bool uses_streams() const { return false; }

  /// Ends the session; afterwards nothing touches its memory.
  virtual void Close(uint64_t now_ns) = 0;
  /// After Close: what the slots of a grant hold, for a session that goes on with them. Null if there is no
  /// such grant, and for a session that had failed other than by the end of its connections: what such a
  /// client says of its slots is not to be believed.
  virtual std::unique_ptr<SlotTable> TakeTable(uint32_t grant_id) = 0;

  /// The engine's: turns since the session had something to do.
  uint32_t quiet_turns = 0;

 protected:
  bool failed() const { return fault_.has_value(); }
  bool misbehaved() const { return fault_ && *fault_ != SessionFault::kLaneEnded; }
  void Fail(SessionFault fault) {
    if (!fault_) fault_ = fault;
  }
  bool fault_unreported() const { return fault_ && !reported_; }

 private:
  const uint64_t id_;
  std::optional<SessionFault> fault_;
  bool reported_ = false;
};

}  // namespace kvss
