import { expect, test } from 'vitest';
import type { OperationBatch, ShardLink } from '../../src/links/link.js';
import { DescriptorFlag, Opcode, Status } from '../../src/proto/generated.js';
import { ManualClock, settled } from './manual_clock.js';
import { SimulatedBox, type SimulatedLink } from './simulated_link.js';

// The simulation is what all model tests lean on, so it has to hold its own rules, and to see when a driver breaks one.

interface Request {
  opcode: Opcode;
  slots: number[];
  generation?: number;
  tenantTag?: bigint;
  after?: number;
  flags?: number;
}

let nextBatch = 1;
function batchOf({ opcode, slots, generation = 1, tenantTag = 7n, after = 0, flags = 0 }: Request): OperationBatch {
  const generations = new Float64Array(slots.length).fill(generation);
  const id = nextBatch++;
  return {
    id,
    opcode,
    flags,
    length: slots.length,
    slots: Uint32Array.from(slots),
    places: new Uint32Array(0),
    generations,
    tenantTag,
    after,
    timeoutUs: 1_000_000,
  };
}

async function shard(ringEntries = 8): Promise<{ box: SimulatedBox; link: SimulatedLink; clock: ManualClock }> {
  const clock = new ManualClock();
  const box = new SimulatedBox(clock, [[64]]);
  const connection = await box.connector('daemon-0', 1_000);
  await connection.openLink({ member: 0, shard: 0, slots: 4, pieceBytes: 8, ringEntries });
  return { box, link: box.daemon().link(), clock };
}

function outcomes(link: ShardLink): Status[] {
  const statuses: Status[] = [];
  link.poll((_, __, status) => statuses.push(status));
  return statuses;
}

test('a ring takes what it has room for', async () => {
  const { link } = await shard(2);
  const batch = batchOf({ opcode: Opcode.evict, slots: [0, 1, 2] });
  expect([link.submit(batch, 0), link.submit(batch, 2)]).toEqual([2, 0]);
  link.finishAll();
  expect(link.submit(batch, 2)).toBe(1);
  // The other queue has room of its own.
  expect(link.submit(batchOf({ opcode: Opcode.refill, slots: [0] }), 0)).toBe(1);
});

test('commands wait for the evicts that they name, and for earlier commands', async () => {
  const { link } = await shard();
  link.submit(batchOf({ opcode: Opcode.refill, slots: [0], after: 1 }), 0);
  link.submit(batchOf({ opcode: Opcode.refill, slots: [1] }), 0);
  expect(link.moves()).toEqual([]);
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0] }), 0);
  expect(link.moves().map(({ operation }) => operation.opcode)).toEqual([Opcode.evict]);
  link.finishAll();
  expect(outcomes(link)).toEqual([Status.ok, Status.ok, Status.missEmpty]);
});

test('an evict waits for commands that it names, for earlier evicts into its slot and for readers', async () => {
  const { link } = await shard();
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0] }), 0);
  link.finishAll();
  link.submit(batchOf({ opcode: Opcode.refill, slots: [0] }), 0);
  for (const { operation } of link.moves()) link.start(operation);
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0], generation: 2 }), 0);
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0], generation: 3 }), 0);
  link.submit(batchOf({ opcode: Opcode.evict, slots: [1], generation: 4, after: 1 }), 0);
  expect(link.moves().map(({ operation, what }) => [operation.opcode, what])).toEqual([[Opcode.refill, 'finish']]);
  for (const { operation } of link.moves()) link.finish(operation);
  expect(link.moves().map(({ operation }) => operation.generation)).toEqual([2, 4]);
});

test('a refill needs exactly the generation and the tenant that are stored', async () => {
  const { box, link } = await shard();
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0], generation: 5 }), 0);
  for (const each of [{ generation: 5 }, { generation: 4 }, { generation: 5, tenantTag: 8n }]) {
    link.submit(batchOf({ opcode: Opcode.refill, slots: [0], ...each }), 0);
  }
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0], generation: 5 }), 0);
  link.finishAll();
  expect(outcomes(link).sort((left, right) => left - right)).toEqual([
    Status.ok,
    Status.ok,
    Status.missOverwritten,
    Status.missTenant,
    Status.badGeneration,
  ]);
  expect(box.complaints).toHaveLength(1);
});

test('a scrubbing delete waits for readers and leaves zeros', async () => {
  const { link } = await shard();
  link.piece(0).fill(9);
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0] }), 0);
  link.finishAll();
  link.submit(batchOf({ opcode: Opcode.refill, slots: [0] }), 0);
  for (const { operation } of link.moves()) link.start(operation);
  link.submit(batchOf({ opcode: Opcode.delete, slots: [0], flags: DescriptorFlag.scrub, tenantTag: 0n }), 0);
  for (const { operation, what } of link.moves()) if (what === 'start') link.start(operation);
  expect(link.moves().map(({ operation }) => operation.opcode)).toEqual([Opcode.refill]);
  link.finishAll();
  expect(link.piece(0).every((byte) => byte === 0)).toBe(true);
  link.submit(batchOf({ opcode: Opcode.refill, slots: [0] }), 0);
  link.finishAll();
  expect(outcomes(link).at(-1)).toBe(Status.missEmpty);
});

test('writing to a slot while a shard stores or reads it is seen', async () => {
  for (const opcode of [Opcode.evict, Opcode.refill]) {
    const { box, link } = await shard();
    link.submit(batchOf({ opcode: Opcode.evict, slots: [0] }), 0);
    if (opcode === Opcode.refill) {
      link.finishAll();
      link.submit(batchOf({ opcode, slots: [0] }), 0);
      for (const { operation } of link.moves()) link.start(operation);
    }
    link.piece(0).fill(9);
    link.finishAll();
    expect(box.complaints).toEqual([
      `slot 0 was written to while ${opcode === Opcode.evict ? 'an evict' : 'a refill'} was under way`,
    ]);
  }
});

test('a link is woken once for an arming, and not while completions wait', async () => {
  const { link } = await shard();
  let woken = 0;
  link.onReady = () => {
    woken += 1;
  };
  expect(link.arm()).toBe(true);
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0, 1] }), 0);
  link.finishAll();
  expect(woken).toBe(0);
  await settled();
  expect(woken).toBe(1);
  expect(link.arm()).toBe(false);
  expect(outcomes(link)).toEqual([Status.ok, Status.ok]);
  expect(link.arm()).toBe(true);
});

test('what waits longer than it may ends with its deadline, and an evict leaves its slot empty', async () => {
  const { link, clock } = await shard();
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0] }), 0);
  link.finishAll();
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0], generation: 2 }), 0);
  link.expireWaiting();
  expect(outcomes(link)).toEqual([Status.ok]);
  await clock.advance(1_000);
  link.expireWaiting();
  link.submit(batchOf({ opcode: Opcode.refill, slots: [0] }), 0);
  link.finishAll();
  expect(outcomes(link)).toEqual([Status.deadline, Status.missEmpty]);
});

test('a session that has ended takes nothing, says nothing and has lost its memory', async () => {
  const { box, link } = await shard();
  const ends: string[] = [];
  const [connection] = box.daemon().connections;
  if (connection) connection.onEnd = (reason) => ends.push(reason);
  link.submit(batchOf({ opcode: Opcode.evict, slots: [0] }), 0);
  box.daemon().end('it was killed');
  box.daemon().end('it was killed again');
  expect(ends).toEqual(['it was killed']);
  expect([link.moves(), link.intact(), link.submit(batchOf({ opcode: Opcode.evict, slots: [1] }), 0)]).toEqual([
    [],
    false,
    0,
  ]);
  expect(link.memory.every((byte) => byte !== 0)).toBe(true);
});

test('a daemon grants no more than its budget', async () => {
  const { box } = await shard();
  const connection = await box.connector('daemon-0', 1_000);
  await expect(
    connection.openLink({ member: 0, shard: 0, slots: 9, pieceBytes: 8, ringEntries: 8 }),
  ).rejects.toMatchObject({
    code: 'KVSS_NO_MEMORY',
  });
});
