import { describe, expect, test } from 'vitest';
import { Path, type PathInput, Topology, type TopologyInput } from '../../src/wafer/topology.js';
import { ManualClock } from '../model/manual_clock.js';

// 1 MB/s is 1000 bytes a millisecond.
const MB = 1_000_000;
const LINE = { bandwidth: MB, latencyUs: 0, jitterUs: 0, burst: 0, window: undefined };

function pathOf(settings: Partial<typeof LINE>, seed = 1) {
  const clock = new ManualClock();
  return { clock, path: new Path({ ...LINE, ...settings }, clock, seed) };
}

describe('a path', () => {
  test('carries bytes at its bandwidth, one transfer behind the other', async () => {
    const { clock, path } = pathOf({});
    expect([path.toStore.transfer(5_000), path.toStore.transfer(1_000)]).toEqual([5, 6]);
    await clock.advance(4);
    expect(path.toStore.transfer(2_000)).toBe(8);
    await clock.advance(96);
    expect(path.toStore.transfer(2_000)).toBe(102);
  });

  test('adds its latency to each transfer, and not to what passes behind it', () => {
    const { path } = pathOf({ latencyUs: 500 });
    expect([path.toStore.transfer(1_000), path.toStore.transfer(1_000)]).toEqual([1.5, 2.5]);
  });

  test('lets a burst pass at once, and fills up again at its bandwidth while nothing passes', async () => {
    const { clock, path } = pathOf({ burst: 4_000 });
    expect([1, 2, 3, 4].map(() => path.toStore.transfer(1_000))).toEqual([0, 0, 0, 0]);
    expect(path.toStore.transfer(1_000)).toBe(1);
    // The last one has passed after 1 ms; 2 ms later there is room for 2000 bytes.
    await clock.advance(3);
    expect(path.toStore.transfer(3_000)).toBe(4);
    // However long the pause, not more than one burst.
    await clock.advance(1_000);
    expect([path.toStore.transfer(4_000), path.toStore.transfer(1_000)]).toEqual([1_003, 1_004]);
  });

  test('is full duplex: what goes to the store does not delay what comes back', () => {
    const { path } = pathOf({});
    expect([path.toStore.transfer(9_000), path.toWafer.transfer(1_000)]).toEqual([9, 1]);
  });

  test('lets an answer without payload wait behind nothing', () => {
    const { path } = pathOf({ latencyUs: 250 });
    path.toWafer.transfer(9_000);
    expect(path.answer()).toBe(0.25);
  });

  test('jitter stays within its bounds, keeps the order, and is the same for the same seed only', async () => {
    const arrivals = async (seed: number) => {
      const { clock, path } = pathOf({ latencyUs: 100, jitterUs: 800 }, seed);
      const times: number[] = [];
      for (let round = 0; round < 200; round += 1) {
        const sent = clock.now();
        times.push(path.toStore.transfer(10));
        const delayMs = (times.at(-1) as number) - sent;
        // Ten bytes take 0.01 ms, and two transfers at most are sent at the same moment.
        expect(delayMs).toBeGreaterThanOrEqual(0.01 + 0.1 - 1e-9);
        expect(delayMs).toBeLessThan(0.02 + 0.9 + 1e-9);
        await clock.advance(round % 3);
      }
      expect(times).toEqual([...times].sort((a, b) => a - b));
      return times;
    };
    const [first, again, other] = [await arrivals(7), await arrivals(7), await arrivals(8)];
    expect(again).toEqual(first);
    expect(other).not.toEqual(first);
  });

  test('counts what it carries, each way', () => {
    const { path } = pathOf({});
    for (const bytes of [10, 20, 30]) path.toStore.transfer(bytes);
    path.toWafer.transfer(5);
    expect(path.toStore).toMatchObject({ bytes: 60, transfers: 3 });
    expect(path.toWafer).toMatchObject({ bytes: 5, transfers: 1 });
  });

  test('has a window that keeps it busy while an event loop turns, unless it is told another', () => {
    expect(pathOf({}).path.windowBytes).toBe(20_000);
    expect(pathOf({ latencyUs: 3_000, jitterUs: 2_000, burst: 7 }).path.windowBytes).toBe(25_007);
    const clock = new ManualClock();
    expect(new Path({ ...LINE, window: 11 }, clock, 1).windowBytes).toBe(11);
  });
});

const PATH: PathInput = { bandwidth: '1MB' };
const TWO_RAILS: TopologyInput = {
  rails: [PATH, PATH],
  spine: PATH,
  boxes: { a: [[0], [1, 0]], b: [[1]] },
  daemons: { 'daemon-0': [0, 0, 1] },
};

function topologyOf(changes: Partial<TopologyInput> = {}) {
  const warnings: string[] = [];
  const topology = new Topology({ ...TWO_RAILS, ...changes }, new ManualClock(), (message) => warnings.push(message));
  return { topology, warnings };
}

describe('a topology', () => {
  test('takes the rail where stream and shard are at the same leaf, and the spine elsewhere', () => {
    const { topology } = topologyOf();
    const [rail0, rail1] = topology.rails as [Path, Path];
    const pathsOf = (box: string, index: number, domain: number) =>
      topology.route(box, 'daemon-0', { index, domain }).paths;
    expect(pathsOf('a', 0, 0)).toEqual([rail0]);
    expect(pathsOf('a', 0, 0)[0]).toBe(rail0);
    expect(pathsOf('a', 1, 1)[0]).toBe(topology.spine);
    expect(pathsOf('a', 1, 1)[1]).toBe(rail0);
    expect(pathsOf('a', 2, 1)[0]).toBe(rail1);
    expect(pathsOf('b', 2, 0)[0]).toBe(rail1);
    expect(pathsOf('b', 0, 0)[0]).toBe(topology.spine);
  });

  test('counts every opened link that crosses the spine, and warns of it once, by name', () => {
    const { topology, warnings } = topologyOf();
    topology.opened(topology.route('a', 'daemon-0', { index: 0, domain: 0 }));
    expect([topology.spineLinks, warnings]).toEqual([0, []]);
    topology.opened(topology.route('a', 'daemon-0', { index: 1, domain: 1 }));
    expect(topology.spineLinks).toBe(1);
    expect(warnings).toEqual([
      "domain 1 of box 'a' reaches shard 1 of daemon-0 over the spine: its streams leave at leaf 1, the shard is at leaf 0",
    ]);
    topology.opened(topology.route('b', 'daemon-0', { index: 0, domain: 0 }));
    expect([topology.spineLinks, warnings.length]).toEqual([2, 2]);
  });

  test('is silent about the spine where it is allowed, and still counts', () => {
    const { topology, warnings } = topologyOf({ spineUse: 'allow' });
    topology.opened(topology.route('b', 'daemon-0', { index: 0, domain: 0 }));
    expect([topology.spineLinks, warnings]).toEqual([1, []]);
  });

  test('refuses the spine where it is told to, and only the spine', () => {
    const { topology } = topologyOf({ spineUse: 'refuse' });
    expect(() => topology.route('b', 'daemon-0', { index: 1, domain: 0 })).toThrow(
      expect.objectContaining({
        code: 'KVSS_SPINE_REFUSED',
        message:
          "refused: domain 0 of box 'b' reaches shard 1 of daemon-0 over the spine: its streams leave at leaf 1, the shard is at leaf 0",
      }),
    );
    // One of two streams is enough.
    expect(() => topology.route('a', 'daemon-0', { index: 2, domain: 1 })).toThrow(
      'leave at leaf 0, the shard is at leaf 1',
    );
    expect(topology.route('b', 'daemon-0', { index: 2, domain: 0 }).overSpine).toBeUndefined();
  });

  test('says what it does not know', () => {
    const { topology } = topologyOf();
    const route = (box: string, daemon: string, index: number, domain: number) => () =>
      topology.route(box, daemon, { index, domain });
    expect(route('c', 'daemon-0', 0, 0)).toThrow("topology: 'boxes' has no 'c'");
    expect(route('constructor', 'daemon-0', 0, 0)).toThrow("topology: 'boxes' has no 'constructor'");
    expect(route('b', 'daemon-0', 0, 1)).toThrow("'boxes.b' has no domain 1, which shard 0 of daemon-0 serves");
    expect(route('a', 'daemon-1', 0, 0)).toThrow("'daemons' does not say where shard 0 of daemon-1 is attached");
    expect(route('a', 'daemon-0', 3, 0)).toThrow("'daemons' does not say where shard 3 of daemon-0 is attached");
  });

  test.each<[string, unknown]>([
    ["'rails': ", { rails: [] }],
    ["'rails.1.bandwidth': 'fast' is not a size", { rails: [PATH, { bandwidth: 'fast' }] }],
    ["'spine.bandwidth': '0' is not a size", { spine: { bandwidth: 0 } }],
    ["'spine.latencyUs': ", { spine: { ...PATH, latencyUs: -1 } }],
    ["'spine.jitterUs': ", { spine: { ...PATH, jitterUs: '5' } }],
    ["'spine.burst': 'big' is not a size", { spine: { ...PATH, burst: 'big' } }],
    ["unknown key 'spine.speed'", { spine: { bandwidth: '1MB', speed: 3 } }],
    ["'boxes.a.1.0': there is no rail 2, the last one is 1", { boxes: { a: [[0], [2]] } }],
    ["'daemons.tcp://10.0.0.1:9411.0': there is no rail 7", { daemons: { 'tcp://10.0.0.1:9411': [7] } }],
    ["'boxes.a.0': ", { boxes: { a: [[]] } }],
    ["'spineUse': ", { spineUse: 'maybe' }],
  ])('names the key that is wrong: %s', (message, changes) => {
    expect(() => topologyOf(changes as Partial<TopologyInput>)).toThrow(
      expect.objectContaining({ code: 'KVSS_BAD_CONFIG', message: expect.stringContaining(`topology: ${message}`) }),
    );
  });
});
