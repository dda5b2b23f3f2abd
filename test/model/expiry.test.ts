import { describe, expect, test } from 'vitest';
import type { TenantPolicy } from '../../src/common/tenant_policy.js';
import type { Connector } from '../../src/links/link.js';
import type { DaemonPolicies, PolicyListener, PolicyState } from '../../src/links/policy_feed.js';
import { Expiry } from '../../src/swdriver/expiry.js';
import { ManualClock, settled } from './manual_clock.js';
import { COLUMN_BYTES, COLUMN_TOKENS, prompt, Rig } from './rig.js';

const TICK_MS = 250;
const YEAR_MS = 365 * 24 * 3600 * 1000;

/** A rig whose tenant `a` has a time to live. */
async function rigWith(policy: TenantPolicy): Promise<Rig> {
  const rig = await Rig.create({ more: { expiryTickMs: TICK_MS } });
  rig.driver.policies.set('a', policy);
  return rig;
}

const lastUse = (seconds: number): TenantPolicy => ({ ttl: { mode: 'last-use', seconds } });
const firstUse = (seconds: number): TenantPolicy => ({ ttl: { mode: 'first-use', seconds } });

describe('a time to live', () => {
  test.each([lastUse(10), firstUse(10)])(
    'is over exactly when it is over, and not a moment before: %o',
    async (policy) => {
      const rig = await rigWith(policy);
      await rig.clock.advance(1_234.5);
      await rig.store('a', prompt(5));
      await rig.store('b', prompt(5));
      await rig.clock.advance(9_999.75);
      // Looking is a use, which counts for one of the modes: one column is looked at.
      expect(rig.find('a', prompt(1))).toBe(1);
      await rig.clock.advance(0.25);
      const used = policy.ttl?.mode === 'last-use' ? 1 : 0;
      expect(rig.lookUp('a', prompt(5))).toEqual({
        columns: used,
        missed: { expired: (5 - used) * COLUMN_TOKENS },
      });
      // Other tenants have their own.
      expect(await rig.read('b', prompt(5))).toBe(5);
      await rig.end();
    },
  );

  test('of the last use goes on with every use of a prefix, for all that it goes through and nothing else', async () => {
    const rig = await rigWith(lastUse(10));
    await rig.store('a', prompt(6));
    for (let round = 0; round < 20; round += 1) {
      await rig.clock.advance(9_000);
      expect(await rig.read('a', prompt(3))).toBe(3);
      expect(rig.driver.columns).toBe(round === 0 ? 6 : 3);
    }
    expect(rig.driver.stats.columnsExpired).toBe(3);
    expect(rig.lookUp('a', prompt(6))).toEqual({ columns: 3, missed: { expired: 3 * COLUMN_TOKENS } });
    await rig.clock.advance(10_000 + 2 * TICK_MS);
    expect(rig.driver.columns).toBe(0);
    expect(rig.nonZeroBytes).toBe(0);
    await rig.end();
  });

  test('since the first use is not made longer by any use', async () => {
    const rig = await rigWith(firstUse(10));
    await rig.store('a', prompt(4));
    for (let second = 1; second < 10; second += 1) {
      await rig.clock.advance(1_000);
      expect(await rig.read('a', prompt(4))).toBe(4);
    }
    // What is stored behind it later has its own time, and goes with what it continues.
    await rig.store('a', prompt(6));
    await rig.clock.advance(1_000);
    expect(rig.find('a', prompt(6))).toBe(0);
    expect(rig.driver.columns).toBe(0);
    // Stored anew, it begins anew.
    expect((await rig.store('a', prompt(6))).stored).toBe(6);
    await rig.clock.advance(9_999);
    expect(rig.find('a', prompt(6))).toBe(6);
    await rig.clock.advance(1);
    expect(rig.find('a', prompt(6))).toBe(0);
    await rig.end();
  });

  test('of both kinds, of the driver and of a daemon, ends with the first of them', async () => {
    const feed = new Feed();
    const rig = await Rig.create({ more: { expiryTickMs: TICK_MS }, connector: (box) => feed.over(box.connector) });
    feed.set('known', firstUse(10));
    rig.driver.policies.set('a', lastUse(4));
    await rig.store('a', prompt(2));
    await rig.clock.advance(3_000);
    expect(rig.find('a', prompt(2))).toBe(2);
    await rig.clock.advance(3_500);
    expect(rig.find('a', prompt(2))).toBe(2);
    await rig.clock.advance(3_499);
    expect(rig.find('a', prompt(2))).toBe(2);
    await rig.clock.advance(1);
    expect(rig.find('a', prompt(2))).toBe(0);
    await rig.store('a', prompt(2));
    await rig.clock.advance(4_000);
    expect(rig.find('a', prompt(2))).toBe(0);
    await rig.end();
  });

  test('ends with columns deleted and scrubbed within a tick, though nobody asks for them', async () => {
    for (const seconds of [0.001, 0.2, 0.25, 3, 3.1]) {
      const rig = await rigWith(lastUse(seconds));
      await rig.clock.advance(77);
      await rig.store('a', prompt(5));
      const other = await rig.store('b', prompt(2));
      expect(other.stored).toBe(2);
      const before = rig.nonZeroBytes;
      await rig.clock.advance(seconds * 1000 - 0.5);
      expect(rig.driver.columns).toBe(7);
      await rig.clock.advance(0.5 + TICK_MS);
      expect([seconds, rig.driver.columns]).toEqual([seconds, 2]);
      expect(rig.nonZeroBytes).toBe((before / 7) * 2);
      expect(rig.driver.stats).toMatchObject({ columnsExpired: 5, columnsDeleted: 0 });
      expect(rig.driver.storedBytesOf('a')).toBe(0);
      await rig.end();
    }
  });

  test('ends all that it should when the clock jumps by a year, and the cache goes on', async () => {
    const rig = await rigWith(lastUse(10));
    rig.driver.policies.set('c', firstUse(366 * 24 * 3600));
    for (const tenant of ['a', 'b', 'c']) await rig.store(tenant, prompt(10));
    const jump = rig.clock.now() + YEAR_MS;
    rig.clock.jump(YEAR_MS);
    expect(rig.clock.now()).toBe(jump);
    expect(rig.find('a', prompt(10))).toBe(0);
    await rig.clock.advance(TICK_MS);
    expect(rig.driver.columns).toBe(20);
    expect(rig.find('b', prompt(10))).toBe(10);
    expect(rig.find('c', prompt(10))).toBe(10);
    expect((await rig.store('a', prompt(10))).stored).toBe(10);
    await rig.clock.advance(9_999);
    expect(await rig.read('a', prompt(10))).toBe(10);
    await rig.clock.advance(10_000 + TICK_MS);
    expect(rig.driver.columns).toBe(20);
    rig.clock.jump(YEAR_MS);
    await rig.clock.advance(TICK_MS);
    expect(rig.driver.columns).toBe(10);
    await rig.end();
  });
});

describe('a policy that changes', () => {
  test.each([lastUse, firstUse])(
    'to a shorter time takes at once what is older, and to a longer one leaves what is younger',
    async (ttl) => {
      const rig = await rigWith(ttl(100));
      await rig.store('a', prompt(3));
      await rig.clock.advance(50_000);
      rig.driver.policies.set('a', ttl(1000));
      await rig.clock.advance(60_000);
      rig.driver.policies.set('a', ttl(111));
      await rig.clock.advance(0);
      expect(rig.driver.columns).toBe(3);
      rig.driver.policies.set('a', ttl(110));
      expect(rig.lookUp('a', prompt(3))).toEqual({ columns: 0, missed: { expired: 3 * COLUMN_TOKENS } });
      expect(rig.driver.columns).toBe(0);
      await rig.store('a', prompt(3));
      await rig.clock.advance(20_000);
      rig.driver.policies.set('a', ttl(5));
      await rig.clock.advance(TICK_MS);
      expect(rig.driver.columns).toBe(0);
      expect(rig.nonZeroBytes).toBe(0);
      await rig.end();
    },
  );

  test('to no time at all keeps what is there, and one that comes later counts from the beginning', async () => {
    const rig = await rigWith(firstUse(10));
    await rig.store('a', prompt(3));
    await rig.clock.advance(9_000);
    rig.driver.policies.delete('a');
    await rig.clock.advance(YEAR_MS / 1000);
    expect(await rig.read('a', prompt(3))).toBe(3);
    rig.driver.policies.setDefault(firstUse(10));
    expect(rig.find('a', prompt(3))).toBe(0);
    await rig.end();
  });

  test('to no storing erases what is there, also what is pinned, and tells the miss', async () => {
    const rig = await Rig.create();
    await rig.store('a', prompt(5));
    await rig.store('a', prompt(3, 2), 'an adapter');
    await rig.store('b', prompt(5));
    const hit = rig.hit('a', prompt(5));
    const before = rig.nonZeroBytes;
    rig.driver.policies.set('a', { noStore: true });
    expect(hit.held).toBe(false);
    expect((await hit.refill(rig.sink('a', prompt(5)))).columns).toBe(0);
    expect(hit.release()).toBe(false);
    await settled();
    expect(rig.driver.columns).toBe(5);
    expect(rig.nonZeroBytes).toBe((before / 13) * 5);
    expect(rig.driver.storedBytesOf('a')).toBe(0);
    expect(await rig.store('a', prompt(5))).toEqual({ stored: 0, present: 0, dropped: 5, ahead: 0 });
    expect(rig.missed('a', prompt(5))).toEqual({ policy: 5 * COLUMN_TOKENS });
    expect(await rig.read('b', prompt(5))).toBe(5);
    rig.driver.policies.delete('a');
    expect(rig.missed('a', prompt(5))).toEqual({ policy: 5 * COLUMN_TOKENS });
    expect((await rig.store('a', prompt(5))).stored).toBe(5);
    await rig.end();
  });

  test('to no storing while columns are being written leaves nothing of them', async () => {
    const rig = await Rig.create();
    const sequence = rig.driver.openSequence({ isolationId: 'a' });
    sequence.match(Uint32Array.from(prompt(5))).release();
    const inner = rig.source('a', prompt(5)) as { write(...of: unknown[]): boolean };
    const result = await sequence.evict({
      write: async (ref, pieces) => {
        inner.write(ref, pieces);
        if (ref.index === 3) rig.driver.policies.set('a', { noStore: true });
        return true;
      },
    });
    expect(result.stored).toBe(0);
    await settled();
    expect([rig.driver.columns, rig.nonZeroBytes, rig.driver.storedBytesOf('a')]).toEqual([0, 0, 0]);
    expect(rig.find('a', prompt(5))).toBe(0);
    await rig.end();
  });

  test('to storing the beginning only erases what lies behind it, and what the caller wants counts as well', async () => {
    const rig = await Rig.create();
    await rig.store('a', prompt(8));
    rig.driver.policies.set('a', { storeUpTo: 5 * COLUMN_TOKENS + 3 });
    expect(rig.driver.columns).toBe(5);
    expect(rig.lookUp('a', prompt(8))).toEqual({ columns: 5, missed: { policy: 3 * COLUMN_TOKENS } });
    expect(await rig.store('a', prompt(8))).toEqual({ stored: 0, present: 5, dropped: 3, ahead: 0 });

    const tokens = prompt(8, 2);
    const sequence = rig.driver.openSequence({ isolationId: 'a' });
    sequence.match(Uint32Array.from(tokens), { storeUpTo: 3 * COLUMN_TOKENS - 1 }).release();
    expect(await sequence.evict(rig.source('a', tokens))).toMatchObject({ stored: 2, present: 0, dropped: 6 });
    // What is appended lies behind it as well.
    sequence.append(Uint32Array.from(prompt(1, 3)));
    expect(await sequence.evict(rig.source('a', [...tokens, ...prompt(1, 3)]))).toMatchObject({
      stored: 0,
      dropped: 7,
    });
    expect(rig.find('a', tokens)).toBe(2);
    // A wish of one prompt is no policy: others store more.
    expect((await rig.store('a', tokens)).stored).toBe(3);
    rig.driver.policies.set('a', { storeUpTo: 0 });
    expect([rig.driver.columns, rig.driver.storedBytesOf('a')]).toEqual([0, 0]);
    await rig.end();
  });
});

describe('columns that expire while a hit has them', () => {
  test.each(['first-use', 'last-use'] as const)(
    'end the refill as a miss: no byte is counted that was not right (%s)',
    async (mode) => {
      const rig = await rigWith({ ttl: { mode, seconds: 10 } });
      await rig.store('a', prompt(8));
      await rig.clock.advance(9_000);
      const hit = rig.hit('a', prompt(8));
      expect(hit.columns).toBe(8);
      const refilled = await hit.refill(
        rig.sink('a', prompt(8), '', ({ index }) => (index === 4 ? rig.clock.advance(12_000) : undefined)),
      );
      // The one that was being read when the time was over does not count, nor what is behind it.
      expect(refilled.columns).toBe(4);
      expect(hit.held).toBe(false);
      expect(hit.release()).toBe(false);
      expect([rig.driver.columns, rig.nonZeroBytes]).toEqual([0, 0]);
      // Its slots are somebody else's now.
      expect((await rig.store('b', prompt(100))).stored).toBe(100);
      expect(await rig.read('b', prompt(100))).toBe(100);
      await rig.end();
    },
  );

  test('and are found by another lookup first end it as well', async () => {
    const rig = await rigWith(firstUse(10));
    await rig.store('a', prompt(4));
    await rig.clock.advance(9_900);
    const hit = rig.hit('a', prompt(4));
    rig.clock.jump(100);
    expect(rig.find('a', prompt(4))).toBe(0);
    expect((await hit.refill(rig.sink('a', prompt(4)))).columns).toBe(0);
    expect(hit.held).toBe(false);
    hit.release();
    await rig.end();
  });

  test('keep their slots from others for as long as a shard reads them', async () => {
    const rig = await rigWith(firstUse(1));
    await rig.store('a', prompt(100));
    for (const daemon of rig.box.daemons) daemon.immediate = false;
    const hit = rig.hit('a', prompt(100));
    const refill = hit.refill(rig.sink('a', prompt(100)));
    await settled();
    for (const { link, operation, what } of rig.box.moves()) if (what === 'start') link.start(operation);
    await rig.clock.advance(900);
    hit.release();
    await rig.clock.advance(100 + TICK_MS);
    // Expired, and the reading goes on: no slot is free.
    expect(rig.driver.columns).toBe(0);
    expect((await rig.store('b', prompt(3))).stored).toBe(0);
    rig.box.finishAll();
    await settled();
    await refill;
    for (const daemon of rig.box.daemons) daemon.immediate = true;
    for (let round = 0; round < 3; round += 1) {
      rig.box.finishAll();
      await settled();
    }
    expect(rig.nonZeroBytes).toBe(0);
    expect((await rig.store('b', prompt(100))).stored).toBe(100);
    await rig.end();
  });
});

/** Policies of a daemon, as a test wants them. The same for all tenants. */
class Feed implements DaemonPolicies {
  state: PolicyState = 'none';
  expected = false;
  version = 0;
  #policy: TenantPolicy = {};
  readonly #listeners = new Set<PolicyListener>();

  policyOf(): TenantPolicy {
    return this.#policy;
  }

  onChange(listener: PolicyListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  set(state: PolicyState, policy: TenantPolicy = this.#policy): void {
    this.state = state;
    this.expected = true;
    this.#policy = policy;
    for (const listener of this.#listeners) listener('all');
  }

  over(connector: Connector): Connector {
    return async (address: string, deadlineMs: number) =>
      Object.defineProperty(await connector(address, deadlineMs), 'policies', { value: this });
  }
}

describe('while the policies of a daemon are not known', () => {
  test.each(['awaited', 'unreadable'] as const)(
    'nothing is stored and nothing found, and what is there comes back with them (%s)',
    async (state) => {
      const feed = new Feed();
      const rig = await Rig.create({ more: { expiryTickMs: TICK_MS }, connector: (box) => feed.over(box.connector) });
      await rig.store('a', prompt(5));
      await rig.store('b', prompt(5));
      feed.set(state);
      expect(rig.lookUp('a', prompt(5))).toEqual({ columns: 0, missed: { policy: 5 * COLUMN_TOKENS } });
      expect(await rig.store('a', prompt(2, 2))).toMatchObject({ stored: 0, dropped: 2 });
      expect(rig.driver.columns).toBe(10);
      feed.set('known', {});
      expect(await rig.read('a', prompt(5))).toBe(5);
      expect((await rig.store('a', prompt(2, 2))).stored).toBe(2);

      // Pinned before, it stays readable (P4): nothing is known that says otherwise.
      const hit = rig.hit('a', prompt(5));
      feed.set(state);
      expect((await hit.refill(rig.sink('a', prompt(5)))).columns).toBe(5);
      hit.release();
      // What they say when they come is put in force at once.
      await rig.clock.advance(5_000);
      feed.set('known', firstUse(5));
      expect(rig.find('a', prompt(5))).toBe(0);
      await rig.clock.advance(TICK_MS);
      expect(rig.driver.columns).toBe(0);
      feed.set('known', { noStore: true });
      expect(rig.driver.storedBytesOf('a')).toBe(0);
      await rig.end();
    },
  );

  test('columns expire all the same by what is known of the driver itself', async () => {
    const feed = new Feed();
    const rig = await Rig.create({ more: { expiryTickMs: TICK_MS }, connector: (box) => feed.over(box.connector) });
    rig.driver.policies.set('a', firstUse(5));
    await rig.store('a', prompt(5));
    feed.set('awaited');
    await rig.clock.advance(5_000 + TICK_MS);
    expect(rig.driver.columns).toBe(0);
    await rig.end();
  });
});

describe('what looks after the time of columns', () => {
  const YEAR = 366 * 24 * 3600 * 1000;

  test('keeps one note a column, however often policies change and columns come and go', async () => {
    const clock = new ManualClock();
    const serials = new Array<number>(101).fill(0);
    let ttlMs = YEAR;
    const expired: number[] = [];
    const expiry = new Expiry(clock, 1_000, {
      expiryOf: (node, serial) => (serials[node] === serial ? ttlMs : Number.POSITIVE_INFINITY),
      expire: (nodes) => expired.push(...nodes),
    });
    expiry.grow(100);
    for (let round = 0; round < 200; round += 1) {
      // Another column each time, and another time for all of them.
      ttlMs = YEAR - 1_000 * round;
      for (let node = 1; node <= 100; node += 1) {
        serials[node] = (serials[node] as number) + (round % 2);
        expiry.watch(node, serials[node] as number);
        expiry.watch(node, serials[node] as number);
      }
    }
    expect(expiry.watched).toBe(100);
    clock.jump(YEAR);
    await clock.advance(1_000);
    expect(expired.sort((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, index) => index + 1));
    expect([expiry.watched, clock.waiting]).toEqual([0, 0]);
  });

  test('forgets a column that does not expire any more, and one that grows older than it was to', async () => {
    const clock = new ManualClock();
    const due = new Map([
      [1, 5_000],
      [2, 5_000],
      [3, 7_000],
    ]);
    const expired: [number, number][] = [];
    const expiry = new Expiry(clock, 1_000, {
      expiryOf: (node) => due.get(node) ?? Number.POSITIVE_INFINITY,
      expire: (nodes) => expired.push(...nodes.map((node): [number, number] => [node, clock.now()])),
    });
    expiry.grow(3);
    for (const node of due.keys()) expiry.watch(node, 0);
    due.delete(1);
    expiry.watch(1, 0);
    expect(expiry.watched).toBe(2);
    due.set(2, 20_000);
    // Not told: it has been used meanwhile.
    await clock.advance(19_999);
    expect(expired).toEqual([[3, 8_000]]);
    due.set(2, 19_000);
    expiry.watch(2, 0);
    await clock.advance(2_000);
    expect(expired.map(([node]) => node)).toEqual([3, 2]);
    expect([expiry.watched, clock.waiting]).toEqual([0, 0]);
    expiry.watch(2, 0);
    expiry.close();
    expect([expiry.watched, clock.waiting]).toEqual([0, 0]);
  });
});

test('columns of a tenant are counted in bytes while they are stored, and not any more when they are not', async () => {
  const rig = await rigWith(firstUse(10));
  await rig.store('a', prompt(4));
  expect(rig.driver.storedBytesOf('a')).toBe(4 * COLUMN_BYTES);
  rig.box.daemon().end();
  expect(rig.driver.storedBytesOf('a')).toBe(0);
  await rig.end();
});
