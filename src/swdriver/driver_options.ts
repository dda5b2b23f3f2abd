import type { Clock } from '../common/clock.js';
import { type KvssError, localError } from '../common/errors.js';
import type { Carrier } from '../links/carrier.js';
import type { Connector, PlaceMemory } from '../links/link.js';
import { parseStreamAddress } from '../links/stream_address.js';
import { DEFAULT_POLICY, type EvictionPolicy, policyNamed } from './eviction_policy.js';
import { DEFAULT_COLUMN_TOKENS, type Group, groupsOf, type Model } from './model.js';
import type { ColumnMemory } from './runtime.js';
import type { GroupSettings } from './stripe.js';
import type { TenantPolicies } from './tenant_policies.js';

/** How a driver is connected. Only `daemons` and `model` have to be given. */
export interface SwDriverOptions {
  /**
   * Where the daemons are: the path of a Unix socket for shared memory, or `tcp://HOST:PORT` or `unix:PATH` for streams.
   */
  daemons: readonly string[];
  /** What the pieces are, and of which sizes. */
  model: Model;
  /**
   * Where a column lives: `across` the shards of all daemons (the default; it is lost when any of them goes), or
   * `within` one daemon, so that the driver goes on with the others when one goes. `bytesPerToken` of the model has one
   * entry for each shard of a stripe: of all daemons, or of each daemon.
   */
  striping?: 'across' | 'within';
  /** Most columns to keep memory for, in each stripe. As many as the shards have room for if left out. */
  capacityColumns?: number;
  /** What goes first when room is needed: a policy or its name, `hit-density` (the default), `hit-density-by-cost` or `lru`. */
  policy?: string | EvictionPolicy;
  /**
   * Whether tenants get equal shares of the memory where they want more than there is: the one that has most, above its
   * share, makes room for one below its own. Without it the policy alone decides, whoever's the columns are.
   */
  fairShares?: boolean;
  /**
   * Longest that one evict or refill call waits for the shards, in milliseconds; what the runtime itself takes does not
   * count. Give calls that move much over a slow link more. 1,000 if left out.
   */
  deadlineMs?: number;
  /** Longest that a hit stays pinned, in milliseconds. 30,000 if left out. */
  pinDeadlineMs?: number;
  /** Longest that connecting to a daemon, or one of its answers, may take, in milliseconds. 5,000 if left out. */
  connectDeadlineMs?: number;
  /**
   * Same host only: longest that a call keeps the event loop while it looks for the answer of engines that are awake, in
   * microseconds. Waking the event loop takes several times as long. 0: not at all. 20 if left out.
   */
  spinUs?: number;
  /** Start also while daemons cannot be reached, and keep trying. Everything is a miss until then. */
  lazy?: boolean;
  /** Operations that each queue of each shard holds. A power of two; 1,024 if left out. */
  ringEntries?: number;
  /** Key of the tenants' tags; random if left out. At least 16 bytes. */
  tagKey?: Uint8Array;
  /** Streams only: lanes for payload of each direction, for each shard. 1 if left out. */
  wioStreams?: number;
  /** Streams only: memory for pieces on their way, for each shard. 32 MiB if left out. */
  placeBytes?: number;
  /**
   * Memory of the runtime in this process, with places for columns. Streams send from it and receive into it; sources and
   * sinks then name places. One for each group, by its name, in a model with several.
   */
  memory?: ColumnMemory | Readonly<Record<string, ColumnMemory>>;
  /**
   * Streams only: another process that has the memory and moves the payload, such as an accelerator's host or `kvss wafer`.
   * No byte of a column passes through this process; sources and sinks name places of the carrier. For models of one group.
   */
  carrier?: Carrier;
  /** Streams only: payload carries a CRC-32C both ways; damaged bytes are a miss. Off if left out: TCP has its own. */
  checksums?: boolean;
  /** Streams only: secret of the daemons' listeners. */
  token?: string;
  /** How daemons are reached, instead of by their addresses. */
  connector?: Connector;
  /** Time for deadlines, pins and expiry; for tests and simulations. */
  clock?: Clock;
  /**
   * Policies of tenants, kept by the embedder, in place of the driver's own `policies`. What daemons say counts as well; of
   * each field the strictest holds.
   */
  policies?: TenantPolicies;
  /**
   * An expired column is never returned; it is deleted, and the shards are told to scrub it, at most this long after it has
   * expired, in milliseconds. 1,000 if left out.
   */
  expiryTickMs?: number;
  /**
   * Has the daemons keep the columns where the driver dies, so that SwDriver.resume with the same key finds them again. Costs
   * a record a column, about 1.2 KiB, on the first shard.
   */
  resume?: ResumeOptions;
  /** How often the driver tells its daemons how it does, in milliseconds; 0 for never. 5,000 if left out. */
  reportMs?: number;
  /** @internal For tests: bits of the hash of a column, of which fewer make collisions. */
  hashBits?: number;
  /** @internal For simulations that have to be the same every time: the seed of that hash; random if left out. */
  hashSeed?: number;
}

/** How a driver comes back to what it had stored when it died. */
export interface ResumeOptions {
  /**
   * At least 32 random bytes that only this driver has, before and after it is started again. One key for each driver that
   * runs at a time. Whoever has it, and the daemons' permission to connect, can read the records of the columns.
   */
  key: Uint8Array;
  /** How long the daemons are to keep the columns, in milliseconds; they have a bound of their own. 60,000 if left out. */
  parkMs?: number;
}

/** A day. */
const LONGEST_PARK_MS = 86_400_000;

/** Every option there is: one that is misspelt must not be overlooked, because it may be a restriction. */
const OPTIONS: Readonly<Record<keyof SwDriverOptions, true>> = {
  daemons: true,
  model: true,
  striping: true,
  capacityColumns: true,
  policy: true,
  fairShares: true,
  deadlineMs: true,
  pinDeadlineMs: true,
  connectDeadlineMs: true,
  spinUs: true,
  lazy: true,
  ringEntries: true,
  tagKey: true,
  wioStreams: true,
  placeBytes: true,
  memory: true,
  carrier: true,
  checksums: true,
  token: true,
  connector: true,
  clock: true,
  policies: true,
  expiryTickMs: true,
  resume: true,
  reportMs: true,
  hashBits: true,
  hashSeed: true,
};

/** Throws KVSS_BAD_INPUT for options that make no sense, with the name of the key. */
export function checkOptions(options: SwDriverOptions): void {
  const bad = (message: string) => localError('KVSS_BAD_INPUT', message);
  checkKeys(options, OPTIONS, 'options');
  if (!Array.isArray(options.daemons)) throw bad('daemons: a list of addresses is needed');
  if (typeof options.model !== 'object' || options.model === null)
    throw bad('model: a description of the model is needed');
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
  for (const key of ['id', 'revision', 'dtype', 'layout'] as const) {
    if (!options.model[key]) throw bad(`model.${key}: must not be empty`);
  }
  const { columnTokens = DEFAULT_COLUMN_TOKENS } = options.model;
  if (!Number.isInteger(columnTokens) || columnTokens < 1 || columnTokens > 65_536) {
    throw bad(`model.columnTokens: ${columnTokens} is outside 1..65536`);
  }
  const parkMs = options.resume?.parkMs ?? 1;
  if (!Number.isInteger(parkMs) || parkMs < 1 || parkMs > LONGEST_PARK_MS) {
    throw bad(`resume.parkMs: ${parkMs} is outside 1..${LONGEST_PARK_MS}`);
  }
  const groups = groupsOf(options.model);
  checkCarrier(options, groups, bad);
  checkMemory(options, groups, bad);
  for (const key of ['capacityColumns', 'deadlineMs', 'pinDeadlineMs', 'connectDeadlineMs', 'expiryTickMs'] as const) {
    const value = options[key];
    if (value !== undefined && !(value > 0)) throw bad(`${key}: ${value} must be above 0`);
  }
  if (options.tagKey !== undefined && options.tagKey.length < 16) throw bad('tagKey: at least 16 bytes are needed');
}

/** The policy that the options ask for. */
export const policyOf = (policy: string | EvictionPolicy = DEFAULT_POLICY): EvictionPolicy =>
  typeof policy === 'string' ? policyNamed(policy) : policy;

function checkCarrier(
  { memory, carrier, resume }: SwDriverOptions,
  groups: readonly Group[],
  bad: (message: string) => KvssError,
): void {
  if (!carrier) return;
  if (memory) throw bad('memory: the carrier has the memory; give one of the two');
  if (resume) throw bad('carrier: the records of columns cannot lie with a carrier; leave resume out');
  if (groups.length > 1) throw bad('carrier: a carrier has pieces of one group, the model has several');
  const { pieceBytes } = groups[0] as Group;
  if (carrier.pieceBytes.join() !== pieceBytes.join()) {
    throw bad(`carrier: it has pieces of ${carrier.pieceBytes} bytes, the model makes pieces of ${pieceBytes} bytes`);
  }
}

function checkMemory(options: SwDriverOptions, groups: readonly Group[], bad: (message: string) => KvssError): void {
  if (!options.memory) return;
  for (const group of groups) {
    const at = isColumnMemory(options.memory) ? 'memory' : `memory.${group.name}`;
    const memory = memoryOf(options, group);
    if (!memory) throw bad(`${at}: missing; every group has its own`);
    if (isColumnMemory(options.memory) && groups.length > 1) {
      throw bad('memory: the model has several groups; give memory for each, by its name');
    }
    if (!Number.isInteger(memory.places) || memory.places < 1) {
      throw bad(`${at}.places: ${memory.places} is no number of places`);
    }
    if (memory.regions.length !== group.pieceBytes.length) {
      throw bad(`${at}.regions: ${memory.regions.length} regions for ${group.pieceBytes.length} shards`);
    }
    for (const [shard, region] of memory.regions.entries()) {
      const bytes = group.pieceBytes[shard] as number;
      const needed = bytes === 0 ? 0 : (memory.places - 1) * region.strideBytes + bytes;
      if (!(region.strideBytes >= bytes) || region.memory.byteLength < needed) {
        throw bad(`${at}.regions[${shard}]: ${memory.places} places of ${bytes} bytes do not fit`);
      }
    }
  }
}

function isColumnMemory(memory: NonNullable<SwDriverOptions['memory']>): memory is ColumnMemory {
  return Array.isArray((memory as ColumnMemory).regions);
}

/** The runtime's memory for a group. */
export function memoryOf({ memory }: SwDriverOptions, group: Group): ColumnMemory | undefined {
  if (!memory || isColumnMemory(memory)) return memory;
  return memory[group.name];
}

/** What a stripe has to know of a group. */
export function groupSettings(options: SwDriverOptions, group: Group): GroupSettings {
  // What the driver keeps of its own does not lie in the runtime's memory.
  const memory = group.internal ? undefined : memoryOf(options, group);
  return {
    name: group.name,
    pieceBytes: group.pieceBytes,
    keepsAll: group.keepsAll,
    slotsFor: group.slotsFor,
    ringEntries: options.ringEntries ?? 1024,
    silenceMs: options.deadlineMs ?? 1_000,
    // A clock of another kind is not in step with engines.
    spinUs: options.spinUs ?? (options.clock ? 0 : 20),
    placedBy: memory || options.carrier ? 'runtime' : 'stripe',
    ...(memory ? { regions: regionsOf(memory) } : {}),
  };
}

const regionsOf = ({ places, regions }: ColumnMemory): PlaceMemory[] =>
  regions.map(({ memory, strideBytes }) => ({ memory, strideBytes, places }));

/** Throws KVSS_BAD_INPUT for what is no tenant. */
export function checkIsolationId(isolationId: unknown): void {
  if (typeof isolationId !== 'string' || isolationId === '') {
    throw localError('KVSS_BAD_INPUT', 'isolationId: every sequence belongs to a tenant; a non-empty string is needed');
  }
}

/** Throws KVSS_BAD_INPUT for what is no object, and for keys that are not known. */
export function checkKeys(value: unknown, known: Readonly<Record<string, true>>, source: string): void {
  if (typeof value !== 'object' || value === null) throw localError('KVSS_BAD_INPUT', `${source}: an object is needed`);
  for (const key in value) {
    if (known[key] !== true) throw localError('KVSS_BAD_INPUT', `${source}: there is no '${key}'`);
  }
}
