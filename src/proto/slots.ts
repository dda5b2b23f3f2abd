import { CACHE_LINE_BYTES } from './generated.js';

/** Bytes from one slot to the next for pieces of this size: whole cache lines, so that no two pieces share one. */
export function slotBytesOf(pieceBytes: number): number {
  return Math.ceil(pieceBytes / CACHE_LINE_BYTES) * CACHE_LINE_BYTES;
}
