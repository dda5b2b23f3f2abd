/* A machine with the memory of C++: release and acquire, relaxed accesses and seq_cst fences, made of views.
 *
 * A location is the list of all values that were ever stored to it. A view says, for each location, which entry
 * is the oldest that its owner may still read. Every thread has a view; a message carries one. A relaxed load
 * may give any entry that is not older than the thread's view: that is what a store buffer, and a processor that
 * reads ahead, can do to it. An acquire load takes over the view of the message; a release store leaves the
 * thread's own there. A seq_cst fence exchanges views with one view that all such fences share.
 *
 * Plain accesses (the entries of a ring, the bytes of a slot) have no order of their own: the machine asserts
 * that each of them happens after whatever it must not race with, and never looks at luck. For this a view also
 * counts the plain reads and writes that it knows of.
 *
 * What the machine leaves out: a load that takes its value from a store which comes later in the order of
 * causes. For plain accesses the assertions above find that; no other load of these protocols has a store
 * behind it that depends on nothing else.
 *
 * A model includes this file after it has defined THREADS, LOCATIONS (atomics, numbered from 0), PLAIN (plain
 * locations), and HISTORY, how many stores to a location can be in doubt at once.
 */

#define RLX 0
#define ACQ 1
#define REL 2

/* Mutants: each is the model with one thing wrong, and has to fail. Which one is said when the model is run. */
byte wrong;
#define mutant(n) (wrong == n)
#define unless_mutant(n, order) (mutant(n) -> RLX : order)

/* Views: atomics first, then plain writes, then plain reads. */
#define WRITES(p) (LOCATIONS + (p))
#define READS(p) (LOCATIONS + PLAIN + (p))
#define VIEW (LOCATIONS + 2 * PLAIN)

typedef View { byte at[VIEW] };
typedef Message { byte value; byte at[VIEW] };
typedef Location { byte count; Message message[HISTORY] };

Location memory[LOCATIONS];
byte writes[PLAIN + 1];
byte reads[PLAIN + 1];
View known[THREADS];    /* the thread's view */
View pending[THREADS];  /* what it has read without acquiring; an acquire fence makes it known */
View released[THREADS]; /* what its relaxed stores carry: its view at its last release fence */
View agreed;            /* of all seq_cst fences */
byte step, pick, place, other, oldest; /* of the operations below; 0 between them */

inline join(to, from) {
  step = 0;
  do
  :: step < VIEW ->
     if
     :: from.at[step] > to.at[step] -> to.at[step] = from.at[step]
     :: else
     fi;
     step++
  :: else -> break
  od;
  step = 0
}

inline copy(to, from) {
  step = 0;
  do
  :: step < VIEW -> to.at[step] = from.at[step]; step++
  :: else -> break
  od;
  step = 0
}

/* Every location has a value before anything runs. */
inline start() {
  d_step {
    c_code { now.wrong = getenv("KVSS_MUTANT") ? atoi(getenv("KVSS_MUTANT")) : 0; };
    step = 0;
    do
    :: step < LOCATIONS -> memory[step].count = 1; step++
    :: else -> break
    od;
    step = 0
  }
}

/* Drops what no thread can read any more and numbers the rest from 0, so that a flag that goes up and down for
 * ever does not make a new state each time. A view that is older than all threads means the same as 0. */
inline lower(view) {
  view.at[place] = (view.at[place] > oldest -> view.at[place] - oldest : 0)
}
inline forget(location) {
  place = location;
  oldest = 255;
  step = 0;
  do
  :: step < THREADS ->
     oldest = (known[step].at[place] < oldest -> known[step].at[place] : oldest);
     step++
  :: else -> break
  od;
  if
  :: oldest > 0 ->
     step = 0;
     do
     :: step < THREADS -> lower(known[step]); lower(pending[step]); lower(released[step]); step++
     :: else -> break
     od;
     lower(agreed);
     other = 0;
     do
     :: other < LOCATIONS ->
        pick = 0;
        do
        :: pick < memory[other].count -> lower(memory[other].message[pick]); pick++
        :: else -> break
        od;
        other++
     :: else -> break
     od;
     /* The messages themselves. */
     pick = 0;
     do
     :: pick + oldest < memory[place].count ->
        memory[place].message[pick].value = memory[place].message[pick + oldest].value;
        copy(memory[place].message[pick], memory[place].message[pick + oldest]);
        pick++
     :: else -> break
     od;
     do
     :: pick < memory[place].count ->
        memory[place].message[pick].value = 0;
        step = 0;
        do
        :: step < VIEW -> memory[place].message[pick].at[step] = 0; step++
        :: else -> break
        od;
        pick++
     :: else -> break
     od;
     memory[place].count = memory[place].count - oldest
  :: else
  fi;
  step = 0;
  pick = 0;
  place = 0;
  other = 0;
  oldest = 0
}

inline load(thread, location, order, into) {
  atomic {
    pick = known[thread].at[location];
    do
    :: pick + 1 < memory[location].count -> pick++
    :: break
    od;
    known[thread].at[location] = pick;
    into = memory[location].message[pick].value;
    join(pending[thread], memory[location].message[pick]);
    if
    :: (order) == ACQ -> join(known[thread], memory[location].message[pick])
    :: else
    fi;
    forget(location)
  }
}

/* All locations here have one thread that stores to them, so its store is always the newest. */
inline store(thread, location, stored, order) {
  d_step {
    pick = memory[location].count;
    assert(pick < HISTORY);
    assert(known[thread].at[location] == pick - 1);
    known[thread].at[location] = pick;
    if
    :: (order) == REL -> copy(memory[location].message[pick], known[thread])
    :: else -> copy(memory[location].message[pick], released[thread])
    fi;
    memory[location].message[pick].at[location] = pick;
    memory[location].message[pick].value = stored;
    memory[location].count++;
    forget(location)
  }
}

inline acquire_fence(thread) {
  d_step { join(known[thread], pending[thread]) }
}

inline release_fence(thread) {
  d_step { copy(released[thread], known[thread]) }
}

inline seq_cst_fence(thread) {
  d_step {
    join(known[thread], pending[thread]);
    join(known[thread], agreed);
    copy(agreed, known[thread]);
    copy(released[thread], known[thread])
  }
}

/* A plain write has to come after every access before it that the machine has seen. */
inline plain_write(thread, place) {
  d_step {
    assert(known[thread].at[WRITES(place)] == writes[place]);
    assert(known[thread].at[READS(place)] == reads[place]);
    writes[place]++;
    known[thread].at[WRITES(place)] = writes[place]
  }
}

/* A plain read has to come after every write before it. */
inline plain_read(thread, place) {
  d_step {
    assert(known[thread].at[WRITES(place)] == writes[place]);
    reads[place]++;
    known[thread].at[READS(place)] = reads[place]
  }
}
