#include "shm/piece_copy.h"

#include <algorithm>
#include <vector>

#include "harness.h"

namespace kvss {
namespace {

constexpr auto kBeside = static_cast<std::byte>(0xee);

TEST("a piece is copied whole and nothing beside it, at every alignment and around every limit") {
  constexpr size_t kRoom = 256;
  for (const size_t length : {0, 1, 63, 64, 65'535, 65'536, 65'537, 65'599, 65'600, 131'071, 262'144}) {
    std::vector<std::byte> source(length + kRoom);
    for (size_t at = 0; at < source.size(); ++at)
      source[at] = static_cast<std::byte>(at * 7 + (at >> 6) * 13);
    std::vector<std::byte> target(length + 2 * kRoom);
    for (const size_t from : {0, 1, 15, 16, 63}) {
      for (const size_t to : {0, 1, 15, 16, 63, 64, 127}) {
        std::fill(target.begin(), target.end(), kBeside);
        // Exactly as long as they are: a read or a write behind them is a fault.
        std::vector<std::byte> piece(source.begin() + static_cast<ptrdiff_t>(from),
                                     source.begin() + static_cast<ptrdiff_t>(from + length));
        CopyPiece(target.data() + to, piece.data(), length);
        CHECK(std::equal(piece.begin(), piece.end(), target.begin() + static_cast<ptrdiff_t>(to)));
        CHECK(std::all_of(target.begin(), target.begin() + static_cast<ptrdiff_t>(to),
                          [](std::byte byte) { return byte == kBeside; }));
        CHECK(std::all_of(target.begin() + static_cast<ptrdiff_t>(to + length), target.end(),
                          [](std::byte byte) { return byte == kBeside; }));
      }
    }
  }
}

}  // namespace
}  // namespace kvss
