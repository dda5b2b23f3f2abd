/* native/shm/ring.h: one producer, one consumer. All rings of the product are this one: evict, command and
 * completion ring between two processes, and the rings between a lane and its thread.
 *
 * mutant 1: Publish stores tail without release
 * mutant 2: Available loads tail without acquire
 * mutant 3: Release stores head without release
 * mutant 4: Room loads head without acquire
 * mutant 5: Publish before Put
 * mutant 6: Release before Take
 * mutant 7: Put without a look at Room
 */
#define CAPACITY 2
#define ENTRIES 5

#define TAIL 0
#define HEAD 1
#define LOCATIONS 2
#define PLAIN CAPACITY /* RingPlace::entries */
#define THREADS 2
#define HISTORY (ENTRIES + 2)
#include "machine.pml"

#define PRODUCER 0
#define CONSUMER 1

byte entries[CAPACITY];

inline put() {
  plain_write(PRODUCER, next % CAPACITY); /* RingProducer::Put */
  entries[next % CAPACITY] = next
}

inline take() {
  plain_read(CONSUMER, next % CAPACITY); /* RingConsumer::Take */
  assert(entries[next % CAPACITY] == next)
}

proctype Producer() {
  byte next, seen, room;
  do
  :: next < ENTRIES ->
     load(PRODUCER, HEAD, unless_mutant(4, ACQ), seen); /* RingProducer::Room */
     assert(next - seen <= CAPACITY);                   /* an honest consumer is never called corrupt */
     room = CAPACITY - (next - seen);
     if
     :: mutant(7) && room == 0 -> room = 1
     :: else
     fi;
     /* As many as there is room for, or fewer. */
     do
     :: room > 0 && next < ENTRIES ->
        if
        :: mutant(5) -> store(PRODUCER, TAIL, next + 1, REL); put()
        :: else -> put()
        fi;
        next++;
        room--
     :: break
     od;
     if
     :: memory[TAIL].message[memory[TAIL].count - 1].value != next ->
        store(PRODUCER, TAIL, next, unless_mutant(1, REL)) /* RingProducer::Publish */
     :: else /* storing the same again changes nothing */
     fi
  :: else -> break
  od
}

proctype Consumer() {
  byte next, seen, waiting;
  do
  :: next < ENTRIES ->
     load(CONSUMER, TAIL, unless_mutant(2, ACQ), seen); /* RingConsumer::Available */
     assert(seen - next <= CAPACITY);                   /* an honest producer is never called corrupt */
     waiting = seen - next;
     do
     :: waiting > 0 ->
        if
        :: mutant(6) -> store(CONSUMER, HEAD, next + 1, REL); take()
        :: else -> take()
        fi;
        next++;
        waiting--
     :: break
     od;
     if
     :: memory[HEAD].message[memory[HEAD].count - 1].value != next ->
        store(CONSUMER, HEAD, next, unless_mutant(3, REL)) /* RingConsumer::Release */
     :: else
     fi
  :: else -> break
  od
}

init {
  start();
  atomic { run Producer(); run Consumer() }
}
