// What notices that a line is missing: the kinds of tests, and those that notice more than one line.

/** A native test. Under ThreadSanitizer only where threads matter. */
export const native = (name, sanitizer = 'asan') => ({ kind: 'native', sanitizer, name });
/** A file of tests, or those of it whose name has `name` in it. `part`: of a name that the file puts together. */
export const vitest = (file, name, part = name) => ({ kind: 'vitest', file, name, part });
export const hazard = (name) => vitest('test/model/hazards.test.ts', name);
export const stripe = (name) => vitest('test/model/stripe.test.ts', name);
export const groups = (name) => vitest('test/model/groups.test.ts', name);
export const speculation = (name) => vitest('test/model/speculation.test.ts', name);
export const spans = (name) => vitest('test/model/spans.test.ts', name);
export const parked = (name, part) => vitest('test/e2e/parking.test.ts', name, part);
export const map = (name) => vitest('test/unit/prefix_map.test.ts', name);
/** The simulation, from seed 1 on. */
export const sim = (seeds) => ({ kind: 'sim', seeds });
export const fuzz = (target, seconds) => ({ kind: 'fuzz', target, seconds });
/**
 * A model of memory orders, of which this mutant must not hold. On x86 the line itself changes nothing that a test could
 * see, so what is run is the model.
 */
export const model = (name, mutant) => ({ kind: 'model', model: name, mutant });

export const oracle = vitest('test/core/shard_core.test.ts', 'the shard core against an oracle');
export const anyDriver = vitest('test/model/driver.test.ts', 'whatever happens, a driver serves right bytes or a miss');
export const anyGroups = vitest(
  'test/model/groups_random.test.ts',
  'whatever happens to a model of groups, a driver serves right parts of verified tokens or a miss',
);
export const hostileStream = native('no kept input of a hostile client over streams breaks a promise');
export const hostileRing = native('no kept input of a hostile client in shared memory breaks a promise');
export const brokenShard = native(
  'a shard that breaks the protocol breaks the lanes and touches no memory but that of its own',
);
export const wrongOrders = native('a driver that orders what cannot be loses its lane, and no memory is touched');
export const wrongAnswers = native('a shard that answers what it was not asked breaks the lane');
export const wrongAcks = native('a carrier that acknowledges what it was not told breaks the lane');
export const refusedDescriptors = native('descriptors are refused by the first thing that is wrong with them');

export const FENCE = 'std::atomic_thread_fence(std::memory_order_seq_cst);\n';
