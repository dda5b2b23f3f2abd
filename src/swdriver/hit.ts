import type { Clock } from '../common/clock.js';
import { copyPiece } from '../links/copy_piece.js';
import { Opcode, Status } from '../proto/generated.js';
import type { DriverStats } from './driver_stats.js';
import type { Node, PrefixMap } from './prefix_map.js';
import { type ColumnRef, checkLength, checkPlace, type PieceSink } from './runtime.js';
import type { BatchOutcome, Stripe } from './stripe.js';

/** A part of a prefix that has been fetched: columns from `from`, below `end`, with their places. */
interface Part {
  from: number;
  end: number;
  /** Columns below this one may be read. */
  usable: number;
  places: number[];
  /** All of it may be read. */
  complete: boolean;
}

/** Columns from `from`, below `end`, with their places. `full`: the runtime has no more of its own. */
interface Claimed {
  from: number;
  end: number;
  places: number[];
  full: boolean;
}

const QUIET: Promise<void> = Promise.resolve();
const nothingFrom = (from: number): Part => ({ from, end: from, usable: from, places: [], complete: false });

function firstNotOk(outcomes: BatchOutcome): number {
  for (let item = 0; item < outcomes.length; item += 1) if (outcomes[item] !== Status.ok) return item;
  return -1;
}

/** Counts what of one refill may still touch the runtime's memory. */
class Transfers {
  #open = 0;
  #settle: (() => void) | undefined;

  /** One more; the answer is to be called when it touches nothing any more. */
  begin(): () => void {
    this.#open += 1;
    return () => {
      this.#open -= 1;
      if (this.#open === 0) this.#settle?.();
    };
  }

  /** Resolves when all have ended. Nothing begins afterwards. */
  get quiet(): Promise<void> {
    if (this.#open === 0) return QUIET;
    return new Promise((resolve) => {
      this.#settle = resolve;
    });
  }
}

/** What a hit needs of its driver. */
export interface HitHost {
  readonly map: PrefixMap;
  readonly clock: Clock;
  readonly stats: DriverStats;
  readonly settings: { readonly deadlineMs: number; readonly places: number };
  /** Throws KVSS_BAD_INPUT where a sink does not fit the memory of the runtime. */
  checkEnds(sink: PieceSink): void;
  /** Takes a column and what continues it out of the map. */
  remove(node: Node): number;
  /** The hit has been released. */
  forgetHit(hit: Hit): void;
}

/** How a refill ended. */
export interface RefillResult {
  /** Columns that the sink has got, from the first without a gap. */
  columns: number;
  /** Tokens of those columns: where the runtime has to go on computing. */
  tokens: number;
  /**
   * Resolves when nothing of this refill touches the runtime's memory any more. That is now, except where a sink with
   * `place` has got fewer columns than the hit has: what came late may still be coming.
   */
  quiet: Promise<void>;
}

/**
 * The longest cached prefix of a prompt, pinned. Its columns stay readable until release(), until the pin deadline
 * passes, or until their shard dies. Release it in every case; `using` does so by itself.
 */
export class Hit implements Disposable {
  #held = true;
  #pinned = true;
  #refills = 0;
  /** Stripes that hold columns of the path, and their epochs when it was matched. */
  readonly #stripes: Stripe[] = [];
  readonly #epochs: number[] = [];

  /** @internal */
  constructor(
    private readonly core: HitHost,
    private readonly tenantTag: bigint,
    private readonly path: readonly Node[],
    private readonly serials: readonly number[],
    /** The stripe of each column of the path: later on a node may be another column's. */
    private readonly stripeOf: readonly Stripe[],
    /** Tokens of the prefix, a whole number of columns. */
    readonly tokens: number,
    /** @internal Clock time at which the pin ends by itself. */
    readonly pinDeadline: number,
  ) {
    for (const stripe of stripeOf) {
      if (this.#stripes.includes(stripe)) continue;
      this.#stripes.push(stripe);
      this.#epochs.push(stripe.epoch);
    }
  }

  /** Columns of the prefix. */
  get columns(): number {
    return this.path.length;
  }

  /** @internal The last column of the prefix. */
  get lastNode(): Node | undefined {
    return this.path.at(-1);
  }

  /** Whether the pin still holds. What was read in place before this was true is what had been stored. */
  get held(): boolean {
    const last = this.columns - 1;
    // The map is closed under prefixes: as long as the last column is in it, all are. Their tenant may be forgotten.
    return this.#held && (last < 0 || this.#current(last)) && this.#intact();
  }

  /**
   * Hands the pieces of the prefix to the runtime, in order. Ends early, without an error, where a column turns out to
   * be gone: its shard died, or the deadline passed. Throws only what the sink throws.
   */
  async refill(sink: PieceSink, options: { deadlineMs?: number } = {}): Promise<RefillResult> {
    const { core } = this;
    core.checkEnds(sink);
    // The pin stays until the reading ends, also where the caller releases meanwhile.
    this.#refills += 1;
    try {
      const deadlineMs = options.deadlineMs ?? core.settings.deadlineMs;
      let done = 0;
      // Of all parts together. The sink's own time does not count.
      let left = deadlineMs;
      // While the runtime reads one part of the prefix the next one is on its way.
      const transfers = new Transfers();
      let next: Promise<Part> | undefined = this.#fetch(0, left, sink, transfers);
      try {
        while (next) {
          const asked = core.clock.now();
          const part: Part = await next;
          next = undefined;
          if (part.complete && part.end < this.columns) {
            left -= core.clock.now() - asked;
            if (left > 0) next = this.#fetch(part.end, left, sink, transfers);
            // Awaited after the delivery; until then a sink that threw must not look like nobody cared.
            next?.catch(() => {});
          }
          const delivered = this.#deliverAll(sink, part, part.from);
          done += typeof delivered === 'number' ? delivered : await delivered;
          if (done < part.end) break;
        }
      } finally {
        // Also where the sink threw, or stopped early.
        if (next) this.#giveBack(await next);
      }
      core.stats.columnsRefilled += done;
      core.stats.refillMisses += this.columns - done;
      return { columns: done, tokens: done * core.map.columnTokens, quiet: transfers.quiet };
    } finally {
      this.#refills -= 1;
      if (!this.#held && this.#refills === 0) this.#unpin();
    }
  }

  /** Ends the pin. Answers whether it had held until now; if not, what was read in place since the last check is void. */
  release(): boolean {
    const { held } = this;
    this.#held = false;
    this.core.forgetHit(this);
    if (this.#refills === 0) this.#unpin();
    return held;
  }

  [Symbol.dispose](): void {
    this.release();
  }

  /** @internal The pin deadline has passed. */
  expire(): void {
    this.#held = false;
    this.#unpin();
  }

  #unpin(): void {
    if (!this.#pinned) return;
    this.#pinned = false;
    const last = this.path.length - 1;
    if (last >= 0) this.core.map.unpin(this.path[last] as Node, this.serials[last] as number);
  }

  /** Whether the shards have taken none of their memory back. */
  #intact(): boolean {
    for (let index = 0; index < this.#stripes.length; index += 1) {
      const stripe = this.#stripes[index] as Stripe;
      if (stripe.epoch !== this.#epochs[index] || !stripe.intact()) return false;
    }
    return true;
  }

  #current(column: number): boolean {
    const { map } = this.core;
    const node = this.path[column] as Node;
    return map.isCurrent(node, this.serials[column] as number) && map.isStored(node);
  }

  /**
   * Asks the shards for a part of the prefix, as much as there are places for. Only whole columns from the first without
   * a gap count.
   */
  async #fetch(from: number, deadlineMs: number, sink: PieceSink, transfers: Transfers): Promise<Part> {
    if (!this.#held || from >= this.columns) return nothingFrom(from);
    const claimed = this.#claimPlaces(from, sink);
    const { end, places } = claimed;
    if (places.length === 0) {
      // Another part, of this hit or another, has all the places: wait for one.
      const stripe = this.stripeOf[from] as Stripe;
      if (!this.#current(from) || !stripe.usable || stripe.placedByRuntime) return nothingFrom(from);
      const started = this.core.clock.now();
      await stripe.placeFreed(deadlineMs);
      const left = deadlineMs - (this.core.clock.now() - started);
      return left > 0 ? this.#fetch(from, left, sink, transfers) : nothingFrom(from);
    }
    // Most hits lie on one stripe.
    const outcomes =
      this.#stripes.length === 1
        ? await this.#ask(this.#stripes[0] as Stripe, claimed, undefined, deadlineMs, transfers)
        : await this.#askAll(claimed, deadlineMs, transfers);
    const firstMiss = firstNotOk(outcomes);
    if (firstMiss < 0) return { from, end, usable: end, places, complete: !claimed.full };
    const status = outcomes[firstMiss] as Status;
    const column = from + firstMiss;
    // The shard has not got what the map promised: the map is wrong there, so it forgets.
    const lost = status === Status.missEmpty || status === Status.missOverwritten || status === Status.missTenant;
    if (lost && this.#current(column)) this.core.remove(this.path[column] as Node);
    return { from, end, usable: column, places, complete: false };
  }

  /** Has one stripe refill these of the claimed columns, counted from the first of them; all where none are named. */
  #ask(
    stripe: Stripe,
    { from, end, places }: Claimed,
    some: readonly number[] | undefined,
    deadlineMs: number,
    transfers: Transfers,
  ): Promise<BatchOutcome> {
    const { map } = this.core;
    const count = some?.length ?? end - from;
    const slots = new Uint32Array(count);
    const targets = new Uint32Array(count);
    const generations = new Float64Array(count);
    for (let item = 0; item < count; item += 1) {
      const index = some ? (some[item] as number) : item;
      const node = this.path[from + index] as Node;
      slots[item] = map.slot(node);
      generations[item] = map.generation(node);
      targets[item] = places[index] as number;
    }
    return stripe.run({
      opcode: Opcode.refill,
      flags: 0,
      slots,
      places: targets,
      generations,
      tenantTag: this.tenantTag,
      deadlineMs,
      // While a later part is on its way the runtime reads the one before.
      awaited: from === 0,
      onQuiet: stripe.placedByRuntime ? transfers.begin() : undefined,
    });
  }

  /** Has every stripe refill its own of the claimed columns. */
  async #askAll(claimed: Claimed, deadlineMs: number, transfers: Transfers): Promise<BatchOutcome> {
    const { from, end } = claimed;
    const outcomes = new Uint16Array(end - from).fill(Status.cancelled);
    const asked = this.#stripes.map(async (stripe) => {
      const mine: number[] = [];
      for (let column = from; column < end; column += 1) {
        if (this.stripeOf[column] === stripe) mine.push(column - from);
      }
      if (mine.length === 0) return;
      const outcome = await this.#ask(stripe, claimed, mine, deadlineMs, transfers);
      for (const [item, index] of mine.entries()) outcomes[index] = outcome[item] as number;
    });
    await Promise.all(asked);
    return outcomes;
  }

  /**
   * Places for columns from `from` on. Half of them at most, so that the part before can still be read.
   */
  #claimPlaces(from: number, sink: PieceSink): Claimed {
    const places: number[] = [];
    let end = from;
    let full = false;
    for (; end < this.columns && this.#current(end); end += 1) {
      const stripe = this.stripeOf[end] as Stripe;
      if (places.length > 0 && places.length >= stripe.placeCount / 2) break;
      const byRuntime = stripe.placedByRuntime && 'place' in sink;
      const place = byRuntime
        ? this.#askPlace(sink, end)
        : stripe.takePlace(this.core.map.slot(this.path[end] as Node));
      if (place === undefined) {
        full = byRuntime;
        break;
      }
      places.push(place);
    }
    return { from, end, places, full };
  }

  /**
   * Hands the usable columns of a part to the sink, beginning with `from`, gives their places back, and answers how many of
   * the part count: at once where the sink takes no time.
   */
  #deliverAll(sink: PieceSink, part: Part, from: number): number | Promise<number> {
    let column = from;
    let waiting: Promise<number> | undefined;
    try {
      while (column < part.usable && this.#held && this.#current(column)) {
        const finished = this.#deliver(sink, column, part.places[column - part.from] as number);
        if (typeof finished !== 'boolean') {
          waiting = this.#deliverRest(sink, part, column, finished);
          return waiting;
        }
        if (!finished || !this.#stillSound(column)) break;
        column += 1;
      }
      return column - part.from;
    } finally {
      if (!waiting) this.#giveBack(part);
    }
  }

  /** Goes on with a column that the sink takes its time for. */
  async #deliverRest(sink: PieceSink, part: Part, column: number, finished: Promise<boolean>): Promise<number> {
    let sound = false;
    try {
      sound = (await finished) && this.#stillSound(column);
    } finally {
      if (!sound) this.#giveBack(part);
    }
    return sound ? this.#deliverAll(sink, part, column + 1) : column - part.from;
  }

  /**
   * Whether what the sink has got is what was stored: while it worked the shard may have taken its memory away, or the pin
   * may have run out, and then it may have read anything.
   */
  #stillSound(column: number): boolean {
    return this.#held && this.#current(column) && this.#intact();
  }

  #giveBack(part: Part): void {
    for (const [index, place] of part.places.entries()) {
      const stripe = this.stripeOf[part.from + index] as Stripe;
      stripe.givePlace(place, this.#epochs[this.#stripes.indexOf(stripe)] as number);
    }
  }

  #refOf(column: number): ColumnRef {
    const generation = this.core.map.generation(this.path[column] as Node);
    return { index: column, tenantTag: this.tenantTag, generation };
  }

  #askPlace(sink: { place(column: ColumnRef): number | undefined }, column: number): number | undefined {
    const place = sink.place(this.#refOf(column));
    return place === undefined ? undefined : checkPlace(place, this.core.settings.places);
  }

  /** Hands one column to the sink. Answers false where the sink has no room for it. */
  #deliver(sink: PieceSink, column: number, place: number): boolean | Promise<boolean> {
    const stripe = this.stripeOf[column] as Stripe;
    // It is there already.
    if (stripe.placedByRuntime) return true;
    const ref = this.#refOf(column);
    const pieces = stripe.pieces(place);
    if ('read' in sink) {
      const read = sink.read(ref, pieces);
      return read === undefined ? true : read.then(() => true);
    }
    if ('place' in sink) {
      const target = this.#askPlace(sink, column);
      if (target === undefined) return false;
      for (const [shard, bytes] of stripe.runtimePieces(target).entries())
        copyPiece(bytes, pieces[shard] as Uint8Array);
      return true;
    }
    for (const [shard, piece] of pieces.entries()) {
      const target = sink.locate(ref, shard);
      checkLength(target, piece, shard);
      copyPiece(target, piece);
    }
    return true;
  }
}
