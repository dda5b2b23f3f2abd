#pragma once

#include <unordered_map>

#include "shm/memory_object.h"
#include "store/transfer_port.h"

namespace kvss {

/// Transfers of a session in the same host. The runtime writes and reads the slots itself, so an evict or a
/// refill is finished as soon as the shard has checked it; only a scrub touches bytes here.
///
/// A refill in this port therefore ends before the runtime reads. What keeps the slot from being overwritten
/// meanwhile is the driver's pin; afterCommand has nothing left to wait for. See docs/decisions/0003.
class SharedMemoryPort final : public TransferPort {
 public:
  /// The object must outlive the grant.
  void AddGrant(uint32_t grant_id, MemoryObject* object) { objects_.emplace(grant_id, object); }
  void RemoveGrant(uint32_t grant_id) { objects_.erase(grant_id); }

  TransferState Begin(const Transfer& transfer) override {
    if (transfer.kind != TransferKind::kScrub) return TransferState::kDone;
    const auto found = objects_.find(transfer.grant_id);
    KVSS_CHECK(found != objects_.end());
    return found->second->Zero(transfer.offset, transfer.bytes).ok() ? TransferState::kDone
                                                                     : TransferState::kFailed;
  }

  void Cancel(TransferKind, uint64_t) override {}

 private:
  std::unordered_map<uint32_t, MemoryObject*> objects_;
};

}  // namespace kvss
