import { systemClock } from '../common/clock.js';
import { seededRandom } from '../common/random.js';
import { type LinkName, startChildDaemon } from '../kvss/child_daemon.js';
import { connectorFor } from '../links/connect.js';
import { slotBytesOf } from '../proto/slots.js';
import type { Sequence } from '../swdriver/sequence.js';
import { SwDriver } from '../swdriver/sw_driver.js';
import { overTopology } from '../wafer/shaped_link.js';
import { type PathInput, Topology, type TopologyInput } from '../wafer/topology.js';

/** Both jobs over the shared spine, or each over a rail of its own. */
export const ARRANGEMENTS = ['spine', 'rails'] as const;
export type Arrangement = (typeof ARRANGEMENTS)[number];

export interface SpineOptions {
  /** How long each arrangement begins new bursts. */
  seconds: number;
  /** Columns of a burst. */
  columns: number;
  /** Mean time from the beginning of one burst of a job to that of its next. */
  periodMs: number;
  /** Longest that a column may take; one that takes longer is dropped. */
  deadlineMs: number;
  link: LinkName;
  rail: PathInput;
  spine: PathInput;
  spineUse: NonNullable<TopologyInput['spineUse']>;
  seed: number;
  /** Gets one line for each link that crosses the spine. */
  warn: (message: string) => void;
}

export interface JobFigures {
  job: string;
  bursts: number;
  /** Bursts of which a column missed its deadline. */
  lateBursts: number;
  /** Columns of all bursts. */
  columns: number;
  columnsDropped: number;
  /**
   * From the beginning of its burst until a column is stored on all shards, of all columns: null where that many are
   * not stored by the deadline.
   */
  p50Ms: number | null;
  p99Ms: number | null;
  /** Of stored columns. */
  bytesPerSecond: number;
  /** Columns of the last burst that were refilled and compared. */
  columnsVerified: number;
  mismatches: number;
}

export interface ArrangementFigures {
  over: Arrangement;
  /** Links that cross the spine. */
  spineLinks: number;
  /** Bytes that evicts have sent over the spine, and over each rail. */
  spineBytes: number;
  railBytes: number[];
  jobs: JobFigures[];
}

export interface Measured {
  readonly figures: ArrangementFigures;
  /** Of the stored columns of both jobs, rising. */
  readonly latenciesMs: readonly number[];
}

const COLUMN_TOKENS = 64;
/** Two shards, one a domain, unequal. */
const BYTES_PER_TOKEN = [1_536, 2_560];
const PIECE_BYTES = BYTES_PER_TOKEN.map((bytes) => bytes * COLUMN_TOKENS);
export const COLUMN_BYTES = PIECE_BYTES.reduce((sum, bytes) => sum + bytes, 0);
/** Bursts that a job's shards have room for: the oldest columns make room for the new ones. */
const BURSTS_KEPT = 4;
const BUDGET_UNIT = 2 ** 21;
const VERIFY_TRIES = 50;
const VERIFY_PAUSE_MS = 100;
const JOBS = ['a', 'b'];

/**
 * Two jobs evict bursts of columns at random moments, as wafers do under memory pressure, each to a daemon of its own:
 * first with every daemon at the leaf of the other job's box, so that all bytes cross the spine, then each at the leaf
 * of its own job's box. The seed decides the pauses, the same for both arrangements.
 */
export async function* measureSpine(options: SpineOptions): AsyncGenerator<Measured> {
  for (const over of ARRANGEMENTS) yield await measure(over, options);
}

/** A quantile for people. */
export function quantileText(ms: number | null, deadlineMs: number): string {
  return ms === null ? `over ${deadlineMs} ms` : `${ms.toFixed(1)} ms`;
}

async function measure(over: Arrangement, options: SpineOptions): Promise<Measured> {
  const slots = options.columns * BURSTS_KEPT;
  const budgets = PIECE_BYTES.map((bytes) => Math.ceil((slots * slotBytesOf(bytes)) / BUDGET_UNIT) * BUDGET_UNIT);
  // Daemons of their own for each arrangement: nothing of the one before is left in them.
  await using first = await startChildDaemon(budgets, { link: options.link, hioMode: 'buffered' });
  await using second = await startChildDaemon(budgets, { link: options.link, hioMode: 'buffered' });
  const addresses = [first, second].map((daemon) => daemon.streams ?? daemon.socket);
  const atLeaf = (leaf: number) => PIECE_BYTES.map(() => leaf);
  const topology = new Topology(
    {
      rails: JOBS.map(() => options.rail),
      spine: options.spine,
      boxes: Object.fromEntries(JOBS.map((job, leaf) => [job, atLeaf(leaf).map((each) => [each])])),
      daemons: Object.fromEntries(
        addresses.map((address, leaf) => [address, atLeaf(over === 'rails' ? leaf : JOBS.length - 1 - leaf)]),
      ),
      spineUse: options.spineUse,
      seed: options.seed,
    },
    systemClock,
    options.warn,
  );
  const jobs: Job[] = [];
  try {
    for (const [index, name] of JOBS.entries()) {
      jobs.push(await Job.connect(name, addresses[index] as string, topology, options));
    }
    await Promise.all(jobs.map((job, index) => job.burst(seededRandom(options.seed + index))));
    await Promise.all(jobs.map((job) => job.verify()));
    return {
      figures: {
        over,
        spineLinks: topology.spineLinks,
        spineBytes: topology.spine.toStore.bytes,
        railBytes: topology.rails.map((rail) => rail.toStore.bytes),
        jobs: jobs.map((job) => job.figures()),
      },
      latenciesMs: jobs.flatMap((job) => job.latenciesMs).sort((a, b) => a - b),
    };
  } finally {
    await Promise.all(jobs.map((job) => job.close()));
  }
}

/** One tenant with a driver of its own. */
class Job {
  /** Of stored columns. */
  readonly latenciesMs: number[] = [];
  /** The pieces of a burst's columns, by shard: the runtime's own memory. */
  readonly #memory: Uint8Array[];
  #last: { sequence: Sequence; tokens: Uint32Array }[] = [];
  #serial = 0;
  #bursts = 0;
  #lateBursts = 0;
  #elapsedMs = 0;
  #verified = 0;
  #mismatches = 0;

  private constructor(
    private readonly name: string,
    private readonly driver: SwDriver,
    private readonly options: SpineOptions,
  ) {
    const random = seededRandom(options.seed);
    this.#memory = PIECE_BYTES.map((bytes) => {
      const words = Uint32Array.from({ length: (options.columns * bytes) / 4 }, () => random() * 2 ** 32);
      return new Uint8Array(words.buffer);
    });
  }

  static async connect(name: string, daemon: string, topology: Topology, options: SpineOptions): Promise<Job> {
    const burstBytes = Math.max(...PIECE_BYTES) * options.columns;
    const driver = await SwDriver.connect({
      daemons: [daemon],
      model: {
        id: 'spine',
        revision: '1',
        dtype: 'none',
        layout: 'none',
        bytesPerToken: BYTES_PER_TOKEN,
        columnTokens: COLUMN_TOKENS,
      },
      connector: overTopology(
        connectorFor({ wioStreams: 1, placeBytes: 2 * burstBytes, checksums: false }),
        topology,
        name,
      ),
      // A column that is late is dropped; silence, which ends the connection, is something else.
      deadlineMs: options.deadlineMs + 10_000,
      connectDeadlineMs: 60_000,
    });
    return new Job(name, driver, options);
  }

  /** Evicts burst after burst. One that lasts longer than the period delays the next, as a wafer that is full waits. */
  async burst(random: () => number): Promise<void> {
    const { seconds, periodMs } = this.options;
    const from = performance.now();
    const end = from + seconds * 1000;
    for (let next = from + random() * periodMs; next < end; ) {
      await until(next);
      await this.#evictAll();
      next = Math.max(performance.now(), next + (0.5 + random()) * periodMs);
    }
    this.#elapsedMs = Math.max(end, performance.now()) - from;
  }

  /** Refills the columns of the last burst that are stored, and compares them with what the runtime had. */
  async verify(): Promise<void> {
    await Promise.all(
      this.#last.map(async ({ sequence, tokens }, column) => {
        const pieces = PIECE_BYTES.map((bytes) => new Uint8Array(bytes));
        const sink = { locate: (_: unknown, shard: number) => pieces[shard] as Uint8Array };
        for (let tries = 0; tries < VERIFY_TRIES; tries += 1) {
          using hit = sequence.match(tokens);
          if (hit.columns === 0) return;
          if ((await hit.refill(sink)).columns === 1) {
            this.#verified += 1;
            if (pieces.some((piece, shard) => Buffer.compare(piece, this.#piece(shard, column)) !== 0))
              this.#mismatches += 1;
            return;
          }
          // A driver that has missed a deadline tries nothing new before something has arrived.
          await until(performance.now() + VERIFY_PAUSE_MS);
        }
      }),
    );
  }

  figures(): JobFigures {
    const columns = this.#bursts * this.options.columns;
    const sorted = [...this.latenciesMs].sort((a, b) => a - b);
    const quantile = (share: number) => sorted[Math.floor(share * (columns - 1))] ?? null;
    return {
      job: this.name,
      bursts: this.#bursts,
      lateBursts: this.#lateBursts,
      columns,
      columnsDropped: columns - sorted.length,
      p50Ms: quantile(0.5),
      p99Ms: quantile(0.99),
      bytesPerSecond: (sorted.length * COLUMN_BYTES) / (this.#elapsedMs / 1000),
      columnsVerified: this.#verified,
      mismatches: this.#mismatches,
    };
  }

  async close(): Promise<void> {
    await this.driver.close();
  }

  async #evictAll(): Promise<void> {
    const { columns, deadlineMs } = this.options;
    this.#last = Array.from({ length: columns }, () => {
      const tokens = new Uint32Array(COLUMN_TOKENS);
      tokens[0] = this.#serial;
      this.#serial += 1;
      const sequence = this.driver.openSequence({ isolationId: this.name });
      sequence.match(tokens).release();
      return { sequence, tokens };
    });
    const from = performance.now();
    const stored = await Promise.all(
      this.#last.map(async ({ sequence }, column) => {
        const result = await sequence.evict({ locate: (_, shard) => this.#piece(shard, column) }, { deadlineMs });
        if (result.stored === 1) this.latenciesMs.push(performance.now() - from);
        return result.stored === 1;
      }),
    );
    this.#bursts += 1;
    if (stored.includes(false)) this.#lateBursts += 1;
  }

  #piece(shard: number, column: number): Uint8Array {
    const bytes = PIECE_BYTES[shard] as number;
    return (this.#memory[shard] as Uint8Array).subarray(column * bytes, (column + 1) * bytes);
  }
}

function until(time: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, time - performance.now())));
}
