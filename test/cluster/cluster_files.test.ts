import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { type Cluster, parseCluster, readCluster } from '../../src/cluster/cluster.js';
import { DEFAULT_SHAPE, generateCluster } from '../../src/cluster/generate.js';
import { type Job, parseJobs, podsOfBox, podsOfJob, readJobs } from '../../src/cluster/jobs.js';
import { refusal } from '../refusal.js';

const example = (name: string) => new URL(`../../examples/clusters/${name}`, import.meta.url).pathname;
const clusterText = readFileSync(example('rails-8x8.yaml'), 'utf8');
const jobsText = readFileSync(example('prompt-caching-jobs.yaml'), 'utf8');

/** The text with one thing replaced, and the number of the line where that stands. */
function replaced(text: string, old: string, by: string): { text: string; line: number } {
  expect(text).toContain(old);
  return { text: text.replace(old, by), line: text.slice(0, text.indexOf(old)).split('\n').length };
}

describe('cluster files', () => {
  test('the example is the cluster of 8 boxes and 8 AX nodes, as it is generated', () => {
    const cluster = readCluster(example('rails-8x8.yaml'));
    expect(clusterText).toBe(generateCluster(DEFAULT_SHAPE));
    expect(cluster.boxes).toHaveLength(8);
    expect(cluster.nodes).toHaveLength(8);
    expect(cluster.leaves).toHaveLength(4);
    expect(cluster.spine.bandwidth).toBe(200e9);
    expect(cluster.boxes[0]).toEqual({
      name: 'box-0',
      portBandwidth: 12.5e9,
      domains: [['leaf-0'], ['leaf-1'], ['leaf-2'], ['leaf-3']],
    });
    expect(cluster.nodes[1]).toEqual({
      name: 'ax-1',
      cores: 64_000,
      memory: 512 * 2 ** 30,
      nics: [
        { leaf: 'leaf-2', bandwidth: 12.5e9 },
        { leaf: 'leaf-3', bandwidth: 12.5e9 },
      ],
    });
  });

  test.each([
    [1, 1],
    [17, 5],
    [40, 100],
  ])('generates %i boxes and %i AX nodes', (boxes, nodes) => {
    const cluster = parseCluster(generateCluster({ ...DEFAULT_SHAPE, boxes, nodes, ports: 3 }));
    expect(cluster.boxes).toHaveLength(boxes);
    expect(cluster.nodes).toHaveLength(nodes);
    expect(cluster.leaves).toHaveLength(4 * Math.ceil(boxes / 16));
    // Every group of boxes gets its part of the AX nodes, when there are enough.
    const withNodes = new Set(cluster.nodes.flatMap(({ nics }) => nics.map(({ leaf }) => leaf)));
    if (nodes >= 2 * Math.ceil(boxes / 16)) expect(withNodes.size).toBe(cluster.leaves.length);
  });

  test.each([
    [
      'an unknown key',
      'spine: { bandwidth: 1600Gbps }',
      'spine: { bandwith: 1600Gbps }',
      "unknown key 'spine.bandwith'",
    ],
    [
      'a rail that does not exist',
      '[[leaf-0], [leaf-1], [leaf-2], [leaf-3]]',
      '[[leaf-0], [leaf-1], [leaf-2], [leaf-9]]',
      "'boxes.0.domains.3.0': there is no rail 'leaf-9': the leaves are leaf-0 to leaf-3",
    ],
    [
      'a NIC on a rail that does not exist',
      '{ leaf: leaf-2, bandwidth',
      '{ leaf: leaf-7, bandwidth',
      "'nodes.1.nics.0.leaf': there is no rail 'leaf-7': the leaves are leaf-0 to leaf-3",
    ],
    ['a name that is there twice', 'name: box-5', 'name: box-4', "'boxes.5.name': 'box-4' is there twice"],
    [
      'negative memory',
      'memory: 512GiB',
      'memory: -1GiB',
      "'nodes.0.memory': '-1GiB' is not a size; write for example 268435456, 256MiB or 1.5GB",
    ],
    ['negative cores', 'cores: 64', 'cores: -1', "'nodes.0.cores': Too small: expected number to be >=0"],
    [
      'no bandwidth',
      'uplink: 400Gbps',
      'uplink: 400GbE',
      "'leaves.0.uplink': '400GbE' is not a bandwidth; write for example 25Gbps, 3.2GB/s or 3200000000",
    ],
    [
      'three domains',
      '[[leaf-0], [leaf-1], [leaf-2], [leaf-3]]',
      '[[leaf-0], [leaf-1], [leaf-2]]',
      "'boxes.0.domains': a box has 4 domains",
    ],
    [
      'a name that Kubernetes would not take',
      'name: ax-3',
      'name: AX_3',
      "'nodes.3.name': must be lower-case letters, digits and dashes, such as ax-3",
    ],
    ['a key that is there twice', 'memory: 512GiB', 'memory: 512GiB, memory: 512GiB', 'Map keys must be unique'],
    [
      'a key that is missing',
      ', memory: 512GiB',
      '',
      "'nodes.0.memory': Invalid input: expected string, received undefined",
    ],
  ])('%s is refused with its line and cause', (_, old, by, cause) => {
    const { text, line } = replaced(clusterText, old, by);
    expect(refusal(() => parseCluster(text, 'cluster.yaml'))).toBe(`cluster.yaml:${line}: ${cause}`);
  });

  test('what is no YAML, no map, or not there is refused', () => {
    expect(refusal(() => parseCluster('leaves: [', 'c.yaml'))).toMatch(/^c.yaml:1: /);
    expect(refusal(() => parseCluster('- 1', 'c.yaml'))).toMatch(/^c.yaml:1: '\(top level\)': .*object/);
    expect(refusal(() => parseCluster('', 'c.yaml'))).toMatch(/^c.yaml:1: 'leaves': /);
    expect(refusal(() => readCluster('/nowhere/c.yaml'))).toMatch(/^cannot read \/nowhere\/c.yaml: ENOENT/);
  });
});

describe('jobs files', () => {
  const cluster = readCluster(example('rails-8x8.yaml'));

  test('the example has four jobs of two boxes', () => {
    const jobs = readJobs(example('prompt-caching-jobs.yaml'), cluster);
    expect(jobs.map(({ name }) => name)).toEqual(['chat', 'code', 'search', 'agents']);
    expect(jobs[0]?.session).toEqual({ boxes: 2, minimum: 1, increment: 1 });
    // 25 Gbps a box for the pieces of columns.
    const [box] = cluster.boxes as [Cluster['boxes'][0]];
    const shards = podsOfBox(jobs[0] as Job, box).filter(({ spec }) => spec.kind === 'kvss');
    expect(shards.flatMap(({ streams }) => streams).reduce((sum, { bandwidth }) => sum + bandwidth, 0)).toBe(25e9 / 8);
  });

  test('pods are there for the job, for its boxes and for their domains, with streams to those', () => {
    const [job] = parseJobs(
      `jobs:
  - name: j
    session: { boxes: 1 }
    pods:
      - { kind: swdriver, cores: 0.5, memory: 1GiB, streams: { bandwidth: 8Gbps, domains: [1] } }
      - { kind: kvss, count: 2, cores: 1, memory: 1GiB, streams: { count: 2, bandwidth: 1Gbps } }
      - { kind: kvss, per: box, cores: 1, memory: 1GiB, streams: { bandwidth: 1Gbps } }`,
    ) as [Job];
    const [a, b, c, d] = [['l0', 'l1', 'l2'], ['l3'], ['l4'], ['l5']];
    const box = { name: 'b', portBandwidth: 1, domains: [a, b, c, d] as string[][] };
    expect(podsOfJob(job, box).map(({ name, streams }) => [name, streams])).toEqual([
      ['j.swdriver.0', [{ box: 'b', domain: 1, port: 0, leaf: 'l3', bandwidth: 1e9 }]],
    ]);
    const pods = podsOfBox(job, box);
    expect(pods.map(({ name }) => name)).toEqual([
      ...[0, 1, 2, 3].flatMap((domain) => [`j.kvss.b.d${domain}.0`, `j.kvss.b.d${domain}.1`]),
      'j.kvss2.b.0',
    ]);
    // Two shards of two streams take the three ports of the domain in turn.
    expect(pods.slice(0, 2).map(({ streams }) => streams.map(({ port }) => port))).toEqual([
      [0, 1],
      [2, 0],
    ]);
    expect(pods.at(-1)?.streams.map(({ leaf }) => leaf)).toEqual(['l0', 'l3', 'l4', 'l5']);
    expect(pods[0]?.spec.cores).toBe(1000);
  });

  test.each([
    ['an unknown key', 'increment: 1', 'inc: 1', "unknown key 'jobs.0.session.inc'"],
    [
      'a job larger than the cluster',
      '{ boxes: 2, minimum: 1, increment: 1 }',
      '{ boxes: 12 }',
      "'jobs.0.session.boxes': 12 boxes at least, the cluster has 8",
    ],
    [
      'a pod larger than an AX node',
      'memory: 64GiB',
      'memory: 1TiB',
      "'jobs.0.pods.0.memory': 1.00 TiB, the largest AX node has 512.0 GiB",
    ],
    [
      'a pod with more cores than an AX node',
      'cores: 16',
      'cores: 65',
      "'jobs.0.pods.0.cores': 65 cores, the largest AX node has 64",
    ],
    [
      'negative memory',
      'memory: 16GiB',
      'memory: -5',
      "'jobs.0.pods.2.memory': '-5' is not a size; write for example 268435456, 256MiB or 1.5GB",
    ],
    [
      'a minimum above what is wanted',
      'minimum: 1',
      'minimum: 3',
      "'jobs.0.session.minimum': 3 is more than the 2 boxes that are wanted",
    ],
    [
      'an increment that does not lead there',
      'increment: 1',
      'increment: 2',
      "'jobs.0.session.minimum': from 1 to 2 boxes is no multiple of the increment, 2",
    ],
    [
      'a kind that does not exist',
      'kind: chf',
      'kind: chef',
      '\'jobs.0.pods.2.kind\': Invalid option: expected one of "swdriver"|"kvss"|"chf"|"wse"',
    ],
    [
      'a domain that does not exist',
      'domains: [0]',
      'domains: [4]',
      "'jobs.0.pods.0.streams.domains.0': a box has domains 0 to 3",
    ],
    [
      'domains of a pod of a domain',
      'streams: { count: 2,',
      'streams: { domains: [1], count: 2,',
      "'jobs.0.pods.1.streams.domains': a pod of a domain has streams to that one",
    ],
    ['a name that is there twice', 'name: code', 'name: chat', "'jobs.1.name': 'chat' is there twice"],
  ])('%s is refused with its line and cause', (_, old, by, cause) => {
    const { text, line } = replaced(jobsText, old, by);
    expect(refusal(() => parseJobs(text, 'jobs.yaml', cluster))).toBe(`jobs.yaml:${line}: ${cause}`);
  });
});
