import { describe, expect, test } from 'vitest';
import { shardTable } from '../../src/plan/allocation.js';
import { equalSplitLoss } from '../../src/plan/split.js';
import { STREAM_ALLOCATIONS, sweepChunk } from '../../src/plan/stream_sweep.js';
import { modelOf, sum } from './fixtures.js';

test('every allocation of 1 to 16 streams is there once, but for the order of the domains', () => {
  // Multisets of 4 out of 16: 19 x 18 x 17 x 16 / 24.
  expect(STREAM_ALLOCATIONS).toHaveLength(3_876);
  const keys = new Set(STREAM_ALLOCATIONS.map((streams) => streams.join()));
  expect(keys.size).toBe(3_876);
  for (const streams of STREAM_ALLOCATIONS) {
    expect([...streams].sort((a, b) => b - a)).toEqual(streams);
    expect(streams.every((each) => each >= 1 && each <= 16)).toBe(true);
  }
});

describe.each([
  ['llama_3_1_70b', 9, 'head', false],
  ['llama_3_1_70b', 9, 'layer', false],
  ['deepseek_v3', 31, 'head', false],
  ['gpt_oss_120b', 5, 'layer', true],
] as const)('%s on %i boxes by %s', (name, boxes, unit, padStreams) => {
  const model = modelOf(name, { dtype: 'bf16' });

  test('a sweep says of each allocation what its table says', () => {
    for (const from of [0, 1_234, 3_875]) {
      const [bin, ...more] = sweepChunk({ of: { name, model, boxes }, unit, padStreams, from, to: from + 1 });
      const streams = STREAM_ALLOCATIONS[from] as number[];
      const { shards } = shardTable(model, { boxes, unit, padStreams, streams });
      const loss = equalSplitLoss(shards.map((shard) => shard.bytesPerToken));
      expect(more).toEqual([]);
      expect(bin).toMatchObject({ count: 1, atNamedLoss: Number(loss >= 0.4) });
      for (const each of [bin?.sum, bin?.min, bin?.max]) expect(each).toBeCloseTo(loss, 12);
      const imbalance = Math.max(...streams) / (sum(streams) / 4);
      expect(bin?.bin).toBe(Math.floor((imbalance - 1) * 10 + 1e-9));
    }
  });
});

test('the loss of 40 % begins where the fullest domain has two thirds more streams than the mean', () => {
  const of = { name: 'm', model: modelOf('llama_3_1_8b'), boxes: 1 };
  const bins = sweepChunk({ of, unit: 'number', padStreams: false, from: 0, to: STREAM_ALLOCATIONS.length });
  expect(sum(bins.map(({ count }) => count))).toBe(3_876);
  for (const { bin, count, atNamedLoss } of bins) {
    if (bin < 6) expect(atNamedLoss).toBe(0);
    if (bin > 6) expect(atNamedLoss).toBe(count);
    if (bin === 6) expect(atNamedLoss > 0 && atNamedLoss < count).toBe(true);
  }
});
