import { expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import { packColumns, unpackColumns } from '../../src/wafer/packed_columns.js';
import { Wafer } from '../../src/wafer/wafer.js';
import { parseWaferConfig, type WaferConfigInput } from '../../src/wafer/wafer_config.js';
import { ManualClock } from '../model/manual_clock.js';

const BOX = { bytesPerToken: [1, 2, 3, 2] };

const waferOf = (config: Partial<WaferConfigInput> = {}, clock = new ManualClock()) =>
  new Wafer(parseWaferConfig({ boxes: [BOX], memoryColumns: 8, ...config }), clock);

const columns = (...places: number[]) => places.map((place) => ({ place, key: BigInt(place) * 77n }));

test('a domain has the bytes that the allocation gives it, box after box', () => {
  const wafer = waferOf({ boxes: [BOX, { bytesPerToken: [4, 4, 4, 8] }], columnTokens: 128 });
  expect(wafer.pieceBytes).toEqual([128, 256, 384, 256, 512, 512, 512, 1024]);
  expect(wafer.memory.regions.map(({ memory }) => memory.byteLength)).toEqual(
    wafer.pieceBytes.map((bytes) => 8 * bytes),
  );
});

test('what was computed is found again, and nothing else passes for it', async () => {
  const wafer = waferOf({ boxes: [BOX, BOX] });
  await wafer.compute('prefill', columns(1, 2, 7));
  const lines = 2 * (1 + 2 + 3 + 2);
  expect(await wafer.check(columns(1, 2, 7))).toEqual({ bytes: 3 * lines * 64, lines: 3 * lines, mismatches: 0 });
  expect((await wafer.check(columns(3))).mismatches).toBe(lines);
  expect((await wafer.check([{ place: 1, key: 78n }])).mismatches).toBe(lines);
  const { memory, strideBytes } = wafer.memory.regions[5] as (typeof wafer.memory.regions)[number];
  const bytes = new Uint8Array(memory, 2 * strideBytes);
  bytes[70] = (bytes[70] as number) ^ 1;
  expect((await wafer.check(columns(1, 2, 7))).mismatches).toBe(1);
});

test('two domains never have the same bytes for a column', async () => {
  const wafer = waferOf({ boxes: [{ bytesPerToken: [1, 1, 1, 1] }] });
  await wafer.compute('prefill', columns(0));
  const pieces = wafer.memory.regions.map(({ memory }) => Buffer.from(memory, 0, 64).toString('hex'));
  expect(new Set(pieces).size).toBe(4);
});

test.each([
  ['prefill', 640],
  ['decode', 6_400],
] as const)('%s takes as long as its rate says, one request after the other', async (phase, perColumnMs) => {
  const clock = new ManualClock();
  const wafer = waferOf({ prefillTokensPerSecond: 100, decodeTokensPerSecond: 10 }, clock);
  const done: number[] = [];
  const both = [columns(0, 1), columns(2)].map((batch, index) =>
    wafer.compute(phase, batch).then(() => done.push(index)),
  );
  await clock.advance(2 * perColumnMs - 1);
  expect(done).toEqual([]);
  await clock.advance(1);
  expect(done).toEqual([0]);
  await clock.advance(perColumnMs - 1);
  expect(done).toEqual([0]);
  await clock.advance(1);
  await Promise.all(both);
  expect(done).toEqual([0, 1]);
});

test('without a rate nothing waits', async () => {
  await waferOf({ decodeTokensPerSecond: 1 }).compute('prefill', columns(0, 1, 2));
});

test('a place beyond the memory is refused', async () => {
  const wafer = waferOf();
  await expect(wafer.compute('prefill', columns(8))).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
  await expect(wafer.check([{ place: 2 ** 53, key: 1n }])).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
});

test('columns travel whole', () => {
  const all = [
    { place: 0, key: 0n },
    { place: 2 ** 24 - 1, key: 2n ** 64n - 1n },
  ];
  expect(unpackColumns(packColumns(all))).toEqual(all);
});

const BAD: [string, unknown, RegExp][] = [
  ['no boxes', { boxes: [], memoryColumns: 1 }, /'boxes'/],
  ['three domains', { boxes: [{ bytesPerToken: [1, 2, 3] }], memoryColumns: 1 }, /four domains/],
  ['a domain without bytes', { boxes: [{ bytesPerToken: [1, 2, 3, 0] }], memoryColumns: 1 }, /bytesPerToken\.3/],
  ['no memory', { boxes: [BOX] }, /'memoryColumns'/],
  ['half a line', { boxes: [BOX], memoryColumns: 1, columnTokens: 63 }, /multiple of the 64 bytes/],
  ['a rate of nothing', { boxes: [BOX], memoryColumns: 1, decodeTokensPerSecond: 0 }, /'decodeTokensPerSecond'/],
  [
    'an open address without a token',
    { boxes: [BOX], memoryColumns: 1, listen: [{ host: '0.0.0.0', port: 1 }] },
    /token/,
  ],
  ['a key that does not exist', { boxes: [BOX], memoryColumn: 1 }, /unknown key 'memoryColumn'/],
];

test.each(BAD)('a configuration with %s names what is wrong', (_, config, message) => {
  expect(() => parseWaferConfig(config)).toThrow(message);
  expect(() => parseWaferConfig(config)).toThrow(KvssError);
});

test('memory that cannot be had is refused with its size', () => {
  expect(() => waferOf({ boxes: [{ bytesPerToken: [2 ** 40, 1, 1, 1] }], memoryColumns: 2 ** 20 })).toThrow(
    /'memoryColumns': .* are not to be had/,
  );
});
