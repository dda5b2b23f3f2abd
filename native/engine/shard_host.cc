#include "engine/shard_host.h"

#include "base/step.h"

namespace kvss {

using proto::Status;

namespace {

Outcome CheckRing(uint32_t entries) {
  if (ValidRingEntries(entries)) return Nothing{};
  return Error{Status::kLimitExceeded,
               "a ring of " + std::to_string(entries) + " entries: must be a power of two in " +
                   std::to_string(proto::kMinRingEntries) + ".." + std::to_string(proto::kMaxRingEntries)};
}

}  // namespace

Result<std::unique_ptr<ShardHost>> ShardHost::Create(const ShardOptions& options,
                                                     ShardEngine::FaultHandler on_fault) {
  auto allocator = ColumnAllocator::Create(options.budget_bytes, options.huge_pages);
  if (!allocator.ok()) return allocator.error();
  auto engine = ShardEngine::Start(options.engine, std::move(on_fault));
  if (!engine.ok()) return engine.error();
  return std::unique_ptr<ShardHost>(new ShardHost(std::move(allocator.value()), std::move(engine.value())));
}

ShardHost::~ShardHost() {
  std::vector<uint64_t> open;
  for (const auto& [session_id, session] : sessions_) open.push_back(session_id);
  for (const uint64_t session_id : open) CloseSession(session_id);
  while (!parked_.empty()) DropParked(parked_.begin()->first);
}

Result<SessionEndpoints> ShardHost::OpenSession(uint64_t session_id, uint32_t ring_entries) {
  if (Outcome valid = CheckRing(ring_entries); !valid.ok()) return valid.error();
  auto session = RingSession::Create(session_id, ring_entries, engine_->tally());
  if (!session.ok()) return session.error();
  auto endpoints = session.value()->Endpoints();
  if (!endpoints.ok()) return endpoints.error();
  Outcome entered = Enter(std::move(session.value()), nullptr);
  if (!entered.ok()) return entered.error();
  return endpoints;
}

Outcome ShardHost::OpenStreamSession(uint64_t session_id, uint32_t window, bool checksums) {
  if (Outcome valid = CheckRing(window); !valid.ok()) return valid;
  auto session = std::make_unique<StreamSession>(session_id, window, checksums, engine_->tally());
  StreamSession* stream = session.get();
  return Enter(std::move(session), stream);
}

Outcome ShardHost::Enter(std::unique_ptr<EngineSession> session, StreamSession* stream) {
  std::lock_guard lock(mutex_);
  if (!sessions_.emplace(session->id(), Session{stream, {}}).second) {
    return Error{Status::kNotAllowed, "the session is attached to this shard already"};
  }
  engine_->Attach(std::move(session));
  KVSS_STEP("session attached");
  return Nothing{};
}

Outcome ShardHost::AddLane(uint64_t session_id, proto::LaneKind kind, uint32_t stream, UniqueFd fd) {
  std::lock_guard lock(mutex_);
  const auto session = sessions_.find(session_id);
  if (session == sessions_.end() || session->second.stream == nullptr) {
    return Error{Status::kNotAllowed, "the session takes no lanes"};
  }
  Outcome added = Error{Status::kNotAllowed, "the session has ended"};
  engine_->WithSession(session_id, [&](EngineSession* engine_session) {
    if (engine_session != nullptr) added = session->second.stream->AddLane(kind, stream, std::move(fd));
  });
  return added;
}

Result<GrantedMemory> ShardHost::AddGrant(uint64_t session_id, uint32_t grant_id, uint64_t slots,
                                          uint64_t piece_bytes) {
  auto geometry = GrantGeometry::For(slots, piece_bytes);
  if (!geometry.ok()) return geometry.error();
  auto allocated = allocator_->Allocate(geometry.value());
  if (!allocated.ok()) return allocated.error();
  KVSS_STEP("grant allocated");
  return Grant(session_id, grant_id, std::make_unique<GrantMemory>(std::move(allocated.value())),
               std::make_unique<SlotTable>(geometry.value()));
}

Result<GrantedMemory> ShardHost::Grant(uint64_t session_id, uint32_t grant_id,
                                       std::unique_ptr<GrantMemory> memory,
                                       std::unique_ptr<SlotTable> table) {
  const GrantGeometry geometry = memory->geometry;
  const bool huge_pages = memory->object.huge_pages();

  if (Outcome mapped = MapIfStream(session_id, memory.get()); !mapped.ok()) {
    allocator_->Free(std::move(*memory));
    return mapped.error();
  }
  // Before the engine knows the grant, so that nothing has to be undone there.
  auto descriptor = memory->object.Duplicate();
  Outcome added = descriptor.ok() ? Register(session_id, grant_id, &memory, std::move(table))
                                  : Outcome(descriptor.error());
  if (!added.ok()) {
    allocator_->Free(std::move(*memory));
    return added.error();
  }
  KVSS_STEP("grant registered");
  return GrantedMemory{std::move(descriptor.value()), geometry, allocator_->Footprint(geometry), huge_pages};
}

Outcome ShardHost::MapIfStream(uint64_t session_id, GrantMemory* memory) {
  {
    std::lock_guard lock(mutex_);
    const auto session = sessions_.find(session_id);
    if (session == sessions_.end() || session->second.stream == nullptr) return Nothing{};
  }
  // Resumed memory is mapped already.
  if (memory->mapping.data() != nullptr) return Nothing{};
  auto mapping = Mapping::Map(memory->object.fd(), memory->object.bytes(), Access::kReadWrite);
  if (!mapping.ok()) return mapping.error();
  mapping.value().Populate();
  memory->mapping = std::move(mapping.value());
  return Nothing{};
}

Outcome ShardHost::Register(uint64_t session_id, uint32_t grant_id, std::unique_ptr<GrantMemory>* memory,
                            std::unique_ptr<SlotTable> table) {
  std::lock_guard lock(mutex_);
  const auto session = sessions_.find(session_id);
  if (session == sessions_.end())
    return Error{Status::kNotAllowed, "the session is not attached to this shard"};
  if (session->second.grants.contains(grant_id))
    return Error{Status::kBadGrant, "grant numbers are used once"};
  Outcome added = Error{Status::kNotAllowed, "the session has ended"};
  engine_->WithSession(session_id, [&](EngineSession* engine_session) {
    if (engine_session != nullptr) {
      added = engine_session->AddGrant(grant_id, memory->get(), std::move(table));
    }
  });
  if (added.ok()) session->second.grants.emplace(grant_id, std::move(*memory));
  return added;
}

Outcome ShardHost::RemoveGrant(uint64_t session_id, uint32_t grant_id) {
  std::unique_ptr<GrantMemory> memory;
  {
    std::lock_guard lock(mutex_);
    const auto session = sessions_.find(session_id);
    if (session == sessions_.end() || !session->second.grants.contains(grant_id)) {
      return Error{Status::kBadGrant, "the session has no grant " + std::to_string(grant_id)};
    }
    Outcome removed = Nothing{};
    engine_->WithSession(session_id, [&](EngineSession* engine_session) {
      if (engine_session != nullptr) removed = engine_session->RemoveGrant(grant_id);
    });
    if (!removed.ok()) return removed;
    memory = std::move(session->second.grants.at(grant_id));
    session->second.grants.erase(grant_id);
  }
  allocator_->Free(std::move(*memory));
  return Nothing{};
}

std::vector<uint32_t> ShardHost::ParkSession(uint64_t session_id, const std::vector<uint32_t>& grant_ids) {
  std::map<uint32_t, std::unique_ptr<GrantMemory>> grants;
  std::unique_ptr<EngineSession> detached;
  {
    std::lock_guard lock(mutex_);
    detached = engine_->Detach(session_id);
    KVSS_STEP("session detached, memory not yet free");
    const auto session = sessions_.find(session_id);
    if (session == sessions_.end()) return {};
    grants = std::move(session->second.grants);
    sessions_.erase(session);
  }
  std::vector<uint32_t> kept;
  for (const uint32_t grant_id : grant_ids) {
    const auto memory = grants.find(grant_id);
    if (detached == nullptr || memory == grants.end()) continue;
    auto table = detached->TakeTable(grant_id);
    if (table == nullptr) continue;
    std::lock_guard lock(mutex_);
    parked_.emplace(ParkedGrant{session_id, grant_id}, Parked{std::move(memory->second), std::move(table)});
    grants.erase(memory);
    kept.push_back(grant_id);
    KVSS_STEP("grant parked");
  }
  detached.reset();
  for (auto& [grant_id, memory] : grants) {
    allocator_->Free(std::move(*memory));
    KVSS_STEP("grant of an ended session freed");
  }
  return kept;
}

std::optional<ShardHost::Parked> ShardHost::TakeParked(ParkedGrant parked) {
  std::lock_guard lock(mutex_);
  auto found = parked_.extract(parked);
  if (found.empty()) return std::nullopt;
  return std::move(found.mapped());
}

Result<GrantedMemory> ShardHost::ResumeGrant(uint64_t session_id, uint32_t grant_id, ParkedGrant parked) {
  std::optional<Parked> taken = TakeParked(parked);
  if (!taken) return Error{Status::kNothingParked, "the grant is not parked"};
  KVSS_STEP("parked grant taken, not registered");
  return Grant(session_id, grant_id, std::move(taken->memory), std::move(taken->table));
}

void ShardHost::DropParked(ParkedGrant parked) {
  std::optional<Parked> taken = TakeParked(parked);
  if (taken) allocator_->Free(std::move(*taken->memory));
}

Result<std::vector<proto::SlotEntry>> ShardHost::ReadSlots(uint64_t session_id, uint32_t grant_id,
                                                           uint64_t from, uint64_t count) {
  std::vector<proto::SlotEntry> entries;
  Outcome read = Error{Status::kBadGrant, "the session has no grant " + std::to_string(grant_id)};
  engine_->WithSession(session_id, [&](EngineSession* session) {
    const SlotTable* table = session == nullptr ? nullptr : session->Table(grant_id);
    if (table == nullptr) return;
    if (count > proto::kMaxSlotsPerPage || from > table->slots.size() || count > table->slots.size() - from) {
      read = Error{Status::kBadSlot, "the grant has " + std::to_string(table->slots.size()) + " slots, and " +
                                         std::to_string(proto::kMaxSlotsPerPage) + " are told at once"};
      return;
    }
    for (uint64_t index = from; index < from + count; ++index) {
      const Slot& slot = table->slots[index];
      entries.push_back({.generation = slot.generation,
                         .tenant_tag = slot.tenant_tag,
                         .state = static_cast<uint32_t>(slot.state)});
    }
    read = Nothing{};
  });
  if (!read.ok()) return read.error();
  return entries;
}

}  // namespace kvss
