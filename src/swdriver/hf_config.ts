import { z } from 'zod';
import { type KvssError, localError } from '../common/errors.js';
import { describeIssue } from '../common/schema.js';

/** More layers than any model has: a limit that keeps every count of bytes exact. */
const MAX_LAYERS = 4096;
const MAX_WIDTH = 65_536;
const MAX_WINDOW_TOKENS = 2 ** 31;

/** What one layer keeps: all tokens, or the newest ones. */
export type LayerKind = 'full' | 'sliding';

/** What a config.json says of the state that attention keeps. */
export interface AttentionConfig {
  /** One for each layer, in the order of the model. */
  readonly layerKinds: readonly LayerKind[];
  /** Tokens that a sliding layer sees, the newest included; undefined where no layer slides. */
  readonly windowTokens: number | undefined;
  /** Numbers that one token leaves in one layer: keys and values of all heads, or the latent. */
  readonly numbersPerTokenPerLayer: number;
  /** Heads of a layer that have numbers of their own: key/value heads, or 1 where all heads share a latent. */
  readonly headsPerLayer: number;
  /** Attention heads for each of them; undefined where they share a latent. */
  readonly queryHeadsPerHead: number | undefined;
  /** The dtype that the config names for its numbers, as it is spelled there, and the key that says so. */
  readonly dtype: { readonly key: string; readonly spelled: string } | undefined;
  /** The key that asks for a dtype of the cache other than `dtype`, where there is one. */
  readonly cacheDtypeKey: string | undefined;
}

const width = z.number().int().min(1).max(MAX_WIDTH).nullish();
const textSchema = z.looseObject({
  model_type: z.string().nullish(),
  num_hidden_layers: z.number().int().min(1).max(MAX_LAYERS),
  hidden_size: z
    .number()
    .int()
    .min(1)
    .max(MAX_WIDTH ** 2)
    .nullish(),
  num_attention_heads: width,
  num_key_value_heads: width,
  head_dim: width,
  use_mla: z.boolean().nullish(),
  kv_lora_rank: width,
  qk_rope_head_dim: width,
  v_head_dim: z.number().int().min(0).max(MAX_WIDTH).nullish(),
  layer_types: z.array(z.string()).max(MAX_LAYERS).nullish(),
  sliding_window: z.number().int().min(1).max(MAX_WINDOW_TOKENS).nullish(),
  sliding_window_pattern: z.number().int().min(1).max(MAX_LAYERS).nullish(),
  _sliding_window_pattern: z.number().int().min(1).max(MAX_LAYERS).nullish(),
  use_sliding_window: z.boolean().nullish(),
  max_window_layers: z.number().int().min(0).max(MAX_LAYERS).nullish(),
  dtype: z.string().nullish(),
  torch_dtype: z.string().nullish(),
});
type TextConfig = z.output<typeof textSchema>;

const objectSchema = z.looseObject({});
type Config = z.output<typeof objectSchema>;

/** Where a multimodal config keeps the one of its language model. */
const NESTED_KEYS = ['text_config', 'llm_config', 'language_config'] as const;

/**
 * What the classes of `transformers` take for a key that a config leaves out, for families whose published configs do
 * leave keys out, and which layers slide where no list says so. A config of another family has to say what it means.
 */
interface Family {
  readonly defaults?: Partial<TextConfig>;
  /** `all`: `sliding_window` holds for every layer. `above`: from layer `max_window_layers` on. */
  readonly slides?: 'all' | 'above';
  /** The key/value heads are as many as the attention heads where the config does not say. */
  readonly multiHead?: true;
  /** The state is a latent; a config without `kv_lora_rank` has left it to a default. */
  readonly latent?: true;
}

const GEMMA = { head_dim: 256, num_attention_heads: 8, num_key_value_heads: 4, sliding_window: 4096 };
const GEMMA3: Family = { defaults: { ...GEMMA, sliding_window_pattern: 6 } };
const QWEN2: Family = { defaults: { use_sliding_window: false, max_window_layers: 28 }, slides: 'above' };
const QWEN3: Family = { defaults: { ...QWEN2.defaults, head_dim: 128 }, slides: 'above' };
const LATENT: Family = { latent: true };
const FAMILIES: ReadonlyMap<string, Family> = new Map([
  ['llama', { multiHead: true }],
  ['gpt_neox', { multiHead: true }],
  ['opt', { multiHead: true }],
  ['phi', { multiHead: true }],
  ['mistral', { defaults: { num_key_value_heads: 8, sliding_window: 4096 }, slides: 'all' }],
  ['mixtral', { slides: 'all' }],
  ['phi3', { slides: 'all' }],
  ['gemma', { defaults: { head_dim: 256 } }],
  ['gemma2', { defaults: { ...GEMMA, sliding_window_pattern: 2 } }],
  ['gemma3', GEMMA3],
  ['gemma3_text', GEMMA3],
  ['gpt_oss', { defaults: { head_dim: 64, num_key_value_heads: 8, sliding_window: 128, sliding_window_pattern: 2 } }],
  ['qwen2', QWEN2],
  ['qwen3', QWEN3],
  ['qwen3_moe', { defaults: { use_sliding_window: false } }],
  ['deepseek_v2', LATENT],
  ['deepseek_v3', LATENT],
  ['kimi_k2', LATENT],
]);

/**
 * Keys that make the state another one than what is counted here. A config in which one of them says something is
 * refused: a wrong count would only show as wrong bytes in a cache.
 */
const UNDESCRIBED: readonly (readonly [reason: string, keys: readonly string[]])[] = [
  ['cross-attention', ['is_encoder_decoder', 'add_cross_attention', 'cross_attention_layers']],
  [
    'recurrent, convolution or linear-attention layers, which keep no state for each token,',
    [
      'state_size',
      'ssm_cfg',
      'ssm_state_size',
      'mamba_d_state',
      'mamba_d_ssm',
      'attn_layer_period',
      'attn_layer_indices',
      'hybrid_override_pattern',
      'layers_block_type',
      'block_types',
      '_block_types',
      'conv_L_cache',
      'full_attention_interval',
      'linear_attn_config',
      'linear_num_key_heads',
      'linear_num_value_heads',
      'attn_type_list',
    ],
  ],
  ['attention that is not causal', ['use_bidirectional_attention']],
  ['attention in chunks', ['attention_chunk_size']],
  ['an index or compressed tokens beside the keys and values', ['index_topk', 'index_head_dim', 'compress_ratios']],
  ['keys and values that layers share', ['num_kv_shared_layers', 'use_cla']],
  [
    'layers of unequal sizes',
    [
      'per_layer_config',
      'hybrid_layer_pattern',
      'global_head_dim',
      'num_global_key_value_heads',
      'swa_head_dim',
      'swa_num_key_value_heads',
    ],
  ],
  [
    'heads under another name than num_key_value_heads and head_dim',
    [
      'multi_query',
      'num_kv_heads',
      'n_head_kv',
      'multi_query_group_num',
      'num_query_groups',
      'num_attention_groups',
      'attn_config',
      'kv_channels',
      'attention_head_dim',
    ],
  ],
];

/**
 * Reads the parsed config.json of a model, or of the language model in a multimodal one. `source` names it in errors.
 * Throws KVSS_BAD_INPUT, naming the key, for what is no config and for attention that cannot be described.
 */
export function readConfig(config: unknown, source: string): AttentionConfig {
  const outer = parse(objectSchema, config, source, []);
  const nestedKey = NESTED_KEYS.find((key) => says(outer[key]));
  const path = nestedKey === undefined ? [] : [nestedKey];
  const fail = (key: string, what: string) => badInput(source, [...path, key], what);

  refuseUndescribed(outer, source, []);
  const inner = nestedKey === undefined ? outer : parse(objectSchema, outer[nestedKey], source, path);
  refuseUndescribed(inner, source, path);

  const said = parse(textSchema, inner, source, path);
  const modelType = said.model_type ?? stringOf(outer.model_type);
  const family = FAMILIES.get(modelType ?? '') ?? {};
  // A key that is there with null was said: it means none, not the default.
  const text: TextConfig = { ...family.defaults, ...withoutUndefined(said), model_type: modelType };
  const layerKinds = layerKindsOf(text, family, fail);
  return {
    layerKinds,
    windowTokens: windowOf(text, layerKinds, fail),
    ...numbersOf(text, family, fail),
    dtype: dtypeSaid(inner, path) ?? dtypeSaid(outer, []),
    cacheDtypeKey: cacheDtypeKeyOf(inner, path) ?? cacheDtypeKeyOf(outer, []),
  };
}

type Fail = (key: string, what: string) => KvssError;

function layerKindsOf(text: TextConfig, family: Family, fail: Fail): LayerKind[] {
  const layers = Array.from({ length: text.num_hidden_layers }, (_, layer) => layer);
  if (text.layer_types) return listedKinds(text.layer_types, layers.length, fail);
  if (text.use_sliding_window === false) return layers.map(() => 'full');
  // The family's default is under the older of the two names: what the config says comes first.
  const pattern = text._sliding_window_pattern ?? text.sliding_window_pattern;
  if (says(pattern)) return layers.map((layer) => ((layer + 1) % pattern === 0 ? 'full' : 'sliding'));
  if (!says(text.sliding_window)) return layers.map(() => 'full');
  if (family.slides === 'all') return layers.map(() => 'sliding');
  const { max_window_layers: fullLayers } = text;
  if (family.slides === 'above' && says(fullLayers)) {
    return layers.map((layer) => (layer < fullLayers ? 'full' : 'sliding'));
  }
  throw fail(
    'sliding_window',
    `which layers it holds for is not known for model_type '${text.model_type ?? ''}'; add 'layer_types'`,
  );
}

function listedKinds(layerTypes: readonly string[], layerCount: number, fail: Fail): LayerKind[] {
  if (layerTypes.length !== layerCount) {
    throw fail('layer_types', `has ${layerTypes.length} entries for ${layerCount} layers ('num_hidden_layers')`);
  }
  return layerTypes.map((type, layer) => {
    if (type === 'full_attention') return 'full';
    if (type === 'sliding_attention') return 'sliding';
    const spelled = JSON.stringify(type.slice(0, 60));
    throw fail(`layer_types.${layer}`, `${spelled} cannot be described, only full_attention and sliding_attention can`);
  });
}

function windowOf(text: TextConfig, layerKinds: readonly LayerKind[], fail: Fail): number | undefined {
  if (!layerKinds.includes('sliding')) return undefined;
  if (text.use_sliding_window === false)
    throw fail('use_sliding_window', "false, yet 'layer_types' has sliding layers");
  if (!says(text.sliding_window)) throw fail('sliding_window', 'missing, yet there are sliding layers');
  return text.sliding_window;
}

type Numbers = Pick<AttentionConfig, 'numbersPerTokenPerLayer' | 'headsPerLayer' | 'queryHeadsPerHead'>;

function numbersOf(text: TextConfig, family: Family, fail: Fail): Numbers {
  const needs = (key: 'qk_rope_head_dim' | 'num_attention_heads' | 'hidden_size' | 'kv_lora_rank') => {
    const value = text[key];
    if (!says(value)) throw fail(key, 'missing');
    return value;
  };
  // Multi-head latent attention: one latent for all heads, and one rotary key.
  if (text.use_mla !== false && (family.latent || says(text.kv_lora_rank))) {
    const numbersPerTokenPerLayer = needs('kv_lora_rank') + needs('qk_rope_head_dim');
    return { numbersPerTokenPerLayer, headsPerLayer: 1, queryHeadsPerHead: undefined };
  }
  const { heads, queryHeads } = keyValueHeadsOf(text, family, () => needs('num_attention_heads'), fail);
  const headDim = text.head_dim ?? needs('hidden_size') / needs('num_attention_heads');
  if (!Number.isInteger(headDim) || headDim > MAX_WIDTH) {
    const spelled = `${text.hidden_size} / ${text.num_attention_heads}`;
    throw fail('head_dim', `missing, and hidden_size / num_attention_heads is ${spelled}, which is no head size`);
  }
  if (text.v_head_dim && text.v_head_dim !== headDim) {
    throw fail('v_head_dim', `values of another size (${text.v_head_dim}) than keys (${headDim}) cannot be described`);
  }
  return { numbersPerTokenPerLayer: 2 * heads * headDim, headsPerLayer: heads, queryHeadsPerHead: queryHeads / heads };
}

function keyValueHeadsOf(
  text: TextConfig,
  family: Family,
  attentionHeads: () => number,
  fail: Fail,
): { heads: number; queryHeads: number } {
  const said = text.num_key_value_heads;
  // Families differ in what they take for a missing key, by a factor of eight and more: only known ones may miss it.
  if (said === undefined && !family.multiHead) {
    throw fail('num_key_value_heads', "missing; where there are as many as 'num_attention_heads', say null");
  }
  const heads = said ?? attentionHeads();
  const queryHeads = text.num_attention_heads ?? heads;
  if (queryHeads % heads !== 0) {
    throw fail('num_key_value_heads', `${heads} does not divide the ${queryHeads} of 'num_attention_heads'`);
  }
  return { heads, queryHeads };
}

function refuseUndescribed(config: Config, source: string, path: readonly string[]): void {
  for (const [reason, keys] of UNDESCRIBED) {
    const key = keys.find((candidate) => isActive(candidate, config[candidate]));
    if (key !== undefined) throw badInput(source, [...path, key], `${reason} cannot be described`);
  }
}

function isActive(key: string, value: unknown): boolean {
  // 1 stands for full attention.
  if (key === 'attn_type_list' && Array.isArray(value)) return value.some((type) => type !== 1);
  if (typeof value === 'object' && value !== null) return Object.keys(value).length > 0;
  return Boolean(value);
}

/** `transformers` reads `torch_dtype`, the older name, where there is no `dtype`. */
function dtypeSaid(config: Config, path: readonly string[]): AttentionConfig['dtype'] {
  const key = ['dtype', 'torch_dtype'].find((each) => says(config[each]));
  const spelled = key === undefined ? undefined : config[key];
  return key !== undefined && typeof spelled === 'string' ? { key: [...path, key].join('.'), spelled } : undefined;
}

/** The weights' dtype says nothing of a cache that the config wants quantised. */
function cacheDtypeKeyOf(config: Config, path: readonly string[]): string | undefined {
  const quantization = config.quantization_config;
  if (typeof quantization !== 'object' || quantization === null) return undefined;
  const key = ['kv_cache_scheme', 'kv_cache_quant_algo'].find((each) => says(Reflect.get(quantization, each)));
  return key === undefined ? undefined : [...path, 'quantization_config', key].join('.');
}

function parse<Output>(schema: z.ZodType<Output>, value: unknown, source: string, path: readonly string[]): Output {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.map((issue) => ({ ...issue, path: [...path, ...issue.path] }));
  throw localError('KVSS_BAD_INPUT', `${source}: ${describeIssue(new z.ZodError(issues))}`);
}

function badInput(source: string, path: readonly string[], what: string): KvssError {
  return localError('KVSS_BAD_INPUT', `${source}: '${path.join('.')}': ${what}`);
}

function says<Value>(value: Value): value is NonNullable<Value> {
  return value !== undefined && value !== null;
}

function stringOf(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

function withoutUndefined(text: TextConfig): TextConfig {
  return Object.fromEntries(Object.entries(text).filter(([, value]) => value !== undefined)) as TextConfig;
}
