import { createHash } from 'node:crypto';
import type { Cluster } from './cluster.js';
import type { Job, Pod } from './jobs.js';

/** A pod and the name of the AX node that it runs on. */
export interface PlacedPod {
  readonly pod: Pod;
  readonly node: string;
}

/** A job with the names of its boxes, the first of its session first, and all of its pods. */
export interface PlacedJob {
  readonly job: Job;
  readonly boxes: readonly string[];
  readonly pods: readonly PlacedPod[];
}

/** What runs where, at one time. Nothing of it ever changes: a change makes another snapshot. */
export interface Snapshot {
  /** Rises with every commit. */
  readonly version: number;
  readonly cluster: Cluster;
  /** In the order in which they came. */
  readonly jobs: readonly PlacedJob[];
  /** Names of AX nodes that take no pods. */
  readonly drained: readonly string[];
}

/** A cluster where nothing runs. */
export function emptySnapshot(cluster: Cluster): Snapshot {
  return freeze({ version: 0, cluster: freeze(cluster), jobs: [], drained: [] });
}

/** SHA-256 of what runs where, and of the cluster, in hex. The version is no part of it: equal snapshots have equal hashes. */
export function hashSnapshot({ cluster, jobs, drained }: Snapshot): string {
  return createHash('sha256')
    .update(JSON.stringify([cluster, jobs, drained]))
    .digest('hex');
}

/** Freezes a value with all that is in it. */
export function freeze<Value>(value: Value): Value {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const each of Object.values(value)) freeze(each);
  }
  return value;
}
