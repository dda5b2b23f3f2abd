import type { Fingerprint } from './fingerprint.js';

/** Fingerprints of the columns of one prompt, two halves each, computed once and as far as they are wanted. */
export class PromptFingerprints {
  #halves = new Uint32Array(0);
  #columns = 0;

  /** What sequences of one namespace have in common besides tokens: a number of 32 bits; see Fingerprint.chain. */
  constructor(
    private readonly extra: number,
    /** What a column holds besides tokens, as a number. */
    private readonly extraOf: (column: number) => number = () => 0,
  ) {}

  /** Those of column c at `2 * c` and behind it. */
  get halves(): Uint32Array {
    return this.#halves;
  }

  low(column: number): number {
    return this.#halves[2 * column] as number;
  }

  high(column: number): number {
    return this.#halves[2 * column + 1] as number;
  }

  /** Makes room for so many columns. */
  reserve(columns: number): void {
    if (2 * columns <= this.#halves.length) return;
    const larger = new Uint32Array(2 * columns);
    larger.set(this.#halves);
    this.#halves = larger;
  }

  /** The fingerprint of a column is known already; those before it are too. */
  set(column: number, low: number, high: number): void {
    this.#halves[2 * column] = low;
    this.#halves[2 * column + 1] = high;
    this.#columns = column + 1;
  }

  /** Forgets those from a column on: its tokens are others now. */
  cut(columns: number): void {
    this.#columns = Math.min(this.#columns, columns);
  }

  /** Computes those of columns up to `end` that are not known, from `from` on at the earliest. */
  extend(fingerprint: Fingerprint, tokens: Uint32Array, columnTokens: number, from: number, end: number): void {
    this.reserve(end);
    const halves = this.#halves;
    for (let column = Math.min(from, this.#columns); column < end; column += 1) {
      const low = column === 0 ? 0 : (halves[2 * column - 2] as number);
      const high = column === 0 ? 0 : (halves[2 * column - 1] as number);
      const extra = this.extra ^ this.extraOf(column);
      fingerprint.chain(low, high, tokens, column * columnTokens, columnTokens, extra, halves, 2 * column);
    }
    this.#columns = Math.max(this.#columns, end);
  }
}
