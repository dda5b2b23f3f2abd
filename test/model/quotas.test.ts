import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ModelGroup } from '../../src/swdriver/model.js';
import { settled } from './manual_clock.js';
import { settings } from './property_settings.js';
import { COLUMN_BYTES, COLUMN_TOKENS, prompt, Rig } from './rig.js';

const columns = (count: number) => ({ quotaBytes: count * COLUMN_BYTES });
/** Full layers, and a window of two columns with a piece on the second shard only. */
const WINDOWED: readonly ModelGroup[] = [
  { name: 'full', bytesPerToken: [2, 4] },
  { name: 'sliding', bytesPerToken: [0, 8], windowTokens: 2 * COLUMN_TOKENS, capacityShare: 0.5 },
];
const WINDOW_BYTES = 8 * COLUMN_TOKENS;

describe('a tenant at its quota', () => {
  test('makes room with its own column that was used least recently, never with that of another', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', columns(4));
    await rig.store('b', prompt(3));
    for (const seed of [1, 2, 3, 4]) expect((await rig.store('a', prompt(1, seed))).stored).toBe(1);
    expect(rig.find('a', prompt(1, 1))).toBe(1);
    expect((await rig.store('a', prompt(1, 5))).stored).toBe(1);
    expect([1, 2, 3, 4, 5].map((seed) => rig.find('a', prompt(1, seed)))).toEqual([1, 0, 1, 1, 1]);
    expect(rig.missed('a', prompt(1, 2))).toEqual({ policy: COLUMN_TOKENS });
    expect(rig.driver.storedBytesOf('a')).toBe(4 * COLUMN_BYTES);
    // There was room enough, and others notice nothing.
    expect(rig.driver.columns).toBe(7);
    expect(await rig.read('b', prompt(3))).toBe(3);
    await rig.end();
  });

  test('has the beginning of a prompt that is longer than the quota', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', columns(4));
    expect(await rig.store('a', prompt(10))).toMatchObject({ stored: 4, present: 0, dropped: 6 });
    expect(await rig.read('a', prompt(10))).toBe(4);
    // What has found no room was refused by the policy.
    expect(rig.missed('a', prompt(10))).toEqual({ policy: 6 * COLUMN_TOKENS });
    // And another prompt after it has all of it.
    expect((await rig.store('a', prompt(10, 2))).stored).toBe(4);
    expect([rig.find('a', prompt(10)), rig.find('a', prompt(10, 2))]).toEqual([0, 4]);
    await rig.end();
  });

  test.each([0, 1, COLUMN_BYTES - 1])('of %i bytes stores nothing, and what it had is gone', async (quotaBytes) => {
    const rig = await Rig.create();
    await rig.store('a', prompt(3));
    rig.driver.policies.set('a', { quotaBytes });
    expect([rig.driver.columns, rig.driver.storedBytesOf('a')]).toEqual([0, 0]);
    expect(await rig.store('a', prompt(3))).toMatchObject({ stored: 0, dropped: 3 });
    expect((await rig.store('b', prompt(3))).stored).toBe(3);
    await rig.end();
  });

  test('counts all adapters of the tenant together', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', columns(5));
    await rig.store('a', prompt(3), 'x');
    await rig.store('a', prompt(3), 'y');
    expect([rig.find('a', prompt(3), 'x'), rig.find('a', prompt(3), 'y')]).toEqual([2, 3]);
    await rig.end();
  });

  test('gives up no column that is pinned, and stores nothing then', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', columns(3));
    await rig.store('a', prompt(3));
    const hit = rig.hit('a', prompt(3));
    expect(await rig.store('a', prompt(2, 2))).toMatchObject({ stored: 0, dropped: 2 });
    rig.driver.policies.set('a', columns(1));
    expect(hit.held).toBe(true);
    expect((await hit.refill(rig.sink('a', prompt(3)))).columns).toBe(3);
    expect(rig.driver.storedBytesOf('a')).toBe(3 * COLUMN_BYTES);
    expect(hit.release()).toBe(true);
    // The next one that is stored brings it below.
    expect((await rig.store('a', prompt(2, 2))).stored).toBe(1);
    expect(rig.driver.storedBytesOf('a')).toBe(COLUMN_BYTES);
    expect(rig.find('a', prompt(3))).toBe(0);
    await rig.end();
  });

  test('that is lowered goes down at once, the least recently used first, and one that is raised fills again', async () => {
    const rig = await Rig.create();
    for (const seed of [1, 2, 3]) await rig.store('a', prompt(4, seed));
    await rig.store('b', prompt(4));
    expect(rig.find('a', prompt(4, 1))).toBe(4);
    rig.driver.policies.set('a', columns(7));
    expect([1, 2, 3].map((seed) => rig.find('a', prompt(4, seed)))).toEqual([4, 0, 3]);
    rig.driver.policies.set('a', { quotaBytes: 7 * COLUMN_BYTES - 1 });
    expect(rig.driver.storedBytesOf('a')).toBe(6 * COLUMN_BYTES);
    rig.driver.policies.set('a', {});
    expect((await rig.store('a', prompt(4, 2))).stored).toBe(4);
    expect(rig.find('b', prompt(4))).toBe(4);
    await rig.end();
  });

  test('can continue its own prompt, at the cost of others of its own', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', columns(5));
    await rig.store('a', prompt(3, 2));
    await rig.store('a', prompt(2));
    const tokens = prompt(4);
    expect((await rig.store('a', tokens)).stored).toBe(2);
    expect(await rig.read('a', tokens)).toBe(4);
    expect(rig.find('a', prompt(3, 2))).toBe(1);
    await rig.end();
  });

  test('has columns with proposed tokens counted when they are verified', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', columns(3));
    const tokens = prompt(6);
    const sequence = rig.driver.openSequence({ isolationId: 'a' });
    sequence.match(Uint32Array.from(tokens.slice(0, 2 * COLUMN_TOKENS))).release();
    sequence.propose(Uint32Array.from(tokens.slice(2 * COLUMN_TOKENS)));
    await sequence.evict(rig.source('a', tokens));
    sequence.verify(4 * COLUMN_TOKENS);
    await settled();
    expect(rig.driver.storedBytesOf('a')).toBeLessThanOrEqual(3 * COLUMN_BYTES);
    expect(await rig.read('a', tokens)).toBe(3);
    sequence.close();
    await rig.end();
  });
});

describe('the bytes of a tenant', () => {
  test('are none when all of it is forgotten, lost, evicted or expired', async () => {
    const rig = await Rig.create({ groups: WINDOWED, capacityColumns: 20, stripes: 2 });
    const stored = () => rig.driver.storedBytesOf('a');
    await rig.store('a', prompt(9));
    await rig.store('a', prompt(9, 2), 'an adapter');
    expect(stored()).toBeGreaterThanOrEqual(18 * COLUMN_BYTES + 4 * WINDOW_BYTES);
    expect(await rig.driver.forget({ isolationId: 'a' })).toBe(18);
    expect(stored()).toBe(0);

    await rig.store('a', prompt(9));
    for (const daemon of rig.box.daemons) daemon.end();
    expect(stored()).toBe(0);
    await rig.clock.advance(5_000);

    await rig.store('a', prompt(9));
    expect((await rig.store('b', prompt(40))).stored).toBe(40);
    expect(stored()).toBe(0);

    rig.driver.policies.set('a', { ttl: { mode: 'first-use', seconds: 1 } });
    await rig.store('a', prompt(9));
    expect(stored()).toBeGreaterThan(0);
    await rig.clock.advance(3_000);
    expect(stored()).toBe(0);
    await rig.end();
  });

  test('are those of what a shard still has, when it loses a column that was promised', async () => {
    const rig = await Rig.create();
    await rig.store('a', prompt(5));
    for (const link of rig.box.links) link.lose(2);
    expect(await rig.read('a', prompt(5))).toBe(2);
    expect(rig.driver.storedBytesOf('a')).toBe(2 * COLUMN_BYTES);
    await rig.end();
  });

  test('do not grow with evicts that fail, sources that lack columns, or ones that throw', async () => {
    const rig = await Rig.create({ groups: WINDOWED });
    const sequence = rig.driver.openSequence({ isolationId: 'a' });
    sequence.match(Uint32Array.from(prompt(6))).release();
    const failing = (how: () => boolean) => ({ write: ({ index }: { index: number }) => index < 2 || how() });
    await sequence.evict(failing(() => false));
    const afterTwo = rig.driver.storedBytesOf('a');
    expect(afterTwo).toBe(2 * (COLUMN_BYTES + WINDOW_BYTES));
    await expect(
      sequence.evict(
        failing(() => {
          throw new Error('broken');
        }),
      ),
    ).rejects.toThrow('broken');
    expect(rig.driver.storedBytesOf('a')).toBe(afterTwo);
    for (const daemon of rig.box.daemons) daemon.immediate = false;
    const hanging = sequence.evict({ write: () => true }, { deadlineMs: 10 });
    await rig.clock.advance(2_000);
    expect((await hanging).stored).toBe(0);
    rig.box.finishAll();
    await settled();
    expect(rig.driver.storedBytesOf('a')).toBe(afterTwo);
    await rig.driver.close();
  });
});

describe('parts of windows', () => {
  test('count as well, and at no moment make it more than the quota', async () => {
    const rig = await Rig.create({ groups: WINDOWED });
    const most = 5 * COLUMN_BYTES + 2 * WINDOW_BYTES;
    for (const quotaBytes of [most, most - 1, COLUMN_BYTES + WINDOW_BYTES, WINDOW_BYTES]) {
      rig.driver.policies.set('a', { quotaBytes });
      for (let seed = 1; seed <= 6; seed += 1) {
        const tokens = prompt(1 + (seed % 4), seed);
        const sequence = rig.driver.openSequence({ isolationId: 'a' });
        sequence.match(Uint32Array.from(tokens)).release();
        await sequence.evict({
          write: () => {
            expect(rig.driver.storedBytesOf('a')).toBeLessThanOrEqual(quotaBytes);
            return true;
          },
        });
      }
      expect(rig.driver.storedBytesOf('a')).toBeGreaterThan(0);
    }
    await rig.end();
  });

  test('find room at the quota as columns do, so that what is stored last can be used', async () => {
    // Slots for two parts, or for plenty of them.
    for (const capacityShare of [0.02, 0.5]) {
      const rig = await Rig.create({ groups: WINDOWED.map((group, at) => (at ? { ...group, capacityShare } : group)) });
      const quotaBytes = 8 * COLUMN_BYTES + 2 * WINDOW_BYTES;
      rig.driver.policies.set('a', { quotaBytes });
      for (let seed = 1; seed <= 12; seed += 1) {
        const tokens = prompt(4, seed);
        // The beginning first, so that the parts of the end find others that make room.
        await rig.store('a', tokens.slice(0, 2 * COLUMN_TOKENS));
        expect((await rig.store('a', tokens)).stored).toBe(2);
        expect(await rig.read('a', tokens)).toBe(4);
        expect(rig.driver.storedBytesOf('a')).toBeLessThanOrEqual(quotaBytes);
      }
      await rig.end();
    }
  });

  test('that can never fit a quota cost the tenant none of its columns', async () => {
    const groups: readonly ModelGroup[] = [
      { name: 'full', bytesPerToken: [2, 4] },
      { name: 'draft', bytesPerToken: [0, 400], required: false },
    ];
    const rig = await Rig.create({ groups });
    rig.driver.policies.set('a', columns(5));
    for (const seed of [1, 2, 3]) expect((await rig.store('a', prompt(1, seed))).stored).toBe(1);
    expect([1, 2, 3].map((seed) => rig.find('a', prompt(1, seed)))).toEqual([1, 1, 1]);
    await rig.end();
  });

  test('that a stored column lacks are stored at the quota, and the column stays meanwhile', async () => {
    const rig = await Rig.create({ groups: WINDOWED });
    rig.driver.policies.set('b', {});
    const tokens = prompt(6);
    // Only the last two columns have their window; a prompt that ends before needs others.
    await rig.store('a', tokens);
    rig.driver.policies.set('a', { quotaBytes: rig.driver.storedBytesOf('a') });
    await rig.store('a', [...tokens.slice(0, 3 * COLUMN_TOKENS), ...prompt(1, 7)]);
    expect(rig.driver.storedBytesOf('a')).toBeLessThanOrEqual(6 * (COLUMN_BYTES + WINDOW_BYTES));
    expect(await rig.read('a', [...tokens.slice(0, 3 * COLUMN_TOKENS), ...prompt(1, 7)])).toBe(4);
    await rig.end();
  });
});

test('whatever tenants do, none has more than its quota, and the bytes of all are those of the columns', async () => {
  const tenants = ['a', 'b', 'c'];
  const step = fc.oneof(
    fc.record({
      what: fc.constant('store' as const),
      tenant: fc.constantFrom(...tenants),
      seed: fc.nat({ max: 4 }),
      length: fc.integer({ min: 1, max: 7 }),
    }),
    fc.record({
      what: fc.constant('find' as const),
      tenant: fc.constantFrom(...tenants),
      seed: fc.nat({ max: 4 }),
      length: fc.integer({ min: 1, max: 7 }),
    }),
    fc.record({
      what: fc.constant('quota' as const),
      tenant: fc.constantFrom(...tenants),
      bytes: fc.nat({ max: 12 * COLUMN_BYTES }),
    }),
    fc.record({ what: fc.constant('forget' as const), tenant: fc.constantFrom(...tenants) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), fc.boolean(), async (steps, windowed) => {
      const rig = await Rig.create({ capacityColumns: 20, ...(windowed ? { groups: WINDOWED } : {}) });
      const quotas = new Map<string, number>();
      for (const each of steps) {
        const { tenant } = each;
        if (each.what === 'store') await rig.store(tenant, prompt(each.length, each.seed));
        else if (each.what === 'find') await rig.read(tenant, prompt(each.length, each.seed));
        else if (each.what === 'forget') await rig.driver.forget({ isolationId: tenant });
        else {
          quotas.set(tenant, each.bytes);
          rig.driver.policies.set(tenant, { quotaBytes: each.bytes });
        }
        for (const [name, bytes] of quotas) expect(rig.driver.storedBytesOf(name)).toBeLessThanOrEqual(bytes);
        const all = tenants.reduce((sum, name) => sum + rig.driver.storedBytesOf(name), 0);
        if (!windowed) expect(all).toBe(rig.driver.columns * COLUMN_BYTES);
      }
      for (const tenant of tenants) await rig.driver.forget({ isolationId: tenant });
      expect(tenants.map((tenant) => rig.driver.storedBytesOf(tenant))).toEqual([0, 0, 0]);
      expect(rig.driver.columns).toBe(0);
      await rig.end();
    }),
    settings(60),
  );
});
