/** What a driver has counted since it started. */
export interface DriverStats {
  /** Prompts looked up: calls of Sequence.match. */
  lookups: number;
  /** Tokens of those prompts. */
  promptTokens: number;
  /** Tokens of them that were matched. */
  hitTokens: number;
  /** Columns stored. */
  columnsEvicted: number;
  /** Columns that runtimes have got back. */
  columnsRefilled: number;
  /** Columns that made room for others or were forgotten on request. */
  columnsDeleted: number;
  /** Columns whose time to live had passed. */
  columnsExpired: number;
  /** Columns of hits that could not be refilled after all. */
  refillMisses: number;
  /** Columns that found no room, or whose evict failed. */
  columnsDropped: number;
  /** Columns lost because a shard went. */
  columnsLost: number;
}

/** What a driver has moved of one group of layers since it started, in parts: what a column has of the group. */
export interface GroupStats {
  readonly name: string;
  /** Parts stored. */
  partsEvicted: number;
  /** Parts that runtimes have got back. */
  partsRefilled: number;
  /** Parts that made room for others while their columns stayed. Only in groups that do not keep whole prefixes. */
  partsDropped: number;
  /** Bytes of the stored parts, on all shards of a stripe together. */
  bytesEvicted: number;
  /** Bytes of the parts that runtimes have got back. */
  bytesRefilled: number;
}

export function noStats(): DriverStats {
  return {
    lookups: 0,
    promptTokens: 0,
    hitTokens: 0,
    columnsEvicted: 0,
    columnsRefilled: 0,
    columnsDeleted: 0,
    columnsExpired: 0,
    refillMisses: 0,
    columnsDropped: 0,
    columnsLost: 0,
  };
}
