import { vi } from 'vitest';
import type { TenantPolicy } from '../../src/common/tenant_policy.js';
import { Status } from '../../src/proto/generated.js';
import { recordBytesOf } from '../../src/swdriver/column_records.js';
import type { Hit, RefillResult } from '../../src/swdriver/hit.js';
import type { ColumnRef, PieceSink, PieceSource } from '../../src/swdriver/runtime.js';
import type { EvictResult, Sequence } from '../../src/swdriver/sequence.js';
import { Stripe } from '../../src/swdriver/stripe.js';
import { SwDriver, type SwDriverOptions } from '../../src/swdriver/sw_driver.js';
import { ManualClock, settled } from './manual_clock.js';
import { SimulatedBox, type SimulatedDaemon, slotBytesOf } from './simulated_link.js';
import { sameBytes, stampOf } from './stamp.js';

export const COLUMN_TOKENS = 4;

/** A box and a driver on it. */
export interface WorldOptions {
  /** Bytes per token of each shard of a stripe. */
  readonly bytesPerToken: readonly number[];
  /** Stripes, each on a daemon of its own (`within`), or one stripe over daemons of one shard each (`across`). */
  readonly striping: 'across' | 'within';
  /** Stripes, for `within`. */
  readonly stripes?: number;
  readonly capacityColumns: number;
  /** Columns that each shard of each daemon has room for; all have plenty if left out. */
  readonly roomColumns?: number;
  readonly ringEntries?: number;
  readonly deadlineMs?: number;
  readonly pinDeadlineMs?: number;
  /** Shards that finish everything as it comes. */
  readonly immediate?: boolean;
  readonly more?: Partial<SwDriverOptions>;
}

/** What a runtime does when it is asked for a column, or given one. */
export type SourceKind = 'write' | 'writeLater' | 'locate';
export type SourceFault = 'none' | 'lacks' | 'throws';
export type SinkKind = 'read' | 'readLater' | 'locate';

/** The error that a broken runtime throws in these tests, and the only one that a call may pass on. */
export class RuntimeFault extends Error {}

/** A sequence with what the test knows of it. */
export interface TrackedSequence {
  readonly sequence: Sequence;
  readonly tenant: string;
  readonly adapter: string;
  tokens: number[];
  evicting: number;
  closed: boolean;
}

interface View {
  readonly pieces: readonly Uint8Array[];
  readonly expected: readonly Uint8Array[];
}

/** A hit with what the test knows of it. */
export interface TrackedHit {
  readonly hit: Hit;
  readonly owner: TrackedSequence;
  /** Tokens of the prompt when it was made. */
  readonly tokens: readonly number[];
  readonly deadline: number;
  released: boolean;
  /** Something happened that may end the pin: a shard went or lost something, or the tenant was forgotten. */
  mayBeVoid: boolean;
  /** What refills have shown in place, by column. */
  readonly views: Map<number, View>;
}

/**
 * A driver over simulated shards, beside an oracle that has no cache: it knows which columns were ever given to the
 * driver, and what bytes the piece of every column must have.
 */
export class World {
  readonly sequences: TrackedSequence[] = [];
  readonly hits: TrackedHit[] = [];
  readonly pending = new Set<Promise<unknown>>();
  /** Continuations of runtimes that were asked to take their time. */
  readonly waitingRuntimes: (() => void)[] = [];
  /** What went wrong outside of the step that caused it. */
  readonly faults: string[] = [];
  /** Columns that the runtime was asked for, by namespace and prefix, with the generation of the last time. */
  readonly #generations = new Map<string, number>();
  readonly #tags = new Map<bigint, string>();
  readonly #policies = new Map<string, TenantPolicy>();
  /** When the runtime was last asked for a column, and when a prompt last hit it, by the keys of #generations. */
  readonly #storedAt = new Map<string, number>();
  readonly #usedAt = new Map<string, number>();
  #lastGeneration = 0;
  #hasLost = false;

  private constructor(
    readonly options: WorldOptions,
    readonly clock: ManualClock,
    readonly box: SimulatedBox,
    readonly driver: SwDriver,
    /** The driver's stripes, for counting slots. */
    readonly stripes: readonly Stripe[],
    private readonly settings: SwDriverOptions,
  ) {}

  static async create(options: WorldOptions): Promise<World> {
    const clock = new ManualClock();
    const room = options.roomColumns ?? 1000;
    // Records of columns are a group of their own, and several groups are given a page more each.
    const records = options.more?.resume ? room * recordBytesOf(COLUMN_TOKENS, 2) + 2 * 2 ** 21 : 0;
    const budgets = options.bytesPerToken.map((bytes) => room * slotBytesOf(bytes * COLUMN_TOKENS) + records);
    const box = new SimulatedBox(
      clock,
      options.striping === 'within'
        ? Array.from({ length: options.stripes ?? 1 }, () => budgets)
        : budgets.map((budget) => [budget]),
    );
    for (const daemon of box.daemons) daemon.immediate = options.immediate ?? false;
    const opened = vi.spyOn(Stripe.prototype, 'open');
    try {
      const settings: SwDriverOptions = {
        daemons: box.addresses,
        model: {
          id: 'model',
          revision: 'r1',
          dtype: 'bf16',
          layout: 'plain',
          bytesPerToken: options.bytesPerToken,
          columnTokens: COLUMN_TOKENS,
        },
        striping: options.striping,
        capacityColumns: options.capacityColumns,
        ringEntries: options.ringEntries ?? 64,
        deadlineMs: options.deadlineMs ?? 100,
        pinDeadlineMs: options.pinDeadlineMs ?? 1_000,
        connector: box.connector,
        clock,
        ...options.more,
      };
      const driver = await SwDriver.connect(settings);
      return new World(options, clock, box, driver, [...new Set(opened.mock.contexts as Stripe[])], settings);
    } finally {
      opened.mockRestore();
    }
  }

  daemon(index = 0): SimulatedDaemon {
    return this.box.daemon(index);
  }

  /** Opens a sequence and matches a prompt. */
  open(tenant: string, tokens: readonly number[], adapter = ''): { owner: TrackedSequence; hit: TrackedHit } {
    const owner = this.sequence(tenant, adapter);
    return { owner, hit: this.match(owner, tokens) };
  }

  sequence(tenant: string, adapter = ''): TrackedSequence {
    const sequence = this.driver.openSequence({ isolationId: tenant, adapter });
    const owner: TrackedSequence = { sequence, tenant, adapter, tokens: [], evicting: 0, closed: false };
    this.sequences.push(owner);
    return owner;
  }

  match(owner: TrackedSequence, tokens: readonly number[]): TrackedHit {
    const hit = owner.sequence.match(Uint32Array.from(tokens));
    owner.tokens = [...tokens];
    const tracked: TrackedHit = {
      hit,
      owner,
      tokens: [...tokens],
      deadline: this.clock.now() + (this.options.pinDeadlineMs ?? 1_000),
      released: false,
      // Found on a shard that has gone, or has lost something, and nobody has noticed yet.
      mayBeVoid: this.#hasLost || !this.box.links.every((link) => link.intact()),
      views: new Map(),
    };
    this.hits.push(tracked);
    if (hit.tokens !== hit.columns * COLUMN_TOKENS) this.fault(`a hit of ${hit.columns} columns, ${hit.tokens} tokens`);
    const known = this.knownColumns(owner.tenant, owner.adapter, tokens);
    if (hit.columns > known) this.fault(`a hit of ${hit.columns} columns where only ${known} were ever evicted`);
    this.#checkAllowed(owner, tokens, hit.columns);
    const missed = Object.values(hit.missed).reduce((sum, count) => sum + count, 0);
    if (missed + hit.tokens !== tokens.length) this.fault(`${hit.tokens} hit and ${missed} missed of ${tokens.length}`);
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
  #checkAllowed({ tenant, adapter }: TrackedSequence, tokens: readonly number[], columns: number): void {
    const { ttl, noStore, storeUpTo = Number.POSITIVE_INFINITY } = this.#policies.get(tenant) ?? {};
    if (noStore && columns > 0) this.fault(`a hit of ${columns} columns of a tenant that stores nothing`);
    if (columns * COLUMN_TOKENS > storeUpTo) this.fault(`a hit of ${columns} columns beyond ${storeUpTo} tokens`);
    const now = this.clock.now();
    for (let column = 0; column < columns; column += 1) {
      const key = columnKey(tenant, adapter, tokens, column);
      const stored = this.#storedAt.get(key) ?? 0;
      const since = ttl?.mode === 'last-use' ? Math.max(stored, this.#usedAt.get(key) ?? 0) : stored;
      if (ttl && now >= since + ttl.seconds * 1000) this.fault(`column ${column} was found after its time`);
      this.#usedAt.set(key, now);
    }
  }

  append(owner: TrackedSequence, tokens: readonly number[]): void {
    owner.sequence.append(Uint32Array.from(tokens));
    owner.tokens.push(...tokens);
  }

  /** Columns from the first that this tenant ever gave to the driver, and has not had forgotten. */
  knownColumns(tenant: string, adapter: string, tokens: readonly number[]): number {
    let columns = 0;
    while (
      (columns + 1) * COLUMN_TOKENS <= tokens.length &&
      this.#generations.has(columnKey(tenant, adapter, tokens, columns))
    ) {
      columns += 1;
    }
    return columns;
  }

  /** Evicts with a runtime of some kind, that fails in some way at the `faultAt`-th column that it is asked for. */
  evict(
    owner: TrackedSequence,
    kind: SourceKind = 'write',
    fault: SourceFault = 'none',
    faultAt = 0,
    deadlineMs?: number,
  ): Promise<EvictResult | undefined> {
    const full = Math.floor(owner.tokens.length / COLUMN_TOKENS);
    const options = deadlineMs === undefined ? {} : { deadlineMs };
    owner.evicting += 1;
    let written = 0;
    const source = this.#source(owner, kind, fault, faultAt, () => {
      written += 1;
    });
    const call = owner.sequence.evict(source, options).finally(() => {
      owner.evicting -= 1;
    });
    return this.track(call, (result) => {
      const { stored, present, dropped } = result;
      // Tokens may have been added before the evict began, as it waits for earlier ones.
      if (!owner.closed && stored + present + dropped < full)
        this.fault(`an evict lost count: ${JSON.stringify(result)}`);
      if (stored > written) this.fault(`an evict stored ${stored} columns and the runtime wrote ${written}`);
    });
  }

  refill(tracked: TrackedHit, kind: SinkKind = 'read', deadlineMs?: number): Promise<RefillResult | undefined> {
    const { hit } = tracked;
    // What each column showed, and whether all of it was right until the sink was through with it.
    const shown: { right: boolean; view: View }[] = [];
    const sink = this.#sink(tracked, kind, shown);
    const call = hit.refill(sink, deadlineMs === undefined ? {} : { deadlineMs });
    return this.track(call, ({ columns, tokens }) => {
      if (tokens !== columns * COLUMN_TOKENS) this.fault(`a refill of ${columns} columns has ${tokens} tokens`);
      if (columns > hit.columns || columns > shown.length) this.fault(`a refill counted ${columns} columns too many`);
      for (const [column, { right, view }] of shown.slice(0, columns).entries()) {
        if (kind === 'locate') {
          if (!view.pieces.every((piece, shard) => sameBytes(piece, view.expected[shard] as Uint8Array))) {
            this.fault(`a refill copied wrong bytes into column ${column}`);
          }
        } else {
          if (!right) this.fault(`a refill counted column ${column}, and its bytes were wrong`);
          tracked.views.set(column, view);
        }
      }
    });
  }

  release(tracked: TrackedHit): boolean {
    tracked.released = true;
    tracked.views.clear();
    return tracked.hit.release();
  }

  forget(tenant: string): Promise<number | undefined> {
    for (const key of [...this.#generations.keys()]) {
      if (key.startsWith(tenantKey(tenant))) this.#generations.delete(key);
    }
    this.#endPins((tracked) => tracked.owner.tenant === tenant);
    return this.track(this.driver.forget({ isolationId: tenant }));
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

  closeSequence(owner: TrackedSequence): void {
    owner.closed = true;
    owner.sequence.close();
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

  /** Lets every runtime go on, whenever it takes its time, until none does any more. */
  async letRuntimesFinish(): Promise<void> {
    for (await settled(); this.waitingRuntimes.length > 0; await settled()) this.resumeRuntimes();
  }

  resumeRuntimes(): void {
    for (const resume of this.waitingRuntimes.splice(0)) resume();
  }

  /** Watches a call: it must not reject, except with what the runtime threw. Resolves with undefined then. */
  track<Result>(call: Promise<Result>, check: (result: Result) => void = () => {}): Promise<Result | undefined> {
    const watched = call.then(
      (result) => {
        check(result);
        return result;
      },
      (thrown: unknown) => {
        if (!(thrown instanceof RuntimeFault)) this.fault(`a call rejected: ${String(thrown)}`);
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
    const { columns, capacityColumns } = this.driver;
    if (columns > capacityColumns) wrong.push(`${columns} columns where ${capacityColumns} fit`);
    for (const stripe of this.stripes) {
      if (stripe.freeSlots > stripe.capacity) wrong.push(`${stripe.freeSlots} of ${stripe.capacity} slots are free`);
    }
    for (const tracked of this.hits) wrong.push(...this.#wrongWith(tracked));
    if (wrong.length > 0) throw new Error(wrong.join('\n'));
  }

  /**
   * Ends everything in good order, and throws where a call does not come back though its deadline has passed, where
   * slots are missing afterwards, or where the cache does not work any more.
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
    await this.recover();
    this.check();
    const capacity = this.driver.capacityColumns;
    const free = this.stripes.reduce((sum, stripe) => sum + stripe.freeSlots, 0);
    if (free + this.driver.columns !== capacity) {
      throw new Error(`${free} slots are free and ${this.driver.columns} columns stored, of ${capacity}`);
    }
    await this.#fillAndReadBack(capacity);
  }

  /**
   * Kills the driver, and has another one with its key look for everything that it was ever asked for. What that one finds
   * has to be right, and known. Answers how many columns it found.
   */
  async follow(): Promise<number> {
    const leave = this.box.wouldLeave();
    const asked = this.sequences.map((owner) => ({
      owner,
      tokens: [...owner.tokens],
      known: this.knownColumns(owner.tenant, owner.adapter, owner.tokens),
    }));
    leave();
    for (const daemon of this.box.daemons) {
      daemon.immediate = true;
      daemon.reachable = true;
      daemon.refusesMemory = false;
    }
    const next = await SwDriver.resume({ ...this.settings, clock: new ManualClock() });
    for (const { owner, tokens, known } of asked) {
      const sequence = next.openSequence({ isolationId: owner.tenant, adapter: owner.adapter });
      using hit = sequence.match(Uint32Array.from(tokens));
      if (hit.columns > known) this.fault(`${hit.columns} columns came back where only ${known} were ever evicted`);
      const { columns } = await hit.refill({
        read: (ref, pieces) => {
          const expected = this.#expected(owner, tokens, ref);
          const right = pieces.every((piece, shard) => sameBytes(piece, expected[shard] as Uint8Array));
          if (!right) this.fault(`column ${ref.index} came back with wrong bytes`);
        },
      });
      if (columns !== hit.columns) this.fault(`${columns} of ${hit.columns} columns came back that were found`);
    }
    const { columns } = next;
    await next.close();
    return columns;
  }

  /** Brings every daemon back and lets the shards finish what they have. */
  async recover(): Promise<void> {
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
  async #fillAndReadBack(capacity: number): Promise<void> {
    for (const daemon of this.box.daemons) daemon.immediate = true;
    const { owner } = this.open('probe', range(capacity * COLUMN_TOKENS));
    const result = await this.evict(owner);
    this.check();
    if (result?.stored !== capacity) throw new Error(`${result?.stored} of ${capacity} columns found room at the end`);
    const again = this.match(owner, owner.tokens);
    const refilled = await this.refill(again);
    this.check();
    if (refilled?.columns !== capacity) throw new Error(`${refilled?.columns} of ${capacity} columns came back`);
  }

  #endPins(which: (tracked: TrackedHit) => boolean): void {
    for (const tracked of this.hits) if (which(tracked)) tracked.mayBeVoid = true;
  }

  #wrongWith(tracked: TrackedHit): string[] {
    const wrong: string[] = [];
    const { hit, deadline, views } = tracked;
    // Columns that expire take their pins with them.
    if (this.#policies.get(tracked.owner.tenant)?.ttl) tracked.mayBeVoid = true;
    const over = tracked.released || this.clock.now() >= deadline;
    if (over && hit.held) wrong.push('a hit is held although it was released or its time was up');
    if (!over && !tracked.mayBeVoid && !hit.held) wrong.push('a hit lost its pin without a reason');
    if (!hit.held) return wrong;
    for (const [column, { pieces, expected }] of views) {
      if (!pieces.every((piece, shard) => sameBytes(piece, expected[shard] as Uint8Array))) {
        wrong.push(`column ${column} of a held hit has changed`);
      }
    }
    return wrong;
  }

  #expected(owner: TrackedSequence, tokens: readonly number[], ref: ColumnRef): Uint8Array[] {
    const prefix = tokens.slice(0, (ref.index + 1) * COLUMN_TOKENS);
    const { tenant, adapter } = owner;
    return this.driver.pieceBytes.map((length, shard) =>
      stampOf({ tenant, adapter, prefix, shard, generation: ref.generation }, length),
    );
  }

  /** The runtime was asked for a column: from now on others of the tenant may find it. */
  #begin(owner: TrackedSequence, ref: ColumnRef): void {
    const { tenant, adapter, tokens } = owner;
    if ((ref.index + 1) * COLUMN_TOKENS > tokens.length) this.fault(`column ${ref.index} is not full yet`);
    if (ref.generation <= this.#lastGeneration) this.fault(`generation ${ref.generation} is not higher than the last`);
    this.#lastGeneration = ref.generation;
    this.#checkTag(tenant, ref.tenantTag);
    const key = columnKey(tenant, adapter, tokens, ref.index);
    this.#generations.set(key, ref.generation);
    this.#storedAt.set(key, this.clock.now());
  }

  #checkTag(tenant: string, tag: bigint): void {
    const owner = this.#tags.get(tag) ?? tenant;
    if (tag === 0n || owner !== tenant) this.fault(`tenant ${tenant} goes by the tag of ${owner}`);
    this.#tags.set(tag, owner);
  }

  #source(
    owner: TrackedSequence,
    kind: SourceKind,
    fault: SourceFault,
    faultAt: number,
    onWritten: () => void,
  ): PieceSource {
    let asked = -1;
    const failing = () => fault !== 'none' && asked === faultAt;
    if (kind === 'locate') {
      return {
        locate: (ref, shard) => {
          if (shard === 0) {
            asked += 1;
            this.#begin(owner, ref);
          }
          const expected = this.#expected(owner, owner.tokens, ref)[shard] as Uint8Array;
          // At the last shard, when the others have been copied.
          if (!failing() || shard < this.driver.pieceBytes.length - 1) {
            if (shard === 0) onWritten();
            return expected;
          }
          if (fault === 'lacks') return undefined;
          throw new RuntimeFault('the runtime broke');
        },
      };
    }
    const fill = (ref: ColumnRef, pieces: readonly Uint8Array[], from: number, to: number) => {
      const expected = this.#expected(owner, owner.tokens, ref);
      for (const [shard, piece] of pieces.entries()) {
        const bytes = expected[shard] as Uint8Array;
        const [begin, end] = [Math.floor(bytes.length * from), Math.floor(bytes.length * to)];
        piece.set(bytes.subarray(begin, end), begin);
      }
    };
    const end = (): boolean => {
      if (failing() && fault === 'throws') throw new RuntimeFault('the runtime broke');
      if (failing()) return false;
      onWritten();
      return true;
    };
    return {
      write: (ref, pieces) => {
        asked += 1;
        this.#begin(owner, ref);
        fill(ref, pieces, 0, 0.5);
        if (kind === 'write') {
          if (!failing()) fill(ref, pieces, 0.5, 1);
          return end();
        }
        return this.#runtimeTakesItsTime().then(() => {
          if (!failing()) fill(ref, pieces, 0, 1);
          return end();
        });
      },
    };
  }

  #sink(tracked: TrackedHit, kind: SinkKind, shown: { right: boolean; view: View }[]): PieceSink {
    const { owner, tokens } = tracked;
    const look = (ref: ColumnRef, pieces: readonly Uint8Array[]): View => {
      if (ref.index !== shown.length) this.fault(`column ${ref.index} came where ${shown.length} was due`);
      if (ref.generation !== this.#generations.get(columnKey(owner.tenant, owner.adapter, tokens, ref.index))) {
        this.fault(`column ${ref.index} came back as an old generation`);
      }
      this.#checkTag(owner.tenant, ref.tenantTag);
      return { pieces, expected: this.#expected(owner, tokens, ref) };
    };
    const isRight = ({ pieces, expected }: View) =>
      pieces.length === expected.length &&
      pieces.every((piece, shard) => sameBytes(piece, expected[shard] as Uint8Array));
    if (kind === 'locate') {
      return {
        locate: (ref, shard) => {
          if (shard === 0) {
            const pieces = this.driver.pieceBytes.map((length) => new Uint8Array(length));
            shown.push({ right: true, view: look(ref, pieces) });
          }
          return shown.at(-1)?.view.pieces[shard] as Uint8Array;
        },
      };
    }
    return {
      read: (ref, pieces) => {
        const view = look(ref, pieces);
        const entry = { right: isRight(view), view };
        shown.push(entry);
        // What was taken back meanwhile shows anything, and must not count.
        if (!entry.right && this.box.links.every((link) => link.intact()))
          this.fault(`column ${ref.index} was shown with wrong bytes`);
        if (kind === 'read') return undefined;
        return this.#runtimeTakesItsTime().then(() => {
          entry.right = isRight(view);
        });
      },
    };
  }

  #runtimeTakesItsTime(): Promise<void> {
    return new Promise((resolve) => this.waitingRuntimes.push(resolve));
  }
}

/** Starts a call and answers what it came to, with the shards finishing everything meanwhile. */
export async function served<Result>(world: World, call: Promise<Result>): Promise<Result> {
  for (let round = 0; round < 8; round += 1) {
    await settled();
    world.box.finishAll();
  }
  return call;
}

export function range(length: number, first = 1): number[] {
  return Array.from({ length }, (_, index) => first + index);
}

function tenantKey(tenant: string): string {
  return `${JSON.stringify([tenant]).slice(0, -1)},`;
}

function columnKey(tenant: string, adapter: string, tokens: readonly number[], column: number): string {
  return tenantKey(tenant) + JSON.stringify([adapter, tokens.slice(0, (column + 1) * COLUMN_TOKENS)]);
}
