import type { AxNode, Box, Cluster } from '../../src/cluster/cluster.js';
import { type Job, type Pod, podsOfBox, podsOfJob } from '../../src/cluster/jobs.js';
import { routeOf } from '../../src/cluster/route.js';
import type { ScoreVector } from '../../src/cluster/score.js';
import type { PlacedPod, Snapshot } from '../../src/cluster/snapshot.js';

export interface BruteRules {
  exclusion: boolean;
  rejectSpine: boolean;
}

/** Adds up what runs where by the words of the rules, name by name. Undefined where a hard constraint is broken. */
export function judge(
  cluster: Cluster,
  drained: readonly string[],
  standing: readonly PlacedPod[],
  placed: readonly PlacedPod[],
  boxesTaken: readonly string[],
  rules: BruteRules,
): ScoreVector | undefined {
  const all = [...standing, ...placed];
  let spine = 0;
  const uplinks = new Map(cluster.leaves.map(({ name }) => [name, 0]));
  const ports = new Map<string, number>();
  const add = (map: Map<string, number>, key: string, amount: number) => map.set(key, (map.get(key) ?? 0) + amount);
  for (const node of cluster.nodes) {
    const here = all.filter((each) => each.node === node.name).map(({ pod }) => pod);
    if (drained.includes(node.name) && placed.some((each) => each.node === node.name)) return undefined;
    if (rules.exclusion && here.filter(({ spec }) => spec.kind === 'swdriver').length > 1) return undefined;
    if (here.reduce((sum, { spec }) => sum + spec.cores, 0) > node.cores) return undefined;
    if (here.reduce((sum, { spec }) => sum + spec.memory, 0) > node.memory) return undefined;
    const nics = new Map<string, number>();
    for (const stream of here.flatMap(({ streams }) => streams)) {
      if (node.nics.length === 0) return undefined;
      const { nodeLeaf, boxLeaf, overSpine } = routeOf(stream, node);
      add(nics, nodeLeaf, stream.bandwidth);
      add(ports, `${stream.box} ${stream.domain} ${stream.port}`, stream.bandwidth);
      if (!overSpine) continue;
      spine += stream.bandwidth;
      add(uplinks, nodeLeaf, stream.bandwidth);
      add(uplinks, boxLeaf, stream.bandwidth);
    }
    for (const [leaf, load] of nics) {
      const capacity = node.nics.reduce((sum, nic) => sum + (nic.leaf === leaf ? nic.bandwidth : 0), 0);
      if (load > capacity) return undefined;
    }
  }
  for (const { name, portBandwidth } of cluster.boxes) {
    for (const [port, load] of ports) if (port.startsWith(`${name} `) && load > portBandwidth) return undefined;
  }
  if (rules.rejectSpine && placed.some(({ pod, node }) => crosses(cluster, pod, node))) return undefined;
  const shares = cluster.leaves.map(({ name, uplink }) => (uplinks.get(name) as number) / uplink);
  const cablings = new Set(
    boxesTaken.map((name) => {
      const { domains, portBandwidth } = cluster.boxes.find((box) => box.name === name) as Box;
      return JSON.stringify([domains, portBandwidth]);
    }),
  );
  const shardNodes = placed.filter(({ pod }) => pod.spec.kind === 'kvss').map(({ node }) => node);
  const shardsOn = (name: string) => all.filter(({ pod, node }) => pod.spec.kind === 'kvss' && node === name).length;
  return [
    spine,
    Math.max(...shares),
    new Set(all.map(({ node }) => node)).size + cablings.size,
    Math.max(0, ...shardNodes.map(shardsOn)),
  ];
}

function crosses(cluster: Cluster, pod: Pod, node: string): boolean {
  const on = cluster.nodes.find(({ name }) => name === node) as AxNode;
  return pod.streams.some((stream) => routeOf(stream, on).overSpine);
}

function better(a: ScoreVector, b: ScoreVector | undefined): boolean {
  if (!b) return true;
  const level = a.findIndex((value, index) => value !== b[index]);
  return level !== -1 && (a[level] as number) < (b[level] as number);
}

/** The best score of all assignments of pods to AX nodes. */
export function bestOfPods(
  snapshot: Snapshot,
  standing: readonly PlacedPod[],
  pods: readonly Pod[],
  boxesTaken: readonly string[],
  rules: BruteRules,
): ScoreVector | undefined {
  let best: ScoreVector | undefined;
  const placed: PlacedPod[] = [];
  const room = snapshot.cluster.nodes.map(({ name, cores, memory }) => {
    const here = standing.filter(({ node }) => node === name).map(({ pod }) => pod.spec);
    const used = (key: 'cores' | 'memory') => here.reduce((sum, spec) => sum + spec[key], 0);
    return { node: name, cores: cores - used('cores'), memory: memory - used('memory') };
  });
  const assign = (index: number) => {
    const pod = pods[index];
    if (!pod) {
      const score = judge(snapshot.cluster, snapshot.drained, standing, placed, boxesTaken, rules);
      if (score && better(score, best)) best = score;
      return;
    }
    const { cores, memory } = pod.spec;
    for (const free of room) {
      // Nothing that is broken is mended by more pods; the judge sees the rest.
      if (free.cores < cores || free.memory < memory) continue;
      free.cores -= cores;
      free.memory -= memory;
      placed.push({ pod, node: free.node });
      assign(index + 1);
      placed.pop();
      free.cores += cores;
      free.memory += memory;
    }
  };
  assign(0);
  return best;
}

/** The best score of all choices of so many free boxes and all assignments of their pods. */
export function bestOfBoxes(
  snapshot: Snapshot,
  job: Job,
  count: number,
  first: boolean,
  rules: BruteRules,
): ScoreVector | undefined {
  const taken = snapshot.jobs.flatMap(({ boxes }) => boxes);
  const standing = snapshot.jobs.flatMap(({ pods }) => pods);
  const free = snapshot.cluster.boxes.filter(({ name }) => !taken.includes(name));
  let best: ScoreVector | undefined;
  const choose = (chosen: Box[], from: number) => {
    if (chosen.length === count) {
      const heads = first ? chosen : chosen.slice(0, 1);
      for (const head of heads) {
        const pods = [...(first ? podsOfJob(job, head) : []), ...chosen.flatMap((box) => podsOfBox(job, box))];
        const boxes = [...taken, ...chosen.map(({ name }) => name)];
        const score = bestOfPods(snapshot, standing, pods, boxes, rules);
        if (score && better(score, best)) best = score;
      }
      return;
    }
    for (let index = from; index < free.length; index += 1) choose([...chosen, free[index] as Box], index + 1);
  };
  choose([], 0);
  return best;
}
