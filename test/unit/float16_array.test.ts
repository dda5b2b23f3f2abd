import { expect, test } from 'vitest';
import { fromFloat16Array, toFloat16Bits } from '../../src/common/float16.js';

test('every number of 16 bits is widened to the number that it stands for, and back to its own bits', () => {
  const all = Uint16Array.from({ length: 0x10000 }, (_, bits) => bits);
  const numbers = fromFloat16Array(all);
  // By the words of IEEE 754: sign, an exponent of 5 bits with a bias of 15, and ten bits behind the point.
  const known: [number, number][] = [
    [0x0000, 0],
    [0x0001, 2 ** -24],
    [0x03ff, 1023 * 2 ** -24],
    [0x0400, 2 ** -14],
    [0x3c00, 1],
    [0x3c01, 1 + 2 ** -10],
    [0xc000, -2],
    [0x7bff, 65_504],
    [0x7c00, Number.POSITIVE_INFINITY],
    [0xfc00, Number.NEGATIVE_INFINITY],
  ];
  for (const [bits, number] of known) expect(numbers[bits]).toBe(number);
  expect(Object.is(numbers[0x8000], -0)).toBe(true);
  const isNumber = (bits: number) => (bits & 0x7c00) !== 0x7c00 || (bits & 0x3ff) === 0;
  const wrong = [...all].filter((bits) =>
    isNumber(bits) ? toFloat16Bits(numbers[bits] as number) !== bits : !Number.isNaN(numbers[bits]),
  );
  expect(wrong).toEqual([]);
  expect(fromFloat16Array(all.subarray(0x3c00, 0x3c02))).toEqual(Float32Array.of(1, 1 + 2 ** -10));
});
