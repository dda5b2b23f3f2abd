import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type AllocationInput, shardTable, UNITS } from '../../src/plan/allocation.js';
import { settings } from '../model/property_settings.js';
import { modelOf, refusal, sum } from './fixtures.js';

const bytes = (model: Parameters<typeof shardTable>[0], allocation: AllocationInput) =>
  shardTable(model, allocation).shards.map((shard) => shard.bytesPerToken);
/** Two layers of 2 x 4 x 16 numbers. */
const DRAFT = { num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 4, hidden_size: 64 };
const four = (each: number) => Array(4).fill(each);

test('heads go to domains in proportion to their WIO streams', () => {
  const model = modelOf('llama_3_1_70b', { dtype: 'fp8' });
  // 40 layers of 8 heads of 256 bytes on each box: 320 x 4 / 13 = 98.5 and 320 x 3 / 13 = 73.8 of them on a domain.
  const box = [98, 74, 74, 74].map((heads) => heads * 256);
  const table = shardTable(model, { boxes: 2, streams: [4, 3, 3, 3] });
  expect(table.shards.map((shard) => shard.bytesPerToken)).toEqual([...box, ...box]);
  expect(table).toMatchObject({ bytesPerToken: 163_840, meanBytesPerToken: 20_480, maxBytesPerToken: 98 * 256 });
  expect(table.shards[5]).toEqual({
    box: 1,
    domain: 1,
    streams: 3,
    // Heads 98 to 171 of the 320 from layer 40 on.
    parts: [{ group: 'full', layers: [52, 61], bytesPerToken: 74 * 256, paddingBytesPerToken: 0 }],
    bytesPerToken: 74 * 256,
    paddingBytesPerToken: 0,
  });
  // Streams of all domains, box by box.
  expect(bytes(model, { boxes: 2, streams: [1, 1, 1, 1, 5, 1, 1, 1] })).toEqual([
    ...four(80 * 256),
    ...[200, 40, 40, 40].map((heads) => heads * 256),
  ]);
});

test('layers go to boxes evenly, or as many as it says', () => {
  const model = modelOf('llama_3_1_70b');
  const perBox = (allocation: AllocationInput) => {
    const all = bytes(model, allocation);
    return Array.from({ length: all.length / 4 }, (_, box) => sum(all.slice(4 * box, 4 * box + 4)) / 4_096);
  };
  expect(perBox({ boxes: 9 })).toEqual([9, 9, 9, 9, 9, 9, 9, 9, 8]);
  expect(perBox({ boxes: 2, layersPerBox: [30, 50] })).toEqual([30, 50]);
});

test('whole layers, whole heads, or cut anywhere', () => {
  const model = modelOf('llama_3_1_70b');
  // 9 layers of 8 heads of 512 bytes, on 4 domains.
  const box = (unit: AllocationInput['unit']) => bytes(model, { boxes: 9, ...(unit ? { unit } : {}) }).slice(0, 4);
  expect(box('layer')).toEqual([3, 2, 2, 2].map((layers) => layers * 4_096));
  expect(box('head')).toEqual(four(18 * 512));
  expect(box(undefined)).toEqual(box('head'));
  // Two latents on a box are on two of its domains, unless they are cut.
  const latent = modelOf('deepseek_v3');
  const last = (unit: AllocationInput['unit']) => bytes(latent, { boxes: 31, unit }).slice(116, 120);
  expect(last('head')).toEqual([1_152, 1_152, 0, 0]);
  expect(last('number')).toEqual(four(576));
});

test('padded streams all carry as much as the fullest one of their box', () => {
  // 256 heads over 37 streams: 7 on each, and room for 3 more on the last one.
  const table = shardTable(modelOf('llama_3_1_8b'), { streams: [10, 9, 9, 9], padStreams: true });
  expect(table.shards.map((shard) => shard.bytesPerToken)).toEqual([10, 9, 9, 9].map((streams) => streams * 7 * 512));
  expect(table.shards.map((shard) => shard.paddingBytesPerToken)).toEqual([0, 0, 0, 3 * 512]);
  // Streams that are left over hold nothing but padding, and whole domains of them too.
  const wide = shardTable(modelOf('deepseek_v3'), { boxes: 31, streams: [1, 1, 1, 1], padStreams: true });
  expect(wide.shards.slice(-2).map(({ parts }) => parts[0])).toEqual(
    Array(2).fill({ group: 'full', bytesPerToken: 1_152, paddingBytesPerToken: 1_152 }),
  );
});

test('what one group has too much of on a domain another has less of', () => {
  // 3 layers a box, of which 1 or 2 are full: one on each of three domains, and not two on the first.
  const model = modelOf('gpt_oss_120b', { dtype: 'bf16' });
  expect(bytes(model, { boxes: 12, unit: 'layer' }).slice(0, 8)).toEqual([
    2_048, 2_048, 2_048, 0, 2_048, 2_048, 2_048, 0,
  ]);
});

test('windows and drafts are parts of their own', () => {
  const model = modelOf('gpt_oss_120b', { dtype: 'bf16', draft: DRAFT });
  const table = shardTable(model, { boxes: 4 });
  const parts = table.shards.map((shard) => shard.parts.map(({ bytesPerToken }) => bytesPerToken));
  // 36 layers: 9 a box, of which 4 or 5 slide, each of 8 heads of 256 bytes. A draft's 2 layers are on the first boxes.
  expect(parts.slice(0, 4)).toEqual(Array(4).fill([8 * 256, 10 * 256, 256 / 4]));
  expect(parts.slice(4, 8)).toEqual(Array(4).fill([10 * 256, 8 * 256, 256 / 4]));
  expect(parts[8]).toEqual([8 * 256, 10 * 256, 0]);
  expect(table.shards[0]?.parts.map(({ group, windowTokens }) => [group, windowTokens])).toEqual([
    ['full', undefined],
    ['sliding', 128],
    ['draft', undefined],
  ]);
  expect(table.bytesPerToken).toBe(model.bytesPerToken);
});

describe('the tables of the source documents, as far as they say what is in them', () => {
  test('34,560 bytes a token on average over 8 nodes', () => {
    // Two boxes of four domains are 8 nodes. Of the models in the documents Qwen3 32B in bf16 gives the figure, with 54 streams a box that all
    // carry as much: 256 heads of 512 bytes, 5 on each stream, 270 with padding. The documents name neither model nor streams.
    const table = shardTable(modelOf('qwen3_32b'), { boxes: 2, streams: [14, 14, 13, 13], padStreams: true });
    expect(table.shards).toHaveLength(8);
    expect(table.meanBytesPerToken).toBe(34_560);
    expect(new Set(table.shards.map((shard) => shard.bytesPerToken))).toEqual(new Set([35_840, 33_280]));
  });

  test('3.5 KB a token, rounded up to 4 KB', () => {
    // 61 latents of 1,152 bytes over 5 boxes. The documents name neither model nor boxes.
    const allocation = { boxes: 5, unit: 'number' } as const;
    const model = modelOf('deepseek_v3');
    expect(shardTable(model, allocation).meanBytesPerToken).toBeCloseTo(3_514, 0);
    expect(bytes(model, { ...allocation, granule: '4KB' })).toEqual(Array(20).fill(4_000));
  });
});

test('whatever the allocation is, every byte of a token is on one shard', () => {
  const models = [
    modelOf('llama_3_1_8b'),
    modelOf('deepseek_v3', { dtype: 'fp8' }),
    modelOf('gpt_oss_120b', { dtype: 'bf16', draft: DRAFT }),
  ];
  const allocation = fc.record({
    boxes: fc.integer({ min: 1, max: 32 }),
    streams: fc.array(fc.integer({ min: 1, max: 16 }), { minLength: 4, maxLength: 4 }),
    unit: fc.constantFrom(...UNITS),
    padStreams: fc.boolean(),
    granule: fc.constantFrom(1, 64, 4_096),
  });
  const run = fc.property(fc.constantFrom(...models), allocation, (model, each) => {
    const table = shardTable(model, each);
    expect(table.shards).toHaveLength(4 * each.boxes);
    expect(table.bytesPerToken - table.paddingBytesPerToken).toBe(model.bytesPerToken);
    for (const shard of table.shards) {
      expect(shard.bytesPerToken).toBe(sum(shard.parts.map((part) => part.bytesPerToken)));
      for (const { bytesPerToken, paddingBytesPerToken, layers } of shard.parts) {
        expect(bytesPerToken % each.granule).toBe(0);
        expect(paddingBytesPerToken).toBeGreaterThanOrEqual(0);
        expect(bytesPerToken - paddingBytesPerToken > 0).toBe(layers !== undefined);
      }
    }
    if (each.granule > 1) return;
    for (let box = 0; box < each.boxes; box += 1) {
      const own = table.shards.slice(4 * box, 4 * box + 4);
      const bytesOf = (group: number) => own.map(({ parts }) => parts[group]?.bytesPerToken ?? Number.NaN);
      if (each.padStreams) {
        for (const group of model.groups.keys()) {
          const perStream = bytesOf(group).map((all, domain) => all / (each.streams[domain] as number));
          expect(new Set(perStream).size).toBe(1);
        }
        continue;
      }
      // As many bytes on every stream of the box, but for what cannot be cut: less than a unit of each group.
      const cut = model.groups.map(({ headsPerLayer, bytesPerTokenPerLayer, bytesPerNumber }) => {
        return { layer: bytesPerTokenPerLayer, head: bytesPerTokenPerLayer / headsPerLayer, number: bytesPerNumber }[
          each.unit
        ];
      });
      const mean = sum(own.map((shard) => shard.bytesPerToken)) / sum(each.streams);
      for (const { bytesPerToken, streams } of own) {
        expect(Math.abs(bytesPerToken - mean * streams)).toBeLessThan(sum(cut));
      }
    }
  });
  fc.assert(run, settings(300));
});

test.each<[what: RegExp, allocation: unknown]>([
  [/'boxes': 33 boxes for 32 layers/, { boxes: 33 }],
  [/'boxes'/, { boxes: 0 }],
  [/'boxes'/, { boxes: 1.5 }],
  [/'streams': 3 numbers; there are 4 domains of a box/, { streams: [1, 1, 1] }],
  [/'streams': 12 numbers; .* or 8 of all 2 boxes/, { boxes: 2, streams: Array(12).fill(1) }],
  [/'streams.2'/, { streams: [1, 1, 0, 1] }],
  [/'streams.0'/, { streams: [17, 1, 1, 1] }],
  [/'layersPerBox': 1 numbers for 2 boxes/, { boxes: 2, layersPerBox: [32] }],
  [/'layersPerBox': the boxes hold 31 layers, the model has 32/, { boxes: 2, layersPerBox: [16, 15] }],
  [/'unit'/, { unit: 'byte' }],
  [/'granule': '-1'/, { granule: '-1' }],
  [/unknown key 'stream'/, { stream: [1, 1, 1, 1] }],
])('an allocation that does not fit is refused: %s', (what, allocation) => {
  const message = refusal(() => shardTable(modelOf('llama_3_1_8b'), allocation as AllocationInput));
  expect(message).toMatch(what);
  expect(message).toMatch(/^KVSS_BAD_INPUT allocation: /);
});
