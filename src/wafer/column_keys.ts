/** Key of every full column: a running hash of the tenant and all tokens up to the end of the column. */
export function columnKeys(isolationId: string, tokens: Uint32Array, columnTokens: number): BigUint64Array {
  let low = 0x811c9dc5;
  let high = 0x2545f491;
  for (let index = 0; index < isolationId.length; index += 1) {
    low = Math.imul(low ^ isolationId.charCodeAt(index), 0x01000193);
    high = Math.imul(high ^ low, 0x85ebca6b) ^ (high >>> 15);
  }
  const keys = new BigUint64Array(Math.floor(tokens.length / columnTokens));
  const words = new Uint32Array(keys.buffer);
  for (let column = 0; column < keys.length; column += 1) {
    const end = (column + 1) * columnTokens;
    for (let at = column * columnTokens; at < end; at += 1) {
      const token = tokens[at] as number;
      low = Math.imul(low ^ token, 0xcc9e2d51) ^ (low >>> 15);
      high = Math.imul(high + token, 0x1b873593) ^ (high >>> 13);
    }
    words[2 * column] = low ^ (high >>> 7);
    words[2 * column + 1] = high;
  }
  return keys;
}
