import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { fromFloat16Bits, toFloat16Bits } from '../../src/common/float16.js';
import { settings } from '../model/property_settings.js';

test('every number of 16 bits comes back as it was', () => {
  for (let bits = 0; bits < 2 ** 16; bits += 1) {
    const value = fromFloat16Bits(bits);
    if (Number.isNaN(value)) expect(toFloat16Bits(value) & 0x7fff).toBe(0x7e00);
    else expect(toFloat16Bits(value)).toBe(bits);
  }
});

test('known numbers have known bits', () => {
  const known: [number, number][] = [
    [1, 0x3c00],
    [-2, 0xc000],
    [65_504, 0x7bff],
    [65_519, 0x7bff],
    [65_520, 0x7c00],
    [-1e9, 0xfc00],
    [2 ** -14, 0x0400],
    [2 ** -24, 0x0001],
    [2 ** -25, 0x0000],
    [1 / 3, 0x3555],
    // Halfway: to the even neighbour.
    [1 + 2 ** -11, 0x3c00],
    [1 + 3 * 2 ** -11, 0x3c02],
  ];
  for (const [value, bits] of known) expect(toFloat16Bits(value)).toBe(bits);
});

test('what is between two numbers goes to the nearer one', () => {
  const run = fc.property(fc.float({ min: -65_504, max: 65_504, noNaN: true }), (value) => {
    const bits = toFloat16Bits(value);
    const error = Math.abs(fromFloat16Bits(bits) - value);
    for (const neighbour of [bits - 1, bits + 1]) {
      if ((neighbour & 0x7fff) >= 0x7c00 || neighbour < 0) continue;
      expect(error).toBeLessThanOrEqual(Math.abs(fromFloat16Bits(neighbour) - value));
    }
  });
  fc.assert(run, settings(5_000));
});
