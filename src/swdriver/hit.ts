import type { Clock } from '../common/clock.js';
import { localError } from '../common/errors.js';
import { copyPiece } from '../links/copy_piece.js';
import { Opcode, Status } from '../proto/generated.js';
import type { Accounting } from './accounting/accounting.js';
import type { MissCause, MissTally } from './accounting/miss_cause.js';
import type { DriverStats } from './driver_stats.js';
import type { Group } from './model.js';
import type { Node, PrefixMap } from './prefix_map.js';
import { type ColumnRef, checkLength, checkPlace, type PieceSink } from './runtime.js';
import type { Stripe } from './stripe.js';
import type { BatchOutcome, StripeGroup } from './stripe_group.js';
import type { Tenant } from './tenant.js';
import type { WindowParts } from './window_parts.js';

/** Columns of one group that have been fetched: from `from`, below `end`, with their places. */
interface Part {
  group: number;
  from: number;
  end: number;
  /** Columns below this one may be read. */
  usable: number;
  places: number[];
  /** All of it may be read. */
  complete: boolean;
}

/** Columns of one group, of the `to` that are wanted, from `from`, below `end`, with their places. `full`: the runtime has no more of its own. */
interface Claimed {
  group: number;
  from: number;
  end: number;
  places: number[];
  full: boolean;
}

const QUIET: Promise<void> = Promise.resolve();
const nothingFrom = (group: number, from: number): Part => ({
  group,
  from,
  end: from,
  usable: from,
  places: [],
  complete: false,
});

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
  readonly accounting: Accounting;
  readonly settings: {
    readonly deadlineMs: number;
    /** Places of the runtime's memory for each group. */
    readonly places: readonly number[];
    readonly groups: readonly Group[];
  };
  /** Groups that do not keep whole prefixes, by number. */
  readonly windowGroups: readonly number[];
  /** Which columns have a part of such a group, on the stripe of a column. */
  windowOf(node: Node, group: number): WindowParts;
  /** The longest beginning of a path, of at most `columns`, that has all that required groups need. */
  usableColumns(path: readonly Node[], columns: number): number;
  /** The runtime has got parts of a group. */
  countRefilled(group: number, parts: number): void;
  /** How many of the first `columns` of a path a group can serve that is not required. */
  coveredColumns(path: readonly Node[], columns: number, group: number): number;
  /** Throws KVSS_BAD_INPUT where a sink does not fit the memory of the runtime. */
  checkEnds(sink: PieceSink): void;
  /** Takes a column and what continues it out of the map. */
  remove(node: Node): number;
  /** The hit has been released. */
  forgetHit(hit: Hit): void;
}

/** How much of a refill is still under way, or may still be. */
interface Budget {
  /** Milliseconds left, of all groups and parts together. The sink's own time does not count. */
  leftMs: number;
}

/** How a refill ended. */
export interface RefillResult {
  /**
   * Columns of the prefix that the runtime can go on from: the sink has got all that every required group needs of them.
   * What it was given behind them is void.
   */
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
  /** Columns of windows and optional groups whose parts are held, until the pin ends. */
  #windowsHeld: { readonly group: number; readonly from: number; readonly end: number }[] = [];
  /** Columns that optional groups can serve, by group. */
  readonly #covered = new Map<number, number>();
  /** Stripes that hold columns of the path, and their epochs when it was matched. */
  readonly #stripes: Stripe[] = [];
  readonly #epochs: number[] = [];

  /** @internal */
  constructor(
    private readonly core: HitHost,
    private readonly tenant: Tenant,
    private readonly path: readonly Node[],
    private readonly serials: readonly number[],
    /** The stripe of each column of the path: later on a node may be another column's. */
    private readonly stripeOf: readonly Stripe[],
    /** @internal Columns that are stored in the groups that keep whole prefixes, which may be more than can be used. */
    readonly wholeColumns: number,
    /** @internal Clock time at which the pin ends by itself. */
    readonly pinDeadline: number,
    private readonly tally: MissTally,
  ) {
    for (const stripe of stripeOf) {
      if (this.#stripes.includes(stripe)) continue;
      this.#stripes.push(stripe);
      this.#epochs.push(stripe.epoch);
    }
    this.#holdWindows(path.length);
  }

  /** Columns of the prefix. */
  get columns(): number {
    return this.path.length;
  }

  /** Tokens of the prefix, a whole number of columns. */
  get tokens(): number {
    return this.columns * this.core.map.columnTokens;
  }

  /**
   * Tokens of the prefix that a group can serve: all of them if it is required. An optional group may have less, a window
   * all or nothing. Throws KVSS_BAD_INPUT for a group that the model has not got.
   */
  tokensOf(group: string): number {
    const { groups } = this.core.settings;
    const index = groups.findIndex(({ name }) => name === group);
    if (index < 0) throw localError('KVSS_BAD_INPUT', `group: the model has no group '${group}'`);
    return (this.#covered.get(index) ?? this.columns) * this.core.map.columnTokens;
  }

  /**
   * Tokens of the prompt that were not hit, by cause; with those of the hit they are the whole prompt. For operators:
   * `otherTenant` tells a tenant what others have.
   */
  get missed(): Readonly<Record<MissCause, number>> {
    return this.tally.toJSON();
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
   * Hands the pieces of the prefix to the runtime: one group after the other, those that see all tokens first, each in
   * order; of a sliding window only the columns that overlap it. Ends early, without an error, where a column turns out to
   * be gone: its shard died, or the deadline passed. `deadlineMs`: in place of the driver's. Rejects with what the sink throws, and
   * with KVSS_BAD_INPUT for a sink that does not fit the runtime's memory.
   */
  async refill(sink: PieceSink, options: { deadlineMs?: number } = {}): Promise<RefillResult> {
    const { core } = this;
    core.checkEnds(sink);
    // The pin stays until the reading ends, also where the caller releases meanwhile.
    this.#refills += 1;
    const started = performance.now();
    try {
      const transfers = new Transfers();
      const budget = { leftMs: options.deadlineMs ?? core.settings.deadlineMs };
      const columns = await this.#refillGroups(sink, budget, transfers);
      core.stats.columnsRefilled += columns;
      core.stats.refillMisses += this.columns - columns;
      core.accounting.refilled(this.tenant.account, columns, this.columns - columns, performance.now() - started);
      return { columns, tokens: columns * core.map.columnTokens, quiet: transfers.quiet };
    } finally {
      this.#refills -= 1;
      if (!this.#held && this.#refills === 0) this.#unpin();
    }
  }

  /** Refills all groups, and answers how many columns the runtime can use. */
  async #refillGroups(sink: PieceSink, budget: Budget, transfers: Transfers): Promise<number> {
    let whole = await this.#refillWhole(this.columns, sink, budget, transfers);
    let columns = whole;
    if (this.core.windowGroups.length === 0) return columns;
    while (columns > 0) {
      if (columns < this.columns) columns = this.#holdWindows(this.core.usableColumns(this.path, this.#sound(columns)));
      if (columns < whole && this.core.settings.groups[0]?.windowColumns !== Number.POSITIVE_INFINITY) {
        // A model that has only windows: those of a shorter prefix begin before what the sink has got.
        whole = await this.#refillWhole(columns, sink, budget, transfers);
        if (whole < columns) {
          columns = whole;
          continue;
        }
      }
      const reached = await this.#refillWindows(columns, sink, budget, transfers);
      if (reached === columns) break;
      columns = reached;
    }
    return columns;
  }

  /** Refills the groups that keep whole prefixes. Answers how many of the columns the sink can go on from. */
  async #refillWhole(most: number, sink: PieceSink, budget: Budget, transfers: Transfers): Promise<number> {
    const { groups } = this.core.settings;
    let columns = most;
    for (let group = 0; group < groups.length && groups[group]?.keepsAll; group += 1) {
      if (groups[group]?.internal) continue;
      for (;;) {
        const from = Math.max(0, columns - (groups[group] as Group).windowColumns);
        const reached = await this.#refillGroup(group, from, columns, sink, budget, transfers);
        const complete = reached === columns;
        columns = reached;
        // A shorter prefix of a model that has only windows needs columns before those that the sink has got.
        if (complete || from === 0) break;
      }
    }
    return columns;
  }

  /** Refills what windows and optional groups have of the last of so many columns. Answers fewer where some are missing. */
  async #refillWindows(columns: number, sink: PieceSink, budget: Budget, transfers: Transfers): Promise<number> {
    const { windowGroups, settings } = this.core;
    for (const group of windowGroups) {
      const { windowColumns, required } = settings.groups[group] as Group;
      const end = required ? columns : Math.min(columns, this.#covered.get(group) ?? 0);
      const from = Math.max(0, end - windowColumns);
      const reached = await this.#refillGroup(group, from, end, sink, budget, transfers);
      if (reached === end) continue;
      if (required) return reached;
      this.#covered.set(group, windowColumns === Number.POSITIVE_INFINITY ? reached : 0);
    }
    return columns;
  }

  /** Refills columns `from` to `to` of one group. Answers up to which column the sink has got them. */
  async #refillGroup(
    group: number,
    from: number,
    to: number,
    sink: PieceSink,
    budget: Budget,
    transfers: Transfers,
  ): Promise<number> {
    const { clock } = this.core;
    if (from >= to || budget.leftMs <= 0) return from;
    let done = from;
    // While the runtime reads one part of the prefix the next one is on its way.
    let next: Promise<Part> | undefined = this.#fetch(group, from, to, budget.leftMs, sink, transfers);
    try {
      while (next) {
        const asked = clock.now();
        const part: Part = await next;
        next = undefined;
        budget.leftMs -= clock.now() - asked;
        if (part.complete && part.end < to && budget.leftMs > 0) {
          next = this.#fetch(group, part.end, to, budget.leftMs, sink, transfers);
          // Awaited after the delivery; until then a sink that threw must not look like nobody cared.
          next.catch(() => {});
        }
        const delivered = this.#deliverAll(sink, part, part.from);
        done += typeof delivered === 'number' ? delivered : await delivered;
        if (done < part.end) break;
      }
    } finally {
      // Also where the sink threw, or stopped early.
      if (next) this.#giveBack(await next);
      this.core.countRefilled(group, done - from);
    }
    return done;
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
    for (const { group, from, end } of this.#windowsHeld.splice(0)) {
      for (let column = from; column < end; column += 1) {
        // Where the column has gone the pin has gone with it.
        if (!this.#current(column)) continue;
        const node = this.path[column] as Node;
        this.core.windowOf(node, group).unpin(node);
      }
    }
    const last = this.path.length - 1;
    if (last >= 0) this.core.map.unpin(this.path[last] as Node, this.serials[last] as number);
  }

  /** The first of so many columns that are still what they were: the map is closed under prefixes. */
  #sound(columns: number): number {
    let sound = columns;
    while (sound > 0 && !this.#current(sound - 1)) sound -= 1;
    return sound;
  }

  /**
   * Holds the parts of windows and optional groups that a prefix of so many columns needs, besides those that are held
   * already: another refill may be reading those. Answers the number of columns.
   */
  #holdWindows(columns: number): number {
    const { core, path } = this;
    if (core.windowGroups.length === 0 || !this.#pinned) return columns;
    for (const group of core.windowGroups) {
      const { windowColumns, required } = core.settings.groups[group] as Group;
      const end = required ? columns : core.coveredColumns(path, columns, group);
      if (!required) this.#covered.set(group, end);
      const from = Math.max(0, end - windowColumns);
      if (from < end) this.#windowsHeld.push({ group, from, end });
      for (let column = from; column < end; column += 1) {
        const parts = core.windowOf(path[column] as Node, group);
        parts.pin(path[column] as Node);
        if (windowColumns !== Number.POSITIVE_INFINITY) parts.use(path[column] as Node);
      }
    }
    return columns;
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
  async #fetch(
    group: number,
    from: number,
    to: number,
    deadlineMs: number,
    sink: PieceSink,
    transfers: Transfers,
  ): Promise<Part> {
    if (!this.#held) return nothingFrom(group, from);
    const claimed = this.#claimPlaces(group, from, to, sink);
    const { end, places } = claimed;
    if (places.length === 0) {
      // Another part, of this hit or another, has all the places: wait for one.
      const owner = this.#ownerOf(from, group);
      if (!this.#current(from) || !owner.usable || owner.placedByRuntime) return nothingFrom(group, from);
      const started = this.core.clock.now();
      await owner.placeFreed(deadlineMs);
      const left = deadlineMs - (this.core.clock.now() - started);
      return left > 0 ? this.#fetch(group, from, to, left, sink, transfers) : nothingFrom(group, from);
    }
    // Most hits lie on one stripe.
    const outcomes =
      this.#stripes.length === 1
        ? await this.#ask(this.#stripes[0]?.groups[group] as StripeGroup, claimed, undefined, deadlineMs, transfers)
        : await this.#askAll(claimed, deadlineMs, transfers);
    const firstMiss = firstNotOk(outcomes);
    if (firstMiss < 0) return { group, from, end, usable: end, places, complete: !claimed.full };
    const status = outcomes[firstMiss] as Status;
    const column = from + firstMiss;
    // The shard has not got what the map promised: the map is wrong there, so it forgets.
    const lost = status === Status.missEmpty || status === Status.missOverwritten || status === Status.missTenant;
    if (lost && this.#current(column)) this.core.remove(this.path[column] as Node);
    return { group, from, end, usable: column, places, complete: false };
  }

  /** Has one stripe refill these of the claimed columns, counted from the first of them; all where none are named. */
  #ask(
    owner: StripeGroup,
    { group, from, end, places }: Claimed,
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
      slots[item] = map.slot(node, group);
      generations[item] = map.generation(node, group);
      targets[item] = places[index] as number;
    }
    return owner.run({
      opcode: Opcode.refill,
      flags: 0,
      slots,
      places: targets,
      generations,
      tenantTag: this.tenant.tag,
      deadlineMs,
      // While a later part is on its way the runtime reads the one before.
      awaited: from === 0 || end === this.columns,
      onQuiet: owner.placedByRuntime ? transfers.begin() : undefined,
    });
  }

  /** Has every stripe refill its own of the claimed columns. */
  async #askAll(claimed: Claimed, deadlineMs: number, transfers: Transfers): Promise<BatchOutcome> {
    const { group, from, end } = claimed;
    const outcomes = new Uint16Array(end - from).fill(Status.cancelled);
    const asked = this.#stripes.map(async (stripe) => {
      const mine: number[] = [];
      for (let column = from; column < end; column += 1) {
        if (this.stripeOf[column] === stripe) mine.push(column - from);
      }
      if (mine.length === 0) return;
      const outcome = await this.#ask(stripe.groups[group] as StripeGroup, claimed, mine, deadlineMs, transfers);
      for (const [item, index] of mine.entries()) outcomes[index] = outcome[item] as number;
    });
    await Promise.all(asked);
    return outcomes;
  }

  /**
   * Places for columns from `from` on. Half of them at most, so that the part before can still be read.
   */
  #claimPlaces(group: number, from: number, to: number, sink: PieceSink): Claimed {
    const places: number[] = [];
    let end = from;
    let full = false;
    for (; end < to && this.#current(end); end += 1) {
      const owner = this.#ownerOf(end, group);
      if (places.length > 0 && places.length >= owner.placeCount / 2) break;
      const byRuntime = owner.placedByRuntime && 'place' in sink;
      const place = byRuntime
        ? this.#askPlace(sink, end, group)
        : owner.takePlace(this.core.map.slot(this.path[end] as Node, group));
      if (place === undefined) {
        full = byRuntime;
        break;
      }
      places.push(place);
    }
    return { group, from, end, places, full };
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
        const finished = this.#deliver(sink, column, part.group, part.places[column - part.from] as number);
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
      const epoch = this.#epochs[this.#stripes.indexOf(stripe)] as number;
      (stripe.groups[part.group] as StripeGroup).givePlace(place, epoch);
    }
  }

  #ownerOf(column: number, group: number): StripeGroup {
    return (this.stripeOf[column] as Stripe).groups[group] as StripeGroup;
  }

  #refOf(column: number, group: number): ColumnRef {
    const { map, settings } = this.core;
    const generation = map.generation(this.path[column] as Node, group);
    return { index: column, group: (settings.groups[group] as Group).name, tenantTag: this.tenant.tag, generation };
  }

  #askPlace(sink: { place(column: ColumnRef): number | undefined }, column: number, group: number): number | undefined {
    const place = sink.place(this.#refOf(column, group));
    return place === undefined ? undefined : checkPlace(place, this.core.settings.places[group] as number);
  }

  /** Hands one column to the sink. Answers false where the sink has no room for it. */
  #deliver(sink: PieceSink, column: number, group: number, place: number): boolean | Promise<boolean> {
    const owner = this.#ownerOf(column, group);
    // It is there already.
    if (owner.placedByRuntime) return true;
    const ref = this.#refOf(column, group);
    const pieces = owner.pieces(place);
    if ('read' in sink) {
      const read = sink.read(ref, pieces);
      return read === undefined ? true : read.then(() => true);
    }
    if ('place' in sink) {
      const target = this.#askPlace(sink, column, group);
      if (target === undefined) return false;
      for (const [shard, bytes] of owner.runtimePieces(target).entries()) {
        const piece = pieces[shard] as Uint8Array;
        if (piece.length > 0) copyPiece(bytes, piece);
      }
      return true;
    }
    for (const [shard, piece] of pieces.entries()) {
      // A shard without layers of the group.
      if (piece.length === 0) continue;
      const target = sink.locate(ref, shard);
      checkLength(target, piece, shard);
      copyPiece(target, piece);
    }
    return true;
  }
}
