import { afterEach, expect, test, vi } from 'vitest';
import { SwDriver, type SwDriverOptions } from '../../src/swdriver/sw_driver.js';
import { ManualClock, settled } from './manual_clock.js';
import { SimulatedBox } from './simulated_link.js';
import { COLUMN_TOKENS, range, World } from './world.js';

const model = {
  id: 'm',
  revision: 'r',
  dtype: 'bf16',
  layout: 'plain',
  bytesPerToken: [8],
  columnTokens: COLUMN_TOKENS,
};
const SLOT_BYTES = 8 * COLUMN_TOKENS;

/** Daemons with one shard each that has room for `columns` columns, and what it takes to reach them. */
function box(columns: readonly number[]): { box: SimulatedBox; clock: ManualClock; options: SwDriverOptions } {
  const clock = new ManualClock();
  const made = new SimulatedBox(
    clock,
    columns.map((count) => [count * SLOT_BYTES]),
  );
  return {
    box: made,
    clock,
    options: { daemons: made.addresses, model, clock, connector: made.connector, striping: 'within' },
  };
}

/** Stores columns of a prompt and answers how many were stored. */
async function store(driver: SwDriver, columns: number, first = 1): Promise<number> {
  const sequence = driver.openSequence({ isolationId: 'a' });
  sequence.append(Uint32Array.from(range(columns * COLUMN_TOKENS, first)));
  return (await sequence.evict({ write: () => true })).stored;
}

/** How many columns of a prompt are found. */
function found(driver: SwDriver, columns: number, first = 1): number {
  const sequence = driver.openSequence({ isolationId: 'a' });
  using hit = sequence.match(Uint32Array.from(range(columns * COLUMN_TOKENS, first)));
  return hit.columns;
}

const opened: SwDriver[] = [];
async function connect(options: SwDriverOptions): Promise<SwDriver> {
  const driver = await SwDriver.connect(options);
  opened.push(driver);
  return driver;
}
afterEach(async () => {
  for (const driver of opened.splice(0)) await driver.close();
});

test('a driver takes as many columns as the shard with the least memory has room for', async () => {
  const { box: made, options } = box([5, 3]);
  const across = await connect({ ...options, striping: 'across', model: { ...model, bytesPerToken: [8, 8] } });
  expect(across.capacityColumns).toBe(3);
  expect(made.links.map((link) => link.slots)).toEqual([3, 3]);
});

test('a driver takes no more than it was told to', async () => {
  const { options } = box([5, 3]);
  expect((await connect({ ...options, capacityColumns: 4 })).capacityColumns).toBe(4 + 3);
});

test('connecting says which daemon cannot be reached, and leaves the others', async () => {
  const { box: made, options } = box([5, 5]);
  made.daemon(1).reachable = false;
  await expect(SwDriver.connect(options)).rejects.toMatchObject({
    code: 'KVSS_UNREACHABLE',
    message: 'nobody listens at daemon-1',
  });
  expect(made.daemon(0).connections.size).toBe(0);
});

test('connecting says when there is no memory for a single column', async () => {
  const { box: made, options } = box([0]);
  await expect(SwDriver.connect(options)).rejects.toMatchObject({ code: 'KVSS_NO_MEMORY' });
  expect(made.daemon().connections.size).toBe(0);
});

test('connecting says when a daemon refuses memory that it had announced', async () => {
  const { box: made, options } = box([5]);
  made.daemon().refusesMemory = true;
  await expect(SwDriver.connect(options)).rejects.toMatchObject({ code: 'KVSS_NO_MEMORY' });
  expect(made.daemon().connections.size).toBe(0);
});

test('connecting says when the model is made for another number of shards', async () => {
  const { options } = box([5]);
  await expect(SwDriver.connect({ ...options, model: { ...model, bytesPerToken: [8, 8] } })).rejects.toMatchObject({
    code: 'KVSS_BAD_INPUT',
    message: 'the model has bytes per token for 2 shards, the daemons have 1 shards',
  });
});

test('a lazy driver starts without its daemons, misses, and uses them when they come', async () => {
  const { box: made, clock, options } = box([5]);
  made.daemon().reachable = false;
  made.daemon().immediate = true;
  const driver = await connect({ ...options, lazy: true });
  const up = vi.fn();
  driver.on('up', up);
  expect(driver.capacityColumns).toBe(0);
  expect(await store(driver, 2)).toBe(0);
  expect(found(driver, 2)).toBe(0);
  expect(await driver.forget({ isolationId: 'a' })).toBe(0);
  await clock.advance(10_000);
  expect(up).not.toHaveBeenCalled();
  made.daemon().reachable = true;
  await clock.advance(2_000);
  expect(up).toHaveBeenCalledExactlyOnceWith(0);
  expect(await store(driver, 2)).toBe(2);
  expect(found(driver, 2)).toBe(2);
});

test('what is stored stays where it is while a second stripe comes up and the map grows', async () => {
  const { box: made, clock, options } = box([3, 40]);
  for (const daemon of made.daemons) daemon.immediate = true;
  made.daemon(1).reachable = false;
  const driver = await connect({ ...options, lazy: true });
  expect(await store(driver, 3)).toBe(3);
  made.daemon(1).reachable = true;
  await clock.advance(2_000);
  expect(driver.capacityColumns).toBe(43);
  expect(found(driver, 3)).toBe(3);
  expect(await store(driver, 40, 1_000)).toBe(40);
  expect([found(driver, 3), found(driver, 40, 1_000)]).toEqual([3, 40]);
});

test('a driver whose daemon dies says so, misses, and starts empty when it is back', async () => {
  const { box: made, clock, options } = box([4]);
  made.daemon().immediate = true;
  const driver = await connect(options);
  const events: unknown[] = [];
  driver.on('down', (...what) => events.push(['down', ...what]));
  driver.on('up', (...what) => events.push(['up', ...what]));
  expect(await store(driver, 3)).toBe(3);
  made.daemon().reachable = false;
  made.daemon().end('the daemon was killed');
  expect(driver).toMatchObject({ columns: 0, capacityColumns: 0 });
  expect(found(driver, 3)).toBe(0);
  expect(await store(driver, 3)).toBe(0);
  made.daemon().reachable = true;
  await clock.advance(60);
  expect(events).toEqual([
    ['down', 0, 'the daemon was killed'],
    ['up', 0],
  ]);
  expect(found(driver, 3)).toBe(0);
  expect(await store(driver, 3)).toBe(3);
  expect(driver.stats.columnsLost).toBe(3);
});

/** What a driver says of whether it can be used. */
function availability(driver: SwDriver): string[] {
  const said: string[] = [];
  driver.on('unavailable', (reason) => said.push(reason));
  driver.on('available', () => said.push('available'));
  return said;
}

test('a driver is usable as long as one stripe is up, and says once when none is and when one is back', async () => {
  const { box: made, clock, options } = box([4, 4]);
  const driver = await connect(options);
  const said = availability(driver);
  await settled();
  made.daemon(0).reachable = false;
  made.daemon(0).end('the first was killed');
  expect(driver.usable).toBe(true);
  expect(said).toEqual([]);
  made.daemon(1).reachable = false;
  made.daemon(1).end('the second was killed');
  expect(driver.usable).toBe(false);
  // Attempts that fail are nothing new.
  await clock.advance(10_000);
  expect(said).toEqual(['the second was killed']);
  made.daemon(0).reachable = true;
  await clock.advance(2_000);
  expect(driver.usable).toBe(true);
  made.daemon(1).reachable = true;
  await clock.advance(2_000);
  expect(driver.capacityColumns).toBe(8);
  expect(said).toEqual(['the second was killed', 'available']);
});

test('a lazy driver that reaches none of its daemons says why to whoever listens at once', async () => {
  const { box: made, clock, options } = box([4, 4]);
  for (const daemon of made.daemons) daemon.reachable = false;
  const driver = await connect({ ...options, lazy: true });
  const said = availability(driver);
  expect(driver.usable).toBe(false);
  await settled();
  expect(said).toEqual(['nobody listens at daemon-0']);
  for (const daemon of made.daemons) daemon.reachable = true;
  await clock.advance(2_000);
  expect(driver.capacityColumns).toBe(8);
  expect(said).toEqual(['nobody listens at daemon-0', 'available']);
});

test('a lazy driver that reaches one of its daemons is usable and says nothing', async () => {
  const { box: made, options } = box([4, 4]);
  made.daemon(0).reachable = false;
  const driver = await connect({ ...options, lazy: true });
  const said = availability(driver);
  await settled();
  expect(driver.usable).toBe(true);
  expect(said).toEqual([]);
});

test('a daemon that dies before anybody could listen is told all the same', async () => {
  const { box: made, options } = box([4]);
  const driver = await connect(options);
  made.daemon().reachable = false;
  made.daemon().end('the daemon was killed');
  const said = availability(driver);
  await settled();
  expect(said).toEqual(['the daemon was killed']);
});

test('within one daemon: the others go on when one goes, and keep what continued nothing of it', async () => {
  const world = await World.create({
    bytesPerToken: [8],
    striping: 'within',
    stripes: 2,
    capacityColumns: 6,
    immediate: true,
  });
  // Columns go to the stripe with more room, so a prompt of two alternates.
  const { owner } = world.open('a', range(2 * COLUMN_TOKENS));
  await world.evict(owner);
  const [first, second] = world.stripes;
  expect([first?.freeSlots, second?.freeSlots]).toEqual([5, 5]);
  world.endDaemon(0, false);
  // The first column was there; the second one, on the other daemon, is of no use without it.
  expect(world.driver.columns).toBe(0);
  expect(second?.freeSlots).toBe(6);
  expect(world.driver.capacityColumns).toBe(6);
  expect(await world.evict(owner)).toMatchObject({ stored: 2, present: 0, dropped: 0 });
  expect(world.match(owner, owner.tokens).hit.columns).toBe(2);
  await world.finish();
});

test('a stripe that is about to go takes nothing new, finishes what it has, and its columns are misses', async () => {
  const world = await World.create({ bytesPerToken: [8], striping: 'across', capacityColumns: 4 });
  const { owner } = world.open('a', range(2 * COLUMN_TOKENS));
  const evict = world.evict(owner);
  await settled();
  world.daemon().drain();
  world.box.finishAll();
  expect(await evict).toMatchObject({ stored: 2, present: 0, dropped: 0 });
  expect(world.match(owner, owner.tokens).hit.columns).toBe(0);
  world.append(owner, range(COLUMN_TOKENS, 50));
  expect(await world.evict(owner)).toMatchObject({ stored: 0, present: 2, dropped: 1 });
  expect(world.box.links.flatMap((link) => link.commands)).toEqual([]);
  await world.finish();
});

test('a daemon that dies while another is being connected leaves a driver that gets it back', async () => {
  const { box: made, clock, options } = box([4, 4]);
  let answer = () => {};
  made.daemon(1).answering = new Promise((resolve) => {
    answer = resolve;
  });
  const connecting = connect({
    ...options,
    striping: 'across',
    model: { ...model, bytesPerToken: [8, 8] },
    lazy: true,
  });
  await settled();
  made.daemon(0).end();
  answer();
  const driver = await connecting;
  expect(driver.capacityColumns).toBe(0);
  await clock.advance(60);
  expect(driver.capacityColumns).toBe(4);
  expect(made.daemons.map((daemon) => daemon.connections.size)).toEqual([1, 1]);
});

test('a daemon that dies again while another is being connected is no second loss', async () => {
  const { box: made, clock, options } = box([4, 4]);
  const driver = await connect({ ...options, striping: 'across', model: { ...model, bytesPerToken: [8, 8] } });
  const events: string[] = [];
  driver.on('down', () => events.push('down'));
  driver.on('up', () => events.push('up'));
  const answers: (() => void)[] = [];
  const wait = () => {
    made.daemon(1).answering = new Promise((resolve) => answers.push(resolve));
  };
  wait();
  made.daemon(0).end();
  await clock.advance(60);
  wait();
  answers[0]?.();
  await settled();
  // The first one has given its memory, the second has not.
  expect(made.daemons.map((daemon) => daemon.links.length)).toEqual([1, 0]);
  made.daemon(0).end();
  answers[1]?.();
  await settled();
  expect(events).toEqual(['down']);
  await clock.advance(1_000);
  expect(events).toEqual(['down', 'up']);
  expect(made.daemons.map((daemon) => daemon.connections.size)).toEqual([1, 1]);
});

test('a driver that is closed while it reconnects leaves no connection behind', async () => {
  const { box: made, clock, options } = box([4]);
  const driver = await connect(options);
  let answer = () => {};
  made.daemon().end();
  made.daemon().answering = new Promise((resolve) => {
    answer = resolve;
  });
  await clock.advance(60);
  await driver.close();
  answer();
  await settled();
  expect(made.daemon().connections.size).toBe(0);
  await clock.advance(10_000);
  expect(made.daemon().connections.size).toBe(0);
  expect(clock.waiting).toBe(0);
});

test('a closed driver says nothing of its stripes', async () => {
  const { options } = box([4]);
  const driver = await connect(options);
  const down = vi.fn();
  driver.on('down', down);
  driver.on('unavailable', down);
  await driver.close();
  await driver[Symbol.asyncDispose]();
  await settled();
  expect(down).not.toHaveBeenCalled();
  expect(driver.usable).toBe(false);
});

test('a listener that throws leaves no call waiting', async () => {
  const { box: made, clock, options } = box([4]);
  const driver = await connect(options);
  driver.on('down', () => {
    throw new Error('the listener broke');
  });
  const said = availability(driver);
  const stored = store(driver, 2);
  await settled();
  expect(() => made.daemon().end('the daemon was killed')).toThrow('the listener broke');
  expect(await stored).toBe(0);
  // And it still comes back.
  await clock.advance(60);
  expect(driver.capacityColumns).toBe(4);
  expect(said).toEqual(['the daemon was killed', 'available']);
});

test('a listener that throws when a stripe is up does not make the driver connect again', async () => {
  const { box: made, clock, options } = box([4]);
  made.daemon().immediate = true;
  const driver = await connect({ ...options, capacityColumns: 2 });
  driver.on('up', () => {
    throw new Error('the listener broke');
  });
  const thrown = new Promise((resolve) => {
    const before = process.listeners('unhandledRejection');
    process.removeAllListeners('unhandledRejection');
    process.once('unhandledRejection', (reason) => {
      for (const listener of before) process.on('unhandledRejection', listener);
      resolve(reason);
    });
  });
  made.daemon().end();
  await clock.advance(60);
  expect(await thrown).toMatchObject({ message: 'the listener broke' });
  expect(await store(driver, 2)).toBe(2);
  await clock.advance(10_000);
  expect(made.daemon().connections.size).toBe(1);
  expect(found(driver, 2)).toBe(2);
});

const BAD_OPTIONS: readonly (readonly [Partial<SwDriverOptions>, string])[] = [
  [{ daemons: [] }, 'daemons: at least one is needed'],
  [{ model: { ...model, bytesPerToken: [] } }, 'model.bytesPerToken: at least one shard is needed'],
  [{ model: { ...model, id: '' } }, 'model.id: must not be empty'],
  [{ model: { ...model, revision: '' } }, 'model.revision: must not be empty'],
  [{ model: { ...model, dtype: '' } }, 'model.dtype: must not be empty'],
  [{ model: { ...model, layout: '' } }, 'model.layout: must not be empty'],
  [{ model: { ...model, columnTokens: 0 } }, 'model.columnTokens: 0 is outside 1..65536'],
  [{ model: { ...model, columnTokens: 2.5 } }, 'model.columnTokens: 2.5 is outside 1..65536'],
  [{ model: { ...model, bytesPerToken: [8, -1] } }, 'model.bytesPerToken[1]: -1 x 4 tokens is no piece size'],
  [{ model: { ...model, bytesPerToken: [0.3] } }, 'model.bytesPerToken[0]: 0.3 x 4 tokens is no piece size'],
  [{ capacityColumns: 0 }, 'capacityColumns: 0 must be above 0'],
  [{ deadlineMs: -5 }, 'deadlineMs: -5 must be above 0'],
  [{ pinDeadlineMs: Number.NaN }, 'pinDeadlineMs: NaN must be above 0'],
  [{ connectDeadlineMs: 0 }, 'connectDeadlineMs: 0 must be above 0'],
  [{ tagKey: new Uint8Array(15) }, 'tagKey: at least 16 bytes are needed'],
];

test.each(BAD_OPTIONS)('options %j are refused: %s', async (bad, message) => {
  const { box: made, options } = box([4]);
  await expect(SwDriver.connect({ ...options, ...bad })).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT', message });
  expect(made.daemon().connections.size).toBe(0);
});

test('a sequence needs a tenant', async () => {
  const { options } = box([4]);
  const driver = await connect(options);
  for (const isolationId of ['', undefined, 7]) {
    const named = { isolationId } as { isolationId: string };
    expect(() => driver.openSequence(named)).toThrow('isolationId: every sequence belongs to a tenant');
    await expect(driver.forget(named)).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
  }
});
