#include "base/crc32c.h"

#include <string_view>
#include <vector>

#include "harness.h"

namespace kvss {
namespace {

uint32_t Of(std::string_view text) { return Crc32c(std::as_bytes(std::span(text.data(), text.size()))); }

TEST("CRC-32C gives the values of its definition") {
  // The check value of the catalogue, and those of RFC 3720, B.4.
  CHECK_EQ(Of("123456789"), 0xe3069283u);
  CHECK_EQ(Of(std::string(32, '\0')), 0x8a9136aau);
  CHECK_EQ(Of(std::string(32, '\xff')), 0x62a8ab43u);
  CHECK_EQ(Of(""), 0u);
}

TEST("CRC-32C notices every flipped bit, at every length") {
  for (size_t length = 1; length <= 70; ++length) {
    std::vector<std::byte> bytes(length);
    for (size_t at = 0; at < length; ++at) bytes[at] = static_cast<std::byte>(at * 37);
    const uint32_t whole = Crc32c(bytes);
    for (size_t bit = 0; bit < 8 * length; ++bit) {
      bytes[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
      CHECK(Crc32c(bytes) != whole);
      bytes[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    }
  }
}

TEST("a checksum in a frame is never the 0 that stands for none") { CHECK_EQ(FrameChecksum({}), UINT32_MAX); }

}  // namespace
}  // namespace kvss
