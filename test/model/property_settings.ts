import type * as fc from 'fast-check';

/**
 * How often a property runs, and with what seed. The seed is fixed so that a run tells the same as the one before;
 * `KVSS_TEST_SEED` and `KVSS_TEST_EFFORT` (a factor on the number of runs) look further.
 */
export function settings(runs: number): fc.Parameters<unknown> {
  const seed = Number(process.env.KVSS_TEST_SEED ?? 20_240_611);
  const effort = Number(process.env.KVSS_TEST_EFFORT ?? 1);
  return { seed, numRuns: Math.ceil(runs * effort) };
}
