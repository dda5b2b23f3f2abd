import { expect, test } from 'vitest';
import { type TenantPolicy, tenantDigest } from '../../src/common/tenant_policy.js';
import type { DaemonPolicies, PolicyListener, PolicyState } from '../../src/links/policy_feed.js';
import { lru } from '../../src/swdriver/eviction_policy.js';
import { TenantPolicies } from '../../src/swdriver/tenant_policies.js';
import { COLUMN_TOKENS, range, World, type WorldOptions } from './world.js';

// Bytes of a column.
const COLUMN_BYTES = 8;

const over = (more: WorldOptions['more'] = {}): Promise<World> =>
  World.create({
    bytesPerToken: [COLUMN_BYTES / COLUMN_TOKENS],
    striping: 'across',
    capacityColumns: 16,
    immediate: true,
    more: { policy: lru, ...more },
  });

const columns = (count: number, first = 1): number[] => range(count * COLUMN_TOKENS, first);

async function store(world: World, tenant: string, tokens: readonly number[]) {
  const { owner, hit } = world.open(tenant, tokens);
  const result = await world.evict(owner);
  world.release(hit);
  return result;
}

function found(world: World, tenant: string, tokens: readonly number[]): number {
  const { hit } = world.open(tenant, tokens);
  world.release(hit);
  return hit.hit.columns;
}

/** Columns that the runtime is asked for. */
function asking(): { asked: number[]; write(ref: { index: number }): boolean } {
  const asked: number[] = [];
  return {
    asked,
    write: ({ index }) => {
      asked.push(index);
      return true;
    },
  };
}

/** A daemon of which the policies come and go. */
class Daemon implements DaemonPolicies {
  state: PolicyState = 'known';
  readonly version = 1;
  readonly expected = true;
  readonly #listeners = new Set<PolicyListener>();
  readonly #policies = new Map<string, TenantPolicy>();

  policyOf(digest: string): TenantPolicy {
    return this.#policies.get(digest) ?? {};
  }

  set(isolationId: string, policy: TenantPolicy): void {
    this.#policies.set(tenantDigest(isolationId).toString('hex'), policy);
    this.tell(this.state);
  }

  onChange(listener: PolicyListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  tell(state: PolicyState): void {
    this.state = state;
    for (const listener of this.#listeners) listener('all');
  }
}

test('while policies are not known nothing is found or stored, and nothing goes', async () => {
  const policies = new TenantPolicies();
  const daemon = new Daemon();
  policies.follow('daemon', daemon);
  const world = await over({ policies });
  await store(world, 'a', columns(2));
  daemon.tell('awaited');
  expect(found(world, 'a', columns(2))).toBe(0);
  const { owner } = world.open('a', columns(2, 100));
  const source = asking();
  expect(await owner.sequence.evict(source)).toMatchObject({ stored: 0, dropped: 2 });
  expect(source.asked).toEqual([]);
  expect(world.driver.columns).toBe(2);
  daemon.tell('known');
  expect(found(world, 'a', columns(2))).toBe(2);
  // Once it is known that nothing may be kept it goes.
  daemon.set('a', { noStore: true });
  expect(world.driver.columns).toBe(0);
  await world.finish();
});

test('columns beyond what may be stored reach no shard', async () => {
  const world = await over();
  world.setPolicy('a', { storeUpTo: 3 * COLUMN_TOKENS - 1 });
  const { owner } = world.open('a', columns(4));
  const source = asking();
  expect(await owner.sequence.evict(source)).toMatchObject({ stored: 2, dropped: 2 });
  expect(source.asked).toEqual([0, 1]);
  const { sequence } = world.open('a', columns(1)).owner;
  sequence.propose(Uint32Array.from(columns(3, 100)));
  const ahead = asking();
  expect(await sequence.evict(ahead)).toMatchObject({ present: 1, ahead: 1 });
  expect(ahead.asked).toEqual([1]);
});

test('a policy that comes later has what it forbids scrubbed', async () => {
  const world = await over();
  await store(world, 'a', columns(3));
  await store(world, 'b', columns(3));
  world.setPolicy('a', { storeUpTo: COLUMN_TOKENS });
  expect(world.driver.columns).toBe(4);
  expect(world.driver.stats.columnsDeleted).toBe(2);
  expect([found(world, 'a', columns(3)), found(world, 'b', columns(3))]).toEqual([1, 3]);
  await world.finish();
});

test('a tenant has no more bytes than its quota, and makes room of its own', async () => {
  const world = await over();
  // Used before all others, so it would go first.
  await store(world, 'b', columns(2));
  world.setPolicy('a', { quotaBytes: 3 * COLUMN_BYTES });
  await store(world, 'a', columns(2));
  expect(await store(world, 'a', columns(2, 100))).toMatchObject({ stored: 2, dropped: 0 });
  expect(world.driver.columns).toBe(5);
  expect([found(world, 'b', columns(2)), found(world, 'a', columns(2, 100))]).toEqual([2, 2]);
  // Where all of it is pinned nothing more is stored, not even for a moment.
  const held = [world.open('a', columns(2)), world.open('a', columns(2, 100))];
  expect(await store(world, 'a', columns(2, 200))).toMatchObject({ stored: 0, dropped: 2 });
  for (const { hit } of held) world.release(hit);
  await world.finish();
});

test('what has expired is not found, also where nobody has come to delete it', async () => {
  const world = await over({ expiryTickMs: 60_000 });
  world.setPolicy('a', { ttl: { mode: 'last-use', seconds: 1 } });
  world.setPolicy('b', { ttl: { mode: 'first-use', seconds: 1 } });
  for (const tenant of ['a', 'b']) await store(world, tenant, columns(2));
  await world.clock.advance(600);
  for (const tenant of ['a', 'b']) expect(found(world, tenant, columns(2))).toBe(2);
  await world.clock.advance(600);
  expect(world.driver.columns).toBe(4);
  // A use has made one of them last longer.
  expect(['a', 'b'].map((tenant) => found(world, tenant, columns(2)))).toEqual([2, 0]);
  await world.clock.advance(1_000);
  expect(found(world, 'a', columns(2))).toBe(0);
  await world.finish();
});
