import { localError } from '../common/errors.js';
import { HitDensityRanking } from './eviction/hit_density.js';
import type { LeafRanking } from './eviction/leaf_ranking.js';
import { LruRanking } from './eviction/lru.js';

export type { LeafRanking } from './eviction/leaf_ranking.js';

/**
 * Chooses what goes first when room is needed. The PrefixMap has it make a ranking of its own, and leaves it to that
 * alone which leaf is the next victim.
 */
export interface EvictionPolicy {
  readonly name: string;
  /** A ranking for one map, which is empty as yet. */
  ranking(): LeafRanking;
}

/** Least recently used first. */
export const lru: EvictionPolicy = { name: 'lru', ranking: () => new LruRanking() };

/** Fewest uses to be expected for the room first, as learned from the prompts; LRU where that is better. The default. */
export const hitDensity: EvictionPolicy = { name: 'hit-density', ranking: () => new HitDensityRanking() };

/**
 * Hit density in which a column is worth more the deeper it lies: attention looks back at all columns before it, which
 * makes the column at position p cost `1 + p / 512` times the first one to compute, 512 columns being 32,768 tokens; about
 * where attention costs as much as all the rest in models of 8 to 70 billion weights. Trades token hits for computing saved.
 */
export const hitDensityByCost: EvictionPolicy = {
  name: 'hit-density-by-cost',
  ranking: () => new HitDensityRanking({ costDoublesAtColumns: 512 }),
};

export const DEFAULT_POLICY = hitDensity;

const POLICIES: readonly EvictionPolicy[] = [hitDensity, hitDensityByCost, lru];

/** Names of the policies that there are, the default first. */
export const POLICY_NAMES: readonly string[] = POLICIES.map(({ name }) => name);

/** The policy of a name. Throws KVSS_BAD_INPUT where there is none, naming those that there are. */
export function policyNamed(name: string): EvictionPolicy {
  const found = POLICIES.find((policy) => policy.name === name);
  if (!found) throw localError('KVSS_BAD_INPUT', `policy: there is no '${name}'; there are ${POLICY_NAMES.join(', ')}`);
  return found;
}
