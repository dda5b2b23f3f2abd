import { randomInt } from 'node:crypto';

/**
 * Fingerprints of prefixes: 64 bits as two 32-bit halves, of all tokens up to and including a column, whoever's they
 * are. Figures hang on them and nothing else: which bytes are served is the PrefixMap's, which compares in full.
 *
 * The seed is random in each driver, so that nobody outside can prepare prompts that share a fingerprint, and
 * fingerprints of one driver say nothing in another. They are no cryptographic hash: keep them inside the process.
 *
 * Two lanes a half, of multiply and shift, and every token goes into both halves: whatever two columns differ in, both
 * halves have to collide by themselves.
 */
export class Fingerprint {
  readonly #low: number;
  readonly #high: number;

  /** The seed: two numbers of 32 bits, random if left out. */
  constructor(low: number = randomInt(2 ** 32), high: number = randomInt(2 ** 32)) {
    this.#low = low | 0;
    this.#high = high | 0;
  }

  /**
   * Writes the fingerprint of a prefix to `out[outAt]` (low half) and `out[outAt + 1]` (high half): of the column of
   * `length` tokens that begins with `tokens[at]`, below the prefix whose fingerprint is `parentLow`, `parentHigh`; 0, 0
   * for the first column. `extra`: a number, 32 bits, of what else makes the KV state of the same tokens another one, such
   * as model and adapter. Never of the tenant. The caller has seen that the tokens are there.
   */
  chain(
    parentLow: number,
    parentHigh: number,
    tokens: Uint32Array,
    at: number,
    length: number,
    extra: number,
    out: Uint32Array,
    outAt = 0,
  ): void {
    let a = this.#low ^ parentLow;
    let b = Math.imul(this.#low ^ extra, 0x9e3779b1) ^ parentHigh;
    let c = Math.imul(this.#high ^ parentHigh, 0x85ebca6b) ^ length;
    let d = this.#high ^ Math.imul(parentLow ^ extra, 0xc2b2ae35);
    let index = at;
    const end = at + length;
    for (; index + 2 <= end; index += 2) {
      const even = tokens[index] as number;
      const odd = tokens[index + 1] as number;
      a = Math.imul(a ^ even, 0xcc9e2d51);
      b = Math.imul(b ^ odd, 0x1b873593);
      c = Math.imul(c ^ even, 0x2c1b3c6d);
      d = Math.imul(d ^ odd, 0x297a2d39);
      a ^= a >>> 15;
      b ^= b >>> 13;
      c ^= c >>> 12;
      d ^= d >>> 17;
    }
    if (index < end) {
      const last = tokens[index] as number;
      a = Math.imul(a ^ last, 0x9e3779b1);
      c = Math.imul(c ^ last, 0x7feb352d);
      a ^= a >>> 15;
      c ^= c >>> 12;
    }
    // Both halves depend on all lanes; each lane alone still decides its half, so none is lost.
    let low = Math.imul(a ^ (b >>> 16), 0x85ebca6b) ^ Math.imul(b ^ (d >>> 15), 0xc2b2ae35) ^ (c << 7);
    low = Math.imul(low ^ (low >>> 16), 0x7feb352d);
    low = Math.imul(low ^ (low >>> 15), 0x846ca68b);
    let high = Math.imul(c ^ (d >>> 16), 0x9e3779b1) ^ Math.imul(d ^ (a >>> 15), 0x27d4eb2f) ^ (b << 9);
    high = Math.imul(high ^ (high >>> 15), 0x2c1b3c6d);
    high = Math.imul(high ^ (high >>> 12), 0x297a2d39);
    out[outAt] = low ^ (low >>> 16);
    out[outAt + 1] = high ^ (high >>> 15);
  }

  /**
   * Writes the fingerprints of columns `from` to `end` of a prompt to `out`, two numbers a column: those of column c at
   * `out[2 * c]`. Where `from` is not 0, those of column `from - 1` are there already.
   */
  chainAll(
    tokens: Uint32Array,
    columnTokens: number,
    from: number,
    end: number,
    extra: number,
    out: Uint32Array,
  ): void {
    let low = from === 0 ? 0 : (out[2 * from - 2] as number);
    let high = from === 0 ? 0 : (out[2 * from - 1] as number);
    for (let column = from; column < end; column += 1) {
      this.chain(low, high, tokens, column * columnTokens, columnTokens, extra, out, 2 * column);
      low = out[2 * column] as number;
      high = out[2 * column + 1] as number;
    }
  }
}
