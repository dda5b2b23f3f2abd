import type { Clock } from '../common/clock.js';
import type { Connector } from '../links/link.js';
import { DescriptorFlag, Opcode } from '../proto/generated.js';
import { type DriverStats, noStats } from './driver_stats.js';
import type { EvictionPolicy } from './eviction_policy.js';
import { Hit, type HitHost } from './hit.js';
import { NONE, type Node, PrefixMap } from './prefix_map.js';
import { checkEnds, type PieceSink, type PieceSource } from './runtime.js';
import { Stripe, type StripeSettings } from './stripe.js';

export interface DriverCoreSettings {
  readonly columnTokens: number;
  readonly policy: EvictionPolicy;
  readonly deadlineMs: number;
  readonly pinDeadlineMs: number;
  /** Places in the memory of the runtime or its carrier; 0 where it has none. */
  readonly places: number;
  readonly stripes: readonly StripeSettings[];
  readonly hashBits?: number;
  readonly hashSeed?: number;
}

/**
 * The state of a driver: the map, the stripes and the pins, and the rules that tie them. Has no promises of its own
 * to keep and no idea of a sequence; time and links come in from outside.
 */
export class DriverCore implements HitHost {
  readonly stripes: readonly Stripe[];
  readonly stats: DriverStats = noStats();
  onStripeChange: (stripe: Stripe, up: boolean, reason: string) => void = () => {};
  #map: PrefixMap;
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
      this.settings.places,
      this.stripes.some((stripe) => stripe.placedByRuntime),
    );
  }

  /** The longest stored prefix of `tokens` in a namespace, pinned. */
  match(namespace: string, tenantTag: bigint, tokens: Uint32Array): Hit {
    const { map, stats } = this;
    const path: Node[] = [];
    map.walk(map.root(namespace), tokens, 0, Number.POSITIVE_INFINITY, path);
    const serials: number[] = [];
    const stripeOf: Stripe[] = [];
    for (const node of path) {
      const stripe = this.#stripeOf(node);
      // A stripe that is about to go takes no refills any more.
      if (!stripe.usable) break;
      stripeOf.push(stripe);
      serials.push(map.serial(node));
    }
    const columns = stripeOf.length;
    path.length = columns;
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
    const hit = new Hit(this, tenantTag, path, serials, stripeOf, columns * map.columnTokens, pinDeadline);
    this.#hits.add(hit);
    this.#sweepLater();
    return hit;
  }

  /** @internal The hit has been released. */
  forgetHit(hit: Hit): void {
    this.#hits.delete(hit);
  }

  /** Room for one column: a free slot, or the slot of the column that the policy likes least. */
  claimSlot(): { stripe: Stripe; slot: number } | undefined {
    for (;;) {
      const stripe = this.#roomiestStripe();
      const slot = stripe?.takeSlot();
      if (stripe && slot !== undefined) return { stripe, slot };
      // The victim's slot comes back through #discard, unless something in flight still touches it.
      if (!stripe || this.#map.evictLeaf((node) => this.#discard(node)) === NONE) return undefined;
      this.stats.columnsDeleted += 1;
    }
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
    const doomed = new Map<Stripe, { slots: number[]; generations: number[] }>();
    let removed = 0;
    map.remove(node, (gone) => {
      const stripe = this.#stripeOf(gone);
      const list = doomed.get(stripe) ?? { slots: [], generations: [] };
      list.slots.push(map.slot(gone));
      list.generations.push(map.generation(gone));
      doomed.set(stripe, list);
      removed += 1;
    });
    this.stats.columnsDeleted += removed;
    await Promise.all(
      [...doomed].map(([stripe, { slots, generations }]) => {
        const finished = stripe.run({
          opcode: Opcode.delete,
          flags: DescriptorFlag.scrub,
          slots: Uint32Array.from(slots),
          places: new Uint32Array(0),
          generations: Float64Array.from(generations),
          tenantTag: 0n,
          deadlineMs: this.settings.deadlineMs,
        });
        // In flight now, so they come back to the free list only once they have been scrubbed.
        for (const slot of slots) stripe.giveSlot(slot);
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
    this.#stripeOf(node).giveSlot(this.#map.slot(node));
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
    const { columnTokens, policy, hashBits, hashSeed } = this.settings;
    return new PrefixMap({
      capacity,
      columnTokens,
      policy,
      ...(hashBits === undefined ? {} : { hashBits }),
      ...(hashSeed === undefined ? {} : { hashSeed }),
    });
  }

  #stripeUp(stripe: Stripe): void {
    const capacity = this.stripes.reduce((sum, each) => sum + each.capacity, 0);
    if (capacity > this.#map.capacity) this.#map.grow(capacity);
    this.onStripeChange(stripe, true, '');
  }

  #stripeDown(stripe: Stripe, reason: string): void {
    this.#map.removeStripe(stripe.index, (node) => {
      this.stats.columnsLost += 1;
      // Columns of other stripes that continued lost ones: their slots are still good.
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
