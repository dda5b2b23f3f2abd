/**
 * Why tokens of a prompt were not hit.
 *
 * - `neverStored`: this namespace has never stored them, as far as the driver remembers, or has forgotten them on request.
 * - `evicted`: they made room for others.
 * - `expired`: their time to live had passed.
 * - `otherTenant`: other namespaces have them and this one never had. For the operator only: a tenant that could see it
 *   could guess at the prompts of others.
 * - `groupMissing`: a group of layers, such as a sliding window, has not got its part.
 * - `shardDown`: they went with a shard, or lie on one that cannot be used now.
 * - `policy`: the policy had refused to store them.
 * - `partial`: the end of a prompt that fills no column. Nothing can hit it; it is here so that hits and misses make up
 *   the whole prompt.
 */
export const MISS_CAUSES = [
  'neverStored',
  'evicted',
  'expired',
  'otherTenant',
  'groupMissing',
  'shardDown',
  'policy',
  'partial',
] as const;

/** Why tokens of a prompt were not hit; see MISS_CAUSES. */
export type MissCause = (typeof MISS_CAUSES)[number];

const PLACE = Object.fromEntries(MISS_CAUSES.map((cause, place) => [cause, place])) as Record<MissCause, number>;

/** Tokens that were missed, by cause. */
export class MissTally {
  readonly #tokens = new Float64Array(MISS_CAUSES.length);

  /** Counts `tokens` more for a cause. */
  add(cause: MissCause, tokens: number): void {
    const place = PLACE[cause];
    this.#tokens[place] = (this.#tokens[place] as number) + tokens;
  }

  /** Tokens that were missed for this cause. */
  of(cause: MissCause): number {
    return this.#tokens[PLACE[cause]] as number;
  }

  /** Tokens that were missed for any cause. */
  get total(): number {
    let sum = 0;
    for (let place = 0; place < this.#tokens.length; place += 1) sum += this.#tokens[place] as number;
    return sum;
  }

  /** Counts all of another tally's tokens too. */
  merge(other: MissTally): void {
    for (let place = 0; place < this.#tokens.length; place += 1) {
      this.#tokens[place] = (this.#tokens[place] as number) + (other.#tokens[place] as number);
    }
  }

  /** Back to nothing, to be used again. */
  clear(): void {
    this.#tokens.fill(0);
  }

  /** Every cause with its tokens, those without any too. */
  toJSON(): Record<MissCause, number> {
    return Object.fromEntries(MISS_CAUSES.map((cause) => [cause, this.of(cause)])) as Record<MissCause, number>;
  }
}
