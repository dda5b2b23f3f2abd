import { vi } from 'vitest';
import type { TenantPolicy } from '../../src/common/tenant_policy.js';
import { Status } from '../../src/proto/generated.js';
import type { ContentSpan } from '../../src/swdriver/contents.js';
import type { Hit, RefillResult } from '../../src/swdriver/hit.js';
import type { ModelGroup } from '../../src/swdriver/model.js';
import { PrefixMap } from '../../src/swdriver/prefix_map.js';
import type { ColumnMemory, ColumnRef, PieceSink, PieceSource } from '../../src/swdriver/runtime.js';
import type { EvictResult, Sequence } from '../../src/swdriver/sequence.js';
import { Stripe } from '../../src/swdriver/stripe.js';
import { type GroupInfo, SwDriver, type SwDriverOptions } from '../../src/swdriver/sw_driver.js';
import { ManualClock, settled } from './manual_clock.js';
import { SimulatedBox, type SimulatedDaemon } from './simulated_link.js';
import { sameBytes, stampOf } from './stamp.js';
import { travelling } from './travelling_link.js';
import { RuntimeFault, range } from './world.js';

export const COLUMN_TOKENS = 2;
const RUNTIME_PLACES = 24;
/** More than any of these models needs; grants of several groups leave room for pages. */
const PLENTY_BYTES = 2 ** 26;

/** A box and a driver on it, for a model of groups. */
export interface GroupsWorldOptions {
  readonly groups: readonly ModelGroup[];
  /** Stripes, each on a daemon of its own (`within`), or one stripe over daemons of one shard each (`across`). */
  readonly striping?: 'across' | 'within';
  readonly stripes?: number;
  readonly capacityColumns: number;
  /** Places for bytes on their way, where slots are not memory of the runtime's process. In place if left out. */
  readonly places?: number;
  /** The runtime has memory of its own. */
  readonly memory?: boolean;
  readonly ringEntries?: number;
  readonly deadlineMs?: number;
  readonly pinDeadlineMs?: number;
  /** Shards that finish everything as it comes. */
  readonly immediate?: boolean;
  readonly more?: Partial<SwDriverOptions>;
}

/** How a runtime takes columns and gives them. `place` where it has memory, and only that where bytes travel from there. */
export type Kind = 'now' | 'later' | 'locate' | 'place';
/**
 * What goes wrong in an evict: the runtime has no windows before some column any more, or at some column nothing at all,
 * or it throws there.
 */
export type SourceFault = 'none' | 'lacksWindows' | 'lacks' | 'throws';

/** A span as tests write it: what the digest is of, is a number. */
export interface Span {
  readonly offset: number;
  readonly length: number;
  readonly content: number;
}

/** A sequence with what the test knows of it. */
export interface TrackedSequence {
  readonly sequence: Sequence;
  readonly tenant: string;
  readonly adapter: string;
  /** Verified tokens. */
  tokens: number[];
  proposed: number[];
  /** Spans, with offsets from the beginning of the sequence. */
  spans: Span[];
  /** Keys of columns that have been full of verified tokens of this sequence. */
  readonly verified: Set<string>;
  evicting: number;
  closed: boolean;
}

interface View {
  readonly pieces: readonly Uint8Array[];
  readonly expected: readonly Uint8Array[];
}

/** A part of a column that a sink has got. */
interface Shown {
  readonly index: number;
  readonly view: View;
  /** Whether all of it was right until the sink was through with it. */
  right: boolean;
}

export interface TrackedHit {
  readonly hit: Hit;
  readonly owner: TrackedSequence;
  readonly tokens: readonly number[];
  readonly spans: readonly Span[];
  readonly deadline: number;
  released: boolean;
  refilling: number;
  /** Something happened that may end the pin: a shard went or lost something, the tenant was forgotten, the clock jumped. */
  mayBeVoid: boolean;
  /** What refills have shown in place, by group and column. */
  readonly views: Map<string, View>;
}

/** A part that the runtime was asked for. */
interface Asked {
  readonly owner: TrackedSequence;
  /** Its tokens waited for a verdict then. */
  readonly ahead: boolean;
}

/** Time that may jump: timers do not jump along. */
class JumpingClock extends ManualClock {
  #jumped = 0;

  override now(): number {
    return super.now() + this.#jumped;
  }

  override jump(ms: number): void {
    this.#jumped += ms;
  }
}

/** What has been given back may be had by somebody else. */
class Places {
  readonly #free = range(RUNTIME_PLACES, 0);

  take(): number | undefined {
    return this.#free.pop();
  }

  give(places: readonly number[]): void {
    this.#free.push(...places);
  }
}

/**
 * A driver of a model of groups over simulated shards, beside an oracle that has no cache: it knows what every sequence
 * had the runtime asked for, which tokens were verified, and what bytes every part of a column must have.
 */
export class GroupsWorld {
  readonly sequences: TrackedSequence[] = [];
  readonly hits: TrackedHit[] = [];
  readonly pending = new Set<Promise<unknown>>();
  /** Continuations of runtimes that were asked to take their time. */
  readonly waitingRuntimes: (() => void)[] = [];
  readonly faults: string[] = [];
  /** What the oracle has looked at, so that nobody takes a run in which nothing happens for a good one. */
  readonly seen = {
    parts: 0,
    windowParts: 0,
    optionalParts: 0,
    shorter: 0,
    ahead: 0,
    published: 0,
    spans: 0,
    expiring: 0,
  };
  /** Parts that the runtime was asked for, by key of their column and group, then by generation. */
  readonly #asked = new Map<string, Map<number, Asked>>();
  readonly #columnOf = new Map<number, string>();
  readonly #tags = new Map<bigint, string>();
  readonly #places: ReadonlyMap<string, Places>;
  #hasLost = false;
  readonly #policies = new Map<string, TenantPolicy>();
  /** When a column was stored at the latest, and when a prompt last hit it, by its key. */
  readonly #storedAt = new Map<string, number>();
  readonly #usedAt = new Map<string, number>();

  private constructor(
    readonly options: GroupsWorldOptions,
    readonly clock: JumpingClock,
    readonly box: SimulatedBox,
    readonly driver: SwDriver,
    readonly stripes: readonly Stripe[],
    readonly map: PrefixMap,
    readonly memory: Readonly<Record<string, ColumnMemory>> | undefined,
  ) {
    this.#places = new Map(driver.groups.map(({ name }) => [name, new Places()]));
    // A stream that says nothing for long is given up, also where nothing else has happened.
    driver.on('down', () => this.#endPins(() => true));
  }

  static async create(options: GroupsWorldOptions): Promise<GroupsWorld> {
    const { groups, striping = 'across', stripes = 1, places, memory: hasMemory } = options;
    const clock = new JumpingClock();
    const budgets = groups[0]?.bytesPerToken.map(() => PLENTY_BYTES) ?? [];
    const box = new SimulatedBox(
      clock,
      striping === 'within' ? Array.from({ length: stripes }, () => budgets) : budgets.map((budget) => [budget]),
    );
    for (const daemon of box.daemons) daemon.immediate = options.immediate ?? false;
    const opened = vi.spyOn(Stripe.prototype, 'open');
    const grown = vi.spyOn(PrefixMap.prototype, 'grow');
    const memory = hasMemory ? memoryFor(groups) : undefined;
    try {
      const driver = await SwDriver.connect({
        daemons: box.addresses,
        model: { id: 'model', revision: 'r1', dtype: 'bf16', layout: 'plain', groups, columnTokens: COLUMN_TOKENS },
        striping,
        capacityColumns: options.capacityColumns,
        ringEntries: options.ringEntries ?? 64,
        deadlineMs: options.deadlineMs ?? 100,
        pinDeadlineMs: options.pinDeadlineMs ?? 1_000,
        connector: places === undefined ? box.connector : travelling(box, places),
        clock,
        ...(memory ? { memory } : {}),
        ...options.more,
      });
      const [map] = grown.mock.contexts as PrefixMap[];
      return new GroupsWorld(
        options,
        clock,
        box,
        driver,
        [...new Set(opened.mock.contexts as Stripe[])],
        map as PrefixMap,
        memory,
      );
    } finally {
      opened.mockRestore();
      grown.mockRestore();
    }
  }

  daemon(index = 0): SimulatedDaemon {
    return this.box.daemon(index);
  }

  /** Whether the runtime's own memory is what bytes travel from and to. */
  get placedByRuntime(): boolean {
    return this.memory !== undefined && this.options.places !== undefined;
  }

  // ---- what a runtime does ---------------------------------------------------------------------------------------

  open(
    tenant: string,
    tokens: readonly number[],
    { adapter = '', spans = [] }: { adapter?: string; spans?: readonly Span[] } = {},
  ): { owner: TrackedSequence; hit: TrackedHit } {
    const owner = this.sequence(tenant, adapter);
    return { owner, hit: this.match(owner, tokens, spans) };
  }

  sequence(tenant: string, adapter = ''): TrackedSequence {
    const sequence = this.driver.openSequence({ isolationId: tenant, adapter });
    const owner: TrackedSequence = {
      ...{ sequence, tenant, adapter },
      ...{ tokens: [], proposed: [], spans: [], verified: new Set(), evicting: 0, closed: false },
    };
    this.sequences.push(owner);
    return owner;
  }

  match(owner: TrackedSequence, tokens: readonly number[], spans: readonly Span[] = []): TrackedHit {
    const known = this.knownColumns(owner, tokens, spans);
    const hit = owner.sequence.match(Uint32Array.from(tokens), { spans: spans.map(spanOf) });
    owner.tokens = [...tokens];
    owner.proposed = [];
    owner.spans = [...spans];
    this.#verified(owner);
    const tracked: TrackedHit = {
      hit,
      owner,
      tokens: [...tokens],
      spans: [...spans],
      deadline: this.clock.now() + (this.options.pinDeadlineMs ?? 1_000),
      released: false,
      refilling: 0,
      // Found on a shard that has gone, or has lost something, and nobody has noticed yet.
      mayBeVoid: this.#hasLost || !this.box.links.every((link) => link.intact()),
      views: new Map(),
    };
    this.hits.push(tracked);
    if (hit.tokens !== hit.columns * COLUMN_TOKENS) this.fault(`a hit of ${hit.columns} columns, ${hit.tokens} tokens`);
    if (hit.columns > known) this.fault(`a hit of ${hit.columns} columns, and ${known} were evicted and verified`);
    if (hit.columns > 0 && spans.length > 0) this.seen.spans += 1;
    this.#checkAllowed(tracked);
    for (const { name, required } of this.driver.groups) {
      const columns = hit.tokensOf(name) / COLUMN_TOKENS;
      if (required ? columns !== hit.columns : columns > hit.columns) {
        this.fault(`a hit of ${hit.columns} columns has ${columns} of ${name}`);
      }
    }
    return tracked;
  }

  /** A tenant is restricted in another way from now on. */
  setPolicy(tenant: string, policy: TenantPolicy): void {
    this.#policies.set(tenant, policy);
    this.driver.policies.set(tenant, policy);
    // What is not allowed any more goes, pinned or not.
    this.#endPins((tracked) => tracked.owner.tenant === tenant);
  }

  /** No column whose time is over, and none that must not be stored, is ever found. */
  #checkAllowed({ hit: { columns }, owner: { tenant, adapter }, tokens, spans }: TrackedHit): void {
    const { ttl, noStore, storeUpTo = Number.POSITIVE_INFINITY } = this.#policies.get(tenant) ?? {};
    if (noStore && columns > 0) this.fault(`a hit of ${columns} columns of a tenant that stores nothing`);
    if (columns * COLUMN_TOKENS > storeUpTo) this.fault(`a hit of ${columns} columns beyond ${storeUpTo} tokens`);
    const now = this.clock.now();
    for (let column = 0; column < columns; column += 1) {
      const key = columnKey(tenant, adapter, tokens, spans, column);
      const stored = this.#storedAt.get(key) ?? 0;
      const since = ttl?.mode === 'last-use' ? Math.max(stored, this.#usedAt.get(key) ?? 0) : stored;
      if (ttl) this.seen.expiring += 1;
      if (ttl && now >= since + ttl.seconds * 1000) this.fault(`column ${column} was found after its time`);
      this.#usedAt.set(key, now);
    }
  }

  append(owner: TrackedSequence, tokens: readonly number[], spans: readonly Span[] = []): void {
    owner.sequence.append(Uint32Array.from(tokens), { spans: spans.map(spanOf) });
    const from = owner.tokens.length;
    owner.spans.push(...spans.map((span) => ({ ...span, offset: span.offset + from })));
    owner.tokens.push(...tokens);
    this.#verified(owner);
  }

  propose(owner: TrackedSequence, tokens: readonly number[]): void {
    owner.sequence.propose(Uint32Array.from(tokens));
    owner.proposed.push(...tokens);
  }

  verify(owner: TrackedSequence, accepted: number, correction: readonly number[] = []): void {
    const before = this.driver.columns;
    owner.sequence.verify(accepted, Uint32Array.from(correction));
    owner.tokens.push(...owner.proposed.slice(0, accepted), ...correction);
    owner.proposed = [];
    this.#verified(owner);
    this.seen.published += this.driver.columns - before;
  }

  /** Evicts with a runtime of some kind; `faultAt` says where it fails, by column or by what it is asked for. */
  evict(
    owner: TrackedSequence,
    kind: Kind = 'now',
    fault: SourceFault = 'none',
    faultAt = 0,
    deadlineMs?: number,
  ): Promise<EvictResult | undefined> {
    const full = Math.floor(owner.tokens.length / COLUMN_TOKENS);
    const places: [Places, number][] = [];
    const source = this.#source(owner, this.#possible(kind), fault, faultAt, places);
    owner.evicting += 1;
    const options = deadlineMs === undefined ? {} : { deadlineMs };
    const call = owner.sequence.evict(source, options).finally(() => {
      owner.evicting -= 1;
      for (const [owned, place] of places) owned.give([place]);
    });
    return this.track(call, (result) => {
      const { stored, present, dropped, ahead } = result;
      // Tokens may have been added before the evict began, as it waits for earlier ones.
      if (!owner.closed && stored + present + dropped < full) {
        this.fault(`an evict lost count: ${JSON.stringify(result)} of ${full}`);
      }
      this.seen.ahead += ahead;
    });
  }

  refill(tracked: TrackedHit, kind: Kind = 'now', deadlineMs?: number): Promise<RefillResult | undefined> {
    const { hit } = tracked;
    const shown = new Map<string, Shown[]>(this.driver.groups.map(({ name }) => [name, []]));
    const places: [Places, number][] = [];
    const possible = this.#possible(kind);
    const sink = this.#sink(tracked, possible, shown, places);
    tracked.refilling += 1;
    const alone = tracked.refilling === 1;
    const call = hit.refill(sink, deadlineMs === undefined ? {} : { deadlineMs }).finally(() => {
      tracked.refilling -= 1;
    });
    return this.track(call, (result) => {
      this.#checkRefill(tracked, possible, shown, result, alone && tracked.refilling === 0);
      result.quiet.then(() => {
        for (const [owned, place] of places) owned.give([place]);
      });
    });
  }

  release(tracked: TrackedHit): boolean {
    tracked.released = true;
    tracked.views.clear();
    return tracked.hit.release();
  }

  close(owner: TrackedSequence): void {
    owner.closed = true;
    owner.sequence.close();
  }

  forget(tenant: string): Promise<number | undefined> {
    for (const [key, generations] of this.#asked) {
      if (!key.startsWith(tenantKey(tenant))) continue;
      for (const [generation, { owner, ahead }] of generations) {
        // What is not in the map as yet cannot be forgotten.
        if (ahead && !owner.closed && (owner.evicting > 0 || owner.proposed.length > 0)) continue;
        generations.delete(generation);
      }
    }
    this.#endPins((tracked) => tracked.owner.tenant === tenant);
    return this.track(this.driver.forget({ isolationId: tenant }));
  }

  // ---- what shards and time do ------------------------------------------------------------------------------------

  jump(ms: number): void {
    this.#endPins(() => true);
    this.clock.jump(ms);
  }

  endDaemon(index: number, reachable: boolean): void {
    const daemon = this.daemon(index);
    daemon.reachable = reachable;
    this.#endPins(() => true);
    daemon.end();
  }

  /** The daemon ends the session and takes its memory back; the driver will hear of it later. */
  takeBack(index: number): void {
    this.#endPins(() => true);
    this.daemon(index).takeBack();
  }

  loseSlot(link: number, slot: number): void {
    const { links } = this.box;
    if (links.length === 0 || !links[link % links.length]?.lose(slot)) return;
    this.#hasLost = true;
    this.#endPins(() => true);
  }

  /** One step of one shard. Which one, `pick` says. */
  step(pick: number, outcome: 'ok' | 'fail'): void {
    const moves = this.box.moves();
    const move = moves[pick % moves.length];
    if (!move) return;
    if (move.what === 'start') move.link.start(move.operation);
    else move.link.finish(move.operation, outcome === 'ok' ? Status.ok : Status.transferFailed);
  }

  /** Lets one runtime that takes its time go on. */
  resumeRuntime(pick: number): void {
    const [resume] = this.waitingRuntimes.splice(pick % Math.max(1, this.waitingRuntimes.length), 1);
    resume?.();
  }

  resumeRuntimes(): void {
    for (const resume of this.waitingRuntimes.splice(0)) resume();
  }

  /** Lets shards and runtimes go on until a call has ended. */
  async served<Result>(call: Promise<Result>): Promise<Result> {
    let over = false;
    const ended = () => {
      over = true;
    };
    call.then(ended, ended);
    for (let round = 0; round < 500 && !over; round += 1) {
      await settled();
      this.resumeRuntimes();
      this.box.finishAll();
    }
    if (!over) throw new Error('a call does not end');
    return call;
  }

  // ---- what must be true ------------------------------------------------------------------------------------------

  /** Columns from the first that somebody of the tenant had evicted and verified, and nobody has had forgotten. */
  knownColumns(
    { tenant, adapter }: Pick<TrackedSequence, 'tenant' | 'adapter'>,
    tokens: readonly number[],
    spans: readonly Span[] = [],
  ): number {
    const [first] = this.driver.groups;
    let columns = 0;
    for (; (columns + 1) * COLUMN_TOKENS <= tokens.length; columns += 1) {
      const key = columnKey(tenant, adapter, tokens, spans, columns);
      const asked = this.#asked.get(partKey(key, first?.name ?? ''));
      if (!asked || ![...asked.values()].some(({ owner }) => owner.verified.has(key))) break;
    }
    return columns;
  }

  /** Watches a call: it must not reject, except with what the runtime threw. Resolves with undefined then. */
  track<Result>(call: Promise<Result>, check: (result: Result) => void = () => {}): Promise<Result | undefined> {
    const watched = call.then(
      (result) => {
        check(result);
        return result;
      },
      (thrown: unknown) => {
        if (!(thrown instanceof RuntimeFault)) this.fault(`a call rejected: ${(thrown as Error).stack}`);
        return undefined;
      },
    );
    const done = watched.finally(() => this.pending.delete(done));
    this.pending.add(done);
    return done;
  }

  fault(what: string): void {
    this.faults.push(what);
  }

  /** Throws where something is not as it must always be. */
  check(): void {
    const wrong = [...this.faults, ...this.box.complaints];
    for (const { groups } of this.stripes) {
      for (const { name, freeSlots, capacity } of groups) {
        if (freeSlots > capacity) wrong.push(`${freeSlots} of ${capacity} slots of ${name} are free`);
      }
    }
    for (const tracked of this.hits) wrong.push(...this.#wrongWith(tracked));
    if (wrong.length > 0) throw new Error(wrong.join('\n'));
  }

  /** Throws where a slot of a group is neither free nor a stored part's. Nothing may be under way, nor wait for a verdict. */
  checkSlots(): void {
    for (const [index, stripe] of this.stripes.entries()) {
      for (const [group, { name, freeSlots, capacity }] of stripe.groups.entries()) {
        const parts = this.partsOf(group, index);
        if (freeSlots + parts.length !== capacity) {
          throw new Error(
            `stripe ${index} has ${freeSlots} slots of ${name} free, ${parts.length} used, of ${capacity}`,
          );
        }
        if (new Set(parts).size !== parts.length) throw new Error(`two columns have one slot of ${name}`);
      }
    }
  }

  /** Slots of the parts of a group that stored columns of a stripe have. */
  partsOf(group: number, stripe = 0): number[] {
    const { map } = this;
    return range(map.capacity)
      .filter((node) => map.isStored(node) && map.stripe(node) === stripe && map.hasPart(node, group))
      .map((node) => map.slot(node, group));
  }

  /**
   * Ends everything in good order, and throws where a call does not come back though its deadline has passed, where slots
   * are missing afterwards, or where the cache does not work any more.
   */
  async finish(): Promise<void> {
    // Shards that say nothing any more: every call ends by its deadline all the same (promise P3).
    for (let round = 0; round < 200 && this.pending.size > 0; round += 1) {
      this.resumeRuntimes();
      await this.clock.advance((this.options.deadlineMs ?? 100) + 1);
    }
    this.check();
    if (this.pending.size > 0) throw new Error(`${this.pending.size} calls did not end by their deadline`);
    for (const tracked of this.hits) this.release(tracked);
    for (const owner of this.sequences) this.close(owner);
    await this.#recover();
    this.check();
    this.checkSlots();
    await this.#fillAndReadBack();
    this.checkSlots();
    if (this.map.contents.size > this.driver.columns) throw new Error('contents are kept that no column has');
  }

  /** Brings every daemon back and lets the shards finish what they have. */
  async #recover(): Promise<void> {
    for (const daemon of this.box.daemons) {
      if (!this.#isUsable(daemon) || daemon.links.some((link) => !link.intact())) daemon.end();
      daemon.reachable = true;
      daemon.refusesMemory = false;
    }
    for (let round = 0; round < 20; round += 1) {
      this.box.finishAll();
      await this.clock.advance(2_000);
    }
  }

  #isUsable(daemon: SimulatedDaemon): boolean {
    const stripe = this.stripes[this.options.striping === 'within' ? this.box.daemons.indexOf(daemon) : 0];
    return stripe?.usable ?? false;
  }

  /** A prompt as long as the cache finds room in it, whole, and comes back right: no slot is lost or shared. */
  async #fillAndReadBack(): Promise<void> {
    const capacity = this.driver.capacityColumns;
    for (const daemon of this.box.daemons) daemon.immediate = true;
    const { owner } = this.open('probe', range(capacity * COLUMN_TOKENS));
    const result = await this.served(this.evict(owner));
    this.check();
    // A runtime that has fewer places than there are columns evicts as much at once as it has places for.
    const expected = this.placedByRuntime ? Math.min(capacity, RUNTIME_PLACES) : capacity;
    if (result?.stored !== expected) throw new Error(`${result?.stored} of ${expected} columns found room at the end`);
    const again = this.match(owner, owner.tokens.slice(0, expected * COLUMN_TOKENS));
    if (again.hit.columns !== expected) throw new Error(`${again.hit.columns} of ${expected} columns are a hit`);
    const refilled = await this.served(this.refill(again));
    this.check();
    if (refilled?.columns !== expected) throw new Error(`${refilled?.columns} of ${expected} columns came back`);
    this.release(again);
  }

  #endPins(which: (tracked: TrackedHit) => boolean): void {
    for (const tracked of this.hits) if (which(tracked)) tracked.mayBeVoid = true;
  }

  #wrongWith(tracked: TrackedHit): string[] {
    const wrong: string[] = [];
    const { hit, deadline, views } = tracked;
    const over = tracked.released || this.clock.now() >= deadline;
    // Columns that expire take their pins with them.
    if (this.#policies.get(tracked.owner.tenant)?.ttl) tracked.mayBeVoid = true;
    // Where the clock has jumped, timers are late.
    if (over && !tracked.mayBeVoid && hit.held) wrong.push('a hit is held although it was released or its time was up');
    if (!over && !tracked.mayBeVoid && !hit.held) wrong.push('a hit lost its pin without a reason');
    if (!hit.held) return wrong;
    for (const [what, view] of views) if (!isRight(view)) wrong.push(`${what} of a held hit has changed`);
    return wrong;
  }

  #checkRefill(
    tracked: TrackedHit,
    kind: Kind,
    shown: ReadonlyMap<string, readonly Shown[]>,
    { columns, tokens }: RefillResult,
    alone: boolean,
  ): void {
    const { hit } = tracked;
    if (tokens !== columns * COLUMN_TOKENS) this.fault(`a refill of ${columns} columns has ${tokens} tokens`);
    if (columns > hit.columns) this.fault(`a refill of ${columns} columns of a hit of ${hit.columns}`);
    if (columns < hit.columns) this.seen.shorter += 1;
    for (const group of this.driver.groups) {
      const got = shown.get(group.name) ?? [];
      this.#checkOrder(group, got, hit.columns, columns);
      // Another refill of the same hit may have found out more meanwhile.
      if (!group.required && (!alone || columns === 0)) continue;
      const end = group.required ? columns : hit.tokensOf(group.name) / COLUMN_TOKENS;
      if (end > columns) this.fault(`${group.name}: ${end} columns of a refill of ${columns}`);
      for (let index = Math.max(0, end - group.windowColumns); index < end; index += 1) {
        const last = got.findLast((part) => part.index === index);
        const what = `column ${index} of ${group.name}`;
        if (!last) {
          this.fault(`${what} was never refilled, of ${columns}`);
          continue;
        }
        if (kind === 'locate' || kind === 'place' ? !isRight(last.view) : !last.right) {
          this.fault(`a refill counted ${what}, and its bytes were wrong`);
        }
        if ((kind === 'now' || kind === 'later') && this.options.places === undefined && !tracked.released) {
          tracked.views.set(what, last.view);
        }
        this.seen.parts += 1;
        if (group.windowColumns !== Number.POSITIVE_INFINITY) this.seen.windowParts += 1;
        if (!group.required) this.seen.optionalParts += 1;
      }
    }
  }

  /** Parts come in order, and of a window only what overlaps the end of a prefix that was tried. */
  #checkOrder({ name, windowColumns }: GroupInfo, got: readonly Shown[], most: number, columns: number): void {
    let previous = -1;
    for (const { index } of got) {
      // A shorter prefix is tried from the beginning of its window.
      const again = previous >= 0 && index <= previous;
      if (previous >= 0 && index !== previous + 1 && !again) this.fault(`${name}: column ${index} after ${previous}`);
      if (again && columns === most) this.fault(`${name}: column ${index} came again, and nothing was missing`);
      if (index >= most) this.fault(`${name}: column ${index} of a hit of ${most}`);
      const from = columns === most ? Math.max(0, most - windowColumns) : 0;
      if (index < from) this.fault(`${name}: column ${index}, where the window begins at ${from}`);
      previous = index;
    }
  }

  #expected(
    { tenant, adapter }: TrackedSequence,
    tokens: readonly number[],
    spans: readonly Span[],
    ref: ColumnRef,
  ): Uint8Array[] {
    const prefix = tokens.slice(0, (ref.index + 1) * COLUMN_TOKENS);
    // Whatever else makes it this part and no other.
    const what = JSON.stringify([adapter, ref.group, spansUpTo(spans, ref.index)]);
    const pieceBytes = this.driver.groups.find(({ name }) => name === ref.group)?.pieceBytes ?? [];
    return pieceBytes.map((length, shard) =>
      stampOf({ tenant, adapter: what, prefix, shard, generation: ref.generation }, length),
    );
  }

  /** Tokens of a sequence have been verified. */
  #verified(owner: TrackedSequence): void {
    const { tenant, adapter, tokens, spans } = owner;
    for (let index = 0; (index + 1) * COLUMN_TOKENS <= tokens.length; index += 1) {
      owner.verified.add(columnKey(tenant, adapter, tokens, spans, index));
    }
  }

  /** The runtime was asked for a part, and answers with what its pieces must be. */
  #begin(owner: TrackedSequence, ref: ColumnRef): Uint8Array[] {
    const { tenant, adapter, spans } = owner;
    const tokens = [...owner.tokens, ...owner.proposed];
    if ((ref.index + 1) * COLUMN_TOKENS > tokens.length) this.fault(`column ${ref.index} is not full yet`);
    this.#checkTag(tenant, ref.tenantTag);
    const key = columnKey(tenant, adapter, tokens, spans, ref.index);
    const other = this.#columnOf.get(ref.generation) ?? key;
    if (other !== key) this.fault(`generation ${ref.generation} was that of another column`);
    this.#columnOf.set(ref.generation, key);
    const part = partKey(key, ref.group);
    const generations = this.#asked.get(part) ?? new Map<number, Asked>();
    if (generations.has(ref.generation)) this.fault(`${ref.group} was asked for twice`);
    const ahead = !owner.verified.has(key);
    generations.set(ref.generation, { owner, ahead });
    // What is written ahead is stored when it is found right, which may be any time from now on.
    this.#storedAt.set(key, ahead ? Number.POSITIVE_INFINITY : this.clock.now());
    this.#asked.set(part, generations);
    return this.#expected(owner, tokens, spans, ref);
  }

  #checkTag(tenant: string, tag: bigint): void {
    const owner = this.#tags.get(tag) ?? tenant;
    if (tag === 0n || owner !== tenant) this.fault(`tenant ${tenant} goes by the tag of ${owner}`);
    this.#tags.set(tag, owner);
  }

  /** The kind of runtime that there can be. */
  #possible(kind: Kind): Kind {
    if (this.placedByRuntime) return 'place';
    return kind === 'place' && !this.memory ? 'locate' : kind;
  }

  #source(
    owner: TrackedSequence,
    kind: Kind,
    fault: SourceFault,
    faultAt: number,
    places: [Places, number][],
  ): PieceSource {
    const keepsAll = new Set(this.#groupsThatKeepAll());
    let asked = -1;
    /** What becomes of a part that is asked for. */
    const verdict = (ref: ColumnRef): boolean => {
      asked += 1;
      if (fault === 'lacksWindows') return keepsAll.has(ref.group) || ref.index >= faultAt;
      if (fault === 'none' || asked !== faultAt) return true;
      if (fault === 'throws') throw new RuntimeFault('the runtime broke');
      return false;
    };
    if (kind === 'locate') {
      let expected: Uint8Array[] = [];
      let last = '';
      let has = true;
      return {
        locate: (ref, shard) => {
          const part = `${ref.group} ${ref.generation}`;
          if (part !== last) {
            last = part;
            expected = this.#begin(owner, ref);
            has = verdict(ref);
          }
          // At the last shard, when the others have been copied.
          return has || expected.slice(shard + 1).some(({ length }) => length > 0) ? expected[shard] : undefined;
        },
      };
    }
    if (kind === 'place') {
      return {
        place: (ref) => {
          const expected = this.#begin(owner, ref);
          if (!verdict(ref)) return undefined;
          const owned = this.#places.get(ref.group) as Places;
          const place = owned.take();
          if (place === undefined) return undefined;
          places.push([owned, place]);
          for (const [shard, piece] of this.#runtimePieces(ref.group, place).entries()) {
            piece.set(expected[shard] as Uint8Array);
          }
          return place;
        },
      };
    }
    return {
      write: (ref, pieces) => {
        const expected = this.#begin(owner, ref);
        for (const [shard, { length }] of expected.entries()) {
          if (pieces[shard]?.length !== length) this.fault(`shard ${shard} has ${pieces[shard]?.length} of ${length}`);
        }
        const fill = (share: number) => {
          for (const [shard, bytes] of expected.entries()) {
            pieces[shard]?.set(bytes.subarray(0, Math.floor(bytes.length * share)));
          }
        };
        fill(0.5);
        const end = () => {
          const has = verdict(ref);
          if (has) fill(1);
          return has;
        };
        return kind === 'now' ? end() : this.#runtimeTakesItsTime().then(end);
      },
    };
  }

  /** Groups of which every column has a part. */
  #groupsThatKeepAll(): string[] {
    const { groups } = this.driver;
    return groups
      .filter(({ required, windowColumns }, index) => index === 0 || (required && windowColumns === Infinity))
      .map(({ name }) => name);
  }

  #sink(tracked: TrackedHit, kind: Kind, shown: ReadonlyMap<string, Shown[]>, places: [Places, number][]): PieceSink {
    const { owner, tokens, spans } = tracked;
    const look = (ref: ColumnRef, pieces: readonly Uint8Array[]): Shown => {
      const key = columnKey(owner.tenant, owner.adapter, tokens, spans, ref.index);
      const asked = this.#asked.get(partKey(key, ref.group))?.get(ref.generation);
      if (!asked) this.fault(`column ${ref.index} of ${ref.group} came back as what nobody evicted`);
      else if (!asked.owner.verified.has(key)) this.fault(`column ${ref.index} came back and nobody verified it`);
      this.#checkTag(owner.tenant, ref.tenantTag);
      const view: View = { pieces, expected: this.#expected(owner, tokens, spans, ref) };
      const entry = { index: ref.index, view, right: isRight(view) };
      shown.get(ref.group)?.push(entry);
      return entry;
    };
    if (kind === 'locate') {
      let last = '';
      let entry: Shown | undefined;
      return {
        locate: (ref, shard) => {
          const part = `${ref.group} ${ref.index} ${ref.generation}`;
          if (part !== last || entry?.view.pieces[shard]?.some((byte) => byte !== 0)) {
            last = part;
            const { pieceBytes } = this.driver.groups.find(({ name }) => name === ref.group) as GroupInfo;
            entry = look(
              ref,
              pieceBytes.map((length) => new Uint8Array(length)),
            );
          }
          return entry?.view.pieces[shard] as Uint8Array;
        },
      };
    }
    if (kind === 'place') {
      return {
        place: (ref) => {
          const owned = this.#places.get(ref.group) as Places;
          const place = owned.take();
          if (place === undefined) return undefined;
          places.push([owned, place]);
          look(ref, this.#runtimePieces(ref.group, place));
          return place;
        },
      };
    }
    return {
      read: (ref, pieces) => {
        const entry = look(ref, pieces);
        // What was taken back meanwhile shows anything, and must not count.
        if (!entry.right && this.box.links.every((link) => link.intact())) {
          this.fault(`column ${ref.index} of ${ref.group} was shown with wrong bytes`);
        }
        if (kind === 'now') return undefined;
        return this.#runtimeTakesItsTime().then(() => {
          entry.right = isRight(entry.view);
        });
      },
    };
  }

  #runtimePieces(group: string, place: number): Uint8Array[] {
    const { pieceBytes } = this.driver.groups.find(({ name }) => name === group) as GroupInfo;
    const regions = this.memory?.[group]?.regions ?? [];
    return regions.map(({ memory, strideBytes }, shard) => {
      const length = pieceBytes[shard] as number;
      return length === 0 ? new Uint8Array(0) : new Uint8Array(memory, place * strideBytes, length);
    });
  }

  #runtimeTakesItsTime(): Promise<void> {
    return new Promise((resolve) => this.waitingRuntimes.push(resolve));
  }
}

/** 32 bytes that stand for a content. */
export function digestOf(content: number): Uint8Array {
  return new Uint8Array(32).fill(content + 1);
}

export function spanOf({ offset, length, content }: Span): ContentSpan {
  return { offset, length, digest: digestOf(content) };
}

/** Memory of a runtime for each group; a shard without layers of a group has none. */
function memoryFor(groups: readonly ModelGroup[]): Record<string, ColumnMemory> {
  return Object.fromEntries(
    groups.map(({ name, bytesPerToken }) => [
      name,
      {
        places: RUNTIME_PLACES,
        regions: bytesPerToken.map((bytes) => {
          const strideBytes = bytes * COLUMN_TOKENS + 3;
          return { memory: new ArrayBuffer(bytes === 0 ? 0 : RUNTIME_PLACES * strideBytes), strideBytes };
        }),
      },
    ]),
  );
}

function isRight({ pieces, expected }: View): boolean {
  return (
    pieces.length === expected.length && pieces.every((piece, shard) => sameBytes(piece, expected[shard] as Uint8Array))
  );
}

/** The spans that have begun before the end of a column. */
function spansUpTo(spans: readonly Span[], column: number): Span[] {
  return spans.filter(({ offset }) => offset < (column + 1) * COLUMN_TOKENS);
}

function tenantKey(tenant: string): string {
  return `${JSON.stringify([tenant]).slice(0, -1)},`;
}

function columnKey(
  tenant: string,
  adapter: string,
  tokens: readonly number[],
  spans: readonly Span[],
  column: number,
): string {
  const prefix = tokens.slice(0, (column + 1) * COLUMN_TOKENS);
  return tenantKey(tenant) + JSON.stringify([adapter, prefix, spansUpTo(spans, column)]);
}

function partKey(column: string, group: string): string {
  return `${column} ${group}`;
}
