import { expect, test } from 'vitest';
import type { ModelGroup } from '../../src/swdriver/model.js';
import { COLUMN_TOKENS, GroupsWorld, type GroupsWorldOptions } from './groups_world.js';
import { settled } from './manual_clock.js';
import { range } from './world.js';

const FULL: ModelGroup = { name: 'full', bytesPerToken: [4] };
const DRAFT: ModelGroup = { name: 'draft', bytesPerToken: [2] };

const over = (options: Partial<GroupsWorldOptions> = {}): Promise<GroupsWorld> =>
  GroupsWorld.create({ groups: [FULL, DRAFT], capacityColumns: 8, immediate: true, ...options });

const columns = (count: number, first = 1): number[] => range(count * COLUMN_TOKENS, first);

/** Columns that somebody else of the tenant finds. */
function found(world: GroupsWorld, tokens: readonly number[]): number {
  const { owner, hit } = world.open('a', tokens);
  const count = hit.hit.columns;
  world.release(hit);
  world.close(owner);
  return count;
}

/** A sequence with a stored column, and proposed tokens that have been written ahead. */
async function proposing(proposed: readonly number[], options: Partial<GroupsWorldOptions> = {}) {
  const world = await over(options);
  const { owner } = world.open('a', columns(1));
  await world.served(world.evict(owner));
  world.propose(owner, proposed);
  return { world, owner };
}

test('what was written ahead is found only after its verdict', async () => {
  const { world, owner } = await proposing(columns(2, 100));
  const all = [...columns(1), ...columns(2, 100)];
  expect(await world.served(world.evict(owner))).toMatchObject({ stored: 0, present: 1, dropped: 0, ahead: 2 });
  expect(found(world, all)).toBe(1);
  expect(world.driver.columns).toBe(1);
  world.verify(owner, 2 * COLUMN_TOKENS);
  // At once, and nothing is written again.
  expect(found(world, all)).toBe(3);
  expect(world.driver.groupStats.map(({ partsEvicted }) => partsEvicted)).toEqual([3, 3]);
  expect(await world.served(world.evict(owner))).toMatchObject({ stored: 0, present: 3, dropped: 0, ahead: 0 });
  const refill = world.refill(world.open('a', all).hit);
  expect(await world.served(refill)).toMatchObject({ columns: 3 });
  await world.finish();
});

test('of what was written ahead only columns that hold nothing but accepted tokens are found', async () => {
  const { world, owner } = await proposing(columns(3, 100));
  await world.served(world.evict(owner));
  world.verify(owner, 2 * COLUMN_TOKENS - 1, [900, 901]);
  expect(found(world, [...columns(1), ...columns(3, 100)])).toBe(2);
  // The column with the correction has to be written.
  expect(await world.served(world.evict(owner))).toMatchObject({ stored: 1, present: 2 });
  expect(found(world, [...columns(1), ...columns(1, 100), 102, 900])).toBe(3);
  await world.finish();
});

test('a rejection frees the slots, and the next proposal overwrites them', async () => {
  const { world, owner } = await proposing(columns(3, 100), { capacityColumns: 4 });
  const free = () => world.stripes[0]?.groups.map((group) => group.freeSlots);
  expect(await world.served(world.evict(owner))).toMatchObject({ ahead: 3 });
  expect(free()).toEqual([0, 0]);
  world.verify(owner, 0);
  expect(free()).toEqual([3, 3]);
  world.checkSlots();
  world.propose(owner, columns(3, 200));
  expect(await world.served(world.evict(owner))).toMatchObject({ ahead: 3 });
  world.verify(owner, 3 * COLUMN_TOKENS);
  expect(found(world, [...columns(1), ...columns(3, 100)])).toBe(1);
  const { hit } = world.open('a', [...columns(1), ...columns(3, 200)]);
  expect(await world.served(world.refill(hit))).toMatchObject({ columns: 4 });
  await world.finish();
});

test("a slot of rejected tokens is nobody else's while the runtime still writes it", async () => {
  const { world, owner } = await proposing(columns(1, 100), { capacityColumns: 2 });
  const evict = world.evict(owner, 'later');
  await settled();
  world.verify(owner, 0);
  world.propose(owner, columns(1, 200));
  const next = world.evict(owner);
  // Another sequence would take the slot if it were free.
  const other = world.open('a', [...columns(1), ...columns(1, 300)]);
  expect(await world.evict(other.owner)).toMatchObject({ stored: 0, dropped: 1 });
  expect(await world.served(evict)).toMatchObject({ ahead: 0 });
  expect(await world.served(next)).toMatchObject({ ahead: 1 });
  world.verify(owner, COLUMN_TOKENS);
  const { hit } = world.open('a', owner.tokens);
  expect(await world.served(world.refill(hit))).toMatchObject({ columns: 2 });
  await world.finish();
});

test('a verdict that comes while the evict is under way counts at its end', async () => {
  for (const accepted of [0, COLUMN_TOKENS, 2 * COLUMN_TOKENS]) {
    const { world, owner } = await proposing(columns(2, 100), { immediate: false });
    await world.served(Promise.resolve());
    const evict = world.evict(owner);
    await settled();
    world.verify(owner, accepted, [900]);
    expect(found(world, owner.tokens)).toBe(1);
    await world.served(evict);
    expect(found(world, owner.tokens)).toBe(1 + accepted / COLUMN_TOKENS);
    expect(found(world, [...columns(1), ...columns(2, 100)])).toBe(1 + accepted / COLUMN_TOKENS);
    await world.finish();
  }
});

test('match drops what waits for a verdict', async () => {
  const { world, owner } = await proposing(columns(2, 100));
  await world.served(world.evict(owner));
  world.release(world.match(owner, columns(1)));
  expect(owner.sequence.proposedTokens).toBe(0);
  world.checkSlots();
  expect(() => owner.sequence.verify(1)).toThrow('verify: 1 of 0 proposed tokens');
  expect(found(world, [...columns(1), ...columns(2, 100)])).toBe(1);
  await world.finish();
});

test('close drops what waits for a verdict, also while it is being written', async () => {
  for (const kind of ['now', 'later'] as const) {
    const { world, owner } = await proposing(columns(2, 100));
    const evict = world.evict(owner, kind);
    if (kind === 'now') await world.served(evict);
    await settled();
    world.close(owner);
    await world.served(evict);
    world.checkSlots();
    expect(() => owner.sequence.propose(Uint32Array.of(1))).toThrow('closed');
    expect(() => owner.sequence.verify(0)).toThrow('closed');
    await world.finish();
  }
});

test('draft and target advance together', async () => {
  const { world, owner } = await proposing(columns(2, 100));
  // It is asked for target and draft of the first column, and lacks the draft of the second.
  expect(await world.served(world.evict(owner, 'now', 'lacks', 3))).toMatchObject({ ahead: 1 });
  world.verify(owner, 2 * COLUMN_TOKENS);
  expect(found(world, owner.tokens)).toBe(2);
  expect([world.partsOf(0).length, world.partsOf(1).length]).toEqual([2, 2]);
  world.checkSlots();
  expect(await world.served(world.evict(owner))).toMatchObject({ stored: 1, present: 2 });
  expect([world.partsOf(0).length, world.partsOf(1).length]).toEqual([3, 3]);
  await world.finish();
});

test('of two sequences that verify the same tokens one column stays', async () => {
  const { world, owner } = await proposing(columns(2, 100));
  const other = world.open('a', columns(1)).owner;
  world.propose(other, columns(2, 100));
  await world.served(world.evict(owner));
  await world.served(world.evict(other));
  world.verify(owner, 2 * COLUMN_TOKENS);
  world.verify(other, 2 * COLUMN_TOKENS);
  expect(world.driver.columns).toBe(3);
  world.checkSlots();
  for (const each of [owner, other]) {
    world.append(each, columns(1, 300));
    expect(await world.served(world.evict(each))).toMatchObject({ present: each === owner ? 3 : 4 });
  }
  await world.finish();
});

test('what was written ahead goes with a stripe that goes', async () => {
  const { world, owner } = await proposing(columns(2, 100));
  await world.served(world.evict(owner));
  world.endDaemon(0, true);
  await world.clock.advance(100);
  world.verify(owner, 2 * COLUMN_TOKENS);
  expect(found(world, owner.tokens)).toBe(0);
  expect(await world.served(world.evict(owner))).toMatchObject({ stored: 3, present: 0 });
  world.checkSlots();
  await world.finish();
});

test('what was written ahead is not put behind a column that has gone', async () => {
  const { world, owner } = await proposing(columns(1, 100));
  expect(await world.served(world.evict(owner))).toMatchObject({ ahead: 1 });
  await world.served(world.forget('a'));
  world.verify(owner, COLUMN_TOKENS);
  expect(world.driver.columns).toBe(0);
  expect(found(world, columns(1, 100))).toBe(0);
  expect(await world.served(world.evict(owner))).toMatchObject({ stored: 2, present: 0 });
  world.checkSlots();
  await world.finish();
});

test('what was written ahead before its stripe went is not found in the slots of after', async () => {
  const world = await over();
  const { owner } = world.open('a', []);
  world.propose(owner, columns(1));
  expect(await world.served(world.evict(owner))).toMatchObject({ ahead: 1 });
  world.endDaemon(0, true);
  await world.clock.advance(100);
  world.verify(owner, COLUMN_TOKENS);
  expect(world.driver.columns).toBe(0);
  expect(found(world, columns(1))).toBe(0);
  world.checkSlots();
  await world.finish();
});

test('a tenant that is forgotten while a column is written ahead leaves nothing pinned', async () => {
  const { world, owner } = await proposing(columns(2, 100), { capacityColumns: 3 });
  const evict = world.evict(owner, 'later');
  await settled();
  await world.served(world.forget('a'));
  // Gets the number of the column that has gone.
  const other = world.open('a', columns(1, 500)).owner;
  await world.evict(other);
  await world.served(evict);
  world.close(owner);
  expect(world.driver.columns).toBe(1);
  const last = world.open('b', columns(3));
  expect(await world.served(world.evict(last.owner))).toMatchObject({ stored: 3 });
  await world.finish();
});

test('more tokens than were proposed cannot be accepted', async () => {
  const { world, owner } = await proposing([100, 101, 102]);
  expect(owner.sequence.proposedTokens).toBe(3);
  for (const accepted of [4, -1, 0.5, Number.NaN]) {
    expect(() => owner.sequence.verify(accepted)).toThrow(`verify: ${accepted} of 3 proposed tokens`);
  }
  world.verify(owner, 3);
  expect([owner.sequence.proposedTokens, owner.sequence.length]).toEqual([0, COLUMN_TOKENS + 3]);
  await world.finish();
});

test('nothing is appended while proposed tokens wait', async () => {
  const { world, owner } = await proposing([100]);
  expect(() => owner.sequence.append(Uint32Array.of(1))).toThrow('append: proposed tokens wait for their verdict');
  world.verify(owner, 0);
  world.append(owner, [1]);
  expect(owner.sequence.length).toBe(COLUMN_TOKENS + 1);
  await world.finish();
});
