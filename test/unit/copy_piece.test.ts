import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { native } from '../../src/binding/native.js';
import { copyPiece } from '../../src/links/copy_piece.js';
import { settings } from '../model/property_settings.js';

const ROOM = 400_000;

/** Bytes of which no two neighbours, nor any two that are a line apart, are equal. */
function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 7 + (index >> 6) * 13) & 0xff);
}

test('a copy has all bytes of the source and touches none beside it, wherever it lies', () => {
  const source = pattern(ROOM);
  const around = new Uint8Array(ROOM);
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 300_000 }),
      fc.integer({ min: 0, max: 130 }),
      fc.integer({ min: 0, max: 130 }),
      (length, from, to) => {
        around.fill(0xee);
        const piece = source.subarray(from, from + length);
        copyPiece(around.subarray(to, to + length), piece);
        expect(Buffer.compare(around.subarray(to, to + length), piece)).toBe(0);
        const beside = [...around.subarray(0, to), ...around.subarray(to + length, to + length + 256)];
        expect(beside.every((byte) => byte === 0xee)).toBe(true);
      },
    ),
    settings(200),
  );
});

test.each([0, 1, 65_535, 65_536, 65_537])('the native copy takes %i bytes, from shared memory too', (length) => {
  const source = new Uint8Array(new SharedArrayBuffer(length));
  source.set(pattern(length));
  const target = new Uint8Array(length + 1).fill(1);
  native.copyPiece(target, source);
  expect(Buffer.compare(target.subarray(0, length), source)).toBe(0);
  expect(target[length]).toBe(1);
});

test('what cannot be copied is refused, and nothing is written', () => {
  const bytes = pattern(200);
  const before = bytes.slice();
  expect(() => native.copyPiece(bytes.subarray(0, 99), bytes.subarray(100))).toThrow('shorter than the source');
  expect(() => native.copyPiece(bytes.subarray(1), bytes.subarray(0, 199))).toThrow('overlaps the source');
  for (const wrong of [undefined, 7, 'bytes', new Uint16Array(100), new DataView(new ArrayBuffer(100))]) {
    expect(() => native.copyPiece(bytes, wrong as unknown as Uint8Array)).toThrow('two Uint8Arrays are needed');
    expect(() => native.copyPiece(wrong as unknown as Uint8Array, bytes)).toThrow('two Uint8Arrays are needed');
  }
  expect(bytes).toEqual(before);
});
