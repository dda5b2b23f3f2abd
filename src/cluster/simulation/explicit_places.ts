import { z } from 'zod';
import type { Box, Cluster } from '../cluster.js';
import { type Job, POD_KINDS, type Pod, podsOfBox, podsOfJob } from '../jobs.js';
import type { PlacedJob, PlacedPod } from '../snapshot.js';

/** One AX node for all pods of the kind, or one for each: those of the first box first, by domain. */
const nodesOfKind = z.union([z.string().transform((node) => [node]), z.array(z.string()).min(1)]);

/** Where a job is, as people write it. */
export const explicitSchema = z.strictObject({
  boxes: z.array(z.string()).min(1),
  nodes: z.partialRecord(z.enum(POD_KINDS), nodesOfKind),
});

type Wanted = z.output<typeof explicitSchema>;
/** Makes an error that names file, line and key. */
type Refuse = (path: readonly PropertyKey[], cause: string) => Error;

/** The jobs that are in a state. Throws KVSS_BAD_INPUT where they are not jobs of the scenario. */
export function jobsOfState(jobs: readonly Job[], placed: readonly PlacedJob[], bad: Refuse): readonly PlacedJob[] {
  for (const { job } of placed) {
    const own = jobs.find(({ name }) => name === job.name);
    if (JSON.stringify(own) !== JSON.stringify(job)) {
      throw bad(['placement', 'state'], `the scenario has ${own ? 'another' : 'no'} job '${job.name}'`);
    }
  }
  return placed;
}

/**
 * Places jobs where a scenario says, beside those that are `placed` already. Throws KVSS_BAD_INPUT with the key for a job, box or
 * AX node that does not exist or is taken, and for pods without a node, or without a NIC for their streams.
 */
export function placeExplicitly(
  cluster: Cluster,
  jobs: readonly Job[],
  explicit: Readonly<Record<string, Wanted>>,
  placed: readonly PlacedJob[],
  bad: Refuse,
): PlacedJob[] {
  const owners = new Map(placed.flatMap(({ job, boxes }) => boxes.map((box) => [box, job.name])));
  return Object.entries(explicit).map(([name, wanted]) => {
    const path = ['placement', 'explicit', name];
    const job = jobs.find((each) => each.name === name);
    if (!job) throw bad(path, `there is no job '${name}'`);
    if (placed.some((each) => each.job.name === name)) throw bad(path, 'the state says where it is');
    const boxes = boxesOf(job, wanted, cluster, owners, (at, cause) => bad([...path, 'boxes', ...at], cause));
    const pods = [...podsOfJob(job, boxes[0] as Box), ...boxes.flatMap((box) => podsOfBox(job, box))];
    const onNodes = placePods(pods, wanted, cluster, (at, cause) => bad([...path, 'nodes', ...at], cause));
    return { job, boxes: wanted.boxes, pods: onNodes };
  });
}

function boxesOf(
  { name, session }: Job,
  wanted: Wanted,
  cluster: Cluster,
  owners: Map<string, string>,
  bad: Refuse,
): Box[] {
  const { minimum, boxes: most } = session;
  const count = wanted.boxes.length;
  if (count < minimum || count > most) throw bad([], `${count} boxes; the job takes ${minimum} to ${most}`);
  return wanted.boxes.map((boxName, index) => {
    const box = cluster.boxes.find((each) => each.name === boxName);
    if (!box) throw bad([index], `the cluster has no box '${boxName}'`);
    const owner = owners.get(boxName);
    if (owner !== undefined) throw bad([index], `job '${owner}' has box '${boxName}'`);
    owners.set(boxName, name);
    return box;
  });
}

function placePods(pods: readonly Pod[], wanted: Wanted, cluster: Cluster, bad: Refuse): PlacedPod[] {
  for (const kind of POD_KINDS) {
    const [count, nodes] = [pods.filter(({ spec }) => spec.kind === kind).length, wanted.nodes[kind]];
    if (!nodes && count > 0) throw bad([kind], `missing; pods that need a node: ${count}`);
    if (nodes && nodes.length !== 1 && nodes.length !== count)
      throw bad([kind], `${nodes.length} nodes for ${count} pods`);
  }
  const seen = new Map<string, number>();
  return pods.map((pod) => {
    const { kind } = pod.spec;
    const number = seen.get(kind) ?? 0;
    seen.set(kind, number + 1);
    const nodes = wanted.nodes[kind] as readonly string[];
    const name = (nodes.length === 1 ? nodes[0] : nodes[number]) as string;
    const node = cluster.nodes.find((each) => each.name === name);
    if (!node) throw bad([kind], `the cluster has no AX node '${name}'`);
    if (pod.streams.length > 0 && node.nics.length === 0) {
      throw bad([kind], `AX node '${name}' has no NIC for the streams of ${pod.name}`);
    }
    return { pod, node: name };
  });
}
