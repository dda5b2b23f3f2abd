#pragma once

#include <cstdint>

namespace kvss {

/// The smallest multiple of `unit` that is not below `value`.
constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace kvss
