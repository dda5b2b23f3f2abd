import { z } from 'zod';
import { DOMAINS_PER_BOX } from '../common/box.js';
import { bandwidth, size } from '../common/schema.js';
import { formatBytes } from '../common/units.js';
import { parseYaml, readText } from '../common/yaml_file.js';
import { type Box, type Cluster, MAX_BOXES, milliCores, name } from './cluster.js';

const MAX_JOBS = 1_024;
const MAX_COUNT = 64;
const MAX_STREAMS = 256;

/** What runs on AX nodes for a job. */
export const POD_KINDS = ['swdriver', 'kvss', 'chf', 'wse'] as const;
export type PodKind = (typeof POD_KINDS)[number];

/** What there is a pod for: the whole job, each box of it, or each domain of each box. */
export type PodScope = 'job' | 'box' | 'domain';

const SCOPE_OF_KIND: Readonly<Record<PodKind, PodScope>> = {
  swdriver: 'job',
  kvss: 'domain',
  chf: 'job',
  wse: 'box',
};

const streamsSchema = z.strictObject({
  /** Of one stream, each way. */
  bandwidth,
  /** To each domain. */
  count: z.number().int().min(1).max(MAX_STREAMS).default(1),
  /** Which domains of the box; all if left out. A pod of a domain has streams to that one. */
  domains: z
    .array(
      z
        .number()
        .int()
        .min(0)
        .max(DOMAINS_PER_BOX - 1, `a box has domains 0 to ${DOMAINS_PER_BOX - 1}`),
    )
    .min(1)
    .optional(),
});

const podSchema = z
  .strictObject({
    kind: z.enum(POD_KINDS),
    /** Where it is left out: SwDriver and CHF once a job, WSE once a box, KVSS shards once a domain. */
    per: z.enum(['job', 'box', 'domain']).optional(),
    count: z.number().int().min(1).max(MAX_COUNT).default(1),
    cores: milliCores,
    memory: size,
    /** None where it is left out. Those of a pod of the whole job go to the first box of its session. */
    streams: streamsSchema.optional(),
    /** Container image, for manifests. */
    image: z.string().min(1).max(512).optional(),
  })
  .superRefine(({ kind, per = SCOPE_OF_KIND[kind], streams }, context) => {
    const { domains } = streams ?? {};
    if (domains === undefined) return;
    const path = ['streams', 'domains'];
    if (per === 'domain')
      context.addIssue({ code: 'custom', path, message: 'a pod of a domain has streams to that one' });
    else if (new Set(domains).size < domains.length)
      context.addIssue({ code: 'custom', path, message: 'a domain is there twice' });
  })
  .transform(({ kind, per, count, cores, memory, streams, image }) => ({
    kind,
    per: per ?? SCOPE_OF_KIND[kind],
    count,
    cores,
    memory,
    ...(streams === undefined
      ? {}
      : { streams: { bandwidth: streams.bandwidth, count: streams.count, domains: streams.domains ?? ALL_DOMAINS } }),
    ...(image === undefined ? {} : { image }),
  }));

const ALL_DOMAINS: readonly number[] = Array.from({ length: DOMAINS_PER_BOX }, (_, domain) => domain);

const boxCount = z.number().int().min(1).max(MAX_BOXES);

/** One job, as people write it. */
export const jobSchema = z
  .strictObject({
    name: name.max(40),
    session: z.strictObject({
      /** How many boxes the job wants. */
      boxes: boxCount,
      /** With fewer it does not run: `boxes` if left out. */
      minimum: boxCount.optional(),
      /** It grows and shrinks by so many at once. */
      increment: boxCount.default(1),
    }),
    pods: z.array(podSchema).min(1).max(32),
  })
  .superRefine(({ session: { boxes, minimum = boxes, increment } }, context) => {
    const path = ['session', 'minimum'];
    if (minimum > boxes) {
      context.addIssue({ code: 'custom', path, message: `${minimum} is more than the ${boxes} boxes that are wanted` });
    } else if ((boxes - minimum) % increment !== 0) {
      const message = `from ${minimum} to ${boxes} boxes is no multiple of the increment, ${increment}`;
      context.addIssue({ code: 'custom', path, message });
    }
  })
  .transform(({ name, session: { boxes, minimum = boxes, increment }, pods }) => ({
    name,
    session: { boxes, minimum, increment },
    pods,
  }));

const jobsSchema = z.strictObject({ jobs: z.array(jobSchema).min(1).max(MAX_JOBS) });

/** Streams of a pod to each of the domains. `bandwidth` of one, in bytes a second each way. */
export interface PodStreams {
  readonly bandwidth: number;
  readonly count: number;
  readonly domains: readonly number[];
}

/** Pods of a job that are alike. `cores` in thousandths, `memory` in bytes, both of one pod. */
export interface PodSpec {
  readonly kind: PodKind;
  readonly per: PodScope;
  /** How many there are for each job, box or domain. */
  readonly count: number;
  readonly cores: number;
  readonly memory: number;
  readonly streams?: PodStreams;
  readonly image?: string;
}

/** How many boxes a job wants, the fewest it runs with, and by how many it grows and shrinks. */
export interface Session {
  readonly boxes: number;
  readonly minimum: number;
  readonly increment: number;
}

export interface Job {
  /** Unique among the jobs of a cluster. */
  readonly name: string;
  readonly session: Session;
  readonly pods: readonly PodSpec[];
}

/** One pod of a job that has its boxes. */
export interface Pod {
  /** Unique in a cluster: `chat.kvss.box-3.d2.0`. */
  readonly name: string;
  readonly job: string;
  readonly spec: PodSpec;
  /** The box it is there for; undefined where it is there for the whole job. */
  readonly box?: string;
  /** The domain of the box it is there for. */
  readonly domain?: number;
  readonly streams: readonly Stream[];
}

/** One stream between a pod and a port of a box. */
export interface Stream {
  readonly box: string;
  readonly domain: number;
  /** Number of the port in the domain: streams take the ports of a domain in turn. */
  readonly port: number;
  /** Name of the leaf that the port is cabled to. */
  readonly leaf: string;
  /** Bytes a second, each way. */
  readonly bandwidth: number;
}

/**
 * Parses the YAML of jobs; `source` names it in errors. Throws KVSS_BAD_INPUT with line, key and cause for what is unknown,
 * out of range or there twice, and, where the cluster is given, for a job that is larger than it: more boxes, or a pod
 * that fits on no AX node when it is empty.
 */
export function parseJobs(text: string, source = 'jobs', cluster?: Cluster): readonly Job[] {
  const { value, bad } = parseYaml(text, source, jobsSchema);
  const seen = new Set<string>();
  for (const [index, job] of value.jobs.entries()) {
    if (seen.has(job.name)) throw bad(['jobs', index, 'name'], `'${job.name}' is there twice`);
    seen.add(job.name);
    if (cluster) checkSize(job, cluster, (path, cause) => bad(['jobs', index, ...path], cause));
  }
  return value.jobs;
}

/** Reads the YAML file of jobs. Throws as parseJobs does, and where the file cannot be read. */
export function readJobs(path: string, cluster?: Cluster): readonly Job[] {
  return parseJobs(readText(path), path, cluster);
}

function checkSize(
  { session, pods }: Job,
  { boxes, nodes }: Cluster,
  bad: (path: readonly PropertyKey[], cause: string) => Error,
): void {
  if (session.minimum > boxes.length) {
    const key = session.minimum === session.boxes ? 'boxes' : 'minimum';
    throw bad(['session', key], `${session.minimum} boxes at least, the cluster has ${boxes.length}`);
  }
  const most = (key: 'cores' | 'memory') => Math.max(...nodes.map((node) => node[key]));
  for (const [index, { cores, memory, streams }] of pods.entries()) {
    if (cores > most('cores')) {
      throw bad(['pods', index, 'cores'], `${cores / 1000} cores, the largest AX node has ${most('cores') / 1000}`);
    }
    if (memory > most('memory')) {
      throw bad(
        ['pods', index, 'memory'],
        `${formatBytes(memory)}, the largest AX node has ${formatBytes(most('memory'))}`,
      );
    }
    if (streams && nodes.every(({ nics }) => nics.length === 0)) {
      throw bad(['pods', index, 'streams'], 'no AX node has a NIC');
    }
  }
}

/** The pods of a job that are there for the whole of it; `first` is the first box of its session. */
export function podsOfJob(job: Job, first: Box): Pod[] {
  return job.pods.flatMap((spec) =>
    spec.per === 'job' ? podsOf(job, spec, [], first, spec.streams?.domains ?? [], {}) : [],
  );
}

/** The pods of a job that are there for one box and its domains. */
export function podsOfBox(job: Job, box: Box): Pod[] {
  return job.pods.flatMap((spec) => {
    if (spec.per === 'job') return [];
    if (spec.per === 'box') {
      return podsOf(job, spec, [box.name], box, spec.streams?.domains ?? [], { box: box.name });
    }
    return ALL_DOMAINS.flatMap((domain) =>
      podsOf(job, spec, [box.name, `d${domain}`], box, [domain], { box: box.name, domain }),
    );
  });
}

function podsOf(
  job: Job,
  spec: PodSpec,
  place: readonly string[],
  box: Box,
  domains: readonly number[],
  owner: Pick<Pod, 'box' | 'domain'>,
): Pod[] {
  const alike = job.pods.filter(({ kind }) => kind === spec.kind).indexOf(spec);
  const kind = alike === 0 ? spec.kind : `${spec.kind}${alike + 1}`;
  return Array.from({ length: spec.count }, (_, number) => ({
    // No name has a dot, so no two pods have the same.
    name: [job.name, kind, ...place, number].join('.'),
    job: job.name,
    spec,
    ...owner,
    streams: domains.flatMap((domain) => streamsTo(box, domain, number, spec.streams)),
  }));
}

/** The streams of one pod to a domain. Pods and their streams take the ports of the domain in turn. */
function streamsTo(box: Box, domain: number, pod: number, streams: PodStreams | undefined): Stream[] {
  if (!streams) return [];
  const ports = box.domains[domain] as readonly string[];
  return Array.from({ length: streams.count }, (_, number) => {
    const port = (pod * streams.count + number) % ports.length;
    return { box: box.name, domain, port, leaf: ports[port] as string, bandwidth: streams.bandwidth };
  });
}
