#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvss {

/// CRC-32C (Castagnoli) of some bytes, with the processor's instruction where it has one.
uint32_t Crc32c(std::span<const std::byte> bytes);

/// The same for a frame header, in which 0 stands for "none": a checksum that happens to be 0 is sent as all
/// ones.
inline uint32_t FrameChecksum(std::span<const std::byte> bytes) {
  const uint32_t checksum = Crc32c(bytes);
  return checksum == 0 ? UINT32_MAX : checksum;
}

}  // namespace kvss
