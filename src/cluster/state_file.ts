import { existsSync, renameSync, writeFileSync } from 'node:fs';
import { z } from 'zod';
import { localError, messageOf } from '../common/errors.js';
import { parseYaml, readText } from '../common/yaml_file.js';
import { type Cluster, name } from './cluster.js';
import { jobSchema, type PodSpec, podsOfBox, podsOfJob } from './jobs.js';
import { emptySnapshot, freeze, hashSnapshot, type PlacedJob, type Snapshot } from './snapshot.js';

const stateSchema = z.strictObject({
  version: z.number().int().min(0),
  /** Of the snapshot, its cluster included. */
  hash: z.string(),
  drained: z.array(name),
  jobs: z.array(
    z.strictObject({
      job: jobSchema,
      boxes: z.array(name).min(1),
      /** AX nodes of the pods, by the names of the pods. */
      nodes: z.record(z.string(), name),
    }),
  ),
});

/** What runs where, as a file keeps it. */
export function formatState(snapshot: Snapshot): string {
  const state: z.input<typeof stateSchema> = {
    version: snapshot.version,
    hash: hashSnapshot(snapshot),
    drained: [...snapshot.drained],
    jobs: snapshot.jobs.map(({ job, boxes, pods }) => ({
      job: { ...job, pods: job.pods.map(asWritten) },
      boxes: [...boxes],
      nodes: Object.fromEntries(pods.map(({ pod, node }) => [pod.name, node])),
    })),
  };
  return `${JSON.stringify(state, null, 1)}\n`;
}

/** As jobs files have it: cores instead of thousandths, and no domains where a pod is there for one. */
function asWritten({ cores, streams, ...spec }: PodSpec): z.input<typeof jobSchema>['pods'][number] {
  const written = { ...spec, cores: cores / 1000 };
  if (!streams) return written;
  const { bandwidth, count, domains } = streams;
  return { ...written, streams: { bandwidth, count, ...(spec.per === 'domain' ? {} : { domains: [...domains] }) } };
}

/**
 * Parses what formatState has made; the snapshot is the same, to the hash. Throws KVSS_BAD_INPUT for a state of another
 * cluster, and for one that has been changed by hand.
 */
export function parseState(text: string, cluster: Cluster, source = 'state'): Snapshot {
  const { value } = parseYaml(text, source, stateSchema);
  const boxes = new Map(cluster.boxes.map((box) => [box.name, box]));
  const bad = (what: string) => localError('KVSS_BAD_INPUT', `${source}: ${what}`);
  const jobs = value.jobs.map(({ job, boxes: names, nodes }): PlacedJob => {
    const own = names.map((box) => {
      const found = boxes.get(box);
      if (!found) throw bad(`job '${job.name}' has box '${box}', and the cluster has not`);
      return found;
    });
    const pods = [...podsOfJob(job, own[0] as (typeof own)[0]), ...own.flatMap((box) => podsOfBox(job, box))];
    const placed = pods.map((pod) => {
      const node = Object.hasOwn(nodes, pod.name) ? nodes[pod.name] : undefined;
      if (node === undefined) throw bad(`pod '${pod.name}' has no AX node`);
      return { pod, node };
    });
    return { job, boxes: names, pods: placed };
  });
  const { version, drained } = value;
  const snapshot = freeze({ ...emptySnapshot(cluster), version, jobs, drained });
  if (hashSnapshot(snapshot) !== value.hash) {
    throw bad('it is of another cluster, or has been changed: its hash does not fit');
  }
  return snapshot;
}

/** Reads a state; nothing runs where there is no such file. Throws as parseState does. */
export function readState(path: string, cluster: Cluster): Snapshot {
  return existsSync(path) ? parseState(readText(path), cluster, path) : emptySnapshot(cluster);
}

/**
 * Replaces a state at once. Throws KVSS_STALE where the file no longer has what the statement began with: another one
 * was committed in between.
 */
export function writeState(path: string, base: Snapshot, next: Snapshot): void {
  const now = readState(path, base.cluster);
  if (now.version !== base.version || hashSnapshot(now) !== hashSnapshot(base)) {
    throw localError(
      'KVSS_STALE',
      `${path} has version ${now.version} now, this began with version ${base.version}: run it again`,
    );
  }
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    writeFileSync(temporary, formatState(next));
    renameSync(temporary, path);
  } catch (cause) {
    throw localError('KVSS_BAD_INPUT', `cannot write ${path}: ${messageOf(cause)}`, cause);
  }
}
