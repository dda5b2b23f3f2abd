import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import { pack } from 'msgpackr';
import { expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import { PACKAGE_ROOT } from '../../src/common/version.js';
import { decodeFrame, encodeFrame, FrameType, Payload, type PayloadOf, parsePayload } from '../../src/proto/frames.js';
import * as generated from '../../src/proto/generated.js';
import { settings } from '../model/property_settings.js';

const HEADER_BYTES = generated.FrameHeaderLayout.bytes;

// --- layouts -----------------------------------------------------------------------------------------------------

interface Layout {
  readonly bytes: number;
  readonly align: number;
  readonly offset: Readonly<Record<string, number>>;
  readonly type: Readonly<Record<string, string>>;
}

/** Every generated layout, by the name of its struct. */
const LAYOUTS: readonly (readonly [string, Layout])[] = Object.entries(generated)
  .filter(([name]) => name.endsWith('Layout'))
  .map(([name, layout]) => [name.replace(/Layout$/, ''), layout as unknown as Layout]);

test.each(LAYOUTS)('the fields of %s lie in order, aligned, apart and inside', (_, layout) => {
  let end = 0;
  for (const [name, offset] of Object.entries(layout.offset)) {
    const [, bits, count = '1'] = /^u(8|16|32|64)(?:\[(\d+)\])?$/.exec(layout.type[name] ?? '') ?? [];
    const size = Number(bits) / 8;
    expect(offset % size, name).toBe(0);
    expect(offset, name).toBeGreaterThanOrEqual(end);
    end = offset + size * Number(count);
  }
  expect(end).toBeLessThanOrEqual(layout.bytes);
  expect(layout.bytes % layout.align).toBe(0);
  expect(Object.keys(layout.type)).toEqual(Object.keys(layout.offset));
});

test('what one side writes and the other reads does not share a cache line with what the other writes', () => {
  const line = (offset: number) => Math.floor(offset / generated.CACHE_LINE_BYTES);
  const { evictTail, commandTail, completionHead, clientSleeping } = generated.SubmitSegmentLayout.offset;
  expect(new Set([evictTail, commandTail, completionHead, clientSleeping].map(line)).size).toBe(4);
});

// --- golden vectors ----------------------------------------------------------------------------------------------

interface Vector {
  readonly name: string;
  readonly struct: string;
  /** Decimal, because some do not fit a number. */
  readonly fields: Readonly<Record<string, string>>;
  readonly hex: string;
}

const vectors = JSON.parse(readFileSync(`${PACKAGE_ROOT}proto/golden.json`, 'utf8')) as Vector[];

type Value = Record<string, number | bigint>;
const codecs = generated as unknown as Record<string, (view: DataView, at: number, value?: Value) => Value>;

test('every struct that travels has golden bytes', () => {
  const travelling = LAYOUTS.map(([name]) => name).filter((name) => `decode${name}` in generated);
  expect(travelling).toContain('Descriptor');
  for (const name of travelling) expect(vectors.map((vector) => vector.struct)).toContain(name);
});

test.each(vectors)('golden bytes: $name ($struct)', ({ struct, fields, hex }) => {
  const bytes = Buffer.from(hex, 'hex');
  expect(bytes).toHaveLength(LAYOUTS.find(([name]) => name === struct)?.[1].bytes ?? 0);
  // Inside other bytes, at an odd place: nothing before or after it is read or written.
  const around = new Uint8Array(bytes.length + 7).fill(0xee);
  around.set(bytes, 3);
  const value = codecs[`decode${struct}`]?.(new DataView(around.buffer), 3) ?? {};
  expect(Object.fromEntries(Object.entries(value).map(([name, each]) => [name, String(each)]))).toEqual(fields);
  const again = new Uint8Array(around.length).fill(0xee);
  codecs[`encode${struct}`]?.(new DataView(again.buffer), 3, value);
  expect(Buffer.from(again).toString('hex')).toBe(Buffer.from(around).toString('hex'));
});

test('generated files are up to date', async () => {
  const generator = new URL('../../proto/generate.mjs', import.meta.url).href;
  const { renderAll } = (await import(generator)) as { renderAll(): Map<string, string> };
  const rendered = renderAll();
  expect(rendered.size).toBeGreaterThan(2);
  for (const [path, text] of rendered) {
    const isFresh = readFileSync(`${PACKAGE_ROOT}${path}`, 'utf8') === text;
    expect(isFresh, `${path} is stale: run \`npm run generate\``).toBe(true);
  }
});

// --- frames ------------------------------------------------------------------------------------------------------

const hello = () => encodeFrame({ type: FrameType.hello, requestId: 7, payload: { client: 'test' } });

/** The frame with some bytes of its header changed. */
function withHeader(change: Partial<generated.FrameHeader>, frame = hello()): Uint8Array {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  generated.encodeFrameHeader(view, 0, { ...generated.decodeFrameHeader(view, 0), ...change });
  return frame;
}

function withPayload(payload: Uint8Array): Uint8Array {
  const frame = new Uint8Array(HEADER_BYTES + payload.length);
  frame.set(hello().subarray(0, HEADER_BYTES));
  frame.set(payload, HEADER_BYTES);
  return withHeader({ payloadBytes: payload.length }, frame);
}

test('a frame comes back as it was', () => {
  const payload = { text: 'é', number: -1.5, large: 2 ** 53 - 1, list: [1, { deep: null }], flag: true };
  const frame = { type: FrameType.statsReply, requestId: Number.MAX_SAFE_INTEGER, payload };
  expect(decodeFrame(encodeFrame(frame))).toEqual(frame);
});

test('a frame is decoded where it lies, inside other bytes', () => {
  const frame = hello();
  const around = new Uint8Array(frame.length + 11).fill(0xee);
  around.set(frame, 5);
  expect(decodeFrame(around.subarray(5, 5 + frame.length)).payload).toEqual({ client: 'test' });
});

const MALFORMED: readonly (readonly [string, () => Uint8Array, string, string])[] = [
  ['nothing', () => new Uint8Array(0), 'KVSS_BAD_FRAME', '0 bytes are shorter than its header'],
  ['half a header', () => hello().subarray(0, 23), 'KVSS_BAD_FRAME', '23 bytes are shorter than its header'],
  ['another magic', () => withHeader({ magic: 0x50545448 }), 'KVSS_BAD_FRAME', 'it does not start with KVSS'],
  [
    'a later version',
    () => withHeader({ version: generated.PROTOCOL_VERSION + 1 }),
    'KVSS_BAD_VERSION',
    `protocol version ${generated.PROTOCOL_VERSION + 1}, this side version ${generated.PROTOCOL_VERSION}`,
  ],
  ['an unknown type', () => withHeader({ type: 999 }), 'KVSS_BAD_FRAME', 'unknown type 999'],
  ['flags', () => withHeader({ flags: 1 }), 'KVSS_BAD_FRAME', 'reserved flags are set'],
  [
    'a longer payload than it has',
    () => withHeader({ payloadBytes: 4_294_967_295 }),
    'KVSS_BAD_FRAME',
    `it announces 4294967295 bytes of payload and has ${hello().length - HEADER_BYTES}`,
  ],
  [
    'a shorter payload than it has',
    () => withHeader({ payloadBytes: 0 }),
    'KVSS_BAD_FRAME',
    `it announces 0 bytes of payload and has ${hello().length - HEADER_BYTES}`,
  ],
  [
    'a request number that no number is',
    () => withHeader({ requestId: 2n ** 53n }),
    'KVSS_BAD_FRAME',
    'the requestId is too large',
  ],
  ['no payload', () => withPayload(new Uint8Array(0)), 'KVSS_BAD_FRAME', 'the payload is not msgpack'],
  [
    'half a payload',
    () => withPayload(pack({ client: 'test' }).subarray(0, 5)),
    'KVSS_BAD_FRAME',
    'the payload is not msgpack',
  ],
  [
    'more after the payload',
    () => withPayload(Buffer.concat([pack(1), pack(2)])),
    'KVSS_BAD_FRAME',
    'the payload is not msgpack',
  ],
  [
    'a list that announces 4 billion entries',
    () => withPayload(Uint8Array.of(0xdd, 0xff, 0xff, 0xff, 0xff)),
    'KVSS_BAD_FRAME',
    'the payload is not msgpack',
  ],
  [
    'lists in lists in lists',
    () => withPayload(new Uint8Array(60_000).fill(0x91)),
    'KVSS_BAD_FRAME',
    'the payload is not msgpack',
  ],
  [
    'an object of a class that the sender chose',
    () => withPayload(pack({ client: new Date(0) })),
    'KVSS_BAD_FRAME',
    'the payload is not msgpack of plain values',
  ],
];

test.each(MALFORMED)('a frame with %s is refused', (_, bytes, code, message) => {
  const decode = () => decodeFrame(bytes());
  expect(decode).toThrow(KvssError);
  expect(decode).toThrow(message);
  expect(decode).toThrow(expect.objectContaining({ code }));
});

test('a frame that would be too long is not made', () => {
  const encode = () =>
    encodeFrame({ type: FrameType.hello, requestId: 1, payload: 'x'.repeat(generated.MAX_FRAME_BYTES) });
  expect(encode).toThrow(expect.objectContaining({ code: 'KVSS_LIMIT_EXCEEDED' }));
});

test('the names that a payload gives reach no prototype', () => {
  const polluting = Buffer.concat([Uint8Array.of(0x81, 0xa9), Buffer.from('__proto__'), pack({ polluted: true })]);
  const { payload } = decodeFrame(withPayload(polluting));
  expect(({} as { polluted?: boolean }).polluted).toBeUndefined();
  expect((payload as { polluted?: boolean }).polluted).toBeUndefined();
});

test('random bytes are a frame or one clear error', () => {
  const random = fc.uint8Array({ maxLength: 200 });
  const nearly = fc
    .tuple(fc.uint8Array({ maxLength: 120 }), fc.boolean())
    .map(([payload, honest]) => (honest ? withPayload(payload) : Buffer.concat([hello(), payload])));
  const flipped = fc.tuple(fc.nat({ max: hello().length - 1 }), fc.integer({ min: 1, max: 255 })).map(([at, bits]) => {
    const bytes = hello();
    bytes[at] = (bytes[at] as number) ^ bits;
    return bytes;
  });
  let decoded = 0;
  let refused = 0;
  const run = fc.property(fc.oneof(random, nearly, flipped), (bytes) => {
    try {
      const { type, requestId, payload } = decodeFrame(bytes);
      decoded += 1;
      expect(generated.frameTypeName(type)).toBeDefined();
      expect(Number.isSafeInteger(requestId)).toBe(true);
      const name = generated.frameTypeName(type) as keyof typeof Payload;
      if (name in Payload) parsePayload(name, payload);
    } catch (thrown) {
      refused += 1;
      expect(thrown).toBeInstanceOf(KvssError);
    }
  });
  fc.assert(run, settings(4_000));
  expect(Math.min(decoded, refused)).toBeGreaterThan(100);
});

// --- payloads ----------------------------------------------------------------------------------------------------

const SHARD = { index: 0, domain: 0, budgetBytes: 10, freeBytes: 5, hugePages: false };

const PARK = { owner: new Uint8Array(32), label: 'full', ms: 60_000 };

const GOOD = {
  hello: { client: 'test' },
  welcome: { daemon: 'd', epoch: 'e', sessionId: 1, pid: 2, shards: [SHARD] },
  attach: { shard: 63, ringEntries: 8 },
  attached: { ringEntries: 8 },
  grant: { shard: 0, grantId: 0, slots: 1, pieceBytes: 1 },
  granted: { slotBytes: 64, bytes: 64, hugePages: true },
  release: { shard: 0, grantId: 1 },
  released: {},
  stats: {},
  statsReply: { shards: [SHARD], sessions: 0, uptimeSeconds: 0.5 },
  slotTable: { shard: 0, grantId: 1, from: 2500, count: 2500 },
  slotPage: { slots: new Uint8Array(24) },
  error: { status: 68, message: 'no' },
  draining: {},
} satisfies { [Name in keyof typeof Payload]?: PayloadOf<Name> };

test('every frame type says what its payload looks like', () => {
  expect(Object.keys(Payload).sort()).toEqual(Object.keys(FrameType).sort());
});

test('a good payload travels and is accepted', () => {
  for (const name of Object.keys(GOOD) as (keyof typeof GOOD)[]) {
    const frame = decodeFrame(encodeFrame({ type: FrameType[name], requestId: 1, payload: GOOD[name] }));
    expect(parsePayload(name, frame.payload)).toEqual(GOOD[name]);
  }
});

test('keys that a payload does not know are ignored, so that later versions can add some', () => {
  expect(parsePayload('attach', { ...GOOD.attach, later: 1 })).toEqual(GOOD.attach);
});

const WRONG: readonly (readonly [keyof typeof Payload, unknown, string])[] = [
  ['hello', {}, 'bad hello frame: client: '],
  ['hello', { client: 'x'.repeat(257) }, 'bad hello frame: client: '],
  ['hello', 7, 'bad hello frame: payload: '],
  ['hello', null, 'bad hello frame: payload: '],
  ['attach', { shard: 64, ringEntries: 8 }, 'bad attach frame: shard: '],
  ['attach', { shard: -1, ringEntries: 8 }, 'bad attach frame: shard: '],
  ['attach', { shard: 0, ringEntries: 7 }, 'bad attach frame: ringEntries: '],
  ['attach', { shard: 0, ringEntries: 8_193 }, 'bad attach frame: ringEntries: '],
  ['grant', { ...GOOD.grant, slots: 0 }, 'bad grant frame: slots: '],
  ['grant', { ...GOOD.grant, slots: 2.5 }, 'bad grant frame: slots: '],
  ['grant', { ...GOOD.grant, slots: 16_777_217 }, 'bad grant frame: slots: '],
  ['grant', { ...GOOD.grant, pieceBytes: 2 ** 30 + 1 }, 'bad grant frame: pieceBytes: '],
  ['grant', { ...GOOD.grant, grantId: 2 ** 32 }, 'bad grant frame: grantId: '],
  ['grant', { ...GOOD.grant, shard: '0' }, 'bad grant frame: shard: '],
  ['grant', { ...GOOD.grant, park: { owner: new Uint8Array(31), label: '', ms: 1 } }, 'bad grant frame: park.owner: '],
  ['grant', { ...GOOD.grant, park: { ...PARK, label: 'x'.repeat(65) } }, 'bad grant frame: park.label: '],
  ['grant', { ...GOOD.grant, park: { ...PARK, ms: 0 } }, 'bad grant frame: park.ms: '],
  ['attach', { ...GOOD.attach, resume: { grantId: 1, label: '', pieceBytes: 1 } }, 'bad attach frame: resume.secret: '],
  ['slotTable', { ...GOOD.slotTable, count: 2501 }, 'bad slotTable frame: count: '],
  ['slotPage', { slots: new Uint8Array(25) }, 'bad slotPage frame: slots: '],
  ['granted', { ...GOOD.granted, slotBytes: 0 }, 'bad granted frame: slotBytes: '],
  [
    'welcome',
    { ...GOOD.welcome, shards: [SHARD, { ...SHARD, freeBytes: -1 }] },
    'bad welcome frame: shards.1.freeBytes: ',
  ],
  ['welcome', { ...GOOD.welcome, shards: new Array(65).fill(SHARD) }, 'bad welcome frame: shards: '],
  ['error', { status: 70_000, message: '' }, 'bad error frame: status: '],
  ['error', { status: 1, message: 'x'.repeat(4_097) }, 'bad error frame: message: '],
];

test.each(WRONG)('a %s payload %j names what is wrong', (name, payload, message) => {
  const parse = () => parsePayload(name, payload);
  expect(parse).toThrow(message);
  expect(parse).toThrow(expect.objectContaining({ code: 'KVSS_BAD_FRAME' }));
});
