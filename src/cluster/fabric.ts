import type { Cluster } from './cluster.js';
import { leavesOf } from './route.js';

/** Boxes whose domains are cabled alike: same leaves, port by port, of the same bandwidth. */
export interface Cabling {
  /** Numbers of the boxes, rising. */
  readonly boxes: readonly number[];
  /** Leaves that the ports are cabled to hang together; so do boxes and AX nodes on them. */
  readonly island: number;
  /** Of each domain and port, the number of the leaf. */
  readonly domains: readonly (readonly number[])[];
  readonly portBandwidth: number;
}

/** A cluster by numbers instead of names, with what follows from its cables alone. */
export interface Fabric {
  readonly cluster: Cluster;
  readonly leafNumber: ReadonlyMap<string, number>;
  readonly nodeNumber: ReadonlyMap<string, number>;
  readonly boxNumber: ReadonlyMap<string, number>;
  /** Of each leaf: which island it is part of. No cable leads from one island to another, only the spine. */
  readonly islandOfLeaf: readonly number[];
  /** How many there are; the last one has no leaf, and the AX nodes without a NIC. */
  readonly islands: number;
  /** Sets of leaves that AX nodes have NICs on, in the order of their NICs, each set once. */
  readonly leafSets: readonly (readonly number[])[];
  readonly leafSetOfNode: readonly number[];
  /** Of each AX node: bandwidth of the NICs on each leaf of its set together. */
  readonly nicsOfNode: readonly (readonly number[])[];
  readonly islandOfNode: readonly number[];
  readonly cablings: readonly Cabling[];
  readonly cablingOfBox: readonly number[];
}

const fabrics = new WeakMap<Cluster, Fabric>();

/** Worked out once for each cluster. */
export function fabricOf(cluster: Cluster): Fabric {
  const known = fabrics.get(cluster);
  if (known) return known;
  const fabric = weave(cluster);
  fabrics.set(cluster, fabric);
  return fabric;
}

function weave(cluster: Cluster): Fabric {
  const leafNumber = numbersOf(cluster.leaves);
  const leaf = (name: string) => leafNumber.get(name) as number;
  const nodeLeaves = cluster.nodes.map((node) => leavesOf(node).map(leaf));
  const boxLeaves = cluster.boxes.map(({ domains }) => domains.map((ports) => ports.map(leaf)));
  const { islandOfLeaf, islands } = join(cluster.leaves.length, [
    ...nodeLeaves,
    ...boxLeaves.map((domains) => domains.flat()),
  ]);
  const leafSets = new Numbering<readonly number[]>();
  const leafSetOfNode = nodeLeaves.map((leaves) => leafSets.numberOf(leaves.join(), () => leaves));
  const cablings = new Numbering<Cabling & { boxes: number[] }>();
  const cablingOfBox = cluster.boxes.map(({ portBandwidth }, number) => {
    const domains = boxLeaves[number] as number[][];
    const key = `${portBandwidth} ${domains.join(' ')}`;
    const island = islandOfLeaf[domains[0]?.[0] as number] as number;
    const cabling = cablings.numberOf(key, () => ({ boxes: [], island, domains, portBandwidth }));
    cablings.items[cabling]?.boxes.push(number);
    return cabling;
  });
  return {
    cluster,
    leafNumber,
    nodeNumber: numbersOf(cluster.nodes),
    boxNumber: numbersOf(cluster.boxes),
    islandOfLeaf,
    islands: islands + 1,
    leafSets: leafSets.items,
    leafSetOfNode,
    nicsOfNode: cluster.nodes.map(({ nics }, number) =>
      (nodeLeaves[number] as number[]).map((of) =>
        nics.reduce((sum, nic) => (leaf(nic.leaf) === of ? sum + nic.bandwidth : sum), 0),
      ),
    ),
    islandOfNode: nodeLeaves.map(([first]) => (first === undefined ? islands : (islandOfLeaf[first] as number))),
    cablings: cablings.items,
    cablingOfBox,
  };
}

/** Gives things numbers from 0, the same for the same key. */
class Numbering<Item> {
  readonly items: Item[] = [];
  readonly #numbers = new Map<string, number>();

  numberOf(key: string, make: () => Item): number {
    let number = this.#numbers.get(key);
    if (number === undefined) {
      number = this.items.push(make()) - 1;
      this.#numbers.set(key, number);
    }
    return number;
  }
}

function numbersOf(named: readonly { readonly name: string }[]): Map<string, number> {
  return new Map(named.map(({ name }, number) => [name, number]));
}

/** Leaves that something has a cable to together are one island. */
function join(leaves: number, cabled: readonly (readonly number[])[]): { islandOfLeaf: number[]; islands: number } {
  const parent = Array.from({ length: leaves }, (_, leaf) => leaf);
  const root = (leaf: number): number => {
    let at = leaf;
    while (parent[at] !== at) {
      parent[at] = parent[parent[at] as number] as number;
      at = parent[at] as number;
    }
    return at;
  };
  for (const [first, ...others] of cabled) {
    for (const other of others) parent[root(other)] = root(first as number);
  }
  const islands = new Numbering<number>();
  const islandOfLeaf = parent.map((_, leaf) => islands.numberOf(String(root(leaf)), () => leaf));
  return { islandOfLeaf, islands: islands.items.length };
}
