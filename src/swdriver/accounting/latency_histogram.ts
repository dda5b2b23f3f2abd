import { LogScale } from './log_scale.js';

// In microseconds: from an eighth to 2 ** 30, which is 18 minutes, in steps of a sixteenth: a bucket's middle is
// within 3.2 % of every value in it.
const SCALE = new LogScale(-3, 30, 4);
const MICROS_PER_MS = 1000;
const LOWEST_BOUND_EXPONENT = 0;
const HIGHEST_BOUND_EXPONENT = 26;

/**
 * Upper bounds of the buckets that Prometheus sees, in seconds: powers of two of a microsecond, from 1 us to 67 s. They
 * are bounds of the histogram's own buckets too, so that the counts are exact.
 */
export const LATENCY_BOUNDS_SECONDS: readonly number[] = Array.from(
  { length: HIGHEST_BOUND_EXPONENT - LOWEST_BOUND_EXPONENT + 1 },
  (_, index) => 2 ** (LOWEST_BOUND_EXPONENT + index) / 1e6,
);

/** Figures of a histogram, in milliseconds. */
export interface LatencyFigures {
  count: number;
  sumMs: number;
  minMs: number;
  p50Ms: number;
  p90Ms: number;
  p99Ms: number;
  p999Ms: number;
  maxMs: number;
}

/**
 * How long operations took, from a fraction of a microsecond to minutes, in buckets whose width grows with the value, as
 * in HdrHistogram. A quantile is within 3.2 % of one of the times that were recorded, above 0.125 us; 4 KiB whatever the
 * number of them.
 */
export class LatencyHistogram {
  readonly #counts = new Float64Array(SCALE.buckets);
  #count = 0;
  #sumMs = 0;
  #minMs = Number.POSITIVE_INFINITY;
  #maxMs = 0;

  /** One operation of `ms` milliseconds. A clock that went back, or gave no number, counts as no time. */
  record(ms: number): void {
    const time = ms > 0 ? ms : 0;
    const bucket = SCALE.bucketOf(time * MICROS_PER_MS);
    this.#counts[bucket] = (this.#counts[bucket] as number) + 1;
    this.#count += 1;
    this.#sumMs += time;
    if (time < this.#minMs) this.#minMs = time;
    if (time > this.#maxMs) this.#maxMs = time;
  }

  get count(): number {
    return this.#count;
  }

  /** All times together, in milliseconds; exact. */
  get sum(): number {
    return this.#sumMs;
  }

  /** The time, in milliseconds, that a share `q` (0 to 1) of the operations did not exceed; 0 where there were none. */
  quantile(q: number): number {
    if (this.#count === 0) return 0;
    const rank = Math.min(this.#count, Math.max(1, Math.ceil(q * this.#count)));
    if (rank === this.#count) return this.#maxMs;
    let seen = 0;
    let bucket = 0;
    for (; bucket < SCALE.buckets - 1; bucket += 1) {
      seen += this.#counts[bucket] as number;
      if (seen >= rank) break;
    }
    const middle = (SCALE.lowerBound(bucket) + SCALE.upperBound(bucket)) / 2 / MICROS_PER_MS;
    return Math.min(this.#maxMs, Math.max(this.#minMs, middle));
  }

  /** Counts all operations of another histogram too. */
  merge(other: LatencyHistogram): void {
    for (let bucket = 0; bucket < SCALE.buckets; bucket += 1) {
      this.#counts[bucket] = (this.#counts[bucket] as number) + (other.#counts[bucket] as number);
    }
    this.#count += other.#count;
    this.#sumMs += other.#sumMs;
    this.#minMs = Math.min(this.#minMs, other.#minMs);
    this.#maxMs = Math.max(this.#maxMs, other.#maxMs);
  }

  /**
   * Operations below each of LATENCY_BOUNDS_SECONDS, as Prometheus counts them: each bound has all below it. An operation
   * of exactly a bound counts above it.
   */
  prometheusCounts(): number[] {
    const counts: number[] = [];
    let seen = 0;
    let bucket = 0;
    for (let exponent = LOWEST_BOUND_EXPONENT; exponent <= HIGHEST_BOUND_EXPONENT; exponent += 1) {
      const end = SCALE.bucketOf(2 ** exponent);
      for (; bucket < end; bucket += 1) seen += this.#counts[bucket] as number;
      counts.push(seen);
    }
    return counts;
  }

  toJSON(): LatencyFigures {
    return {
      count: this.#count,
      sumMs: this.#sumMs,
      minMs: this.#count === 0 ? 0 : this.#minMs,
      p50Ms: this.quantile(0.5),
      p90Ms: this.quantile(0.9),
      p99Ms: this.quantile(0.99),
      p999Ms: this.quantile(0.999),
      maxMs: this.#maxMs,
    };
  }
}
