import { roundUpTo } from '../common/units.js';

/** How grants are cut: multiples of an increment, and no less than a floor that is one too. */
export interface GrantRules {
  readonly incrementBytes: number;
  /** Least grant of a shard. A multiple of the increment. */
  readonly floorBytes: number;
}

/** Grants to the byte, without a floor. */
export const EXACT: GrantRules = { incrementBytes: 1, floorBytes: 0 };

/**
 * Tokens that grants really hold: a column lies on all shards, so the shard that is full first ends it.
 * `min over shards of floor(grant / bytesPerToken)`; shards on which a token takes nothing do not count.
 */
export function effectiveTokens(grants: readonly number[], bytesPerToken: readonly number[]): number {
  const tokens = bytesPerToken.flatMap((bytes, shard) =>
    bytes === 0 ? [] : [Math.floor((grants[shard] ?? 0) / bytes)],
  );
  return tokens.length === 0 ? 0 : Math.min(...tokens);
}

/** Bytes of each grant that can never be used: `grant - effectiveTokens x bytesPerToken`. */
export function wasteBytes(grants: readonly number[], bytesPerToken: readonly number[]): number[] {
  const tokens = effectiveTokens(grants, bytesPerToken);
  return grants.map((grant, shard) => grant - tokens * (bytesPerToken[shard] ?? 0));
}

/** The naive split: as much for every shard, whatever a token takes there. */
export function equalGrants(memoryBytes: number, shards: number, { incrementBytes }: GrantRules = EXACT): number[] {
  return Array(shards).fill(Math.floor(memoryBytes / shards / incrementBytes) * incrementBytes);
}

/**
 * The least grants that hold so many tokens: in proportion to the bytes of a token, up to the next increment. None for a
 * shard on which a token takes nothing.
 */
export function grantsFor(tokens: number, bytesPerToken: readonly number[], rules: GrantRules = EXACT): number[] {
  const { incrementBytes, floorBytes } = rules;
  return bytesPerToken.map((bytes) =>
    bytes === 0 ? 0 : Math.max(floorBytes, roundUpTo(tokens * bytes, incrementBytes)),
  );
}

/** The most tokens that a memory holds when it is split in proportion; 0 where not even the floors fit. */
export function proportionalTokens(memoryBytes: number, bytesPerToken: readonly number[], rules = EXACT): number {
  const fits = (tokens: number) => sum(grantsFor(tokens, bytesPerToken, rules)) <= memoryBytes;
  return largestWhere(0, Math.floor(memoryBytes / Math.max(1, sum(bytesPerToken))), fits);
}

/**
 * The share of the effective cache that the equal split loses against the proportional one, in exact arithmetic:
 * `1 - mean(bytesPerToken) / max(bytesPerToken)`. From `min(M / n / b_s) = M / (n x max b)` and `M / sum b`.
 */
export function equalSplitLoss(bytesPerToken: readonly number[]): number {
  return 1 - sum(bytesPerToken) / bytesPerToken.length / Math.max(...bytesPerToken);
}

/** The largest whole number in `least..most` for which `holds`, which holds up to some number and not above; else `least`. */
export function largestWhere(least: number, most: number, holds: (value: number) => boolean): number {
  let [low, high] = [least, Math.max(least, most)];
  while (low < high) {
    const middle = low + Math.ceil((high - low) / 2);
    if (holds(middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, each) => total + each, 0);
}
