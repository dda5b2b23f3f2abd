import { EventEmitter } from 'node:events';
import { type Clock, systemClock } from '../common/clock.js';
import { type KvssError, localError, messageOf } from '../common/errors.js';
import type { Carrier } from '../links/carrier.js';
import { connectorFor } from '../links/connect.js';
import type { Connector, PlaceMemory } from '../links/link.js';
import { parseStreamAddress } from '../links/stream_address.js';
import { DriverCore } from './driver_core.js';
import type { DriverStats } from './driver_stats.js';
import { DEFAULT_POLICY, type EvictionPolicy, policyNamed } from './eviction_policy.js';
import { type Model, modelPartOf, namespaceOf, pieceBytesOf, tenantPartOf } from './model.js';
import type { ColumnMemory } from './runtime.js';
import { Sequence } from './sequence.js';
import { TenantTags } from './tenant_tags.js';

export interface SwDriverOptions {
  /**
   * Where the daemons are: the path of a Unix socket for shared memory, or `tcp://HOST:PORT` or `unix:PATH` for streams.
   */
  daemons: readonly string[];
  model: Model;
  /**
   * Where a column lives: `across` the shards of all daemons (the default; it is lost when any of them goes), or
   * `within` one daemon, so that the driver goes on with the others when one goes. `model.bytesPerToken` has one
   * entry for each shard of a stripe: of all daemons, or of each daemon.
   */
  striping?: 'across' | 'within';
  /** Most columns to keep memory for, in each stripe. As many as the shards have room for if left out. */
  capacityColumns?: number;
  /** What goes first when room is needed: a policy or its name, `hit-density` (the default) or `lru`. */
  policy?: string | EvictionPolicy;
  /**
   * Longest that one evict or refill call waits for the shards, in milliseconds; what the runtime itself takes does not
   * count. Give calls that move much over a slow link more.
   */
  deadlineMs?: number;
  /** Longest that a hit stays pinned, in milliseconds. */
  pinDeadlineMs?: number;
  /** Longest that connecting to a daemon, or one of its answers, may take, in milliseconds. */
  connectDeadlineMs?: number;
  /**
   * Same host only: longest that a call keeps the event loop while it looks for the answer of engines that are awake, in
   * microseconds. Waking the event loop takes several times as long. 0: not at all. 20 if left out.
   */
  spinUs?: number;
  /** Start also while daemons cannot be reached, and keep trying. Everything is a miss until then. */
  lazy?: boolean;
  /** Operations that each queue of each shard holds. A power of two. */
  ringEntries?: number;
  /** Key of the tenants' tags; random if left out. At least 16 bytes. */
  tagKey?: Uint8Array;
  /** Streams only: lanes for payload of each direction, for each shard. 1 if left out. */
  wioStreams?: number;
  /** Streams only: memory for pieces on their way, for each shard. 32 MiB if left out. */
  placeBytes?: number;
  /**
   * Memory of the runtime in this process, with places for columns. Streams send from it and receive into it; sources and
   * sinks then name places.
   */
  memory?: ColumnMemory;
  /**
   * Streams only: another process that has the memory and moves the payload, such as an accelerator's host or `kvss wafer`.
   * No byte of a column passes through this process; sources and sinks name places of the carrier.
   */
  carrier?: Carrier;
  /** Streams only: payload carries a CRC-32C both ways; damaged bytes are a miss. Off if left out: TCP has its own. */
  checksums?: boolean;
  /** Streams only: secret of the daemons' listeners. */
  token?: string;
  /** How daemons are reached, instead of by their addresses. */
  connector?: Connector;
  clock?: Clock;
  /** @internal For tests: bits of the hash of a column, of which fewer make collisions. */
  hashBits?: number;
  /** @internal For simulations that have to be the same every time: the seed of that hash; random if left out. */
  hashSeed?: number;
}

interface Events {
  /** A stripe can be used, from now on and with nothing in it. */
  up: [stripe: number];
  /** A stripe is gone, with all that it held. The driver goes on with the rest and keeps trying to get it back. */
  down: [stripe: number, reason: string];
  /** No stripe is left, or none could be reached at a lazy start: everything is a miss until `available`. */
  unavailable: [reason: string];
  /** There is a stripe again, after `unavailable`. */
  available: [];
}

/**
 * The library inside an inference runtime: decides what is kept, finds the longest cached prefix of a prompt, and moves
 * columns. Lookups cost no round trip. Nothing in it throws because a cache is gone: that is a miss.
 */
export class SwDriver extends EventEmitter<Events> implements AsyncDisposable {
  readonly #core: DriverCore;
  readonly #modelPart: string;
  /** Namespaces of tenants without an adapter, as strings that have been put together and hashed once. */
  readonly #namespaces = new Map<string, string>();
  readonly #tags: TenantTags;
  #closed = false;
  /** What the last of `available` and `unavailable` said; undefined while nobody can listen as yet. */
  #toldUsable: boolean | undefined;
  /** Why the last stripe went down, or could not be reached. */
  #reason = '';

  private constructor(options: SwDriverOptions) {
    super();
    const { model } = options;
    const columnTokens = model.columnTokens ?? 64;
    const pieceBytes = pieceBytesOf(model, columnTokens);
    this.#modelPart = modelPartOf(model, model.bytesPerToken);
    this.#tags = new TenantTags(options.tagKey === undefined ? undefined : Buffer.from(options.tagKey));
    const stripes = options.striping === 'within' ? options.daemons.map((daemon) => [daemon]) : [options.daemons];
    this.#core = new DriverCore(
      {
        columnTokens,
        policy: policyOf(options.policy),
        deadlineMs: options.deadlineMs ?? 1_000,
        pinDeadlineMs: options.pinDeadlineMs ?? 30_000,
        places: options.memory?.places ?? options.carrier?.places ?? 0,
        stripes: stripes.map((daemons) => ({
          address: { daemons },
          pieceBytes,
          capacityColumns: options.capacityColumns ?? Number.MAX_SAFE_INTEGER,
          ringEntries: options.ringEntries ?? 1024,
          connectDeadlineMs: options.connectDeadlineMs ?? 5_000,
          silenceMs: options.deadlineMs ?? 1_000,
          // A clock of another kind is not in step with engines.
          spinUs: options.spinUs ?? (options.clock ? 0 : 20),
          placedBy: options.memory || options.carrier ? 'runtime' : 'stripe',
          ...(options.memory ? { regions: regionsOf(options.memory) } : {}),
        })),
        ...(options.hashBits === undefined ? {} : { hashBits: options.hashBits }),
        ...(options.hashSeed === undefined ? {} : { hashSeed: options.hashSeed }),
      },
      options.connector ??
        connectorFor({
          wioStreams: options.wioStreams ?? 1,
          placeBytes: options.placeBytes ?? 2 ** 25,
          checksums: options.checksums ?? false,
          ...(options.carrier ? { carrier: options.carrier } : {}),
          ...(options.token === undefined ? {} : { token: options.token }),
        }),
      options.clock ?? systemClock,
    );
    this.#core.onStripeChange = (stripe, up, reason) => {
      if (!up) this.#reason = reason;
      try {
        if (up) this.emit('up', stripe.index);
        else if (!this.#closed) this.emit('down', stripe.index, reason);
      } finally {
        // Also where a listener throws: a driver that has said that it is unavailable must say when that is over.
        this.#tellUsable();
      }
    };
  }

  /**
   * Connects to all daemons. Rejects with a KvssError that names the cause where one of them cannot be reached or has
   * no room, unless `lazy` is set.
   */
  static async connect(options: SwDriverOptions): Promise<SwDriver> {
    checkOptions(options);
    const driver = new SwDriver(options);
    const opened = await Promise.allSettled(driver.#core.stripes.map((stripe) => stripe.open()));
    const failed = opened.find((outcome) => outcome.status === 'rejected');
    if (failed && !options.lazy) {
      await driver.close();
      throw failed.reason;
    }
    for (const [index, outcome] of opened.entries()) {
      if (outcome.status === 'rejected') driver.#core.stripes[index]?.reopen();
    }
    if (failed) driver.#reason = messageOf(failed.reason);
    // Whoever awaits the driver has got it by then, and listens.
    setImmediate(() => {
      driver.#toldUsable = true;
      driver.#tellUsable();
    });
    return driver;
  }

  /**
   * Begins a sequence of a tenant. `adapter` names what else changes the KV state of the same tokens, such as a LoRA
   * adapter: sequences with different ones never share a column.
   */
  openSequence(options: { isolationId: string; adapter?: string }): Sequence {
    if (this.#closed) throw localError('KVSS_CLOSED', 'the driver is closed');
    const { isolationId, adapter = '' } = options;
    checkIsolationId(isolationId);
    return new Sequence(this.#core, this.#namespaceOf(isolationId, adapter), this.#tags.tagOf(isolationId));
  }

  /**
   * Forgets every column of a tenant that can be found and has the shards overwrite them with zeros. No match finds them from this moment
   * on; resolves with their number when they have been scrubbed.
   */
  async forget(options: { isolationId: string }): Promise<number> {
    checkIsolationId(options.isolationId);
    const prefix = tenantPartOf(options.isolationId);
    const counts = await Promise.all(
      this.#core.map
        .rootsBelow(prefix)
        .flatMap((root) => this.#core.map.children(root).map((node) => this.#core.erase(node))),
    );
    return counts.reduce((sum, count) => sum + count, 0);
  }

  /** What the driver has counted so far. */
  get stats(): Readonly<DriverStats> {
    return { ...this.#core.stats };
  }

  /** Bytes of pieces that this process has sent to and received from shards; 0 over shared memory and with a carrier. */
  get payloadBytes(): number {
    return this.#core.stripes.reduce((sum, stripe) => sum + stripe.payloadBytes, 0);
  }

  /** @internal Columns that lookups have met in their bucket and that were not those that they looked for. */
  get collisions(): number {
    return this.#core.map.collisions;
  }

  /** Columns that can be found now. */
  get columns(): number {
    return this.#core.map.stored;
  }

  /**
   * Whether any stripe is up, so that whole columns can be held; agrees with the last of `available` and `unavailable`.
   * A daemon that does not answer counts until it has been given up.
   */
  get usable(): boolean {
    return this.capacityColumns > 0;
  }

  /** Columns that there is room for now; 0 while no stripe can be used. */
  get capacityColumns(): number {
    return this.#core.stripes.reduce((sum, stripe) => sum + stripe.capacity, 0);
  }

  /** Bytes of the piece of each shard of a stripe. */
  get pieceBytes(): readonly number[] {
    return this.#core.settings.stripes[0]?.pieceBytes ?? [];
  }

  get columnTokens(): number {
    return this.#core.settings.columnTokens;
  }

  /** Leaves the daemons, which scrub and take back the memory. Calls in flight end as misses. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#core.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #namespaceOf(isolationId: string, adapter: string): string {
    if (adapter !== '') return namespaceOf(this.#modelPart, isolationId, adapter);
    let namespace = this.#namespaces.get(isolationId);
    if (namespace === undefined) {
      namespace = namespaceOf(this.#modelPart, isolationId, adapter);
      this.#namespaces.set(isolationId, namespace);
    }
    return namespace;
  }

  #tellUsable(): void {
    const { usable } = this;
    if (this.#closed || this.#toldUsable === undefined || this.#toldUsable === usable) return;
    this.#toldUsable = usable;
    if (usable) this.emit('available');
    else this.emit('unavailable', this.#reason);
  }
}

function checkOptions(options: SwDriverOptions): void {
  const bad = (message: string) => localError('KVSS_BAD_INPUT', message);
  if (options.capacityColumns !== undefined && !Number.isInteger(options.capacityColumns)) {
    throw bad(`capacityColumns: ${options.capacityColumns} is no whole number`);
  }
  if (options.daemons.length === 0) throw bad('daemons: at least one is needed');
  if (options.striping !== 'within' && options.connector === undefined) {
    const streams = options.daemons.filter((daemon) => parseStreamAddress(daemon) !== undefined).length;
    if (streams > 0 && streams < options.daemons.length) {
      throw bad(
        "daemons: a column cannot lie across shared memory and streams; use streams for all, or striping 'within'",
      );
    }
  }
  if (options.model.bytesPerToken.length === 0) throw bad('model.bytesPerToken: at least one shard is needed');
  for (const key of ['id', 'revision', 'dtype', 'layout'] as const) {
    if (!options.model[key]) throw bad(`model.${key}: must not be empty`);
  }
  const { columnTokens = 64, bytesPerToken } = options.model;
  if (!Number.isInteger(columnTokens) || columnTokens < 1 || columnTokens > 65_536) {
    throw bad(`model.columnTokens: ${columnTokens} is outside 1..65536`);
  }
  checkMemory(options, pieceBytesOf({ ...options.model, bytesPerToken }, columnTokens), bad);
  for (const key of ['capacityColumns', 'deadlineMs', 'pinDeadlineMs', 'connectDeadlineMs'] as const) {
    const value = options[key];
    if (value !== undefined && !(value > 0)) throw bad(`${key}: ${value} must be above 0`);
  }
  if (options.tagKey !== undefined && options.tagKey.length < 16) throw bad('tagKey: at least 16 bytes are needed');
}

const policyOf = (policy: string | EvictionPolicy = DEFAULT_POLICY): EvictionPolicy =>
  typeof policy === 'string' ? policyNamed(policy) : policy;

function checkMemory(
  { memory, carrier }: SwDriverOptions,
  pieceBytes: readonly number[],
  bad: (message: string) => KvssError,
): void {
  if (memory && carrier) throw bad('memory: the carrier has the memory; give one of the two');
  if (carrier && carrier.pieceBytes.join() !== pieceBytes.join()) {
    throw bad(`carrier: it has pieces of ${carrier.pieceBytes} bytes, the model makes pieces of ${pieceBytes} bytes`);
  }
  if (!memory) return;
  if (!Number.isInteger(memory.places) || memory.places < 1)
    throw bad(`memory.places: ${memory.places} is no number of places`);
  if (memory.regions.length !== pieceBytes.length) {
    throw bad(`memory.regions: ${memory.regions.length} regions for ${pieceBytes.length} shards`);
  }
  for (const [shard, region] of memory.regions.entries()) {
    const bytes = pieceBytes[shard] as number;
    if (!(region.strideBytes >= bytes) || region.memory.byteLength < (memory.places - 1) * region.strideBytes + bytes) {
      throw bad(`memory.regions[${shard}]: ${memory.places} places of ${bytes} bytes do not fit`);
    }
  }
}

const regionsOf = ({ places, regions }: ColumnMemory): PlaceMemory[] =>
  regions.map(({ memory, strideBytes }) => ({ memory, strideBytes, places }));

function checkIsolationId(isolationId: unknown): void {
  if (typeof isolationId !== 'string' || isolationId === '') {
    throw localError('KVSS_BAD_INPUT', 'isolationId: every sequence belongs to a tenant; a non-empty string is needed');
  }
}
