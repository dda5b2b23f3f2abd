import type { PlacedColumn } from './wafer.js';

const BYTES = 16;

/** Columns as they travel in a control frame: 64 bits of place and 64 bits of key each, little-endian. */
export function packColumns(columns: readonly PlacedColumn[]): Uint8Array {
  const bytes = new Uint8Array(columns.length * BYTES);
  const view = new DataView(bytes.buffer);
  for (const [index, { place, key }] of columns.entries()) {
    view.setBigUint64(index * BYTES, BigInt(place), true);
    view.setBigUint64(index * BYTES + 8, key, true);
  }
  return bytes;
}

/** What packColumns packs. */
export function unpackColumns(bytes: Uint8Array): PlacedColumn[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: bytes.length / BYTES }, (_, index) => ({
    place: Number(view.getBigUint64(index * BYTES, true)),
    key: view.getBigUint64(index * BYTES + 8, true),
  }));
}
