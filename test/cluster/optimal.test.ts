import { expect, test } from 'vitest';
import { PlacementEngine, type Statement } from '../../src/cluster/engine.js';
import { compareScores, type ScoreVector } from '../../src/cluster/score.js';
import { emptySnapshot, type PlacedPod, type Snapshot } from '../../src/cluster/snapshot.js';
import { KvssError } from '../../src/common/errors.js';
import { seededRandom } from '../../src/common/random.js';
import { type BruteRules, bestOfBoxes, bestOfPods, judge } from './brute_force.js';
import { drawFrom, randomCluster, randomJob } from './random_clusters.js';

/** Random clusters; `KVSS_TEST_EFFORT` is a factor. */
const RUNS = Math.ceil(2000 * Number(process.env.KVSS_TEST_EFFORT ?? 1));
const MAX_ASSIGNMENTS = 2_500;

const podsOf = (snapshot: Snapshot) => snapshot.jobs.flatMap(({ pods }) => pods);
const boxesOf = (snapshot: Snapshot) => snapshot.jobs.flatMap(({ boxes }) => boxes);

/** What the statement answers, or undefined where it says that there is no place. */
function attempt<Answer>(act: () => Answer): Answer | undefined {
  try {
    return act();
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(KvssError);
    expect(['KVSS_NO_PLACEMENT', 'KVSS_SPINE_REFUSED']).toContain((thrown as KvssError).code);
    return undefined;
  }
}

/** The score that was promised is the one of what was done, and nothing hard is broken. */
function checkKept(statement: Statement, rules: BruteRules): ScoreVector {
  const decision = statement.journal.at(-1) as Statement['journal'][0];
  const { before, after, placed } = decision;
  const names = new Set(placed.map(({ pod }) => pod.name));
  const standing: PlacedPod[] = podsOf(after).filter(({ pod }) => !names.has(pod.name));
  const score = judge(before.cluster, after.drained, standing, placed, boxesOf(after), rules);
  expect(score).toEqual(decision.score);
  expect(new Set(boxesOf(after)).size).toBe(boxesOf(after).length);
  expect(decision.complete).toBe(true);
  expect(decision.bound).toEqual(decision.score);
  return score as ScoreVector;
}

test(`placements equal the best of all assignments on ${RUNS} random clusters`, () => {
  const seen = { placed: 0, none: 0, grown: 0, drained: 0, crossing: 0 };
  for (let seed = 1; seed <= RUNS; seed += 1) {
    const draw = drawFrom(seededRandom(seed));
    const cluster = randomCluster(draw);
    const rules = { exclusion: draw(0, 3) > 0, rejectSpine: draw(0, 3) === 0 };
    const engine = new PlacementEngine(emptySnapshot(cluster), { ...rules, budget: 1e7 });
    const statement = engine.begin();
    for (const name of ['j0', 'j1']) {
      const job = randomJob(name, draw);
      const podsOfSize = (boxes: number) =>
        job.pods.reduce((sum, { per, count }) => sum + count * { job: 1, box: boxes, domain: 4 * boxes }[per], 0);
      const { boxes, minimum } = job.session;
      if (cluster.nodes.length ** podsOfSize(boxes) > MAX_ASSIGNMENTS) continue;
      const before = statement.snapshot;
      let expected: ScoreVector | undefined;
      let size = boxes;
      for (; size >= minimum && !expected; size -= 1) expected = bestOfBoxes(before, job, size, true, rules);
      const decision = attempt(() => statement.place(job));
      expect([seed, name, decision?.score]).toEqual([seed, name, expected]);
      if (!decision) {
        seen.none += 1;
        expect(statement.snapshot).toBe(before);
        continue;
      }
      expect(decision.boxes).toHaveLength(size + 1);
      seen.placed += 1;
      if (checkKept(statement, rules)[0] > 0) seen.crossing += 1;

      if (draw(0, 1) === 0) {
        const grown = attempt(() => statement.resize(name, decision.boxes.length + 1));
        const best = bestOfBoxes(decision.after, job, 1, false, rules);
        expect([seed, 'grow', grown?.score]).toEqual([seed, 'grow', best]);
        if (grown) {
          seen.grown += 1;
          checkKept(statement, rules);
          statement.rollback(statement.journal.length - 1);
        }
      }
      const node = cluster.nodes[draw(0, cluster.nodes.length - 1)]?.name as string;
      if (draw(0, 1) === 0) {
        const { snapshot } = statement;
        const leaving = podsOf(snapshot).filter((placed) => placed.node === node);
        const staying = podsOf(snapshot).filter((placed) => placed.node !== node);
        const pods = leaving.map(({ pod }) => pod);
        const best = bestOfPods({ ...snapshot, drained: [node] }, staying, pods, boxesOf(snapshot), rules);
        const drained = attempt(() => statement.drain(node));
        expect([seed, 'drain', drained?.score]).toEqual([seed, 'drain', best]);
        if (drained) {
          if (leaving.length > 0) seen.drained += 1;
          checkKept(statement, rules);
          // The others stayed where they were.
          expect(podsOf(statement.snapshot).filter(({ pod }) => !pods.includes(pod))).toEqual(staying);
          statement.rollback(statement.journal.length - 1);
        }
      }
    }
  }
  // The clusters are neither too easy nor too hard to say something.
  for (const count of Object.values(seen)) expect(count).toBeGreaterThan(RUNS / 50);
}, 600_000);

test('where the budget ends the search, the best lies between the score and the bound, and what is proven is so', () => {
  const seen = { ended: 0, better: 0, none: 0 };
  for (let seed = 1; seed <= RUNS; seed += 1) {
    const draw = drawFrom(seededRandom(seed));
    const cluster = randomCluster(draw);
    const exclusion = draw(0, 3) > 0;
    const job = randomJob('j', draw);
    const full = attempt(() => new PlacementEngine(cluster, { exclusion, budget: 1e7 }).begin().place(job));
    const statement = new PlacementEngine(cluster, { exclusion, budget: draw(1, 60) }).begin();
    const short = attempt(() => statement.place(job));
    if (!short || short.complete) {
      if (full && !short) seen.none += 1;
      // Of a smaller session less can be asked.
      if (short && full?.boxes.length === short.boxes.length) expect([seed, short.score]).toEqual([seed, full.score]);
      continue;
    }
    if (!short.score || !short.bound || full?.boxes.length !== short.boxes.length) continue;
    const best = full.score as ScoreVector;
    seen.ended += 1;
    expect([seed, compareScores(short.bound, best) <= 0]).toEqual([seed, true]);
    expect([seed, compareScores(best, short.score) <= 0]).toEqual([seed, true]);
    expect(short.score.slice(0, short.provenLevels)).toEqual(best.slice(0, short.provenLevels));
    if (compareScores(best, short.score) < 0) seen.better += 1;
    const boxes = boxesOf(statement.snapshot);
    expect(judge(cluster, [], [], short.placed, boxes, { exclusion, rejectSpine: false })).toEqual(short.score);
  }
  for (const count of Object.values(seen)) expect(count).toBeGreaterThan(0);
});
