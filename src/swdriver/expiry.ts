import type { Clock } from '../common/clock.js';
import type { Node } from './prefix_map.js';

/** What the expiry needs of its driver. */
export interface ExpiryHost {
  /** When a column expires, in milliseconds of the clock; infinite where it does not, or is not the same any more. */
  expiryOf(node: Node, serial: number): number;
  /** The time of these columns is over. */
  expire(nodes: readonly Node[]): void;
}

/**
 * Finds columns whose time is over, at most `tickMs` after it is. A wheel of buckets by due time: a column lies in one
 * bucket, and when that comes due and the column has been used since, it moves on to a later one. So a use costs nothing
 * here, and a column one step for each time to live.
 */
export class Expiry {
  /** Columns and their serials, by the tick at which they are looked at. */
  readonly #buckets = new Map<number, number[]>();
  /** In which bucket a column lies, by its number: one that was put into an earlier one since is not looked at twice. */
  #bucketOf = new Float64Array(1);
  /** Ticks up to this one have been looked at. */
  #swept: number;
  #cancel: (() => void) | undefined;

  constructor(
    private readonly clock: Clock,
    private readonly tickMs: number,
    private readonly host: ExpiryHost,
  ) {
    this.#swept = Math.floor(clock.now() / tickMs);
  }

  /** Makes room for columns with numbers up to `capacity`. */
  grow(capacity: number): void {
    const larger = new Float64Array(capacity + 1);
    larger.set(this.#bucketOf);
    this.#bucketOf = larger;
  }

  /** Looks after a column from now on. Harmless where it does already, or where the column does not expire. */
  watch(node: Node, serial: number): void {
    const expiresAt = this.host.expiryOf(node, serial);
    if (!Number.isFinite(expiresAt)) return;
    // After the time and not before it, and never in a tick that is over.
    const bucket = Math.max(Math.floor(expiresAt / this.tickMs), this.#swept) + 1;
    const list = this.#buckets.get(bucket);
    if (list) list.push(node, serial);
    else this.#buckets.set(bucket, [node, serial]);
    this.#bucketOf[node] = bucket;
    this.#tick();
  }

  close(): void {
    this.#cancel?.();
    this.#cancel = undefined;
    this.#buckets.clear();
  }

  #tick(): void {
    if (this.#cancel || this.#buckets.size === 0) return;
    this.#cancel = this.clock.schedule(this.tickMs, () => {
      this.#cancel = undefined;
      this.#sweep();
      this.#tick();
    });
  }

  #sweep(): void {
    const now = this.clock.now();
    const tick = Math.floor(now / this.tickMs);
    const due: number[] = [];
    // Where the clock has jumped there may be more ticks than buckets.
    if (tick - this.#swept > this.#buckets.size) {
      for (const bucket of this.#buckets.keys()) if (bucket <= tick) due.push(bucket);
    } else {
      for (let bucket = this.#swept + 1; bucket <= tick; bucket += 1) due.push(bucket);
    }
    this.#swept = Math.max(this.#swept, tick);
    const expired: Node[] = [];
    for (const bucket of due) {
      const list = this.#buckets.get(bucket) ?? [];
      this.#buckets.delete(bucket);
      for (let index = 0; index < list.length; index += 2) {
        const node = list[index] as Node;
        const serial = list[index + 1] as number;
        if (this.#bucketOf[node] !== bucket) continue;
        if (this.host.expiryOf(node, serial) <= now) expired.push(node);
        else this.watch(node, serial);
      }
    }
    if (expired.length > 0) this.host.expire(expired);
  }
}
