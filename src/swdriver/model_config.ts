import { z } from 'zod';
import { apportion } from '../common/apportion.js';
import { localError } from '../common/errors.js';
import { describeIssue } from '../common/schema.js';
import { roundUpTo } from '../common/units.js';
import { type AttentionConfig, type LayerKind, readConfig } from './hf_config.js';
import type { ModelGroup } from './model.js';

const MAX_SHARDS = 4096;
const MAX_GRANULE_BYTES = 2 ** 30;

/** Dtypes of a cache and the bytes of a number; the names of `torch` mean the same. */
const DTYPES: ReadonlyMap<string, readonly [name: string, bytes: number]> = new Map(
  (
    [
      ['fp32', 4, ['float32', 'float']],
      ['bf16', 2, ['bfloat16']],
      ['fp16', 2, ['float16', 'half']],
      ['fp8', 1, []],
      ['fp8_e4m3', 1, ['float8_e4m3fn']],
      ['fp8_e5m2', 1, ['float8_e5m2']],
      ['int8', 1, []],
      ['uint8', 1, []],
    ] as const
  ).flatMap(([name, bytes, others]) => [name, ...others].map((spelled) => [spelled, [name, bytes]] as const)),
);

/** Layers that are cached alike. All counts of bytes are whole numbers. */
export interface LayerGroup {
  /** Unique in a model: `full`, `sliding`, `draft`, `draft_sliding`. */
  readonly name: string;
  /** `draft`: layers of the draft model, which slide where `windowTokens` is there. */
  readonly kind: LayerKind | 'draft';
  /** Type of the stored numbers, e.g. `bf16`. */
  readonly dtype: string;
  /** Numbers of the layers in their model, from 0, rising. A draft model has numbers of its own. */
  readonly layers: readonly number[];
  /** Tokens that a sliding layer sees, the newest included. Not there where layers see all tokens. */
  readonly windowTokens?: number;
  /** Heads of a layer whose state is separate: its key/value heads, or 1 where all heads share a latent. */
  readonly headsPerLayer: number;
  /** Attention heads that share the keys and values of one head (GQA). Not there where they share a latent. */
  readonly queryHeadsPerHead?: number;
  /** Bytes of one stored number. */
  readonly bytesPerNumber: number;
  /** Bytes that one token takes in one layer. */
  readonly bytesPerTokenPerLayer: number;
  /** Bytes that one token takes in all layers of the group. */
  readonly bytesPerToken: number;
}

/** What a model keeps of its tokens. */
export interface ModelDescription {
  /** Never empty; every layer is in exactly one group. */
  readonly groups: readonly LayerGroup[];
  /** Bytes that a token takes in all groups, the draft's too, while it is inside all windows. */
  readonly bytesPerToken: number;
}

/** What a config.json does not say of the cache. */
export interface DescribeOptions {
  /**
   * Dtype of the cache: `fp32`, `bf16`, `fp16`, `fp8`, `fp8_e4m3`, `fp8_e5m2`, `int8`, `uint8`, or as torch spells it.
   * If left out, what the config has as `dtype` or `torch_dtype`: that of the weights.
   */
  readonly dtype?: string;
  /** The parsed config.json of a draft model. */
  readonly draft?: unknown;
  /** Dtype of the draft model's cache. If left out `dtype`, and without that what the draft's config has. */
  readonly draftDtype?: string;
  /** Count keys and values for every attention head, as if the model had no GQA: what planners compare with. */
  readonly multiHead?: boolean;
}

const optionsSchema = z.strictObject({
  dtype: z.string().optional(),
  draft: z.unknown().optional(),
  draftDtype: z.string().optional(),
  multiHead: z.boolean().default(false),
});

/**
 * Describes the state that a model keeps, from its parsed Hugging Face config.json, or from the one of the language
 * model inside a multimodal config.
 *
 * Bytes of a token in a layer, with b bytes a number:
 * - keys and values (MHA, GQA, MQA): `2 x num_key_value_heads x head_dim x b`, where `head_dim` is
 *   `hidden_size / num_attention_heads` if it is left out;
 * - latent (MLA): `(kv_lora_rank + qk_rope_head_dim) x b`, one latent for all heads.
 *
 * Which layers slide is read from `layer_types`, `sliding_window_pattern`, or `sliding_window` with
 * `use_sliding_window` and `max_window_layers`, as the family of the model (`model_type`) means them. What a runtime
 * keeps besides is not counted: scales of a quantised cache, and layers for multi-token prediction
 * (`num_nextn_predict_layers`).
 *
 * Throws KVSS_BAD_INPUT, with a message that names the key, for what is missing or wrong, and for attention that cannot
 * be described: linear attention and other recurrent layers, cross-attention, chunks, layers of unequal sizes, unknown
 * `layer_types`; and with `multiHead` for a latent, which belongs to no head.
 */
export function describeModel(config: unknown, options: DescribeOptions = {}): ModelDescription {
  const { dtype, draft, draftDtype, multiHead } = parsed(optionsSchema, options, 'options');
  const source = 'config.json';
  const attention = (of: unknown, where: string) => {
    const read = readConfig(of, where);
    return multiHead ? withoutSharedHeads(read, where) : read;
  };
  const groups = groupsOf(attention(config, source), 'dtype', dtype, source, (kind) => ({ name: kind, kind }));
  if (draft !== undefined) {
    const draftSource = "draft's config.json";
    const draftConfig = attention(draft, draftSource);
    const named = draftDtype === undefined ? 'dtype' : 'draftDtype';
    groups.push(
      ...groupsOf(draftConfig, named, draftDtype ?? dtype, draftSource, (kind) => ({
        name: kind === 'full' ? 'draft' : 'draft_sliding',
        kind: 'draft',
      })),
    );
  }
  return { groups, bytesPerToken: sum(groups.map((group) => group.bytesPerToken)) };
}

/** Which shard of a box holds which layers: one entry for each shard, in the order of the shards. */
export type LayerAllocation =
  /** How many layers of the group each shard holds, in the order of the layers. */
  | { readonly layersPerShard: readonly number[] }
  /**
   * Which layers each shard holds. Layers of other groups are passed over, so one list serves all groups of a model; a
   * draft, whose layers have numbers of their own, needs its own list.
   */
  | { readonly layersOfShard: readonly (readonly number[])[] }
  /** Layers in proportion to these numbers, e.g. the WIO streams of each shard; whole layers, by largest remainder. */
  | { readonly shares: readonly number[] };

/** How layers are laid out on a shard. */
export interface SplitOptions {
  /** The bytes of a token on a shard are rounded up to a multiple of this. 1 if left out. */
  readonly granuleBytes?: number;
}

/** What one shard holds of a group. */
export interface ShardPart {
  /** Numbers of the layers, rising. Empty where the shard holds none. */
  readonly layers: readonly number[];
  /** Bytes that one token takes on this shard, padding included; 0 without layers. */
  readonly bytesPerToken: number;
  /** How many of them are padding up to the granule. */
  readonly paddingBytesPerToken: number;
}

const layerNumber = z.number().int().min(0);
const groupSchema = z.looseObject({
  layers: z.array(layerNumber).min(1),
  bytesPerTokenPerLayer: z.number().int().min(1),
});
const share = z.number().min(0).max(1e9);
const allocationSchema = z.union([
  z.strictObject({ layersPerShard: z.array(layerNumber).min(1).max(MAX_SHARDS) }),
  z.strictObject({ layersOfShard: z.array(z.array(layerNumber)).min(1).max(MAX_SHARDS) }),
  z.strictObject({ shares: z.array(share).min(1).max(MAX_SHARDS) }),
]);
const splitOptionsSchema = z.strictObject({
  granuleBytes: z.number().int().min(1).max(MAX_GRANULE_BYTES).default(1),
});

/**
 * Splits the layers of a group over the shards of a box: one part for each shard, in the order of the shards. Every
 * layer of the group is in exactly one part. Parts are unequal where layers do not divide evenly. `bytesPerToken` of
 * the parts is what a driver's `Model` takes, as long as every shard holds a layer.
 *
 * Throws KVSS_BAD_INPUT for an allocation that does not hold every layer of the group exactly once.
 */
export function splitGroup(group: LayerGroup, allocation: LayerAllocation, options: SplitOptions = {}): ShardPart[] {
  const { layers, bytesPerTokenPerLayer } = parsed(groupSchema, group, 'group');
  const { granuleBytes } = parsed(splitOptionsSchema, options, 'options');
  return layersOfShards(layers, parsed(allocationSchema, allocation, 'allocation')).map((held) => {
    const stateBytes = held.length * bytesPerTokenPerLayer;
    const bytesPerToken = roundUpTo(stateBytes, granuleBytes);
    if (!Number.isSafeInteger(bytesPerToken)) {
      throw localError('KVSS_BAD_INPUT', `group: 'bytesPerTokenPerLayer': ${bytesPerTokenPerLayer} is too much`);
    }
    return { layers: held, bytesPerToken, paddingBytesPerToken: bytesPerToken - stateBytes };
  });
}

/**
 * The groups of a driver's `Model`, from the description of a model and where its layers lie: `allocation` for all groups,
 * or for each. Throws KVSS_BAD_INPUT as splitGroup does.
 */
export function groupsFrom(
  description: ModelDescription,
  allocation: LayerAllocation | ((group: LayerGroup) => LayerAllocation),
  options: SplitOptions = {},
): ModelGroup[] {
  return description.groups.map((group) => {
    const parts = splitGroup(group, typeof allocation === 'function' ? allocation(group) : allocation, options);
    return {
      name: group.name,
      bytesPerToken: parts.map(({ bytesPerToken }) => bytesPerToken),
      ...(group.windowTokens === undefined ? {} : { windowTokens: group.windowTokens }),
    };
  });
}

function layersOfShards(layers: readonly number[], allocation: z.output<typeof allocationSchema>): number[][] {
  if ('layersOfShard' in allocation) return pick(layers, allocation.layersOfShard);
  if ('shares' in allocation) {
    if (sum(allocation.shares) === 0) throw localError('KVSS_BAD_INPUT', "allocation: 'shares': all are 0");
    return cut(layers, apportion(layers.length, allocation.shares));
  }
  const total = sum(allocation.layersPerShard);
  if (total !== layers.length) {
    const what = `the shards hold ${total} layers, the group has ${layers.length}`;
    throw localError('KVSS_BAD_INPUT', `allocation: 'layersPerShard': ${what}`);
  }
  return cut(layers, allocation.layersPerShard);
}

function pick(layers: readonly number[], layersOfShard: readonly (readonly number[])[]): number[][] {
  const wrong = (what: string) => localError('KVSS_BAD_INPUT', `allocation: 'layersOfShard': ${what}`);
  const inGroup = new Set(layers);
  const seen = new Set<number>();
  for (const layer of layersOfShard.flat()) {
    if (seen.has(layer)) throw wrong(`layer ${layer} is there twice`);
    seen.add(layer);
  }
  const missing = layers.find((layer) => !seen.has(layer));
  if (missing !== undefined) throw wrong(`no shard holds layer ${missing}`);
  return layersOfShard.map((held) => held.filter((layer) => inGroup.has(layer)).sort((a, b) => a - b));
}

/** Runs of so many layers each; the counts add up to the layers. */
function cut(layers: readonly number[], counts: readonly number[]): number[][] {
  let start = 0;
  return counts.map((count) => {
    const run = layers.slice(start, start + count);
    start += count;
    return run;
  });
}

/** As the model would be if every attention head had keys and values of its own. */
function withoutSharedHeads(config: AttentionConfig, source: string): AttentionConfig {
  const { headsPerLayer, queryHeadsPerHead: factor, numbersPerTokenPerLayer } = config;
  if (factor === undefined) {
    throw localError(
      'KVSS_BAD_INPUT',
      `${source}: 'kv_lora_rank': all heads share a latent: 'multiHead' means nothing`,
    );
  }
  return {
    ...config,
    headsPerLayer: headsPerLayer * factor,
    queryHeadsPerHead: 1,
    numbersPerTokenPerLayer: numbersPerTokenPerLayer * factor,
  };
}

function groupsOf(
  config: AttentionConfig,
  option: string,
  wanted: string | undefined,
  source: string,
  label: (kind: LayerKind) => Pick<LayerGroup, 'name' | 'kind'>,
): LayerGroup[] {
  const [dtype, bytesPerNumber] = dtypeOf(config, option, wanted, source);
  const bytesPerTokenPerLayer = config.numbersPerTokenPerLayer * bytesPerNumber;
  const { windowTokens, headsPerLayer, queryHeadsPerHead } = config;
  const heads = { headsPerLayer, ...(queryHeadsPerHead === undefined ? {} : { queryHeadsPerHead }) };
  return (['full', 'sliding'] as const).flatMap((kind) => {
    const layers = [...config.layerKinds.keys()].filter((layer) => config.layerKinds[layer] === kind);
    if (layers.length === 0) return [];
    const window = kind === 'sliding' && windowTokens !== undefined ? { windowTokens } : {};
    const bytesPerToken = layers.length * bytesPerTokenPerLayer;
    return [
      { ...label(kind), dtype, layers, ...window, ...heads, bytesPerNumber, bytesPerTokenPerLayer, bytesPerToken },
    ];
  });
}

function dtypeOf(
  config: AttentionConfig,
  option: string,
  wanted: string | undefined,
  source: string,
): readonly [name: string, bytes: number] {
  const bad = (what: string) => localError('KVSS_BAD_INPUT', what);
  if (wanted === undefined && config.cacheDtypeKey !== undefined) {
    throw bad(`${source}: '${config.cacheDtypeKey}': asks for a cache of another dtype: say which one`);
  }
  const spelled = wanted ?? config.dtype?.spelled;
  if (spelled === undefined) {
    throw bad(`${source}: 'torch_dtype': missing, and so is 'dtype': say the dtype of the cache`);
  }
  const known = DTYPES.get(spelled);
  if (known) return known;
  const where = wanted === undefined ? `${source}: '${config.dtype?.key}'` : `options: '${option}'`;
  const names = [...new Set([...DTYPES.values()].map(([name]) => name))].join(', ');
  throw bad(`${where}: '${spelled.slice(0, 60)}' is no dtype of a cache; known are ${names}`);
}

function parsed<Output>(schema: z.ZodType<Output>, value: unknown, source: string): Output {
  const result = schema.safeParse(value);
  if (!result.success) throw localError('KVSS_BAD_INPUT', `${source}: ${describeIssue(result.error)}`);
  return result.data;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, each) => total + each, 0);
}
