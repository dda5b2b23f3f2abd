import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  effectiveTokens,
  equalGrants,
  equalSplitLoss,
  grantsFor,
  largestWhere,
  proportionalTokens,
  wasteBytes,
} from '../../src/plan/split.js';
import { settings } from '../model/property_settings.js';
import { sum } from './fixtures.js';

test('the shard that is full first ends the cache, and the rest of the others is waste', () => {
  const bytesPerToken = [10, 6, 4, 4];
  const equal = equalGrants(2_400, 4);
  expect(equal).toEqual([600, 600, 600, 600]);
  expect(effectiveTokens(equal, bytesPerToken)).toBe(60);
  expect(wasteBytes(equal, bytesPerToken)).toEqual([0, 240, 360, 360]);
  expect(proportionalTokens(2_400, bytesPerToken)).toBe(100);
  expect(wasteBytes(grantsFor(100, bytesPerToken), bytesPerToken)).toEqual([0, 0, 0, 0]);
  // The 40 % of the source documents: a domain with 10 of 24 streams, where 6 would be even.
  expect(equalSplitLoss(bytesPerToken)).toBeCloseTo(0.4, 12);
});

test('increments and floors', () => {
  const rules = { incrementBytes: 100, floorBytes: 200 };
  expect(equalGrants(1_050, 3, rules)).toEqual([300, 300, 300]);
  expect(grantsFor(30, [10, 5, 1, 0], rules)).toEqual([300, 200, 200, 0]);
  expect(grantsFor(31, [10, 5, 1, 0], rules)).toEqual([400, 200, 200, 0]);
  // 700 bytes hold 30 tokens so, 1,050 hold 50 (60 take 600 + 300 + 200), and 500 do not even hold the floors.
  expect([700, 1_050, 500].map((memoryBytes) => proportionalTokens(memoryBytes, [10, 5, 1], rules))).toEqual([
    30, 50, 0,
  ]);
  // Shards on which a token takes nothing do not end anything.
  expect(effectiveTokens([0, 50], [0, 5])).toBe(10);
  expect(effectiveTokens([7], [0])).toBe(0);
});

test('the loss of equal shards is 1 - mean / max', () => {
  const bytes = fc.array(fc.integer({ min: 1, max: 1_000 }), { minLength: 1, maxLength: 12 });
  const run = fc.property(bytes, (bytesPerToken) => {
    // So much memory that whole tokens do not matter.
    const memoryBytes = 1e9 * sum(bytesPerToken);
    const equal = effectiveTokens(equalGrants(memoryBytes, bytesPerToken.length), bytesPerToken);
    const proportional = proportionalTokens(memoryBytes, bytesPerToken);
    expect(proportional).toBe(1e9);
    expect(1 - equal / proportional).toBeCloseTo(equalSplitLoss(bytesPerToken), 6);
  });
  fc.assert(run, settings(200));
});

test('the largest number for which something holds', () => {
  expect(largestWhere(0, 100, (value) => value <= 42)).toBe(42);
  expect(largestWhere(0, 100, () => true)).toBe(100);
  expect(largestWhere(7, 100, () => false)).toBe(7);
  expect(largestWhere(7, 3, () => true)).toBe(7);
  expect(largestWhere(0, 2 ** 52, (value) => value <= 2 ** 51 + 1)).toBe(2 ** 51 + 1);
});
