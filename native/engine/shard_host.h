#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "engine/shard_engine.h"
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
                                                   ShardEngine::CorruptHandler on_corrupt);
  ~ShardHost();

  Result<SessionEndpoints> OpenSession(uint64_t session_id, uint32_t ring_entries);
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
  using Grants = std::map<uint32_t, std::unique_ptr<GrantMemory>>;

  ShardHost(std::unique_ptr<ColumnAllocator> allocator, std::unique_ptr<ShardEngine> engine)
      : allocator_(std::move(allocator)), engine_(std::move(engine)) {}

  /// Takes the memory over where it succeeds and leaves it where it fails.
  Outcome Register(uint64_t session_id, uint32_t grant_id, std::unique_ptr<GrantMemory>* memory);

  std::unique_ptr<ColumnAllocator> allocator_;
  std::unique_ptr<ShardEngine> engine_;
  std::mutex mutex_;  ///< of sessions_
  std::map<uint64_t, Grants> sessions_;
};

}  // namespace kvss
