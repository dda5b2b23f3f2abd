import type { EvictionPolicy } from '../swdriver/eviction_policy.js';
import { SwDriver } from '../swdriver/sw_driver.js';
import { IdleRuntime, instantBoxes } from './instant_boxes.js';
import { optimumOf } from './optimum.js';
import { ReplayMeter, replayTraces } from './replay.js';
import type { Trace } from './trace.js';

/** Not a policy of a driver: the best that one could do that knows what comes. */
export const OPTIMUM = 'optimum';

/** What a policy comes to at a capacity. Rates are shares from 0 to 1. */
export interface PolicyReport {
  policy: string;
  capacityColumns: number;
  requests: number;
  promptTokens: number;
  hitTokens: number;
  tokenHitRate: number;
  columnRefs: number;
  columnHits: number;
  columnHitRate: number;
  seconds: number;
}

const COLUMN_TOKENS = 64;

/**
 * Replays traces through a driver whose boxes finish everything at once and hold no bytes, so that only the decisions
 * count. The same in every run. `optimum` is worked out without a driver.
 */
export async function replayPolicy(
  traces: readonly Trace[],
  policy: EvictionPolicy | typeof OPTIMUM,
  capacityColumns: number,
  onMeter: (meter: { readonly requests: number }) => void = () => {},
): Promise<PolicyReport> {
  const started = performance.now();
  const measured =
    policy === OPTIMUM
      ? optimumOf(traces, capacityColumns, COLUMN_TOKENS)
      : await drive(traces, policy, capacityColumns, onMeter);
  const { requests, promptTokens, columnRefs, columnHits } = measured;
  const hitTokens = columnHits * COLUMN_TOKENS;
  return {
    policy: policy === OPTIMUM ? OPTIMUM : policy.name,
    capacityColumns,
    requests,
    promptTokens,
    hitTokens,
    tokenHitRate: promptTokens === 0 ? 0 : hitTokens / promptTokens,
    columnRefs,
    columnHits,
    columnHitRate: columnRefs === 0 ? 0 : columnHits / columnRefs,
    seconds: (performance.now() - started) / 1000,
  };
}

async function drive(
  traces: readonly Trace[],
  policy: EvictionPolicy,
  capacityColumns: number,
  onMeter: (meter: ReplayMeter) => void,
): Promise<ReplayMeter> {
  await using driver = await SwDriver.connect({
    daemons: ['nowhere'],
    connector: instantBoxes(),
    model: {
      id: 'replay',
      revision: '1',
      dtype: 'none',
      layout: 'none',
      bytesPerToken: [1],
      columnTokens: COLUMN_TOKENS,
    },
    capacityColumns,
    policy,
    hashSeed: 1,
  });
  const meter = new ReplayMeter(driver, new IdleRuntime());
  onMeter(meter);
  await replayTraces(traces, meter);
  return meter;
}
