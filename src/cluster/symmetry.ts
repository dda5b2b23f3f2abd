import type { Cabling } from './fabric.js';
import type { Ledger, Shape } from './ledger.js';

/** AX nodes of an island that are in the same state, as long as a search has put nothing on them. */
export interface NodeClass {
  readonly island: Island;
  /** Position among the classes of its island. */
  readonly position: number;
  readonly leafSet: number;
  /** Numbers of the AX nodes, rising. */
  readonly members: readonly number[];
  /** How many of them, from the first, the search uses. */
  used: number;
}

/** Boxes of a cabling that are free. */
export interface FreeBoxes {
  readonly cabling: number;
  /** Position among the cablings of its island. */
  readonly position: number;
  free: number;
}

/** Leaves that hang together, with the boxes and AX nodes on them. */
export interface Island {
  readonly number: number;
  /** Islands with the same signature can change places, class by class and cabling by cabling. */
  readonly signature: string;
  readonly hasNics: boolean;
  readonly classes: readonly NodeClass[];
  readonly cablings: readonly FreeBoxes[];
  /** Boxes taken and pods placed by the search, and streams that lead here whatever it does. */
  touched: number;
}

/**
 * The state of a search, with what is alike in it: AX nodes in the same state, boxes cabled alike, and whole islands. Of
 * things that are alike one is enough to look at. Changes are taken back in the reverse order.
 */
export class Islands {
  readonly all: readonly Island[];
  /** AX nodes that the search has put something on. */
  readonly touchedNodes: number[] = [];
  readonly #alike = new Map<string, Island[]>();
  readonly #pods: Int32Array;

  constructor(
    private readonly ledger: Ledger,
    fixedLeaves: readonly number[],
    private readonly exclusion: boolean,
  ) {
    this.#pods = new Int32Array(ledger.pods.length);
    this.all = islandsOf(ledger, (node, rank) => this.#stateAs(node, rank));
    for (const leaf of fixedLeaves) (this.all[ledger.fabric.islandOfLeaf[leaf] as number] as Island).touched += 1;
    for (const island of this.all) {
      const alike = this.#alike.get(island.signature);
      if (alike) alike.push(island);
      else this.#alike.set(island.signature, [island]);
    }
  }

  /** One of each kind of island that the search has not touched, and all that it has. */
  distinct(): Island[] {
    const seen = new Set<string>();
    return this.all.filter(({ touched, signature }) => {
      if (touched > 0) return true;
      if (seen.has(signature)) return false;
      seen.add(signature);
      return true;
    });
  }

  #untouchedLike(island: Island): Island[] {
    if (island.touched > 0) return [island];
    return (this.#alike.get(island.signature) as Island[]).filter(({ touched }) => touched === 0);
  }

  alikeClasses({ island, position }: NodeClass): NodeClass[] {
    return this.#untouchedLike(island).map(({ classes }) => classes[position] as NodeClass);
  }

  alikeCablings(cabling: number): number[] {
    const { island, position } = this.#boxesOf(cabling);
    return this.#untouchedLike(island).map(({ cablings }) => (cablings[position] as FreeBoxes).cabling);
  }

  #boxesOf(cabling: number): { island: Island; position: number; boxes: FreeBoxes } {
    const island = this.all[(this.ledger.fabric.cablings[cabling] as Cabling).island] as Island;
    const position = island.cablings.findIndex((each) => each.cabling === cabling);
    return { island, position, boxes: island.cablings[position] as FreeBoxes };
  }

  /** Numbers of the boxes of a cabling that are free in the ledger. */
  freeBoxes(cabling: number): number[] {
    const { boxes } = this.ledger.fabric.cablings[cabling] as Cabling;
    return boxes.filter((box) => this.ledger.boxTaken[box] === 0);
  }

  takeBox(cabling: number): void {
    const { island, boxes } = this.#boxesOf(cabling);
    boxes.free -= 1;
    island.touched += 1;
    if (this.ledger.cablingTaken[cabling] === 0) this.ledger.cablingsInUse += 1;
    (this.ledger.cablingTaken[cabling] as number) += 1;
  }

  giveBox(cabling: number): void {
    const { island, boxes } = this.#boxesOf(cabling);
    boxes.free += 1;
    island.touched -= 1;
    (this.ledger.cablingTaken[cabling] as number) -= 1;
    if (this.ledger.cablingTaken[cabling] === 0) this.ledger.cablingsInUse -= 1;
  }

  /** Puts a pod on an AX node; on the next one of its class where the search has put nothing there. */
  place(shape: Shape, node: number, untouched: NodeClass | undefined): void {
    if (untouched) {
      untouched.used += 1;
      this.touchedNodes.push(node);
    }
    (this.all[this.ledger.fabric.islandOfNode[node] as number] as Island).touched += 1;
    (this.#pods[node] as number) += 1;
    this.ledger.add(shape, node);
  }

  /** Takes back the last place. */
  take(shape: Shape, node: number, untouched: NodeClass | undefined): void {
    this.ledger.remove(shape, node);
    (this.#pods[node] as number) -= 1;
    (this.all[this.ledger.fabric.islandOfNode[node] as number] as Island).touched -= 1;
    if (!untouched) return;
    untouched.used -= 1;
    this.touchedNodes.pop();
  }

  /** Equal for AX nodes that can change places from here on. */
  stateOf(node: number): string {
    return this.#stateAs(node, (leaf) => leaf);
  }

  #stateAs(node: number, rank: (leaf: number) => number): string {
    const { ledger } = this;
    const leaves = ledger.fabric.leafSets[ledger.fabric.leafSetOfNode[node] as number] as readonly number[];
    const driver = this.exclusion && (ledger.drivers[node] as number) > 0 ? 'd' : '';
    const inUse = (ledger.pods[node] as number) > 0 ? 'u' : '';
    const nics = (ledger.nicsFree[node] as Float64Array).join();
    const free = `${ledger.coresFree[node]} ${ledger.memoryFree[node]} ${nics}`;
    return `${leaves.map(rank).join()} ${free} ${ledger.shards[node]}${driver}${inUse}`;
  }
}

function islandsOf(ledger: Ledger, stateOf: (node: number, rank: (leaf: number) => number) => string): Island[] {
  const { fabric } = ledger;
  const { cluster } = fabric;
  const leaves = groupBy(fabric.islandOfLeaf, fabric.islands);
  const nodes = groupBy(fabric.islandOfNode, fabric.islands);
  const cablings = groupBy(
    fabric.cablings.map(({ island }) => island),
    fabric.islands,
  );
  return Array.from({ length: fabric.islands }, (_, number) => {
    const ranks = new Map((leaves[number] as number[]).map((leaf, rank) => [leaf, rank]));
    const rank = (leaf: number) => ranks.get(leaf) as number;
    const classes = new Map<string, number[]>();
    for (const node of nodes[number] as number[]) {
      if (ledger.drained[node] !== 0) continue;
      const state = stateOf(node, rank);
      const members = classes.get(state);
      if (members) members.push(node);
      else classes.set(state, [node]);
    }
    const sortedClasses = [...classes].sort(byKey);
    const boxes = (cablings[number] as number[]).map((cabling) => {
      const { domains, portBandwidth, boxes: all } = fabric.cablings[cabling] as Cabling;
      const taken = ledger.cablingTaken[cabling] as number;
      const free = all.length - taken;
      const cabled = domains.map((ports) => ports.map(rank).join('+')).join();
      return [`${cabled} ${portBandwidth} ${free}${taken > 0 ? 'u' : ''}`, { cabling, free }] as const;
    });
    const sortedBoxes = boxes.sort(byKey);
    const uplinks = (leaves[number] as number[]).map(
      (leaf) => `${cluster.leaves[leaf]?.uplink}:${ledger.uplinkLoad[leaf]}`,
    );
    const nodeKeys = sortedClasses.map(([state, members]) => `${state} x${members.length}`);
    const parts = [uplinks, nodeKeys, sortedBoxes.map(([key]) => key)];
    const island: Island & { classes: NodeClass[] } = {
      number,
      signature: parts.map((part) => part.join('|')).join('\n'),
      hasNics: ranks.size > 0 && classes.size > 0 && (nodes[number] as number[]).length > 0,
      classes: [],
      cablings: sortedBoxes.map(([, each], position) => ({ ...each, position })),
      touched: 0,
    };
    island.classes = sortedClasses.map(([, members], position) => ({
      island,
      position,
      leafSet: fabric.leafSetOfNode[members[0] as number] as number,
      members,
      used: 0,
    }));
    return island;
  });
}

function groupBy(groupOf: readonly number[], groups: number): number[][] {
  const grouped: number[][] = Array.from({ length: groups }, () => []);
  for (const [item, group] of groupOf.entries()) grouped[group]?.push(item);
  return grouped;
}

function byKey(a: readonly [string, unknown], b: readonly [string, unknown]): number {
  return a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0;
}
