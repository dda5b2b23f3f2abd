#pragma once

#include <compare>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/ring_session.h"
#include "engine/shard_engine.h"
#include "engine/stream_session.h"
#include "store/column_allocator.h"

namespace kvss {

struct ShardOptions {
  uint64_t budget_bytes = 0;
  HugePages huge_pages = HugePages::kIfAvailable;
  EngineOptions engine;
};

/// A grant as its owner hears of it.
struct GrantedMemory {
  UniqueFd descriptor;
  GrantGeometry geometry;
  uint64_t object_bytes = 0;
  bool huge_pages = false;
};

/// Names what was parked: the grant of the session that has ended.
struct ParkedGrant {
  uint64_t session_id = 0;
  uint32_t grant_id = 0;
  auto operator<=>(const ParkedGrant&) const = default;
};

/// One shard as the daemon holds it: its memory, its engine, and which session owns which grant. Thread-safe;
/// calls may take as long as the kernel needs for the pages, and none of them holds up the engine for that
/// time.
class ShardHost {
 public:
  /// Takes the whole budget from the system, or says why not.
  static Result<std::unique_ptr<ShardHost>> Create(const ShardOptions& options,
                                                   ShardEngine::FaultHandler on_fault);
  ~ShardHost();

  /// A session in the same host, or one over streams, which needs lanes before it can do anything.
  Result<SessionEndpoints> OpenSession(uint64_t session_id, uint32_t ring_entries);
  Outcome OpenStreamSession(uint64_t session_id, uint32_t window, bool checksums);
  Outcome AddLane(uint64_t session_id, proto::LaneKind kind, uint32_t stream, UniqueFd fd);
  Result<GrantedMemory> AddGrant(uint64_t session_id, uint32_t grant_id, uint64_t slots,
                                 uint64_t piece_bytes);
  Outcome RemoveGrant(uint64_t session_id, uint32_t grant_id);
  /// Ends a session; afterwards its memory has been scrubbed and is free. Harmless where there is no such
  /// session.
  void CloseSession(uint64_t session_id) { ParkSession(session_id, {}); }

  /// Ends a session and keeps the memory of some of its grants, with what their slots hold, until it is
  /// resumed or dropped; the rest is scrubbed and free. Answers which grants were kept. Nobody writes to them
  /// any more but who still has the memory mapped, and that has ever been their owner alone.
  std::vector<uint32_t> ParkSession(uint64_t session_id, const std::vector<uint32_t>& grant_ids);
  /// Gives what was parked to another session of its owner, as a grant of that one. It is parked no more:
  /// where this fails it is scrubbed and free. Who the owner is, and that both sessions are of one kind, is
  /// the caller's to know.
  Result<GrantedMemory> ResumeGrant(uint64_t session_id, uint32_t grant_id, ParkedGrant parked);
  /// Scrubs what was parked. Harmless where it is not.
  void DropParked(ParkedGrant parked);

  /// What `count` slots of a grant hold, from slot `from` on.
  Result<std::vector<proto::SlotEntry>> ReadSlots(uint64_t session_id, uint32_t grant_id, uint64_t from,
                                                  uint64_t count);

  bool Drain(uint64_t timeout_ns) { return engine_->Drain(timeout_ns); }
  const ColumnAllocator& allocator() const { return *allocator_; }
  const CountersSegment& counters() const { return engine_->counters(); }

 private:
  struct Session {
    StreamSession* stream = nullptr;  ///< null for a session in the same host; used on the engine thread only
    std::map<uint32_t, std::unique_ptr<GrantMemory>> grants;
  };

  ShardHost(std::unique_ptr<ColumnAllocator> allocator, std::unique_ptr<ShardEngine> engine)
      : allocator_(std::move(allocator)), engine_(std::move(engine)) {}

  struct Parked {
    std::unique_ptr<GrantMemory> memory;
    std::unique_ptr<SlotTable> table;
  };

  std::optional<Parked> TakeParked(ParkedGrant parked);
  Outcome MapIfStream(uint64_t session_id, GrantMemory* memory);
  Outcome Enter(std::unique_ptr<EngineSession> session, StreamSession* stream);
  /// Takes the memory over where it succeeds and leaves it where it fails.
  Outcome Register(uint64_t session_id, uint32_t grant_id, std::unique_ptr<GrantMemory>* memory,
                   std::unique_ptr<SlotTable> table);
  /// Makes a grant of memory that nobody else knows of. Frees it where it fails.
  Result<GrantedMemory> Grant(uint64_t session_id, uint32_t grant_id, std::unique_ptr<GrantMemory> memory,
                              std::unique_ptr<SlotTable> table);

  std::unique_ptr<ColumnAllocator> allocator_;
  std::unique_ptr<ShardEngine> engine_;
  std::mutex mutex_;  ///< of what follows
  std::map<uint64_t, Session> sessions_;
  std::map<ParkedGrant, Parked> parked_;
};

}  // namespace kvss
