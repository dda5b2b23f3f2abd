import type { Node } from '../prefix_map.js';

/**
 * What goes first among the leaves of one PrefixMap: stored, unpinned columns that no column continues. Made by an
 * EvictionPolicy for that map, which tells it everything that happens and evicts what it names; so what stays is always
 * closed under prefixes.
 *
 * Nodes are numbers from 1 to the capacity, used again after removal. A parent below 0 is a root: a namespace, which
 * belongs to one tenant.
 *
 * The map guarantees: `inserted` comes before anything else about a node and `removed` last, below its parent and
 * before it; `offer` and `withdraw` come in any number and order. The ranking keeps whatever it wants to know in arrays
 * by node, takes no time that grows with the number of columns in any call but `grow`, and depends on nothing but the
 * calls: no clock, no randomness from outside.
 */
export interface LeafRanking {
  /** Leaves that are on offer. */
  readonly size: number;
  /** Bytes that the ranking takes a column of capacity. */
  readonly bytesPerColumn: number;
  /** Makes room for nodes up to `capacity`. What is known is kept. */
  grow(capacity: number): void;
  /**
   * A column continues `parent` from now on. Equal prefixes have equal fingerprints for as long as there is the map,
   * also when they come again after they were removed; unequal ones hardly ever do.
   */
  inserted(node: Node, parent: Node, fingerprint: number): void;
  /** A prompt has reached this column, and with it every one before it, and no column of the map behind it. */
  used(node: Node): void;
  /** The column is a leaf that may be evicted. Harmless where it is on offer. */
  offer(node: Node): void;
  /** The column may not be evicted any more. Harmless where it is not on offer. */
  withdraw(node: Node): void;
  /** The column is gone, `evicted` to make room or for another reason. It is not on offer. */
  removed(node: Node, parent: Node, evicted: boolean): void;
  /** Protected columns go only when there is nothing else on offer. */
  protect(node: Node, on: boolean): void;
  /** The leaf to evict next, of one root if one is named; NONE where nothing is on offer there. It stays on offer. */
  victim(root?: Node): Node;
}
