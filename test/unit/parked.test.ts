import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { type Claim, type ParkableGrant, ParkedGrants, type ParkingLimits } from '../../src/kvss/parked.js';
import type { Shard } from '../../src/kvss/shard.js';
import { ManualClock } from '../model/manual_clock.js';

const SECRET = Buffer.alloc(32, 7);
const OWNER = createHash('sha256').update(SECRET).digest();

/** A shard of which only memory is of interest. */
class FakeShard {
  readonly dropped: number[] = [];
  freeBytes = 0;
  hugePages = false;
  /** Of what it cannot keep. */
  readonly spoilt = new Set<number>();

  get shard(): Shard {
    return this as unknown as Shard;
  }

  readonly index = 0;
  readonly native = {
    parkSession: async (_session: number, grants: number[]) => grants.filter((grant) => !this.spoilt.has(grant)),
    dropParked: async (session: number) => {
      this.dropped.push(session);
      this.freeBytes += 4096;
    },
    memory: () => ({ budgetBytes: 2 ** 30, freeBytes: this.freeBytes, hugePages: this.hugePages }),
  };
}

const grant = (more: Partial<ParkableGrant> = {}): ParkableGrant => ({
  grantId: 1,
  owner: OWNER,
  label: 'a',
  ms: 1_000,
  kind: 'rings',
  uid: 5,
  slots: 1,
  pieceBytes: 64,
  bytes: 4096,
  ...more,
});

function parking(limits: Partial<ParkingLimits> = {}) {
  const clock = new ManualClock();
  const fake = new FakeShard();
  const parked = new ParkedGrants({ maxMs: 60_000, maxGrants: 10, maxBytes: 2 ** 30, ...limits }, () => {}, clock);
  const claim = (more: Partial<Claim> = {}) =>
    parked.claim({ shard: fake.shard, secret: SECRET, label: 'a', kind: 'rings', uid: 5, pieceBytes: 64, ...more });
  const park = (session: number, more: Partial<ParkableGrant> = {}) => parked.park(fake.shard, session, [grant(more)]);
  return { clock, fake, parked, claim, park };
}

test('of more grants than may be parked the oldest go', async () => {
  const { fake, parked, park } = parking({ maxGrants: 2 });
  for (const session of [1, 2, 3]) await park(session, { label: String(session) });
  expect(parked.of().map(({ sessionId }) => sessionId)).toEqual([2, 3]);
  expect(fake.dropped).toEqual([1]);
});

test('of more bytes than may be parked the oldest go, and a grant that is larger by itself is never parked', async () => {
  const { fake, parked, park } = parking({ maxBytes: 8_192 });
  for (const session of [1, 2, 3]) await park(session, { label: String(session) });
  expect(parked.bytes()).toBe(8_192);
  expect(fake.dropped).toEqual([1]);
  expect(parked.takes(grant({ bytes: 8_192 }))).toBe(true);
  expect(parked.takes(grant({ bytes: 8_193 }))).toBe(false);
  expect(parking({ maxMs: 0 }).parked.takes(grant())).toBe(false);
  expect(parking({ maxGrants: 0 }).parked.takes(grant())).toBe(false);
});

test('the daemon has the last word on how long, and a claim in time stops the clock', async () => {
  const { clock, fake, parked, park, claim } = parking({ maxMs: 500 });
  await park(1);
  await clock.advance(499);
  expect(await claim()).toMatchObject({ sessionId: 1 });
  await clock.advance(10_000);
  expect(fake.dropped).toEqual([]);
  await park(2);
  await clock.advance(501);
  expect(fake.dropped).toEqual([2]);
  expect(parked.of()).toEqual([]);
  expect(await claim()).toBeUndefined();
});

test('what a shard could not keep is not parked', async () => {
  const { fake, parked, park } = parking();
  fake.spoilt.add(1);
  await park(1);
  expect(parked.of()).toEqual([]);
});

test('another user, kind, label or owner finds nothing and changes nothing', async () => {
  const { fake, park, claim } = parking();
  await park(1);
  expect(await claim({ uid: 6 })).toBeUndefined();
  expect(await claim({ kind: 'lanes' })).toBeUndefined();
  expect(await claim({ label: 'b' })).toBeUndefined();
  expect(await claim({ secret: OWNER })).toBeUndefined();
  expect(await claim({ shard: new FakeShard().shard })).toBeUndefined();
  expect(fake.dropped).toEqual([]);
  expect(await claim()).toMatchObject({ sessionId: 1 });
  expect(await claim()).toBeUndefined();
});

test('another user or kind of the same owner and label takes nobody’s place', async () => {
  const { fake, parked, park } = parking();
  await park(1);
  await park(2, { uid: 6 });
  await park(3, { kind: 'lanes' });
  expect(fake.dropped).toEqual([]);
  await park(4);
  expect(fake.dropped).toEqual([1]);
  expect(parked.of().map(({ sessionId }) => sessionId)).toEqual([2, 3, 4]);
});

test('a claim waits for what is just being parked', async () => {
  const { claim, park } = parking();
  const parkingNow = park(1);
  const claimed = claim();
  await parkingNow;
  expect(await claimed).toMatchObject({ sessionId: 1 });
});

test('nothing makes room in vain', async () => {
  const { fake, parked, park } = parking();
  for (const session of [1, 2, 3]) await park(session, { label: String(session) });
  fake.freeBytes = 4_096;
  expect(await parked.makeRoom(fake.shard, 4 * 4_096 + 1)).toBe(false);
  // Whole pages: this one needs a huge one.
  fake.hugePages = true;
  expect(await parked.makeRoom(fake.shard, 8_192)).toBe(false);
  fake.hugePages = false;
  expect(fake.dropped).toEqual([]);
  expect(await parked.makeRoom(fake.shard, 8_192)).toBe(true);
  expect(fake.dropped).toEqual([1]);
  await parked.clear('the test is over');
  expect(fake.dropped).toEqual([1, 2, 3]);
  expect(await parked.makeRoom(fake.shard, 2 ** 29)).toBe(false);
});
