#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "proto/kvss_proto.h"
#include "shm/mapping.h"
#include "store/column_allocator.h"

/// What the hostile clients of this folder have in common. Each is a function that takes any bytes and plays
/// them against the real session: libFuzzer calls it with bytes of its own making, and the native test
/// programs with those that are kept in corpus/ and regressions/.
namespace kvss::fuzz {

void PlayRing(std::span<const uint8_t> input);
void PlayRingRace(std::span<const uint8_t> input);
void PlayStream(std::span<const uint8_t> input);

/// A promise that was broken: says which, and stops so that the fuzzer keeps the input.
#define FUZZ_EXPECT(condition)                                                                    \
  do {                                                                                            \
    if (!(condition)) [[unlikely]] {                                                              \
      std::fprintf(stderr, "fuzz: broken promise: %s (%s:%d)\n", #condition, __FILE__, __LINE__); \
      std::abort();                                                                               \
    }                                                                                             \
  } while (false)

template <typename T>
T Must(Result<T> result) {
  FUZZ_EXPECT(result.ok());
  return std::move(result.value());
}

/// The input, read from its beginning. Behind its end there are zeros.
class Script {
 public:
  explicit Script(std::span<const uint8_t> input) : left_(input) {}

  bool over() const { return left_.empty(); }

  template <typename T>
  T Take() {
    T value{};
    const size_t bytes = std::min(sizeof(T), left_.size());
    if (bytes > 0) std::memcpy(&value, left_.data(), bytes);
    left_ = left_.subspan(bytes);
    return value;
  }
  uint8_t Byte() { return Take<uint8_t>(); }

  std::span<const uint8_t> Bytes(size_t wanted) {
    const auto taken = left_.first(std::min(wanted, left_.size()));
    left_ = left_.subspan(taken.size());
    return taken;
  }

 private:
  std::span<const uint8_t> left_;
};

/// A grant, and what its memory holds if nobody but this client and the promised scrubs has written it.
/// Behind the slots, and between them, are bytes that nobody may touch.
struct Grant {
  uint32_t id = 0;
  GrantMemory memory;
  Mapping view;
  std::vector<std::byte> expected;

  static constexpr std::byte kCanary{0xc5};

  Grant(uint32_t id_in, uint32_t slots, uint32_t piece_bytes, bool mapped_by_engine)
      : id(id_in),
        memory{Must(GrantGeometry::For(slots, piece_bytes)),
               Must(MemoryObject::Create("fuzz", uint64_t{slots} * (piece_bytes + 64), HugePages::kNever)),
               {}} {
    view = Must(Mapping::Map(memory.object.fd(), memory.object.bytes(), Access::kReadWrite));
    if (mapped_by_engine) {
      memory.mapping = Must(Mapping::Map(memory.object.fd(), memory.object.bytes(), Access::kReadWrite));
    }
    expected.assign(view.bytes(), kCanary);
    std::memcpy(view.data(), expected.data(), expected.size());
  }

  const GrantGeometry& geometry() const { return memory.geometry; }
  std::span<std::byte> ExpectedPiece(uint32_t slot) {
    return std::span(expected).subspan(slot * geometry().slot_bytes, geometry().piece_bytes);
  }
  std::span<const std::byte> ActualPiece(uint32_t slot) const {
    return {view.data() + slot * geometry().slot_bytes, geometry().piece_bytes};
  }
  bool Untouched() const { return std::memcmp(view.data(), expected.data(), expected.size()) == 0; }
};

using Grants = std::map<uint32_t, std::unique_ptr<Grant>>;

/// Operations of one queue as the client knows them, by sequence from 1.
struct Ledger {
  struct Entry {
    proto::Descriptor descriptor;
    uint64_t accepted_ns = 0;
    bool done = false;
  };
  std::vector<Entry> entries;
  uint64_t finished = 0;  ///< all up to this one are done: what evictCount or commandCount has to be
  uint64_t done = 0;

  bool Knows(uint64_t sequence) const { return sequence != 0 && sequence <= entries.size(); }
  Entry& At(uint64_t sequence) { return entries[sequence - 1]; }
  uint64_t Unfinished() const { return entries.size() - done; }

  void Finish(uint64_t sequence) {
    Entry& entry = At(sequence);
    FUZZ_EXPECT(!entry.done);
    entry.done = true;
    ++done;
    while (finished < entries.size() && entries[finished].done) ++finished;
  }
};

/// What a shard has to say of a descriptor before it looks at the slot. Written from the protocol, not from
/// the shard core.
inline proto::Status Refusal(const proto::Descriptor& descriptor, bool evict_queue, const Grants& grants) {
  using proto::Opcode;
  using proto::Status;
  const auto opcode = static_cast<Opcode>(descriptor.opcode);
  const bool right_queue = (opcode == Opcode::kEvict) == evict_queue;
  const bool exists = descriptor.opcode >= 1 && descriptor.opcode <= 3;
  const bool scrub_only = descriptor.flags == proto::descriptor_flag::kScrub && opcode == Opcode::kDelete;
  if (!exists || !right_queue || (descriptor.flags != 0 && !scrub_only) || descriptor.reserved0 != 0 ||
      descriptor.reserved1 != 0) {
    return Status::kBadOpcode;
  }
  const auto grant = grants.find(descriptor.grant_id);
  if (grant == grants.end()) return Status::kBadGrant;
  if (descriptor.slot >= grant->second->geometry().slots) return Status::kBadSlot;
  if (descriptor.piece_bytes != grant->second->geometry().piece_bytes) return Status::kBadLength;
  return Status::kOk;
}

/// When an operation has to be over at the latest.
inline uint64_t DeadlineOf(const Ledger::Entry& entry) {
  const uint64_t timeout_us = entry.descriptor.timeout_us == 0
                                  ? proto::kMaxOperationTimeoutUs
                                  : std::min(entry.descriptor.timeout_us, proto::kMaxOperationTimeoutUs);
  return entry.accepted_ns + timeout_us * 1000;
}
/// More than any operation may wait.
constexpr uint64_t kForeverNs = uint64_t{proto::kMaxOperationTimeoutUs} * 1000 + 1;

/// A descriptor of few bytes of the input: mostly sound, so that scripts get far, with one field of any
/// value.
inline proto::Descriptor TakeDescriptor(Script& script, bool evict_queue, const Grants& grants) {
  const uint8_t shape = script.Byte();
  proto::Descriptor descriptor{};
  descriptor.opcode = evict_queue ? 1 : 2 + (shape & 1);
  descriptor.flags = descriptor.opcode == 3 && (shape & 2) ? proto::descriptor_flag::kScrub : uint16_t{0};
  auto grant = grants.begin();
  if ((shape & 4) && grants.size() > 1) ++grant;
  if (grant != grants.end()) {
    descriptor.grant_id = grant->first;
    descriptor.slot = script.Byte() % grant->second->geometry().slots;
    descriptor.piece_bytes = grant->second->geometry().piece_bytes;
  }
  descriptor.generation = script.Byte();
  descriptor.tenant_tag = (shape & 8) != 0;
  descriptor.after = shape & 16 ? script.Byte() : 0;
  descriptor.timeout_us = shape & 32 ? script.Byte() : 0;
  if (shape & 64) {
    auto* bytes = reinterpret_cast<uint8_t*>(&descriptor);
    const size_t at = script.Byte() % (sizeof(descriptor) - 3);
    const auto value = script.Take<uint32_t>();
    std::memcpy(bytes + at, &value, sizeof(value));
  }
  return descriptor;
}

}  // namespace kvss::fuzz
