import { formatBandwidth } from '../common/units.js';
import type { AxNode, Cluster } from './cluster.js';
import { routeOf } from './route.js';
import type { PlacedPod } from './snapshot.js';

/** Streams of one pod that cross the spine the same way. */
export interface Crossing {
  readonly pod: string;
  readonly node: string;
  readonly box: string;
  readonly domain: number;
  readonly boxLeaf: string;
  readonly nodeLeaf: string;
  /** How many streams there are. */
  readonly streams: number;
  /** Of all of them, in bytes a second each way. */
  readonly bandwidth: number;
}

/** What crosses the spine, stream by stream, those that go the same way together. */
export function crossingsOf(cluster: Cluster, pods: readonly PlacedPod[]): Crossing[] {
  const nodes = new Map(cluster.nodes.map((node) => [node.name, node]));
  return pods.flatMap(({ pod, node }) => {
    const ways = new Map<string, Crossing & { streams: number; bandwidth: number }>();
    for (const stream of pod.streams) {
      const { boxLeaf, nodeLeaf, overSpine } = routeOf(stream, nodes.get(node) as AxNode);
      if (!overSpine) continue;
      const { box, domain } = stream;
      const key = `${box} ${domain} ${boxLeaf}`;
      const way = ways.get(key) ?? { pod: pod.name, node, box, domain, boxLeaf, nodeLeaf, streams: 0, bandwidth: 0 };
      way.streams += 1;
      way.bandwidth += stream.bandwidth;
      ways.set(key, way);
    }
    return [...ways.values()];
  });
}

/** A crossing in words. */
export function describeCrossing(crossing: Crossing): string {
  const { pod, node, box, domain, boxLeaf, nodeLeaf, streams, bandwidth } = crossing;
  const amount = `${streams} ${streams === 1 ? 'stream' : 'streams'}, ${formatBandwidth(bandwidth)}`;
  return `domain ${domain} of ${box} reaches ${pod} on ${node} over the spine: from ${boxLeaf} to ${nodeLeaf}, ${amount}`;
}
