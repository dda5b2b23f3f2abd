import type { ModelDescription } from '../swdriver/model_config.js';
import { type AllocationInput, type ShardTable, shardTable } from './allocation.js';
import { type BandwidthPlan, planBandwidth, type Throughput } from './bandwidth.js';
import { effectiveTokens, equalGrants, equalSplitLoss, proportionalTokens } from './split.js';

/** What is planned for. */
export interface ModelPlanInput {
  readonly allocation: AllocationInput;
  /** Memory of all shards together. */
  readonly memoryBytes?: number;
  readonly throughput?: Throughput;
  /** NICs of each box, one of NICS_PER_BOX. */
  readonly nicsPerBox: number;
  readonly nicBitsPerSecond?: number;
}

/** Tokens that a memory holds while all of their layers see them: a token that has left its window takes less. */
export interface Capacity {
  readonly memoryBytes: number;
  /** Where every shard has memory in proportion to what a token takes there. */
  readonly proportionalTokens: number;
  /** Where every shard has as much. */
  readonly equalTokens: number;
  /** What the equal split loses, 0..1. */
  readonly equalLoss: number;
  /** Tokens in proportion where all windows have passed them; not there for a model without windows. */
  readonly beyondWindowsTokens?: number;
}

export interface ModelPlan {
  readonly model: ModelDescription;
  readonly table: ShardTable;
  /** Of the shards that take most a token, the first. It ends the cache where all shards have equal memory. */
  readonly fullestShard: { readonly box: number; readonly domain: number; readonly bytesPerToken: number };
  readonly capacity?: Capacity;
  readonly bandwidth?: BandwidthPlan;
}

/** Sizes, capacity and bandwidth of a model on boxes. Throws KVSS_BAD_INPUT as shardTable does. */
export function planModel(model: ModelDescription, input: ModelPlanInput): ModelPlan {
  const table = shardTable(model, input.allocation);
  const { box, domain, bytesPerToken } = table.shards.reduce((most, each) =>
    each.bytesPerToken > most.bytesPerToken ? each : most,
  );
  return {
    model,
    table,
    fullestShard: { box, domain, bytesPerToken },
    ...(input.memoryBytes === undefined ? {} : { capacity: capacityOf(table, input.memoryBytes) }),
    ...(input.throughput === undefined
      ? {}
      : { bandwidth: planBandwidth(table, input.throughput, input.nicsPerBox, input.nicBitsPerSecond) }),
  };
}

function capacityOf({ shards }: ShardTable, memoryBytes: number): Capacity {
  const bytesPerToken = shards.map((shard) => shard.bytesPerToken);
  const always = shards.map(({ parts }) =>
    parts.reduce((sum, part) => sum + (part.windowTokens === undefined ? part.bytesPerToken : 0), 0),
  );
  const hasWindows = shards.some(({ parts }) => parts.some((part) => part.windowTokens !== undefined));
  const remains = always.some((bytes) => bytes > 0);
  return {
    memoryBytes,
    proportionalTokens: proportionalTokens(memoryBytes, bytesPerToken),
    equalTokens: effectiveTokens(equalGrants(memoryBytes, shards.length), bytesPerToken),
    equalLoss: equalSplitLoss(bytesPerToken),
    ...(hasWindows && remains ? { beyondWindowsTokens: proportionalTokens(memoryBytes, always) } : {}),
  };
}
