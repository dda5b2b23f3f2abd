import { parseCluster } from '../../src/cluster/cluster.js';
import { type Job, parseJobs, podsOfBox, podsOfJob } from '../../src/cluster/jobs.js';
import { CALIBRATION, type Calibration } from '../../src/cluster/simulation/calibration.js';
import type { Load } from '../../src/cluster/simulation/load.js';
import type { LoadedJob } from '../../src/cluster/simulation/simulation.js';
import type { PlacedJob } from '../../src/cluster/snapshot.js';

/** Two boxes on four leaves, a node on all leaves, and two on half of them each; 16 cores and 100 Gbps everywhere. */
export const CLUSTER = parseCluster(`
spine: { bandwidth: 800Gbps }
leaves: [${[0, 1, 2, 3].map((leaf) => `{ name: leaf-${leaf}, uplink: 400Gbps }`).join(', ')}]
boxes: [${[0, 1].map((box) => `{ name: box-${box}, portBandwidth: 100Gbps, domains: [[leaf-0], [leaf-1], [leaf-2], [leaf-3]] }`).join(', ')}]
nodes:
  - { name: all, cores: 16, memory: 1TiB, nics: [${[0, 1, 2, 3].map(nic).join(', ')}] }
  - { name: low, cores: 16, memory: 1TiB, nics: [${[0, 1].map(nic).join(', ')}] }
  - { name: high, cores: 16, memory: 1TiB, nics: [${[2, 3].map(nic).join(', ')}] }
`);

function nic(leaf: number): string {
  return `{ leaf: leaf-${leaf}, bandwidth: 100Gbps }`;
}

/** A job on one box with a SwDriver and a KVSS shard for each domain, with so many streams of this bandwidth. */
export function jobNamed(name: string, stream = '100Gbps', count = 1): Job {
  const [job] = parseJobs(`
jobs:
  - name: ${name}
    session: { boxes: 1 }
    pods:
      - { kind: swdriver, cores: 1, memory: 1GiB }
      - { kind: kvss, cores: 1, memory: 1GiB, streams: { bandwidth: ${stream}, count: ${count} } }
`);
  return job as Job;
}

/** The job on a box, its SwDriver on one node and its shards on another. */
export function placedAt(job: Job, boxName: string, driver: string, shards: string): PlacedJob {
  const box = CLUSTER.boxes.find(({ name }) => name === boxName);
  if (!box) throw new Error(`no box ${boxName}`);
  const pods = [...podsOfJob(job, box), ...podsOfBox(job, box)];
  return {
    job,
    boxes: [boxName],
    pods: pods.map((pod) => ({ pod, node: pod.spec.kind === 'swdriver' ? driver : shards })),
  };
}

/** Prompts one after another, of 1,024 tokens and as many tokens of output. */
export function loadOf(load: Partial<Load> = {}): Load {
  return {
    model: 'llama-3.1-8b',
    text: 'chat',
    launchS: 0,
    concurrency: 1,
    promptTokens: { min: 1_024, max: 1_024 },
    outputTokens: 1_024,
    cachedShare: 0,
    evicts: false,
    hio: 'latency',
    ...load,
  };
}

export function loaded(placed: PlacedJob, load: Partial<Load> = {}): LoadedJob {
  return { placed, load: loadOf(load) };
}

/** The calibration with a Llama whose steps are all alike, 2 tokens in 1 ms, 50,000 tokens of prefill a second, and fast engines. */
export const PLAIN: Calibration = {
  ...CALIBRATION,
  kvss: { spinningThreads: 1, bytesPerSecond: 1e11 },
  models: {
    ...CALIBRATION.models,
    'llama-3.1-8b': {
      stepMs: 1,
      stepGrowthPerToken: 0,
      prefillTokensPerSecond: 50_000,
      stepsPerSecond: 20_000,
      bytesPerToken: 100_000,
      acceptance: {
        fuzz: { tokensPerStep: 2, spread: 0, repetitiveShare: 0, repetitiveTokensPerStep: 0 },
        chat: { tokensPerStep: 2, spread: 0, repetitiveShare: 0, repetitiveTokensPerStep: 0 },
      },
    },
  },
};
