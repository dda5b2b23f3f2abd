import { expect, test } from 'vitest';
import { Opcode, Status } from '../../src/proto/generated.js';
import type { ModelGroup } from '../../src/swdriver/model.js';
import type { ColumnMemory } from '../../src/swdriver/runtime.js';
import { SwDriver, type SwDriverOptions } from '../../src/swdriver/sw_driver.js';
import { COLUMN_TOKENS, GroupsWorld, type GroupsWorldOptions, type TrackedHit } from './groups_world.js';
import { ManualClock, settled } from './manual_clock.js';
import { SimulatedBox, type SimulatedLink } from './simulated_link.js';
import { range } from './world.js';

const FULL: ModelGroup = { name: 'full', bytesPerToken: [4, 3] };
const DRAFT: ModelGroup = { name: 'draft', bytesPerToken: [2, 1] };
/** A window of so many columns, with memory for all unless told otherwise. */
const sliding = (columns: number, capacityShare = 1, name = 'sliding'): ModelGroup => ({
  ...{ name, bytesPerToken: [2, 2], windowTokens: columns * COLUMN_TOKENS },
  capacityShare,
});

const over = (groups: ModelGroup[], options: Partial<GroupsWorldOptions> = {}): Promise<GroupsWorld> =>
  GroupsWorld.create({ groups, capacityColumns: 16, immediate: true, ...options });

/** Tokens of whole columns, others for every `first`. */
const columns = (count: number, first = 1): number[] => range(count * COLUMN_TOKENS, first);

/** Stores a prompt and lets go of it. */
async function store(world: GroupsWorld, tokens: readonly number[], tenant = 'a'): Promise<void> {
  const { owner, hit } = world.open(tenant, tokens);
  await world.served(world.evict(owner));
  world.release(hit);
  world.check();
}

/** Columns of each group that a refill shows, in order. */
async function shownBy({ hit }: TrackedHit): Promise<Record<string, number[]>> {
  const shown: Record<string, number[]> = {};
  await hit.refill({
    read: ({ group, index }) => {
      shown[group] = [...(shown[group] ?? []), index];
    },
  });
  return shown;
}

/** Links of a group: every group has a session of its own with each daemon. */
const linksOf = (world: GroupsWorld, group: string): SimulatedLink[] => {
  const at = world.driver.groups.findIndex(({ name }) => name === group);
  return world.box.daemons.flatMap((daemon) => [...daemon.connections][at]?.links ?? []);
};

/** Lets the shards of a group end what they have of one kind, the items below `good` well and the others badly. */
async function finish(world: GroupsWorld, group: string, opcode: Opcode, good: number): Promise<void> {
  await settled();
  for (const link of linksOf(world, group)) {
    for (;;) {
      const move = link.moves().find(({ operation }) => operation.opcode === opcode);
      if (!move) break;
      const { operation } = move;
      if (move.what === 'start') link.start(operation);
      else link.finish(operation, operation.item < good ? Status.ok : Status.transferFailed);
    }
  }
  await settled();
}

const standsStill = (world: GroupsWorld, still = true): void => {
  for (const daemon of world.box.daemons) daemon.immediate = !still;
};

test('a hit needs of a window only the columns that overlap it', async () => {
  // Three tokens overlap two columns.
  const world = await over([FULL, { ...sliding(1), windowTokens: COLUMN_TOKENS + 1 }]);
  await store(world, columns(5));
  const { hit } = world.open('a', columns(5));
  expect(hit.hit.columns).toBe(5);
  expect(await shownBy(hit)).toEqual({ full: [0, 1, 2, 3, 4], sliding: [3, 4] });
  expect(world.driver.groupStats.map(({ name, partsRefilled }) => [name, partsRefilled])).toEqual([
    ['full', 5],
    ['sliding', 2],
  ]);
  await world.finish();
});

test('a model of windows only refills only the windows', async () => {
  const world = await over([sliding(1, 1, 'narrow'), sliding(3, 1, 'wide')]);
  await store(world, columns(6));
  const { hit } = world.open('a', columns(6));
  expect(await shownBy(hit)).toEqual({ wide: [3, 4, 5], narrow: [5] });
  await world.finish();
});

test('where memory for a window is short, a prompt that is evicted at once is a hit up to its end', async () => {
  const world = await over([FULL, sliding(2, 0.25)]);
  await store(world, columns(12));
  const { hit } = world.open('a', columns(12));
  expect(hit.hit.columns).toBe(12);
  expect((await world.served(world.refill(hit)))?.columns).toBe(12);
  await world.finish();
});

test('a prompt that leaves the path of another finds nothing there the first time and all of it the second', async () => {
  const world = await over([FULL, sliding(2, 0.25)]);
  await store(world, columns(8));
  const branch = (first: number) => [...columns(4), ...columns(2, first)];
  // All columns up to there are whole; their windows are not there.
  const first = world.open('a', branch(100));
  expect(first.hit.hit.columns).toBe(0);
  expect(first.hit.hit.wholeColumns).toBe(4);
  expect(await world.served(world.evict(first.owner))).toMatchObject({ stored: 2, present: 4, dropped: 0 });
  world.release(first.hit);
  const second = world.open('a', branch(200));
  expect(second.hit.hit.columns).toBe(4);
  expect((await world.served(world.refill(second.hit)))?.columns).toBe(4);
  world.release(second.hit);
  await world.finish();
});

test('under pressure parts that no prompt ended near go first', async () => {
  // Room for eight parts: two in the middle of a prompt are taken because there is room for them.
  const world = await over([FULL, sliding(2, 0.5)], { capacityColumns: 16 });
  await store(world, columns(4));
  expect(world.partsOf(1)).toHaveLength(4);
  await store(world, columns(2, 100));
  await store(world, columns(2, 200));
  expect(world.driver.groupStats[1]?.partsDropped).toBe(0);
  await store(world, columns(2, 300));
  expect(world.driver.groupStats[1]?.partsDropped).toBe(2);
  // Those of the window at its end have stayed.
  expect(world.open('a', columns(4)).hit.hit.columns).toBe(4);
  expect(world.open('a', columns(2)).hit.hit.columns).toBe(0);
  await world.finish();
});

test('a window that a hit holds does not make room', async () => {
  const world = await over([FULL, sliding(2, 0.125)]);
  await store(world, columns(3));
  const { hit } = world.open('a', columns(3));
  await world.served(world.refill(hit));
  await store(world, columns(3, 100));
  // Neither has it got a part, nor has it taken one.
  expect(world.open('a', columns(3, 100)).hit.hit.columns).toBe(0);
  expect((await world.served(world.refill(hit)))?.columns).toBe(3);
  expect(world.release(hit)).toBe(true);
  await world.finish();
});

test('a column is visible in all groups or in none', async () => {
  for (const failing of ['full', 'draft']) {
    const world = await over([FULL, DRAFT], { immediate: false });
    const { owner } = world.open('a', columns(3));
    const evict = world.evict(owner);
    await finish(world, failing === 'full' ? 'draft' : 'full', Opcode.evict, 3);
    expect(world.driver.columns).toBe(0);
    await finish(world, failing, Opcode.evict, 2);
    expect(await evict).toMatchObject({ stored: 2, dropped: 1 });
    expect(world.open('a', columns(3)).hit.hit.columns).toBe(2);
    await world.finish();
  }
});

test('a target without its draft is no hit', async () => {
  const world = await over([FULL, DRAFT]);
  const { owner } = world.open('a', columns(2));
  // The second thing that it is asked for is the draft of the first column.
  expect(await world.served(world.evict(owner, 'now', 'lacks', 1))).toMatchObject({ stored: 0, dropped: 2 });
  expect(world.open('a', columns(2)).hit.hit.columns).toBe(0);
  await world.finish();
});

test('a window that a shard could not store is not found', async () => {
  const world = await over([FULL, sliding(2)]);
  standsStill(world);
  const { owner } = world.open('a', columns(3));
  const evict = world.evict(owner);
  await finish(world, 'full', Opcode.evict, 3);
  await finish(world, 'sliding', Opcode.evict, 2);
  expect(await evict).toMatchObject({ stored: 3, dropped: 0 });
  expect(world.partsOf(1)).toHaveLength(2);
  expect(world.open('a', columns(3)).hit.hit.columns).toBe(2);
  await world.finish();
});

test('a window that is mended is found when every shard has stored it', async () => {
  const world = await over([FULL, sliding(1)]);
  const first = world.open('a', columns(2));
  await world.served(world.evict(first.owner, 'now', 'lacksWindows', 1));
  world.release(first.hit);
  const { owner, hit } = world.open('a', columns(1));
  world.release(hit);
  expect(hit.hit.columns).toBe(0);
  standsStill(world);
  const evict = world.evict(owner);
  await settled();
  expect(world.open('a', columns(1)).hit.hit.columns).toBe(0);
  await finish(world, 'sliding', Opcode.evict, 1);
  expect(await evict).toMatchObject({ stored: 0, present: 1 });
  expect(world.open('a', columns(1)).hit.hit.columns).toBe(1);
  await world.finish();
});

test('a refill has no more columns than every group that keeps whole prefixes has brought', async () => {
  const world = await over([FULL, DRAFT]);
  await store(world, columns(3));
  standsStill(world);
  const { hit } = world.open('a', columns(3));
  const refill = world.refill(hit);
  await finish(world, 'full', Opcode.refill, 3);
  await finish(world, 'draft', Opcode.refill, 1);
  expect(await refill).toMatchObject({ columns: 1 });
  await world.finish();
});

test('a window that the runtime has no more does not keep a column from being stored', async () => {
  const world = await over([FULL, sliding(2)]);
  const { owner } = world.open('a', columns(5));
  expect(await world.served(world.evict(owner, 'later', 'lacksWindows', 3))).toMatchObject({ stored: 5, dropped: 0 });
  expect(world.partsOf(1)).toHaveLength(2);
  expect(world.open('a', columns(5)).hit.hit.columns).toBe(5);
  expect(world.open('a', columns(4)).hit.hit.columns).toBe(0);
  await world.finish();
});

test('an optional group never makes a hit shorter', async () => {
  for (const windowTokens of [undefined, 2 * COLUMN_TOKENS]) {
    const hints = { name: 'hints', bytesPerToken: [1, 0], required: false };
    const world = await over([FULL, windowTokens === undefined ? hints : { ...hints, windowTokens, capacityShare: 1 }]);
    const { owner } = world.open('a', columns(4));
    await world.served(world.evict(owner, 'now', 'lacksWindows', 1));
    const { hit } = world.open('a', columns(4)).hit;
    expect(hit.columns).toBe(4);
    // Of all tokens the first column is missing; a window at the end has all that it needs.
    expect(hit.tokensOf('hints')).toBe(windowTokens === undefined ? 0 : 4 * COLUMN_TOKENS);
    expect(hit.tokensOf('full')).toBe(4 * COLUMN_TOKENS);
    expect(() => hit.tokensOf('hint')).toThrow("no group 'hint'");
    const shorter = world.open('a', columns(2)).hit.hit;
    expect([shorter.columns, shorter.tokensOf('hints')]).toEqual([2, 0]);
    await world.finish();
  }
});

test('an optional group that cannot be refilled does not make the refill shorter', async () => {
  const hints = { name: 'hints', bytesPerToken: [1, 0], required: false };
  const world = await over([hints, FULL, sliding(1)]);
  await store(world, columns(4));
  standsStill(world);
  const { hit } = world.open('a', columns(4));
  expect(hit.hit.tokensOf('hints')).toBe(4 * COLUMN_TOKENS);
  const refill = world.refill(hit);
  await finish(world, 'full', Opcode.refill, 4);
  await finish(world, 'hints', Opcode.refill, 1);
  await finish(world, 'sliding', Opcode.refill, 4);
  expect(await refill).toMatchObject({ columns: 4 });
  expect(hit.hit.tokensOf('hints')).toBe(COLUMN_TOKENS);
  await world.finish();
});

test('what an optional group could not refill makes room again when the hit is released', async () => {
  const hints = { name: 'hints', bytesPerToken: [1, 0], required: false, capacityShare: 0.25 };
  const world = await over([FULL, hints]);
  await store(world, columns(4));
  standsStill(world);
  const { hit } = world.open('a', columns(4));
  const refill = world.refill(hit);
  await finish(world, 'full', Opcode.refill, 4);
  await finish(world, 'hints', Opcode.refill, 0);
  expect(await refill).toMatchObject({ columns: 4 });
  world.release(hit);
  standsStill(world, false);
  await store(world, columns(4, 100));
  expect(world.open('a', columns(4, 100)).hit.hit.tokensOf('hints')).toBe(4 * COLUMN_TOKENS);
  await world.finish();
});

test('a shard without layers of a group gets an empty piece', async () => {
  for (const options of [{}, { places: 4 }, { memory: true }, { memory: true, places: 4 }]) {
    const world = await over([FULL, { ...sliding(1), bytesPerToken: [0, 2] }], options);
    expect(linksOf(world, 'sliding')).toHaveLength(1);
    const kinds = ['now', 'later', 'locate', 'place'] as const;
    for (const [index, kind] of kinds.entries()) {
      const { owner, hit } = world.open('a', columns(3, 1 + 100 * index));
      expect(await world.served(world.evict(owner, kind))).toMatchObject({ stored: 3 });
      world.release(hit);
      const again = world.match(owner, owner.tokens);
      expect(await world.served(world.refill(again, kind))).toMatchObject({ columns: 3 });
      world.release(again);
    }
    await world.finish();
  }
});

test('a refill that does not get a column of the window falls back to a shorter prefix that can be used', async () => {
  const world = await over([FULL, sliding(2)]);
  await store(world, columns(6));
  standsStill(world);
  const { hit } = world.open('a', columns(6));
  const refill = world.refill(hit);
  await finish(world, 'full', Opcode.refill, 6);
  // The first of the two columns of the window comes, and then those of the shorter one.
  await finish(world, 'sliding', Opcode.refill, 1);
  await finish(world, 'sliding', Opcode.refill, 2);
  expect(await refill).toMatchObject({ columns: 5 });
  await world.finish();
});

test('a shorter prefix of a model of windows only has all of its windows', async () => {
  const world = await over([sliding(3, 1, 'wide'), sliding(2, 1, 'narrow')]);
  await store(world, columns(8));
  standsStill(world);
  const { hit } = world.open('a', columns(8));
  const refill = world.refill(hit);
  await finish(world, 'wide', Opcode.refill, 3);
  await finish(world, 'narrow', Opcode.refill, 0);
  for (let round = 0; round < 3; round += 1) {
    await finish(world, 'wide', Opcode.refill, 3);
    await finish(world, 'narrow', Opcode.refill, 2);
  }
  // The sink has got columns 3 to 5 of the wide one as well; the world looks.
  expect(await refill).toMatchObject({ columns: 6 });
  world.check();
  await world.finish();
});

test('a hit whose time runs out during a refill holds no windows afterwards', async () => {
  const world = await over([FULL, sliding(2, 0.25)], { deadlineMs: 5_000, pinDeadlineMs: 1_000 });
  await store(world, columns(2));
  await store(world, columns(4));
  const { hit } = world.open('a', columns(4));
  const refill = world.refill(hit, 'later');
  // It has read what sees all tokens and begins with the window; a prefix of two columns has one of its own.
  for (let column = 0; column < 4; column += 1) {
    await settled();
    world.resumeRuntime(0);
  }
  await settled();
  await world.clock.advance(1_001);
  expect(await world.served(refill)).toMatchObject({ columns: 0 });
  world.release(hit);
  // There is memory for two windows.
  await store(world, columns(2, 100));
  await store(world, columns(2, 200));
  for (const first of [100, 200]) expect(world.open('a', columns(2, first)).hit.hit.columns).toBe(2);
  await world.finish();
});

test('a refill that came out shorter takes nothing from another refill of the same hit', async () => {
  const world = await over([FULL, sliding(1, 0.125)]);
  await store(world, columns(2));
  const again = world.open('a', columns(3));
  await world.served(world.evict(again.owner));
  world.release(again.hit);
  const { hit } = world.open('a', columns(3));
  const slow = world.refill(hit, 'later');
  await settled();
  // Let it read what sees all tokens, and begin with its window.
  for (let column = 0; column < 3; column += 1) {
    world.resumeRuntime(0);
    await settled();
  }
  standsStill(world);
  const failing = world.refill(hit);
  await finish(world, 'full', Opcode.refill, 3);
  await finish(world, 'sliding', Opcode.refill, 0);
  await finish(world, 'sliding', Opcode.refill, 1);
  expect(await failing).toMatchObject({ columns: 2 });
  standsStill(world, false);
  // Somebody else needs room for a window, and there is none that nobody holds.
  await store(world, columns(2, 100));
  world.check();
  expect(await world.served(slow)).toMatchObject({ columns: 3 });
  await world.finish();
});

test('a stripe that goes while a runtime writes one group is not written to for the next', async () => {
  const world = await over([FULL, DRAFT], { capacityColumns: 1 });
  const { owner } = world.open('a', columns(1));
  const evict = world.evict(owner, 'later');
  await settled();
  world.endDaemon(0, true);
  await world.clock.advance(100);
  // The stripe is back, and its only slot is another column's.
  await store(world, columns(1, 100), 'b');
  const { hit } = world.open('b', columns(1, 100));
  await world.served(world.refill(hit));
  world.resumeRuntimes();
  await world.served(evict);
  world.check();
  expect(await world.served(world.refill(hit))).toMatchObject({ columns: 1 });
  world.release(hit);
  await world.finish();
});

test('a column that goes in the moment in which its evict ends does not count as stored', async () => {
  const world = await over([FULL], { immediate: false });
  const first = world.open('a', columns(1));
  await world.served(world.evict(first.owner));
  // The shard has lost what the second column continues, and says so together with the end of its evict.
  world.loseSlot(0, 0);
  const refill = world.refill(world.match(first.owner, columns(1)));
  const { owner } = world.open('a', columns(2));
  const evict = world.evict(owner);
  await settled();
  world.box.finishAll();
  expect(await refill).toMatchObject({ columns: 0 });
  expect(await evict).toMatchObject({ stored: 0, present: 1, dropped: 1 });
  expect(world.driver.columns).toBe(0);
  await world.finish();
});

test('an evict that fails takes nothing away from the column that has the number of its own by then', async () => {
  const world = await over([FULL, DRAFT]);
  standsStill(world);
  const { owner } = world.open('a', columns(1));
  const evict = world.evict(owner);
  await settled();
  const forgotten = world.forget('a');
  const other = world.open('b', columns(1));
  const later = world.evict(other.owner);
  await settled();
  for (const status of [Status.ok, Status.transferFailed]) {
    for (const link of world.box.links) {
      // The second evict first.
      const operation = status === Status.ok ? link.evicts[1] : link.evicts[0];
      if (!operation) throw new Error('no evict is under way');
      link.start(operation);
      link.finish(operation, status);
    }
    await settled();
    expect(world.driver.columns).toBe(1);
  }
  expect(await later).toMatchObject({ stored: 1 });
  expect(await evict).toMatchObject({ stored: 0, dropped: 1 });
  await world.served(forgotten);
  expect(world.open('b', columns(1)).hit.hit.columns).toBe(1);
  await world.finish();
});

test('a runtime that throws when it is asked for the place of one group loses no slot of another', async () => {
  const world = await over([FULL, DRAFT, { ...DRAFT, name: 'second' }], { memory: true, places: 4 });
  for (const at of [0, 1, 2]) {
    const { owner, hit } = world.open('a', columns(2));
    expect(await world.served(world.evict(owner, 'place', 'throws', at))).toBeUndefined();
    world.release(hit);
    world.checkSlots();
  }
  await world.finish();
});

// ---- what is refused ---------------------------------------------------------------------------------------------

const memory = (...bytes: number[]): ColumnMemory => ({
  places: 2,
  regions: bytes.map((strideBytes) => ({ memory: new ArrayBuffer(2 * strideBytes), strideBytes })),
});

async function refusal(options: Partial<SwDriverOptions>): Promise<string> {
  const clock = new ManualClock();
  const box = new SimulatedBox(clock, [[2 ** 26], [2 ** 26]]);
  const connecting = SwDriver.connect({
    daemons: box.addresses,
    model: {
      ...{ id: 'model', revision: 'r1', dtype: 'bf16', layout: 'plain', columnTokens: COLUMN_TOKENS },
      groups: [FULL, { ...DRAFT, bytesPerToken: [0, 1] }],
    },
    ...{ connector: box.connector, clock, capacityColumns: 4 },
    ...options,
  });
  return connecting.then(
    async (driver) => {
      await driver.close();
      return 'connected';
    },
    (thrown: Error) => thrown.message,
  );
}

test('a runtime names its memory for each group, and what is wrong is named', async () => {
  expect(await refusal({ memory: { full: memory(8, 6), draft: memory(0, 2) } })).toBe('connected');
  expect(await refusal({ memory: memory(8, 6) })).toContain('memory: the model has several groups');
  expect(await refusal({ memory: { full: memory(8, 6) } })).toContain('memory.draft: missing');
  expect(await refusal({ memory: { full: memory(8), draft: memory(0, 2) } })).toContain(
    'memory.full.regions: 1 regions for 2 shards',
  );
  expect(await refusal({ memory: { full: memory(8, 6), draft: memory(0, 1) } })).toContain('memory.draft.regions[1]');
  const none = { ...memory(8, 6), places: 0 };
  expect(await refusal({ memory: { full: none, draft: memory(0, 2) } })).toContain('memory.full.places: 0');
});

test('a carrier is refused where the model has several groups', async () => {
  const carrier = { places: 4, pieceBytes: [8, 6] } as unknown as NonNullable<SwDriverOptions['carrier']>;
  expect(await refusal({ carrier })).toContain('carrier: a carrier has pieces of one group');
});
