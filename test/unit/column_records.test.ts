import { randomBytes } from 'node:crypto';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type ColumnRecord, ColumnRecords, ownerKeysOf, recordBytesOf } from '../../src/swdriver/column_records.js';
import { settings } from '../model/property_settings.js';

const COLUMN_TOKENS = 8;
const GROUPS = 4;
const BYTES = recordBytesOf(COLUMN_TOKENS, GROUPS);
const KEY = randomBytes(32);
const MODEL = 'a model and its groups';
/** Of the head: magic, parts, salt, generation, length, tag; what is encrypted comes behind it. */
const HEAD_BYTES = 52;
const MASK_FROM = 4;
const MASK_END = 8;

const recordsOf = (more: { key?: Uint8Array; model?: string; columnTokens?: number } = {}) =>
  new ColumnRecords(
    ownerKeysOf(more.key ?? KEY).recordKey,
    more.model ?? MODEL,
    more.columnTokens ?? COLUMN_TOKENS,
    GROUPS,
  );

const tokensOf = (first: number) =>
  Uint32Array.from({ length: COLUMN_TOKENS }, (_, at) => (first + at * 0x01010101) >>> 0);

const record = (more: Partial<ColumnRecord> = {}): ColumnRecord => ({
  isolationId: 'a tenant of some name',
  adapter: 'an adapter',
  index: 3,
  generation: 77,
  parentGeneration: 76,
  storedAtMs: 1_700_000_000_123.5,
  tokens: tokensOf(0xf0_0000),
  spelling: '',
  parts: [
    { group: 0, slot: 9 },
    { group: 2, slot: 0xffff_fffe },
  ],
  ...more,
});

/** Memory of a slot, with something of an earlier owner in it. */
const newPiece = () => new Uint8Array(BYTES).fill(0xaa);

function written(more: Partial<ColumnRecord> = {}, records = recordsOf()): Uint8Array {
  const piece = newPiece();
  records.write(piece, 1, 5, record(more));
  return piece;
}

const text = (maxLength: number) =>
  fc.oneof(
    fc.string({ unit: 'binary', maxLength: maxLength / 2 }),
    // Any code units, so also halves of letters.
    fc.array(fc.nat({ max: 0xffff }), { maxLength }).map((units) => String.fromCharCode(...units)),
    fc.constantFrom('', '\u0000', '🦊', '🦊'.slice(0, 1), '🦊'.slice(1), 'ÅÅ', '漢字'),
  );
const uint32 = fc.nat({ max: 0xffff_ffff });
const generation = fc.oneof(fc.integer({ min: 1, max: 1000 }), fc.constantFrom(2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1));
const anyRecord: fc.Arbitrary<ColumnRecord> = fc.record({
  isolationId: text(120),
  adapter: text(100),
  index: uint32,
  generation,
  parentGeneration: fc.oneof(fc.constant(0), generation),
  storedAtMs: fc.double({ noNaN: true, min: -1e15, max: 1e15 }),
  tokens: fc.array(uint32, { minLength: COLUMN_TOKENS, maxLength: COLUMN_TOKENS }).map((all) => Uint32Array.from(all)),
  spelling: text(120),
  parts: fc
    .uniqueArray(fc.nat({ max: GROUPS - 1 }), { maxLength: GROUPS })
    .chain((groups) => fc.tuple(...groups.map((group) => uint32.map((slot) => ({ group, slot }))))),
});

describe('a record of a column', () => {
  test('comes back with every field as it was, in its own slot', () => {
    fc.assert(
      fc.property(anyRecord, fc.nat({ max: 15 }), uint32, (original, stripe, slot) => {
        const piece = newPiece();
        recordsOf().write(piece, stripe, slot, original);
        // Another run of the driver reads it.
        expect(recordsOf().read(piece, stripe, slot, original.generation)).toEqual(original);
      }),
      settings(300),
    );
  });

  test('may lie anywhere in a larger memory, and touches nothing but its own bytes', () => {
    const memory = new Uint8Array(3 * BYTES).fill(0x55);
    const piece = memory.subarray(BYTES, 2 * BYTES);
    const tokens = new Uint32Array(COLUMN_TOKENS * 3).subarray(COLUMN_TOKENS, 2 * COLUMN_TOKENS).fill(7);
    const records = recordsOf();
    records.write(piece, 0, 0, record({ tokens }));
    expect(records.read(piece, 0, 0, 77)).toEqual(record({ tokens }));
    ColumnRecords.strikePart(piece, 0);
    ColumnRecords.strike(piece);
    for (const around of [memory.subarray(0, BYTES), memory.subarray(2 * BYTES)]) {
      expect(around.every((byte) => byte === 0x55)).toBe(true);
    }
  });

  test.each<[string, (piece: Uint8Array) => ColumnRecord | undefined]>([
    ['another key', (piece) => recordsOf({ key: randomBytes(32) }).read(piece, 1, 5, 77)],
    ['another model', (piece) => recordsOf({ model: `${MODEL} ` }).read(piece, 1, 5, 77)],
    ['no model', (piece) => recordsOf({ model: '' }).read(piece, 1, 5, 77)],
    ['shorter columns', (piece) => recordsOf({ columnTokens: COLUMN_TOKENS - 1 }).read(piece, 1, 5, 77)],
    ['another stripe', (piece) => recordsOf().read(piece, 0, 5, 77)],
    ['another slot', (piece) => recordsOf().read(piece, 1, 4, 77)],
    ['stripe and slot the other way round', (piece) => recordsOf().read(piece, 5, 1, 77)],
    ['an older generation', (piece) => recordsOf().read(piece, 1, 5, 76)],
    ['a later generation', (piece) => recordsOf().read(piece, 1, 5, 78)],
    ['no generation', (piece) => recordsOf().read(piece, 1, 5, 0)],
  ])('says nothing to %s', (_what, read) => {
    const piece = written();
    expect(recordsOf().read(piece, 1, 5, 77)).toEqual(record());
    expect(read(piece)).toBeUndefined();
  });

  test('is not confused by columns of which the size and the name of the model spell the same', () => {
    const piece = newPiece();
    new ColumnRecords(ownerKeysOf(KEY).recordKey, '1:m', 8, GROUPS).write(piece, 0, 0, record());
    expect(new ColumnRecords(ownerKeysOf(KEY).recordKey, 'm', 8, GROUPS).read(piece, 0, 0, 77)).toBeUndefined();
  });

  test('with any one bit of it turned says nothing, but for the parts that count', () => {
    const piece = written();
    const records = recordsOf();
    const length = new DataView(piece.buffer).getUint32(HEAD_BYTES - 20, true);
    expect(length).toBeGreaterThan(4 * COLUMN_TOKENS);
    const parts = record().parts;
    let fewer = 0;
    for (let at = 0; at < HEAD_BYTES + length; at += 1) {
      for (let bit = 0; bit < 8; bit += 1) {
        piece[at] = (piece[at] as number) ^ (1 << bit);
        const read = records.read(piece, 1, 5, 77);
        if (at >= MASK_FROM && at < MASK_END) {
          // What is not recorded cannot be made up.
          expect(read).toEqual(record({ parts: read?.parts ?? [] }));
          for (const part of read?.parts ?? []) expect(parts).toContainEqual(part);
          fewer += (read?.parts.length ?? 0) < parts.length ? 1 : 0;
        } else {
          expect(read, `byte ${at}, bit ${bit}`).toBeUndefined();
        }
        piece[at] = (piece[at] as number) ^ (1 << bit);
      }
    }
    expect(fewer).toBe(2);
    expect(records.read(piece, 1, 5, 77)).toEqual(record());
  });

  test('that was being written over an older one says nothing, wherever the writing ended', () => {
    const records = recordsOf();
    const older = written({ tokens: tokensOf(1), generation: 70 }, records);
    const newer = written({}, records);
    const end = HEAD_BYTES + new DataView(newer.buffer).getUint32(HEAD_BYTES - 20, true);
    for (let cut = 1; cut < end; cut += 1) {
      if (older.subarray(0, cut).every((byte, at) => byte === newer[at])) continue;
      if (newer.subarray(cut, end).every((byte, at) => byte === older[cut + at])) continue;
      const torn = Uint8Array.of(...newer.subarray(0, cut), ...older.subarray(cut));
      for (const generation of [70, 77]) expect(records.read(torn, 1, 5, generation), `${cut}`).toBeUndefined();
    }
  });

  test('says nothing of random bytes, of zeros, and of lengths that cannot be', () => {
    const records = recordsOf();
    expect(records.read(new Uint8Array(BYTES), 1, 5, 0)).toBeUndefined();
    for (let round = 0; round < 50; round += 1) expect(records.read(randomBytes(BYTES), 1, 5, 77)).toBeUndefined();
    for (const length of [0, 1, 20, BYTES - HEAD_BYTES, BYTES - HEAD_BYTES + 1, 0x8000_0000, 0xffff_ffff]) {
      const piece = written();
      new DataView(piece.buffer).setUint32(HEAD_BYTES - 20, length, true);
      expect(records.read(piece, 1, 5, 77)).toBeUndefined();
    }
  });

  test('that was struck out is gone, and a part that was struck out is gone from it', () => {
    const records = recordsOf();
    const piece = written();
    ColumnRecords.strikePart(piece, 2);
    expect(records.read(piece, 1, 5, 77)).toEqual(record({ parts: [{ group: 0, slot: 9 }] }));
    // Again, and one that was never there.
    ColumnRecords.strikePart(piece, 2);
    ColumnRecords.strikePart(piece, 3);
    expect(records.read(piece, 1, 5, 77)?.parts).toEqual([{ group: 0, slot: 9 }]);
    ColumnRecords.strikePart(piece, 0);
    expect(records.read(piece, 1, 5, 77)?.parts).toEqual([]);
    ColumnRecords.strike(piece);
    expect(records.read(piece, 1, 5, 77)).toBeUndefined();
    // The slot is used again.
    records.write(piece, 1, 5, record({ generation: 90 }));
    expect(records.read(piece, 1, 5, 90)).toEqual(record({ generation: 90 }));
  });

  test('of names that are too long is not there, nor is what was there before', () => {
    const records = recordsOf();
    for (const more of [
      { isolationId: 'x'.repeat(500) },
      { adapter: '漢'.repeat(500) },
      { spelling: 'x'.repeat(40_000) },
      { isolationId: 'x'.repeat(160), adapter: 'y'.repeat(160), spelling: 'z'.repeat(160) },
    ]) {
      const piece = written({}, records);
      records.write(piece, 1, 5, record({ generation: 78, ...more }));
      for (const generation of [77, 78]) expect(records.read(piece, 1, 5, generation)).toBeUndefined();
    }
    // Names of any length that a policy can be about.
    const longest = { isolationId: '🦊'.repeat(128), adapter: 'a'.repeat(100) };
    expect(records.read(written(longest, records), 1, 5, 77)).toEqual(record(longest));
  });

  test('shows nobody without the key whose it is, or what tokens it has', () => {
    const names = { isolationId: 'isolation of acme', adapter: 'adapter of acme', spelling: '0+4=0123456789abcdef;' };
    const piece = Buffer.from(written(names));
    for (const name of Object.values(names)) {
      for (const encoding of ['utf8', 'utf16le'] as const) {
        expect(piece.includes(Buffer.from(name, encoding))).toBe(false);
        expect(piece.includes(Buffer.from(name.slice(0, 6), encoding))).toBe(false);
      }
    }
    const tokens = Buffer.from(record().tokens.buffer);
    for (let at = 0; at + 8 <= tokens.length; at += 4) expect(piece.includes(tokens.subarray(at, at + 8))).toBe(false);
    for (const secret of [KEY, ownerKeysOf(KEY).recordKey, ownerKeysOf(KEY).secret]) {
      expect(piece.includes(Buffer.from(secret).subarray(0, 8))).toBe(false);
    }
  });

  test('of one generation is never encrypted the same way by two runs, nor twice alike by one run for two columns', () => {
    // The same generation in the same slot: without a salt that would be the same key and nonce.
    const bodies = new Set<string>();
    const salts = new Set<string>();
    for (let run = 0; run < 200; run += 1) {
      const piece = Buffer.from(written());
      salts.add(piece.toString('hex', 8, 24));
      bodies.add(piece.toString('hex', HEAD_BYTES, HEAD_BYTES + 32));
    }
    expect([salts.size, bodies.size]).toEqual([200, 200]);
    const records = recordsOf();
    const [one, two] = [written({ generation: 1 }, records), written({ generation: 2 }, records)];
    expect(one.subarray(8, 24)).toEqual(two.subarray(8, 24));
    expect(one.subarray(HEAD_BYTES, HEAD_BYTES + 32)).not.toEqual(two.subarray(HEAD_BYTES, HEAD_BYTES + 32));
  });
});

describe('the key of a driver', () => {
  test('makes other keys, one for each purpose, that say nothing of each other', () => {
    const keys = ownerKeysOf(KEY);
    const all = [keys.secret, keys.owner, keys.tagKey, keys.recordKey, KEY].map((key) =>
      Buffer.from(key).toString('hex'),
    );
    expect(new Set(all).size).toBe(all.length);
    expect(ownerKeysOf(Uint8Array.from(KEY))).toEqual(keys);
    const other = Uint8Array.from(KEY);
    other[31] = (other[31] as number) ^ 1;
    expect(Buffer.from(ownerKeysOf(other).secret)).not.toEqual(Buffer.from(keys.secret));
  });

  test.each([[new Uint8Array(31)], [new Uint8Array(0)], [undefined], ['x'.repeat(64)]])(
    'of too few bytes, or none, is refused by name',
    (key) => {
      expect(() => ownerKeysOf(key as Uint8Array)).toThrow('resume.key: at least 32 bytes are needed');
    },
  );
});
