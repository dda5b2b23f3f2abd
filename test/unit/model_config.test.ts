import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import { groupsOf } from '../../src/swdriver/model.js';
import {
  type DescribeOptions,
  describeModel,
  type LayerAllocation,
  type LayerGroup,
  splitGroup,
} from '../../src/swdriver/model_config.js';
import { settings } from '../model/property_settings.js';
import { refusal as refusalBy } from '../refusal.js';

type Config = Record<string, unknown>;

/** The fields of a published config.json that say something of its attention. */
function fixture(name: string): Config {
  return JSON.parse(readFileSync(new URL(`fixtures/model_configs/${name}.json`, import.meta.url), 'utf8'));
}

const range = (count: number) => Array.from({ length: count }, (_, index) => index);
const sum = (numbers: readonly number[]) => numbers.reduce((total, each) => total + each, 0);

/** A small model with 2 x 2 x 8 numbers a layer; undefined takes a field away. */
function small(fields: Config = {}): Config {
  const base = { num_hidden_layers: 6, num_attention_heads: 4, num_key_value_heads: 2, hidden_size: 32 };
  const config: Config = { ...base, torch_dtype: 'bfloat16', ...fields };
  return Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
}

const refusal = (config: unknown, options?: DescribeOptions) => refusalBy(() => describeModel(config, options));

const shared = (headsPerLayer: number, queryHeadsPerHead: number) => ({ headsPerLayer, queryHeadsPerHead });

// Keys and values: 2 x num_key_value_heads x head_dim x bytes of torch_dtype, in each of num_hidden_layers.
test.each([
  // head_dim is hidden_size / num_attention_heads: 4096 / 32 and 8192 / 64.
  ['llama_3_1_8b', 32, 2 * 8 * 128 * 2, 131_072, shared(8, 4)],
  // 16 layers of head_dim 64: a quarter of the 8B.
  ['llama_3_2_1b', 16, 2 * 8 * 64 * 2, 32_768, shared(8, 4)],
  ['llama_3_1_70b', 80, 2 * 8 * 128 * 2, 327_680, shared(8, 8)],
  // head_dim is said, and is not 5120 / 64; use_sliding_window is false.
  ['qwen3_32b', 64, 2 * 8 * 128 * 2, 262_144, shared(8, 8)],
  // (kv_lora_rank + qk_rope_head_dim) x bytes; the layer of num_nextn_predict_layers is not counted.
  ['deepseek_v3', 61, (512 + 64) * 2, 70_272, { headsPerLayer: 1 }],
])('%s keeps every token in %i layers of %i bytes', (name, layers, bytesPerTokenPerLayer, bytesPerToken, heads) => {
  const numbers = { dtype: 'bf16', bytesPerNumber: 2, bytesPerTokenPerLayer, ...heads };
  const group = { name: 'full', kind: 'full', layers: range(layers), ...numbers };
  expect(describeModel(fixture(name))).toEqual({ groups: [{ ...group, bytesPerToken }], bytesPerToken });
});

test('gpt-oss-120b alternates sliding and full layers', () => {
  // layer_types: sliding_attention, full_attention, ... A layer: 2 x 8 heads x head_dim 64 x 2 bytes.
  const numbers = { dtype: 'bf16', bytesPerNumber: 2, ...shared(8, 8) };
  const alike = { ...numbers, bytesPerTokenPerLayer: 2_048, bytesPerToken: 18 * 2_048 };
  const even = range(36).filter((layer) => layer % 2 === 0);
  const odd = range(36).filter((layer) => layer % 2 === 1);
  const config = fixture('gpt_oss_120b');
  expect(describeModel(config, { dtype: 'bfloat16' })).toEqual({
    groups: [
      { name: 'full', kind: 'full', layers: odd, ...alike },
      { name: 'sliding', kind: 'sliding', layers: even, windowTokens: 128, ...alike },
    ],
    bytesPerToken: 36 * 2_048,
  });
  // Its config names no dtype, and the pattern is the family's where the list is left out.
  expect(refusal(config)).toMatch(/'torch_dtype': missing/);
  const { layer_types: _, ...withoutList } = config;
  expect(describeModel(withoutList, { dtype: 'bf16' })).toEqual(describeModel(config, { dtype: 'bf16' }));
});

test('every sixth layer of Gemma 3 27B is full', () => {
  // text_config: 62 layers of 2 x 16 heads x head_dim 128 x 2 bytes. sliding_window_pattern is left out: 6.
  const config = fixture('gemma_3_27b');
  const full = [5, 11, 17, 23, 29, 35, 41, 47, 53, 59];
  const description = describeModel(config);
  expect(description.groups.map(({ name, layers, windowTokens }) => [name, layers, windowTokens])).toEqual([
    ['full', full, undefined],
    ['sliding', range(62).filter((layer) => !full.includes(layer)), 1_024],
  ]);
  expect(description.groups.map((group) => group.bytesPerToken)).toEqual([10 * 8_192, 52 * 8_192]);
  expect(description.bytesPerToken).toBe(62 * 8_192);

  const text = config.text_config as Config;
  const patterned = (fields: Config) => ({ ...config, text_config: { ...text, ...fields } });
  expect(describeModel(patterned({ sliding_window_pattern: 6 }))).toEqual(description);
  expect(describeModel(patterned({ _sliding_window_pattern: 2 })).groups[0]?.layers).toHaveLength(31);
  const listed = range(62).map((layer) => (full.includes(layer) ? 'full_attention' : 'sliding_attention'));
  // The list decides where both are there.
  expect(describeModel(patterned({ layer_types: listed, sliding_window_pattern: 3 }))).toEqual(description);
  // Gemma 3 12B leaves head_dim out, and means 256, not 3840 / 16.
  const twelve = { num_hidden_layers: 48, num_attention_heads: 16, num_key_value_heads: 8, hidden_size: 3840 };
  const { head_dim: _, ...rest } = text;
  expect(describeModel({ ...config, text_config: { ...rest, ...twelve } }).bytesPerToken).toBe(48 * 2 * 8 * 256 * 2);
});

test('the dtype of the cache is the one asked for, or else the one of the config', () => {
  const bytes = (options: DescribeOptions, fields: Config = {}) => {
    const [group] = describeModel(small(fields), options).groups;
    return [group?.dtype, group?.bytesPerTokenPerLayer];
  };
  const numbers = 2 * 2 * 8;
  expect(bytes({})).toEqual(['bf16', 2 * numbers]);
  expect(bytes({}, { dtype: 'float32' })).toEqual(['fp32', 4 * numbers]);
  for (const [dtype, size] of [
    ['fp32', 4],
    ['bf16', 2],
    ['fp16', 2],
    ['fp8', 1],
    ['fp8_e5m2', 1],
    ['int8', 1],
  ] as const) {
    expect(bytes({ dtype })).toEqual([dtype, size * numbers]);
  }
  expect(bytes({ dtype: 'float8_e4m3fn' })).toEqual(['fp8_e4m3', numbers]);
  expect(refusal(small(), { dtype: 'fp5' })).toMatch(/options: 'dtype': 'fp5' is no dtype/);
  expect(refusal(small({ torch_dtype: 'auto' }))).toMatch(/'torch_dtype': 'auto' is no dtype/);
  expect(refusal(small({ dtype: 'complex64' }))).toMatch(/'dtype': 'complex64' is no dtype/);
  // The weights are bf16 there and the cache is not.
  const quantised = { quantization_config: { quant_method: 'compressed-tensors', kv_cache_scheme: { num_bits: 8 } } };
  expect(refusal(small(quantised))).toMatch(/'quantization_config.kv_cache_scheme': asks for a cache of another dtype/);
  expect(bytes({ dtype: 'fp8' }, quantised)).toEqual(['fp8', numbers]);
});

test('as many key/value heads as the config says: all, some or one', () => {
  const perLayer = (fields: Config) => describeModel(small(fields)).groups[0]?.bytesPerTokenPerLayer;
  expect(perLayer({ num_key_value_heads: 4 })).toBe(2 * 4 * 8 * 2);
  expect(perLayer({ num_key_value_heads: null })).toBe(2 * 4 * 8 * 2);
  expect(perLayer({ num_key_value_heads: 1 })).toBe(2 * 1 * 8 * 2);
  expect(perLayer({ head_dim: 16 })).toBe(2 * 2 * 16 * 2);
  // Families differ in what a missing key means: Llama means all, Mistral means 8, another has to say.
  expect(perLayer({ num_key_value_heads: undefined, model_type: 'llama' })).toBe(2 * 4 * 8 * 2);
  const mistral = { num_key_value_heads: undefined, model_type: 'mistral', num_attention_heads: 16 };
  expect(perLayer(mistral)).toBe(2 * 8 * 2 * 2);
  expect(refusal(small({ num_key_value_heads: undefined }))).toMatch(/'num_key_value_heads': missing/);
});

test('without GQA every attention head would have keys and values of its own', () => {
  // 64 attention heads for 8 of keys and values: 8 times the bytes.
  const multiHead = describeModel(fixture('llama_3_1_70b'), { multiHead: true });
  expect(multiHead.bytesPerToken).toBe(8 * 327_680);
  expect(multiHead.groups[0]).toMatchObject({ bytesPerTokenPerLayer: 8 * 4_096, ...shared(64, 1) });
  const draft = describeModel(small(), { draft: small(), multiHead: true });
  expect(draft.groups.map((group) => group.bytesPerTokenPerLayer)).toEqual([2 * 64, 2 * 64]);
  expect(refusal(fixture('deepseek_v3'), { multiHead: true })).toMatch(/'kv_lora_rank': .*'multiHead' means nothing/);
});

test('which layers slide is read as the family means it', () => {
  const kinds = (fields: Config) =>
    describeModel(small(fields)).groups.map(({ name, layers, windowTokens }) => [name, layers.length, windowTokens]);
  const window = { sliding_window: 4_096 };
  expect(kinds({ model_type: 'mistral', ...window })).toEqual([['sliding', 6, 4_096]]);
  expect(kinds({ model_type: 'mistral', sliding_window: null })).toEqual([['full', 6, undefined]]);
  // Left out is 4096 for Mistral; none is spelled null.
  expect(kinds({ model_type: 'mistral' })).toEqual([['sliding', 6, 4_096]]);
  const qwen = { model_type: 'qwen2', ...window };
  expect(kinds({ ...qwen, use_sliding_window: false, max_window_layers: 2 })).toEqual([['full', 6, undefined]]);
  expect(kinds({ ...qwen, max_window_layers: 2 })).toEqual([['full', 6, undefined]]);
  expect(kinds({ ...qwen, use_sliding_window: true, max_window_layers: 6 })).toEqual([['full', 6, undefined]]);
  expect(kinds({ ...qwen, use_sliding_window: true, max_window_layers: 2 })).toEqual([
    ['full', 2, undefined],
    ['sliding', 4, 4_096],
  ]);
  expect(kinds({ model_type: 'gemma2', head_dim: 8 })).toEqual([
    ['full', 3, undefined],
    ['sliding', 3, 4_096],
  ]);
  // Nobody knows which layers a window holds for in a family that nobody knows.
  expect(refusal(small({ model_type: 'other', ...window }))).toMatch(/'sliding_window': .*'other'; add 'layer_types'/);
});

test('a draft model is a group of its own', () => {
  const target = small();
  const draft = small({ num_hidden_layers: 1, torch_dtype: 'float16' });
  const { groups, bytesPerToken } = describeModel(target, { draft });
  expect(groups.map(({ name, kind, dtype, layers }) => [name, kind, dtype, layers])).toEqual([
    ['full', 'full', 'bf16', range(6)],
    ['draft', 'draft', 'fp16', [0]],
  ]);
  expect(bytesPerToken).toBe(7 * 64);
  const dtypes = (options: DescribeOptions) => describeModel(target, { draft, ...options }).groups.map((g) => g.dtype);
  expect(dtypes({ dtype: 'fp8' })).toEqual(['fp8', 'fp8']);
  expect(dtypes({ dtype: 'fp8', draftDtype: 'bf16' })).toEqual(['fp8', 'bf16']);
  const sliding = small({ layer_types: [...Array(5).fill('sliding_attention'), 'full_attention'], sliding_window: 16 });
  expect(
    describeModel(target, { draft: sliding }).groups.map(({ name, kind, windowTokens }) => [name, kind, windowTokens]),
  ).toEqual([
    ['full', 'full', undefined],
    ['draft', 'draft', undefined],
    ['draft_sliding', 'draft', 16],
  ]);
  expect(refusal(target, { draft: {} })).toMatch(/^draft's config\.json: 'num_hidden_layers'/);
  expect(refusal(target, { draft, draftDtype: 'x' })).toMatch(/^options: 'draftDtype'/);
});

test.each<[key: string, fields: Config]>([
  ['layer_types.1', { layer_types: ['full_attention', 'linear_attention', ...Array(4).fill('full_attention')] }],
  ['layer_types.0', { layer_types: Array(6).fill('chunked_attention') }],
  ['layer_types', { layer_types: ['full_attention'] }],
  ['sliding_window', { layer_types: Array(6).fill('sliding_attention') }],
  ['sliding_window', { sliding_window_pattern: 6 }],
  ['use_sliding_window', { layer_types: Array(6).fill('sliding_attention'), use_sliding_window: false }],
  ['is_encoder_decoder', { is_encoder_decoder: true }],
  ['cross_attention_layers', { cross_attention_layers: [3] }],
  ['mamba_d_state', { mamba_d_state: 16 }],
  ['hybrid_override_pattern', { hybrid_override_pattern: 'M-M*' }],
  ['full_attention_interval', { full_attention_interval: 4 }],
  ['attn_type_list', { attn_type_list: [1, 0, 1, 1, 1, 1] }],
  ['attention_chunk_size', { attention_chunk_size: 8_192 }],
  ['index_topk', { index_topk: 2_048 }],
  ['num_kv_shared_layers', { num_kv_shared_layers: 2 }],
  ['swa_head_dim', { swa_head_dim: 192 }],
  ['multi_query', { multi_query: true }],
  ['v_head_dim', { v_head_dim: 16 }],
  ['num_hidden_layers', { num_hidden_layers: undefined }],
  ['num_hidden_layers', { num_hidden_layers: 0 }],
  ['num_hidden_layers', { num_hidden_layers: 1.5 }],
  ['num_hidden_layers', { num_hidden_layers: '6' }],
  ['num_attention_heads', { num_attention_heads: undefined }],
  ['hidden_size', { hidden_size: undefined }],
  ['head_dim', { hidden_size: 33 }],
  ['head_dim', { head_dim: Number.NaN }],
  ['num_key_value_heads', { num_key_value_heads: 3 }],
  ['num_key_value_heads', { num_key_value_heads: 8 }],
  ['qk_rope_head_dim', { kv_lora_rank: 512 }],
  ['kv_lora_rank', { model_type: 'deepseek_v3' }],
  ['sliding_window', { model_type: 'mistral', sliding_window: -1 }],
  ['sliding_window_pattern', { sliding_window: 8, sliding_window_pattern: 'LLLG' }],
])('a config that cannot be described is refused by its %s (%#)', (key, fields) => {
  expect(refusal(small(fields))).toContain(`config.json: '${key}': `);
  // Inside a multimodal config the path leads there.
  const nested = { model_type: 'other', text_config: small(fields) };
  expect(refusal(nested)).toContain(`config.json: 'text_config.${key}': `);
});

test('keys that say nothing change nothing', () => {
  const quiet = {
    is_encoder_decoder: false,
    cross_attention_layers: [],
    num_kv_shared_layers: 0,
    multi_query: false,
    attn_type_list: [1, 1, 1, 1, 1, 1],
    swa_head_dim: null,
    v_head_dim: 8,
  };
  expect(describeModel(small(quiet))).toEqual(describeModel(small()));
  expect(describeModel({ text_config: null, ...small() })).toEqual(describeModel(small()));
});

const group70b = describeModel(fixture('llama_3_1_70b')).groups[0] as LayerGroup;
const bytesOf = (group: LayerGroup, allocation: LayerAllocation, granuleBytes = 1) =>
  splitGroup(group, allocation, { granuleBytes }).map((part) => part.bytesPerToken);

/** A group with so many bytes in each of so many layers. */
function groupOf(layers: readonly number[], bytesPerTokenPerLayer: number): LayerGroup {
  const bytesPerToken = layers.length * bytesPerTokenPerLayer;
  const numbers = { dtype: 'bf16', bytesPerNumber: 2, headsPerLayer: 1, bytesPerTokenPerLayer, bytesPerToken };
  return { name: 'full', kind: 'full', layers, ...numbers };
}

test('layers are split over shards by number, by name or by share', () => {
  const even = splitGroup(group70b, { layersPerShard: [20, 20, 20, 20] });
  expect(even.map((part) => part.bytesPerToken)).toEqual(Array(4).fill(20 * 4_096));
  expect(even[1]?.layers).toEqual(range(20).map((layer) => 20 + layer));
  expect(splitGroup(group70b, { shares: [1, 1, 1, 1] })).toEqual(even);
  expect(splitGroup(group70b, { layersOfShard: even.map((part) => part.layers) })).toEqual(even);
  // 80 = 3 x 27 - 1: the first ones get the layers that are left.
  expect(bytesOf(group70b, { shares: [1, 1, 1] })).toEqual([27 * 4_096, 27 * 4_096, 26 * 4_096]);
  expect(bytesOf(group70b, { shares: [3, 0, 1] })).toEqual([60 * 4_096, 0, 20 * 4_096]);
  // As a driver's model: pieces of 64 tokens.
  const identity = { id: 'm', revision: 'r', dtype: 'bf16', layout: 'l' };
  const bytesPerToken = bytesOf(group70b, { layersPerShard: [26, 27, 27] });
  const pieceBytes = groupsOf({ ...identity, bytesPerToken })[0]?.pieceBytes;
  expect(pieceBytes).toEqual([26, 27, 27].map((count) => count * 4_096 * 64));
});

test('one list of layers serves all groups of a model', () => {
  const { groups } = describeModel(fixture('gpt_oss_120b'), { dtype: 'bf16' });
  const layersOfShard = [range(13), range(23).map((layer) => 13 + layer)];
  expect(groups.map((group) => bytesOf(group, { layersOfShard }))).toEqual([
    [6 * 2_048, 12 * 2_048],
    [7 * 2_048, 11 * 2_048],
  ]);
});

test('bytes of a shard are rounded up to a granule', () => {
  // 3.5 KB to 4 KB a token: 7 layers of 512 bytes.
  const [part] = splitGroup(groupOf(range(7), 512), { layersPerShard: [7] }, { granuleBytes: 1_024 });
  expect(part).toEqual({ layers: range(7), bytesPerToken: 4_096, paddingBytesPerToken: 512 });
  // Nothing to round, and nothing there.
  expect(bytesOf(groupOf(range(8), 512), { layersPerShard: [8, 0] }, 1_024)).toEqual([4_096, 0]);
  // 34,560 bytes a token on average over 8 shards, which no shard has: 135 layers of 2 KiB.
  const eight = bytesOf(groupOf(range(135), 2_048), { shares: Array(8).fill(1) });
  expect(eight).toEqual([...Array(7).fill(17 * 2_048), 16 * 2_048]);
  expect(sum(eight) / 8).toBe(34_560);
});

test.each<[what: RegExp, allocation: unknown, options?: unknown]>([
  [/'layersPerShard': the shards hold 3 layers, the group has 4/, { layersPerShard: [1, 2] }],
  [
    /'layersOfShard': layer 1 is there twice/,
    {
      layersOfShard: [
        [0, 1],
        [1, 2, 3],
      ],
    },
  ],
  [/'layersOfShard': no shard holds layer 2/, { layersOfShard: [[0, 1], [3]] }],
  [/'shares': all are 0/, { shares: [0, 0] }],
  [/'shares\.1'/, { shares: [1, -1] }],
  [/'shares\.0'/, { shares: [Number.NaN] }],
  [/'layersPerShard\.0'/, { layersPerShard: [1.5, 2.5] }],
  [/'layersPerShard'/, { layersPerShard: [] }],
  [/allocation: /, { layersPerShard: [4], shares: [1] }],
  [/allocation: /, undefined],
  [/options: 'granuleBytes'/, { shares: [1] }, { granuleBytes: 0 }],
  [/options: unknown key 'granule'/, { shares: [1] }, { granule: 4 }],
])('an allocation that makes no sense is refused: %s', (what, allocation, options) => {
  const split = () => splitGroup(groupOf(range(4), 8), allocation as LayerAllocation, options as never);
  expect(refusalBy(split)).toMatch(what);
});

const layerTypes = fc.array(fc.constantFrom('full_attention', 'sliding_attention'), { minLength: 1, maxLength: 100 });

test('groups and shards add up to the whole', () => {
  const attention = fc.oneof(
    fc.record({ num_key_value_heads: fc.integer({ min: 1, max: 128 }), head_dim: fc.integer({ min: 1, max: 512 }) }),
    fc.record({ kv_lora_rank: fc.integer({ min: 1, max: 2_048 }), qk_rope_head_dim: fc.integer({ min: 1, max: 256 }) }),
  );
  const shares = fc
    .array(fc.double({ min: 0, max: 1e9, noNaN: true }), { minLength: 1, maxLength: 20 })
    .filter((each) => each.some((share) => share > 0));
  const granules = fc.constantFrom(1, 3, 512, 1_024, 4_096);
  const dtypes = fc.constantFrom('fp32', 'bf16', 'fp8');
  const run = fc.property(
    layerTypes,
    attention,
    shares,
    granules,
    dtypes,
    (layer_types, fields, each, granule, dtype) => {
      const config = { num_hidden_layers: layer_types.length, sliding_window: 128, layer_types, ...fields };
      const { groups, bytesPerToken } = describeModel(config, { dtype, draft: config });
      const [first] = groups;
      expect(bytesPerToken).toBe(sum(groups.map((group) => group.bytesPerToken)));
      expect(bytesPerToken).toBe(2 * layer_types.length * (first?.bytesPerTokenPerLayer ?? Number.NaN));
      const own = groups.filter((group) => group.kind !== 'draft').flatMap((group) => group.layers);
      expect(own.sort((a, b) => a - b)).toEqual(range(layer_types.length));
      expect(new Set(groups.map((group) => group.name)).size).toBe(groups.length);
      for (const group of groups) {
        expect((group.name.includes('sliding') ? 128 : undefined) === group.windowTokens).toBe(true);
        const parts = splitGroup(group, { shares: each }, { granuleBytes: granule });
        expect(parts.flatMap((part) => part.layers)).toEqual(group.layers);
        expect(sum(parts.map((part) => part.bytesPerToken - part.paddingBytesPerToken))).toBe(group.bytesPerToken);
        const total = sum(each);
        for (const [shard, part] of parts.entries()) {
          expect(part.bytesPerToken % granule).toBe(0);
          expect(part.paddingBytesPerToken).toBeLessThan(granule);
          // Nobody is off by a layer, and who has no share has none.
          const exact = ((each[shard] ?? 0) / total) * group.layers.length;
          expect(Math.abs(part.layers.length - exact)).toBeLessThan(1 + 1e-9);
          if (each[shard] === 0) expect(part.layers).toEqual([]);
        }
        const named = { layersOfShard: parts.map((part) => part.layers) };
        expect(splitGroup(group, named, { granuleBytes: granule })).toEqual(parts);
        const counted = { layersPerShard: parts.map((part) => part.layers.length) };
        expect(splitGroup(group, counted, { granuleBytes: granule })).toEqual(parts);
      }
    },
  );
  fc.assert(run, settings(300));
});

/** What an act answers, or undefined where it refuses as it should. */
function answerOf<Answer>(act: () => Answer): Answer | undefined {
  try {
    return act();
  } catch (thrown) {
    if (thrown instanceof KvssError && thrown.code === 'KVSS_BAD_INPUT') return;
    throw thrown;
  }
}

const junk = fc.oneof(
  fc.constantFrom<unknown>(undefined, null, 0, -1, 1.5, 2 ** 53, Number.NaN, Infinity, '', '8', true, [], {}),
  fc.constantFrom<unknown>(1, 2, 8, 128, 4_096, 65_536, ['full_attention'], ['mamba'], [1], [[0]], 'bfloat16', 'auto'),
  fc.anything(),
);

test('whatever the config is, the answer is whole bytes or a refusal', () => {
  const keys = [
    ...['model_type', 'num_hidden_layers', 'hidden_size', 'num_attention_heads', 'num_key_value_heads', 'head_dim'],
    ...['kv_lora_rank', 'qk_rope_head_dim', 'v_head_dim', 'use_mla', 'layer_types', 'dtype', 'torch_dtype'],
    ...['sliding_window', 'sliding_window_pattern', 'use_sliding_window', 'max_window_layers', 'text_config'],
    ...['quantization_config', 'is_encoder_decoder', 'attn_type_list', '__proto__', 'constructor'],
  ];
  const models = ['llama_3_1_8b', 'qwen3_32b', 'deepseek_v3', 'gpt_oss_120b', 'gemma_3_27b'].map(fixture);
  const types = fc.constantFrom('llama', 'mistral', 'qwen2', 'gemma3_text', 'gpt_oss', 'deepseek_v3', 'other');
  const change = fc.tuple(fc.constantFrom(...keys), junk);
  const spoiled = fc
    .tuple(fc.constantFrom(...models), fc.option(types), fc.array(change, { maxLength: 4 }), fc.boolean())
    .map(([model, type, changes, nested]) => {
      const inner = { ...((model.text_config as Config) ?? model), ...(type ? { model_type: type } : {}) };
      const config = { ...inner, ...Object.fromEntries(changes) };
      return nested ? { ...model, text_config: config } : config;
    });
  const options = fc.oneof(
    fc.constant({ dtype: 'bf16' }),
    fc.record({ dtype: junk, draft: fc.oneof(spoiled, junk), draftDtype: junk }, { requiredKeys: [] }),
  );
  let described = 0;
  const run = fc.property(fc.oneof({ weight: 4, arbitrary: spoiled }, junk), options, (config, each) => {
    const answer = answerOf(() => describeModel(config, each as DescribeOptions));
    if (answer === undefined) return;
    described += 1;
    for (const bytes of [answer, ...answer.groups].map((counted) => counted.bytesPerToken)) {
      expect(Number.isSafeInteger(bytes) && bytes > 0).toBe(true);
    }
    expect(answer.bytesPerToken).toBe(sum(answer.groups.map((group) => group.bytesPerToken)));
    for (const { name, windowTokens } of answer.groups) {
      if (name.includes('sliding')) expect(Number.isSafeInteger(windowTokens)).toBe(true);
    }
  });
  fc.assert(run, settings(2_000));
  // Both outcomes are tried.
  expect(described).toBeGreaterThan(50);
});

test('whatever the allocation is, the answer is whole bytes or a refusal', () => {
  const allocation = fc.oneof(
    junk,
    fc.record({ layersPerShard: fc.array(fc.oneof(fc.nat(4), junk)) }),
    fc.record({ layersOfShard: fc.array(fc.oneof(fc.array(fc.oneof(fc.nat(4), junk)), junk)) }),
    fc.record({ shares: fc.array(fc.oneof(fc.nat(4), fc.double(), junk)) }),
  );
  const group = fc.oneof(
    { weight: 4, arbitrary: fc.constant(groupOf(range(4), 96)) },
    fc.record({ layers: fc.oneof(fc.array(fc.nat(9)), junk), bytesPerTokenPerLayer: fc.oneof(fc.nat(9), junk) }),
  );
  const run = fc.property(group, allocation, fc.oneof(fc.constant(64), junk), (each, given, granuleBytes) => {
    const parts = answerOf(() => splitGroup(each as LayerGroup, given as LayerAllocation, { granuleBytes } as never));
    for (const part of parts ?? []) expect(Number.isSafeInteger(part.bytesPerToken)).toBe(true);
  });
  fc.assert(run, settings(2_000));
});
