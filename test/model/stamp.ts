/**
 * The bytes that the piece of a column has in these tests: a function of everything that makes it this piece and no
 * other, so that bytes of a wrong tenant, prefix, shard or generation show.
 */
export interface Stamp {
  readonly tenant: string;
  readonly adapter: string;
  /** All tokens up to the end of the column. */
  readonly prefix: readonly number[];
  readonly shard: number;
  readonly generation: number;
}

export function stampOf(stamp: Stamp, length: number): Uint8Array {
  const text = JSON.stringify([stamp.tenant, stamp.adapter, stamp.prefix, stamp.shard, stamp.generation]);
  let low = 0x811c9dc5;
  let high = 0x01234567;
  for (let index = 0; index < text.length; index += 1) {
    low = Math.imul(low ^ text.charCodeAt(index), 0x01000193);
    high = Math.imul(high ^ low ^ (low >>> 15), 0x85ebca6b);
  }
  const bytes = new Uint8Array(length);
  for (let index = 0; index < length; index += 1) {
    low = Math.imul(low ^ (low >>> 13), 0x5bd1e995) + high;
    high = Math.imul(high ^ (high >>> 16), 0xc2b2ae35) ^ index;
    bytes[index] = (low ^ (high >>> 7)) >>> 11;
  }
  return bytes;
}

export function sameBytes(left: Uint8Array, right: Uint8Array): boolean {
  return left.length === right.length && left.every((byte, index) => byte === right[index]);
}
