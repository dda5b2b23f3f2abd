import type { Clock } from '../common/clock.js';
import type { Connector } from '../links/link.js';
import { DescriptorFlag, Opcode } from '../proto/generated.js';
import { type DriverStats, type GroupStats, noStats } from './driver_stats.js';
import type { EvictionPolicy } from './eviction_policy.js';
import { Hit, type HitHost } from './hit.js';
import type { Group } from './model.js';
import { NONE, type Node, PrefixMap } from './prefix_map.js';
import { checkEnds, type PieceSink, type PieceSource } from './runtime.js';
import { Stripe, type StripeSettings } from './stripe.js';
import type { StripeGroup } from './stripe_group.js';
import { WindowParts } from './window_parts.js';

export interface DriverCoreSettings {
  readonly columnTokens: number;
  /** Those that keep whole prefixes first. */
  readonly groups: readonly Group[];
  readonly policy: EvictionPolicy;
  readonly deadlineMs: number;
  readonly pinDeadlineMs: number;
  /** Places in the memory of the runtime or its carrier, for each group; 0 where it has none. */
  readonly places: readonly number[];
  readonly stripes: readonly StripeSettings[];
  readonly hashBits?: number;
}

/** Room for a new column: a slot in each group that keeps whole prefixes. */
export interface Room {
  readonly stripe: Stripe;
  readonly slots: readonly number[];
}

/**
 * The state of a driver: the map, the stripes and the pins, and the rules that tie them. Has no promises of its own
 * to keep and no idea of a sequence; time and links come in from outside.
 */
export class DriverCore implements HitHost {
  readonly stripes: readonly Stripe[];
  readonly stats: DriverStats = noStats();
  readonly groupStats: readonly GroupStats[];
  readonly #columnBytes: readonly number[];
  onStripeChange: (stripe: Stripe, up: boolean, reason: string) => void = () => {};
  #map: PrefixMap;
  /** Parts of the groups that do not keep whole prefixes, by stripe and group. */
  readonly #windows: (WindowParts | undefined)[][];
  /** Numbers of those groups; those that a hit needs, and those that it can do without. */
  readonly #windowGroups: readonly number[];
  readonly #requiredWindows: readonly number[];
  readonly #wholeGroups: number;
  #generation = 0;
  /** Pinned hits in the order of their deadlines, which is the order of their making. */
  readonly #hits = new Set<Hit>();
  #cancelSweep: (() => void) | undefined;

  constructor(
    readonly settings: DriverCoreSettings,
    connect: Connector,
    readonly clock: Clock,
  ) {
    this.#map = this.#emptyMap(0);
    const { groups } = settings;
    this.#wholeGroups = groups.filter(({ keepsAll }) => keepsAll).length;
    this.#windowGroups = [...groups.keys()].slice(this.#wholeGroups);
    this.#requiredWindows = [...groups.keys()].filter((index) => needsWindow(groups[index] as Group));
    this.groupStats = groups.map(({ name }) => ({
      name,
      partsEvicted: 0,
      partsRefilled: 0,
      partsDropped: 0,
      bytesEvicted: 0,
      bytesRefilled: 0,
    }));
    this.#columnBytes = groups.map(({ pieceBytes }) => pieceBytes.reduce((sum, bytes) => sum + bytes, 0));
    this.#windows = settings.stripes.map(() =>
      groups.map((_, index) => (index < this.#wholeGroups ? undefined : new WindowParts(0))),
    );
    this.stripes = settings.stripes.map(
      (stripe, index) =>
        new Stripe(index, stripe, connect, clock, {
          up: (which) => this.#stripeUp(which),
          down: (which, reason) => this.#stripeDown(which, reason),
        }),
    );
  }

  get map(): PrefixMap {
    return this.#map;
  }

  /** Throws KVSS_BAD_INPUT where a source or a sink does not fit the memory that the runtime has told us of. */
  checkEnds(ends: PieceSource | PieceSink): void {
    checkEnds(
      ends,
      Math.min(...this.settings.places),
      this.stripes.some((stripe) => stripe.groups.some((group) => group.placedByRuntime)),
    );
  }

  /**
   * The longest usable prefix of `tokens` in a namespace, pinned. `contents`: what its columns hold besides tokens.
   */
  match(namespace: string, tenantTag: bigint, tokens: Uint32Array, contents?: Uint32Array): Hit {
    const { map, stats } = this;
    const path: Node[] = [];
    map.walk(map.root(namespace), tokens, 0, Number.POSITIVE_INFINITY, path, contents);
    const serials: number[] = [];
    const stripeOf: Stripe[] = [];
    for (const node of path) {
      const stripe = this.#stripeOf(node);
      // A stripe that is about to go takes no refills any more.
      if (!stripe.usable) break;
      stripeOf.push(stripe);
      serials.push(map.serial(node));
    }
    const whole = stripeOf.length;
    const columns = this.usableColumns(path, whole);
    path.length = columns;
    serials.length = columns;
    stripeOf.length = columns;
    const last = path.at(-1);
    if (last !== undefined) {
      map.touch(last);
      // Only leaves are ever evicted, so this pin holds the whole path.
      map.pin(last);
    }
    stats.lookups += 1;
    stats.promptTokens += tokens.length;
    stats.hitTokens += columns * map.columnTokens;
    const pinDeadline = this.clock.now() + this.settings.pinDeadlineMs;
    const hit = new Hit(this, tenantTag, path, serials, stripeOf, whole, pinDeadline);
    this.#hits.add(hit);
    this.#sweepLater();
    return hit;
  }

  /**
   * Of a path of stored columns the longest beginning, of at most `columns`, that has all that the required groups need: the
   * parts of the last columns for each window.
   */
  usableColumns(path: readonly Node[], columns: number): number {
    const windows = this.#requiredWindows;
    if (windows.length === 0) return columns;
    const { groups } = this.settings;
    // Columns without a gap, up to the one that is being looked at.
    const run = windows.map(() => 0);
    let usable = 0;
    for (let column = 0; column < columns; column += 1) {
      let enough = true;
      for (let index = 0; index < windows.length; index += 1) {
        const group = windows[index] as number;
        run[index] = this.#map.partStored(path[column] as Node, group) ? (run[index] as number) + 1 : 0;
        if ((run[index] as number) < Math.min(column + 1, (groups[group] as Group).windowColumns)) enough = false;
      }
      if (enough) usable = column + 1;
    }
    return usable;
  }

  /** How many of the first `columns` of a path a group that is not required can serve: a window serves all or none. */
  coveredColumns(path: readonly Node[], columns: number, group: number): number {
    const { windowColumns } = this.settings.groups[group] as Group;
    const from = Math.max(0, columns - windowColumns);
    for (let column = from; column < columns; column += 1) {
      if (!this.#map.partStored(path[column] as Node, group))
        return windowColumns === Number.POSITIVE_INFINITY ? column : 0;
    }
    return columns;
  }

  /** Groups that do not keep whole prefixes, by number. */
  get windowGroups(): readonly number[] {
    return this.#windowGroups;
  }

  /** The parts of such a group on a column's stripe. */
  windowOf(node: Node, group: number): WindowParts {
    return this.#windows[this.#map.stripe(node)]?.[group] as WindowParts;
  }

  /** @internal The hit has been released. */
  forgetHit(hit: Hit): void {
    this.#hits.delete(hit);
  }

  /** Room for one column: free slots, or those of the column that the policy likes least. */
  claimRoom(): Room | undefined {
    for (;;) {
      const stripe = this.#roomiestStripe();
      if (!stripe) return undefined;
      if (stripe.freeSlots > 0) return { stripe, slots: this.#takeSlots(stripe) };
      // The victim's slots come back through #discard, unless something in flight still touches them.
      if (this.#map.evictLeaf((node) => this.#discard(node)) === NONE) return undefined;
      this.stats.columnsDeleted += 1;
    }
  }

  #takeSlots(stripe: Stripe): number[] {
    const slots: number[] = [];
    for (let group = 0; group < this.#wholeGroups; group += 1) {
      slots.push((stripe.groups[group] as StripeGroup).takeSlot() as number);
    }
    return slots;
  }

  /**
   * A slot for the part of a group that does not keep whole prefixes. What no prompt has needed yet makes room for what one
   * does, and takes only what is free itself and not about to be needed.
   */
  claimWindowSlot(stripe: Stripe, group: number, needed: boolean): number | undefined {
    const owner = stripe.groups[group] as StripeGroup;
    const parts = this.#windows[stripe.index]?.[group] as WindowParts;
    // What is still being stored cannot make room: an evict must not take with its first columns what the window where its
    // prompt parted from others, and the one at its end, will need.
    const reserve = owner.capacity < stripe.capacity ? 2 * (this.settings.groups[group] as Group).windowColumns : 0;
    if (!needed && owner.freeSlots <= reserve) return undefined;
    for (;;) {
      const slot = owner.takeSlot();
      if (slot !== undefined) return slot;
      const { victim } = parts;
      if (victim === NONE) return undefined;
      this.dropPart(victim, group);
      (this.groupStats[group] as GroupStats).partsDropped += 1;
    }
  }

  /** Parts of a group have been stored. */
  countEvicted(group: number, parts: number): void {
    const stats = this.groupStats[group] as GroupStats;
    stats.partsEvicted += parts;
    stats.bytesEvicted += parts * (this.#columnBytes[group] as number);
  }

  /** The runtime has got parts of a group. */
  countRefilled(group: number, parts: number): void {
    const stats = this.groupStats[group] as GroupStats;
    stats.partsRefilled += parts;
    stats.bytesRefilled += parts * (this.#columnBytes[group] as number);
  }

  /** Takes the part of one group away from a column, and gives its slot back. */
  dropPart(node: Node, group: number): void {
    const stripe = this.#stripeOf(node);
    this.#windows[stripe.index]?.[group]?.remove(node);
    this.#map.dropPart(node, group);
    (stripe.groups[group] as StripeGroup).giveSlot(this.#map.slot(node, group));
  }

  /** The next generation: higher than any that a slot has had. */
  nextGeneration(): number {
    this.#generation += 1;
    return this.#generation;
  }

  /** Takes a column and what continues it out of the map. Nothing is asked of the shards. */
  remove(node: Node): number {
    let removed = 0;
    this.#map.remove(node, (gone) => {
      removed += 1;
      this.#discard(gone);
    });
    return removed;
  }

  /**
   * Takes a column and what continues it out of the map at once, and has the shards overwrite the pieces with zeros.
   * Resolves with the number of columns when they have, or when the deadline has passed.
   */
  async erase(node: Node): Promise<number> {
    const { map } = this;
    const doomed = new Map<StripeGroup, { slots: number[]; generations: number[] }>();
    let removed = 0;
    map.remove(node, (gone) => {
      const stripe = this.#stripeOf(gone);
      for (const [index, group] of stripe.groups.entries()) {
        if (!map.hasPart(gone, index)) continue;
        this.#windows[stripe.index]?.[index]?.remove(gone);
        const list = doomed.get(group) ?? { slots: [], generations: [] };
        list.slots.push(map.slot(gone, index));
        list.generations.push(map.generation(gone, index));
        doomed.set(group, list);
      }
      removed += 1;
    });
    this.stats.columnsDeleted += removed;
    await Promise.all(
      [...doomed].map(([group, { slots, generations }]) => {
        const finished = group.run({
          opcode: Opcode.delete,
          flags: DescriptorFlag.scrub,
          slots: Uint32Array.from(slots),
          places: new Uint32Array(0),
          generations: Float64Array.from(generations),
          tenantTag: 0n,
          deadlineMs: this.settings.deadlineMs,
        });
        // In flight now, so they come back to the free list only once they have been scrubbed.
        for (const slot of slots) group.giveSlot(slot);
        return finished;
      }),
    );
    return removed;
  }

  close(): void {
    this.#cancelSweep?.();
    for (const stripe of this.stripes) stripe.close();
  }

  #discard(node: Node): void {
    const { groups, index } = this.#stripeOf(node);
    const map = this.#map;
    for (let group = 0; group < groups.length; group += 1) {
      if (!map.hasPart(node, group)) continue;
      this.#windows[index]?.[group]?.remove(node);
      (groups[group] as StripeGroup).giveSlot(map.slot(node, group));
    }
  }

  #stripeOf(node: Node): Stripe {
    return this.stripes[this.#map.stripe(node)] as Stripe;
  }

  #roomiestStripe(): Stripe | undefined {
    let best: Stripe | undefined;
    for (const stripe of this.stripes) {
      if (stripe.usable && (!best || stripe.freeSlots > best.freeSlots)) best = stripe;
    }
    return best;
  }

  #emptyMap(capacity: number): PrefixMap {
    const { columnTokens, policy, hashBits, groups } = this.settings;
    return new PrefixMap({
      capacity,
      columnTokens,
      policy,
      groups: groups.length,
      ...(hashBits === undefined ? {} : { hashBits }),
    });
  }

  #stripeUp(stripe: Stripe): void {
    const capacity = this.stripes.reduce((sum, each) => sum + each.capacity, 0);
    if (capacity > this.#map.capacity) {
      this.#map.grow(capacity);
      for (const parts of this.#windows.flat()) parts?.grow(capacity);
    }
    this.onStripeChange(stripe, true, '');
  }

  #stripeDown(stripe: Stripe, reason: string): void {
    // Its slots are no more; those of other stripes are still good.
    for (const parts of this.#windows[stripe.index] ?? []) parts?.clear();
    this.#map.removeStripe(stripe.index, (node) => {
      this.stats.columnsLost += 1;
      // Columns of other stripes that continued lost ones.
      if (this.#map.stripe(node) !== stripe.index) this.#discard(node);
    });
    this.onStripeChange(stripe, false, reason);
  }

  #sweepLater(): void {
    if (this.#cancelSweep) return;
    const [first] = this.#hits;
    if (!first) return;
    this.#cancelSweep = this.clock.schedule(Math.max(0, first.pinDeadline - this.clock.now()), () => {
      this.#cancelSweep = undefined;
      const now = this.clock.now();
      for (const hit of this.#hits) {
        if (hit.pinDeadline > now) break;
        this.#hits.delete(hit);
        hit.expire();
      }
      this.#sweepLater();
    });
  }
}

/** Whether a hit needs parts of a group that not every column has. */
function needsWindow(group: Group): boolean {
  return group.required && !group.keepsAll;
}
