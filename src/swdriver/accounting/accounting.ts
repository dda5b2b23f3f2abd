import type { Account } from './accounts.js';
import { Accounts } from './accounts.js';
import { publish } from './channels.js';
import { ColumnHistory } from './column_history.js';
import { Fingerprint } from './fingerprint.js';
import { LatencyHistogram } from './latency_histogram.js';
import type { MissTally } from './miss_cause.js';
import { HitRateCurve } from './what_if.js';

/** Capacities up to which the curve looks ahead, as a multiple of what there is. */
const CURVE_REACH = 8;

/** The figures of one driver. */
export class Accounting {
  readonly fingerprint = new Fingerprint();
  readonly history = new ColumnHistory({ capacity: 1 });
  readonly curve = new HitRateCurve({ maxColumns: 1 });
  readonly accounts = new Accounts();
  readonly latencies = {
    match: new LatencyHistogram(),
    evict: new LatencyHistogram(),
    refill: new LatencyHistogram(),
  };

  constructor(
    readonly model: string,
    private readonly columnTokens: number,
  ) {}

  /** There is room for so many columns. */
  grow(capacity: number): void {
    this.history.grow(capacity);
    this.curve.maxColumns = Math.max(this.curve.maxColumns, capacity * CURVE_REACH);
  }

  /** A prompt has been looked up. */
  matched(
    account: Account,
    promptTokens: number,
    hitTokens: number,
    columns: number,
    missed: MissTally,
    durationMs: number,
  ): void {
    account.lookups += 1;
    account.promptTokens += promptTokens;
    account.hitTokens += hitTokens;
    account.missTokens.merge(missed);
    this.latencies.match.record(durationMs);
    const { model } = this;
    const { tenantClass } = account;
    publish('kvss:match', () => ({
      model,
      tenantClass,
      promptTokens,
      hitTokens,
      columns,
      missTokens: missed.toJSON(),
      durationMs,
    }));
  }

  /** A refill has ended. */
  refilled(account: Account, columns: number, missedColumns: number, durationMs: number): void {
    account.columnsRefilled += columns;
    this.latencies.refill.record(durationMs);
    const { model, columnTokens } = this;
    const { tenantClass } = account;
    publish('kvss:refill', () => ({
      model,
      tenantClass,
      columns,
      missedColumns,
      tokens: columns * columnTokens,
      durationMs,
    }));
  }

  /** An evict has ended. */
  evicted(account: Account, result: { stored: number; present: number; dropped: number }, durationMs: number): void {
    this.latencies.evict.record(durationMs);
    const { model } = this;
    const { tenantClass } = account;
    const { stored, present, dropped } = result;
    publish('kvss:evict', () => ({ model, tenantClass, stored, present, dropped, durationMs }));
  }
}
