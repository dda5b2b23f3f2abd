/** Nothing is known about it. */
export const UNKNOWN = -1;

const WAYS = 8;

/**
 * What became of columns that were looked at, cached or not: a table of fingerprints that forgets what has been seen
 * longest ago. It remembers a sample of all columns, and so a multiple of what the cache holds.
 *
 * An entry is the number of a slot. Fields are arrays by slot.
 */
export class PastPrompts {
  readonly slots: number;
  readonly #sets: number;
  readonly #fingerprint: Uint32Array;
  /** When a prompt last went through the column; below 0 in empty slots. */
  readonly lastUse: Float64Array;
  /** How the reuse of the column is predicted since then. */
  readonly kind: Uint8Array;
  /** Prompts that the conversation of that prompt had had before. */
  readonly turn: Uint8Array;
  /** Place of the column in its prompt, and columns of that prompt; from 65,535 on they are not told apart. */
  readonly depth: Uint16Array;
  readonly promptColumns: Uint16Array;
  /** Prompts that have gone through the column, as far as they were seen. */
  readonly uses: Uint8Array;
  /** Age bucket of the column when that prompt came. */
  readonly gap: Uint8Array;

  static readonly bytesPerSlot = 4 + 8 + 1 + 1 + 2 + 2 + 1 + 1;

  constructor(slots: number) {
    this.#sets = Math.max(1, Math.ceil(slots / WAYS));
    this.slots = this.#sets * WAYS;
    this.#fingerprint = new Uint32Array(this.slots);
    this.lastUse = new Float64Array(this.slots).fill(UNKNOWN);
    this.kind = new Uint8Array(this.slots);
    this.turn = new Uint8Array(this.slots);
    this.depth = new Uint16Array(this.slots);
    this.promptColumns = new Uint16Array(this.slots);
    this.uses = new Uint8Array(this.slots);
    this.gap = new Uint8Array(this.slots);
  }

  /** The slot of a fingerprint, UNKNOWN where there is none. */
  find(fingerprint: number): number {
    const first = this.#firstOf(fingerprint);
    for (let slot = first; slot < first + WAYS; slot += 1) {
      if (this.#fingerprint[slot] === fingerprint && (this.lastUse[slot] as number) >= 0) return slot;
    }
    return UNKNOWN;
  }

  /** A slot for a fingerprint that has none: an empty one, or the one of its set that has not been used for longest. */
  take(fingerprint: number): number {
    const first = this.#firstOf(fingerprint);
    let oldest = first;
    for (let slot = first + 1; slot < first + WAYS; slot += 1) {
      if ((this.lastUse[slot] as number) < (this.lastUse[oldest] as number)) oldest = slot;
    }
    this.#fingerprint[oldest] = fingerprint;
    return oldest;
  }

  /** Copies what another table knows, as far as there is room. */
  copyFrom(other: PastPrompts): void {
    for (let from = 0; from < other.slots; from += 1) {
      if ((other.lastUse[from] as number) < 0) continue;
      const to = this.take(other.#fingerprint[from] as number);
      if ((this.lastUse[to] as number) > (other.lastUse[from] as number)) continue;
      this.lastUse[to] = other.lastUse[from] as number;
      this.kind[to] = other.kind[from] as number;
      this.turn[to] = other.turn[from] as number;
      this.depth[to] = other.depth[from] as number;
      this.promptColumns[to] = other.promptColumns[from] as number;
      this.uses[to] = other.uses[from] as number;
      this.gap[to] = other.gap[from] as number;
    }
  }

  #firstOf(fingerprint: number): number {
    // The low bits say whether a column is in the sample at all.
    const mixed = Math.imul(fingerprint ^ (fingerprint >>> 15), 0x9e3779b1) >>> 0;
    return (mixed % this.#sets) * WAYS;
  }
}
