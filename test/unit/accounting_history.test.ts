import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { seededRandom } from '../../src/common/random.js';
import { ColumnHistory, type ColumnState } from '../../src/swdriver/accounting/column_history.js';
import { Fingerprint } from '../../src/swdriver/accounting/fingerprint.js';
import { MISS_CAUSES, type MissCause, MissTally } from '../../src/swdriver/accounting/miss_cause.js';
import { settings } from '../model/property_settings.js';

const CAUSE_OF: Record<ColumnState, MissCause> = {
  stored: 'shardDown',
  evicted: 'evicted',
  expired: 'expired',
  lost: 'shardDown',
  refused: 'policy',
};
const STATES = Object.keys(CAUSE_OF) as ColumnState[];

const random32 = (seed: number) => {
  const random = seededRandom(seed);
  return () => Math.floor(random() * 2 ** 32);
};

test('a tally counts each cause by itself, adds up, and says so in JSON', () => {
  const tally = new MissTally();
  const other = new MissTally();
  for (const [index, cause] of MISS_CAUSES.entries()) tally.add(cause, index + 1);
  other.add('evicted', 100);
  other.merge(tally);
  expect(other.of('evicted')).toBe(100 + tally.of('evicted'));
  expect(tally.total).toBe((MISS_CAUSES.length * (MISS_CAUSES.length + 1)) / 2);
  expect(JSON.parse(JSON.stringify(tally))).toEqual(
    Object.fromEntries(MISS_CAUSES.map((cause, index) => [cause, index + 1])),
  );
  other.clear();
  expect(other.total).toBe(0);
});

test('fingerprints tell prefixes apart by every token, by order, by parent and by what else there is', () => {
  const fingerprint = new Fingerprint(1, 2);
  const out = new Uint32Array(2);
  const of = (tokens: number[], parent: [number, number] = [0, 0], extra = 0, length = tokens.length) => {
    fingerprint.chain(parent[0], parent[1], Uint32Array.from(tokens), 0, length, extra, out);
    return out.join();
  };
  for (const length of [1, 2, 3, 4, 63, 64]) {
    const tokens = Array.from({ length }, (_, index) => index + 7);
    const seen = new Set([of(tokens), of(tokens, [1, 0]), of(tokens, [0, 1]), of(tokens, [0, 0], 1)]);
    for (let index = 0; index < length; index += 1) seen.add(of(tokens.with(index, 0)));
    expect(seen.size).toBe(4 + length);
    if (length > 1) expect(of(tokens.toReversed())).not.toBe(of(tokens));
    expect(of([...tokens, 0])).not.toBe(of(tokens));
    expect(of(tokens)).toBe(of(tokens));
  }
  new Fingerprint(3, 4).chain(0, 0, Uint32Array.of(7), 0, 1, 0, out);
  const elsewhere = out.join();
  expect(of([7])).not.toBe(elsewhere);
});

test('a chain of columns is the same in one go and in parts, and depends on all that came before', () => {
  const fingerprint = new Fingerprint(5, 6);
  const tokens = Uint32Array.from({ length: 40 }, (_, index) => index);
  const whole = new Uint32Array(20);
  fingerprint.chainAll(tokens, 4, 0, 10, 9, whole);
  const parts = new Uint32Array(20);
  fingerprint.chainAll(tokens, 4, 0, 3, 9, parts);
  fingerprint.chainAll(tokens, 4, 3, 10, 9, parts);
  expect(parts).toEqual(whole);
  const changed = new Uint32Array(20);
  fingerprint.chainAll(tokens.with(5, 99), 4, 0, 10, 9, changed);
  for (let at = 0; at < 2; at += 1) expect(changed[at]).toBe(whole[at]);
  for (let at = 2; at < 20; at += 1) expect(changed[at]).not.toBe(whole[at]);
});

test('both halves of fingerprints are spread evenly, also of columns that are nearly alike', () => {
  const fingerprint = new Fingerprint(11, 12);
  const out = new Uint32Array(2);
  const columns = 2 ** 18;
  // Two tokens of the same lane change: the hardest case for a lane.
  const tokens = new Uint32Array(64);
  const halves = [new Set<number>(), new Set<number>()];
  const high = [new Uint32Array(256), new Uint32Array(256)];
  const low = [new Uint32Array(256), new Uint32Array(256)];
  for (let column = 0; column < columns; column += 1) {
    tokens[0] = column & 511;
    tokens[2] = column >>> 9;
    fingerprint.chain(0, 0, tokens, 0, 64, 0, out);
    for (const half of [0, 1]) {
      const value = out[half] as number;
      halves[half]?.add(value);
      const [top, bottom] = [high[half] as Uint32Array, low[half] as Uint32Array];
      top[value >>> 24] = (top[value >>> 24] as number) + 1;
      bottom[value & 255] = (bottom[value & 255] as number) + 1;
    }
  }
  // Of 2 ** 18 numbers of 32 bits, 8 pairs are expected to collide by chance.
  for (const half of halves) expect(columns - half.size).toBeLessThan(32);
  const expected = columns / 256;
  for (const counts of [...high, ...low]) {
    const chiSquare = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
    // 255 degrees of freedom: mean 255, deviation 22.6.
    expect(chiSquare).toBeLessThan(255 + 6 * 22.6);
  }
});

test('a history with room for everything says what an exact one says', () => {
  const key = fc.nat({ max: 11 });
  const owner = fc.integer({ min: 1, max: 4 });
  const command = fc.oneof(
    { weight: 8, arbitrary: fc.record({ kind: fc.constant('note'), key, owner, state: fc.constantFrom(...STATES) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('forget'), key, owner, state: fc.constant(undefined) }) },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('forgetOwner'), key, owner, state: fc.constant(undefined) }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('grow'), key, owner, state: fc.constant(undefined) }) },
  );
  fc.assert(
    fc.property(fc.array(command, { maxLength: 200 }), fc.integer(), (commands, seed) => {
      // At most 60 entries in 512 places of 64 sets.
      const history = new ColumnHistory({ capacity: 128 });
      const next = random32(seed);
      const keys = Array.from({ length: 12 }, () => [next(), next()] as const);
      const oracle = new Map<string, ColumnState>();
      let capacity = 128;
      for (const { kind, key, owner, state } of commands) {
        const [low, high] = keys[key] as readonly [number, number];
        if (state) {
          history.note(low, high, owner, state);
          oracle.set(`${key}.${owner}`, state);
        } else if (kind === 'forget') {
          history.forget(low, high, owner);
          oracle.delete(`${key}.${owner}`);
        } else if (kind === 'forgetOwner') {
          history.forgetOwner(owner);
          for (const name of [...oracle.keys()]) if (name.endsWith(`.${owner}`)) oracle.delete(name);
        } else if (capacity < 1024) {
          capacity *= 2;
          history.grow(capacity);
        }
        for (let other = 0; other < keys.length; other += 1) {
          const [low, high] = keys[other] as readonly [number, number];
          for (let owner = 1; owner <= 4; owner += 1) {
            const own = oracle.get(`${other}.${owner}`);
            const elsewhere = [1, 2, 3, 4].some((each) => oracle.get(`${other}.${each}`) === 'stored');
            const expected = own ? CAUSE_OF[own] : elsewhere ? 'otherTenant' : 'neverStored';
            if (history.causeOf(low, high, owner) !== expected) {
              throw new Error(`column ${other} of ${owner}: ${history.causeOf(low, high, owner)}, not ${expected}`);
            }
          }
        }
      }
      const shared = new Set([...oracle].filter(([, state]) => state === 'stored').map(([name]) => name.split('.')[0]));
      expect(history.entries).toBe(oracle.size + shared.size);
    }),
    settings(60),
  );
});

test.each([8, 16, 64])('a history of %i entries, too few, forgets, and never tells what is not so', (maxEntries) => {
  const next = random32(3);
  const history = new ColumnHistory({ capacity: 64, maxEntries });
  const oracle = new Map<string, ColumnState>();
  const keys = Array.from({ length: 60 }, () => [next(), next()] as const);
  let forgotten = 0;
  for (let step = 0; step < 10_000; step += 1) {
    const key = next() % keys.length;
    const owner = 1 + (next() % 3);
    const [low, high] = keys[key] as readonly [number, number];
    const state = STATES[next() % STATES.length] as ColumnState;
    history.note(low, high, owner, state);
    oracle.set(`${key}.${owner}`, state);
    const asked = next() % keys.length;
    const [askedLow, askedHigh] = keys[asked] as readonly [number, number];
    for (let each = 1; each <= 3; each += 1) {
      const cause = history.causeOf(askedLow, askedHigh, each);
      const own = oracle.get(`${asked}.${each}`);
      const elsewhere = [1, 2, 3].some((o) => o !== each && oracle.get(`${asked}.${o}`) === 'stored');
      if (cause === 'neverStored') forgotten += own ? 1 : 0;
      else if (cause === 'otherTenant') expect(elsewhere).toBe(true);
      else expect(cause).toBe(CAUSE_OF[own as ColumnState]);
    }
  }
  expect(forgotten).toBeGreaterThan(0);
  expect(history.entries).toBeLessThanOrEqual(history.capacityEntries);
  expect(history.capacityEntries).toBe(maxEntries);
  for (let owner = 1; owner <= 3; owner += 1) history.forgetOwner(owner);
  for (const [low, high] of keys) expect(history.causeOf(low, high, 1)).toBe('neverStored');
});

test('of a full history gone columns go before stored ones, and old news before new', () => {
  const capacity = 2 ** 14;
  const history = new ColumnHistory({ capacity });
  const stored = random32(4);
  const gone = random32(5);
  const keep = Array.from({ length: capacity }, () => [stored(), stored()] as const);
  for (const [low, high] of keep) history.note(low, high, 1, 'stored');
  // Ten times the capacity goes by.
  const past = Array.from({ length: 10 * capacity }, () => [gone(), gone()] as const);
  for (const [low, high] of past) history.note(low, high, 1, 'evicted');
  const known = keep.filter(([low, high]) => history.causeOf(low, high, 1) === 'shardDown').length;
  const shared = keep.filter(([low, high]) => history.causeOf(low, high, 2) === 'otherTenant').length;
  const share = (from: number, end: number) =>
    past.slice(from, end).filter(([low, high]) => history.causeOf(low, high, 1) === 'evicted').length / (end - from);
  expect(known / capacity).toBeGreaterThan(0.98);
  expect(shared / capacity).toBeGreaterThan(0.98);
  expect(share(9.5 * capacity, 10 * capacity)).toBeGreaterThan(0.9);
  expect(share(0, 5 * capacity)).toBeLessThan(0.1);
});

test('a prefix that many tenants store does not crowd out what else there is', () => {
  const history = new ColumnHistory({ capacity: 4096 });
  for (let owner = 1; owner <= 2000; owner += 1) history.note(123, 456, owner, 'stored');
  const known = Array.from({ length: 2000 }, (_, index) => history.causeOf(123, 456, index + 1)).filter(
    (cause) => cause === 'shardDown',
  );
  expect(known.length).toBeGreaterThan(1980);
  expect(history.causeOf(123, 456, 5000)).toBe('otherTenant');
  for (let owner = 1; owner <= 2000; owner += 1) history.note(123, 456, owner, 'evicted');
  expect(history.causeOf(123, 456, 5000)).toBe('neverStored');
});

test('growing forgets nothing, and stays within the bound', () => {
  const history = new ColumnHistory({ capacity: 8, maxEntries: 4096 });
  const next = random32(6);
  const keys: [number, number][] = [];
  for (let capacity = 8; capacity <= 8192; capacity *= 2) {
    history.grow(capacity);
    const before = keys.map(([low, high]) => history.causeOf(low, high, 1));
    history.grow(capacity + 1);
    expect(keys.map(([low, high]) => history.causeOf(low, high, 1))).toEqual(before);
    for (let count = 0; count < capacity / 4; count += 1) {
      const key: [number, number] = [next(), next()];
      keys.push(key);
      history.note(...key, 1, 'stored');
    }
  }
  expect(history.capacityEntries).toBe(4096);
  expect(history.bytes).toBe(4096 * 16);
  history.grow(1);
  expect(history.capacityEntries).toBe(4096);
});

test('a prompt is explained column by column, and what continues nothing in one look', () => {
  const history = new ColumnHistory({ capacity: 64 });
  const fingerprints = new Uint32Array(16);
  new Fingerprint(1, 1).chainAll(
    Uint32Array.from({ length: 32 }, (_, index) => index),
    4,
    0,
    8,
    0,
    fingerprints,
  );
  const note = (column: number, owner: number, state: ColumnState) =>
    history.note(fingerprints[2 * column] as number, fingerprints[2 * column + 1] as number, owner, state);
  note(1, 1, 'expired');
  note(2, 1, 'evicted');
  for (let column = 0; column < 4; column += 1) note(column, 2, 'stored');
  const tally = new MissTally();
  expect(history.explain(fingerprints, 1, 8, 1, 4, tally)).toBe('expired');
  expect(tally.toJSON()).toMatchObject({ expired: 4, evicted: 4, otherTenant: 4, neverStored: 16 });
  expect(tally.total).toBe(28);
  tally.clear();
  expect(history.explain(fingerprints, 8, 8, 1, 4, tally)).toBe('neverStored');
  expect(tally.total).toBe(0);
});
