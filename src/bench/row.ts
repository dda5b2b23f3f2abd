import { createHash, type Hash } from 'node:crypto';
import { quantile } from '../common/statistics.js';

/** Rows of the table of targets in docs/PERFORMANCE.md. */
export type TargetId =
  | 'shm-publish-p50'
  | 'shm-descriptors'
  | 'shm-copy'
  | 'shm-refill-p50'
  | 'tcp-evict'
  | 'tcp-refill'
  | 'tcp-evict-peers'
  | 'tcp-refill-peers'
  | 'shm-peers'
  | 'mixed-p99'
  | 'prefix-match'
  | 'prefix-insert'
  | 'prefix-bytes'
  | 'scale'
  | 'no-reuse'
  | 'idle';

/** What a piece of the suite has measured: one line of its output. A figure that has no meaning there is left out. */
export interface BenchRow {
  /** Name of the bench, e.g. `evict`. */
  bench: string;
  /** What was measured, in a few words. */
  what: string;
  link?: 'shm' | 'tcp' | 'unix' | undefined;
  pieceBytes?: number;
  /** Operations of all measured rounds, and how long they took. */
  ops?: number;
  seconds?: number;
  /** Payload in 10^9 bytes a second, median of the rounds. */
  gbps?: number;
  opsPerSec?: number;
  /** Latency of one operation, in microseconds. */
  p50us?: number;
  p99us?: number;
  p999us?: number;
  /** What stood beside it in the same rounds. */
  baseline?: string;
  baselineGbps?: number;
  /** Subject over baseline, median of the ratios of the rounds: above 1 is faster than the baseline. */
  ratio?: number;
  /** Smallest and largest ratio of a round. */
  ratioRange?: [number, number];
  rounds?: number;
  /** Of what the work has produced: equal work has equal checksums, on any machine. */
  checksum?: string;
  target?: TargetId;
  /** The figure that the target is about, in its unit. */
  value?: number;
  /** Why there is no figure, or what has to be known about it. */
  note?: string;
}

/** The three latencies of a row, from microseconds in any order. */
export function latencies(microseconds: Float64Array): Pick<BenchRow, 'p50us' | 'p99us' | 'p999us'> {
  const sorted = microseconds.toSorted();
  return { p50us: quantile(sorted, 0.5), p99us: quantile(sorted, 0.99), p999us: quantile(sorted, 0.999) };
}

/** A short checksum of numbers and bytes in the order in which they are given. */
export class Checksum {
  readonly #hash: Hash = createHash('sha256');

  add(...parts: readonly (number | Uint8Array)[]): this {
    for (const part of parts) this.#hash.update(typeof part === 'number' ? `${part};` : part);
    return this;
  }

  get text(): string {
    return this.#hash.copy().digest('hex').slice(0, 16);
  }
}
