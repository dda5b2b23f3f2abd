#include "shm/ring.h"

#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "harness.h"
#include "proto/kvss_proto.h"

namespace kvss {
namespace {

using proto::Completion;

/// A ring in ordinary memory whose positions start where a test wants them.
struct Ring {
  std::atomic<uint64_t> head;
  std::atomic<uint64_t> tail;
  std::vector<Completion> entries;

  explicit Ring(uint32_t capacity, uint64_t position = 0)
      : head(position), tail(position), entries(capacity) {}
  RingPlace<Completion> place() {
    return {&head, &tail, entries.data(), static_cast<uint32_t>(entries.size())};
  }
};

Completion Numbered(uint64_t number) { return {.user_data = number, .sequence = ~number}; }

void Expect(const Completion& entry, uint64_t number) {
  CHECK_EQ(entry.user_data, number);
  CHECK_EQ(entry.sequence, ~number);
}

/// Puts and takes `count` entries in bursts of changing size, and checks order and room on the way.
void PassThrough(Ring& ring, uint64_t count) {
  const uint32_t capacity = ring.place().capacity;
  RingProducer<Completion> producer(ring.place());
  RingConsumer<Completion> consumer(ring.place());
  uint64_t put = 0;
  uint64_t taken = 0;
  for (uint32_t burst = 1; taken < count; burst = burst % capacity + 1) {
    CHECK_EQ(producer.Room().value(), capacity - static_cast<uint32_t>(put - taken));
    for (uint32_t index = 0; index < burst && put < count && producer.Room().value() > 0; ++index) {
      producer.Put(Numbered(put++));
    }
    producer.Publish();
    CHECK_EQ(consumer.Available().value(), static_cast<uint32_t>(put - taken));
    const uint32_t take = std::min(consumer.Available().value(), (burst * 7) % capacity + 1);
    for (uint32_t index = 0; index < take; ++index) Expect(consumer.Take(), taken++);
    consumer.Release();
  }
}

TEST("a ring gives entries in the order they were put, many times around") {
  Ring ring(8);
  PassThrough(ring, 1000);
}

TEST("a ring goes on when its positions pass 2^64") {
  for (const uint64_t before : {1u, 3u, 8u, 100u}) {
    Ring ring(8, uint64_t{0} - before);
    PassThrough(ring, 1000);
    CHECK_EQ(ring.tail.load(), 1000 - uint64_t{before});
  }
}

TEST("an empty ring has nothing available and all its room") {
  for (const uint64_t position : {uint64_t{0}, uint64_t{5}, UINT64_MAX}) {
    Ring ring(8, position);
    CHECK_EQ(RingConsumer<Completion>(ring.place()).Available().value(), 0u);
    CHECK_EQ(RingProducer<Completion>(ring.place()).Room().value(), 8u);
    CHECK(!RingProducer<Completion>(ring.place()).Unconsumed());
  }
}

TEST("a full ring has no room until the consumer releases") {
  Ring ring(8, UINT64_MAX - 3);
  RingProducer<Completion> producer(ring.place());
  RingConsumer<Completion> consumer(ring.place());
  for (uint64_t number = 0; number < 8; ++number) producer.Put(Numbered(number));
  producer.Publish();
  CHECK_EQ(producer.Room().value(), 0u);
  CHECK_EQ(consumer.Available().value(), 8u);
  Expect(consumer.Take(), 0);
  CHECK_EQ(producer.Room().value(), 0u);
  consumer.Release();
  CHECK_EQ(producer.Room().value(), 1u);
  CHECK(producer.Unconsumed());
}

TEST("entries are not visible before they are published") {
  Ring ring(8);
  RingProducer<Completion> producer(ring.place());
  RingConsumer<Completion> consumer(ring.place());
  producer.Put(Numbered(0));
  CHECK_EQ(consumer.Available().value(), 0u);
  producer.Publish();
  CHECK_EQ(consumer.Available().value(), 1u);
}

TEST("both ends take their positions over from the shared memory") {
  Ring ring(8, 41);
  RingProducer<Completion> first(ring.place());
  first.Put(Numbered(41));
  first.Publish();
  RingProducer<Completion> second(ring.place());
  CHECK_EQ(second.position(), 42u);
  CHECK_EQ(second.Room().value(), 7u);
  CHECK_EQ(RingConsumer<Completion>(ring.place()).position(), 41u);
}

TEST("a consumer finds out that the producer wrote an impossible position") {
  Ring ring(8, 100);
  RingConsumer<Completion> consumer(ring.place());
  for (const uint64_t tail : {uint64_t{109}, uint64_t{99}, uint64_t{0}, UINT64_MAX, uint64_t{1} << 63}) {
    ring.tail = tail;
    CHECK(!consumer.Available().has_value());
  }
  ring.tail = 108;
  CHECK_EQ(consumer.Available().value(), 8u);
}

TEST("a producer finds out that the consumer wrote an impossible position") {
  Ring ring(8, 100);
  RingProducer<Completion> producer(ring.place());
  for (const uint64_t head : {uint64_t{101}, uint64_t{91}, uint64_t{0}, UINT64_MAX, uint64_t{1} << 63}) {
    ring.head = head;
    CHECK(!producer.Room().has_value());
  }
  ring.head = 92;
  CHECK_EQ(producer.Room().value(), 0u);
}

TEST("positions that are impossible across 2^64 are found too") {
  Ring ring(8, UINT64_MAX - 1);
  RingConsumer<Completion> consumer(ring.place());
  ring.tail = 6;  // eight entries further
  CHECK_EQ(consumer.Available().value(), 8u);
  ring.tail = 7;
  CHECK(!consumer.Available().has_value());
}

TEST("two threads pass entries through a ring and every one arrives once, in order") {
  constexpr uint64_t kEntries = 50'000;
  constexpr uint32_t kCapacity = 64;
  // Starts below the wrap, so that the threads cross it.
  Ring ring(kCapacity, UINT64_MAX - kEntries / 2);
  // Plain memory that only the order of the ring's own atomics protects: ThreadSanitizer watches it.
  std::vector<uint64_t> beside(kCapacity);
  std::future<void> producing = std::async(std::launch::async, [&] {
    RingProducer<Completion> producer(ring.place());
    for (uint64_t number = 0; number < kEntries;) {
      const uint32_t room = producer.Room().value();
      if (room == 0) std::this_thread::yield();
      for (uint32_t index = 0; index < room && number < kEntries; ++index, ++number) {
        beside[producer.position() % kCapacity] = number;
        producer.Put(Numbered(number));
      }
      producer.Publish();
    }
  });
  RingConsumer<Completion> consumer(ring.place());
  for (uint64_t number = 0; number < kEntries;) {
    const uint32_t available = consumer.Available().value();
    if (available == 0) std::this_thread::yield();
    for (uint32_t index = 0; index < available; ++index, ++number) {
      CHECK_EQ(beside[consumer.position() % kCapacity], number);
      Expect(consumer.Take(), number);
    }
    consumer.Release();
  }
  producing.get();
}

}  // namespace
}  // namespace kvss
