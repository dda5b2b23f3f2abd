import { expect, test } from 'vitest';
import { Opcode } from '../../src/proto/generated.js';
import { SwDriver } from '../../src/swdriver/sw_driver.js';
import { ManualClock, settled } from './manual_clock.js';
import { SimulatedBox, type SimulatedDaemon, type SimulatedLink } from './simulated_link.js';

const COLUMN_TOKENS = 4;
const PLACES = 8;
const DEADLINE_MS = 100;

const columns = (count: number) => Uint32Array.from({ length: count * COLUMN_TOKENS }, (_, at) => at + 1);

/** A driver whose runtime has places of its own, over two shards that do nothing by themselves; it has stored a prompt. */
async function remote(stored: number) {
  const clock = new ManualClock();
  const box = new SimulatedBox(clock, [[1_000, 1_000]]);
  const daemon = box.daemon();
  daemon.inPlace = false;
  const region = () => ({ memory: new ArrayBuffer(PLACES * 8), strideBytes: 8 });
  const driver = await SwDriver.connect({
    daemons: box.addresses,
    model: {
      ...{ id: 'model', revision: 'r1', dtype: 'bf16', layout: 'plain' },
      ...{ bytesPerToken: [2, 2], columnTokens: COLUMN_TOKENS },
    },
    capacityColumns: 16,
    deadlineMs: DEADLINE_MS,
    memory: { places: PLACES, regions: [region(), region()] },
    connector: box.connector,
    clock,
  });
  /** A sequence that has matched these tokens, and the hit. */
  const open = (tokens: Uint32Array) => {
    const sequence = driver.openSequence({ isolationId: 'acme' });
    return { sequence, hit: sequence.match(tokens) };
  };
  const { sequence } = open(columns(stored));
  const storing = sequence.evict({ place: ({ index }) => index });
  await settled();
  box.finishAll();
  expect((await storing).stored).toBe(stored);
  return { clock, box, daemon, driver, open };
}

/** Lets a shard finish what it has of one kind, as many as `count`. */
function finish(link: SimulatedLink | undefined, opcode: Opcode, count = Number.POSITIVE_INFINITY): void {
  for (let done = 0; done < count; ) {
    const move = link?.moves().find(({ operation }) => operation.opcode === opcode);
    if (!move) return;
    if (move.what === 'start') link?.start(move.operation);
    else {
      link?.finish(move.operation);
      done += 1;
    }
  }
}

const isSettled = async (promise: Promise<unknown>) => {
  let done = false;
  promise.then(() => {
    done = true;
  });
  await settled();
  return done;
};

/** Runs a refill of three columns to its deadline, of which shard 1 has brought one. */
async function late() {
  const world = await remote(3);
  const { clock, daemon } = world;
  const { hit } = world.open(columns(3));
  const refilling = hit.refill({ place: ({ index }) => index });
  await settled();
  finish(daemon.link(0), Opcode.refill);
  finish(daemon.link(1), Opcode.refill, 1);
  await clock.advance(DEADLINE_MS);
  const result = await refilling;
  expect(result.columns).toBe(1);
  return { ...world, result };
}

/** A daemon that closes its connections only when it is told to. */
function holdOn(daemon: SimulatedDaemon): () => void {
  let letGo = () => {};
  daemon.lettingGo = new Promise((resolve) => {
    letGo = resolve;
  });
  return letGo;
}

test('a refill that has brought everything is quiet at once', async () => {
  const { open, box } = await remote(3);
  const { hit } = open(columns(3));
  const refilling = hit.refill({ place: ({ index }) => index });
  await settled();
  box.finishAll();
  const { columns: count, quiet } = await refilling;
  expect(count).toBe(3);
  expect(await isSettled(quiet)).toBe(true);
});

test('a refill that asked for nothing is quiet at once', async () => {
  const { open } = await remote(3);
  const { hit } = open(columns(3));
  const { columns: count, quiet } = await hit.refill({ place: () => undefined });
  expect(count).toBe(0);
  expect(await isSettled(quiet)).toBe(true);
});

test('a refill whose time is up ends with what has come, and is quiet when the rest has come too', async () => {
  const { daemon, result } = await late();
  expect(await isSettled(result.quiet)).toBe(false);
  finish(daemon.link(1), Opcode.refill, 1);
  expect(await isSettled(result.quiet)).toBe(false);
  finish(daemon.link(1), Opcode.refill, 1);
  expect(await isSettled(result.quiet)).toBe(true);
});

test('a refill that never comes is quiet when the stripe has fallen, and nothing of it is on its way', async () => {
  const { clock, daemon, driver, result } = await late();
  const letGo = holdOn(daemon);
  let downs = 0;
  driver.on('down', () => {
    downs += 1;
  });
  await clock.advance(2 * DEADLINE_MS);
  expect(downs).toBe(1);
  expect(await isSettled(result.quiet)).toBe(false);
  letGo();
  expect(await isSettled(result.quiet)).toBe(true);
});

test('a daemon that goes ends the refill, which is quiet when nothing of it is on its way', async () => {
  const { daemon, open } = await remote(3);
  const letGo = holdOn(daemon);
  const { hit } = open(columns(3));
  const refilling = hit.refill({ place: ({ index }) => index });
  await settled();
  daemon.end();
  const { columns: count, quiet } = await refilling;
  expect(count).toBe(0);
  expect(await isSettled(quiet)).toBe(false);
  letGo();
  expect(await isSettled(quiet)).toBe(true);
});

test('a refill is quiet in the end also where its shards go on with everything else', async () => {
  const { clock, daemon, driver, open, result } = await late();
  const { sequence } = open(columns(3));
  let downs = 0;
  driver.on('down', () => {
    downs += 1;
  });
  let next = 100;
  // One lane may be a black hole while the others are not.
  for (let round = 0; round < 100 && downs === 0; round += 1) {
    sequence.append(Uint32Array.from({ length: COLUMN_TOKENS }, () => next++));
    const storing = sequence.evict({ place: () => 7 });
    await settled();
    for (const link of daemon.links) finish(link, Opcode.evict);
    await storing;
    await clock.advance(DEADLINE_MS / 2);
  }
  expect(downs).toBe(1);
  expect(await isSettled(result.quiet)).toBe(true);
});
