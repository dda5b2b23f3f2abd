/* What a session's numbers promise to who reads them: completions, evictCount, and the slots in place.
 *
 * The client writes a slot and submits; the engine takes the descriptor, scrubs the slot, and says so; the client
 * reads the slot. Any thread of the client that sees evictCount sees the completions that it counts, too.
 *
 * mutant 1: Publish stores evictCount without release
 * mutant 2: the client loads evictCount without acquire
 * mutant 3: Publish stores evictCount before the completions
 * mutant 4: Publish stores completionTail without release
 * mutant 5: the client loads completionTail without acquire
 * mutant 6: the client stores its tail without release
 * mutant 7: the engine loads the client's tail without acquire
 */
#define ROUNDS 3

#define TAIL 0        /* SubmitSegment::command_tail */
#define DONE 1        /* StatusSegment::completion_tail */
#define EVICT_COUNT 2 /* StatusSegment::evict_count */
#define LOCATIONS 3
#define PLAIN 1 /* the bytes of a slot */
#define THREADS 3
#define HISTORY (ROUNDS + 2)
#include "machine.pml"

#define CLIENT 0
#define ENGINE 1
#define ONLOOKER 2

byte slot;

proctype Client() {
  byte round, seen;
  do
  :: round < ROUNDS ->
     plain_write(CLIENT, 0);
     slot = 7;
     round++;
     store(CLIENT, TAIL, round, unless_mutant(6, REL)); /* ShardLane::Submit */
     do
     :: load(CLIENT, DONE, unless_mutant(5, ACQ), seen); /* ShardLane::Poll */
        if
        :: seen == round -> break
        :: else
        fi
     od;
     plain_read(CLIENT, 0);
     assert(slot == 0)
  :: else -> break
  od
}

proctype Engine() {
  byte done, seen;
  do
  :: done < ROUNDS ->
     load(ENGINE, TAIL, unless_mutant(7, ACQ), seen); /* RingSession::Takeable */
     if
     :: seen > done ->
        plain_write(ENGINE, 0); /* SharedMemoryPort::Begin, a scrub */
        slot = 0;
        done++;
        /* RingSession::Publish */
        if
        :: mutant(3) -> store(ENGINE, EVICT_COUNT, done, REL); store(ENGINE, DONE, done, REL)
        :: else ->
           store(ENGINE, DONE, done, unless_mutant(4, REL));
           store(ENGINE, EVICT_COUNT, done, unless_mutant(1, REL))
        fi
     :: else
     fi
  :: else -> break
  od
}

/* ShardLane::evict_count, and a look at the completions after it */
proctype Onlooker() {
  byte counted, told;
  load(ONLOOKER, EVICT_COUNT, unless_mutant(2, ACQ), counted);
  load(ONLOOKER, DONE, RLX, told);
  assert(told >= counted)
}

init {
  start();
  atomic { run Client(); run Engine(); run Onlooker() }
}
