import fc from 'fast-check';
import { pack } from 'msgpackr';
import { describe, expect, test } from 'vitest';
import { isPlainMsgpack } from '../../src/proto/plain_msgpack.js';

const plain = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 5, depthSize: 'small' },
    fc.constantFrom(null, true, false),
    fc.integer(),
    fc.double({ noNaN: true }),
    fc.string({ maxLength: 300 }),
    fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
    fc.array(tie('value'), { maxLength: 20 }),
    fc.dictionary(fc.string({ maxLength: 10 }), tie('value'), { maxKeys: 20 }),
  ),
})).value;

describe('plain msgpack', () => {
  test('is whatever our own codec writes of plain values', () => {
    fc.assert(fc.property(plain, (value) => isPlainMsgpack(pack(value))));
  });

  test('has nothing missing at its end and nothing behind it', () => {
    fc.assert(
      fc.property(plain, fc.nat(), (value, cut) => {
        const bytes = pack(value);
        expect(isPlainMsgpack(bytes.subarray(0, cut % bytes.length))).toBe(false);
        expect(isPlainMsgpack(Buffer.concat([bytes, Buffer.of(0xc0)]))).toBe(false);
      }),
    );
  });

  test.each([
    ['a date', pack(new Date(0))],
    ['an extension of fixed size', Buffer.of(0xd4, 0x01, 0x00)],
    ['an extension of any size', Buffer.of(0xc7, 0x01, 0x65, 0x00)],
    ['an extension inside an array', Buffer.of(0x91, 0xd4, 0x01, 0x00)],
    ['the tag that is never used', Buffer.of(0xc1)],
    ['an array that announces four thousand million values', Buffer.of(0xdd, 0xff, 0xff, 0xff, 0xff)],
    ['a map that does', Buffer.of(0xdf, 0xff, 0xff, 0xff, 0xff, 0x01)],
    ['arrays in arrays without end', Buffer.alloc(60_000, 0x91)],
    ['nothing', Buffer.alloc(0)],
  ])('is not %s', (_what, bytes) => {
    expect(isPlainMsgpack(bytes)).toBe(false);
  });

  test('decides about any bytes without throwing', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => typeof isPlainMsgpack(bytes) === 'boolean'));
  });
});
