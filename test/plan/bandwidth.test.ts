import { describe, expect, test } from 'vitest';
import { shardTable } from '../../src/plan/allocation.js';
import {
  assistedTokensPerSecond,
  meanNodeBytesPerSecond,
  NICS_PER_BOX,
  planBandwidth,
  type Throughput,
  upperBoundBytesPerSecond,
} from '../../src/plan/bandwidth.js';
import { planModel } from '../../src/plan/model_plan.js';
import { modelOf, sum } from './fixtures.js';

const cs3 = (recomputeTokensPerSecond: number, speedup = 10): Throughput => ({
  recomputeTokensPerSecond,
  speedup,
  generation: 'cs-3',
});
const cs4 = (recomputeTokensPerSecond: number): Throughput => ({
  ...cs3(recomputeTokensPerSecond),
  generation: 'cs-4',
});

describe('the figures of the source documents', () => {
  test('a cached prompt comes back ten times as fast as it is computed, and twice that on a CS-4', () => {
    expect(assistedTokensPerSecond(cs3(30_000))).toBe(300_000);
    expect(assistedTokensPerSecond(cs4(30_000))).toBe(600_000);
    expect(assistedTokensPerSecond(cs3(30_000, 6))).toBe(180_000);
  });

  test('version 0.1: the mean of 8 nodes, 34,560 bytes a token', () => {
    const { shards } = shardTable(modelOf('qwen3_32b'), { boxes: 2, streams: [14, 14, 13, 13], padStreams: true });
    const nodes = shards.map((shard) => shard.bytesPerToken);
    expect(meanNodeBytesPerSecond(nodes, cs3(30_000))).toBe(34_560 * 300_000);
  });

  test('40k tokens/s x 4 KB x 10 x 2 = 3.2 GB/s, which is 25 Gbps', () => {
    const bytesPerSecond = upperBoundBytesPerSecond(4_000, cs4(40_000));
    expect(bytesPerSecond).toBe(3.2e9);
    expect(Math.floor((8 * bytesPerSecond) / 1e9)).toBe(25);
  });

  test('llama 70B takes 11 GB/s of a box and 1B 10 GB/s', () => {
    // 80 layers on 9 boxes: 9 on the fullest one, at 30k tokens/s and ten times that.
    const { boxes } = planBandwidth(shardTable(modelOf('llama_3_1_70b'), { boxes: 9 }), cs3(30_000), 4);
    expect(boxes).toHaveLength(9);
    expect(boxes[0]?.refillBytesPerSecond).toBe(9 * 4_096 * 300_000);
    expect(Math.round(9 * 4_096 * 300_000 * 1e-9)).toBe(11);
    // On one box, at the 300k tokens/s that it is to reach.
    const one = planBandwidth(shardTable(modelOf('llama_3_2_1b')), cs3(300_000, 1), 4).boxes[0];
    expect(Math.round((one?.refillBytesPerSecond ?? 0) * 1e-9)).toBe(10);
  });

  test('without GQA, 8 times: 880 GB/s of a CS-3 and 1,760 GB/s of a CS-4', () => {
    const perSecond = 11e9 * 8;
    expect(upperBoundBytesPerSecond(perSecond, cs3(1))).toBe(880e9);
    expect(upperBoundBytesPerSecond(perSecond, cs4(1))).toBe(1_760e9);
    expect((8 * 880e9) / 1e12).toBeCloseTo(7, 1);
    // The eight is in the model's config.
    const [grouped, multiHead] = [false, true].map(
      (each) => modelOf('llama_3_1_70b', { multiHead: each }).bytesPerToken,
    );
    expect((multiHead as number) / (grouped as number)).toBe(8);
  });

  test.each([
    // Tokens a second of the documents: now, and where they say so optimised; boxes as they count replicas.
    ['llama_3_2_1b', 1, 80_000, 32_768 * 800_000],
    ['llama_3_2_1b', 1, 300_000, 32_768 * 3_000_000],
    ['llama_3_1_70b', 9, 30_000, 36_864 * 300_000],
    ['deepseek_v3', 31, 15_000, 2_304 * 150_000],
    ['deepseek_v3', 31, 18_000, 2_304 * 180_000],
  ])(
    'version 0.2: %s on %i boxes at %i tokens/s takes %i bytes/s of its fullest box',
    (name, boxes, rate, expected) => {
      const plan = planBandwidth(shardTable(modelOf(name), { boxes }), cs3(rate), 4);
      expect(Math.max(...plan.boxes.map((flow) => flow.refillBytesPerSecond))).toBe(expected);
    },
  );
});

test('evict is what is computed, refill the upper bound, on shards, boxes and NICs alike', () => {
  const table = shardTable(modelOf('llama_3_1_8b'), { boxes: 2, streams: [4, 2, 1, 1] });
  for (const nicsPerBox of NICS_PER_BOX) {
    const plan = planBandwidth(table, cs4(1_000), nicsPerBox);
    for (const flows of [plan.shards, plan.boxes, plan.nics]) {
      expect(sum(flows.map((flow) => flow.evictBytesPerSecond))).toBe(131_072 * 2_000);
      expect(sum(flows.map((flow) => flow.refillBytesPerSecond))).toBe(131_072 * 20_000);
    }
    expect(plan.nics).toHaveLength(2 * nicsPerBox);
  }
  const domains = (nics: number) =>
    planBandwidth(table, cs3(1), nics)
      .nics.slice(0, nics)
      .map((nic) => nic.domains);
  expect(domains(1)).toEqual([[0, 1, 2, 3]]);
  expect(domains(2)).toEqual([
    [0, 1],
    [2, 3],
  ]);
  expect(domains(8)).toEqual([[0], [0], [1], [1], [2], [2], [3], [3]]);
});

test('the NIC that carries most says how much faster cached tokens can come back', () => {
  const table = shardTable(modelOf('llama_3_1_8b'), { streams: [5, 1, 1, 1] });
  // 160 of 256 heads of 512 bytes behind NIC 0: at 10k tokens/s 0.8192 GB/s, and 12.5 GB/s pass.
  const plan = planBandwidth(table, cs3(10_000), 4, 100e9);
  expect(plan.fullestNic).toMatchObject({ box: 0, nic: 0, domains: [0], evictBytesPerSecond: 160 * 512 * 10_000 });
  expect(plan.attainableSpeedup).toBeCloseTo(12.5 / 0.8192, 9);
  expect(planBandwidth(table, cs3(10_000), 4).attainableSpeedup).toBeUndefined();
});

test('a memory holds fewer tokens where every shard has as much', () => {
  const plan = planModel(modelOf('llama_3_1_8b'), {
    allocation: { streams: [5, 1, 1, 1] },
    memoryBytes: 131_072 * 1_000,
    nicsPerBox: 4,
  });
  // 160 of 256 heads on the fullest domain: a quarter of the memory for five eighths of a token.
  expect(plan.capacity).toEqual({
    memoryBytes: 131_072_000,
    proportionalTokens: 1_000,
    equalTokens: 400,
    equalLoss: 0.6,
  });
  expect(plan.fullestShard).toEqual({ box: 0, domain: 0, bytesPerToken: 160 * 512 });
  // Once a window of 128 tokens has passed, half of the layers keep nothing.
  const sliding = planModel(modelOf('gpt_oss_120b', { dtype: 'bf16' }), {
    allocation: {},
    memoryBytes: 73_728_000,
    nicsPerBox: 4,
  });
  expect(sliding.capacity).toMatchObject({ proportionalTokens: 1_000, beyondWindowsTokens: 2_000 });
});
