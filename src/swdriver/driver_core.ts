import type { Clock } from '../common/clock.js';
import type { Connector, DaemonConnection, SlotTable } from '../links/link.js';
import { DescriptorFlag, Opcode } from '../proto/generated.js';
import { Accounting } from './accounting/accounting.js';
import { publish } from './accounting/channels.js';
import type { ColumnState } from './accounting/column_history.js';
import { MissTally } from './accounting/miss_cause.js';
import { hashText, type PromptFingerprints } from './accounting/prompt_fingerprints.js';
import { ColumnLedger } from './column_ledger.js';
import { type ColumnRecord, ColumnRecords, type RecordedPart } from './column_records.js';
import { type DriverStats, type GroupStats, noStats } from './driver_stats.js';
import type { EvictionPolicy } from './eviction_policy.js';
import { Expiry } from './expiry.js';
import { Hit, type HitHost } from './hit.js';
import type { Group } from './model.js';
import { NONE, type Node, PrefixMap } from './prefix_map.js';
import { checkEnds, type PieceSink, type PieceSource } from './runtime.js';
import { Stripe, type StripeSettings } from './stripe.js';
import type { StripeGroup } from './stripe_group.js';
import type { Tenant } from './tenant.js';
import { WindowParts } from './window_parts.js';

export interface DriverCoreSettings {
  readonly columnTokens: number;
  /** Those that keep whole prefixes first. */
  readonly groups: readonly Group[];
  readonly policy: EvictionPolicy;
  /** Whether tenants above an equal share make room for those below theirs. */
  readonly fairShares: boolean;
  readonly deadlineMs: number;
  readonly pinDeadlineMs: number;
  /** Places in the memory of the runtime or its carrier, for each group; 0 where it has none. */
  readonly places: readonly number[];
  readonly stripes: readonly StripeSettings[];
  readonly hashBits?: number;
  readonly hashSeed?: number;
  /** Id of the model, for figures. */
  readonly model: string;
  /** Longest that an expired column stays after its time, in milliseconds, before the shards are told to scrub it. */
  readonly expiryTickMs: number;
  /** How records of columns are written, where the driver keeps any. */
  readonly records: ColumnRecords | undefined;
  /** Milliseconds since 1970: what is written down outlives the driver's clock. */
  readonly wallNow: () => number;
}

/** Why columns go. */
export type Reason = Exclude<ColumnState, 'stored'> | 'forgotten';

/** How often it is asked which tenant has most before it is looked for again. */
const LOOKS_FOR_ONE_SEARCH = 64;

/** What a sequence asks of the map. */
export interface Lookup {
  readonly tenant: Tenant;
  /** Root of its namespace. */
  readonly root: Node;
  readonly tokens: Uint32Array;
  /** What the columns hold besides tokens, by number. */
  readonly contents: Uint32Array | undefined;
  /** Where the fingerprints of the prompt's columns are written, two numbers each. */
  readonly fingerprints: PromptFingerprints;
  /** Columns from this one on are not stored, because a policy or the caller does not want it. */
  readonly storeColumns: number;
  /** Columns up to this one go last. */
  readonly protectColumns: number;
}

/** Room for a new column: a slot in each group that keeps whole prefixes. */
export interface Room {
  readonly stripe: Stripe;
  readonly slots: readonly number[];
}

/** A stripe that has come back with what an earlier driver left there. */
export interface ReturnedStripe {
  readonly stripe: Stripe;
  /** Its epoch then. */
  readonly epoch: number;
  /** What the slots of each group hold, shard by shard. */
  readonly slots: readonly (readonly SlotTable[])[];
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
  readonly accounting: Accounting;
  readonly ledger = new ColumnLedger();
  onStripeChange: (stripe: Stripe, up: boolean, reason: string) => void = () => {};
  /** A connection to a daemon has been made, and nothing has been stored over it as yet. */
  onConnection: (address: string, connection: DaemonConnection) => void = () => {};
  #map: PrefixMap;
  /** Parts of the groups that do not keep whole prefixes, by stripe and group. */
  readonly #windows: (WindowParts | undefined)[][];
  /** Numbers of those groups; those that a hit needs, and those that it can do without. */
  readonly #windowGroups: readonly number[];
  readonly #requiredWindows: readonly number[];
  readonly #wholeGroups: number;
  /** Number of the group that holds the driver's records of columns; -1 without any. */
  readonly recordGroup: number;
  /** Bytes of a column in the groups that keep whole prefixes. */
  readonly #wholeBytes: number;
  readonly #expiry: Expiry;
  /** Tenants by the negated root of a namespace. */
  readonly #tenants: (Tenant | undefined)[] = [];
  /** Bytes of all tenants, and how many of them have any. */
  #storedBytes = 0;
  #owners = 0;
  #largest: Tenant | undefined;
  #looksLeft = 0;
  /** Adapters likewise. */
  readonly #adapters: string[] = [];
  #generation = 0;
  /** Pinned hits in the order of their deadlines, which is the order of their making. */
  readonly #hits = new Set<Hit>();
  #cancelSweep: (() => void) | undefined;
  /** The driver leaves, and the next one is to find what there is. */
  #parking = false;

  constructor(
    readonly settings: DriverCoreSettings,
    connect: Connector,
    readonly clock: Clock,
  ) {
    this.#map = this.#emptyMap(0);
    const { groups } = settings;
    this.#wholeGroups = groups.filter(({ keepsAll }) => keepsAll).length;
    this.recordGroup = groups.findIndex(({ internal }) => internal);
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
    this.#wholeBytes = this.#columnBytes.slice(0, this.#wholeGroups).reduce((sum, bytes) => sum + bytes, 0);
    this.accounting = new Accounting(settings.model, settings.columnTokens);
    this.#expiry = new Expiry(clock, settings.expiryTickMs, {
      expiryOf: (node, serial) => this.#expiryOf(node, serial),
      expire: (nodes) => this.#expire(nodes),
    });
    this.stripes = settings.stripes.map(
      (stripe, index) =>
        new Stripe(index, stripe, connect, clock, {
          up: (which) => this.#stripeUp(which),
          down: (which, reason) => this.#stripeDown(which, reason),
          connected: (address, connection) => this.onConnection(address, connection),
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
      Math.min(...this.settings.places.filter((_, group) => group !== this.recordGroup)),
      this.stripes.some((stripe) => stripe.groups.some((group) => group.placedByRuntime)),
    );
  }

  /** The longest usable prefix of a prompt, pinned. */
  match(lookup: Lookup): Hit {
    const { map, stats, ledger, accounting } = this;
    const { tenant, tokens } = lookup;
    const started = performance.now();
    const now = this.clock.now();
    const path: Node[] = [];
    // What is stored of a tenant whose policies are not known must not be served: it may have expired.
    if (!tenant.policy.noStore) {
      map.walk(lookup.root, tokens, 0, Math.floor(tenant.policy.storeUpTo / map.columnTokens), path, lookup.contents);
    }
    const serials: number[] = [];
    const stripeOf: Stripe[] = [];
    const { expires } = tenant;
    let expired: Node = NONE;
    for (const node of path) {
      const stripe = this.#stripeOf(node);
      // A stripe that is about to go takes no refills any more.
      if (!stripe.usable) break;
      if (expires && tenant.expiryOf(ledger.storedAt(node), ledger.usedAt(node)) <= now) {
        expired = node;
        break;
      }
      stripeOf.push(stripe);
      serials.push(map.serial(node));
    }
    const whole = stripeOf.length;
    const columns = this.usableColumns(path, whole);
    const missed = this.#account(lookup, path, whole, columns, expired);
    path.length = columns;
    serials.length = columns;
    stripeOf.length = columns;
    const last = path.at(-1);
    const protect = Math.min(columns, lookup.protectColumns);
    for (let column = 0; column < protect; column += 1) map.protect(path[column] as Node);
    if (last !== undefined) {
      map.touch(last);
      ledger.use(path, columns, now);
      // Only leaves are ever evicted, so this pin holds the whole path.
      map.pin(last);
    }
    if (expired !== NONE) this.#expire([expired]);
    const hitTokens = columns * map.columnTokens;
    stats.lookups += 1;
    stats.promptTokens += tokens.length;
    stats.hitTokens += hitTokens;
    const hit = new Hit(this, tenant, path, serials, stripeOf, whole, now + this.settings.pinDeadlineMs, missed);
    this.#hits.add(hit);
    this.#sweepLater();
    accounting.matched(tenant.account, tokens.length, hitTokens, columns, missed, performance.now() - started);
    return hit;
  }

  /** Why the columns behind a hit were missed. Writes the fingerprints of all columns. */
  #account(lookup: Lookup, path: readonly Node[], whole: number, columns: number, expired: Node): MissTally {
    const { ledger, accounting, map } = this;
    const { fingerprints, tokens, tenant, root, storeColumns } = lookup;
    const { columnTokens } = map;
    const full = Math.floor(tokens.length / columnTokens);
    fingerprints.reserve(full);
    for (let column = 0; column < path.length; column += 1) {
      const node = path[column] as Node;
      fingerprints.set(column, ledger.low(node), ledger.high(node));
    }
    fingerprints.extend(accounting.fingerprint, tokens, columnTokens, path.length, full);
    accounting.curve.recordPrompt(-root, fingerprints.halves, full, tokens.length / columnTokens);
    const missed = new MissTally();
    missed.add('partial', tokens.length - full * columnTokens);
    if (tenant.policy.noStore) {
      missed.add('policy', full * columnTokens);
      return missed;
    }
    missed.add('groupMissing', (whole - columns) * columnTokens);
    let from = whole;
    if (expired !== NONE) {
      missed.add('expired', (path.length - whole) * columnTokens);
      from = path.length;
    }
    const kept = Math.max(from, Math.min(full, storeColumns));
    missed.add('policy', (full - kept) * columnTokens);
    if (from < kept) accounting.history.explain(fingerprints.halves, from, kept, -root, columnTokens, missed);
    return missed;
  }

  /** A tenant has a namespace. */
  adopt(tenant: Tenant, namespace: string, adapter: string): Node {
    const root = this.#map.root(namespace);
    if (this.#tenants[-root] === undefined) {
      this.#tenants[-root] = tenant;
      this.#adapters[-root] = adapter;
      tenant.roots.push(root);
    }
    return root;
  }

  /** A tenant's policy is another one: what it does not allow any more goes. */
  policyChanged(tenant: Tenant): void {
    const { policy } = tenant;
    if (policy.pending) return;
    const columns = policy.noStore ? 0 : Math.floor(policy.storeUpTo / this.settings.columnTokens);
    for (const root of tenant.roots) {
      if (columns !== Number.POSITIVE_INFINITY) this.#eraseFrom(root, columns);
      if (tenant.expires) this.#below(root, (node) => this.#expiry.watch(node, this.#map.serial(node)));
    }
    this.enforceQuota(tenant);
  }

  /** Remembers that columns of a prompt were not stored because their tenant has its quota, if that is so. */
  noteQuota(tenant: Tenant, root: Node, fingerprints: PromptFingerprints, from: number, to: number): void {
    if (tenant.storedBytes + this.#wholeBytes <= tenant.policy.quotaBytes) return;
    const { history } = this.accounting;
    for (let column = from; column < to; column += 1) {
      history.note(fingerprints.low(column), fingerprints.high(column), -root, 'refused');
    }
  }

  /** Makes room until a tenant has no more than it may. */
  enforceQuota(tenant: Tenant): void {
    while (tenant.storedBytes > tenant.policy.quotaBytes && this.#evictFrom(tenant));
  }

  /** A column has been entered in the map, with its parts. */
  entered(node: Node, root: Node, low: number, high: number): void {
    this.ledger.enter(node, root, low, high, this.clock.now());
    for (let group = 0; group < this.#columnBytes.length; group += 1) {
      if (this.#map.hasPart(node, group)) this.#charge(node, group, 1);
    }
  }

  /** A part has been added to a column that is in the map. */
  partAdded(node: Node, group: number): void {
    this.#charge(node, group, 1);
  }

  /** A column has been published. `isNew`: it has been stored now, and not by an earlier driver. */
  published(node: Node, isNew = true): void {
    const { ledger } = this;
    const root = ledger.root(node);
    this.accounting.history.note(ledger.low(node), ledger.high(node), -root, 'stored');
    const tenant = this.#tenants[-root];
    if (!tenant) return;
    if (isNew) tenant.account.columnsEvicted += 1;
    if (tenant.expires) this.#expiry.watch(node, this.#map.serial(node));
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

  /**
   * Room for one column of a tenant: free slots, or those of the column that the policy likes least; of the tenant's own
   * where it has its quota.
   */
  claimRoom(tenant: Tenant): Room | undefined {
    while (tenant.storedBytes + this.#wholeBytes > tenant.policy.quotaBytes) {
      if (!this.#evictFrom(tenant)) return undefined;
    }
    for (;;) {
      const stripe = this.#roomiestStripe();
      if (!stripe) return undefined;
      if (stripe.freeSlots > 0) return { stripe, slots: this.#takeSlots(stripe) };
      if (this.settings.fairShares && this.#evictFairly(tenant)) continue;
      // The victim's slots come back through #discard, unless something in flight still touches them.
      if (this.#map.evictLeaf((node) => this.#discard(node, 'evicted')) === NONE) return undefined;
      this.stats.columnsDeleted += 1;
    }
  }

  /**
   * Has the tenant make room that has most, where that is above an equal share; a tenant that is above its own makes room
   * for itself. Answers false where the policy may as well decide.
   */
  #evictFairly(tenant: Tenant): boolean {
    const share = this.#storedBytes / (this.#owners + (tenant.storedBytes === 0 ? 1 : 0));
    if (tenant.storedBytes > share) return this.#evictFrom(tenant, 'evicted');
    const largest = this.#largestTenant();
    return largest !== undefined && largest.storedBytes > share && this.#evictFrom(largest, 'evicted');
  }

  /** The tenant that has most, or had when it was looked for last: that takes time, and changes slowly. */
  #largestTenant(): Tenant | undefined {
    if (this.#looksLeft > 0) {
      this.#looksLeft -= 1;
      return this.#largest;
    }
    this.#looksLeft = LOOKS_FOR_ONE_SEARCH;
    this.#largest = undefined;
    for (const each of this.#tenants) {
      if (each && each.storedBytes > (this.#largest?.storedBytes ?? 0)) this.#largest = each;
    }
    return this.#largest;
  }

  /** Has the column of a tenant make room that the policy likes least. Answers false where all are pinned. */
  #evictFrom(tenant: Tenant, reason: Reason = 'refused'): boolean {
    // The policy ranks the columns of one namespace; between those of the adapters of a tenant the last use decides.
    let first: Node = NONE;
    let usedAt = Number.POSITIVE_INFINITY;
    for (const root of tenant.roots) {
      const victim = this.#map.victim(root);
      if (victim === NONE || this.ledger.usedAt(victim) >= usedAt) continue;
      first = root;
      usedAt = this.ledger.usedAt(victim);
    }
    if (first === NONE) return false;
    this.#map.evictLeaf((node) => this.#discard(node, reason), first);
    this.stats.columnsDeleted += 1;
    return true;
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
   * does, and takes only what is free itself and not about to be needed; at the tenant's quota its own columns make room, as
   * in claimRoom. `claimed`: groups of parts that the column has besides, and that are not counted for the tenant as yet.
   */
  claimWindowSlot(
    tenant: Tenant,
    stripe: Stripe,
    group: number,
    needed: boolean,
    claimed: readonly { readonly group: number }[],
  ): number | undefined {
    const { quotaBytes } = tenant.policy;
    const bytes = claimed.reduce(
      (sum, part) => sum + (this.#columnBytes[part.group] as number),
      this.#columnBytes[group] as number,
    );
    // What never fits must not cost the tenant anything.
    if (bytes > quotaBytes) return undefined;
    while (tenant.storedBytes + bytes > quotaBytes) {
      if (!needed || !this.#evictFrom(tenant)) return undefined;
    }
    const owner = stripe.groups[group] as StripeGroup;
    const parts = this.#windows[stripe.index]?.[group] as WindowParts;
    const { windowColumns } = this.settings.groups[group] as Group;
    // What is still being stored cannot make room: an evict must not take with its first columns what the window where its
    // prompt parted from others, and the one at its end, will need.
    const reserve = owner.capacity < stripe.capacity ? 2 * windowColumns : 0;
    if (!needed && owner.freeSlots <= reserve) return undefined;
    for (;;) {
      const slot = owner.takeSlot();
      if (slot !== undefined) return slot;
      const { victim } = parts;
      if (victim === NONE) return undefined;
      // Of a group that sees all tokens the last columns go first: without those before them they are of no use.
      this.dropPart(
        windowColumns === Number.POSITIVE_INFINITY ? this.#lastWithPart(victim, group, parts) : victim,
        group,
      );
      (this.groupStats[group] as GroupStats).partsDropped += 1;
    }
  }

  /** The last column that continues one with parts of a group that may go. */
  #lastWithPart(node: Node, group: number, parts: WindowParts): Node {
    for (let last = node; ; ) {
      const next = this.#map.children(last).find((child) => this.#map.hasPart(child, group) && parts.mayGo(child));
      if (next === undefined) return last;
      last = next;
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
    const record = this.#recordInPlace(node);
    if (record) ColumnRecords.strikePart(record, group);
    this.#charge(node, group, -1);
    this.#map.dropPart(node, group);
    (stripe.groups[group] as StripeGroup).giveSlot(this.#map.slot(node, group));
  }

  /** The next generation: higher than any that a slot has had. */
  nextGeneration(): number {
    this.#generation += 1;
    return this.#generation;
  }

  /** Takes a column and what continues it out of the map, because a shard has not got it. Nothing is asked of the shards. */
  remove(node: Node): number {
    let removed = 0;
    this.#map.remove(node, (gone) => {
      removed += 1;
      this.#discard(gone, 'lost');
    });
    return removed;
  }

  /**
   * Takes a column and what continues it out of the map at once, and has the shards overwrite the pieces with zeros.
   * Resolves with the number of columns when they have, or when the deadline has passed.
   */
  async erase(node: Node, reason: Reason): Promise<number> {
    const { map } = this;
    const doomed = new Map<StripeGroup, { slots: number[]; generations: number[] }>();
    let removed = 0;
    map.remove(node, (gone) => {
      const stripe = this.#stripeOf(gone);
      this.#remember(gone, reason);
      for (const [index, group] of stripe.groups.entries()) {
        if (!map.hasPart(gone, index)) continue;
        this.#charge(gone, index, -1);
        this.#windows[stripe.index]?.[index]?.remove(gone);
        const list = doomed.get(group) ?? { slots: [], generations: [] };
        list.slots.push(map.slot(gone, index));
        list.generations.push(map.generation(gone, index));
        doomed.set(group, list);
      }
      removed += 1;
    });
    if (reason === 'expired') this.stats.columnsExpired += removed;
    else this.stats.columnsDeleted += removed;
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

  /**
   * Takes every column of a tenant out of the map and has it scrubbed. Nothing is remembered of them. Resolves with their
   * number when that is done, or when the deadline has passed.
   */
  async forget(tenant: Tenant): Promise<number> {
    const erased = tenant.roots.flatMap((root) =>
      this.#map.children(root).map((node) => this.erase(node, 'forgotten')),
    );
    for (const root of tenant.roots) this.accounting.history.forgetOwner(-root);
    return (await Promise.all(erased)).reduce((sum, count) => sum + count, 0);
  }

  /** Erases all columns of a namespace that lie behind the first `columns` of their prefixes. */
  #eraseFrom(root: Node, columns: number): void {
    let level = this.#map.children(root);
    for (let depth = 0; depth < columns && level.length > 0; depth += 1) {
      level = level.flatMap((node) => this.#map.children(node));
    }
    for (const node of level) this.erase(node, 'refused');
  }

  /** Visits every column of a namespace. */
  #below(root: Node, visit: (node: Node) => void): void {
    const rest = this.#map.children(root);
    for (let node = rest.pop(); node !== undefined; node = rest.pop()) {
      visit(node);
      for (const child of this.#map.children(node)) rest.push(child);
    }
  }

  #expiryOf(node: Node, serial: number): number {
    const { ledger } = this;
    const tenant = this.#tenants[-ledger.root(node)];
    if (!tenant || !this.#map.isCurrent(node, serial)) return Number.POSITIVE_INFINITY;
    return tenant.expiryOf(ledger.storedAt(node), ledger.usedAt(node));
  }

  /** The time of these columns is over, and with it that of what continues them. */
  #expire(nodes: readonly Node[]): void {
    const serials = nodes.map((node) => this.#map.serial(node));
    for (const [index, node] of nodes.entries()) {
      // One may have gone with another.
      if (!this.#map.isCurrent(node, serials[index] as number)) continue;
      const tenant = this.#tenants[-this.ledger.root(node)];
      const before = this.stats.columnsExpired;
      this.erase(node, 'expired');
      const columns = this.stats.columnsExpired - before;
      if (!tenant) continue;
      tenant.account.columnsExpired += columns;
      const { tenantClass } = tenant.account;
      publish('kvss:expire', () => ({ model: this.settings.model, tenantClass, columns }));
    }
  }

  /** Counts the bytes of a part for the tenant of its column, or no more. */
  #charge(node: Node, group: number, sign: 1 | -1): void {
    const tenant = this.#tenants[-this.ledger.root(node)];
    if (!tenant) return;
    const bytes = sign * (this.#columnBytes[group] as number);
    if (tenant.storedBytes === 0) this.#owners += 1;
    tenant.storedBytes += bytes;
    this.#storedBytes += bytes;
    if (tenant.storedBytes === 0) this.#owners -= 1;
  }

  /** The record of a column, where it lies in memory of this process. */
  #recordInPlace(node: Node): Uint8Array | undefined {
    const group = this.recordGroup;
    if (group < 0 || this.#parking || !this.#map.hasPart(node, group)) return undefined;
    return this.#stripeOf(node).groups[group]?.slotInPlace(this.#map.slot(node, group));
  }

  /** A column goes: strikes its record out, and remembers why, for lookups that will miss it. */
  #remember(node: Node, reason: Reason): void {
    const { ledger, accounting } = this;
    const record = this.#recordInPlace(node);
    // Before its slots can be written again: whoever finds the record must not believe that they hold the column.
    if (record) ColumnRecords.strike(record);
    // What was never to be found has not been lost to anybody.
    if (!this.#map.isStored(node)) return;
    const owner = -ledger.root(node);
    if (reason === 'forgotten') accounting.history.forget(ledger.low(node), ledger.high(node), owner);
    else accounting.history.note(ledger.low(node), ledger.high(node), owner, reason);
    const tenant = this.#tenants[owner];
    if (tenant && reason !== 'expired' && reason !== 'lost') tenant.account.columnsDeleted += 1;
  }

  /** Writes the record of a column that is in the map. */
  writeRecord(
    piece: Uint8Array,
    slot: number,
    node: Node,
    index: number,
    tokens: Uint32Array,
    spelling: string,
    parts: readonly RecordedPart[],
  ): void {
    const { map, ledger } = this;
    const tenant = this.#tenants[-ledger.root(node)];
    if (!tenant) return;
    const parent = map.parent(node);
    this.settings.records?.write(piece, map.stripe(node), slot, {
      isolationId: tenant.isolationId,
      adapter: this.#adapters[-ledger.root(node)] ?? '',
      index,
      generation: map.generation(node),
      parentGeneration: map.isRoot(parent) ? 0 : map.generation(parent),
      storedAtMs: this.settings.wallNow(),
      tokens,
      spelling,
      parts: parts.filter(({ group }) => group !== this.recordGroup),
    });
  }

  /**
   * Enters what is left of an earlier driver in the map: columns with a record that is sound and that agrees with what the
   * shards say of their slots, in every group that every column needs, and that continue another such column, on whichever
   * stripe. What has gone down meanwhile counts for nothing. `place`: who a record belongs to.
   */
  async recover(
    returned: readonly ReturnedStripe[],
    place: (record: ColumnRecord) => { tenant: Tenant; root: Node; extra: number } | undefined,
  ): Promise<{ columns: number; doubtful: number }> {
    const { map } = this;
    const all = await Promise.all(
      returned.map(async (from) => ({ from, ...(await this.#readRecords(from.stripe, from.slots[this.recordGroup])) })),
    );
    // Slots of a stripe that has fallen since are somebody else's by now.
    const found = all.filter(({ from }) => from.stripe.epoch === from.epoch);
    const held = found.reduce((sum, each) => sum + each.held, 0);
    const records = found.flatMap(({ from, records: some }) => some.map((each) => ({ ...each, from })));
    // What a column continues was stored before it.
    records.sort((a, b) => a.record.generation - b.record.generation);
    const nodes = new Map<number, Node>();
    const kept = new Map(found.map(({ from }) => [from, from.stripe.groups.map(() => new Set<number>())]));
    let columns = 0;
    for (const { record, slot, from } of records) {
      const { generation, parentGeneration, index, tokens, spelling } = record;
      const taken = kept.get(from) as Set<number>[];
      const owner = place(record);
      const parent = parentGeneration === 0 ? owner?.root : nodes.get(parentGeneration);
      if (!owner || parent === undefined || (parentGeneration === 0) !== (index === 0)) continue;
      if (!map.isRoot(parent) && this.ledger.root(parent) !== owner.root) continue;
      const parts = soundParts(record, from.slots, owner.tenant.tag, taken);
      if (!parts || !this.#coversWhole(parts)) continue;
      const existing = map.child(parent, tokens, 0, map.contents.find(spelling));
      if (existing !== NONE) {
        // Stored twice, and both are whole: what continues either continues the one that is there.
        nodes.set(generation, existing);
        continue;
      }
      if (map.size >= map.capacity) break;
      const each = [...parts, { group: this.recordGroup, slot }];
      const first = each.find(({ group }) => group === 0) as RecordedPart;
      const node = map.insert(parent, tokens, 0, from.stripe.index, first.slot, generation, spelling);
      for (const part of each) {
        if (part.group !== 0) map.addPart(node, part.group, part.slot, generation);
        taken[part.group]?.add(part.slot);
      }
      this.#enterRecovered(node, parent, owner, record);
      nodes.set(generation, node);
      columns += 1;
    }
    for (const [{ stripe, slots }, taken] of kept) {
      for (const [group, used] of taken.entries()) stripe.groups[group]?.keep(used);
      this.#strikeOthers(stripe, slots[this.recordGroup], taken[this.recordGroup] as Set<number>);
    }
    for (const table of returned.flatMap(({ slots }) => slots.flat()))
      for (const each of table.generations) this.#generation = Math.max(this.#generation, each);
    return { columns, doubtful: held - columns };
  }

  /** Strikes out, in place, the records that are not kept: slots that they name are free, and will be written over. */
  #strikeOthers(stripe: Stripe, [table]: readonly SlotTable[] = [], kept: ReadonlySet<number>): void {
    const group = stripe.groups[this.recordGroup];
    for (let slot = 0; slot < (table?.holds.length ?? 0); slot += 1) {
      if (table?.holds[slot] !== 1 || kept.has(slot)) continue;
      const record = group?.slotInPlace(slot);
      if (record) ColumnRecords.strike(record);
    }
  }

  #enterRecovered(
    node: Node,
    parent: Node,
    { root, extra }: { root: Node; extra: number },
    { tokens, spelling, storedAtMs }: ColumnRecord,
  ): void {
    const { map, ledger, accounting, settings } = this;
    const [low, high] = map.isRoot(parent) ? [0, 0] : [ledger.low(parent), ledger.high(parent)];
    const halves = new Uint32Array(2);
    accounting.fingerprint.chain(low, high, tokens, 0, tokens.length, extra ^ hashText(spelling), halves);
    this.entered(node, root, halves[0] as number, halves[1] as number);
    // A clock that was set back must not make a column younger than it is.
    const ageMs = Math.max(0, settings.wallNow() - storedAtMs);
    ledger.backdate(node, this.clock.now() - ageMs);
    for (const group of this.#windowGroups) {
      if (!map.hasPart(node, group)) continue;
      map.confirmPart(node, group);
      this.windowOf(node, group).add(node, true);
    }
    map.publish(node);
    this.published(node, false);
  }

  /** Whether parts are there of all groups that every column needs, but for the record itself. */
  #coversWhole(parts: readonly RecordedPart[]): boolean {
    for (let group = 0; group < this.#wholeGroups; group += 1) {
      if (group !== this.recordGroup && !parts.some((part) => part.group === group)) return false;
    }
    return true;
  }

  /** All records that can be read. `held`: slots that hold something. */
  async #readRecords(
    stripe: Stripe,
    [table]: readonly SlotTable[] = [],
  ): Promise<{ records: { record: ColumnRecord; slot: number }[]; held: number }> {
    const records: { record: ColumnRecord; slot: number }[] = [];
    const group = stripe.groups[this.recordGroup];
    const codec = this.settings.records;
    let held = 0;
    if (!table || !group || !codec) return { records, held };
    const byTag = new Map<bigint, number[]>();
    for (let slot = 0; slot < table.holds.length; slot += 1) {
      if (table.holds[slot] !== 1) continue;
      held += 1;
      const tag = table.tenantTags[slot] as bigint;
      const list = byTag.get(tag);
      if (list) list.push(slot);
      else byTag.set(tag, [slot]);
    }
    for (const [tag, slots] of byTag) {
      await group.readSlots(slots, table.generations, tag, this.settings.deadlineMs, (slot, [piece]) => {
        const record = piece && codec.read(piece, stripe.index, slot, table.generations[slot] as number);
        if (record) records.push({ record, slot });
      });
    }
    return { records, held };
  }

  close(park = false): void {
    // Columns that continue those of a stripe that has been closed are to be found again all the same.
    this.#parking = park;
    this.#cancelSweep?.();
    this.#expiry.close();
    for (const stripe of this.stripes) stripe.close(park);
  }

  #discard(node: Node, reason: Reason): void {
    this.#remember(node, reason);
    const { groups, index } = this.#stripeOf(node);
    const map = this.#map;
    for (let group = 0; group < groups.length; group += 1) {
      if (!map.hasPart(node, group)) continue;
      this.#windows[index]?.[group]?.remove(node);
      this.#charge(node, group, -1);
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
    const { columnTokens, policy, hashBits, hashSeed, groups } = this.settings;
    return new PrefixMap({
      capacity,
      columnTokens,
      policy,
      groups: groups.length,
      ...(hashBits === undefined ? {} : { hashBits }),
      ...(hashSeed === undefined ? {} : { hashSeed }),
    });
  }

  #stripeUp(stripe: Stripe): void {
    const capacity = this.stripes.reduce((sum, each) => sum + each.capacity, 0);
    if (capacity > this.#map.capacity) {
      this.#map.grow(capacity);
      for (const parts of this.#windows.flat()) parts?.grow(capacity);
      this.ledger.grow(capacity);
      this.#expiry.grow(capacity);
      this.accounting.grow(capacity);
    }
    this.onStripeChange(stripe, true, '');
  }

  #stripeDown(stripe: Stripe, reason: string): void {
    // Its slots are no more; those of other stripes are still good.
    for (const parts of this.#windows[stripe.index] ?? []) parts?.clear();
    this.#map.removeStripe(stripe.index, (node) => {
      this.stats.columnsLost += 1;
      // Columns of other stripes that continued lost ones.
      if (this.#map.stripe(node) !== stripe.index) {
        this.#discard(node, 'lost');
      } else {
        this.#remember(node, 'lost');
        for (const group of stripe.groups.keys()) if (this.#map.hasPart(node, group)) this.#charge(node, group, -1);
      }
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

/**
 * Parts of a recorded column of which the shards say that they hold them: of this generation and this tenant, and nobody
 * else's. Undefined where two records claim one slot.
 */
function soundParts(
  { parts, generation }: ColumnRecord,
  slots: readonly (readonly SlotTable[])[],
  tag: bigint,
  taken: readonly ReadonlySet<number>[],
): RecordedPart[] | undefined {
  const sound: RecordedPart[] = [];
  for (const part of parts) {
    const tables = slots[part.group];
    if (!tables || taken[part.group]?.has(part.slot)) return undefined;
    const holds = tables.every(
      (table) =>
        table.holds[part.slot] === 1 &&
        table.generations[part.slot] === generation &&
        table.tenantTags[part.slot] === tag,
    );
    if (holds) sound.push(part);
  }
  return sound;
}

/** Whether a hit needs parts of a group that not every column has. */
function needsWindow(group: Group): boolean {
  return group.required && !group.keepsAll;
}
