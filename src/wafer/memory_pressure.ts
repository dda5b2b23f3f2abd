import { type Clock, systemClock } from '../common/clock.js';
import { localError } from '../common/errors.js';
import { seededRandom } from '../common/random.js';
import type { SwDriver } from '../swdriver/sw_driver.js';
import type { WaferRequest, WaferRuntime } from './wafer_runtime.js';

export interface PressureOptions {
  isolationId: string;
  /** Sequences that generate at the same time, taking turns. */
  sequences: number;
  /** Columns of the prompt of each, and columns that each generates. */
  promptColumns: number;
  decodeColumns: number;
  /** Share of the wafer's memory above which columns have to go, and share at which that ends. */
  highWater: number;
  lowWater: number;
  seed: number;
}

/** What a wafer did under memory pressure. */
export interface PressureReport {
  /** Times at which the memory was above high water and columns were evicted all at once. */
  bursts: number;
  /** Columns of these bursts, those included that the store had already. */
  burstColumns: number;
  /** How long each burst took, in milliseconds, in order. */
  burstMs: number[];
  /** Columns that the store had no room for, or that failed. They are computed again. */
  columnsDropped: number;
  /** Times that a sequence came back after it had been evicted. */
  resumes: number;
  /** Columns that came back from the store, and those that had to be computed again. */
  columnsRefilled: number;
  columnsRecomputed: number;
  columnsGenerated: number;
}

/** One conversation. */
interface Conversation {
  readonly tokens: Uint32Array;
  /** Columns that the target model has confirmed so far. */
  columns: number;
  /** Its memory, while it is on the wafer. */
  request: WaferRequest | undefined;
  evictedBefore: boolean;
}

/**
 * More conversations than a wafer's memory holds. Those on the wafer generate a column each in turn; when the memory is
 * above high water, the ones that came last are evicted, all in one burst, until it is at low water. They come back in
 * order as room is made by those that finish: refilled, and what was lost is computed again.
 */
export class MemoryPressure {
  readonly #waiting: Conversation[];
  readonly #running: Conversation[] = [];
  readonly #report: PressureReport = {
    bursts: 0,
    burstColumns: 0,
    burstMs: [],
    columnsDropped: 0,
    resumes: 0,
    columnsRefilled: 0,
    columnsRecomputed: 0,
    columnsGenerated: 0,
  };

  /** Throws KVSS_BAD_INPUT where a single conversation does not fit below low water. */
  constructor(
    private readonly driver: SwDriver,
    private readonly runtime: WaferRuntime,
    private readonly options: PressureOptions,
    private readonly clock: Clock = systemClock,
  ) {
    const { sequences, promptColumns, decodeColumns, highWater, lowWater, seed } = options;
    const longest = promptColumns + decodeColumns;
    if (!(lowWater > 0 && lowWater < highWater && highWater <= 1)) {
      throw localError(
        'KVSS_BAD_INPUT',
        `low water ${lowWater} has to be above 0 and below high water ${highWater}, and that at most 1`,
      );
    }
    const room = Math.floor(runtime.wafer.places * lowWater);
    if (longest > room) {
      throw localError(
        'KVSS_BAD_INPUT',
        `a sequence of ${longest} columns does not fit below low water, ${room} columns`,
      );
    }
    const random = seededRandom(seed);
    this.#waiting = Array.from({ length: sequences }, () => ({
      tokens: Uint32Array.from({ length: longest * driver.columnTokens }, () => random() * 2 ** 32),
      columns: promptColumns,
      request: undefined,
      evictedBefore: false,
    }));
  }

  /** Generates until every conversation has all its columns. Call it once. */
  async run(): Promise<PressureReport> {
    const { promptColumns, decodeColumns } = this.options;
    while (this.#waiting.length > 0 || this.#running.length > 0) {
      await this.#admit();
      for (const conversation of [...this.#running]) {
        if (this.#used() >= this.#mark(this.options.highWater)) await this.#burst();
        // It may have been evicted a moment ago.
        if (!conversation.request) continue;
        conversation.columns += 1;
        await conversation.request.compute('decode', conversation.columns);
        this.#report.columnsGenerated += 1;
        if (conversation.columns < promptColumns + decodeColumns) continue;
        this.#running.splice(this.#running.indexOf(conversation), 1);
        conversation.request.end();
      }
    }
    return this.#report;
  }

  #used(): number {
    return this.runtime.wafer.places - this.runtime.freePlaces;
  }

  #mark(share: number): number {
    return Math.floor(this.runtime.wafer.places * share);
  }

  /** Brings conversations onto the wafer, the first that wait first, as long as they leave room to generate. */
  async #admit(): Promise<void> {
    for (let next = this.#waiting[0]; next; next = this.#waiting[0]) {
      const fits = this.#used() + next.columns < this.#mark(this.options.highWater);
      if (!fits && this.#running.length > 0) return;
      this.#waiting.shift();
      const { isolationId } = this.options;
      const tokens = next.tokens.subarray(0, next.columns * this.driver.columnTokens);
      const sequence = this.driver.openSequence({ isolationId });
      using hit = sequence.match(tokens);
      const request = this.runtime.request(isolationId, next.tokens);
      const { columns, quiet } = await hit.refill(request.sink);
      await request.accept(columns, quiet);
      await request.compute('prefill', next.columns);
      if (next.evictedBefore) {
        this.#report.resumes += 1;
        this.#report.columnsRecomputed += next.columns - columns;
      }
      this.#report.columnsRefilled += columns;
      next.request = request;
      this.#running.push(next);
    }
  }

  /** Evicts the conversations that came last, all at once, until the memory is at low water. */
  async #burst(): Promise<void> {
    const victims: Conversation[] = [];
    let left = this.#used();
    while (left > this.#mark(this.options.lowWater) && this.#running.length > 1) {
      const victim = this.#running.pop() as Conversation;
      left -= victim.columns;
      victims.push(victim);
    }
    const from = this.clock.now();
    await Promise.all(
      victims.map(async (victim) => {
        const { request } = victim;
        const sequence = this.driver.openSequence({ isolationId: this.options.isolationId });
        sequence.match(victim.tokens.subarray(0, victim.columns * this.driver.columnTokens)).release();
        const { dropped } = await sequence.evict((request as WaferRequest).source);
        sequence.close();
        request?.end();
        victim.request = undefined;
        victim.evictedBefore = true;
        this.#report.burstColumns += victim.columns;
        this.#report.columnsDropped += dropped;
      }),
    );
    this.#report.bursts += 1;
    this.#report.burstMs.push(this.clock.now() - from);
    // The one that came first comes back first.
    this.#waiting.unshift(...victims.reverse());
  }
}
