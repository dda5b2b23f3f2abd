/**
 * What a placement is judged by, in this order: less is better, and a later number counts only where all before it are
 * equal.
 */
export interface Score {
  /** Bandwidth of all streams that cross the spine. */
  readonly spineBytesPerSecond: number;
  /** Load of the most loaded uplink of a leaf, as a share of its bandwidth; over 1 where it is oversubscribed. */
  readonly uplinkShare: number;
  /** AX nodes that run something, plus groups of equally cabled boxes of which one is taken. */
  readonly fragmentation: number;
  /** KVSS shards on that AX node, of those where the placement puts one, that then has the most. */
  readonly shardsPerNode: number;
}

/** A score as numbers in the order in which they count. */
export type ScoreVector = readonly [spine: number, uplink: number, fragmentation: number, shards: number];

export const LEVELS = ['spineBytesPerSecond', 'uplinkShare', 'fragmentation', 'shardsPerNode'] as const;

export function scoreOf([spineBytesPerSecond, uplinkShare, fragmentation, shardsPerNode]: ScoreVector): Score {
  return { spineBytesPerSecond, uplinkShare, fragmentation, shardsPerNode };
}

/** Below 0 where the first is better, above 0 where the second is, 0 where they are equal. */
export function compareScores(a: ScoreVector, b: ScoreVector): number {
  for (let level = 0; level < a.length; level += 1) {
    if (a[level] !== b[level]) return (a[level] as number) - (b[level] as number);
  }
  return 0;
}

/** Number of levels, from the first, at which two scores are equal. */
export function equalLevels(a: ScoreVector, b: ScoreVector): number {
  const differs = a.findIndex((value, level) => value !== b[level]);
  return differs === -1 ? a.length : differs;
}
