import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { DEFAULT_SHAPE, generateCluster } from '../../src/cluster/generate.js';
import { kvss, Scratch } from '../e2e/support.js';

const example = (name: string) => new URL(`../../examples/clusters/${name}`, import.meta.url).pathname;
const CLUSTER = example('rails-8x8.yaml');
const JOBS = example('prompt-caching-jobs.yaml');

const placement = (...args: string[]) => kvss('plan', 'placement', '--cluster', CLUSTER, ...args);

async function json(...args: string[]) {
  const { code, stdout, stderr } = await placement('--json', ...args);
  expect(stderr).toBe('');
  expect(code).toBe(0);
  return JSON.parse(stdout);
}

describe('kvss plan cluster', () => {
  test('prints a cluster of any size that kvss plan placement takes', async () => {
    using scratch = new Scratch();
    const { code, stdout } = await kvss('plan', 'cluster', '--boxes', '40', '--ax-nodes', '60', '--memory', '1TiB');
    expect(code).toBe(0);
    expect(stdout.match(/name: box-/g)).toHaveLength(40);
    expect(stdout.match(/name: ax-.* memory: 1TiB/g)).toHaveLength(60);
    const file = scratch.file('c.yaml', stdout);
    const placed = await kvss('plan', 'placement', '--cluster', file, '--jobs', JOBS);
    expect(placed.stdout).toMatch(/^40 boxes, 60 AX nodes, 12 leaves\n/);
    expect((await kvss('plan', 'cluster')).stdout).toBe(readFileSync(CLUSTER, 'utf8'));
  });

  test('refuses what is no size', async () => {
    const { code, stderr } = await kvss('plan', 'cluster', '--memory', '-5GiB');
    expect(code).toBe(1);
    expect(stderr).toMatch(/^kvss: generated:\d+: 'nodes.0.memory': '-5GiB' is not a size/);
  });
});

describe('kvss plan placement', () => {
  test('places the example: four jobs, no stream across the spine, SwDrivers apart, all of it proven', async () => {
    const report = await json('--jobs', JOBS);
    expect(report.decisions.map((each: { subject: string }) => each.subject)).toEqual([
      'chat',
      'code',
      'search',
      'agents',
    ]);
    for (const { score, bound, provenLevels, crossings, candidates } of report.decisions) {
      expect(score).toMatchObject({ spineBytesPerSecond: 0, uplinkShare: 0 });
      expect(bound).toEqual(score);
      expect(provenLevels).toHaveLength(4);
      expect(crossings).toEqual([]);
      expect(candidates).toBeGreaterThan(0);
    }
    const pods = report.jobs.flatMap((job: { pods: { kind: string; node: string }[] }) => job.pods);
    expect(pods).toHaveLength(48);
    const drivers = pods.filter((pod: { kind: string }) => pod.kind === 'swdriver');
    expect(new Set(drivers.map((pod: { node: string }) => pod.node)).size).toBe(4);
    const { stdout } = await placement('--jobs', JOBS, '--explain');
    expect(stdout).toMatch(/^place chat +2 +12 +0 +0 +0\.0 % +3 +4 +proven/m);
    expect(stdout).toMatch(/^why place code$/m);
    expect(stdout).toMatch(/^ {4}ax-\d: has a SwDriver already$/m);
    const together = await json('--jobs', JOBS, '--no-exclusion');
    const fragmentation = together.decisions.at(-1).score.fragmentation;
    expect(fragmentation).toBeLessThan(report.decisions.at(-1).score.fragmentation);
  });

  test('keeps a state: what runs stays while sessions grow and shrink and AX nodes are drained', async () => {
    using scratch = new Scratch();
    const state = join(scratch.path, 'state.json');
    const lone = scratch.file('jobs.yaml', readFileSync(JOBS, 'utf8').split('  - name: search')[0] as string);
    const first = await json('--jobs', lone, '--state', state);
    expect(first.version).toBe(1);
    const written = readFileSync(state, 'utf8');

    const idea = await json('--state', state, '--resize', 'chat=4', '--what-if');
    expect(idea.jobs[0].boxes).toHaveLength(4);
    expect(readFileSync(state, 'utf8')).toBe(written);

    const driver = first.jobs[0].pods.find((pod: { kind: string }) => pod.kind === 'swdriver').node;
    const second = await json('--state', state, '--jobs', lone, '--resize', 'chat=4', '--drain', driver);
    expect(second.version).toBe(2);
    const [grown, drained] = second.decisions;
    expect(grown).toMatchObject({ operation: 'grow', moves: [] });
    expect(drained.moves.length).toBeGreaterThan(0);
    expect(second.jobs.map((job: { name: string }) => job.name)).toEqual(['chat', 'code']);
    expect(second.drained).toEqual([driver]);

    const third = await json('--state', state, '--undrain', driver, '--resize', 'chat=2', '--remove', 'code');
    expect(third.jobs).toHaveLength(1);
    expect(third.jobs[0].boxes).toEqual(first.jobs[0].boxes);
    expect(JSON.parse(readFileSync(state, 'utf8')).version).toBe(3);

    // Nothing is written where one thing of several is refused.
    const before = readFileSync(state, 'utf8');
    const { code, stderr } = await placement('--state', state, '--resize', 'chat=3', '--drain', 'ax-99');
    expect([code, stderr]).toEqual([1, "kvss: there is no AX node 'ax-99' [KVSS_BAD_INPUT]\n"]);
    expect(readFileSync(state, 'utf8')).toBe(before);
  });

  test('warns of streams across the spine, and refuses them where that is asked for', async () => {
    using scratch = new Scratch();
    const cluster = scratch.file('c.yaml', generateCluster({ ...DEFAULT_SHAPE, boxes: 2, nodes: 1, uplink: '5Gbps' }));
    const jobs = scratch.file('j.yaml', readFileSync(JOBS, 'utf8').split('  - name: code')[0] as string);
    const args = ['plan', 'placement', '--cluster', cluster, '--jobs', jobs];
    const warned = await kvss(...args);
    expect(warned.code).toBe(0);
    expect(warned.stderr.trim().split('\n')).toContain(
      'kvss: warning: domain 2 of box-0 reaches chat.kvss.box-0.d2.0 on ax-0 over the spine: from leaf-2 to leaf-0, 2 streams, 6.25 Gbps',
    );
    expect(warned.stderr).toMatch(
      /^kvss: warning: the uplink of leaf-2 carries 5 Gbps, streams may ask for 6.25 Gbps$/m,
    );
    const state = join(scratch.path, 'state.json');
    const refused = await kvss(...args, '--reject-spine', '--state', state);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(
      /^kvss: 'chat' would cross the spine, which is refused: domain 2 of box-0 reaches chat\.kvss\.box-0\.d2\.0 on ax-0 .* \[KVSS_SPINE_REFUSED\]\n$/,
    );
    expect(existsSync(state)).toBe(false);
  });

  test('writes a picture and manifests, and no manifests for a what-if', async () => {
    using scratch = new Scratch();
    const svg = join(scratch.path, 'cluster.svg');
    const manifests = join(scratch.path, 'manifests');
    await json('--jobs', JOBS, '--what-if', '--svg', svg, '--manifests', manifests);
    expect(readFileSync(svg, 'utf8')).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    expect(existsSync(manifests)).toBe(false);
    await json('--jobs', JOBS, '--manifests', manifests);
    expect(readdirSync(manifests).sort()).toEqual(['agents.yaml', 'chat.yaml', 'code.yaml', 'search.yaml']);
  });

  test.each([
    ['an unknown key', 'increment: 1', 'step: 1', /j\.yaml:5: unknown key 'jobs\.0\.session\.step'/],
    [
      'a job larger than the cluster',
      '{ boxes: 2, minimum: 1, increment: 1 }',
      '{ boxes: 9 }',
      /j\.yaml:5: .*9 boxes at least, the cluster has 8/,
    ],
    [
      'negative memory',
      'memory: 64GiB',
      'memory: -64GiB',
      /j\.yaml:7: 'jobs\.0\.pods\.0\.memory': '-64GiB' is not a size/,
    ],
  ])('%s names the line and the cause', async (_, old, by, message) => {
    using scratch = new Scratch();
    const jobs = scratch.file('j.yaml', readFileSync(JOBS, 'utf8').replace(old, by));
    const { code, stderr, stdout } = await placement('--jobs', jobs);
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toMatch(message);
    expect(stderr).toMatch(/ \[KVSS_BAD_INPUT\]\n$/);
  });

  test('a rail that does not exist names the line and the cause', async () => {
    using scratch = new Scratch();
    const cluster = scratch.file('c.yaml', readFileSync(CLUSTER, 'utf8').replace('[leaf-3]]', '[leaf-4]]'));
    const { code, stderr } = await kvss('plan', 'placement', '--cluster', cluster, '--jobs', JOBS);
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /c\.yaml:9: 'boxes\.0\.domains\.3\.0': there is no rail 'leaf-4': the leaves are leaf-0 to leaf-3/,
    );
  });

  test('says what makes no sense', async () => {
    for (const [args, message] of [
      [[], /nothing to place: give --jobs, or --state/],
      [['--jobs', JOBS, '--resize', 'chat'], /'chat' is not JOB=BOXES/],
      [['--jobs', JOBS, '--resize', 'nobody=3'], /there is no job 'nobody'/],
      [['--jobs', '/nowhere.yaml'], /cannot read \/nowhere\.yaml/],
      [['--jobs', JOBS, '--svg', '/nowhere/x.svg'], /cannot write \/nowhere\/x\.svg/],
    ] as [string[], RegExp][]) {
      const { code, stderr } = await placement(...args);
      expect(code).toBeGreaterThan(0);
      expect(stderr).toMatch(message);
    }
  });
});
