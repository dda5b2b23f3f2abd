import { localError } from '../common/errors.js';

/** A column on its way between a runtime and the store. */
export interface ColumnRef {
  /** Position in the prefix: the column holds tokens `index * columnTokens` and following. */
  readonly index: number;
  /** Tag of the tenant, as the shards know it. */
  readonly tenantTag: bigint;
  /** Generation under which the column is stored. Rises with every evict of a driver; below 2^53. */
  readonly generation: number;
}

/**
 * Produces the pieces of columns: the wafer, a GPU engine, a CPU runtime, an emulator. One of the two ways.
 *
 * `write` puts the pieces straight into the slots, the cheapest way in the same host: `pieces[s]` is the slot of shard s.
 * The answer is whether the runtime has the column; where it has not, evicting ends before it.
 *
 * `locate` says where the piece of one shard lies in the runtime's own memory; the driver copies it once. It may
 * also answer undefined.
 */
export type PieceSource =
  | { write(column: ColumnRef, pieces: readonly Uint8Array[]): boolean | Promise<boolean> }
  | { locate(column: ColumnRef, shard: number): Uint8Array | undefined };

/**
 * Takes the pieces of columns back, in order from the first.
 *
 * `read` sees the slots in place. The bytes stay what they are until the hit is released, or its pin deadline passes.
 *
 * `locate` says where the piece of one shard is to be copied.
 */
export type PieceSink =
  | { read(column: ColumnRef, pieces: readonly Uint8Array[]): void | Promise<void> }
  | { locate(column: ColumnRef, shard: number): Uint8Array };

/** Throws KVSS_BAD_INPUT where the runtime's memory for a piece is not as long as the piece. */
export function checkLength(bytes: Uint8Array, piece: Uint8Array, shard: number): void {
  if (bytes.length === piece.length) return;
  throw localError(
    'KVSS_BAD_INPUT',
    `the piece of shard ${shard} has ${piece.length} bytes, the runtime named ${bytes.length}`,
  );
}
