import type { Cluster } from '../../src/cluster/cluster.js';
import type { Job, PodKind, PodScope, PodSpec } from '../../src/cluster/jobs.js';

/** A whole number from `low` to `high`. */
export type Draw = (low: number, high: number) => number;

/** From numbers in [0, 1). */
export function drawFrom(random: () => number): Draw {
  return (low, high) => low + Math.floor(random() * (high - low + 1));
}

/** Few boxes and AX nodes, many of them alike: what can be enumerated, and has symmetry to get wrong. */
export function randomCluster(draw: Draw): Cluster {
  return draw(0, 2) === 0 ? twins(island(draw, 2, 2)) : island(draw, 3, 4);
}

function island(draw: Draw, mostBoxes: number, mostNodes: number): Cluster {
  const leaves = Array.from({ length: draw(1, mostNodes) }, (_, number) => ({
    name: `l${number}`,
    uplink: draw(1, 2) * 8,
  }));
  const leaf = () => `l${draw(0, leaves.length - 1)}`;
  const cablings = Array.from({ length: draw(1, 2) }, () => {
    const domains = Array.from({ length: 4 }, () => Array.from({ length: draw(1, 10) === 1 ? 2 : 1 }, leaf));
    return { portBandwidth: draw(6, 16), domains };
  });
  const kinds = Array.from({ length: draw(1, 2) }, () => ({
    cores: draw(3, 12),
    memory: draw(3, 12),
    nics: Array.from({ length: draw(0, 8) === 0 ? 0 : draw(1, 2) }, () => ({ leaf: leaf(), bandwidth: draw(4, 20) })),
  }));
  // A little more memory of the same: in use they look like the others when those are not.
  if (draw(0, 2) === 0) kinds.push({ ...(kinds[0] as (typeof kinds)[0]), memory: (kinds[0]?.memory as number) + 1 });
  return {
    leaves,
    spine: { bandwidth: 100 },
    boxes: Array.from({ length: draw(1, mostBoxes) }, (_, number) => ({
      name: `b${number}`,
      ...(cablings[draw(0, cablings.length - 1)] as (typeof cablings)[0]),
    })),
    nodes: Array.from({ length: draw(1, mostNodes) }, (_, number) => ({
      name: `n${number}`,
      ...(kinds[draw(0, kinds.length - 1)] as (typeof kinds)[0]),
    })),
  };
}

/** The same twice: two islands that can change places. */
function twins({ leaves, spine, boxes, nodes }: Cluster): Cluster {
  const twin = (name: string) => `${name}t`;
  return {
    leaves: [...leaves, ...leaves.map((leaf) => ({ ...leaf, name: twin(leaf.name) }))],
    spine,
    boxes: [
      ...boxes,
      ...boxes.map((box) => ({
        ...box,
        name: twin(box.name),
        domains: box.domains.map((ports) => ports.map(twin)),
      })),
    ],
    nodes: [
      ...nodes,
      ...nodes.map((node) => ({
        ...node,
        name: twin(node.name),
        nics: node.nics.map((nic) => ({ ...nic, leaf: twin(nic.leaf) })),
      })),
    ],
  };
}

/** A job of one or two boxes and not too many pods. */
export function randomJob(name: string, draw: Draw): Job {
  // All pods of one size: AX nodes that have as much free differ only in what runs there.
  const plain = draw(0, 3) === 0;
  const pod = (kind: PodKind, per: PodScope): PodSpec => {
    if (plain) return { kind, per, count: per === 'job' ? 2 : 1, cores: 0, memory: 1 };
    const streams = { bandwidth: draw(1, 3), count: draw(1, 2) };
    const domains = per === 'domain' ? [0, 1, 2, 3] : [draw(0, 1), draw(2, 3)].slice(0, draw(1, 2));
    return {
      kind,
      per,
      count: per === 'job' ? draw(1, 2) : 1,
      cores: draw(0, 3),
      memory: draw(1, 3),
      ...(draw(0, 3) > 0 ? { streams: { ...streams, domains } } : {}),
    };
  };
  const pods = [pod('swdriver', 'job')];
  if (draw(0, 2) === 0) pods.push(pod('kvss', 'domain'));
  else pods.push(pod('kvss', 'box'));
  if (draw(0, 1) === 0) pods.push(pod('wse', 'box'));
  if (draw(0, 2) === 0) pods.push(pod('chf', 'job'));
  const boxes = draw(1, 2);
  return { name, session: { boxes, minimum: draw(1, boxes), increment: 1 }, pods };
}
