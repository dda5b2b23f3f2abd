/**
 * Hash of one column's tokens below a parent, 32 bits. It only chooses the bucket: the PrefixMap compares parent and
 * tokens in full, so collisions cost time and never correctness. The seed is random in each map, so that nobody
 * outside can prepare prompts that share a bucket.
 *
 * Four independent lanes of multiply and rotate, joined at the end, so that the multiplications overlap.
 */
export function hashColumn(parent: number, tokens: Uint32Array, at: number, length: number, seed: number): number {
  let a = seed ^ parent;
  let b = Math.imul(seed, 0x9e3779b1) ^ length;
  let c = seed + 0x85ebca6b;
  let d = Math.imul(parent, 0xc2b2ae35) ^ seed;
  let index = at;
  const end = at + length;
  for (; index + 4 <= end; index += 4) {
    a = Math.imul(a ^ (tokens[index] as number), 0xcc9e2d51);
    b = Math.imul(b ^ (tokens[index + 1] as number), 0x1b873593);
    c = Math.imul(c ^ (tokens[index + 2] as number), 0x85ebca6b);
    d = Math.imul(d ^ (tokens[index + 3] as number), 0xc2b2ae35);
    a ^= a >>> 15;
    b ^= b >>> 13;
    c ^= c >>> 16;
    d ^= d >>> 14;
  }
  for (; index < end; index += 1) a = Math.imul(a ^ (tokens[index] as number), 0x9e3779b1) ^ (a >>> 15);
  let hash = Math.imul(a ^ (b >>> 16), 0x85ebca6b) ^ Math.imul(c ^ (d >>> 15), 0xc2b2ae35) ^ (b << 16) ^ d;
  hash = Math.imul(hash ^ (hash >>> 16), 0x7feb352d);
  hash = Math.imul(hash ^ (hash >>> 15), 0x846ca68b);
  return (hash ^ (hash >>> 16)) >>> 0;
}
