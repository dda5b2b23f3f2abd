#include "store/column_allocator.h"

#include <fcntl.h>

#include <algorithm>
#include <random>
#include <thread>

#include "harness.h"
#include "shm/mapping.h"

namespace kvss {
namespace {

using test::Must;

constexpr uint64_t kPage = 4096;

std::unique_ptr<ColumnAllocator> Budget(uint64_t bytes) {
  return Must(ColumnAllocator::Create(bytes, HugePages::kNever));
}

GrantGeometry Geometry(uint64_t slots, uint64_t piece_bytes) {
  return Must(GrantGeometry::For(slots, piece_bytes));
}

bool All(const Mapping& mapping, uint8_t value) {
  return std::all_of(mapping.data(), mapping.data() + mapping.bytes(),
                     [&](std::byte byte) { return byte == std::byte{value}; });
}

Mapping MapAndFill(const GrantMemory& memory, uint8_t value) {
  Mapping mapping = Must(Mapping::Map(memory.object.fd(), memory.object.bytes(), Access::kReadWrite));
  std::fill_n(mapping.data(), mapping.bytes(), std::byte{value});
  return mapping;
}

TEST("slots start on cache lines of their own") {
  CHECK_EQ(Geometry(3, 64).slot_bytes, 64u);
  CHECK_EQ(Geometry(3, 65).slot_bytes, 128u);
  CHECK_EQ(Geometry(3, 65).bytes(), 384u);
}

TEST("a geometry outside the limits is refused") {
  const std::pair<uint64_t, uint64_t> bad[] = {{0, 64},
                                               {1, 0},
                                               {1, uint64_t{proto::kMaxPieceBytes} + 1},
                                               {uint64_t{proto::kMaxSlotsPerGrant} + 1, 64},
                                               {UINT64_MAX, 64},
                                               {1, UINT64_MAX}};
  for (const auto& [slots, piece_bytes] : bad) {
    CHECK_EQ(GrantGeometry::For(slots, piece_bytes).error().status, proto::Status::kLimitExceeded);
  }
  const GrantGeometry largest = Geometry(proto::kMaxSlotsPerGrant, proto::kMaxPieceBytes);
  CHECK_EQ(largest.bytes(), uint64_t{proto::kMaxSlotsPerGrant} * proto::kMaxPieceBytes);
}

TEST("a grant is whole pages of its own, all zero") {
  const auto allocator = Budget(64 * kPage);
  const GrantMemory memory = Must(allocator->Allocate(Geometry(3, 2000)));
  CHECK_EQ(memory.object.bytes(), 2 * kPage);
  CHECK_EQ(allocator->free_bytes(), 62 * kPage);
  const Mapping mapping = Must(Mapping::Map(memory.object.fd(), memory.object.bytes(), Access::kRead));
  CHECK(All(mapping, 0));
}

TEST("after any order of grants and frees everything is free and one grant can have it all") {
  constexpr uint64_t kBudget = 256 * kPage;
  const auto allocator = Budget(kBudget);
  std::mt19937_64 random(20240607);
  const auto below = [&](uint64_t limit) { return random() % limit; };
  for (int round = 0; round < 20; ++round) {
    std::vector<GrantMemory> held;
    uint64_t held_bytes = 0;
    for (int step = 0; step < 60; ++step) {
      if (held.empty() || below(5) < 3) {
        const GrantGeometry geometry = Geometry(1 + below(40), 1 + below(2 * kPage));
        const uint64_t footprint = allocator->Footprint(geometry);
        Result<GrantMemory> memory = allocator->Allocate(geometry);
        // Free space never fragments: what fits by its size is granted.
        CHECK_EQ(memory.ok(), footprint <= kBudget - held_bytes);
        if (!memory.ok()) continue;
        held.push_back(std::move(memory.value()));
        held_bytes += footprint;
      } else {
        std::swap(held[below(held.size())], held.back());
        held_bytes -= allocator->Footprint(held.back().geometry);
        allocator->Free(std::move(held.back()));
        held.pop_back();
      }
      CHECK_EQ(allocator->free_bytes(), kBudget - held_bytes);
    }
    std::shuffle(held.begin(), held.end(), random);
    for (GrantMemory& memory : held) allocator->Free(std::move(memory));
    CHECK_EQ(allocator->free_bytes(), kBudget);
    GrantMemory everything = Must(allocator->Allocate(Geometry(1, kBudget)));
    CHECK_EQ(allocator->free_bytes(), 0u);
    CHECK(All(Must(Mapping::Map(everything.object.fd(), kBudget, Access::kRead)), 0));
    allocator->Free(std::move(everything));
  }
}

TEST("a grant over the budget is refused with both numbers and changes nothing") {
  const auto allocator = Budget(16 * kPage);
  const GrantMemory first = Must(allocator->Allocate(Geometry(1, 4 * kPage)));
  const Error error = allocator->Allocate(Geometry(13, kPage)).error();
  CHECK_EQ(error.status, proto::Status::kNoMemory);
  CHECK(error.message.find(std::to_string(13 * kPage) + " bytes") != std::string::npos);
  CHECK(error.message.find(std::to_string(12 * kPage) + " are free") != std::string::npos);
  CHECK_EQ(allocator->free_bytes(), 12 * kPage);
  CHECK(allocator->Allocate(Geometry(12, kPage)).ok());
}

TEST("the rounding of a budget to whole pages is promised to nobody") {
  const auto allocator = Budget(2 * kPage + 100);
  CHECK_EQ(allocator->free_bytes(), 2 * kPage + 100);
  CHECK(!allocator->Allocate(Geometry(3, kPage)).ok());
  CHECK(allocator->Allocate(Geometry(2, kPage)).ok());
}

TEST("a mapping kept by a stopped client reads zeros after Free and nothing of the next owner") {
  const auto allocator = Budget(8 * kPage);
  GrantMemory memory = Must(allocator->Allocate(Geometry(8, kPage)));
  const Mapping kept = MapAndFill(memory, 0xa5);
  allocator->Free(std::move(memory));
  CHECK(All(kept, 0));
  const GrantMemory next = Must(allocator->Allocate(Geometry(8, kPage)));
  const Mapping owner = Must(Mapping::Map(next.object.fd(), next.object.bytes(), Access::kReadWrite));
  CHECK(All(owner, 0));
  std::fill_n(owner.data(), owner.bytes(), std::byte{0x5a});
  CHECK(All(kept, 0));
  // And what the stopped client does once it goes on reaches nobody.
  std::fill_n(kept.data(), kept.bytes(), std::byte{0x11});
  CHECK(All(owner, 0x5a));
}

TEST("a hostile client cannot seal a grant so that Free would leave its bytes") {
  const auto allocator = Budget(4 * kPage);
  GrantMemory memory = Must(allocator->Allocate(Geometry(4, kPage)));
  const Mapping kept = MapAndFill(memory, 0xa5);
  const UniqueFd client = Must(memory.object.Duplicate());
  CHECK(::fcntl(client.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) != 0);
  CHECK(memory.object.Zero(0, 100).ok());
  allocator->Free(std::move(memory));
  CHECK(All(kept, 0));
}

TEST("many threads can take and give grants at once and nothing is lost") {
  constexpr uint64_t kBudget = 128 * kPage;
  const auto allocator = Budget(kBudget);
  std::vector<std::thread> threads;
  for (int seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(static_cast<uint64_t>(seed));
      for (int step = 0; step < 100; ++step) {
        auto memory = allocator->Allocate(Geometry(1 + random() % 48, kPage));
        if (memory.ok()) allocator->Free(std::move(memory.value()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(allocator->free_bytes(), kBudget);
  CHECK(allocator->Allocate(Geometry(128, kPage)).ok());
}

}  // namespace
}  // namespace kvss
