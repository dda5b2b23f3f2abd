import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CALIBRATION, parametersOf, withParameters } from '../../src/cluster/simulation/calibration.js';
import { EventClock } from '../../src/cluster/simulation/event_clock.js';
import { figuresOf, seriesOf, speedOf } from '../../src/cluster/simulation/figures.js';
import { type Direction, Network } from '../../src/cluster/simulation/network.js';
import { SharedService } from '../../src/cluster/simulation/shared_service.js';
import { type LoadedJob, type ServedPrompt, simulate } from '../../src/cluster/simulation/simulation.js';
import { settings } from '../model/property_settings.js';
import { CLUSTER, jobNamed, loaded, PLAIN, placedAt } from './simulation_worlds.js';

/** The prompts of each job, in the order of the jobs. */
function served(jobs: readonly LoadedJob[], calibration = PLAIN, { durationS = 20, seed = 1 } = {}) {
  return simulate({ cluster: CLUSTER, jobs, calibration, seed, durationS }).map(({ prompts }) => prompts);
}

const prefillMs = ({ startMs, decodeMs }: ServedPrompt) => decodeMs - startMs;
const speed = (prompt: ServedPrompt | undefined) => (prompt ? speedOf(prompt, 'generation') : Number.NaN);
const GBPS_100 = 12.5e9;

describe('time and work', () => {
  test('events come in the order of their time, and of scheduling where that is the same', () => {
    const clock = new EventClock();
    const seen: string[] = [];
    const note = (what: string) => () => seen.push(`${what} at ${clock.now()}`);
    for (const [delay, what] of [
      [5, 'd'],
      [1, 'a'],
      [3, 'c'],
      [1, 'b'],
      [9, 'late'],
    ] as const) {
      clock.schedule(delay, note(what));
    }
    clock.schedule(2, () => clock.schedule(2, note('set off')));
    clock.schedule(4, note('cancelled'))();
    clock.run(5);
    expect(seen).toEqual(['a at 1', 'b at 1', 'c at 3', 'set off at 4', 'd at 5']);
    expect(clock.now()).toBe(5);
  });

  test('work that is done at once is finished by amount, at the rates that were set meanwhile', () => {
    const clock = new EventClock();
    const finished: [string, number][] = [];
    const service = new SharedService<string>(clock, (work) => finished.push([work, clock.now()]));
    service.setRate(2);
    service.add(20, 'long');
    service.add(8, 'short');
    clock.run(2);
    service.setRate(1);
    service.add(3, 'later');
    expect(service.count).toBe(3);
    // After 2 ms short has 4 left and long 16; then 1 a millisecond.
    clock.run(6);
    expect(finished).toEqual([
      ['later', 5],
      ['short', 6],
    ]);
    service.setRate(0);
    clock.run(100);
    service.setRate(4);
    clock.run(200);
    expect(finished.at(-1)).toEqual(['long', 103]);
    expect(service.count).toBe(0);
  });
});

describe('links', () => {
  const stream = (box: string, domain: number) => ({ box, domain, port: 0, leaf: `leaf-${domain}`, bandwidth: 1 });

  test('are the port and the NIC on a rail, and both uplinks and the spine besides without one', () => {
    const network = new Network({ ...CLUSTER, spine: { bandwidth: 7e9 } });
    const capacities = (node: string, domain: number) =>
      network.path(stream('box-0', domain), node, 'toNode').map((link) => network.capacities[link]);
    expect(capacities('low', 1)).toEqual([GBPS_100, GBPS_100]);
    expect(capacities('high', 1)).toEqual([GBPS_100, 5e10, 7e9, 5e10, GBPS_100]);
  });

  test('have a capacity each way, and are shared by who goes the same way', () => {
    const network = new Network(CLUSTER);
    const path = (box: string, node: string, direction: Direction) => network.path(stream(box, 1), node, direction);
    const common = (one: number[], other: number[]) => one.filter((link) => other.includes(link)).length;
    for (const node of ['low', 'high']) {
      expect(common(path('box-0', node, 'toNode'), path('box-0', node, 'toBox'))).toBe(0);
      // All but the port of the box.
      const [one, other] = [path('box-0', node, 'toNode'), path('box-1', node, 'toNode')];
      expect(common(one, other)).toBe(one.length - 1);
      expect(path('box-0', node, 'toNode')).toEqual(one);
    }
  });
});

describe('one job', () => {
  const place = placedAt(jobNamed('one'), 'box-0', 'all', 'all');

  test('is as fast as its wafer where nothing else is', () => {
    const [prompts = []] = served([loaded(place)]);
    // 1,024 tokens at 50,000 a second, then 512 steps of 1 ms.
    expect(prefillMs(prompts[0] as ServedPrompt)).toBeCloseTo(20.48, 6);
    expect(speed(prompts[3])).toBeCloseTo(2_000, 6);
    expect(prompts).toHaveLength(Math.floor(20_000 / 532.48));
  });

  test('refills at the rate of its streams, which share the bytes of a token evenly', () => {
    const [prompts = []] = served([loaded(place, { cachedShare: 0.75 })]);
    // 768 tokens of 100,000 bytes over four streams; the rest is prefilled.
    expect(prefillMs(prompts[0] as ServedPrompt)).toBeCloseTo(1000 * ((768 * 1e5) / 4 / GBPS_100 + 256 / 50_000), 6);
  });

  test('has twice that rate with two streams to each domain', () => {
    const two = placedAt(jobNamed('one', '25Gbps', 2), 'box-0', 'all', 'all');
    const [prompts = []] = served([loaded(two, { cachedShare: 1, outputTokens: 1 })]);
    expect(prefillMs(prompts[0] as ServedPrompt)).toBeCloseTo((1000 * (1_024 * 1e5)) / 4 / (GBPS_100 / 2), 6);
  });

  test('slows down to what its evicts take', () => {
    const slow = placedAt(jobNamed('one', '100Mbps'), 'box-0', 'all', 'all');
    const [prompts = []] = served([loaded(slow, { evicts: true })], PLAIN, { durationS: 60 });
    const seconds = (2_048 * 1e5) / 4 / 12.5e6;
    expect(speed(prompts[0])).toBeCloseTo(1_024 / seconds, 6);
    const [fast = []] = served([loaded(place, { evicts: true })]);
    expect(speed(fast[0])).toBeCloseTo(2_000, 6);
  });

  test('moves only whole columns', () => {
    const lengths = { promptTokens: { min: 100, max: 100 }, cachedShare: 1 };
    const [prompts = []] = served([loaded(place, lengths)]);
    expect(prefillMs(prompts[0] as ServedPrompt)).toBeCloseTo(1000 * ((64 * 1e5) / 4 / GBPS_100 + 36 / 50_000), 6);
  });

  test('has prompts in flight take turns on the wafer, once they are too many for it', () => {
    const [few = []] = served([loaded(place, { concurrency: 20, promptTokens: { min: 1, max: 1 } })]);
    expect(speed(few.at(-1))).toBeCloseTo(2_000, 0);
    const [many = []] = served([loaded(place, { concurrency: 80, promptTokens: { min: 1, max: 1 } })]);
    // 20,000 steps a second over 80 prompts.
    expect(speed(many.at(-1))).toBeCloseTo(500, 0);
  });

  test('steps more slowly the more context there is', () => {
    const growing = withParameters(PLAIN, new Map([['models.llama-3.1-8b.stepGrowthPerToken', 1e-3]]));
    const [prompts = []] = served([loaded(place)], growing);
    // The prompt, and half of the output on average.
    expect(speed(prompts[0])).toBeCloseTo(2_000 / (1 + 1e-3 * (1_024 + 512)), 6);
  });

  test('waits for masks where they want more cores than there are', () => {
    const heavy = withParameters(
      PLAIN,
      new Map([
        ['grammar.maskMs', 3],
        ['grammar.compileCoreSeconds', 0],
      ]),
    );
    const alone = placedAt(jobNamed('one'), 'box-0', 'low', 'all');
    const load = { schemas: 1, hio: 'buffered' as const, promptTokens: { min: 1, max: 1 } };
    const [few = []] = served([loaded(alone, { ...load, concurrency: 20 })], heavy);
    expect(speed(few.at(-1))).toBeCloseTo(2_000 / (1 + PLAIN.scheduler.wakeUpMs + 3), 0);
    // 3 of 4 ms for each of 40 prompts: 30 cores, and there are 16.
    const [many = []] = served([loaded(alone, { ...load, concurrency: 40 })], heavy);
    expect(speed(many.at(-1))).toBeCloseTo(2_000 / (1 + PLAIN.scheduler.wakeUpMs + (3 * 30) / 16), 0);
  });

  test('stops when its prompts or its time are over', () => {
    expect(served([loaded(place, { prompts: 7, concurrency: 3 })])[0]).toHaveLength(7);
    const [prompts = []] = served([loaded(place, { launchS: 5, runS: 2 })]);
    expect(prompts[0]?.startMs).toBe(5_000);
    expect(prompts.at(-1)?.startMs).toBeLessThan(7_000);
    expect(prompts.at(-1)?.endMs).toBeGreaterThan(7_000);
  });

  test('compiles a schema once, and who needs it meanwhile waits', () => {
    const calibration = withParameters(PLAIN, new Map([['grammar.compileSpread', 0]]));
    const [prompts = []] = served([loaded(place, { schemas: 1, concurrency: 4 })], calibration, { durationS: 30 });
    const { compileCoreSeconds, compileThreads, maskMs } = calibration.grammar;
    const compileMs = (1000 * compileCoreSeconds) / compileThreads;
    const first = prompts.filter(({ number }) => number < 4);
    for (const prompt of first) expect(prefillMs(prompt)).toBeCloseTo(compileMs + (4 * 1_024) / 50, 6);
    const later = prompts.find(({ number }) => number >= 4) as ServedPrompt;
    expect(prefillMs(later)).toBeLessThan(compileMs);
    expect(speed(prompts[0])).toBeCloseTo(2_000 / (1 + maskMs), 6);
  });
});

describe('two jobs', () => {
  const [one, two] = [jobNamed('one'), jobNamed('two')];
  const caching = { cachedShare: 1, outputTokens: 1, concurrency: 1, prompts: 3 };
  const apart = [placedAt(one, 'box-0', 'low', 'all'), placedAt(two, 'box-1', 'high', 'all')] as const;

  test('share the NICs that both refill over', () => {
    const [alone = []] = served([loaded(apart[0], caching)]);
    const both = served(apart.map((place) => loaded(place, caching)));
    const refillMs = (1000 * 1_024 * 1e5) / 4 / GBPS_100;
    expect(prefillMs(alone[0] as ServedPrompt)).toBeCloseTo(refillMs, 3);
    for (const [first] of both) expect(prefillMs(first as ServedPrompt)).toBeCloseTo(2 * refillMs, 3);
  });

  test('share the spine where streams have no rail', () => {
    // On `low` the streams of domains 2 and 3 come in by the NICs of domains 0 and 1, across the spine.
    const crossing = placedAt(one, 'box-0', 'all', 'low');
    const [prompts = []] = served([loaded(crossing, caching)]);
    expect(prefillMs(prompts[0] as ServedPrompt)).toBeCloseTo((2 * 1000 * 1_024 * 1e5) / 4 / GBPS_100, 3);
    const narrow = { ...CLUSTER, spine: { bandwidth: 1e9 } };
    const input = { cluster: narrow, jobs: [loaded(crossing, caching)], calibration: PLAIN, seed: 1, durationS: 5 };
    // Two of the four streams share 1 GB/s.
    const [slow] = simulate(input)[0]?.prompts ?? [];
    expect(prefillMs(slow as ServedPrompt)).toBeCloseTo((2 * 1000 * 1_024 * 1e5) / 4 / 1e9, 3);
  });

  const lanes = (perDomain: number) => withParameters(PLAIN, new Map([['swDriver.lanesPerDomain', perDomain]]));
  const together = [placedAt(one, 'box-0', 'low', 'all'), placedAt(two, 'box-1', 'low', 'all')];

  test('slow each other down where their SwDrivers spin on more threads than a node has cores, working or not', () => {
    // 8 lanes of each on 16 cores: nothing. 12 of each: two thirds of a core for each lane.
    for (const [first] of served(
      together.map((place) => loaded(place)),
      lanes(2),
    ))
      expect(speed(first)).toBeCloseTo(2_000, 6);
    const idle = loaded(together[1] as never, { launchS: 0, concurrency: 1, promptTokens: { min: 1e6, max: 1e6 } });
    const [prompts = []] = served([loaded(together[0] as never), idle], lanes(3));
    expect(speed(prompts[0])).toBeLessThan(500);
    for (const [first] of served(
      apart.map((place) => loaded(place)),
      lanes(3),
    ))
      expect(speed(first)).toBeCloseTo(2_000, 6);
  });

  test('feel the masks of structured output on the node of their SwDrivers', () => {
    // 13 cores for the masks of 40 prompts, and 8 lanes: more than 16.
    const calibration = withParameters(
      PLAIN,
      new Map([
        ['grammar.maskMs', 0.65],
        ['grammar.compileCoreSeconds', 0],
      ]),
    );
    const structured = { schemas: 1, concurrency: 40, promptTokens: { min: 1, max: 1 } };
    const beside = (load: object) =>
      served([loaded(together[0] as never), loaded(together[1] as never, load)], calibration)[0]?.at(-1);
    expect(speed(beside({ ...structured, schemas: undefined }))).toBeCloseTo(2_000, 6);
    expect(speed(beside(structured))).toBeLessThan(1_000);
    expect(speed(beside({ ...structured, concurrency: 8 }))).toBeCloseTo(2_000, 6);
  });

  test('hardly slow each other down in buffered mode, which costs a wake-up each step', () => {
    for (const [first] of served(
      together.map((place) => loaded(place, { hio: 'buffered' })),
      lanes(3),
    )) {
      expect(speed(first)).toBeCloseTo(2_000 / (1 + PLAIN.scheduler.wakeUpMs), 6);
    }
  });

  test('get less through engines that have to share their cores', () => {
    const crowded = withParameters(
      PLAIN,
      new Map([
        ['kvss.spinningThreads', 8],
        ['kvss.bytesPerSecond', 1e9],
      ]),
    );
    const shards = [placedAt(one, 'box-0', 'low', 'all'), placedAt(two, 'box-1', 'high', 'all')];
    // Eight shards of eight threads on 16 cores: a quarter of a core for each, 2 GB/s for a shard.
    const [first] =
      served(
        shards.map((place) => loaded(place, caching)),
        crowded,
      )[0] ?? [];
    expect(prefillMs(first as ServedPrompt)).toBeCloseTo((1000 * 1_024 * 1e5) / 4 / 2e9, 3);
  });
});

describe('any jobs on nodes that they share', () => {
  // One prompt at a time: several of a job also compete with each other, and one may gain what another loses.
  test('are never faster together than alone, prompt by prompt, while they move nothing', () => {
    const someLoad = fc.record({
      launchS: fc.integer({ min: 0, max: 3 }),
      outputTokens: fc.integer({ min: 50, max: 2_000 }),
      schemas: fc.option(fc.integer({ min: 1, max: 8 }), { nil: undefined }),
      hio: fc.constantFrom('latency' as const, 'buffered' as const),
    });
    const node = fc.constantFrom('all', 'low', 'high');
    const jobs = fc.tuple(fc.tuple(node, node, someLoad), fc.tuple(node, node, someLoad));
    fc.assert(
      fc.property(jobs, fc.integer({ min: 1, max: 100 }), (all, seed) => {
        const loadedJobs = all.map(([driver, shards, load], index) =>
          loaded(placedAt(jobNamed(`job-${index}`), `box-${index}`, driver, shards), load),
        );
        const together = served(loadedJobs, CALIBRATION, { seed, durationS: 6 });
        for (const [index, job] of loadedJobs.entries()) {
          const alone = new Map(
            served([job], CALIBRATION, { seed, durationS: 6 })[0]?.map((each) => [each.number, each]),
          );
          for (const prompt of together[index] ?? []) {
            const own = alone.get(prompt.number);
            if (own)
              expect(prompt.endMs - prompt.startMs).toBeGreaterThanOrEqual((own.endMs - own.startMs) * (1 - 1e-6));
          }
        }
      }),
      settings(40),
    );
  });
});

describe('chance', () => {
  const jobs = [loaded(placedAt(jobNamed('one'), 'box-0', 'all', 'all'), { promptTokens: { min: 100, max: 4_000 } })];

  test('the same seed gives the same prompts, another gives others', () => {
    const [first] = served(jobs, CALIBRATION);
    expect(served(jobs, CALIBRATION)[0]).toEqual(first);
    expect(served(jobs, CALIBRATION, { seed: 2 })[0]).not.toEqual(first);
  });

  test('a prompt is the same whatever runs beside it', () => {
    const other = loaded(placedAt(jobNamed('two'), 'box-1', 'all', 'all'), { concurrency: 8 });
    const [alone = []] = served(jobs, CALIBRATION);
    const [beside = []] = served([other, ...jobs], CALIBRATION).slice(1);
    const length = Math.min(alone.length, beside.length);
    expect(length).toBeGreaterThan(10);
    expect(beside.slice(0, length).map(({ promptTokens }) => promptTokens)).toEqual(
      alone.slice(0, length).map(({ promptTokens }) => promptTokens),
    );
  });
});

describe('figures', () => {
  const prompt = (startMs: number, decodeMs: number, endMs: number): ServedPrompt => {
    return { number: 0, startMs, decodeMs, endMs, promptTokens: 300, outputTokens: 100 };
  };

  test('are of the output while it is generated, or of everything', () => {
    expect(speedOf(prompt(0, 3_000, 4_000), 'generation')).toBe(100);
    expect(speedOf(prompt(0, 3_000, 4_000), 'total')).toBe(100);
    expect(speedOf(prompt(2_000, 3_000, 4_000), 'total')).toBe(200);
    const { avg, std, min, p50, p99, max } = figuresOf([4, 1, 3, 2]);
    expect([avg, std, min, p50, p99, max]).toEqual([2.5, Math.sqrt(1.25), 1, 3, 4, 4]);
    expect(figuresOf([]).avg).toBeNaN();
  });

  test('over time are means over the prompts in flight', () => {
    // 100 tokens in 2 s, and 100 in 0.5 s of the second half.
    const series = seriesOf([prompt(0, 0, 2_000), prompt(1_000, 1_000, 1_500)], 'generation', 4, 1);
    expect(series).toEqual([
      [0.5, 50],
      [1.5, 100],
    ]);
  });
});

describe('a calibration', () => {
  test('has its parameters by name, and takes others', () => {
    const changed = withParameters(CALIBRATION, new Map([['models.llama-3.1-8b.acceptance.chat.spread', 0.5]]));
    expect(changed.models['llama-3.1-8b'].acceptance.chat.spread).toBe(0.5);
    const differing = [...parametersOf(changed)].filter(
      ([name, value]) => parametersOf(CALIBRATION).get(name) !== value,
    );
    expect(differing).toEqual([['models.llama-3.1-8b.acceptance.chat.spread', 0.5]]);
    expect(() => withParameters(CALIBRATION, new Map([['grammar.mask', 1]]))).toThrow(
      "there is no parameter 'grammar.mask'",
    );
  });
});
