import { expect, test } from 'vitest';
import { COLUMN_TOKENS, range, World } from './world.js';

const prompt = (columns: number, first: number) => range(columns * COLUMN_TOKENS, first);

/** A quiet tenant that stores two columns, and a loud one that stores one prompt after the other. */
async function crowd(fairShares: boolean): Promise<World> {
  const world = await World.create({
    bytesPerToken: [8],
    striping: 'across',
    capacityColumns: 8,
    immediate: true,
    more: { fairShares, policy: 'lru' },
  });
  const store = (tenant: string, tokens: number[]) => world.evict(world.open(tenant, tokens).owner);
  await store('quiet', prompt(2, 1));
  for (let turn = 1; turn <= 20; turn += 1) await store('loud', prompt(3, 1_000 * turn));
  world.check();
  return world;
}

test('with fair shares a tenant keeps what is within its share, whatever another one stores', async () => {
  const world = await crowd(true);
  expect(world.open('quiet', prompt(2, 1)).hit.hit.columns).toBe(2);
  expect(world.driver.columns).toBeGreaterThan(6);
  world.check();
});

test('without them the policy alone decides', async () => {
  const world = await crowd(false);
  expect(world.open('quiet', prompt(2, 1)).hit.hit.columns).toBe(0);
});

test('a tenant below its share takes room from the one that has most', async () => {
  const world = await crowd(true);
  const late = world.open('late', prompt(2, 500)).owner;
  expect(await world.evict(late)).toMatchObject({ stored: 2, dropped: 0 });
  expect(world.open('quiet', prompt(2, 1)).hit.hit.columns).toBe(2);
  expect(world.open('late', prompt(2, 500)).hit.hit.columns).toBe(2);
  world.check();
});
