import type { SwDriver } from '../swdriver/sw_driver.js';
import type { EmulatedWafer } from '../wafer/emulated_wafer.js';
import { type Trace, type TraceRequest, tokensOf } from './trace.js';

/** Figures of a replay. Rates are shares from 0 to 1; GB are 10^9 bytes. */
export interface ReplayReport {
  requests: number;
  promptTokens: number;
  hitTokens: number;
  tokenHitRate: number;
  columnRefs: number;
  columnHits: number;
  columnHitRate: number;
  columnsEvicted: number;
  columnsRefilled: number;
  columnsDeleted: number;
  /** Columns that found no room or whose evict failed. */
  columnsDropped: number;
  bytesVerified: number;
  mismatches: number;
  /** Bytes a second while evicting; includes the time in which the emulated wafer makes the bytes. */
  evictGBps: number;
  /** Bytes a second while refilling; includes the time in which the emulated wafer checks every byte. */
  refillGBps: number;
  seconds: number;
}

/** Adds up requests while they are served. */
export class ReplayMeter {
  requests = 0;
  promptTokens = 0;
  hitTokens = 0;
  columnRefs = 0;
  columnHits = 0;
  readonly #started = performance.now();
  #evictMs = 0;
  #refillMs = 0;
  #evictBytes = 0;
  #refillBytes = 0;

  constructor(
    private readonly driver: SwDriver,
    readonly wafer: EmulatedWafer,
  ) {}

  /** Serves one prompt as a runtime would: match, refill, and evict what is new. */
  async serve(isolationId: string, tokens: Uint32Array): Promise<{ hitTokens: number; stored: number }> {
    const { driver, wafer } = this;
    const sequence = driver.openSequence({ isolationId });
    const { source, sink, accept } = wafer.request(isolationId, tokens);
    const pieceBytes = driver.pieceBytes.reduce((sum, bytes) => sum + bytes, 0);
    const hit = sequence.match(tokens);
    const refillFrom = performance.now();
    const refilled = await hit.refill(sink);
    accept(refilled.columns);
    hit.release();
    const evictFrom = performance.now();
    const { stored } = await sequence.evict(source);
    const done = performance.now();
    sequence.close();

    this.requests += 1;
    this.promptTokens += tokens.length;
    this.columnRefs += Math.floor(tokens.length / driver.columnTokens);
    this.hitTokens += refilled.tokens;
    this.columnHits += refilled.columns;
    this.#refillMs += evictFrom - refillFrom;
    this.#evictMs += done - evictFrom;
    this.#refillBytes += refilled.columns * pieceBytes;
    this.#evictBytes += stored * pieceBytes;
    return { hitTokens: refilled.tokens, stored };
  }

  report(): ReplayReport {
    const { stats } = this.driver;
    const share = (part: number, whole: number) => (whole === 0 ? 0 : part / whole);
    return {
      requests: this.requests,
      promptTokens: this.promptTokens,
      hitTokens: this.hitTokens,
      tokenHitRate: share(this.hitTokens, this.promptTokens),
      columnRefs: this.columnRefs,
      columnHits: this.columnHits,
      columnHitRate: share(this.columnHits, this.columnRefs),
      columnsEvicted: stats.columnsEvicted,
      columnsRefilled: stats.columnsRefilled,
      columnsDeleted: stats.columnsDeleted,
      columnsDropped: stats.columnsDropped,
      bytesVerified: this.wafer.stats.bytesVerified,
      mismatches: this.wafer.stats.mismatches,
      evictGBps: share(this.#evictBytes, this.#evictMs * 1e6),
      refillGBps: share(this.#refillBytes, this.#refillMs * 1e6),
      seconds: (performance.now() - this.#started) / 1000,
    };
  }
}

/**
 * Replays traces through a driver, in the order in which the requests came. Each trace is a tenant of its own. The
 * meter can be read at any time meanwhile.
 */
export async function replayTraces(traces: readonly Trace[], meter: ReplayMeter): Promise<void> {
  const order: { trace: Trace; request: TraceRequest }[] = traces.flatMap((trace) =>
    trace.requests.map((request) => ({ trace, request })),
  );
  order.sort((a, b) => a.request.atSeconds - b.request.atSeconds);
  for (const { trace, request } of order) {
    await meter.serve(`trace:${trace.scope}:${trace.name}`, tokensOf(trace, request));
  }
}
