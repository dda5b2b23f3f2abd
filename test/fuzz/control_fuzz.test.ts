import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import { PACKAGE_ROOT } from '../../src/common/version.js';
import {
  decodeFrame,
  encodeFrame,
  FrameType,
  type Payload,
  type PayloadOf,
  parsePayload,
} from '../../src/proto/frames.js';
import { LaneHelloLayout, laneKindName, MAX_WIO_STREAMS } from '../../src/proto/generated.js';
import { decodeLane, encodeLane } from '../../src/proto/lanes.js';
import { settings } from '../model/property_settings.js';

/**
 * A hostile peer on a control connection: sound frames of every type, with bytes changed, taken out, doubled and swapped
 * between frames. Rings and lanes have fuzzers of their own in this folder; this decoder is TypeScript.
 */

const PARK = { owner: Uint8Array.from({ length: 32 }, (_, index) => 31 - index), label: 'full', ms: 60_000 };
const RESUME = { grantId: 2, secret: new Uint8Array(32), label: 'full', pieceBytes: 2 ** 20, park: PARK };
const RESUMED = { slots: 9, slotBytes: 64, bytes: 4096, hugePages: false };
const SHARD = { index: 63, domain: 1, budgetBytes: 2 ** 40, freeBytes: 5, hugePages: false, parkedBytes: 2 ** 33 };
const TICKET = Uint8Array.from({ length: 32 }, (_, index) => index);

const DIGEST = Uint8Array.from({ length: 32 }, (_, index) => 255 - index);
const REPORT = {
  model: 'llama é',
  policy: 'lru',
  columns: 3,
  capacityColumns: 70_000,
  lookups: 2 ** 33,
  promptTokens: 9,
  hitTokens: 4,
  missTokens: { cold: 3, noStore: 2 },
  curve: [
    { columns: 64, hitRate: 0.5 },
    { columns: 128, hitRate: 1 },
  ],
};

const GOLDEN: { [Name in keyof typeof Payload]: PayloadOf<Name> } = {
  hello: { client: 'fuzz', token: 'é secret', policies: true },
  welcome: {
    daemon: 'd',
    epoch: 'e',
    sessionId: 2 ** 40,
    pid: 2,
    shards: [SHARD, SHARD],
    policies: 2 ** 40,
    reports: true,
  },
  attach: { shard: 3, ringEntries: 4096, resume: RESUME },
  attached: { ringEntries: 8, resumed: RESUMED },
  attachStream: { shard: 0, window: 64, checksums: true, resume: RESUME },
  streamAttached: { window: 8, ticket: TICKET, resumed: RESUMED },
  ticket: { shard: 1, lifetimeMs: 600_000 },
  ticketIssued: { ticket: TICKET },
  grant: { shard: 0, grantId: 2 ** 32 - 1, slots: 70_000, pieceBytes: 2 ** 20, park: PARK },
  granted: { slotBytes: 64, bytes: 2 ** 33, hugePages: true },
  release: { shard: 0, grantId: 1 },
  released: {},
  stats: { driversAfter: 7 },
  statsReply: {
    shards: [SHARD],
    sessions: 3,
    uptimeSeconds: 0.5,
    drivers: [{ sessionId: 8, ageSeconds: 0.25, report: REPORT }],
    moreDrivers: false,
  },
  carrierHello: { client: 'fuzz', owner: 'o', token: 't' },
  carrierWelcome: { carrier: 'c', epoch: 'e', sessionId: 7, places: 1000, pieceBytes: [4096, 65_536] },
  carry: {
    daemon: 'tcp://127.0.0.1:7', // nothing listens there
    shard: 2,
    sessionId: 3,
    ticket: TICKET,
    domain: 1,
    window: 8,
    streams: 2,
    checksums: false,
  },
  carrying: { link: 9, ticket: TICKET },
  drop: { link: 9 },
  dropped: {},
  compute: { phase: 'decode', columns: new Uint8Array(32) },
  computed: {},
  check: { columns: new Uint8Array(16) },
  checked: { bytes: 1, lines: 2, mismatches: 0 },
  policies: { since: 7, basis: 1 },
  policiesPage: {
    version: 300,
    basis: 2,
    reset: true,
    more: false,
    default: { noStore: true },
    entries: [
      {
        digest: DIGEST,
        policy: {
          ttl: { mode: 'first-use', seconds: 0.5 },
          storeUpTo: 70_000,
          quotaBytes: 2 ** 33,
          tenantClass: 'gold',
        },
      },
      { digest: TICKET },
    ],
  },
  report: REPORT,
  reported: {},
  slotTable: { shard: 1, grantId: 2, from: 5000, count: 2500 },
  slotPage: { slots: new Uint8Array(48) },
  goodbye: {},
  farewell: {},
  error: { status: 68, message: 'no' },
  draining: {},
  policiesChanged: {},
};
const names = Object.keys(GOLDEN) as (keyof typeof Payload)[];
const FRAMES = names.map((name) => encodeFrame({ type: FrameType[name], requestId: 1, payload: GOLDEN[name] }));
const HEADER_BYTES = 24;

type Mutation = (bytes: number[], other: number[]) => void;

const at = fc.nat({ max: 2 ** 16 });
/** Values that lengths, counts and tags of msgpack take at their edges. */
const edge = fc.constantFrom(
  0x00,
  0x01,
  0x7f,
  0x80,
  0x8f,
  0x90,
  0xa0,
  0xc0,
  0xc1,
  0xc4,
  0xc7,
  0xd4,
  0xdb,
  0xdd,
  0xdf,
  0xff,
);
const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.tuple(at, fc.integer({ min: 1, max: 255 })).map(
    ([place, bits]): Mutation =>
      (bytes) => {
        bytes[place % bytes.length] = (bytes[place % bytes.length] ?? 0) ^ bits;
      },
  ),
  fc.tuple(at, edge).map(
    ([place, value]): Mutation =>
      (bytes) => {
        bytes[place % bytes.length] = value;
      },
  ),
  fc.tuple(at, fc.nat({ max: 40 })).map(
    ([place, count]): Mutation =>
      (bytes) => {
        bytes.splice(place % bytes.length, count);
      },
  ),
  fc.tuple(at, fc.array(edge, { maxLength: 20 })).map(
    ([place, more]): Mutation =>
      (bytes) => {
        bytes.splice(place % (bytes.length + 1), 0, ...more);
      },
  ),
  fc.tuple(at, at, fc.nat({ max: 60 })).map(
    ([from, to, count]): Mutation =>
      (bytes, other) => {
        const start = from % (other.length + 1);
        bytes.splice(to % (bytes.length + 1), count, ...other.slice(start, start + count));
      },
  ),
);

/** A frame that was sound once. Most say the right length, so that the decoder looks further. */
const spoiled = fc
  .tuple(
    fc.constantFrom(...FRAMES),
    fc.constantFrom(...FRAMES),
    fc.array(mutation, { minLength: 1, maxLength: 3 }),
    fc.integer({ min: 0, max: 9 }),
  )
  .map(([frame, other, mutations, honest]) => {
    const header = [...frame.subarray(0, HEADER_BYTES)];
    const payload = [...frame.subarray(HEADER_BYTES)];
    const whole = honest === 0 ? [...header, ...payload] : payload;
    for (const mutate of mutations) if (whole.length > 0) mutate(whole, [...other.subarray(HEADER_BYTES)]);
    const bytes = Uint8Array.from(honest === 0 ? whole : [...header, ...whole]);
    if (honest > 1) new DataView(bytes.buffer).setUint32(8, bytes.length - HEADER_BYTES, true);
    return bytes;
  });

/** Throws where a value is anything but numbers, text, bytes, lists and maps of them. */
function expectPlain(value: unknown): void {
  if (value === null || ['boolean', 'number', 'string', 'bigint', 'undefined'].includes(typeof value)) return;
  if (value instanceof Uint8Array) return;
  if (Array.isArray(value)) {
    for (const each of value) expectPlain(each);
    return;
  }
  expect(Object.getPrototypeOf(value)).toBe(Object.prototype);
  for (const each of Object.values(value as object)) expectPlain(each);
}

describe('the control decoder', () => {
  test('knows a golden frame of every type', () => {
    expect([...names].sort()).toEqual(Object.keys(FrameType).sort());
    for (const [index, name] of names.entries()) {
      const { payload } = decodeFrame(FRAMES[index] as Uint8Array);
      expect(parsePayload(name, payload)).toEqual(GOLDEN[name]);
    }
  });

  test('makes of a spoiled frame a plain value that fits its type, or one clear error', () => {
    const untouched = JSON.stringify(Object.getOwnPropertyNames(Object.prototype));
    const outcomes = { refused: 0, undecodable: 0, accepted: 0 };
    const run = fc.property(spoiled, (bytes) => {
      let stage: 'undecodable' | 'refused' = 'undecodable';
      try {
        const frame = decodeFrame(bytes);
        stage = 'refused';
        expectPlain(frame.payload);
        const name = names.find((each) => FrameType[each] === frame.type) as keyof typeof Payload;
        const payload = parsePayload(name, frame.payload);
        outcomes.accepted += 1;
        // What one side understood, every other side understands in the same way.
        const again = decodeFrame(encodeFrame({ ...frame, payload }));
        expect(parsePayload(name, again.payload)).toEqual(payload);
      } catch (thrown) {
        expect(thrown).toBeInstanceOf(KvssError);
        outcomes[stage] += 1;
      }
    });
    fc.assert(run, settings(6_000));
    expect(JSON.stringify(Object.getOwnPropertyNames(Object.prototype))).toBe(untouched);
    // Or this would say nothing.
    expect(Math.min(outcomes.refused, outcomes.undecodable, outcomes.accepted)).toBeGreaterThan(200);
  });
});

describe('the hello of a lane', () => {
  const golden = (
    JSON.parse(readFileSync(`${PACKAGE_ROOT}proto/golden.json`, 'utf8')) as { struct: string; hex: string }[]
  )
    .filter(({ struct }) => struct === 'LaneHello')
    .map(({ hex }) => Uint8Array.from(Buffer.from(hex, 'hex')));

  test('is taken as it was meant, or refused with one clear error', () => {
    expect(golden.length).toBeGreaterThan(0);
    const outcomes = { refused: 0, accepted: 0 };
    const flips = fc.array(fc.tuple(fc.nat({ max: LaneHelloLayout.bytes - 1 }), fc.nat({ max: 255 })), {
      maxLength: 4,
    });
    const run = fc.property(fc.constantFrom(...golden), flips, (hello, changes) => {
      const bytes = hello.slice();
      for (const [place, value] of changes) bytes[place] = value;
      try {
        const lane = decodeLane(bytes);
        outcomes.accepted += 1;
        expect(laneKindName(lane.kind)).toBeDefined();
        expect(lane.stream).toBeLessThan(MAX_WIO_STREAMS);
        // Numbers that are too large for a number are no session's; all others come back as they were.
        if (Number.isSafeInteger(lane.sessionId)) expect(encodeLane(lane)).toEqual(bytes);
      } catch (thrown) {
        expect(thrown).toBeInstanceOf(KvssError);
        outcomes.refused += 1;
      }
    });
    fc.assert(run, settings(3_000));
    expect(Math.min(outcomes.refused, outcomes.accepted)).toBeGreaterThan(100);
  });
});
