import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { formatBytes, formatCount, parseBytes } from '../../src/common/units.js';
import { settings } from '../model/property_settings.js';

test.each([
  [268_435_456, 268_435_456],
  ['268435456', 268_435_456],
  ['256MiB', 268_435_456],
  ['256 mib', 268_435_456],
  ['  1.5GB ', 1_500_000_000],
  ['1 KB', 1_000],
  ['1KiB', 1_024],
  ['2TiB', 2_199_023_255_552],
  ['3TB', 3_000_000_000_000],
  ['7B', 7],
  ['1.0001KB', 1_000],
])('%j is %i bytes', (text, bytes) => {
  expect(parseBytes(text)).toBe(bytes);
});

test.each(['', ' ', 'MiB', '-1', '1e9', '0', '0.4', 'NaN', 'Infinity', '1..5GB', '1.GB', '.5GB', '5 bits', '5GiBB'])(
  '%j is not a size, and the message shows how to write one',
  (text) => {
    expect(() => parseBytes(text)).toThrow(`'${text}' is not a size; write for example 268435456, 256MiB or 1.5GB`);
  },
);

test('a size beyond what can be counted exactly is refused', () => {
  for (const text of [2 ** 53, '9000TiB', Number.POSITIVE_INFINITY, Number.NaN, -5]) {
    expect(() => parseBytes(text)).toThrow('is not a size');
  }
});

test('whatever the text, there is a size or a clear error', () => {
  const text = fc.oneof(fc.string(), fc.stringMatching(/^\s*[0-9.]{0,20}\s*[A-Za-z]{0,4}\s*$/));
  const run = fc.property(text, (each) => {
    try {
      const bytes = parseBytes(each);
      expect(Number.isSafeInteger(bytes) && bytes >= 1).toBe(true);
    } catch (thrown) {
      expect(thrown).toMatchObject({ code: 'KVSS_BAD_INPUT' });
    }
  });
  fc.assert(run, settings(1_000));
});

test('sizes are written with three figures and a binary unit', () => {
  expect([0, 1, 1_023, 1_024, 1_536, 10_240, 2 ** 30, 1.5 * 2 ** 40, 2 ** 53].map(formatBytes)).toEqual([
    '0 B',
    '1 B',
    '1023 B',
    '1.00 KiB',
    '1.50 KiB',
    '10.0 KiB',
    '1.00 GiB',
    '1.50 TiB',
    '8192.0 TiB',
  ]);
});

test('counts are written in groups of three', () => {
  expect([0, 999, 1_000, 1_234_567.4].map(formatCount)).toEqual(['0', '999', '1,000', '1,234,567']);
});
