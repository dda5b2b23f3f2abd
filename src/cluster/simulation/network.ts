import type { AxNode, Box, Cluster } from '../cluster.js';
import type { Stream } from '../jobs.js';
import { routeOf } from '../route.js';

/** Refills go to the box, evicts to the AX node. */
export type Direction = 'toBox' | 'toNode';

/**
 * The links of a cluster as a list of capacities, each way of a link its own: ports of boxes, NICs of AX nodes, uplinks of
 * leaves, the spine, and whatever else is added. A link is there once it has been asked for.
 */
export class Network {
  /** In bytes a second, by the number of the link. */
  readonly capacities: number[] = [];
  readonly #numbers = new Map<string, number>();
  readonly #nodes: ReadonlyMap<string, AxNode>;
  readonly #boxes: ReadonlyMap<string, Box>;
  readonly #uplinks: ReadonlyMap<string, number>;

  constructor(private readonly cluster: Cluster) {
    this.#nodes = new Map(cluster.nodes.map((node) => [node.name, node]));
    this.#boxes = new Map(cluster.boxes.map((box) => [box.name, box]));
    this.#uplinks = new Map(cluster.leaves.map((leaf) => [leaf.name, leaf.uplink]));
  }

  /** Numbers of the links that a stream of a box runs over to or from an AX node, both of the cluster. */
  path(stream: Stream, nodeName: string, direction: Direction): number[] {
    const node = this.#nodes.get(nodeName) as AxNode;
    const box = this.#boxes.get(stream.box) as Box;
    const { boxLeaf, nodeLeaf, overSpine } = routeOf(stream, node);
    const nicBandwidth = node.nics.reduce((sum, { leaf, bandwidth }) => sum + (leaf === nodeLeaf ? bandwidth : 0), 0);
    const [from, to] = direction === 'toNode' ? [boxLeaf, nodeLeaf] : [nodeLeaf, boxLeaf];
    const crossing = overSpine
      ? [
          this.link(`uplink of ${from} up`, this.#uplinks.get(from) as number),
          this.link(`spine ${direction}`, this.cluster.spine.bandwidth),
          this.link(`uplink of ${to} down`, this.#uplinks.get(to) as number),
        ]
      : [];
    return [
      this.link(`port ${box.name} ${stream.domain} ${stream.port} ${direction}`, box.portBandwidth),
      ...crossing,
      this.link(`nic ${nodeName} ${nodeLeaf} ${direction}`, nicBandwidth),
    ];
  }

  /** The number of a link, which is there with this capacity from now on if it was not. */
  link(name: string, capacity: number): number {
    const known = this.#numbers.get(name);
    if (known !== undefined) return known;
    const number = this.capacities.push(capacity) - 1;
    this.#numbers.set(name, number);
    return number;
  }
}
