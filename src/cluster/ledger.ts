import { type Fabric, fabricOf } from './fabric.js';
import type { Pod } from './jobs.js';
import type { Snapshot } from './snapshot.js';

/** What a pod asks of an AX node. Pods of the same shape can change places. */
export interface Shape {
  /** Equal for equal shapes. */
  readonly key: string;
  readonly cores: number;
  readonly memory: number;
  /** It is a SwDriver. */
  readonly driver: boolean;
  /** It is a KVSS shard. */
  readonly shard: boolean;
  /** Bandwidth to each leaf that its streams leave their box at, of each domain. */
  readonly streams: readonly { readonly leaf: number; readonly domain: number; readonly bandwidth: number }[];
  /** What it takes of AX nodes with each set of leaves; null where it has streams and they no NIC. Filled when asked for. */
  readonly footprints: (Footprint | null | undefined)[];
}

/** What the streams of a shape take. All in bytes a second. */
export interface Footprint {
  /** Of the NICs on each leaf of the node's set. */
  readonly nics: readonly number[];
  /** Of uplinks: pairs of a leaf and the bandwidth. */
  readonly uplinks: readonly (readonly [leaf: number, bandwidth: number])[];
  readonly spine: number;
}

/** Why a pod cannot run on an AX node. */
export type Obstacle = 'drained' | 'exclusion' | 'cores' | 'memory' | 'no NIC' | 'NIC bandwidth' | 'spine';

/** What placements must keep to besides what the hardware has. */
export interface Rules {
  /** No two SwDrivers on one AX node. */
  readonly exclusion: boolean;
  /** No stream crosses the spine. */
  readonly rejectSpine: boolean;
}

/** Shapes of pods that were seen before; pods of a snapshot come again with every ledger. */
const seen = new WeakMap<Fabric, WeakMap<Pod, Shape>>();

/** What is free and what is in use: a snapshot, added up, that can be changed and changed back. */
export class Ledger {
  readonly fabric: Fabric;
  readonly coresFree: Float64Array;
  readonly memoryFree: Float64Array;
  /** Of each AX node, on each leaf of its set. */
  readonly nicsFree: readonly Float64Array[];
  readonly pods: Int32Array;
  readonly drivers: Int32Array;
  readonly shards: Int32Array;
  readonly drained: Uint8Array;
  readonly uplinkLoad: Float64Array;
  readonly boxTaken: Uint8Array;
  /** Boxes that are taken, of each cabling. */
  readonly cablingTaken: Int32Array;
  spine = 0;
  nodesInUse = 0;
  cablingsInUse = 0;
  readonly #shapes = new Map<string, Shape>();
  readonly #seen: WeakMap<Pod, Shape>;

  constructor(snapshot: Snapshot) {
    this.fabric = fabricOf(snapshot.cluster);
    this.#seen = seen.get(this.fabric) ?? new WeakMap();
    seen.set(this.fabric, this.#seen);
    const { nodes, leaves, boxes } = snapshot.cluster;
    this.coresFree = Float64Array.from(nodes, ({ cores }) => cores);
    this.memoryFree = Float64Array.from(nodes, ({ memory }) => memory);
    this.nicsFree = this.fabric.nicsOfNode.map((nics) => Float64Array.from(nics));
    this.pods = new Int32Array(nodes.length);
    this.drivers = new Int32Array(nodes.length);
    this.shards = new Int32Array(nodes.length);
    this.drained = new Uint8Array(nodes.length);
    this.uplinkLoad = new Float64Array(leaves.length);
    this.boxTaken = new Uint8Array(boxes.length);
    this.cablingTaken = new Int32Array(this.fabric.cablings.length);
    for (const name of snapshot.drained) this.drained[this.nodeNumber(name)] = 1;
    for (const job of snapshot.jobs) {
      for (const box of job.boxes) this.takeBox(this.fabric.boxNumber.get(box) as number);
      for (const { pod, node } of job.pods) this.add(this.shapeOf(pod), this.nodeNumber(node));
    }
  }

  nodeNumber(name: string): number {
    return this.fabric.nodeNumber.get(name) as number;
  }

  shapeOf(pod: Pod): Shape {
    const known = this.#seen.get(pod);
    if (known) return known;
    const shape = this.#shapeOf(pod);
    this.#seen.set(pod, shape);
    return shape;
  }

  #shapeOf({ spec, streams }: Pod): Shape {
    const ways: { leaf: number; domain: number; bandwidth: number }[] = [];
    for (const { leaf: name, domain, bandwidth } of streams) {
      const leaf = this.fabric.leafNumber.get(name) as number;
      const way = ways.find((each) => each.leaf === leaf && each.domain === domain);
      if (way) way.bandwidth += bandwidth;
      else ways.push({ leaf, domain, bandwidth });
    }
    const kind = spec.kind === 'swdriver' || spec.kind === 'kvss' ? spec.kind : '';
    let key = `${kind} ${spec.cores} ${spec.memory}`;
    for (const { leaf, domain, bandwidth } of ways) key += ` ${leaf}/${domain}:${bandwidth}`;
    let shape = this.#shapes.get(key);
    if (!shape) {
      shape = {
        key,
        cores: spec.cores,
        memory: spec.memory,
        driver: spec.kind === 'swdriver',
        shard: spec.kind === 'kvss',
        streams: ways,
        footprints: [],
      };
      this.#shapes.set(key, shape);
    }
    return shape;
  }

  /** What a shape takes of AX nodes with a set of leaves; null where they have none and it needs one. */
  footprint(shape: Shape, leafSet: number): Footprint | null {
    const known = shape.footprints[leafSet];
    if (known !== undefined) return known;
    const footprint = this.#trace(shape, this.fabric.leafSets[leafSet] as readonly number[]);
    shape.footprints[leafSet] = footprint;
    return footprint;
  }

  /** The same way that routeOf finds for each stream. */
  #trace({ streams }: Shape, leaves: readonly number[]): Footprint | null {
    if (streams.length > 0 && leaves.length === 0) return null;
    const nics = leaves.map(() => 0);
    const uplinks = new Map<number, number>();
    let spine = 0;
    for (const { leaf, domain, bandwidth } of streams) {
      const rail = leaves.indexOf(leaf);
      const slot = rail === -1 ? domain % leaves.length : rail;
      nics[slot] = (nics[slot] as number) + bandwidth;
      if (rail !== -1) continue;
      spine += bandwidth;
      for (const end of [leaf, leaves[slot] as number]) uplinks.set(end, (uplinks.get(end) ?? 0) + bandwidth);
    }
    return { nics, uplinks: [...uplinks], spine };
  }

  footprintOn(shape: Shape, node: number): Footprint | null {
    return this.footprint(shape, this.fabric.leafSetOfNode[node] as number);
  }

  /** Why a pod of this shape cannot run on the AX node, or undefined if it can. */
  obstacle(shape: Shape, node: number, rules: Rules): Obstacle | undefined {
    if (this.drained[node] !== 0) return 'drained';
    if (rules.exclusion && shape.driver && (this.drivers[node] as number) > 0) return 'exclusion';
    if (shape.cores > (this.coresFree[node] as number)) return 'cores';
    if (shape.memory > (this.memoryFree[node] as number)) return 'memory';
    const footprint = this.footprintOn(shape, node);
    if (!footprint) return 'no NIC';
    if (rules.rejectSpine && footprint.spine > 0) return 'spine';
    const free = this.nicsFree[node] as Float64Array;
    for (let slot = 0; slot < footprint.nics.length; slot += 1) {
      if ((footprint.nics[slot] as number) > (free[slot] as number)) return 'NIC bandwidth';
    }
    return undefined;
  }

  add(shape: Shape, node: number): void {
    this.#change(shape, node, 1);
  }

  remove(shape: Shape, node: number): void {
    this.#change(shape, node, -1);
  }

  #change(shape: Shape, node: number, sign: 1 | -1): void {
    const inUse = (this.pods[node] as number) > 0;
    (this.coresFree[node] as number) -= sign * shape.cores;
    (this.memoryFree[node] as number) -= sign * shape.memory;
    (this.pods[node] as number) += sign;
    if (shape.driver) (this.drivers[node] as number) += sign;
    if (shape.shard) (this.shards[node] as number) += sign;
    this.nodesInUse += Number((this.pods[node] as number) > 0) - Number(inUse);
    const footprint = this.footprintOn(shape, node);
    if (!footprint) return;
    const free = this.nicsFree[node] as Float64Array;
    for (let slot = 0; slot < footprint.nics.length; slot += 1) {
      (free[slot] as number) -= sign * (footprint.nics[slot] as number);
    }
    for (const [leaf, bandwidth] of footprint.uplinks) (this.uplinkLoad[leaf] as number) += sign * bandwidth;
    this.spine += sign * footprint.spine;
  }

  takeBox(box: number): void {
    this.boxTaken[box] = 1;
    const cabling = this.fabric.cablingOfBox[box] as number;
    if (this.cablingTaken[cabling] === 0) this.cablingsInUse += 1;
    (this.cablingTaken[cabling] as number) += 1;
  }

  freeBox(box: number): void {
    this.boxTaken[box] = 0;
    const cabling = this.fabric.cablingOfBox[box] as number;
    (this.cablingTaken[cabling] as number) -= 1;
    if (this.cablingTaken[cabling] === 0) this.cablingsInUse -= 1;
  }

  /** Load of an uplink, as a share of its bandwidth. */
  uplinkShare(leaf: number): number {
    return (this.uplinkLoad[leaf] as number) / (this.fabric.cluster.leaves[leaf]?.uplink as number);
  }

  /** Of the most loaded one. */
  mostLoadedUplink(): number {
    let most = 0;
    for (let leaf = 0; leaf < this.uplinkLoad.length; leaf += 1) most = Math.max(most, this.uplinkShare(leaf));
    return most;
  }
}
