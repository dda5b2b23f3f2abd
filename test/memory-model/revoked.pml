/* A reader in place and the end of a session: who has read a byte of a page that was gone sees `revoked`.
 *
 * mutant 1: Close without its fence
 * mutant 2: ShardLane::revoked without its fence
 * mutant 3: the pages go before the flag is set
 * mutant 4: the reader looks at the flag before it reads the slot
 */
#define REVOKED 0 /* StatusSegment::revoked */
#define PAGE 1    /* a byte of the grant: 0 while it is what was stored, 1 once the kernel has taken it */
#define OTHER 2   /* another byte, of another page */
#define LOCATIONS 3
#define PLAIN 0
#define THREADS 2
#define HISTORY 3
#include "machine.pml"

#define DAEMON 0
#define READER 1

/* ColumnAllocator::Free. The kernel promises no order of its own here. */
inline discard() {
  store(DAEMON, PAGE, 1, RLX);
  store(DAEMON, OTHER, 1, RLX)
}

proctype Daemon() {
  if
  :: mutant(3) -> discard()
  :: else
  fi;
  /* RingSession::Close. Here the store itself may as well be relaxed: the fence is what releases it. */
  store(DAEMON, REVOKED, 1, RLX);
  if
  :: mutant(1)
  :: else -> seq_cst_fence(DAEMON)
  fi;
  if
  :: mutant(3)
  :: else -> discard()
  fi
}

proctype Reader() {
  byte first, second, flag;
  if
  :: mutant(4) -> load(READER, REVOKED, ACQ, flag)
  :: else
  fi;
  load(READER, PAGE, RLX, first);
  load(READER, OTHER, RLX, second);
  /* ShardLane::revoked */
  if
  :: mutant(2)
  :: else -> acquire_fence(READER)
  fi;
  if
  :: mutant(4)
  :: else -> load(READER, REVOKED, RLX, flag)
  fi;
  assert(flag || (first == 0 && second == 0))
}

init {
  start();
  atomic { run Daemon(); run Reader() }
}
