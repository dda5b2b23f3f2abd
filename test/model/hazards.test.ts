import { expect, test } from 'vitest';
import { Opcode, Status } from '../../src/proto/generated.js';
import { settled } from './manual_clock.js';
import type { Move, SimulatedLink } from './simulated_link.js';
import { COLUMN_TOKENS, range, served, World, type WorldOptions } from './world.js';

const small = (options: Partial<WorldOptions> = {}): Promise<World> =>
  World.create({ bytesPerToken: [5, 8], striping: 'across', capacityColumns: 4, ...options });

/** Tokens of whole columns, others for every `first`. */
const columns = (count: number, first = 1): number[] => range(count * COLUMN_TOKENS, first);

/** Stores a prompt of a tenant, shards working. */
async function store(world: World, tenant: string, tokens: readonly number[]): Promise<void> {
  const { owner, hit } = world.open(tenant, tokens);
  await served(world, world.evict(owner));
  world.release(hit);
  world.check();
}

/** Lets shards do everything of one kind, and nothing else. */
function finishOnly(world: World, opcode: Opcode): void {
  const some = (): Move[] => world.box.moves().filter(({ operation }) => operation.opcode === opcode);
  for (let moves = some(); moves.length > 0; moves = some()) {
    for (const { link, operation, what } of moves) {
      if (what === 'start') link.start(operation);
      else link.finish(operation);
    }
  }
}

const links = (world: World): SimulatedLink[] => world.box.links;

test('a prompt that was evicted comes back whole, through every kind of sink', async () => {
  const world = await small();
  await store(world, 'a', columns(3));
  for (const kind of ['read', 'readLater', 'locate'] as const) {
    const { hit } = world.open('a', [...columns(3), 7, 7]);
    expect(hit.hit.columns).toBe(3);
    const refill = world.refill(hit, kind);
    for (let round = 0; round < 4; round += 1) {
      world.box.finishAll();
      await settled();
      world.resumeRuntimes();
    }
    expect(await refill).toMatchObject({ columns: 3, tokens: 12 });
  }
  await world.finish();
});

test('tokens that do not fill a column are not stored', async () => {
  const world = await small({ immediate: true });
  const { owner } = world.open('a', columns(1).slice(0, 3));
  expect(await world.evict(owner)).toMatchObject({ stored: 0, present: 0, dropped: 0 });
  world.append(owner, [4]);
  expect(await world.evict(owner)).toMatchObject({ stored: 1, present: 0, dropped: 0 });
  await world.finish();
});

test('no tenant and no adapter finds what another one stored', async () => {
  const world = await small({ immediate: true });
  const { owner } = world.open('1:a', columns(2), 'x');
  await world.evict(owner);
  for (const [tenant, adapter] of [
    ['a', '1:x'],
    ['1:a', ''],
    ['1:a', 'y'],
    ['1:ax', ''],
    ['1', 'a'],
  ] as const) {
    expect(world.open(tenant, columns(2), adapter).hit.hit.columns, `${tenant}/${adapter}`).toBe(0);
  }
  expect(world.open('1:a', columns(2), 'x').hit.hit.columns).toBe(2);
  await world.finish();
});

test('two sequences that evict the same new prefix at once store it once', async () => {
  const world = await small();
  const first = world.open('a', columns(2)).owner;
  const second = world.open('a', columns(3)).owner;
  const evicts = [world.evict(first, 'writeLater'), world.evict(second, 'writeLater')];
  await settled();
  for (let round = 0; round < 6; round += 1) {
    world.resumeRuntimes();
    world.box.finishAll();
    await settled();
  }
  const [one, two] = await Promise.all(evicts);
  expect((one?.stored ?? 0) + (two?.stored ?? 0)).toBe(3);
  expect(world.driver.columns).toBe(3);
  expect(world.open('a', columns(3)).hit.hit.columns).toBe(3);
  await world.finish();
});

test('where the runtime of the first of two evicts fails, what the second put behind its column goes too', async () => {
  const world = await small();
  const first = world.open('a', columns(1)).owner;
  const second = world.open('a', columns(3)).owner;
  const failing = world.evict(first, 'writeLater', 'lacks', 0);
  await settled();
  const following = world.evict(second, 'write');
  await settled();
  world.resumeRuntimes();
  await settled();
  expect(await served(world, failing)).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  await served(world, following);
  expect(world.driver.columns).toBe(0);
  expect(world.open('a', columns(3)).hit.hit.columns).toBe(0);
  await world.finish();
});

test('a slot is not given to another column while the runtime of the one that lost it still writes', async () => {
  // The second sequence continues a column that the first one is still writing; that one fails, and takes it along.
  const world = await small({ capacityColumns: 2 });
  const first = world.open('a', columns(1)).owner;
  const second = world.open('a', columns(2)).owner;
  const failing = world.evict(first, 'writeLater', 'lacks', 0);
  await settled();
  const orphan = world.evict(second, 'writeLater');
  await settled();
  world.resumeRuntime(0);
  await failing;
  const other = world.open('b', columns(2, 100)).owner;
  const third = await served(world, world.evict(other));
  expect(third).toMatchObject({ stored: 1, present: 0, dropped: 1 });
  world.resumeRuntimes();
  await served(world, orphan);
  expect(await served(world, world.evict(other))).toMatchObject({ stored: 1, present: 1, dropped: 0 });
  const refilled = world.refill(world.match(other, other.tokens));
  expect((await served(world, refilled))?.columns).toBe(2);
  await world.finish();
});

test('an evict begins anew where its tip was evicted in between', async () => {
  const world = await small({ capacityColumns: 3, immediate: true });
  const { owner, hit } = world.open('a', columns(2));
  await world.evict(owner);
  world.release(hit);
  await store(world, 'b', columns(3, 100));
  expect(world.open('a', columns(2)).hit.hit.columns).toBe(0);
  world.append(owner, columns(1, 9));
  expect(await world.evict(owner)).toMatchObject({ stored: 3, present: 0, dropped: 0 });
  expect(world.open('a', owner.tokens).hit.hit.columns).toBe(3);
  await world.finish();
});

test('a column does not make room for the one that continues it', async () => {
  const world = await small({ capacityColumns: 1, immediate: true });
  await store(world, 'a', columns(1));
  // A sequence that has matched nothing, and so holds nothing.
  const owner = world.sequence('a');
  world.append(owner, columns(2));
  expect(await world.evict(owner)).toMatchObject({ stored: 0, present: 1, dropped: 1 });
  expect(world.open('a', columns(2)).hit.hit.columns).toBe(1);
  await world.finish();
});

test('of a prompt that is longer than the cache the first columns are stored', async () => {
  const world = await small({ capacityColumns: 3, immediate: true });
  const { owner, hit } = world.open('a', columns(10));
  expect(await world.evict(owner)).toMatchObject({ stored: 3, present: 0, dropped: 7 });
  expect(await world.evict(owner)).toMatchObject({ stored: 0, present: 3, dropped: 7 });
  expect(world.driver.stats).toMatchObject({ columnsEvicted: 3, columnsDropped: 14 });
  expect(world.match(owner, columns(10)).hit.columns).toBe(3);
  world.release(hit);
  await world.finish();
});

test('a prompt of more columns than a batch, through rings smaller than a batch, is stored and comes back', async () => {
  const world = await small({ capacityColumns: 400, ringEntries: 2, immediate: true });
  const { owner } = world.open('a', columns(300));
  expect(await world.evict(owner)).toMatchObject({ stored: 300, present: 0, dropped: 0 });
  const again = world.match(owner, owner.tokens);
  expect(await world.refill(again, 'locate')).toMatchObject({ columns: 300, tokens: 1200 });
  world.release(again);
  await world.finish();
});

test('the slots of a released hit are not reused before its refill has ended', async () => {
  const world = await small({ capacityColumns: 2 });
  await store(world, 'a', columns(2));
  const { hit } = world.open('a', columns(2));
  const refill = world.refill(hit, 'locate');
  await settled();
  expect(world.release(hit)).toBe(true);
  const other = world.open('b', columns(2, 100)).owner;
  expect(await served(world, world.evict(other, 'write', 'none', 0))).toBeDefined();
  world.check();
  expect(await refill).toMatchObject({ columns: 0, tokens: 0 });
  expect(await served(world, world.evict(other))).toMatchObject({ dropped: 0 });
  await world.finish();
});

test('what a sink is reading stays what it is, also where the hit is released meanwhile', async () => {
  const world = await small({ capacityColumns: 1 });
  await store(world, 'a', columns(1));
  const { hit } = world.open('a', columns(1));
  const refill = world.refill(hit, 'readLater');
  await served(world, settled());
  world.release(hit);
  const other = world.open('b', columns(1, 100)).owner;
  expect(await served(world, world.evict(other))).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  world.resumeRuntimes();
  expect(await refill).toMatchObject({ columns: 0, tokens: 0 });
  expect(await served(world, world.evict(other))).toMatchObject({ stored: 1, present: 0, dropped: 0 });
  await world.finish();
});

test('a slot whose refill ran out of time is not reused before the shards have ended it', async () => {
  const world = await small({ capacityColumns: 1 });
  await store(world, 'a', columns(1));
  const { hit } = world.open('a', columns(1));
  const refill = world.refill(hit);
  for (const link of links(world)) for (const { operation } of link.moves()) link.start(operation);
  await world.clock.advance(101);
  expect(await refill).toMatchObject({ columns: 0, tokens: 0 });
  world.release(hit);
  const other = world.open('b', columns(1, 100)).owner;
  expect(await world.evict(other)).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  world.box.finishAll();
  await settled();
  expect(await served(world, world.evict(other))).toMatchObject({ stored: 1, present: 0, dropped: 0 });
  await world.finish();
});

test('a slot whose evict ran out of time is not reused before every shard has ended it', async () => {
  const world = await small({ capacityColumns: 2 });
  const { owner } = world.open('a', columns(1));
  const evict = world.evict(owner);
  await settled();
  const [late] = links(world)[0]?.evicts ?? [];
  // The shards go on with something else: they are slow and not silent, and are asked again.
  const kept = world.evict(world.open('c', columns(1, 50)).owner);
  await settled();
  for (const { link, operation } of world.box.moves()) {
    if (operation.slot === late?.slot) continue;
    link.start(operation);
    link.finish(operation);
  }
  expect(await kept).toMatchObject({ stored: 1 });
  await world.clock.advance(101);
  expect(await evict).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  const pin = world.open('c', columns(1, 50)).hit;
  const other = world.open('b', columns(1, 100)).owner;
  expect(await world.evict(other)).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  links(world)[0]?.finishAll();
  await settled();
  expect(await world.evict(other)).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  world.box.finishAll();
  await settled();
  expect(world.open('a', columns(1)).hit.hit.columns).toBe(0);
  expect(await served(world, world.evict(other))).toMatchObject({ stored: 1, present: 0, dropped: 0 });
  world.release(pin);
  await world.finish();
});

test('a column is found only when every shard has stored its piece', async () => {
  const world = await small();
  const { owner } = world.open('a', columns(1));
  const evict = world.evict(owner);
  await settled();
  links(world)[0]?.finishAll();
  await settled();
  expect(world.open('a', columns(1)).hit.hit.columns).toBe(0);
  links(world)[1]?.finishAll();
  expect(await evict).toMatchObject({ stored: 1, present: 0, dropped: 0 });
  expect(world.open('a', columns(1)).hit.hit.columns).toBe(1);
  await world.finish();
});

test('a column that one shard could not store is not found, and its slot is free again', async () => {
  const world = await small({ capacityColumns: 1 });
  const { owner } = world.open('a', columns(1));
  const evict = world.evict(owner);
  await settled();
  const [good, bad] = links(world);
  good?.finishAll();
  for (const { operation } of bad?.moves() ?? []) {
    bad?.start(operation);
    bad?.finish(operation, Status.transferFailed);
  }
  expect(await evict).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  expect(world.open('a', columns(1)).hit.hit.columns).toBe(0);
  expect(await served(world, world.evict(owner))).toMatchObject({ stored: 1, present: 0, dropped: 0 });
  await world.finish();
});

test('evicts do not stand behind refills', async () => {
  const world = await small({ ringEntries: 1 });
  await store(world, 'a', columns(2));
  const { hit } = world.open('a', columns(2));
  const refill = world.refill(hit);
  const other = world.open('b', columns(2, 100)).owner;
  const evict = world.evict(other);
  for (let round = 0; round < 6; round += 1) {
    await settled();
    finishOnly(world, Opcode.evict);
  }
  expect(await evict).toMatchObject({ stored: 2, present: 0, dropped: 0 });
  expect((await served(world, refill))?.columns).toBe(2);
  await world.finish();
});

test('pinned columns stay, whoever needs room', async () => {
  const world = await small({ capacityColumns: 3, immediate: true });
  await store(world, 'a', columns(2));
  const { hit } = world.open('a', columns(2));
  await world.refill(hit, 'read');
  const other = world.open('b', columns(3, 100)).owner;
  expect(await world.evict(other)).toMatchObject({ stored: 1, present: 0, dropped: 2 });
  world.check();
  expect(hit.hit.held).toBe(true);
  expect(world.release(hit)).toBe(true);
  expect(await world.evict(other)).toMatchObject({ stored: 2, present: 1, dropped: 0 });
  await world.finish();
});

for (const how of ['released', 'out of time'] as const) {
  test(`a refill of a hit that is ${how} does not end the pin of another hit`, async () => {
    const world = await small({ capacityColumns: 1, immediate: true });
    await store(world, 'a', columns(1));
    const first = world.open('a', columns(1)).hit;
    await world.clock.advance(500);
    const second = world.open('a', columns(1)).hit;
    if (how === 'released') world.release(first);
    else await world.clock.advance(501);
    expect(await world.refill(first)).toMatchObject({ columns: 0, tokens: 0 });
    expect(await world.evict(world.open('b', columns(1, 100)).owner)).toMatchObject({ stored: 0 });
    world.check();
    expect(second.hit.held).toBe(true);
    await world.finish();
  });
}

test('a hit that runs out of time while it is refilled ends one pin, not two', async () => {
  const world = await small({ capacityColumns: 1 });
  await store(world, 'a', columns(1));
  const first = world.open('a', columns(1)).hit;
  await world.clock.advance(500);
  const second = world.open('a', columns(1)).hit;
  const refill = world.refill(first, 'readLater', 5_000);
  await served(world, settled());
  await world.clock.advance(501);
  world.resumeRuntimes();
  expect(await served(world, refill)).toMatchObject({ columns: 0, tokens: 0 });
  const evict = world.evict(world.open('b', columns(1, 100)).owner);
  expect(await served(world, evict)).toMatchObject({ stored: 0 });
  expect(second.hit.held).toBe(true);
  await world.finish();
});

test('the pin deadline frees what nobody released', async () => {
  const world = await small({ capacityColumns: 1, immediate: true });
  await store(world, 'a', columns(1));
  const { hit } = world.open('a', columns(1));
  const other = world.open('b', columns(1, 100)).owner;
  expect(await world.evict(other)).toMatchObject({ stored: 0 });
  await world.clock.advance(999);
  expect(hit.hit.held).toBe(true);
  await world.clock.advance(1);
  expect(hit.hit.held).toBe(false);
  expect(await world.evict(other)).toMatchObject({ stored: 1 });
  expect(world.release(hit)).toBe(false);
  await world.finish();
});

test('leaving the scope of a hit releases it', async () => {
  const world = await small({ immediate: true });
  await store(world, 'a', columns(1));
  const { hit } = world.open('a', columns(1));
  hit.hit[Symbol.dispose]();
  expect(hit.hit.held).toBe(false);
  hit.released = true;
  await world.finish();
});

test('closing the driver ends every call as a miss', async () => {
  const world = await small();
  await store(world, 'a', columns(2));
  const { hit, owner } = world.open('a', columns(3));
  const calls = [
    world.refill(hit, 'read'),
    world.evict(owner, 'writeLater'),
    world.evict(world.open('b', columns(1, 100)).owner),
    world.forget('c'),
    world.forget('a'),
  ];
  await settled();
  await world.driver.close();
  world.resumeRuntimes();
  const [refilled, evicted, other, nothing] = await Promise.all(calls);
  expect(refilled).toMatchObject({ columns: 0, tokens: 0 });
  expect(evicted).toMatchObject({ stored: 0 });
  expect(other).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  expect(nothing).toBe(0);
  expect(world.faults).toEqual([]);
  expect(hit.hit.held).toBe(false);
  expect(world.driver).toMatchObject({ columns: 0, capacityColumns: 0 });
  expect(() => world.driver.openSequence({ isolationId: 'a' })).toThrow('closed');
  // What is still open goes on and finds nothing.
  expect(owner.sequence.match(Uint32Array.from(columns(3))).columns).toBe(0);
  expect(await world.driver.forget({ isolationId: 'a' })).toBe(0);
});

test('an evict that began before its sequence was closed stores what it began with', async () => {
  const world = await small();
  await store(world, 'b', columns(4, 100));
  const { owner } = world.open('a', columns(3));
  const evict = world.evict(owner, 'writeLater');
  await settled();
  world.closeSequence(owner);
  for (let round = 0; round < 5; round += 1) {
    world.resumeRuntimes();
    await settled();
    world.box.finishAll();
  }
  expect(await evict).toMatchObject({ stored: 3, present: 0, dropped: 0 });
  const { hit } = world.open('a', columns(3));
  expect(await served(world, world.refill(hit))).toMatchObject({ columns: 3, tokens: 12 });
  expect(world.open('a', [...columns(1), ...columns(3, 104)]).hit.hit.columns).toBe(1);
  await world.finish();
});

test('a closed sequence refuses everything but its end', async () => {
  const world = await small({ immediate: true });
  const { owner } = world.open('a', columns(1));
  world.closeSequence(owner);
  const { sequence } = owner;
  expect(() => sequence.match(new Uint32Array(4))).toThrow('the sequence is closed');
  expect(() => sequence.append(new Uint32Array(4))).toThrow('the sequence is closed');
  expect(() => sequence.evict({ write: () => true })).toThrow('the sequence is closed');
  sequence.close();
  expect(sequence.length).toBe(0);
  await world.finish();
});

test('a sequence takes no new prompt while it evicts', async () => {
  const world = await small({ immediate: true });
  const { owner } = world.open('a', columns(1));
  const evict = world.evict(owner);
  expect(() => owner.sequence.match(new Uint32Array(4))).toThrow('wait for the evict');
  await evict;
  expect(world.match(owner, columns(1)).hit.columns).toBe(1);
  await world.finish();
});

test('evicts of one sequence wait for each other', async () => {
  const world = await small();
  const { owner } = world.open('a', columns(1));
  const first = world.evict(owner, 'writeLater');
  world.append(owner, columns(1, 50));
  const second = world.evict(owner);
  await settled();
  expect(world.waitingRuntimes).toHaveLength(1);
  world.resumeRuntimes();
  // The first call began after the tokens had been added.
  await served(world, settled());
  world.resumeRuntimes();
  expect(await served(world, first)).toMatchObject({ stored: 2, present: 0, dropped: 0 });
  expect(await served(world, second)).toMatchObject({ stored: 0, present: 2, dropped: 0 });
  await world.finish();
});

for (const kind of ['write', 'writeLater', 'locate'] as const) {
  test(`where the runtime breaks (${kind}), its error comes out and the columns before it are kept`, async () => {
    const world = await small();
    const { owner } = world.open('a', columns(4));
    const evict = world.evict(owner, kind, 'throws', 2);
    for (let round = 0; round < 5; round += 1) {
      await settled();
      world.resumeRuntimes();
      world.box.finishAll();
    }
    expect(await evict).toBeUndefined();
    expect(world.open('a', columns(4)).hit.hit.columns).toBe(2);
    expect(await served(world, world.evict(owner))).toMatchObject({ stored: 2, present: 2, dropped: 0 });
    await world.finish();
  });

  test(`where the runtime lacks a column (${kind}), evicting ends before it`, async () => {
    const world = await small();
    const { owner } = world.open('a', columns(4));
    const evict = world.evict(owner, kind, 'lacks', 1);
    for (let round = 0; round < 5; round += 1) {
      await settled();
      world.resumeRuntimes();
      world.box.finishAll();
    }
    expect(await evict).toMatchObject({ stored: 1, present: 0, dropped: 3 });
    await world.finish();
  });
}

test('runtime memory of another length than the piece is refused with both lengths', async () => {
  const world = await small({ immediate: true });
  const sequence = world.driver.openSequence({ isolationId: 'a' });
  sequence.append(Uint32Array.from(columns(1)));
  const wrong = { locate: () => new Uint8Array(21) };
  const error = { code: 'KVSS_BAD_INPUT', message: 'the piece of shard 0 has 20 bytes, the runtime named 21' };
  await expect(sequence.evict(wrong)).rejects.toMatchObject(error);
  expect(world.driver.columns).toBe(0);
  await store(world, 'a', columns(1));
  const hit = sequence.match(Uint32Array.from(columns(1)));
  await expect(hit.refill(wrong)).rejects.toMatchObject(error);
  hit.release();
  await world.finish();
});

test('the error of a sink comes out, and its hit can be refilled again', async () => {
  const world = await small({ immediate: true });
  await store(world, 'a', columns(2));
  const { hit } = world.open('a', columns(2));
  const broken = () => {
    throw new Error('the runtime broke');
  };
  await expect(hit.hit.refill({ read: broken })).rejects.toThrow('the runtime broke');
  expect((await world.refill(hit))?.columns).toBe(2);
  await world.finish();
});

test('forgetting a tenant overwrites its columns with zeros and touches no other', async () => {
  const world = await small({ immediate: true });
  const { owner } = world.open('ab', columns(1), 'x');
  await world.evict(owner);
  await store(world, 'ab', columns(1));
  await store(world, 'ac', columns(1));
  await store(world, '2:ab', columns(1));
  expect(await world.forget('ab')).toBe(2);
  expect(world.driver.columns).toBe(2);
  expect(world.open('ab', columns(1), 'x').hit.hit.columns).toBe(0);
  for (const other of ['ac', '2:ab']) {
    expect((await world.refill(world.open(other, columns(1)).hit))?.columns).toBe(1);
  }
  // Four slots: two hold columns of other tenants, the rest nothing at all.
  for (const link of links(world)) {
    const empty = range(4, 0).filter((slot) => link.piece(slot).every((byte) => byte === 0));
    expect(empty).toHaveLength(2);
  }
  await world.finish();
});

test('columns that are on their way when their tenant is forgotten are overwritten too', async () => {
  const world = await small();
  const { owner } = world.open('a', columns(2));
  const evict = world.evict(owner);
  await settled();
  const forget = world.forget('a');
  expect(await served(world, forget)).toBe(2);
  expect(await evict).toMatchObject({ stored: 0 });
  for (const link of links(world)) expect(link.memory.every((byte) => byte === 0)).toBe(true);
  await world.finish();
});

test('what a runtime still writes when its tenant is forgotten is overwritten when it has written', async () => {
  const world = await small({ capacityColumns: 1 });
  const { owner } = world.open('a', columns(1));
  const evict = world.evict(owner, 'writeLater');
  await settled();
  await served(world, world.forget('a'));
  // Its slot is not for others yet.
  const other = world.open('b', columns(1, 100)).owner;
  expect(await served(world, world.evict(other))).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  world.resumeRuntimes();
  expect(await served(world, evict)).toMatchObject({ stored: 0, present: 0, dropped: 1 });
  for (const link of links(world)) expect(link.memory.every((byte) => byte === 0)).toBe(true);
  expect(await served(world, world.evict(other))).toMatchObject({ stored: 1, present: 0, dropped: 0 });
  await world.finish();
});

test('a hit whose tenant is forgotten is not held any more', async () => {
  const world = await small({ immediate: true });
  await store(world, 'a', columns(2));
  const { hit } = world.open('a', columns(2));
  await world.refill(hit, 'read');
  const forgotten = world.forget('a');
  expect(hit.hit.held).toBe(false);
  expect(await forgotten).toBe(2);
  expect(world.release(hit)).toBe(false);
  await world.finish();
});

test('forgetting ends by its deadline, and the slots come back when they have been scrubbed', async () => {
  const world = await small({ capacityColumns: 2 });
  await store(world, 'a', columns(2));
  const forget = world.forget('a');
  await world.clock.advance(101);
  expect(await forget).toBe(2);
  const { owner } = world.open('b', columns(2, 100));
  expect(await world.evict(owner)).toMatchObject({ stored: 0 });
  world.box.finishAll();
  await settled();
  expect(await served(world, world.evict(owner))).toMatchObject({ stored: 2 });
  await world.finish();
});

test('a column that a shard has lost ends the refill before it, and is stored again', async () => {
  const world = await small({ immediate: true });
  await store(world, 'a', columns(3));
  world.loseSlot(1, 1);
  const { owner, hit } = world.open('a', columns(3));
  expect(hit.hit.columns).toBe(3);
  expect(await world.refill(hit)).toMatchObject({ columns: 1, tokens: 4 });
  expect(world.open('a', columns(3)).hit.hit.columns).toBe(1);
  expect(await world.evict(owner)).toMatchObject({ stored: 2, present: 1, dropped: 0 });
  expect((await world.refill(world.match(owner, columns(3))))?.columns).toBe(3);
  await world.finish();
});

test('a refill that fails for once leaves the column where it is', async () => {
  const world = await small();
  await store(world, 'a', columns(1));
  const { hit } = world.open('a', columns(1));
  const refill = world.refill(hit);
  await settled();
  for (const link of links(world)) {
    for (const { operation } of link.moves()) {
      link.start(operation);
      link.finish(operation, Status.transferFailed);
    }
  }
  expect(await refill).toMatchObject({ columns: 0, tokens: 0 });
  expect(world.driver.stats.refillMisses).toBe(1);
  expect(await served(world, world.refill(hit))).toMatchObject({ columns: 1, tokens: 4 });
  await world.finish();
});

test('what was read in place does not count where the daemon took its memory back meanwhile', async () => {
  const world = await small();
  await store(world, 'a', columns(2));
  const { hit } = world.open('a', columns(2));
  const refill = world.refill(hit, 'readLater');
  await served(world, settled());
  world.resumeRuntimes();
  await settled();
  // The first column has been read, the second is being read.
  world.takeBack(0);
  expect(hit.hit.held).toBe(false);
  world.resumeRuntimes();
  expect(await refill).toMatchObject({ columns: 1, tokens: 4 });
  await world.finish();
});

test('two hits at once take the same columns at the same time', async () => {
  const world = await small();
  await store(world, 'a', columns(3));
  const hits = [world.open('a', columns(3)).hit, world.open('a', columns(2)).hit, world.open('a', columns(3)).hit];
  const refills = hits.map((hit) => world.refill(hit, 'readLater'));
  for (let round = 0; round < 5; round += 1) {
    await settled();
    world.box.finishAll();
    world.resumeRuntimes();
  }
  expect((await Promise.all(refills)).map((result) => result?.columns)).toEqual([3, 2, 3]);
  await world.finish();
});

test('a driver counts what it did', async () => {
  const world = await small({ capacityColumns: 3, immediate: true });
  await store(world, 'a', [...columns(3), 1]);
  const { hit } = world.open('a', columns(2));
  await world.refill(hit);
  world.release(hit);
  await store(world, 'b', columns(1, 100));
  await world.forget('b');
  world.endDaemon(0, true);
  expect(world.driver.stats).toEqual({
    lookups: 3,
    promptTokens: 13 + 8 + 4,
    hitTokens: 8,
    columnsEvicted: 4,
    columnsRefilled: 2,
    columnsDeleted: 2,
    columnsExpired: 0,
    refillMisses: 0,
    columnsDropped: 0,
    columnsLost: 2,
  });
});
