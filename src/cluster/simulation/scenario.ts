import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { parseYaml, readText } from '../../common/yaml_file.js';
import { type Box, type Cluster, readCluster } from '../cluster.js';
import { type Job, POD_KINDS, type PodKind, podsOfBox, podsOfJob, readJobs } from '../jobs.js';
import type { PlacedJob } from '../snapshot.js';
import { MODELS, TEXTS } from './calibration.js';
import type { Load } from './load.js';

const MAX_SECONDS = 1e6;
const MAX_PROMPTS = 1e6;
const MAX_TOKENS = 1e7;

const seconds = z.number().min(0).max(MAX_SECONDS);
const tokens = z.number().int().min(1).max(MAX_TOKENS);

/** What people write for a load; Load says what the keys mean. */
const loadSchema = z
  .strictObject({
    model: z.enum(MODELS),
    text: z.enum(TEXTS),
    launchS: seconds.default(0),
    runS: seconds.optional(),
    prompts: z.number().int().min(1).max(MAX_PROMPTS).optional(),
    concurrency: z.number().int().min(1).max(4_096).default(1),
    /** One length, or the shortest and the longest. */
    promptTokens: z.union([
      tokens.transform((each) => ({ min: each, max: each })),
      z.strictObject({ min: tokens, max: tokens }),
    ]),
    outputTokens: tokens,
    cachedShare: z.number().min(0).max(1, 'is more than the whole prompt').default(0),
    evicts: z.boolean().default(false),
    schemas: z.number().int().min(1).max(MAX_PROMPTS).optional(),
    hio: z.enum(['latency', 'buffered']).default('latency'),
  })
  .superRefine(({ promptTokens: { min, max } }, context) => {
    if (min > max) context.addIssue({ code: 'custom', path: ['promptTokens'], message: `${min} is more than ${max}` });
  });

/** Figures of tokens a second, one number for each prompt. */
export const FIGURES = ['avg', 'std', 'min', 'p1', 'p5', 'p50', 'p99', 'max'] as const;
export type Figure = (typeof FIGURES)[number];

const documentsSchema = z.partialRecord(z.enum(FIGURES), z.number().min(0));

const rowSchema = z
  .strictObject({
    /** Of these jobs, all prompts together. */
    jobs: z.array(z.string()).min(1),
    /** Tokens a second while output is generated, or of prompt and output from begin to end. */
    speed: z.enum(['generation', 'total']).default('generation'),
    /** Each job on the cluster by itself. */
    alone: z.boolean().default(false),
    /** Only prompts that overlap with the prompts of one of these jobs. */
    during: z.array(z.string()).min(1).optional(),
    /** What the source documents have. The simulation does not look at it. */
    documents: documentsSchema.optional(),
    /** The calibration was fitted to what the documents have here. */
    fitted: z.boolean().default(false),
  })
  .superRefine(({ alone, during }, context) => {
    if (alone && during) {
      context.addIssue({ code: 'custom', path: ['during'], message: 'a job that is alone has nothing beside it' });
    }
  });

/** YAML takes a bare on or off for a text. */
const onOff = z.union([z.boolean(), z.enum(['on', 'off']).transform((text) => text === 'on')]);

/** One AX node for all pods of the kind, or one for each: those of the first box first, by domain. */
const nodesOfKind = z.union([z.string().transform((node) => [node]), z.array(z.string()).min(1)]);

const explicitSchema = z.strictObject({
  boxes: z.array(z.string()).min(1),
  nodes: z.partialRecord(z.enum(POD_KINDS), nodesOfKind),
});

const scenarioSchema = z.strictObject({
  title: z.string().min(1).max(120),
  /** Files of the cluster and of its jobs, from the folder of this one. */
  cluster: z.string().min(1),
  jobs: z.string().min(1),
  durationS: seconds.positive(),
  placement: z
    .strictObject({
      /** Whether SwDrivers that the placement engine places keep off each other's nodes. */
      exclusion: onOff.default(true),
      /** Jobs that it does not place, by name. */
      explicit: z.record(z.string(), explicitSchema).default({}),
    })
    .default({ exclusion: true, explicit: {} }),
  loads: z.record(z.string(), loadSchema),
  figures: z.array(rowSchema).min(1),
});

/** A row of the figures that a scenario asks for. */
export type FigureRow = z.output<typeof rowSchema>;
/** A cluster, its jobs and what they do. */
export interface Scenario {
  /** The file it is from. */
  readonly source: string;
  readonly title: string;
  readonly cluster: Cluster;
  readonly jobs: readonly Job[];
  readonly durationS: number;
  readonly placement: {
    /** Whether SwDrivers that the engine places keep off each other's nodes. */
    readonly exclusion: boolean;
    /** Jobs that the engine does not place. */
    readonly explicit: readonly PlacedJob[];
  };
  /** By the name of the job; every job has one. */
  readonly loads: Readonly<Record<string, Load>>;
  readonly rows: readonly FigureRow[];
}

type Refuse = (path: readonly PropertyKey[], cause: string) => Error;

/**
 * Reads the YAML file of a scenario, with the files that it names. Throws KVSS_BAD_INPUT with file, line, key and cause for
 * what is unknown or out of range, and for a job, box, pod or AX node that does not exist.
 */
export function readScenario(path: string): Scenario {
  const { value, bad } = parseYaml(readText(path), path, scenarioSchema);
  const { placement, loads, figures } = value;
  const cluster = readCluster(resolve(dirname(path), value.cluster));
  const jobs = readJobs(resolve(dirname(path), value.jobs), cluster);
  const jobsByName = new Map(jobs.map((job) => [job.name, job]));
  const job = (name: string, at: readonly PropertyKey[]): Job => {
    const known = jobsByName.get(name);
    if (!known) throw bad(at, `there is no job '${name}' in ${value.jobs}`);
    return known;
  };
  for (const { name, pods } of jobs) {
    const load = Object.hasOwn(loads, name) ? loads[name] : undefined;
    if (!load) throw bad(['loads'], `job '${name}' of ${value.jobs} has none`);
    const drivers = pods.reduce((sum, { kind, count }) => sum + (kind === 'swdriver' ? count : 0), 0);
    if (drivers !== 1)
      throw bad(['jobs'], `job '${name}' has ${drivers} SwDriver pods; a job that is simulated has one`);
    if (pods.some(({ kind, per }) => kind === 'swdriver' && per !== 'job')) {
      throw bad(['jobs'], `job '${name}' has its SwDriver not once for the whole job`);
    }
    const moves = load.evicts || load.cachedShare > 0;
    if (moves && !pods.some(({ kind, per, streams }) => kind === 'kvss' && per === 'domain' && streams)) {
      throw bad(
        ['loads', name],
        `evicts and refills need KVSS pods of the domains, with streams; job '${name}' has none`,
      );
    }
  }
  for (const name of Object.keys(loads)) job(name, ['loads', name]);
  for (const [index, row] of figures.entries()) {
    for (const key of ['jobs', 'during'] as const) {
      for (const [at, name] of (row[key] ?? []).entries()) job(name, ['figures', index, key, at]);
    }
  }
  return {
    source: path,
    title: value.title,
    cluster,
    jobs,
    durationS: value.durationS,
    placement: { ...placement, explicit: placeExplicitly(cluster, jobs, placement.explicit, bad) },
    loads,
    rows: figures,
  };
}

type Explicit = Readonly<Record<string, z.output<typeof explicitSchema>>>;

function placeExplicitly(cluster: Cluster, jobs: readonly Job[], explicit: Explicit, bad: Refuse): PlacedJob[] {
  const path = ['placement', 'explicit'];
  const unknown = Object.keys(explicit).find((name) => jobs.every((job) => job.name !== name));
  if (unknown !== undefined) throw bad([...path, unknown], `there is no job '${unknown}'`);
  const owners = new Map<string, string>();
  return jobs.flatMap((job) => {
    const wanted = Object.hasOwn(explicit, job.name) ? explicit[job.name] : undefined;
    if (!wanted) return [];
    const { minimum, boxes: most } = job.session;
    if (wanted.boxes.length < minimum || wanted.boxes.length > most) {
      throw bad([...path, job.name, 'boxes'], `${wanted.boxes.length} boxes; the job takes ${minimum} to ${most}`);
    }
    const boxes = wanted.boxes.map((name, index) => {
      const at = [...path, job.name, 'boxes', index];
      const box = cluster.boxes.find((each) => each.name === name);
      if (!box) throw bad(at, `the cluster has no box '${name}'`);
      const owner = owners.get(name);
      if (owner !== undefined) throw bad(at, `job '${owner}' has box '${name}'`);
      owners.set(name, job.name);
      return box;
    });
    const pods = [...podsOfJob(job, boxes[0] as Box), ...boxes.flatMap((box) => podsOfBox(job, box))];
    const nodesOf = new Map<PodKind, string[]>();
    for (const kind of new Set(pods.map(({ spec }) => spec.kind))) {
      const at = [...path, job.name, 'nodes', kind];
      const count = pods.filter(({ spec }) => spec.kind === kind).length;
      const nodes = wanted.nodes[kind];
      if (!nodes) throw bad(at, `missing; pods of job '${job.name}' that need a node: ${count}`);
      if (nodes.length !== 1 && nodes.length !== count) throw bad(at, `${nodes.length} nodes for ${count} pods`);
      const missing = nodes.find((name) => cluster.nodes.every((node) => node.name !== name));
      if (missing !== undefined) throw bad(at, `the cluster has no AX node '${missing}'`);
      nodesOf.set(kind, nodes.length === count ? [...nodes] : new Array<string>(count).fill(nodes[0] as string));
    }
    const placed = pods.map((pod) => ({ pod, node: nodesOf.get(pod.spec.kind)?.shift() as string }));
    for (const { pod, node } of placed) {
      const nics = cluster.nodes.find(({ name }) => name === node)?.nics.length;
      if (pod.streams.length > 0 && nics === 0) {
        throw bad(
          [...path, job.name, 'nodes', pod.spec.kind],
          `AX node '${node}' has no NIC for the streams of ${pod.name}`,
        );
      }
    }
    return { job, boxes: wanted.boxes, pods: placed };
  });
}
