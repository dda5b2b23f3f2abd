import type { AxNode } from './cluster.js';
import type { Stream } from './jobs.js';

/** The way of a stream between a box and an AX node. */
export interface Route {
  /** Leaf that the port of the box is cabled to. */
  readonly boxLeaf: string;
  /** Leaf by which the stream reaches the AX node. */
  readonly nodeLeaf: string;
  /** The two differ: the stream crosses both uplinks and the spine. */
  readonly overSpine: boolean;
}

/** The leaves that an AX node has a NIC on, each once. NICs on the same leaf act as one, with the bandwidth of all. */
export function leavesOf(node: AxNode): string[] {
  return [...new Set(node.nics.map(({ leaf }) => leaf))];
}

/**
 * The way of a stream to an AX node that has a NIC. With a NIC on the leaf of the box's port it is that rail. Without one it
 * crosses the spine and comes in by the NIC whose number is that of the domain, modulo the leaves of the node: known
 * without looking at other streams, and different domains take different NICs.
 */
export function routeOf(stream: Stream, node: AxNode): Route {
  const leaves = leavesOf(node);
  const boxLeaf = stream.leaf;
  if (leaves.includes(boxLeaf)) return { boxLeaf, nodeLeaf: boxLeaf, overSpine: false };
  return { boxLeaf, nodeLeaf: leaves[stream.domain % leaves.length] as string, overSpine: true };
}
