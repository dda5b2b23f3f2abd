#pragma once

#include <time.h>

#include <cstdint>

namespace kvss {

/// CLOCK_MONOTONIC in nanoseconds.
inline uint64_t MonotonicNanos() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace kvss
