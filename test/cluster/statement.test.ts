import { beforeEach, describe, expect, test } from 'vitest';
import { type Box, parseCluster } from '../../src/cluster/cluster.js';
import { PlacementEngine } from '../../src/cluster/engine.js';
import { explain } from '../../src/cluster/explain.js';
import { DEFAULT_SHAPE, generateCluster } from '../../src/cluster/generate.js';
import { type Job, parseJobs, podsOfJob } from '../../src/cluster/jobs.js';
import { emptySnapshot, hashSnapshot, type PlacedPod, type Snapshot } from '../../src/cluster/snapshot.js';
import { formatState, parseState } from '../../src/cluster/state_file.js';
import { KvssError } from '../../src/common/errors.js';
import { seededRandom } from '../../src/common/random.js';
import { judge } from './brute_force.js';
import { drawFrom, randomCluster, randomJob } from './random_clusters.js';

const cluster = parseCluster(generateCluster(DEFAULT_SHAPE));

/** A job as in the example, with a session of so many boxes. */
function jobOf(name: string, boxes: number, session = '', driverCores = 16): Job {
  const text = `jobs:
  - name: ${name}
    session: { boxes: ${boxes}${session} }
    pods:
      - { kind: swdriver, cores: ${driverCores}, memory: 64GiB, streams: { bandwidth: 5Gbps, domains: [0] } }
      - { kind: kvss, cores: 4, memory: 64GiB, streams: { count: 2, bandwidth: 3.125Gbps } }
      - { kind: chf, cores: 4, memory: 16GiB }
      - { kind: wse, cores: 2, memory: 16GiB }`;
  return parseJobs(text)[0] as Job;
}

const podsOf = (snapshot: Snapshot) => snapshot.jobs.flatMap(({ pods }) => pods);
const driversOf = (snapshot: Snapshot) =>
  podsOf(snapshot)
    .filter(({ pod }) => pod.spec.kind === 'swdriver')
    .map(({ node }) => node);

/** Pods of a kind of a job, and where they are. */
function placesOf(pods: readonly PlacedPod[]): Record<string, string> {
  return Object.fromEntries(pods.map(({ pod, node }) => [pod.name, node]));
}

describe('statements', () => {
  let engine: PlacementEngine;
  beforeEach(() => {
    engine = new PlacementEngine(cluster);
  });

  /** Places jobs of two boxes each and commits them. */
  function running(...names: string[]): Snapshot {
    const statement = engine.begin();
    for (const name of names) statement.place(jobOf(name, 2, ', minimum: 1'));
    return engine.commit(statement, statement.token);
  }

  test('a what-if changes nothing until it is committed', () => {
    const before = engine.snapshot;
    const statement = engine.begin();
    const decision = statement.place(jobOf('a', 2));
    expect(decision.after.jobs).toHaveLength(1);
    expect(engine.snapshot).toBe(before);
    const committed = engine.commit(statement, statement.token);
    expect(committed).toBe(engine.snapshot);
    expect(committed.version).toBe(before.version + 1);
    expect(committed.jobs).toEqual(decision.after.jobs);
  });

  test('a commit against a snapshot that has moved on is refused', () => {
    const [first, second] = [engine.begin(), engine.begin()];
    first.place(jobOf('a', 2));
    second.place(jobOf('b', 2));
    const after = engine.commit(first, first.token);
    expect(() => engine.commit(second, second.token)).toThrowError(
      expect.objectContaining({ code: 'KVSS_STALE', message: expect.stringContaining('version 0') }),
    );
    expect(engine.snapshot).toBe(after);
    // And so is the same one again.
    expect(() => engine.commit(first, first.token)).toThrowError(expect.objectContaining({ code: 'KVSS_STALE' }));
  });

  test('a token is of one state of a statement', () => {
    const statement = engine.begin();
    statement.place(jobOf('a', 2));
    const { token } = statement;
    statement.place(jobOf('b', 2));
    expect(() => engine.commit(statement, token)).toThrowError(expect.objectContaining({ code: 'KVSS_STALE' }));
    statement.rollback(1);
    expect(engine.commit(statement, token).jobs.map(({ job }) => job.name)).toEqual(['a']);
  });

  test('a rollback restores the exact snapshot, of each step and of a commit', () => {
    const committed = running('a', 'b');
    const copy = structuredClone(committed);
    const hash = hashSnapshot(committed);
    const statement = engine.begin();
    const hashes = [hashSnapshot(statement.snapshot)];
    const steps = [
      () => statement.place(jobOf('c', 2)),
      () => statement.drain(driversOf(statement.snapshot)[0] as string),
      () => statement.resize('a', 1),
      () => statement.resize('b', 3),
      () => statement.remove('c'),
      () => statement.replace('b'),
    ];
    for (const step of steps) {
      step();
      hashes.push(hashSnapshot(statement.snapshot));
    }
    expect(new Set(hashes).size).toBeGreaterThan(5);
    for (let entries = steps.length; entries >= 0; entries -= 1) {
      expect(hashSnapshot(statement.rollback(entries))).toBe(hashes[entries]);
    }
    expect(statement.snapshot).toBe(committed);
    expect(committed).toEqual(copy);
    expect(hashSnapshot(committed)).toBe(hash);

    const other = engine.begin();
    other.remove('a');
    engine.commit(other, other.token);
    expect(hashSnapshot(engine.snapshot)).not.toBe(hash);
    expect(engine.rollback(committed.version)).toBe(committed);
    expect(engine.snapshot).toEqual(copy);
    expect(() => engine.rollback(77)).toThrowError(expect.objectContaining({ code: 'KVSS_BAD_INPUT' }));
  });

  test('nothing of a snapshot can be changed', () => {
    const snapshot = running('a');
    expect(() => (snapshot.jobs as unknown[]).push(1)).toThrowError(TypeError);
    expect(() => {
      (snapshot.jobs[0]?.pods[0] as { node: string }).node = 'ax-7';
    }).toThrowError(TypeError);
  });

  test('SwDrivers have AX nodes of their own; other pods share them', () => {
    const drivers = driversOf(running('a', 'b', 'c', 'd'));
    expect(new Set(drivers).size).toBe(4);
    const others = podsOf(engine.snapshot).filter(({ pod }) => pod.spec.kind !== 'swdriver');
    expect(others.some(({ node }) => drivers.includes(node))).toBe(true);
  });

  test('without exclusion SwDrivers may share an AX node', () => {
    const loose = new PlacementEngine(cluster, { exclusion: false });
    const statement = loose.begin();
    for (const name of ['a', 'b', 'c', 'd']) statement.place(jobOf(name, 2, '', 4));
    expect(new Set(driversOf(statement.snapshot)).size).toBeLessThan(4);
  });

  test('a ninth SwDriver has no place among eight AX nodes, and the answer says why', () => {
    const small = parseCluster(generateCluster({ ...DEFAULT_SHAPE, boxes: 16, memory: '2TiB', cores: 256 }));
    const engineOfMany = new PlacementEngine(small);
    const statement = engineOfMany.begin();
    for (let job = 0; job < 8; job += 1) statement.place(jobOf(`j${job}`, 1));
    const before = statement.snapshot;
    expect(() => statement.place(jobOf('j8', 1))).toThrowError(
      expect.objectContaining({
        code: 'KVSS_NO_PLACEMENT',
        message: "no placement for 'j8': j8.swdriver.0 has no place: of 8 AX nodes 8 with a SwDriver already",
      }),
    );
    expect(statement.snapshot).toBe(before);
  });

  test('a session gets as many boxes as there are, down to its minimum and no further', () => {
    running('a', 'b', 'c');
    const statement = engine.begin();
    const fewer = statement.place(jobOf('d', 4, ', minimum: 1'));
    expect([fewer.boxes.length, fewer.missingBoxes]).toEqual([2, 2]);
    expect(() => statement.place(jobOf('e', 1))).toThrowError(
      expect.objectContaining({
        code: 'KVSS_NO_PLACEMENT',
        message: "no placement for 'e': boxes that it needs at least: 1, free ones: 0",
      }),
    );
    statement.rollback();
    // In increments of two from two: three of what is wanted are not there.
    expect(statement.place(jobOf('d', 4, ', minimum: 2, increment: 2')).boxes).toHaveLength(2);
    statement.rollback();
    expect(() => statement.place(jobOf('d', 3))).toThrowError(/boxes that it needs at least: 3, free ones: 2/);
  });

  test('a session grows without a pod that runs being moved, and gives back what it got last', () => {
    const before = running('a', 'b');
    const statement = engine.begin();
    const grown = statement.resize('a', 4);
    expect(grown.boxes).toHaveLength(2);
    // Eight shards and two WSE pods; SwDriver and CHF are there.
    expect(grown.placed).toHaveLength(10);
    expect(placesOf(podsOf(grown.after))).toMatchObject(placesOf(podsOf(before)));
    const shrunk = statement.resize('a', 2);
    expect([...shrunk.boxes].sort()).toEqual([...grown.boxes].sort());
    expect(hashSnapshot(shrunk.after)).toBe(hashSnapshot(before));
    expect(() => statement.resize('a', 0)).toThrowError(/0 boxes are fewer than the minimum of its session, 1/);
    expect(() => statement.resize('nobody', 2)).toThrowError(/there is no job 'nobody'/);
  });

  test('a session that shrinks gives back the boxes that use the spine most, and never its first', () => {
    const statement = engine.begin();
    const { boxes } = statement.place(jobOf('a', 3, ', minimum: 1'));
    // Half of the rails are away. The SwDriver has streams to the first box too, so that one uses the spine most.
    for (const node of ['ax-0', 'ax-2', 'ax-4', 'ax-6']) statement.drain(node);
    expect(statement.resize('a', 1).after.jobs[0]?.boxes).toEqual([boxes[0]]);
    statement.rollback(5);
    // One shard of the second box alone crosses.
    const [placed] = statement.snapshot.jobs as [Snapshot['jobs'][0]];
    const onRails = new PlacementEngine({
      ...statement.base,
      jobs: [
        {
          ...placed,
          pods: placed.pods.map(({ pod, node }) => ({
            pod,
            node:
              pod.box === boxes[1] && pod.domain === 0
                ? 'ax-7'
                : pod.domain === undefined || pod.domain < 2
                  ? 'ax-0'
                  : node,
          })),
        },
      ],
    });
    expect(onRails.begin().resize('a', 2).boxes).toEqual([boxes[1]]);
  });

  test('a session grows by increments only', () => {
    const statement = engine.begin();
    statement.place(jobOf('a', 4, ', minimum: 2, increment: 2'));
    expect(() => statement.resize('a', 5)).toThrowError(/from 4 to 5 boxes is no multiple of the increment, 2/);
    expect(statement.resize('a', 6).boxes).toHaveLength(2);
  });

  test('an AX node is drained: its pods go elsewhere, all others stay, and nothing comes back', () => {
    const before = running('a', 'b', 'c');
    const [node] = driversOf(before) as [string];
    const statement = engine.begin();
    const drained = statement.drain(node);
    const leaving = podsOf(before).filter((placed) => placed.node === node);
    expect(leaving.length).toBeGreaterThan(1);
    expect(drained.moves.map(({ pod, from }) => [pod, from])).toEqual(leaving.map(({ pod }) => [pod.name, node]));
    expect(drained.after.jobs.map(({ boxes }) => boxes)).toEqual(before.jobs.map(({ boxes }) => boxes));
    const staying = podsOf(before).filter((placed) => placed.node !== node);
    expect(placesOf(podsOf(drained.after))).toMatchObject(placesOf(staying));
    expect(podsOf(drained.after).some((placed) => placed.node === node)).toBe(false);
    expect(new Set(driversOf(drained.after)).size).toBe(3);
    expect(podsOf(statement.place(jobOf('d', 2)).after).some((placed) => placed.node === node)).toBe(false);
    expect(() => statement.drain(node)).toThrowError(/drained already/);
    expect(() => statement.drain('ax-99')).toThrowError(/there is no AX node 'ax-99'/);
    statement.undrain(node);
    expect(statement.snapshot.drained).toEqual([]);
  });

  test('a drain that has no room for the pods changes nothing', () => {
    const tight = parseCluster(generateCluster({ ...DEFAULT_SHAPE, nodes: 2 }));
    const two = new PlacementEngine(tight);
    const statement = two.begin();
    statement.place(jobOf('a', 2));
    const before = statement.snapshot;
    expect(() => statement.drain('ax-0')).toThrowError(expect.objectContaining({ code: 'KVSS_NO_PLACEMENT' }));
    expect(statement.snapshot).toBe(before);
    expect(statement.journal).toHaveLength(1);
  });

  test('a job is placed anew where that is better, and left alone where it is not', () => {
    const statement = engine.begin();
    // Of two kinds of AX nodes one is away: half of the shards cross the spine.
    for (const node of ['ax-1', 'ax-3', 'ax-5', 'ax-7']) statement.drain(node);
    const across = statement.place(jobOf('a', 2));
    expect(across.score?.[0]).toBe(8 * 2 * (3.125e9 / 8) * 0.5);
    for (const node of ['ax-1', 'ax-3', 'ax-5', 'ax-7']) statement.undrain(node);
    const better = statement.replace('a');
    expect(better.score?.[0]).toBe(0);
    expect(better.moves.length).toBeGreaterThanOrEqual(4);
    expect(better.crossings).toEqual([]);
    // Only what has to leave its AX node does: nothing moves away from where one like it moves to.
    const alike = (pod: string) => pod.replace(/box-\d/, '').replace(/\d$/, '');
    for (const { pod, from } of better.moves) {
      const arriving = better.moves.filter((other) => alike(other.pod) === alike(pod)).map(({ to }) => to);
      expect(arriving).not.toContain(from);
    }
    const again = statement.replace('a');
    expect(again.moves).toEqual([]);
    expect(again.after.jobs).toEqual(better.after.jobs);
  });

  test('a pod that moved for a drain goes back when that is better, and no other one moves with it', () => {
    running('a', 'b', 'c', 'd');
    const statement = engine.begin();
    const [, node] = driversOf(engine.snapshot) as [string, string];
    const drained = statement.drain(node);
    // The AX nodes on the SwDriver's rail have SwDrivers.
    expect(drained.score?.[0]).toBe(5e9 / 8);
    statement.undrain(node);
    const { moves, score } = statement.replace('b');
    expect(moves).toEqual([{ pod: 'b.swdriver.0', from: expect.any(String), to: node }]);
    expect(score?.[0]).toBe(0);
  });

  test('streams that cross the spine are named, one by one, or refused', () => {
    const halves = parseCluster(generateCluster({ ...DEFAULT_SHAPE, boxes: 1, nodes: 1 }));
    const loose = new PlacementEngine(halves).begin();
    const { crossings } = loose.place(jobOf('a', 1));
    expect(crossings).toEqual(
      [2, 3].map((domain) => ({
        pod: `a.kvss.box-0.d${domain}.0`,
        node: 'ax-0',
        box: 'box-0',
        domain,
        boxLeaf: `leaf-${domain}`,
        nodeLeaf: `leaf-${domain - 2}`,
        streams: 2,
        bandwidth: 6.25e9 / 8,
      })),
    );
    const strict = new PlacementEngine(halves, { rejectSpine: true }).begin();
    expect(() => strict.place(jobOf('a', 1))).toThrowError(
      expect.objectContaining({
        code: 'KVSS_SPINE_REFUSED',
        message:
          "'a' would cross the spine, which is refused: " +
          'domain 2 of box-0 reaches a.kvss.box-0.d2.0 on ax-0 over the spine: from leaf-2 to leaf-0, 2 streams, 6.25 Gbps; ' +
          'domain 3 of box-0 reaches a.kvss.box-0.d3.0 on ax-0 over the spine: from leaf-3 to leaf-1, 2 streams, 6.25 Gbps',
      }),
    );
    expect(strict.snapshot.jobs).toEqual([]);
  });

  test('a name is placed once', () => {
    const statement = engine.begin();
    statement.place(jobOf('a', 1));
    expect(() => statement.place(jobOf('a', 1))).toThrowError(/job 'a' is placed already/);
  });

  test('every decision is explained: each AX node, with its score or why it is impossible', () => {
    const statement = engine.begin();
    statement.place(jobOf('a', 2));
    const decision = statement.place(jobOf('b', 2));
    const { boxes, pods } = explain(decision, { exclusion: true, rejectSpine: false });
    expect(boxes[0]).toMatchObject({ names: decision.boxes, verdict: 'chosen' });
    expect(pods.map(({ pod }) => pod)).toEqual(decision.placed.map(({ pod }) => pod.name));
    for (const { pod, node, alternatives } of pods) {
      expect(alternatives.flatMap(({ names }) => names).sort()).toEqual(cluster.nodes.map(({ name }) => name));
      expect(alternatives[0]).toMatchObject({ names: [node], verdict: 'chosen' });
      const placed = decision.placed.map((each) => each);
      for (const { names, verdict, score } of alternatives.slice(1)) {
        const moved = placed.map((each) => (each.pod.name === pod ? { ...each, node: names[0] as string } : each));
        const standing = podsOf(decision.before);
        const taken = decision.after.jobs.flatMap((job) => job.boxes);
        const rules = { exclusion: true, rejectSpine: false };
        expect([pod, names[0], judge(cluster, [], standing, moved, taken, rules)]).toEqual([pod, names[0], score]);
        // The whole placement is the best there is: no single pod can be better elsewhere.
        expect(verdict).toMatch(score ? /^(equal|worse)$/ : /^impossible$/);
      }
    }
    const driver = pods.find(({ pod }) => pod === 'b.swdriver.0');
    expect(driver?.alternatives).toContainEqual({
      names: [driversOf(decision.before)[0]],
      verdict: 'impossible',
      reason: 'has a SwDriver already',
    });
  });
});

test('whatever is tried, a rollback to any step restores what was there, equal in every part and in its hash', () => {
  let steps = 0;
  for (let seed = 1; seed <= 150; seed += 1) {
    const draw = drawFrom(seededRandom(seed));
    const engine = new PlacementEngine(randomCluster(draw));
    const statement = engine.begin();
    const nodeNames = engine.snapshot.cluster.nodes.map(({ name }) => name);
    const some = (names: readonly string[]) => names[draw(0, names.length - 1)] ?? 'none';
    const copies = [structuredClone(statement.snapshot)];
    const hashes = [hashSnapshot(statement.snapshot)];
    for (let step = 0; step < 8; step += 1) {
      const jobNames = statement.snapshot.jobs.map(({ job }) => job.name);
      const acts = [
        () => statement.place(randomJob(`j${step}`, draw)),
        () => statement.resize(some(jobNames), draw(1, 3)),
        () => statement.drain(some(nodeNames)),
        () => statement.undrain(some(nodeNames)),
        () => statement.replace(some(jobNames)),
        () => statement.remove(some(jobNames)),
      ];
      const entries = statement.journal.length;
      try {
        (acts[step < 2 ? 0 : draw(0, acts.length - 1)] as () => unknown)();
      } catch (thrown) {
        expect(thrown).toBeInstanceOf(KvssError);
        // What is refused leaves nothing behind.
        expect(statement.journal).toHaveLength(entries);
        expect(hashSnapshot(statement.snapshot)).toBe(hashes.at(-1));
        continue;
      }
      copies.push(structuredClone(statement.snapshot));
      hashes.push(hashSnapshot(statement.snapshot));
    }
    steps += statement.journal.length;
    for (let entries = statement.journal.length; entries >= 0; entries -= 1) {
      const restored = statement.rollback(entries);
      expect(restored).toEqual(copies[entries]);
      expect(hashSnapshot(restored)).toBe(hashes[entries]);
    }
    expect(statement.snapshot).toBe(engine.snapshot);
  }
  expect(steps).toBeGreaterThan(300);
});

describe('AX nodes that look alike', () => {
  const job = (name: string, pods: string): Job =>
    parseJobs(`jobs: [{ name: ${name}, session: { boxes: 1 }, pods: [${pods}] }]`)[0] as Job;
  const pod = (kind: string, cores = 0) => `{ kind: ${kind}, per: job, cores: ${cores}, memory: 1 }`;

  /** AX nodes n0, n1, ... without NICs, with so much memory each; what runs there, node by node. */
  function withPods(memory: readonly number[], running: readonly string[], cores = 8): PlacementEngine {
    const domains = [['l'], ['l'], ['l'], ['l']];
    const some = {
      leaves: [{ name: 'l', uplink: 1 }],
      spine: { bandwidth: 1 },
      boxes: [0, 1, 2, 3].map((number) => ({ name: `b${number}`, portBandwidth: 1, domains })),
      nodes: memory.map((bytes, number) => ({ name: `n${number}`, cores: cores * 1000, memory: bytes, nics: [] })),
    };
    const jobs = running.map((kind, number) => {
      const runs = job(`r${number}`, pod(kind));
      const pods = podsOfJob(runs, some.boxes[number] as (typeof some.boxes)[0]);
      return { job: runs, boxes: [`b${number}`], pods: pods.map((each) => ({ pod: each, node: `n${number}` })) };
    });
    return new PlacementEngine({ ...emptySnapshot(some), jobs });
  }

  test('a SwDriver there makes a difference', () => {
    const placed = withPods([4, 4], ['swdriver', 'chf'])
      .begin()
      .place(job('x', pod('swdriver'))).placed;
    expect(placed.map(({ node }) => node)).toEqual(['n1']);
  });

  test('a shard there makes a difference', () => {
    const placed = withPods([4, 4], ['kvss', 'chf'])
      .begin()
      .place(job('x', pod('kvss'))).placed;
    expect(placed.map(({ node }) => node)).toEqual(['n1']);
  });

  test('anything there makes a difference', () => {
    const engine = withPods([4, 3], ['chf']);
    const [running] = engine.snapshot.jobs as [Snapshot['jobs'][0]];
    // n0 has 4 and one in use, n1 has 3 and none; and the other way round.
    expect(
      engine
        .begin()
        .place(job('x', pod('wse')))
        .placed.map(({ node }) => node),
    ).toEqual(['n0']);
    const moved = { ...running, pods: running.pods.map((each) => ({ ...each, node: 'n1' })) };
    const other = new PlacementEngine({ ...withPods([3, 4], []).snapshot, jobs: [moved] });
    expect(
      other
        .begin()
        .place(job('x', pod('wse')))
        .placed.map(({ node }) => node),
    ).toEqual(['n1']);
  });

  test('pods that can stay do, though others like them, or AX nodes like theirs, would do as well', () => {
    // Two shards have four AX nodes to choose from, one for each; a CHF pod has a fifth to itself for no reason.
    const engine = withPods([9, 9, 9, 9, 9], [], 2);
    const own = job('x', `${pod('chf')}, { kind: kvss, per: job, count: 2, cores: 2, memory: 1 }`);
    const pods = podsOfJob(own, engine.snapshot.cluster.boxes[0] as Box);
    const nodes: Record<string, string> = { 'x.chf.0': 'n4', 'x.kvss.0': 'n3', 'x.kvss.1': 'n2' };
    const placed = pods.map((each) => ({ pod: each, node: nodes[each.name] as string }));
    const spread = new PlacementEngine({ ...engine.snapshot, jobs: [{ job: own, boxes: ['b0'], pods: placed }] });
    const { moves } = spread.begin().replace('x');
    expect(moves).toHaveLength(1);
    expect(moves[0]).toMatchObject({ pod: 'x.chf.0', from: 'n4', to: expect.stringMatching(/^n[23]$/) });
  });
});

describe('states', () => {
  test('a state file gives back the same snapshot, for random clusters and jobs', () => {
    let jobs = 0;
    for (let seed = 1; seed <= 300; seed += 1) {
      const draw = drawFrom(seededRandom(seed));
      const some = randomCluster(draw);
      const engine = new PlacementEngine(some);
      const statement = engine.begin();
      for (const name of ['a', 'b']) {
        try {
          statement.place(randomJob(name, draw));
          jobs += 1;
        } catch {
          // What has no place is not there; the other one may be.
        }
      }
      const snapshot = engine.commit(statement, statement.token);
      const again = parseState(formatState(snapshot), some);
      expect(again).toEqual(snapshot);
      expect(hashSnapshot(again)).toBe(hashSnapshot(snapshot));
    }
    expect(jobs).toBeGreaterThan(100);
  });

  test('a state of another cluster, or changed by hand, is refused', () => {
    const engine = new PlacementEngine(cluster);
    const statement = engine.begin();
    statement.place(jobOf('a', 2));
    const text = formatState(statement.snapshot);
    const other = parseCluster(generateCluster({ ...DEFAULT_SHAPE, nodes: 9 }));
    expect(() => parseState(text, other)).toThrowError(/its hash does not fit/);
    expect(() => parseState(text.replace('"ax-0"', '"ax-2"'), cluster)).toThrowError(/its hash does not fit/);
    expect(() => parseState(text.replace('"box-0"', '"box-77"'), cluster)).toThrowError(/has box 'box-77'/);
    expect(() => parseState('{ version: 1 }', cluster, 's.json')).toThrowError(/^s.json:1: /);
  });
});
