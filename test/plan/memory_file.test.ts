import { expect, test } from 'vitest';
import { parseMemoryFile } from '../../src/plan/memory_file.js';
import { compareSplits } from '../../src/plan/split_comparison.js';
import { configOf, refusal } from './fixtures.js';

const NODES = [
  { name: 'a', memory: '8GiB' },
  { name: 'b', memory: '8GiB' },
];
const job = (fields: object = {}) => ({ name: 'j', boxes: 1, bytesPerToken: [2, 1], ...fields });
const file = (fields: object = {}, jobs: object[] = [job()]) => ({ boxes: 4, nodes: NODES, jobs, ...fields });
const read = (input: unknown) => parseMemoryFile(input, 'plan.yaml', (path) => configOf(path.replace('.json', '')));

test('the shards of a box are on one node, box after box, unless nodes are named', () => {
  const two = job({ name: 'two', boxes: 2, bytesPerToken: [2, 1, 4, 3] });
  const named = job({ name: 'named', nodes: ['b', 'a'] });
  const { jobs, empty } = read(file({}, [job(), two, named]));
  expect(jobs.map(({ shards }) => shards.map(({ node }) => node))).toEqual([
    [0, 0],
    [1, 1, 0, 0],
    [1, 0],
  ]);
  expect(empty.rules).toEqual({ boxes: 4, incrementBytes: 2 ** 30, floorBytes: 2 ** 30, firstGrantShare: 0.5 });
});

test('a job is a model and how it lies on its boxes', () => {
  const model = { config: 'llama_3_1_8b.json', dtype: 'fp8', streams: [10, 6, 4, 4], unit: 'head' };
  const { jobs } = read(file({}, [{ name: 'j', boxes: 1, model }]));
  // 256 heads of 256 bytes.
  expect(jobs[0]?.shards.map(({ bytesPerToken }) => bytesPerToken / 256)).toEqual([107, 64, 43, 42]);
});

test('naive and fair shares side by side', () => {
  const input = file({ increment: '1MiB', firstGrant: 0.25 }, [
    job({ boxes: 2, bytesPerToken: [3, 1], nodes: ['a', 'a'] }),
    job({ name: 'k', boxes: 2, bytesPerToken: [1, 1], nodes: ['b', 'b'] }),
  ]);
  const { empty, jobs } = read(input);
  const comparison = compareSplits(empty, jobs);
  const MiB = 2 ** 20;
  // Each has a node for itself. Half of it for three quarters of the bytes: two thirds are left.
  expect(comparison.jobs.map(({ equalTokens }) => equalTokens)).toEqual([Math.floor((4_096 * MiB) / 3), 4_096 * MiB]);
  expect(comparison.jobs.map(({ fairTokens }) => fairTokens)).toEqual([2_048 * MiB, 4_096 * MiB]);
  // Floors of 1 MiB come off first, so a quarter is taken of a little more: nothing of it is lost to rounding here.
  expect(comparison.jobs.map(({ firstTokens }) => firstTokens)).toEqual([512 * MiB, 1_024 * MiB]);
  const waste = comparison.jobs[0]?.shards.map(({ equalWasteBytes, fairWasteBytes }) => [
    equalWasteBytes,
    fairWasteBytes,
  ]);
  expect(waste).toEqual([
    [1, 0],
    [4_096 * MiB - Math.floor((4_096 * MiB) / 3), 0],
  ]);
  expect(comparison.nodes.map(({ fairFreeBytes }) => fairFreeBytes)).toEqual([0, 0]);
});

test.each<[what: RegExp, input: unknown]>([
  [/'job'/, { ...file(), job: [] }],
  [/'boxes'/, file({ boxes: 0 })],
  [/'nodes.0.memory': '-8GiB' is not a size/, file({ nodes: [{ name: 'a', memory: '-8GiB' }] })],
  [/'nodes.0.memory': more than 1 PiB/, file({ nodes: [{ name: 'a', memory: '2000TiB' }] })],
  [/'nodes.1.name': 'a' is there twice/, file({ nodes: [NODES[0], NODES[0]] })],
  [/'nodes'/, file({ nodes: [] })],
  [/'increment': '0'/, file({ increment: 0 })],
  [/'firstGrant'/, file({ firstGrant: 1.5 })],
  [/'floor': 5 bytes are no multiple of 1073741824/, file({ floor: 5 })],
  [/'jobs.0.bytesPerToken': a job has either this or 'model'/, file({}, [{ name: 'j', boxes: 1 }])],
  [/'jobs.0.bytesPerToken.1'/, file({}, [job({ bytesPerToken: [1, 0] })])],
  [/'jobs.0.bytes'/, file({}, [job({ bytes: 1 })])],
  [/'jobs.0.nodes.1': there is no node 'c'/, file({}, [job({ nodes: ['a', 'c'] })])],
  [/'jobs.0.nodes': 1 nodes for 2 shards/, file({}, [job({ nodes: ['a'] })])],
  [/'jobs.0.nodes': missing: 2 shards are not as many on each of 3 boxes/, file({}, [job({ boxes: 3 })])],
  [/'jobs.0.model.streams.0'/, file({}, [{ name: 'j', boxes: 1, model: { config: 'x', streams: [0, 1, 1, 1] } }])],
  [
    /'jobs.0.model': nothing lies on domain 2 of box 0/,
    file({ boxes: 31 }, [{ name: 'j', boxes: 31, model: { config: 'deepseek_v3.json' } }]),
  ],
  [
    /'jobs.0.model': options: 'dtype': 'fp5' is no dtype/,
    file({}, [{ name: 'j', boxes: 1, model: { config: 'llama_3_1_8b.json', dtype: 'fp5' } }]),
  ],
])('a file that makes no sense is refused: %s', (what, input) => {
  const message = refusal(() => read(input));
  expect(message).toMatch(what);
  expect(message).toMatch(/^KVSS_BAD_INPUT (plan.yaml: (unknown key )?'|memory plan: ')/);
});

test('a job with more boxes than there are is refused by its name', () => {
  const { empty, jobs } = read(file({}, [job({ boxes: 5, bytesPerToken: [1, 1, 1, 1, 1] })]));
  expect(refusal(() => compareSplits(empty, jobs))).toMatch(/job 'j': 'boxes': 5, and 4 of the 4 .* are free/);
});
