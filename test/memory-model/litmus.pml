/* The machine itself: outcomes that C++ forbids must not come, and outcomes that it allows must. The known litmus
 * tests, one of them in each run. A machine that orders too much would pass any model.
 *
 * mutant 1: store buffering with one fence is allowed
 * mutant 2: store buffering with release and acquire instead of fences is allowed
 * mutant 3: message passing with a relaxed store is allowed
 * mutant 4: message passing with a relaxed load is allowed
 * mutant 5: message passing by fences, without the one that releases, is allowed
 * mutant 6: message passing by fences, without the one that acquires, is allowed
 * mutant 7: two readers that see two writers in different order are allowed, without fences
 * mutant 8: causes do not travel on through a thread that does not acquire
 */
#define X 0
#define Y 1
#define LOCATIONS 2
#define PLAIN 1
#define THREADS 4
#define HISTORY 3
#include "machine.pml"

byte ended;

inline fence_unless(thread, number) {
  if
  :: mutant(number)
  :: else -> seq_cst_fence(thread)
  fi
}

/* Store buffering: both store, then look at the other's. Seqcst fences keep them from both missing it. */
byte first_saw, second_saw;
proctype StoreBufferingOne() {
  store(0, X, 1, REL);
  fence_unless(0, 2);
  load(0, Y, ACQ, first_saw);
  ended++
}
proctype StoreBufferingTwo() {
  store(1, Y, 1, REL);
  if
  :: mutant(1) || mutant(2)
  :: else -> seq_cst_fence(1)
  fi;
  load(1, X, ACQ, second_saw);
  ended++
}

/* Message passing: data, then a flag. */
proctype Writer() {
  store(0, X, 1, RLX);
  store(0, Y, 1, unless_mutant(3, REL))
}
proctype Reader() {
  byte flag, data;
  load(1, Y, unless_mutant(4, ACQ), flag);
  load(1, X, RLX, data);
  assert(!flag || data)
}

/* The same by fences. */
proctype FenceWriter() {
  store(0, X, 1, RLX);
  if
  :: mutant(5)
  :: else -> release_fence(0)
  fi;
  store(0, Y, 1, RLX)
}
proctype FenceReader() {
  byte flag, data;
  load(1, Y, RLX, flag);
  if
  :: mutant(6)
  :: else -> acquire_fence(1)
  fi;
  load(1, X, RLX, data);
  assert(!flag || data)
}

/* Independent reads of independent writes. */
bool x_then_y, y_then_x;
proctype Store(byte thread; byte location) { store(thread, location, 1, REL) }
proctype ReadsXThenY() {
  byte one, two;
  load(2, X, ACQ, one);
  fence_unless(2, 7);
  load(2, Y, ACQ, two);
  x_then_y = one && !two;
  ended++
}
proctype ReadsYThenX() {
  byte one, two;
  load(3, Y, ACQ, one);
  fence_unless(3, 7);
  load(3, X, ACQ, two);
  y_then_x = one && !two;
  ended++
}

/* Causes travel on: what one thread learnt, the next one learns from it. */
proctype Origin() {
  plain_write(0, 0);
  store(0, X, 1, REL)
}
proctype Relay() {
  byte seen;
  load(1, X, unless_mutant(8, ACQ), seen);
  if
  :: seen -> store(1, Y, 1, REL)
  :: else
  fi
}
proctype End() {
  byte seen;
  load(2, Y, ACQ, seen);
  if
  :: seen -> plain_read(2, 0)
  :: else
  fi
}

init {
  start();
  if
  :: atomic { run StoreBufferingOne(); run StoreBufferingTwo() };
     ended == 2;
     assert(first_saw || second_saw)
  :: atomic { run Writer(); run Reader() }
  :: atomic { run FenceWriter(); run FenceReader() }
  :: atomic { run Store(0, X); run Store(1, Y); run ReadsXThenY(); run ReadsYThenX() };
     ended == 2;
     assert(!(x_then_y && y_then_x))
  :: atomic { run Origin(); run Relay(); run End() }
  fi
}
