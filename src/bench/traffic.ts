import type { HioMode } from '../binding/native.js';
import { localError } from '../common/errors.js';
import { type ChildDaemon, type LinkName, startChildDaemon } from '../kvss/child_daemon.js';
import { slotBytesOf } from '../proto/slots.js';
import type { PieceSink, PieceSource } from '../swdriver/runtime.js';
import { SwDriver, type SwDriverOptions } from '../swdriver/sw_driver.js';
import { type BenchContext, checkLink, shardsOf } from './context.js';
import { nativeBench } from './native.js';
import type { Round } from './rounds.js';
import { Checksum } from './row.js';

const COLUMN_TOKENS = 64;
const DEADLINE_MS = 60_000;

export interface TrafficOptions {
  link: LinkName;
  pieceBytes: number;
  /** Columns that the daemon has room for. */
  capacityColumns: number;
  /** Columns of one prompt. */
  promptColumns: number;
  /** Prompts that are served at the same time. */
  concurrency: number;
  /** Bytes of the runtime's memory that pieces come from, and as many that they go to; larger than the cache. */
  memoryBytes: number;
  hioMode?: HioMode;
  /** Same host only: pieces are written and read where they lie, which here means that nobody touches a byte of them. */
  inPlace?: boolean;
  driver?: Partial<SwDriverOptions>;
}

/**
 * A daemon, a driver and a runtime with memory of its own: prompts of equal length that no cache has seen are evicted,
 * and prompts that were evicted are refilled. In the same host each piece is copied once each way, over streams it goes
 * straight from and to the runtime's memory.
 */
export class Traffic implements AsyncDisposable {
  /** Bytes of a column on all shards. */
  readonly columnBytes: number;
  #nextPrompt = 0;
  /** Prompts below this one have been asked back. */
  #nextRefill = 0;
  #place = 0;

  private constructor(
    private readonly options: TrafficOptions,
    readonly driver: SwDriver,
    private readonly own: ChildDaemon | undefined,
    /** Of each shard. Pieces come from the first half of the places, and go to the second. */
    private readonly memory: readonly ArrayBuffer[],
    private readonly half: number,
  ) {
    this.columnBytes = driver.pieceBytes.reduce((sum, bytes) => sum + bytes, 0);
  }

  static async open(context: BenchContext, options: TrafficOptions): Promise<Traffic> {
    const { link, pieceBytes, capacityColumns } = options;
    checkLink(context, link);
    const shards = context.daemon === undefined ? 1 : await shardsOf(context.daemon, context.token);
    const budget = capacityColumns * slotBytesOf(pieceBytes) + 2 ** 21;
    const hioMode = options.hioMode ?? 'adaptive';
    const own = context.daemon === undefined ? await startChildDaemon([budget], { link, hioMode }) : undefined;
    const daemon = context.daemon ?? (own as ChildDaemon).streams ?? (own as ChildDaemon).socket;
    // No two prompts that are served at the same time share a place.
    const most = options.promptColumns * options.concurrency;
    const half = Math.max(most, Math.floor(options.memoryBytes / pieceBytes));
    const memory = Array.from({ length: shards }, () => nativeBench().runtimeMemory(2 * half * pieceBytes));
    for (const region of memory) fillPattern(region, pieceBytes, half);
    const regions = memory.map((region) => ({ memory: region, strideBytes: pieceBytes }));
    try {
      const driver = await SwDriver.connect({
        daemons: [daemon],
        model: {
          id: 'bench',
          revision: '1',
          dtype: 'pattern',
          layout: 'none',
          bytesPerToken: Array<number>(shards).fill(pieceBytes / COLUMN_TOKENS),
        },
        capacityColumns,
        deadlineMs: DEADLINE_MS,
        connectDeadlineMs: DEADLINE_MS,
        ...(link === 'shm' ? {} : { memory: { places: 2 * half, regions } }),
        ...(context.token === undefined ? {} : { token: context.token }),
        ...options.driver,
      });
      if (driver.capacityColumns < capacityColumns) {
        await driver.close();
        throw localError(
          'KVSS_BAD_INPUT',
          `the daemon has room for ${driver.capacityColumns} columns, this bench needs ${capacityColumns}`,
        );
      }
      return new Traffic(options, driver, own, memory, half);
    } catch (thrown) {
      await own?.[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  /** Evicts prompts that no cache has seen. The oldest make room. */
  async evict(prompts: number): Promise<Round> {
    const { promptColumns } = this.options;
    const from = performance.now();
    await this.#inParallel(prompts, async () => {
      const sequence = this.driver.openSequence({ isolationId: 'bench' });
      sequence.match(this.tokensOf(this.#nextPrompt++)).release();
      const { stored } = await sequence.evict(this.#source());
      if (stored !== promptColumns) throw incomplete('evict', stored, promptColumns);
      sequence.close();
    });
    return this.#round(prompts, from);
  }

  /** Refills prompts that were evicted last, round and round, at most as many different ones as were evicted. */
  async refill(prompts: number): Promise<Round> {
    const { promptColumns, capacityColumns } = this.options;
    const kept = Math.min(this.#nextPrompt, Math.floor(capacityColumns / promptColumns));
    const from = performance.now();
    await this.#inParallel(prompts, async () => {
      const prompt = this.#nextPrompt - 1 - (this.#nextRefill++ % kept);
      const sequence = this.driver.openSequence({ isolationId: 'bench' });
      using hit = sequence.match(this.tokensOf(prompt));
      const { columns } = await hit.refill(this.#sink());
      if (columns !== promptColumns) throw incomplete('refill', columns, promptColumns);
      sequence.close();
    });
    return this.#round(prompts, from);
  }

  /** Refills the prompt that was evicted last and answers with a checksum of the bytes. */
  async checksum(): Promise<string> {
    const checksum = new Checksum();
    using hit = this.driver.openSequence({ isolationId: 'bench' }).match(this.tokensOf(this.#nextPrompt - 1));
    const { columns } = await hit.refill(this.#sink(0));
    for (let column = 0; column < columns; column += 1) {
      for (const shard of this.memory.keys()) checksum.add(this.#pieceAt(shard, this.half + column));
    }
    return checksum.text;
  }

  /** Memory that pieces come from, of the first shard: what a baseline copies from. */
  get source(): ArrayBuffer {
    return this.memory[0] as ArrayBuffer;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.driver.close();
    await this.own?.[Symbol.asyncDispose]();
  }

  async #inParallel(tasks: number, run: () => Promise<void>): Promise<void> {
    let left = tasks;
    const work = async () => {
      while (left > 0) {
        left -= 1;
        await run();
      }
    };
    await Promise.all(Array.from({ length: Math.min(tasks, this.options.concurrency) }, work));
  }

  #round(prompts: number, from: number): Round {
    const ops = prompts * this.options.promptColumns;
    return { ops, bytes: ops * this.columnBytes, seconds: (performance.now() - from) / 1000 };
  }

  /** Tokens of a prompt: no two prompts have a column in common. */
  tokensOf(prompt: number): Uint32Array {
    const tokens = new Uint32Array(this.options.promptColumns * COLUMN_TOKENS);
    tokens[0] = prompt;
    return tokens;
  }

  /** The places of the next prompt, one after the other and round again: what was used last is not what is used next. */
  #nextPlaces(): number {
    const first = this.#place;
    this.#place = (first + this.options.promptColumns) % this.half;
    return first;
  }

  #source(): PieceSource {
    const first = this.#nextPlaces();
    const place = (column: number) => (first + column) % this.half;
    if (this.options.inPlace) return { write: () => true };
    if (this.options.link !== 'shm') return { place: ({ index }) => place(index) };
    return { locate: ({ index }, shard) => this.#pieceAt(shard, place(index)) };
  }

  #sink(first = this.#nextPlaces()): PieceSink {
    const place = (column: number) => this.half + ((first + column) % this.half);
    if (this.options.inPlace) return { read: () => undefined };
    if (this.options.link !== 'shm') return { place: ({ index }) => place(index) };
    return { locate: ({ index }, shard) => this.#pieceAt(shard, place(index)) };
  }

  #pieceAt(shard: number, place: number): Uint8Array {
    const { pieceBytes } = this.options;
    return new Uint8Array(this.memory[shard] as ArrayBuffer, place * pieceBytes, pieceBytes);
  }
}

/** The same bytes in every piece: what comes back does not depend on which of them went. */
function fillPattern(memory: ArrayBuffer, pieceBytes: number, pieces: number): void {
  const first = new Uint32Array(memory, 0, pieceBytes / 4);
  for (let word = 0; word < first.length; word += 1) first[word] = Math.imul(word + 1, 0x9e3779b1);
  const bytes = new Uint8Array(memory);
  for (let piece = 1; piece < pieces; piece += 1) bytes.copyWithin(piece * pieceBytes, 0, pieceBytes);
}

function incomplete(what: string, columns: number, wanted: number): Error {
  return localError(
    'KVSS_BAD_INPUT',
    `${what}: only ${columns} of ${wanted} columns went; the figures would mean nothing`,
  );
}
