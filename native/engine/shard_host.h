#pragma once

#include <map>
#include <memory>
#include <mutex>

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
  void CloseSession(uint64_t session_id);

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

  Outcome MapIfStream(uint64_t session_id, GrantMemory* memory);
  Outcome Enter(std::unique_ptr<EngineSession> session, StreamSession* stream);
  /// Takes the memory over where it succeeds and leaves it where it fails.
  Outcome Register(uint64_t session_id, uint32_t grant_id, std::unique_ptr<GrantMemory>* memory);

  std::unique_ptr<ColumnAllocator> allocator_;
  std::unique_ptr<ShardEngine> engine_;
  std::mutex mutex_;  ///< of sessions_
  std::map<uint64_t, Session> sessions_;
};

}  // namespace kvss
