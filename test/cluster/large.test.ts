import { expect, test } from 'vitest';
import { parseCluster } from '../../src/cluster/cluster.js';
import { PlacementEngine } from '../../src/cluster/engine.js';
import { explain } from '../../src/cluster/explain.js';
import { DEFAULT_SHAPE, generateCluster } from '../../src/cluster/generate.js';
import { type Job, readJobs } from '../../src/cluster/jobs.js';
import { judge } from './brute_force.js';

const cluster = parseCluster(generateCluster({ ...DEFAULT_SHAPE, boxes: 1000, nodes: 2000 }));
const [example] = readJobs(
  new URL('../../examples/clusters/prompt-caching-jobs.yaml', import.meta.url).pathname,
  cluster,
) as [Job];
const jobOf = (name: string, boxes: number): Job => ({
  ...example,
  name,
  session: { boxes, minimum: 1, increment: 1 },
});

test('on 1,000 boxes and 2,000 AX nodes few candidates are looked at: what is alike is looked at once', () => {
  const statement = new PlacementEngine(cluster).begin();
  // One job of eight boxes has 42 pods: on 2,000 AX nodes each that would be 84,000 candidates for a single greedy pass.
  const first = statement.place(jobOf('first', 8));
  expect(first.placed).toHaveLength(42);
  expect(first.provenLevels).toBe(4);
  expect(first.looked).toBeLessThan(5_000);
  // The other groups of boxes are as good, and that is said of each, though the search looked at one of them only.
  const { boxes } = explain(first, { exclusion: true, rejectSpine: false });
  expect(boxes.slice(1).map(({ verdict }) => verdict)).toEqual(Array(16).fill('equal'));
  for (let number = 0; number < 40; number += 1) statement.place(jobOf(`j${number}`, 1 + (number % 10)));
  for (const { provenLevels, score, looked, subject } of statement.journal) {
    // Rails and uplinks are proven; fragmentation and spread as far as the budget goes.
    expect([subject, score?.[0], provenLevels >= 2]).toEqual([subject, 0, true]);
    expect(looked).toBeLessThan(50_000);
  }
  const proven = statement.journal.filter(({ provenLevels }) => provenLevels === 4);
  expect(proven.length).toBeGreaterThan(30);

  const grown = statement.resize('first', 12);
  expect(grown.placed).toHaveLength(20);
  expect(grown.looked).toBeLessThan(50_000);
  const { node } = first.placed.find(({ pod }) => pod.spec.kind === 'swdriver') as (typeof first.placed)[0];
  const drained = statement.drain(node);
  expect(drained.looked).toBeLessThan(50_000);
  expect(drained.score?.[0]).toBe(0);
  // By the words of the rules nothing is broken.
  const all = drained.after.jobs.flatMap(({ pods }) => pods);
  const taken = drained.after.jobs.flatMap((job) => job.boxes);
  const judged = judge(cluster, [node], [], all, taken, { exclusion: true, rejectSpine: true });
  expect(judged?.slice(0, 3)).toEqual(drained.score?.slice(0, 3));
});
