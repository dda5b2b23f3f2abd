/** What a driver has counted since it started. */
export interface DriverStats {
  lookups: number;
  promptTokens: number;
  hitTokens: number;
  columnsEvicted: number;
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
  partsEvicted: number;
  partsRefilled: number;
  /** Parts that made room for others while their columns stayed. Only in groups that do not keep whole prefixes. */
  partsDropped: number;
  bytesEvicted: number;
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
