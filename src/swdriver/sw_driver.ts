import { createHash } from 'node:crypto';
import { EventEmitter } from 'node:events';
import type { Registry } from 'prom-client';
import { type Clock, systemClock } from '../common/clock.js';
import { localError, messageOf } from '../common/errors.js';
import { hashText } from '../common/hash_text.js';
import { connectorFor } from '../links/connect.js';
import type { DaemonConnection } from '../links/link.js';
import type { DriverReport } from '../proto/frames.js';
import { publish } from './accounting/channels.js';
import { collectInto, type DriverMetricsSource } from './accounting/driver_metrics.js';
import type { CurvePoint } from './accounting/what_if.js';
import { ColumnRecords, ownerKeysOf, recordBytesOf } from './column_records.js';
import { DriverCore } from './driver_core.js';
import {
  checkIsolationId,
  checkKeys,
  checkOptions,
  groupSettings,
  memoryOf,
  policyOf,
  type SwDriverOptions,
} from './driver_options.js';
import type { DriverStats, GroupStats } from './driver_stats.js';
import { DEFAULT_COLUMN_TOKENS, type Group, groupsOf, modelPartOf, namespaceOf, withRecords } from './model.js';
import { type ReturnedStripe, recoverColumns } from './recovery.js';
import { Sequence } from './sequence.js';
import type { Stripe } from './stripe.js';
import { Tenant } from './tenant.js';
import { TenantPolicies } from './tenant_policies.js';
import { TenantTags } from './tenant_tags.js';

export type { ResumeOptions, SwDriverOptions } from './driver_options.js';

/** What a driver that was started again has found. */
export interface Resumed {
  /** Columns that can be found again. */
  readonly columns: number;
  /** Columns that were there and that it did not believe in: not whole, damaged, or not continuing anything that is there. */
  readonly doubtful: number;
}

/** A group of the model as the driver serves it. */
export interface GroupInfo {
  readonly name: string;
  /** Bytes of the piece of each shard of a stripe; 0 where a shard has no layers of the group. */
  readonly pieceBytes: readonly number[];
  /** Last columns of a prefix that a hit needs; infinite for layers that see all tokens. */
  readonly windowColumns: number;
  /** Whether a prefix can be used only where this group has what it needs. */
  readonly required: boolean;
}

/** Events of a SwDriver, with what their listeners get. */
export interface SwDriverEvents {
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
export class SwDriver extends EventEmitter<SwDriverEvents> implements AsyncDisposable {
  readonly #core: DriverCore;
  readonly #modelPart: string;
  /** Namespaces of tenants without an adapter, as strings that have been put together and hashed once. */
  readonly #namespaces = new Map<string, string>();
  readonly #tags: TenantTags;
  /** What may be kept of which tenant: set policies here, from code. */
  readonly policies: TenantPolicies;
  readonly #tenants = new Map<string, Tenant>();
  readonly #model: string;
  readonly #number = nextNumber();
  /** Brings back what an earlier driver with the same key has left. */
  readonly #secret: Uint8Array | undefined;
  #resumed: Resumed = { columns: 0, doubtful: 0 };
  /** Stripes that have come back, and of which the columns have not been looked at. */
  readonly #returned: ReturnedStripe[] = [];
  readonly #reportMs: number;
  readonly #clock: Clock;
  /** The newest connection to each daemon. */
  readonly #connections = new Map<string, DaemonConnection>();
  #cancelReport: (() => void) | undefined;
  #stopListening: () => void = () => {};
  #closed = false;
  /** What the last of `available` and `unavailable` said; undefined while nobody can listen as yet. */
  #toldUsable: boolean | undefined;
  /** Why the last stripe went down, or could not be reached. */
  #reason = '';

  private constructor(options: SwDriverOptions) {
    super();
    const { model } = options;
    const columnTokens = model.columnTokens ?? DEFAULT_COLUMN_TOKENS;
    const modelGroups = groupsOf(model);
    this.#modelPart = modelPartOf(model, modelGroups);
    const keys = options.resume && ownerKeysOf(options.resume.key);
    this.#secret = keys?.secret;
    const records =
      keys &&
      new ColumnRecords(keys.recordKey, identityOf(this.#modelPart, modelGroups), columnTokens, modelGroups.length + 1);
    const groups = keys ? withRecords(modelGroups, recordBytesOf(columnTokens, modelGroups.length + 1)) : modelGroups;
    const park = keys && { owner: keys.owner, ms: options.resume?.parkMs ?? 60_000 };
    this.#tags = new TenantTags(options.tagKey === undefined ? keys?.tagKey : Buffer.from(options.tagKey));
    const stripes = options.striping === 'within' ? options.daemons.map((daemon) => [daemon]) : [options.daemons];
    this.#core = new DriverCore(
      {
        columnTokens,
        policy: policyOf(options.policy),
        fairShares: options.fairShares ?? false,
        deadlineMs: options.deadlineMs ?? 1_000,
        pinDeadlineMs: options.pinDeadlineMs ?? 30_000,
        groups,
        places: groups.map(
          (group) => (group.internal ? 0 : memoryOf(options, group)?.places) ?? options.carrier?.places ?? 0,
        ),
        stripes: stripes.map((daemons, index) => ({
          address: { daemons },
          groups: groups.map((group) => ({
            ...groupSettings(options, group),
            ...(park ? { park: { ...park, label: labelOf(index, group) } } : {}),
          })),
          capacityColumns: options.capacityColumns ?? Number.MAX_SAFE_INTEGER,
          connectDeadlineMs: options.connectDeadlineMs ?? 5_000,
        })),
        ...(options.hashBits === undefined ? {} : { hashBits: options.hashBits }),
        ...(options.hashSeed === undefined ? {} : { hashSeed: options.hashSeed }),
        model: model.id,
        expiryTickMs: options.expiryTickMs ?? 1_000,
        records,
        wallNow: Date.now,
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
    this.#model = model.id;
    this.#reportMs = options.reportMs ?? 5_000;
    this.#clock = options.clock ?? systemClock;
    this.policies = options.policies ?? new TenantPolicies();
    this.#stopListening = this.policies.onChange((change) => {
      for (const tenant of this.#tenants.values()) if (change.concerns(tenant.isolationId)) this.#refresh(tenant);
    });
    this.#core.onConnection = (address, connection) => {
      this.#connections.set(address, connection);
      this.policies.follow(this.#sourceOf(address), connection.policies);
    };
    this.#core.onStripeChange = (stripe, up, reason) => {
      if (!up) this.#reason = reason;
      publish('kvss:stripe', () => ({ model: this.#model, stripe: stripe.index, up, reason }));
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
   * no room, unless `lazy` is set: KVSS_UNREACHABLE, KVSS_TIMEOUT, KVSS_NO_MEMORY, or what the daemon refuses it for. Rejects
   * with KVSS_BAD_INPUT that names the key for options that make no sense.
   */
  static connect(options: SwDriverOptions): Promise<SwDriver> {
    return SwDriver.#start(options, (stripe) => stripe.open());
  }

  /**
   * The same as `connect`, for a driver that is started again: what an earlier one with the same key and model left in the
   * daemons' memory is found again, as far as nothing about it is doubtful; see `resumed`. A stripe of which not all is there
   * any more begins empty. Columns last used before the restart count as used when they were stored. Throws KVSS_BAD_INPUT
   * without `resume` in the options.
   */
  static async resume(options: SwDriverOptions): Promise<SwDriver> {
    if (!options.resume)
      throw localError('KVSS_BAD_INPUT', 'resume: the key of the driver that was there before is needed');
    return SwDriver.#start(options, (stripe, driver) => driver.#takeBack(stripe));
  }

  static async #start(
    options: SwDriverOptions,
    open: (stripe: Stripe, driver: SwDriver) => Promise<void>,
  ): Promise<SwDriver> {
    checkOptions(options);
    const driver = new SwDriver(options);
    const opened = await Promise.allSettled(driver.#core.stripes.map((stripe) => open(stripe, driver)));
    const failed = opened.find((outcome) => outcome.status === 'rejected');
    if (failed && !options.lazy) {
      // What has come back already waits for the next try.
      await driver.close({ park: driver.#returned.length > 0 });
      throw failed.reason;
    }
    await driver.#recover();
    for (const [index, outcome] of opened.entries()) {
      if (outcome.status === 'rejected') driver.#core.stripes[index]?.reopen();
    }
    if (failed) driver.#reason = messageOf(failed.reason);
    driver.#reportLater();
    await driver.#policiesKnown(options.connectDeadlineMs ?? 5_000);
    // Whoever awaits the driver has got it by then, and listens.
    setImmediate(() => {
      driver.#toldUsable = true;
      driver.#tellUsable();
    });
    return driver;
  }

  /**
   * Begins a sequence of a tenant. `adapter` names what else changes the KV state of the same tokens, such as a LoRA
   * adapter: sequences with different ones never share a column. Throws KVSS_BAD_INPUT for an empty `isolationId`, KVSS_CLOSED
   * after close().
   */
  openSequence(options: { isolationId: string; adapter?: string }): Sequence {
    if (this.#closed) throw localError('KVSS_CLOSED', 'the driver is closed');
    checkKeys(options, SEQUENCE_OPTIONS, 'openSequence');
    const { isolationId, adapter = '' } = options;
    checkIsolationId(isolationId);
    if (typeof adapter !== 'string') throw localError('KVSS_BAD_INPUT', 'adapter: a string is needed');
    const tenant = this.#tenantOf(isolationId);
    return new Sequence(this.#core, tenant, this.#namespaceOf(isolationId, adapter), adapter);
  }

  /**
   * Forgets every column of a tenant that can be found and has the shards overwrite them with zeros. No match finds them from this moment
   * on; resolves with their number when they have been scrubbed, or the deadline has passed. Rejects with KVSS_BAD_INPUT for an
   * empty `isolationId`.
   */
  async forget(options: { isolationId: string }): Promise<number> {
    checkIsolationId(options.isolationId);
    const tenant = this.#tenants.get(options.isolationId);
    return tenant ? this.#core.forget(tenant) : 0;
  }

  /** What SwDriver.resume has found. */
  get resumed(): Resumed {
    return this.#resumed;
  }

  /** What the driver has counted so far: a copy. */
  get stats(): Readonly<DriverStats> {
    return { ...this.#core.stats };
  }

  /** What has been moved of each group, in the order of `groups`. */
  get groupStats(): readonly Readonly<GroupStats>[] {
    const { groupStats, recordGroup } = this.#core;
    return groupStats.filter((_, group) => group !== recordGroup).map((stats) => ({ ...stats }));
  }

  /** Bytes of pieces that this process has sent to and received from shards; 0 over shared memory and with a carrier. */
  get payloadBytes(): number {
    return this.#core.stripes.reduce((sum, stripe) => sum + stripe.payloadBytes, 0);
  }

  /** @internal Columns that lookups have met in their bucket and that were not those that they looked for. */
  get collisions(): number {
    return this.#core.map.collisions;
  }

  /** @internal Bytes of a tenant's columns, stored and on their way: what its quota limits. */
  storedBytesOf(isolationId: string): number {
    return this.#tenants.get(isolationId)?.storedBytes ?? 0;
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

  /** Bytes of the pieces of a column on each shard of a stripe, of all groups together. */
  get pieceBytes(): readonly number[] {
    const { groups } = this.#core.settings;
    const own = groups.filter(({ internal }) => !internal);
    return (groups[0] as Group).pieceBytes.map((_, shard) =>
      own.reduce((sum, { pieceBytes }) => sum + (pieceBytes[shard] as number), 0),
    );
  }

  /** Groups of the model, in the order in which runtimes are asked for their pieces. */
  get groups(): readonly GroupInfo[] {
    const { groups } = this.#core.settings;
    const own = groups.filter(({ internal }) => !internal);
    return own.map(({ name, pieceBytes, windowColumns, required }) => ({
      name,
      pieceBytes,
      windowColumns,
      required,
    }));
  }

  /** Tokens of a column. */
  get columnTokens(): number {
    return this.#core.settings.columnTokens;
  }

  /**
   * What Prometheus wants to know of the driver, registered with a registry of the embedder: tokens hit and missed by tenant
   * class and cause, columns, latencies, and the hit rate that other capacities would have. Read when scraped. For several
   * drivers use collectInto with `metricsSource`.
   */
  registerMetrics(registry: Registry): void {
    collectInto(registry, () => [this.metricsSource]);
  }

  /** The figures of the driver, as they are whenever they are read. */
  get metricsSource(): DriverMetricsSource {
    const core = this.#core;
    const driver = this;
    return {
      model: this.#model,
      policy: core.settings.policy.name,
      accounts: core.accounting.accounts,
      latencies: core.accounting.latencies,
      get columns() {
        return driver.columns;
      },
      get capacityColumns() {
        return driver.capacityColumns;
      },
      curve: () => core.accounting.curve.curve(),
    };
  }

  /** How the driver does, in short. */
  get report(): DriverReport {
    const { accounting, settings } = this.#core;
    const { lookups, promptTokens, hitTokens, missTokens } = accounting.accounts.total();
    return {
      model: this.#model,
      policy: settings.policy.name,
      columns: this.columns,
      capacityColumns: this.capacityColumns,
      lookups,
      promptTokens,
      hitTokens,
      missTokens: missTokens.toJSON(),
      curve: risingPoints(accounting.curve.curve()),
    };
  }

  /**
   * Leaves the daemons, which scrub and take back the memory; that may still go on when this resolves. Calls in flight end as
   * misses, and later ones find and store nothing. With `park` a driver with a `resume` key has them keep it for the next
   * one, as if it had died.
   */
  async close(options: { park?: boolean } = {}): Promise<void> {
    this.#closed = true;
    this.#cancelReport?.();
    this.#stopListening();
    for (const address of this.#connections.keys()) this.policies.forget(this.#sourceOf(address));
    this.#core.close(options.park);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** How the policies of a daemon are called among those of several drivers that share them. */
  #sourceOf(address: string): string {
    return `${this.#number}:${address}`;
  }

  /** Opens a stripe with what an earlier driver has left there, or empty. */
  async #takeBack(stripe: Stripe): Promise<void> {
    const slots = await stripe.resume(this.#secret as Uint8Array);
    if (!slots) return stripe.open();
    this.#returned.push({ stripe, epoch: stripe.epoch, slots });
  }

  /** Finds the columns of all stripes that have come back: one may continue those of another. */
  async #recover(): Promise<void> {
    const returned = this.#returned.splice(0);
    if (returned.length === 0) return;
    this.#resumed = await recoverColumns(this.#core, returned, ({ isolationId, adapter }) => {
      if (isolationId === '') return undefined;
      const tenant = this.#tenantOf(isolationId);
      const root = this.#core.adopt(tenant, this.#namespaceOf(isolationId, adapter), adapter);
      return { tenant, root, extra: hashText(adapter) };
    });
    for (const tenant of this.#tenants.values()) this.#refresh(tenant);
  }

  #tenantOf(isolationId: string): Tenant {
    const known = this.#tenants.get(isolationId);
    if (known) return known;
    const policy = this.policies.policyOf(isolationId);
    const account = this.#core.accounting.accounts.of(policy.tenantClass ?? DEFAULT_CLASS);
    const tenant = new Tenant(isolationId, this.#tags.tagOf(isolationId), policy, account);
    this.#tenants.set(isolationId, tenant);
    return tenant;
  }

  #refresh(tenant: Tenant): void {
    tenant.policy = this.policies.policyOf(tenant.isolationId);
    tenant.account = this.#core.accounting.accounts.of(tenant.policy.tenantClass ?? DEFAULT_CLASS);
    this.#core.policyChanged(tenant);
  }

  #reportLater(): void {
    if (this.#reportMs === 0) return;
    this.#cancelReport = this.#clock.schedule(this.#reportMs, () => {
      const { report } = this;
      for (const connection of this.#connections.values()) if (!connection.ended) connection.report(report);
      this.#reportLater();
    });
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

  /** Until the policies of the daemons are known nothing is stored or found: a driver that is there should be of use. */
  #policiesKnown(deadlineMs: number): Promise<void> {
    if (this.policies.known) return Promise.resolve();
    return new Promise((resolve) => {
      const done = () => {
        cancel();
        stop();
        resolve();
      };
      const cancel = this.#clock.schedule(deadlineMs, done);
      const stop = this.policies.onChange(() => {
        if (this.policies.known) done();
      });
    });
  }

  #tellUsable(): void {
    const { usable } = this;
    if (this.#closed || this.#toldUsable === undefined || this.#toldUsable === usable) return;
    this.#toldUsable = usable;
    if (usable) this.emit('available');
    else this.emit('unavailable', this.#reason);
  }
}

const SEQUENCE_OPTIONS = { isolationId: true, adapter: true } as const;

let drivers = 0;
const nextNumber = () => ++drivers;

/** What the memory of a group is parked under. Names of groups have any length, labels have not. */
function labelOf(stripe: number, { name }: Group): string {
  return `${stripe}/${createHash('sha256').update(name).digest('base64url')}`;
}

/** All that has to be the same for a record of a column to mean anything. */
function identityOf(modelPart: string, groups: readonly Group[]): string {
  return JSON.stringify([
    modelPart,
    groups.map(({ name, windowColumns, required }) => [name, `${windowColumns}`, required]),
  ]);
}

/** Tenants without a class of their own. */
const DEFAULT_CLASS = 'default';

/** Small caches have points that fall together. */
function risingPoints(points: readonly CurvePoint[]): CurvePoint[] {
  return points.filter(({ columns }, index) => index === 0 || columns > (points[index - 1] as CurvePoint).columns);
}
