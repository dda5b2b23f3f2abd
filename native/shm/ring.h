#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <optional>

#include "base/check.h"

namespace kvss {

/// Copies an entry word by word with relaxed atomics. The other side may be hostile and may write at the same
/// time: each word is read exactly once, and what is checked is the private copy.
template <typename Entry>
void CopyEntry(Entry* to, const Entry* from) {
  static_assert(sizeof(Entry) % sizeof(uint64_t) == 0 && alignof(Entry) >= alignof(uint64_t));
  auto* out = reinterpret_cast<uint64_t*>(to);
  const auto* in = reinterpret_cast<const uint64_t*>(from);
  for (size_t word = 0; word < sizeof(Entry) / sizeof(uint64_t); ++word) {
    __atomic_store_n(out + word, __atomic_load_n(in + word, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
  }
}

/// Where the positions of a new ring begin. In the addon that counts steps just below their wrap, so that all
/// that is done with it crosses it.
#ifdef KVSS_FIRST_POSITION
constexpr uint64_t kFirstPosition = KVSS_FIRST_POSITION;
#else
constexpr uint64_t kFirstPosition = 0;
#endif

/// Where a single-producer, single-consumer ring lies. Positions count entries ever put or taken and never
/// wrap in practice (64 bits); an entry lives at position & (capacity - 1). The producer writes `tail` and
/// the entries, the consumer writes `head`; they lie in memory that the other side may only be trusted to
/// read.
template <typename Entry>
struct RingPlace {
  std::atomic<uint64_t>* head = nullptr;
  std::atomic<uint64_t>* tail = nullptr;
  Entry* entries = nullptr;
  uint32_t capacity = 0;
};

/// The writing side. One thread.
template <typename Entry>
class RingProducer {
 public:
  explicit RingProducer(RingPlace<Entry> place) : place_(place) {
    KVSS_CHECK(place.capacity != 0 && (place.capacity & (place.capacity - 1)) == 0);
    next_ = place.tail->load(std::memory_order_relaxed);
  }

  /// Entries that can be put now; empty if the consumer wrote an impossible position.
  std::optional<uint32_t> Room() {
    // Partner: the release store of head in RingConsumer::Release. After it the consumer no longer reads the
    // entries before head, so they may be overwritten.
    const uint64_t used = next_ - place_.head->load(std::memory_order_acquire);
    if (used > place_.capacity) [[unlikely]]
      return std::nullopt;
    return static_cast<uint32_t>(place_.capacity - used);
  }

  /// Writes one entry behind the others. Not visible before Publish. The caller has seen Room() for it.
  void Put(const Entry& entry) {
    CopyEntry(place_.entries + (next_ & (place_.capacity - 1)), &entry);
    ++next_;
  }

  /// Makes all entries put so far visible.
  void Publish() {
    // Partner: the acquire load of tail in RingConsumer::Available.
    place_.tail->store(next_, std::memory_order_release);
  }

  /// Whether the consumer has not taken everything that was put.
  bool Unconsumed() const { return place_.head->load(std::memory_order_relaxed) != next_; }

  /// Entries ever put.
  uint64_t position() const { return next_; }

 private:
  RingPlace<Entry> place_;
  uint64_t next_ = 0;
};

/// The reading side. One thread.
template <typename Entry>
class RingConsumer {
 public:
  explicit RingConsumer(RingPlace<Entry> place) : place_(place) {
    KVSS_CHECK(place.capacity != 0 && (place.capacity & (place.capacity - 1)) == 0);
    next_ = place.head->load(std::memory_order_relaxed);
  }

  /// Entries that can be taken now; empty if the producer wrote an impossible position.
  std::optional<uint32_t> Available() {
    // Partner: the release store of tail in RingProducer::Publish.
    const uint64_t waiting = place_.tail->load(std::memory_order_acquire) - next_;
    if (waiting > place_.capacity) [[unlikely]]
      return std::nullopt;
    return static_cast<uint32_t>(waiting);
  }

  /// Copies the next entry into private memory. The caller has seen Available() for it.
  Entry Take() {
    Entry entry;
    CopyEntry(&entry, place_.entries + (next_ & (place_.capacity - 1)));
    ++next_;
    return entry;
  }

  /// Gives the places of all entries taken so far back to the producer.
  void Release() {
    // Partner: the acquire load of head in RingProducer::Room.
    place_.head->store(next_, std::memory_order_release);
  }

  /// Entries ever taken.
  uint64_t position() const { return next_; }

 private:
  RingPlace<Entry> place_;
  uint64_t next_ = 0;
};

}  // namespace kvss
