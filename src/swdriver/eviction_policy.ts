/** What a policy may know of a leaf: a stored, unpinned column that no stored column continues. */
export interface LeafFacts {
  /** When a prompt last reached this column or one that continued it. Ticks of the PrefixMap: larger is later. */
  lastUse: number;
}

/**
 * Chooses what goes first when room is needed. The PrefixMap offers leaves only, so that what stays is always closed
 * under prefixes; a policy ranks them. It is asked again whenever a column becomes a leaf or is used, and has to be
 * a pure function of the facts between those moments.
 */
export interface EvictionPolicy {
  readonly name: string;
  /** The leaf with the lowest priority is evicted first. The object is reused: read it, do not keep it. */
  priority(leaf: LeafFacts): number;
}

/** Least recently used first. */
export const lru: EvictionPolicy = { name: 'lru', priority: (leaf) => leaf.lastUse };
