#pragma once

#include <cstdint>

#include "proto/kvss_proto.h"

namespace kvss {

/// What has to happen to the bytes of one slot.
enum class TransferKind : uint8_t {
  kReceive,  ///< evict: bytes come into the slot
  kSend,     ///< refill: bytes go out of the slot
  kScrub,    ///< delete: the slot is overwritten with zeros
};

struct Transfer {
  TransferKind kind = TransferKind::kReceive;
  uint64_t sequence = 0;  ///< position in its queue; with kind it names the operation
  uint32_t grant_id = 0;
  uint32_t slot = 0;
  uint64_t offset = 0;  ///< of the slot, from the start of the grant
  uint32_t bytes = 0;
  uint64_t generation = 0;
  uint64_t user_data = 0;
};

enum class TransferState : uint8_t { kDone, kFailed, kPending };

/// Moves bytes for a ShardSession. The session decides when; the port only does it.
class TransferPort {
 public:
  virtual ~TransferPort() = default;

  /// Starts a transfer. Where it answers kPending, the owner of the session calls
  /// ShardSession::TransferFinished for it exactly once, and never from inside this call.
  virtual TransferState Begin(const Transfer& transfer) = 0;

  /// Asks a pending transfer to stop. TransferFinished is still called: only then does nobody touch the slot.
  virtual void Cancel(TransferKind kind, uint64_t sequence) = 0;
};

}  // namespace kvss
