import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { OperationBatch, ShardLink } from '../../src/links/link.js';
import { Opcode, Status } from '../../src/proto/generated.js';
import { SwDriver, type SwDriverOptions } from '../../src/swdriver/sw_driver.js';
import { overTopology, ShapedLink } from '../../src/wafer/shaped_link.js';
import { Path, type PathInput, Topology, type TopologyInput } from '../../src/wafer/topology.js';
import { ManualClock, settled } from './manual_clock.js';
import { settings } from './property_settings.js';
import { SimulatedBox, type SimulatedLink } from './simulated_link.js';

// A piece takes a millisecond on a path of 1 MB/s.
const PIECE = 1_000;
const LINE = { bandwidth: 1_000_000, latencyUs: 0, jitterUs: 0, burst: 0, window: undefined };
const SLOTS = 64;

type Line = { [Key in keyof typeof LINE]?: number | undefined };

interface Rig {
  readonly clock: ManualClock;
  readonly box: SimulatedBox;
  /** Links to one shard each, in the order of `routes`. */
  readonly links: readonly ShapedLink[];
  readonly inner: readonly SimulatedLink[];
  readonly paths: readonly Path[];
}

/** Paths, and a link for each route: the numbers of the paths that its streams take. */
async function rig(
  lines: readonly Line[],
  routes: readonly (readonly number[])[] = [[0]],
  ringEntries = 64,
): Promise<Rig> {
  const clock = new ManualClock();
  const box = new SimulatedBox(clock, [routes.map(() => SLOTS * PIECE)]);
  const connection = await box.connector('daemon-0', 1_000);
  const paths = lines.map((line, index) => new Path({ ...LINE, ...line } as typeof LINE, clock, index));
  const links: ShapedLink[] = [];
  for (const [shard, route] of routes.entries()) {
    const inner = await connection.openLink({ shard, member: shard, slots: SLOTS, pieceBytes: PIECE, ringEntries });
    links.push(
      new ShapedLink(
        inner,
        route.map((path) => paths[path] as Path),
        clock,
      ),
    );
  }
  return { clock, box, links, inner: box.links, paths };
}

let nextBatch = 1;
function batchOf(opcode: Opcode, slots: readonly number[], generation = 1): OperationBatch {
  return {
    id: nextBatch++,
    opcode,
    flags: 0,
    length: slots.length,
    slots: Uint32Array.from(slots),
    places: Uint32Array.from(slots),
    generations: new Float64Array(slots.length).fill(generation),
    tenantTag: 7n,
    after: 0,
    timeoutUs: 1_000_000_000,
  };
}

const upTo = (count: number, from = 0) => Array.from({ length: count }, (_, index) => from + index);
const evicts = (count: number, generation = 1) => batchOf(Opcode.evict, upTo(count), generation);

/** What is to be heard now. */
function heard(link: ShardLink): { item: number; status: Status }[] {
  const completions: { item: number; status: Status }[] = [];
  link.poll((_, item, status) => completions.push({ item, status }));
  return completions;
}

const items = (link: ShardLink) => heard(link).map(({ item }) => item);

describe('a shaped link', () => {
  test('reports an evict when its bytes have passed, one behind the other', async () => {
    const { clock, box, links } = await rig([{ latencyUs: 500 }]);
    const [link] = links as [ShapedLink];
    expect(link.submit(evicts(3), 0)).toBe(3);
    box.finishAll();
    const seen: number[][] = [];
    for (const ms of [1.4, 0.1, 0.9, 0.1, 1]) {
      await clock.advance(ms);
      seen.push(items(link));
    }
    expect(seen).toEqual([[], [0], [], [1], [2]]);
  });

  test('reports an evict no earlier than the shard does, and as the shard does', async () => {
    const { clock, box, links, inner } = await rig([{}]);
    const [link] = links as [ShapedLink];
    link.submit(evicts(2), 0);
    await clock.advance(10);
    expect(heard(link)).toEqual([]);
    const [first] = inner as [SimulatedLink];
    for (const { operation } of first.moves()) first.start(operation);
    for (const { operation } of first.moves())
      first.finish(operation, operation.item === 0 ? Status.transferFailed : Status.ok);
    expect(heard(link)).toEqual([
      { item: 0, status: Status.transferFailed },
      { item: 1, status: Status.ok },
    ]);
    box.finishAll();
    expect(heard(link)).toEqual([]);
  });

  test('lets a burst pass at once', async () => {
    const { clock, box, links } = await rig([{ burst: 3 * PIECE }]);
    const [link] = links as [ShapedLink];
    link.submit(evicts(5), 0);
    box.finishAll();
    expect(items(link)).toEqual([0, 1, 2]);
    await clock.advance(1);
    expect(items(link)).toEqual([3]);
    await clock.advance(1);
    expect(items(link)).toEqual([4]);
  });

  test('sends the piece of a refill when the shard has it, and none for a miss', async () => {
    const { clock, box, links, paths } = await rig([{ latencyUs: 100 }]);
    const [link] = links as [ShapedLink];
    link.submit(evicts(1), 0);
    box.finishAll();
    await clock.advance(50);
    expect(items(link)).toEqual([0]);
    // Slot 1 holds nothing.
    link.submit(batchOf(Opcode.refill, [0, 1]), 0);
    await clock.advance(50);
    expect(heard(link)).toEqual([]);
    box.finishAll();
    expect(heard(link)).toEqual([]);
    await clock.advance(0.1);
    expect(heard(link)).toEqual([{ item: 1, status: Status.missEmpty }]);
    await clock.advance(0.9);
    expect(heard(link)).toEqual([]);
    await clock.advance(0.1);
    expect(heard(link)).toEqual([{ item: 0, status: Status.ok }]);
    expect(paths[0]?.toWafer).toMatchObject({ bytes: PIECE, transfers: 1 });
    expect(paths[0]?.toStore).toMatchObject({ bytes: PIECE, transfers: 1 });
  });

  test('lets refills and deletes pass evicts', async () => {
    const { clock, box, links, paths } = await rig([{ latencyUs: 100 }]);
    const [link] = links as [ShapedLink];
    const stored = evicts(20);
    link.submit(stored, 0);
    box.finishAll();
    const refill = batchOf(Opcode.refill, [0]);
    const forget = batchOf(Opcode.delete, [1]);
    link.submit(refill, 0);
    link.submit(forget, 0);
    box.finishAll();
    const order: number[] = [];
    for (let ms = 0; ms < 25; ms += 0.5) {
      await clock.advance(0.5);
      link.poll((batchId) => order.push(batchId));
    }
    expect(order[0]).toBe(forget.id);
    expect(order.indexOf(refill.id)).toBeLessThan(3);
    expect(order).toHaveLength(22);
    expect(paths[0]?.toWafer.bytes).toBe(PIECE);
  });

  test('takes no more than its window has room for, and says when there is room again', async () => {
    const { clock, box, links } = await rig([{ window: 3 * PIECE }]);
    const [link] = links as [ShapedLink];
    const batch = evicts(8);
    let ready = 0;
    link.onReady = () => {
      ready += 1;
    };
    expect([link.submit(batch, 0), link.submit(batch, 3)]).toEqual([3, 0]);
    // A delete takes none of the window, and refills have their own.
    expect(link.submit(batchOf(Opcode.delete, [60]), 0)).toBe(1);
    expect(link.submit(batchOf(Opcode.refill, upTo(5, 40)), 0)).toBe(3);
    box.finishAll();
    // The delete and the refills, which miss.
    expect(heard(link)).toHaveLength(4);
    expect(link.arm()).toBe(true);
    await clock.advance(0.9);
    expect([ready, link.submit(batch, 3)]).toEqual([0, 0]);
    await clock.advance(0.1);
    expect(ready).toBe(1);
    // Room comes with the completion, when it is heard.
    expect([link.submit(batch, 3), items(link), link.submit(batch, 3), link.submit(batch, 4)]).toEqual([0, [0], 1, 0]);
  });

  test('takes a piece that is larger than the window, alone', async () => {
    const { clock, box, links } = await rig([{ window: PIECE / 2 }]);
    const [link] = links as [ShapedLink];
    const batch = evicts(2);
    expect([link.submit(batch, 0), link.submit(batch, 1)]).toEqual([1, 0]);
    box.finishAll();
    await clock.advance(1);
    expect([items(link), link.submit(batch, 1)]).toEqual([[0], 1]);
  });

  test('keeps no room for what the ring did not take, and goes on with the stream whose turn it is', async () => {
    const { clock, box, links, paths } = await rig([{ window: 4 * PIECE }, { window: 4 * PIECE }], [[0, 1]], 3);
    const [link] = links as [ShapedLink];
    const batch = evicts(8);
    expect([link.submit(batch, 0), link.submit(batch, 3)]).toEqual([3, 0]);
    box.finishAll();
    expect(link.submit(batch, 3)).toBe(3);
    box.finishAll();
    expect(link.submit(batch, 6)).toBe(2);
    box.finishAll();
    expect(paths.map((path) => path.toStore.transfers)).toEqual([4, 4]);
    await clock.advance(4);
    expect(items(link)).toHaveLength(8);
  });

  test('spreads pieces over its streams, which carry them side by side', async () => {
    const { clock, box, links } = await rig([{}, {}], [[0, 1]]);
    const [link] = links as [ShapedLink];
    link.submit(evicts(6), 0);
    box.finishAll();
    const seen: number[][] = [];
    for (let ms = 0; ms < 3; ms += 1) {
      await clock.advance(1);
      seen.push(items(link));
    }
    expect(seen).toEqual([
      [0, 1],
      [2, 3],
      [4, 5],
    ]);
  });

  test('wakes once for each time it was asked, when something has arrived and not before', async () => {
    const { clock, box, links } = await rig([{}]);
    const [link] = links as [ShapedLink];
    const ready: number[] = [];
    link.onReady = () => ready.push(clock.now());
    link.submit(evicts(2), 0);
    expect(link.arm()).toBe(true);
    // The shard has finished both; their bytes are still on their way.
    box.finishAll();
    await clock.advance(5);
    expect(ready).toEqual([1]);
    expect(link.arm()).toBe(false);
    expect(items(link)).toEqual([0, 1]);
    expect(link.arm()).toBe(true);
    await clock.advance(5);
    expect(ready).toEqual([1]);
    expect(clock.waiting).toBe(0);
  });

  test('arms where the shard has finished something that has not arrived', async () => {
    const { clock, box, links } = await rig([{}]);
    const [link] = links as [ShapedLink];
    const ready: number[] = [];
    link.onReady = () => ready.push(clock.now());
    link.submit(evicts(1), 0);
    box.finishAll();
    expect(link.arm()).toBe(true);
    await clock.advance(1);
    expect(ready).toEqual([1]);
  });

  test('leaves no timer and says nothing once it is closed', async () => {
    const { clock, box, links } = await rig([{}]);
    const [link] = links as [ShapedLink];
    link.onReady = () => expect.unreachable();
    link.submit(evicts(4), 0);
    box.finishAll();
    expect(link.arm()).toBe(true);
    expect(clock.waiting).toBe(1);
    link.close();
    expect(clock.waiting).toBe(0);
    await clock.advance(10);
    expect(heard(link)).toEqual([]);
  });

  test('passes on a completion that nobody asked for, and counts nothing for it', async () => {
    const { clock, box, links, inner } = await rig([{ window: 2 * PIECE }]);
    const [link] = links as [ShapedLink];
    const batch = evicts(6);
    link.submit(batch, 0);
    box.finishAll();
    const [first] = inner as [SimulatedLink];
    first.report(first.evicts[0] as SimulatedLink['evicts'][number]);
    await clock.advance(2);
    expect(items(link).sort()).toEqual([0, 0, 1]);
    expect([link.submit(batch, 2), link.submit(batch, 4)]).toEqual([2, 0]);
  });

  test('is the same again for the same seed, with jitter and all', async () => {
    const run = async () => {
      const { clock, box, links } = await rig([{ latencyUs: 200, jitterUs: 3_000, window: 5 * PIECE }], [[0], [0]]);
      const log: string[] = [];
      const next = links.map(() => 0);
      const batches = links.map(() => evicts(30));
      for (let step = 0; step < 400; step += 1) {
        for (const [index, link] of links.entries()) {
          const batch = batches[index] as OperationBatch;
          next[index] = (next[index] as number) + link.submit(batch, next[index] as number);
          for (const item of items(link)) log.push(`${clock.now().toFixed(6)} ${index} ${item}`);
        }
        box.finishAll();
        await clock.advance(0.25);
      }
      return log;
    };
    const first = await run();
    expect(first).toHaveLength(60);
    expect(await run()).toEqual(first);
  });
});

describe('two jobs', () => {
  /** Pieces of each job that arrive within 48 ms, with as much to evict as its window takes. */
  async function piecesWithin48Ms(lines: readonly Line[], routes: readonly (readonly number[])[]): Promise<number[]> {
    const { clock, box, links } = await rig(lines, routes);
    for (const daemon of box.daemons) daemon.immediate = true;
    const arrived = links.map(() => 0);
    const pumps = links.map((link, job) => {
      let batch = evicts(SLOTS);
      let next = 0;
      let generation = 1;
      const pump = () => {
        for (let again = true; again; ) {
          next += link.submit(batch, next);
          if (next === batch.length) {
            generation += 1;
            batch = evicts(SLOTS, generation);
            next = 0;
          }
          const count = link.poll(() => {});
          arrived[job] = (arrived[job] as number) + count;
          again = count > 0;
        }
        if (!link.arm()) queueMicrotask(pump);
      };
      link.onReady = pump;
      return pump;
    });
    for (const pump of pumps) pump();
    await clock.advance(48);
    return arrived;
  }

  test('share a spine in halves, and have a rail each to themselves', async () => {
    const line = { window: 8 * PIECE };
    expect(await piecesWithin48Ms([line], [[0], [0]])).toEqual([24, 24]);
    expect(await piecesWithin48Ms([line, line], [[0], [1]])).toEqual([48, 48]);
  });
});

// Between random steps of a caller that behaves as Stripe does, each operation ends exactly once, as the shard ended it.
describe('under random interleavings', () => {
  type Step =
    | { kind: 'ask'; link: number; opcode: Opcode; slots: number[] }
    | { kind: 'shard'; pick: number; fails: boolean }
    | { kind: 'advance'; ms: number };

  const step: fc.Arbitrary<Step> = fc.oneof(
    fc.record({
      kind: fc.constant('ask' as const),
      link: fc.nat(1),
      opcode: fc.constantFrom(Opcode.evict, Opcode.evict, Opcode.refill, Opcode.delete),
      slots: fc.uniqueArray(fc.nat(SLOTS - 1), { minLength: 1, maxLength: 6 }),
    }),
    fc.record({ kind: fc.constant('shard' as const), pick: fc.nat(30), fails: fc.boolean() }),
    fc.record({ kind: fc.constant('advance' as const), ms: fc.constantFrom(0, 0.25, 1, 7) }),
  );
  const line = fc.record({
    latencyUs: fc.constantFrom(0, 300),
    jitterUs: fc.constantFrom(0, 2_000),
    burst: fc.constantFrom(0, 2 * PIECE),
    window: fc.constantFrom(undefined, PIECE / 2, 3 * PIECE),
  });

  interface Asked {
    readonly batch: OperationBatch;
    readonly at: number;
    next: number;
  }

  /** Sends and hears as Stripe does: only when there is something new to send, or when the link says so. */
  function caller(link: ShapedLink, onCompletion: (asked: Asked, item: number, status: Status) => void) {
    const asked = new Map<number, Asked>();
    const unsent: Asked[] = [];
    const pump = () => {
      for (let again = true; again; ) {
        for (const each of [...unsent]) {
          each.next += link.submit(each.batch, each.next);
          if (each.next === each.batch.length) unsent.splice(unsent.indexOf(each), 1);
        }
        again = link.poll((batchId, item, status) => onCompletion(asked.get(batchId) as Asked, item, status)) > 0;
      }
      if (!link.arm()) queueMicrotask(pump);
    };
    link.onReady = pump;
    const ask = (batch: OperationBatch, at: number) => {
      const added = { batch, at, next: 0 };
      asked.set(batch.id, added);
      unsent.push(added);
      pump();
    };
    return { ask, unsent };
  }

  test('every operation is heard of once, not too early, and as its shard ended it', () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(step, { maxLength: 60 }),
        line,
        line,
        fc.constantFrom(2, 64),
        async (steps, one, other, ringEntries) => {
          // Two links: one over both paths, one over the second, which they share.
          const { clock, box, links, inner } = await rig([one, other], [[0, 1], [1]], ringEntries);
          const leastMs = Math.min(one.latencyUs, other.latencyUs) / 1000;
          const ended: string[] = [];
          const raw: string[] = [];
          const callers = links.map((link, index) => {
            const shard = inner[index] as SimulatedLink;
            const poll = shard.poll.bind(shard);
            shard.poll = (handler) =>
              poll((batchId, item, status) => {
                raw.push(`link ${index} batch ${batchId} item ${item} status ${status}`);
                handler(batchId, item, status);
              });
            return caller(link, ({ batch, at }, item, status) => {
              ended.push(`link ${index} batch ${batch.id} item ${item} status ${status}`);
              expect(clock.now()).toBeGreaterThanOrEqual(at + leastMs);
            });
          });
          let operations = 0;
          for (const [index, each] of steps.entries()) {
            if (each.kind === 'ask') {
              operations += each.slots.length;
              callers[each.link]?.ask(batchOf(each.opcode, each.slots, index + 1), clock.now());
            } else if (each.kind === 'shard') {
              const moves = box.moves();
              const move = moves[each.pick % moves.length];
              if (move?.what === 'start') move.link.start(move.operation);
              else if (move) move.link.finish(move.operation, each.fails ? Status.transferFailed : Status.ok);
            } else {
              await clock.advance(each.ms);
            }
            await settled();
          }
          // From here on nobody polls unless the links say so.
          for (let round = 0; round < 400 && callers.some(({ unsent }) => unsent.length > 0); round += 1) {
            box.finishAll();
            await clock.advance(5);
          }
          box.finishAll();
          await clock.advance(5_000);
          expect(ended).toHaveLength(operations);
          expect(new Set(ended).size).toBe(operations);
          expect([...ended].sort()).toEqual(raw.sort());
          expect(clock.waiting).toBe(0);
        },
      ),
      settings(150),
    ));
});

describe('a driver over a topology', () => {
  const COLUMN_TOKENS = 4;
  const MODEL = {
    id: 'm',
    revision: 'r',
    dtype: 'bf16',
    layout: 'plain',
    bytesPerToken: [250, 250],
    columnTokens: COLUMN_TOKENS,
  };
  const PATH: PathInput = { bandwidth: '1MB', latencyUs: 100 };

  function network(changes: Partial<TopologyInput> = {}) {
    const clock = new ManualClock();
    const box = new SimulatedBox(clock, [[SLOTS * PIECE, SLOTS * PIECE]]);
    const warnings: string[] = [];
    const topology = new Topology(
      {
        rails: [PATH, PATH],
        spine: PATH,
        boxes: { near: [[0]], far: [[1]] },
        daemons: { 'daemon-0': [0, 0] },
        ...changes,
      },
      clock,
      (message) => warnings.push(message),
    );
    const connect = (from: string, more: Partial<SwDriverOptions> = {}) =>
      SwDriver.connect({
        daemons: box.addresses,
        model: MODEL,
        clock,
        connector: overTopology(box.connector, topology, from),
        capacityColumns: 20,
        ...more,
      });
    return { clock, box, topology, warnings, connect };
  }

  const tokens = (columns: number, first = 1) =>
    Uint32Array.from({ length: columns * COLUMN_TOKENS }, (_, at) => first + at);
  const fill = {
    write(column: { index: number }, pieces: readonly Uint8Array[]) {
      for (const [shard, piece] of pieces.entries()) piece.fill(10 * column.index + shard);
      return true;
    },
  };

  /** Runs until a call has ended, shards finishing everything meanwhile, and answers with how long it took. */
  async function timed<Result>(clock: ManualClock, call: Promise<Result>): Promise<{ result: Result; ms: number }> {
    const from = clock.now();
    let ended: { result: Result; ms: number } | undefined;
    call.then((result) => {
      ended = { result, ms: clock.now() - from };
    });
    while (!ended) await clock.advance(0.25);
    return ended;
  }

  test('evicts and refills in the time of its path, byte for byte', async () => {
    const { clock, box, topology, warnings, connect } = network();
    box.daemon().immediate = true;
    await using driver = await connect('near');
    const sequence = driver.openSequence({ isolationId: 'a' });
    sequence.match(tokens(10)).release();
    // Ten columns of two pieces over one rail.
    const evicted = await timed(clock, sequence.evict(fill));
    expect(evicted.result).toMatchObject({ stored: 10, present: 0, dropped: 0 });
    expect(evicted.ms).toBeCloseTo(20.1, 6);
    using hit = sequence.match(tokens(10));
    const seen: number[][] = [];
    const read = (_: unknown, pieces: readonly Uint8Array[]) => {
      seen.push(pieces.map((piece) => new Set(piece)).flatMap((values) => [...values]));
    };
    const refilled = await timed(clock, hit.refill({ read }));
    expect(refilled.result.columns).toBe(10);
    expect(refilled.ms).toBeCloseTo(20.1, 6);
    expect(seen).toEqual(upTo(10).map((index) => [10 * index, 10 * index + 1]));
    expect([topology.spineLinks, warnings, topology.spine.toStore.bytes]).toEqual([0, [], 0]);
    expect(topology.rails[0]?.toStore.bytes).toBe(20 * PIECE);
    expect(box.complaints).toEqual([]);
  });

  test('drops what does not pass by the deadline, and goes on', async () => {
    // Windows of two pieces, so that the links to the two shards take turns.
    const { clock, box, connect } = network({ rails: [{ ...PATH, window: 2 * PIECE }, PATH] });
    box.daemon().immediate = true;
    await using driver = await connect('near', { deadlineMs: 10_000 });
    const sequence = driver.openSequence({ isolationId: 'a' });
    sequence.match(tokens(10)).release();
    const late = await timed(clock, sequence.evict(fill, { deadlineMs: 10 }));
    expect(late.result).toMatchObject({ stored: 4, present: 0, dropped: 6 });
    expect(late.ms).toBeCloseTo(10, 6);
    await clock.advance(50);
    const again = await timed(clock, sequence.evict(fill));
    expect(again.result).toMatchObject({ stored: 6, present: 4, dropped: 0 });
  });

  test('warns once for each link over the spine, and again after it has reconnected', async () => {
    const { clock, box, topology, warnings, connect } = network();
    await using driver = await connect('far');
    expect(warnings).toHaveLength(2);
    expect(warnings[1]).toBe(
      "domain 0 of box 'far' reaches shard 1 of daemon-0 over the spine: its streams leave at leaf 1, the shard is at leaf 0",
    );
    expect(topology.spineLinks).toBe(2);
    const up = new Promise((resolve) => driver.once('up', resolve));
    box.daemon().end();
    await clock.advance(1_000);
    await up;
    expect([warnings.length, topology.spineLinks]).toEqual([4, 4]);
  });

  test('is refused where it would cross the spine and must not, before it takes memory', async () => {
    const { box, warnings, connect } = network({ spineUse: 'refuse' });
    await expect(connect('far')).rejects.toMatchObject({
      code: 'KVSS_SPINE_REFUSED',
      message: expect.stringMatching(/^refused: domain 0 of box 'far' reaches shard \d of daemon-0 over the spine/),
    });
    expect([box.links.length, box.daemon().connections.size, warnings.length]).toEqual([0, 0, 0]);
    await (await connect('near')).close();
  });

  test('misses at once when its daemon goes while completions are on their way, and leaves no timer', async () => {
    const { clock, box, connect } = network();
    box.daemon().immediate = true;
    const driver = await connect('near', { deadlineMs: 1_000 });
    const sequence = driver.openSequence({ isolationId: 'a' });
    sequence.match(tokens(10)).release();
    const before = clock.waiting;
    const evicted = sequence.evict(fill);
    await clock.advance(5);
    const reasons: string[] = [];
    driver.on('down', (_, reason) => reasons.push(reason));
    box.daemon().reachable = false;
    box.daemon().end('killed');
    expect(await evicted).toMatchObject({ stored: 0, present: 0, dropped: 10 });
    expect(reasons).toEqual(['killed']);
    // The driver's next attempt to connect, and nothing of the links.
    expect(clock.waiting).toBe(before + 1);
    await driver.close();
  });

  test('hears that its daemon drains', async () => {
    const { clock, box, connect } = network();
    box.daemon().immediate = true;
    await using driver = await connect('near');
    box.daemon().drain();
    const sequence = driver.openSequence({ isolationId: 'a' });
    sequence.match(tokens(1)).release();
    expect((await timed(clock, sequence.evict(fill))).result.dropped).toBe(1);
  });
});
