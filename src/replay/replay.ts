import type { GroupStats } from '../swdriver/driver_stats.js';
import type { SwDriver } from '../swdriver/sw_driver.js';
import type { EmulatedRuntime } from '../wafer/emulated_runtime.js';
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
  /** What was moved of each group of layers of the model. */
  groups: readonly GroupStats[];
  /** Bytes of pieces that the driver's process has sent and received: 0 over shared memory and with a wafer of its own. */
  driverPayloadBytes: number;
  mismatches: number;
  /** Bytes a second while evicting; includes the time in which the emulated wafer makes the bytes. */
  evictGBps: number;
  /** Bytes a second while refilling; includes the time in which the emulated wafer checks every byte. */
  refillGBps: number;
  /** Whole replay; with `speed`, the time between requests too. */
  seconds: number;
  /** Refills and evicts that were asked for, two a request; those that found nothing to do count as well. */
  calls: number;
  /** Longest single refill or evict, in milliseconds; includes the emulated wafer's own time. */
  slowestCallMs: number;
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
  #calls = 0;
  #slowestCallMs = 0;

  constructor(
    private readonly driver: SwDriver,
    readonly runtime: EmulatedRuntime,
  ) {}

  /** Serves one prompt as a runtime would: match, refill, and evict what is new. */
  async serve(isolationId: string, tokens: Uint32Array): Promise<{ hitTokens: number; stored: number }> {
    const { driver, runtime } = this;
    const sequence = driver.openSequence({ isolationId });
    const request = runtime.request(isolationId, tokens);
    const hit = sequence.match(tokens);
    const refillFrom = performance.now();
    const refilled = await hit.refill(request.sink);
    const refillTo = performance.now();
    await request.accept(refilled.columns, refilled.quiet);
    hit.release();
    await request.compute();
    const evictFrom = performance.now();
    const { stored } = await sequence.evict(request.source);
    const done = performance.now();
    sequence.close();
    request.end();

    this.requests += 1;
    this.promptTokens += tokens.length;
    this.columnRefs += Math.floor(tokens.length / driver.columnTokens);
    this.hitTokens += refilled.tokens;
    this.columnHits += refilled.columns;
    this.#calls += 2;
    this.#slowestCallMs = Math.max(this.#slowestCallMs, refillTo - refillFrom, done - evictFrom);
    this.#refillMs += refillTo - refillFrom;
    this.#evictMs += done - evictFrom;
    return { hitTokens: refilled.tokens, stored };
  }

  report(): ReplayReport {
    const { stats, groupStats } = this.driver;
    const sum = (key: 'bytesEvicted' | 'bytesRefilled') => groupStats.reduce((total, group) => total + group[key], 0);
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
      bytesVerified: this.runtime.stats.bytesVerified,
      groups: groupStats,
      driverPayloadBytes: this.driver.payloadBytes,
      mismatches: this.runtime.stats.mismatches,
      evictGBps: share(sum('bytesEvicted'), this.#evictMs * 1e6),
      refillGBps: share(sum('bytesRefilled'), this.#refillMs * 1e6),
      seconds: (performance.now() - this.#started) / 1000,
      calls: this.#calls,
      slowestCallMs: this.#slowestCallMs,
    };
  }
}

/** The requests of all traces, in the order in which they came. */
export function inOrder(traces: readonly Trace[]): { trace: Trace; request: TraceRequest }[] {
  return traces
    .flatMap((trace) => trace.requests.map((request) => ({ trace, request })))
    .sort((a, b) => a.request.atSeconds - b.request.atSeconds);
}

/**
 * Replays traces through a driver, in the order in which the requests came. Each trace is a tenant of its own. The
 * meter can be read at any time meanwhile. With `speed` no request is served before its time, which passes that much
 * faster than in the trace; otherwise nothing waits. `skip`: requests that are left out, from the first.
 */
export async function replayTraces(
  traces: readonly Trace[],
  meter: ReplayMeter,
  { speed, skip = 0 }: { speed?: number; skip?: number } = {},
): Promise<void> {
  const started = performance.now();
  for (const { trace, request } of inOrder(traces).slice(skip)) {
    const early = speed === undefined ? 0 : started + (request.atSeconds * 1000) / speed - performance.now();
    if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
    await meter.serve(`trace:${trace.scope}:${trace.name}`, tokensOf(trace, request));
  }
}
