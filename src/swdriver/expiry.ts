import type { Clock } from '../common/clock.js';
import { enlarged } from '../common/enlarged.js';
import { NONE, type Node } from './prefix_map.js';

/** What the expiry needs of its driver. */
export interface ExpiryHost {
  /** When a column expires, in milliseconds of the clock; infinite where it does not, or is not the same any more. */
  expiryOf(node: Node, serial: number): number;
  /** The time of these columns is over. */
  expire(nodes: readonly Node[]): void;
}

const NOWHERE = -1;

/**
 * Finds columns whose time is over, at most `tickMs` after it is. A wheel of buckets by due time: a column lies in one
 * bucket, and when that comes due and the column has been used since, it moves on to a later one. So a use costs nothing
 * here, and a column one step for each time to live. Buckets are lists through arrays by the numbers of columns: however
 * often policies change and columns come and go, there is one entry for each number.
 */
export class Expiry {
  /** The first column of each bucket, by the tick at which it is looked at. */
  readonly #buckets = new Map<number, Node>();
  /** In which bucket a column lies, by its number; NOWHERE for none. */
  #bucketOf = new Float64Array(1).fill(NOWHERE);
  /** The serial that the column had then. */
  #serial = new Float64Array(1);
  /** The columns after and before it in its bucket. */
  #next = new Int32Array(1);
  #previous = new Int32Array(1);
  #watched = 0;
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

  /** @internal Columns that are looked after. */
  get watched(): number {
    return this.#watched;
  }

  /** Makes room for columns with numbers up to `capacity`. */
  grow(capacity: number): void {
    this.#bucketOf = enlarged(this.#bucketOf, capacity + 1, NOWHERE);
    this.#serial = enlarged(this.#serial, capacity + 1, 0);
    this.#next = enlarged(this.#next, capacity + 1, NONE);
    this.#previous = enlarged(this.#previous, capacity + 1, NONE);
  }

  /** Looks after a column from now on, and no more after one that does not expire. Harmless where it does already. */
  watch(node: Node, serial: number): void {
    this.#unlink(node);
    const expiresAt = this.host.expiryOf(node, serial);
    if (!Number.isFinite(expiresAt)) return;
    // After the time and not before it, and never in a tick that is over.
    const bucket = Math.max(Math.floor(expiresAt / this.tickMs), this.#swept) + 1;
    const first = this.#buckets.get(bucket) ?? NONE;
    if (first !== NONE) this.#previous[first] = node;
    this.#next[node] = first;
    this.#previous[node] = NONE;
    this.#buckets.set(bucket, node);
    this.#bucketOf[node] = bucket;
    this.#serial[node] = serial;
    this.#watched += 1;
    this.#tick();
  }

  close(): void {
    this.#cancel?.();
    this.#cancel = undefined;
    this.#buckets.clear();
    this.#bucketOf.fill(NOWHERE);
    this.#watched = 0;
  }

  #unlink(node: Node): void {
    const bucket = this.#bucketOf[node] as number;
    if (bucket === NOWHERE) return;
    const next = this.#next[node] as Node;
    const previous = this.#previous[node] as Node;
    if (next !== NONE) this.#previous[next] = previous;
    if (previous !== NONE) this.#next[previous] = next;
    else if (next !== NONE) this.#buckets.set(bucket, next);
    else this.#buckets.delete(bucket);
    this.#bucketOf[node] = NOWHERE;
    this.#watched -= 1;
  }

  #tick(): void {
    if (this.#cancel || this.#buckets.size === 0) return;
    // When a tick begins, or the time of a column would be over for up to two of them.
    const { tickMs, clock } = this;
    const now = clock.now();
    const delayMs = (Math.floor(now / tickMs) + 1) * tickMs - now;
    this.#cancel = clock.schedule(delayMs, () => {
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
      const nodes: Node[] = [];
      for (let node = this.#buckets.get(bucket) ?? NONE; node !== NONE; node = this.#next[node] as Node)
        nodes.push(node);
      // Last in, first out is the order of the list: columns are to come before those that continue them, and go with them.
      for (const node of nodes.reverse()) {
        const serial = this.#serial[node] as number;
        this.#unlink(node);
        if (this.host.expiryOf(node, serial) <= now) expired.push(node);
        else this.watch(node, serial);
      }
    }
    if (expired.length > 0) this.host.expire(expired);
  }
}
