import { localError } from '../common/errors.js';

/** A column on its way between a runtime and the store. */
export interface ColumnRef {
  /** Position in the prefix: the column holds tokens `index * columnTokens` and following. */
  readonly index: number;
  /** Group of layers that the pieces belong to; `full` in a model without groups. */
  readonly group: string;
  /** Tag of the tenant, as the shards know it. */
  readonly tenantTag: bigint;
  /** Generation under which the column is stored. Rises with every evict of a driver; below 2^53. */
  readonly generation: number;
}

/**
 * Memory of a runtime in which columns lie at numbered places: a column at place p has its piece for member s of a stripe
 * at byte `p * regions[s].strideBytes` of `regions[s].memory`.
 */
export interface ColumnMemory {
  /** Columns that there is room for, numbered from 0. */
  readonly places: number;
  /** One region for each member of a stripe. */
  readonly regions: readonly { readonly memory: ArrayBuffer; readonly strideBytes: number }[];
}

/**
 * Produces the pieces of columns: the wafer, a GPU engine, a CPU runtime, an emulator. One of three ways. A column of a
 * model with groups is asked for once a group; pieces of shards without layers of the group are empty. Where the runtime
 * has a column no more in a group that not every column needs, such as a window that has slid on, the column is stored
 * without.
 *
 * `write` puts the pieces straight into the slots, the cheapest way in the same host: `pieces[s]` is the slot of shard s.
 * The answer is whether the runtime has the column; where it has not, evicting ends before it.
 *
 * `locate` says where the piece of one shard lies in the runtime's own memory; the driver copies it once. It may
 * also answer undefined.
 *
 * `place` says at which place of the runtime's ColumnMemory, or of its carrier's, the column lies. Streams send it straight
 * from there; in the same host the driver copies it once. It may also answer undefined. The place must not change before
 * the evict has ended.
 */
export type PieceSource =
  | { write(column: ColumnRef, pieces: readonly Uint8Array[]): boolean | Promise<boolean> }
  | { locate(column: ColumnRef, shard: number): Uint8Array | undefined }
  | { place(column: ColumnRef): number | undefined };

/**
 * Takes the pieces of columns back: group after group, in order from the first that the group needs.
 *
 * `read` sees the slots in place. The bytes stay what they are until the hit is released, or its pin deadline passes.
 *
 * `locate` says where the piece of one shard is to be copied.
 *
 * `place` says at which place of the runtime's ColumnMemory, or of its carrier's, the column is to be put; where there is
 * no room it answers undefined, and the refill ends before the column. Streams receive it straight into there. Places of
 * columns that were not restored must not be used before RefillResult.quiet.
 */
export type PieceSink =
  | { read(column: ColumnRef, pieces: readonly Uint8Array[]): void | Promise<void> }
  | { locate(column: ColumnRef, shard: number): Uint8Array }
  | { place(column: ColumnRef): number | undefined };

/** Throws KVSS_BAD_INPUT where the runtime's memory for a piece is not as long as the piece. */
export function checkLength(bytes: Uint8Array, piece: Uint8Array, shard: number): void {
  if (bytes.length === piece.length) return;
  throw localError(
    'KVSS_BAD_INPUT',
    `the piece of shard ${shard} has ${piece.length} bytes, the runtime named ${bytes.length}`,
  );
}

/** What sources and sinks can do. */
const ENDS = ['write', 'read', 'locate', 'place'] as const;

/** Throws KVSS_BAD_INPUT where a source or a sink does not fit what the driver was told of the runtime's memory. */
export function checkEnds(ends: PieceSource | PieceSink, places: number, placedByRuntime: boolean): void {
  if (typeof ends !== 'object' || ends === null || !ENDS.some((end) => end in ends)) {
    throw localError('KVSS_BAD_INPUT', `a source or sink needs one of ${ENDS.join(', ')}`);
  }
  if ('place' in ends) {
    if (places === 0) {
      throw localError('KVSS_BAD_INPUT', 'place: the driver has neither memory nor a carrier that has places');
    }
  } else if (placedByRuntime) {
    throw localError(
      'KVSS_BAD_INPUT',
      'streams move what lies in the memory of the runtime: give a source or sink with place',
    );
  }
}

/** Throws KVSS_BAD_INPUT where a runtime names a place that it has not. */
export function checkPlace(place: number, places: number): number {
  if (Number.isInteger(place) && place >= 0 && place < places) return place;
  throw localError('KVSS_BAD_INPUT', `place: the runtime named ${place}, its memory has ${places} places`);
}
