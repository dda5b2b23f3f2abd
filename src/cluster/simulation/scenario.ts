import { dirname, resolve } from 'node:path';
import { isMap, isNode, isScalar, parseDocument } from 'yaml';
import { z } from 'zod';
import { parseYaml, readText } from '../../common/yaml_file.js';
import { type Cluster, readCluster } from '../cluster.js';
import { type Job, parseJobs, readJobs } from '../jobs.js';
import type { PlacedJob } from '../snapshot.js';
import { parseState } from '../state_file.js';
import { MODELS, TEXTS } from './calibration.js';
import { explicitSchema, jobsOfState, placeExplicitly } from './explicit_places.js';
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

const scenarioSchema = z.strictObject({
  title: z.string().min(1).max(120),
  /** File of the cluster, from the folder of this one. */
  cluster: z.string().min(1),
  /** File of the jobs, or the jobs themselves as such a file has them. */
  jobs: z.union([z.string().min(1), z.array(z.unknown()).min(1)]),
  durationS: seconds.positive(),
  placement: z
    .strictObject({
      /** Whether SwDrivers that the placement engine places keep off each other's nodes. */
      exclusion: onOff.default(true),
      /** Jobs that it does not place, by name. */
      explicit: z.record(z.string(), explicitSchema).default({}),
      /** What `kvss plan placement` has written: jobs that are there stay there. */
      state: z.string().min(1).optional(),
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

/**
 * Reads the YAML file of a scenario, with the files that it names. Throws KVSS_BAD_INPUT with file, line, key and cause for
 * what is unknown or out of range, and for a job, box, pod or AX node that does not exist.
 */
export function readScenario(path: string): Scenario {
  const text = readText(path);
  const { value, bad } = parseYaml(text, path, scenarioSchema);
  const { placement, loads, figures } = value;
  const beside = (name: string) => resolve(dirname(path), name);
  const cluster = readCluster(beside(value.cluster));
  const jobs =
    typeof value.jobs === 'string' ? readJobs(beside(value.jobs), cluster) : parseJobs(onlyJobs(text), path, cluster);
  const names = new Set(jobs.map(({ name }) => name));
  const checkJob = (name: string, at: readonly PropertyKey[]) => {
    if (!names.has(name)) throw bad(at, `there is no job '${name}'`);
  };
  for (const { name, pods } of jobs) {
    const load = Object.hasOwn(loads, name) ? loads[name] : undefined;
    if (!load) throw bad(['loads'], `job '${name}' has none`);
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
  for (const name of Object.keys(loads)) checkJob(name, ['loads', name]);
  for (const [index, row] of figures.entries()) {
    for (const key of ['jobs', 'during'] as const) {
      for (const [at, name] of (row[key] ?? []).entries()) checkJob(name, ['figures', index, key, at]);
    }
  }
  const placed =
    placement.state === undefined
      ? []
      : parseState(readText(beside(placement.state)), cluster, beside(placement.state)).jobs;
  return {
    source: path,
    title: value.title,
    cluster,
    jobs,
    durationS: value.durationS,
    placement: {
      exclusion: placement.exclusion,
      explicit: [...jobsOfState(jobs, placed, bad), ...placeExplicitly(cluster, jobs, placement.explicit, placed, bad)],
    },
    loads,
    rows: figures,
  };
}

/** The text of a scenario with nothing left but its jobs, on the lines where they stand. */
function onlyJobs(text: string): string {
  const { contents } = parseDocument(text);
  const pair = isMap(contents) ? contents.items.find(({ key }) => isScalar(key) && key.value === 'jobs') : undefined;
  const [from, to] = [rangeOf(pair?.key)[0], rangeOf(pair?.value)[1]];
  return text.slice(0, from).replaceAll(/[^\n]/g, '') + text.slice(from, to);
}

function rangeOf(node: unknown): readonly [from: number, to: number] {
  const [from, to] = isNode(node) && node.range ? node.range : [0, 0];
  return [from, to];
}
