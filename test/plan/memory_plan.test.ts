import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import {
  admit,
  changesBetween,
  emptyPlan,
  fairTokens,
  freeBytes,
  grantsOf,
  grow,
  type Job,
  type MemoryNode,
  type MemoryPlan,
  type PlanRules,
  rebalance,
  remove,
  shrink,
  tokensOf,
} from '../../src/plan/memory_plan.js';
import { effectiveTokens, proportionalTokens } from '../../src/plan/split.js';
import { settings } from '../model/property_settings.js';
import { refusal, sum } from './fixtures.js';

const RULES: PlanRules = { boxes: 8, incrementBytes: 10, floorBytes: 10, firstGrantShare: 0.5 };
const node = (name: string, memoryBytes: number): MemoryNode => ({ name, memoryBytes });
/** A job whose shards are on node 0. */
const job = (name: string, boxes: number, bytesPerToken: readonly number[], on = 0): Job => ({
  name,
  boxes,
  shards: bytesPerToken.map((bytes) => ({ node: on, bytesPerToken: bytes })),
});
const admitted = (plan: MemoryPlan, ...jobs: Job[]) => jobs.reduce(admit, plan);

describe('one node', () => {
  const empty = emptyPlan([node('a', 8_000)], RULES);

  test('a job gets a part of its fair share first, in proportion to the bytes of a token on each shard', () => {
    // 2 of 8 boxes: 2,000 bytes, for 4 + 2 + 2 + 2 bytes a token, half of it at first.
    const plan = admit(empty, job('j', 2, [4, 2, 2, 2]));
    // Of the 7,960 bytes beside the floors a quarter, and its own floors: 2,030 bytes. 200 tokens take 2,000, and 201 take 2,040.
    expect(fairTokens(plan, 'j')).toBe(200);
    expect(grantsOf(plan, 'j')).toEqual([400, 200, 200, 200]);
    expect(tokensOf(plan, 'j')).toBe(100);
    expect(freeBytes(plan)).toEqual([7_000]);
    const grown = grow(plan, 'j', 200);
    expect(grantsOf(grown, 'j')).toEqual([800, 400, 400, 400]);
    // Nobody else is there: it may borrow everything, and gives it back.
    const all = grow(grown, 'j', Number.POSITIVE_INFINITY);
    expect([tokensOf(all, 'j'), freeBytes(all)]).toEqual([800, [0]]);
    expect(tokensOf(shrink(all, 'j', 150), 'j')).toBe(150);
    expect(grantsOf(shrink(all, 'j', 0), 'j')).toEqual([10, 10, 10, 10]);
    expect(freeBytes(remove(all, 'j'))).toEqual([8_000]);
    // Plans do not change.
    expect(grantsOf(plan, 'j')).toEqual([400, 200, 200, 200]);
  });

  test('who borrowed gives back what a new job needs, and no more', () => {
    const alone = grow(admit(empty, job('early', 4, [1])), 'early', Number.POSITIVE_INFINITY);
    expect(tokensOf(alone, 'early')).toBe(8_000);
    const both = admit(alone, job('late', 4, [1]));
    expect([tokensOf(both, 'early'), tokensOf(both, 'late')]).toEqual([6_000, 2_000]);
    const grown = grow(both, 'late', Number.POSITIVE_INFINITY);
    expect([tokensOf(grown, 'early'), tokensOf(grown, 'late')]).toEqual([4_000, 4_000]);
    // Neither gets what the other has a right to.
    expect(tokensOf(grow(grown, 'early', 5_000), 'early')).toBe(4_000);
    // In the order in which it can be done: who gives comes first.
    expect(changesBetween(alone, both)).toEqual([
      { job: 'early', shard: 0, node: 0, bytesBefore: 8_000, bytesAfter: 6_000 },
      { job: 'late', shard: 0, node: 0, bytesBefore: 0, bytesAfter: 2_000 },
    ]);
    expect(changesBetween(both, remove(both, 'early'))).toMatchObject([{ job: 'early', bytesAfter: 0 }]);
    expect(tokensOf(grow(remove(grown, 'early'), 'late', 9_999), 'late')).toBe(8_000);
  });

  test('boxes that no job uses keep their part', () => {
    const plan = rebalance(admitted(empty, job('a', 1, [1]), job('b', 3, [1])));
    expect([tokensOf(plan, 'a'), tokensOf(plan, 'b')]).toEqual([1_000, 3_000]);
    expect(freeBytes(plan)).toEqual([4_000]);
  });

  test('what makes no sense is refused by its key', () => {
    const plan = admit(empty, job('a', 5, [1]));
    expect(refusal(() => admit(plan, job('a', 1, [1])))).toMatch(/KVSS_BAD_INPUT job 'a': 'name'/);
    expect(refusal(() => admit(plan, job('b', 4, [1])))).toMatch(/job 'b': 'boxes': 4, and 3 of the 8 .* are free/);
    expect(refusal(() => admit(plan, job('b', 0, [1])))).toMatch(/job 'b': 'boxes': 0/);
    expect(refusal(() => admit(plan, job('b', 1, [0])))).toMatch(/job 'b': 'bytesPerToken': 0/);
    expect(refusal(() => admit(plan, job('b', 1, [])))).toMatch(/job 'b': 'bytesPerToken'/);
    expect(refusal(() => admit(plan, job('b', 1, [1], 1)))).toMatch(/job 'b': 'nodes': there is no node 1/);
    for (const act of [grow, shrink]) expect(refusal(() => act(plan, 'x', 1))).toMatch(/there is no job 'x'/);
    expect(refusal(() => remove(plan, 'x'))).toMatch(/there is no job 'x'/);
    expect(refusal(() => emptyPlan([], RULES))).toMatch(/'nodes'/);
    expect(refusal(() => emptyPlan([node('a', -1)], RULES))).toMatch(/'nodes.a': -1/);
    expect(refusal(() => emptyPlan([node('a', 1)], { ...RULES, boxes: 0 }))).toMatch(/'boxes'/);
    expect(refusal(() => emptyPlan([node('a', 1)], { ...RULES, floorBytes: 15 }))).toMatch(/'floor': 15/);
    expect(refusal(() => emptyPlan([node('a', 1)], { ...RULES, incrementBytes: 0 }))).toMatch(/'increment'/);
    expect(refusal(() => emptyPlan([node('a', 1)], { ...RULES, firstGrantShare: 2 }))).toMatch(/'firstGrant'/);
  });

  test('a job whose floors do not fit is turned away, and the others keep what they have', () => {
    const small = emptyPlan([node('a', 50)], RULES);
    const full = grow(admit(small, job('a', 1, [1, 1, 1])), 'a', 99);
    expect(refusal(() => admit(full, job('b', 1, [1, 1, 1])))).toMatch(/KVSS_NO_MEMORY job 'b': .* 60 B on node 'a'/);
    expect(grantsOf(admit(full, job('b', 1, [1, 1])), 'b')).toEqual([10, 10]);
  });
});

test('a share goes by boxes on every node where a job has shards', () => {
  // Two nodes; `wide` has a box on each, `left` and `right` one box on one of them.
  const rules = { ...RULES, boxes: 4, floorBytes: 0 };
  const wide: Job = { name: 'wide', boxes: 2, shards: [0, 1].map((at) => ({ node: at, bytesPerToken: 10 })) };
  const plan = rebalance(
    admitted(
      emptyPlan([node('a', 1_000), node('b', 1_000)], rules),
      wide,
      job('left', 1, [10]),
      job('right', 1, [5], 1),
    ),
  );
  expect(['wide', 'left', 'right'].map((name) => grantsOf(plan, name))).toEqual([[500, 500], [500], [500]]);
  expect(['wide', 'left', 'right'].map((name) => tokensOf(plan, name))).toEqual([50, 50, 100]);
});

test('only who is in the way gives back', () => {
  const nodes = [node('a', 1_000), node('b', 1_000)];
  const all = Number.POSITIVE_INFINITY;
  const borrowed = ['a', 'b'].reduce(
    (plan, name, on) => grow(admit(plan, job(name, 1, [10], on)), name, all),
    emptyPlan(nodes, { ...RULES, floorBytes: 0 }),
  );
  expect(['a', 'b'].map((name) => tokensOf(borrowed, name))).toEqual([100, 100]);
  // A quarter of node b is the newcomer's, and he gets half of that at first.
  const later = admit(borrowed, job('c', 1, [10], 1));
  expect(['a', 'b', 'c'].map((name) => tokensOf(later, name))).toEqual([100, 88, 12]);
});

/** Clusters with more jobs than there are boxes for, on up to three nodes, so that admission is refused now and then. */
const world = fc.record({
  nodes: fc
    .array(fc.integer({ min: 200, max: 5_000 }), { minLength: 1, maxLength: 3 })
    .map((sizes) => sizes.map((bytes, index) => node(`n${index}`, bytes))),
  rules: fc
    .record({
      boxes: fc.integer({ min: 1, max: 12 }),
      incrementBytes: fc.integer({ min: 1, max: 40 }),
      floors: fc.integer({ min: 0, max: 2 }),
      firstGrantShare: fc.double({ min: 0, max: 1, noNaN: true }),
    })
    .map(({ floors, ...rules }): PlanRules => ({ ...rules, floorBytes: floors * rules.incrementBytes })),
  jobs: fc.array(
    fc.record({
      boxes: fc.integer({ min: 1, max: 4 }),
      shards: fc.array(fc.record({ node: fc.nat(2), bytesPerToken: fc.integer({ min: 1, max: 90 }) }), {
        minLength: 1,
        maxLength: 5,
      }),
    }),
    { minLength: 1, maxLength: 6 },
  ),
});

function jobsOf({ nodes, jobs }: { nodes: readonly MemoryNode[]; jobs: readonly Omit<Job, 'name'>[] }): Job[] {
  return jobs.map(({ boxes, shards }, index) => ({
    name: `j${index}`,
    boxes,
    shards: shards.map((shard) => ({ ...shard, node: shard.node % nodes.length })),
  }));
}

/** What holds in every plan. */
function checkPlan(plan: MemoryPlan): void {
  const { incrementBytes, floorBytes } = plan.rules;
  const used = plan.nodes.map(() => 0);
  for (const [name, { job: each }] of plan.jobs) {
    const grants = grantsOf(plan, name);
    for (const [shard, bytes] of grants.entries()) {
      expect(bytes % incrementBytes).toBe(0);
      expect(bytes).toBeGreaterThanOrEqual(floorBytes);
      const at = each.shards[shard]?.node as number;
      used[at] = (used[at] as number) + bytes;
    }
    const bytesPerToken = each.shards.map((shard) => shard.bytesPerToken);
    expect(tokensOf(plan, name)).toBe(effectiveTokens(grants, bytesPerToken));
    // No grant is larger than those tokens need.
    for (const [shard, bytes] of grants.entries()) {
      const needed = tokensOf(plan, name) * (bytesPerToken[shard] as number);
      expect(bytes === floorBytes || bytes - needed < incrementBytes).toBe(true);
    }
  }
  const free = freeBytes(plan);
  for (const [at, { memoryBytes }] of plan.nodes.entries()) {
    expect(used[at]).toBeLessThanOrEqual(memoryBytes);
    expect(free[at]).toBe(memoryBytes - (used[at] as number));
  }
}

test('whatever is done, grants fit into their nodes, keep to increments and floors, and hold what they say', () => {
  const step = fc.record({
    act: fc.constantFrom('admit', 'grow', 'grow', 'shrink', 'remove', 'rebalance'),
    which: fc.nat(5),
    tokens: fc.oneof(fc.nat(500), fc.constant(Number.POSITIVE_INFINITY)),
  });
  const done = { admitted: 0, refused: 0, grown: 0 };
  const run = fc.property(world, fc.array(step, { minLength: 10, maxLength: 40 }), (made, steps) => {
    const jobs = jobsOf(made);
    let plan = emptyPlan(made.nodes, made.rules);
    for (const { act, which, tokens } of steps) {
      const each = jobs[which % jobs.length] as Job;
      const there = plan.jobs.has(each.name);
      const before = plan;
      const grantsBefore = [...plan.jobs.keys()].map((name) => grantsOf(plan, name));
      if (act === 'admit' && !there) {
        try {
          plan = admit(plan, each);
          done.admitted += 1;
          const first = Math.floor(fairTokens(plan, each.name) * made.rules.firstGrantShare);
          expect(tokensOf(plan, each.name)).toBeGreaterThanOrEqual(first);
        } catch (thrown) {
          expect((thrown as KvssError).code).toMatch(/KVSS_(BAD_INPUT|NO_MEMORY)/);
          done.refused += 1;
        }
      } else if (act === 'grow' && there) {
        plan = grow(plan, each.name, tokens);
        expect(tokensOf(plan, each.name)).toBeGreaterThanOrEqual(tokensOf(before, each.name));
        expect(tokensOf(plan, each.name)).toBeGreaterThanOrEqual(Math.min(tokens, fairTokens(plan, each.name)));
        if (tokensOf(plan, each.name) > tokensOf(before, each.name)) done.grown += 1;
      } else if (act === 'shrink' && there) {
        plan = shrink(plan, each.name, tokens);
        expect(tokensOf(plan, each.name)).toBeLessThanOrEqual(tokensOf(before, each.name));
      } else if (act === 'remove' && there) {
        plan = remove(plan, each.name);
      } else if (act === 'rebalance') {
        plan = rebalance(plan);
      }
      checkPlan(plan);
      // What the changes say is what happened, in an order in which no node is ever overdrawn.
      const free = freeBytes(before);
      for (const change of changesBetween(before, plan)) {
        free[change.node] = (free[change.node] as number) + change.bytesBefore - change.bytesAfter;
        expect(free[change.node]).toBeGreaterThanOrEqual(0);
      }
      expect(free).toEqual(freeBytes(plan));
      // Another plan, and not the one before changed. Who had no more than his fair share loses nothing to another.
      expect([...before.jobs.keys()].map((name) => grantsOf(before, name))).toEqual(grantsBefore);
      if (act !== 'grow') continue;
      for (const name of before.jobs.keys()) {
        const kept = Math.min(tokensOf(before, name), fairTokens(before, name));
        expect(tokensOf(plan, name)).toBeGreaterThanOrEqual(kept);
      }
    }
  });
  fc.assert(run, settings(300));
  expect(Math.min(...Object.values(done))).toBeGreaterThan(50);
});

test('the order in which jobs come decides nothing: all get their fair share in the end', () => {
  let compared = 0;
  const run = fc.property(
    world,
    fc.array(fc.nat(1_000), { minLength: 6, maxLength: 6 }),
    fc.boolean(),
    (made, keys, greedy) => {
      const jobs = jobsOf(made);
      if (sum(jobs.map(({ boxes }) => boxes)) > made.rules.boxes) return;
      const arrive = (order: readonly Job[]) => {
        let plan = emptyPlan(made.nodes, made.rules);
        for (const each of order) {
          plan = admit(plan, each);
          // Who came early takes all he can get.
          if (greedy) plan = grow(plan, each.name, Number.POSITIVE_INFINITY);
        }
        return plan;
      };
      const shuffled = jobs
        .map((each, index) => ({ each, key: keys[index] as number }))
        .sort((a, b) => a.key - b.key)
        .map(({ each }) => each);
      let plans: MemoryPlan[];
      try {
        plans = [jobs, shuffled].map(arrive);
      } catch (thrown) {
        // Floors that do not fit in one order do not fit in another.
        expect((thrown as KvssError).code).toBe('KVSS_NO_MEMORY');
        expect(() => arrive([...shuffled].reverse())).toThrow(KvssError);
        return;
      }
      compared += 1;
      const [one, other] = plans.map(rebalance) as [MemoryPlan, MemoryPlan];
      for (const { name } of jobs) {
        expect(tokensOf(one, name)).toBe(tokensOf(other, name));
        // Without rebalancing too: whoever asks gets his fair share from those who borrowed.
        for (const plan of plans) {
          const asked = grow(plan, name, fairTokens(plan, name));
          expect(tokensOf(asked, name)).toBeGreaterThanOrEqual(tokensOf(one, name));
        }
      }
    },
  );
  fc.assert(run, settings(400));
  expect(compared).toBeGreaterThan(30);
});

test('no other split of a memory holds more tokens than the proportional one', () => {
  /** The most tokens that any split into whole increments holds. */
  function best(increments: number, incrementBytes: number, bytesPerToken: readonly number[], floor: number): number {
    const [bytes = 1, ...rest] = bytesPerToken;
    const of = (count: number) => Math.floor((count * incrementBytes) / bytes);
    if (rest.length === 0) return increments < floor ? -1 : of(increments);
    let most = -1;
    for (let count = floor; count <= increments; count += 1) {
      most = Math.max(most, Math.min(of(count), best(increments - count, incrementBytes, rest, floor)));
    }
    return most;
  }
  const run = fc.property(
    fc.integer({ min: 0, max: 14 }),
    fc.integer({ min: 1, max: 20 }),
    fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 4 }),
    fc.integer({ min: 0, max: 2 }),
    (increments, incrementBytes, bytesPerToken, floor) => {
      const rules = { incrementBytes, floorBytes: floor * incrementBytes };
      const tokens = proportionalTokens(increments * incrementBytes, bytesPerToken, rules);
      // -1: not even the floors fit.
      const most = best(increments, incrementBytes, bytesPerToken, floor);
      if (most >= 0) expect(tokens).toBe(most);
      else expect(tokens).toBe(0);
      if (most < 0) return;
      // A plan whose only job uses all boxes is that split.
      const plan = emptyPlan([node('a', Math.max(1, increments * incrementBytes))], { ...RULES, ...rules });
      const full = grow(admit(plan, job('j', 8, bytesPerToken)), 'j', Number.POSITIVE_INFINITY);
      expect(tokensOf(full, 'j')).toBe(most);
    },
  );
  fc.assert(run, settings(400));
});
