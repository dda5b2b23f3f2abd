#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "shm/mapping.h"

namespace kvss::bench {

/// What the machine itself can do with the same amount of work, without any of the store's own code around
/// it. All of them block the calling thread until they are done.

/// Memory of a runtime: private, filled, on huge pages where the kernel gives them to who asks. Undone when
/// the last reference goes.
Result<std::shared_ptr<std::byte>> MakeRuntimeMemory(uint64_t bytes);

/// Copies pieces with memcpy from a runtime's memory to one that is made as the memory of a grant is: shared,
/// filled, on huge pages where there is a pool of them.
class CopyLoop {
 public:
  static Result<CopyLoop> Create(uint64_t target_bytes);

  /// Copies `pieces` pieces of `piece_bytes`, walking round through both memories. Answers the nanoseconds.
  uint64_t Run(std::span<const std::byte> source, uint32_t piece_bytes, uint64_t pieces);

 private:
  explicit CopyLoop(Mapping target) : target_(std::move(target)) {}

  Mapping target_;
  uint64_t at_ = 0;
};

/// How pieces travel in a socket loop.
struct SocketPlan {
  bool unix_sockets = false;
  uint32_t streams = 1;
  /// Pieces that may be unacknowledged.
  uint32_t window = 64;
  uint32_t piece_bytes = 0;
  uint64_t pieces = 0;
};

/// Two threads and `streams` connections: one sends pieces, each behind a header of as many bytes as KVSS
/// has, from memory larger than the cache; the other receives them straight into place, in such memory too,
/// and acknowledges each on a connection of its own. Answers the nanoseconds from the first byte to the last
/// acknowledgement.
Result<uint64_t> RunSocketLoop(const SocketPlan& plan);

/// Two threads that spin, and a ring each way as KVSS has them: one entry goes there and comes back, `count`
/// times. Fills `round_trip_ns` with the time of each.
void RunRingLoop(uint32_t count, double* round_trip_ns);

}  // namespace kvss::bench
