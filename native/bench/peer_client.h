#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"

namespace kvss::bench {

enum class PeerProtocol { kRedis, kMemcached };
enum class PeerOperation { kSet, kGet };

/// How values travel to or from another store.
struct PeerPlan {
  PeerProtocol protocol = PeerProtocol::kRedis;
  PeerOperation operation = PeerOperation::kSet;
  /// Path of the store's Unix socket; where it is empty, the port on the loopback device.
  std::string unix_path;
  uint16_t port = 0;
  uint32_t connections = 1;
  /// Each connection has a thread of its own that blocks, or one thread serves all that are ready.
  bool threads = false;
  /// Requests of one connection that are unanswered at most.
  uint32_t depth = 1;
  uint32_t piece_bytes = 0;
  /// Operations in all: one key after the other and round again.
  uint64_t pieces = 0;
  uint64_t keys = 0;
  /// Places of a value for each key: first those that values come from, then as many that they go to.
  std::span<std::byte> memory;
  /// Nothing that is waited for may take longer.
  uint32_t patience_ms = 10'000;
};

/// A client as a runtime would want it: values are sent from where they lie and received to where they
/// belong, without another copy, over connections that are there before the clock starts. Replies are read to
/// the letter: whatever is not exactly what was asked for, a miss too, is an error that names it. After GETs,
/// outside the time, every value that came is compared with what its key was SET to. Answers the nanoseconds
/// from the first request to the last reply.
Result<uint64_t> RunPeerTransfer(const PeerPlan& plan);

}  // namespace kvss::bench
