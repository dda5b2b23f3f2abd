/* Who sleeps is woken: a client that submits and waits, and an engine that serves and sleeps. The entries of the
 * rings are left out, ring.pml is about those; their positions are here, with rings so short that both sides run
 * out of room.
 *
 * In the product this exists twice, see README.md: ShardLane with RingSession and ShardEngine, and StreamLane
 * with the thread of its own. Only the second has Break.
 *
 * mutant 1: WakeEngine without its fence
 * mutant 2: SleepUntilWork without its fence
 * mutant 3: Arm without its fence
 * mutant 4: Publish without its fence
 * mutant 5: SleepUntilWork looks at the rings before it announces that it sleeps
 * mutant 6: SleepUntilWork does not look at the rings again
 * mutant 7: Arm does not look at the completions again
 * mutant 8: Poll does not wake the engine when it has made room
 * mutant 9: Break without its fence
 * mutant 10: Arm does not look whether the lane is broken
 * mutant 11: Submit reads engineSleeping before it stores the tail
 */
#ifdef QUICK
#define ENTRIES 2
#else
#define ENTRIES 3 /* descriptors that the client submits */
#endif
#define SUBMIT_RING 2
#define COMPLETION_RING 1

#define TAIL 0     /* SubmitSegment::evict_tail */
#define HEAD 1     /* StatusSegment::evict_head */
#define DONE 2     /* StatusSegment::completion_tail */
#define READ 3     /* SubmitSegment::completion_head */
#define ENGINE_SLEEPING 4
#define CLIENT_SLEEPING 5
#define BROKEN 6
#define LOCATIONS 7
#define PLAIN 0
#define THREADS 2
#define HISTORY 16
#include "machine.pml"

#define CLIENT 0
#define ENGINE 1

/* The eventfds. The kernel keeps the order of what is done to them; what they would add to the views is left
 * out, so that nothing depends on it. A write that comes before the wait is not lost. */
bool submit_wake, completion_wake;
byte completed; /* what the client has taken */
bool gave_up;   /* the client knows that the lane is broken */
bool broke;

/* ShardLane::WakeEngine, StreamLane::WakeThread */
inline wake_engine() {
  if
  :: mutant(1)
  :: else -> seq_cst_fence(CLIENT)
  fi;
  load(CLIENT, ENGINE_SLEEPING, RLX, flag);
  if
  :: flag -> submit_wake = true
  :: else
  fi
}

inline submit() {
  load(CLIENT, HEAD, ACQ, seen); /* RingProducer::Room */
  if
  :: next - seen < SUBMIT_RING ->
     next++;
     if
     :: mutant(11) ->
        load(CLIENT, ENGINE_SLEEPING, RLX, flag);
        store(CLIENT, TAIL, next, REL);
        if
        :: flag -> submit_wake = true
        :: else
        fi
     :: else ->
        store(CLIENT, TAIL, next, REL); /* RingProducer::Publish */
        wake_engine()
     fi
  :: else
  fi
}

/* ShardLane::Poll */
inline poll() {
  load(CLIENT, DONE, ACQ, seen);
  idle = (seen == taken);
  if
  :: seen > taken ->
     taken = seen;
     completed = taken;
     store(CLIENT, READ, taken, REL);
     load(CLIENT, HEAD, RLX, seen); /* RingProducer::Unconsumed */
     if
     :: seen != next && !mutant(8) -> wake_engine()
     :: else
     fi
  :: else
  fi
}

/* ShardLane::Disarm */
inline disarm() {
  store(CLIENT, CLIENT_SLEEPING, 0, RLX);
  completion_wake = false
}

proctype Client() {
  byte next, taken, seen, flag;
  bool idle;
  do
  :: taken == ENTRIES -> break
  :: taken < ENTRIES && next < ENTRIES && !idle -> submit() /* may be refused for want of room */
  :: taken < next && !idle -> poll()
  :: idle -> /* ShardLane::Arm, after a Poll that found nothing */
     idle = false;
     store(CLIENT, CLIENT_SLEEPING, 1, RLX);
     if
     :: mutant(3)
     :: else -> seq_cst_fence(CLIENT)
     fi;
     load(CLIENT, DONE, ACQ, seen);
     load(CLIENT, BROKEN, ACQ, flag);
     if
     :: flag && !mutant(10) -> gave_up = true; break
     :: else ->
        if
        :: seen > taken && !mutant(7) -> skip
        :: else -> completion_wake /* poll(2) */
        fi;
        disarm()
     fi
  od
}

/* RingSession::Takeable */
inline takeable() {
  load(ENGINE, TAIL, ACQ, seen);
  load(ENGINE, READ, ACQ, room);
  work = seen > next && done - room < COMPLETION_RING
}

/* The end of RingSession::Publish, of a turn of StreamLane::Loop, and of StreamLane::Break */
inline wake_client(number) {
  if
  :: mutant(number)
  :: else -> seq_cst_fence(ENGINE)
  fi;
  load(ENGINE, CLIENT_SLEEPING, RLX, flag);
  if
  :: flag -> completion_wake = true
  :: else
  fi
}

inline announce(sleeping) { store(ENGINE, ENGINE_SLEEPING, sleeping, RLX) }

proctype Engine() {
  byte next, done, seen, room, flag;
  bool work;
  do
  :: done == ENTRIES -> break
  :: done < ENTRIES ->
     takeable();
     if
     :: work ->
        next++;
        done++;
        store(ENGINE, HEAD, next, REL); /* RingConsumer::Release */
        store(ENGINE, DONE, done, REL); /* RingProducer::Publish */
        wake_client(4)
     :: else -> /* ShardEngine::SleepUntilWork, StreamLane::Wait */
        if
        :: mutant(5) -> takeable(); announce(1)
        :: else ->
           announce(1);
           if
           :: mutant(2)
           :: else -> seq_cst_fence(ENGINE)
           fi;
           takeable()
        fi;
        if
        :: work && !mutant(6)
        :: else -> submit_wake; submit_wake = false /* epoll_wait */
        fi;
        announce(0)
     fi
  :: done < ENTRIES && !broke -> /* StreamLane::Break */
     broke = true;
     store(ENGINE, BROKEN, 1, REL);
     wake_client(9);
     break
  od
}

init {
  start();
  atomic { run Client(); run Engine() };
  /* When nothing can move any more, nobody sleeps who has something to wait for. */
  timeout -> assert(completed == ENTRIES || gave_up)
}
