import { AGE_BUCKETS, BUCKET_START, bucketOf } from './age_buckets.js';

/** No gap: the conversation has had one prompt. An age bucket otherwise. */
export const NO_GAP = 255;

// The properties of a kind. Products of these are the kinds; 252 fit a byte.
const TURNS = 7;
const GAPS = 4;
const NOVELTIES = 3;
const LENGTHS = 3;
export const KINDS = TURNS * GAPS * NOVELTIES * LENGTHS;

const SHARED = 5;
const WIDELY_SHARED = 6;

/** Rounds in which the factors of the three properties are fitted to each other. */
const FITTING_ROUNDS = 3;

const turnOf = (kind: number) => Math.floor(kind / (GAPS * NOVELTIES * LENGTHS));
const gapOf = (kind: number) => Math.floor(kind / (NOVELTIES * LENGTHS)) % GAPS;
const noveltyOf = (kind: number) => Math.floor(kind / LENGTHS) % NOVELTIES;
const lengthOf = (kind: number) => kind % LENGTHS;

/** What is known of a prompt when it has been seen to its end. */
export interface PromptFacts {
  /** Whether it continues an earlier prompt, rather than sharing only a beginning with others. */
  continues: boolean;
  columns: number;
  /** Columns from the first that some earlier prompt had too, cached or not. */
  known: number;
  /** Prompts that the conversation had before. */
  turn: number;
}

/**
 * Learns how likely columns are to be used again, from what is seen: a rate of use by age, times what the kind of
 * column makes of it. The rate says how many uses a column-tick of a column at that age brings, whatever the cache
 * holds.
 *
 * From it follows a column's worth: the most uses for each column-tick of room that can be had by keeping it for some
 * time from now on (its Gittins index). Evicting what is worth least makes the most of the room.
 */
export class ReuseOdds {
  readonly #uses = new Float64Array(KINDS * AGE_BUCKETS);
  /** Column-ticks that columns of a kind have spent at an age. */
  readonly #time = new Float64Array(KINDS * AGE_BUCKETS);
  /** Uses for a column-tick by gap and age. */
  readonly #rate = new Float64Array(GAPS * AGE_BUCKETS);
  /** What a kind makes of the rate of its gap. */
  readonly #factor = new Float64Array(KINDS).fill(1);
  /** Worked out when it is asked for; below 0 until then. */
  readonly #worth = new Float64Array(KINDS * AGE_BUCKETS);
  /** Bucket of gaps from which on they count as middle, and as long: thirds of those that were seen. */
  #middleGap = AGE_BUCKETS;
  #longGap = AGE_BUCKETS;
  /** Mean columns of a prompt, of late. */
  #meanColumns = 0;
  #prompts = 0;

  get meanColumns(): number {
    return this.#meanColumns;
  }

  /** A prompt of so many columns has been seen. */
  prompt(columns: number): void {
    this.#prompts += 1;
    this.#meanColumns += (columns - this.#meanColumns) * Math.max(1 / this.#prompts, 0.001);
  }

  /** The part of a kind that all columns of a prompt have in common. */
  kindOfPrompt({ continues, columns, known }: PromptFacts): number {
    // Of one that continues, how much is new; of one that does not, how much is not.
    const share = continues ? 1 - known / columns : known / columns;
    const novelty = share < 0.15 ? 0 : share < 0.4 ? 1 : 2;
    const length = columns < 0.5 * this.#meanColumns ? 0 : columns < 1.5 * this.#meanColumns ? 1 : 2;
    return novelty * LENGTHS + length;
  }

  /** The kind of one column of a prompt, that so many prompts have gone through, and before this one `gap` ago. */
  kindOfColumn(ofPrompt: number, turn: number, uses: number, gap: number): number {
    const turnKind =
      uses > 8 * (turn + 2) ? WIDELY_SHARED : uses > 2 * (turn + 2) ? SHARED : turn < 3 ? turn : turn < 5 ? 3 : 4;
    const gapKind = gap === NO_GAP ? 0 : gap < this.#middleGap ? 1 : gap < this.#longGap ? 2 : 3;
    return (turnKind * GAPS + gapKind) * NOVELTIES * LENGTHS + ofPrompt;
  }

  /** A column of a kind has been used at an age. */
  sawUse(kind: number, age: number): void {
    const at = kind * AGE_BUCKETS + bucketOf(age);
    this.#uses[at] = (this.#uses[at] as number) + 1;
  }

  /** Columns of a kind have spent so many column-ticks at an age. */
  sawTime(kind: number, age: number, columnTicks: number): void {
    const at = kind * AGE_BUCKETS + bucketOf(age);
    this.#time[at] = (this.#time[at] as number) + columnTicks;
  }

  /** What was seen counts `factor` as much from now on. */
  age(factor: number): void {
    for (let at = 0; at < this.#uses.length; at += 1) {
      this.#uses[at] = (this.#uses[at] as number) * factor;
      this.#time[at] = (this.#time[at] as number) * factor;
    }
  }

  /** Draws conclusions. What has been seen fewer than about `doubt` uses of is taken to be like the rest. */
  fit(doubt: number): void {
    const pooledUses = new Float64Array(AGE_BUCKETS);
    const pooledTime = new Float64Array(AGE_BUCKETS);
    const gapUses = new Float64Array(GAPS * AGE_BUCKETS);
    const gapTime = new Float64Array(GAPS * AGE_BUCKETS);
    let allUses = 0;
    let allTime = 0;
    for (let kind = 0; kind < KINDS; kind += 1) {
      const gap = gapOf(kind) * AGE_BUCKETS;
      for (let bucket = 0; bucket < AGE_BUCKETS; bucket += 1) {
        const uses = this.#uses[kind * AGE_BUCKETS + bucket] as number;
        const time = this.#time[kind * AGE_BUCKETS + bucket] as number;
        pooledUses[bucket] = (pooledUses[bucket] as number) + uses;
        pooledTime[bucket] = (pooledTime[bucket] as number) + time;
        gapUses[gap + bucket] = (gapUses[gap + bucket] as number) + uses;
        gapTime[gap + bucket] = (gapTime[gap + bucket] as number) + time;
        allUses += uses;
        allTime += time;
      }
    }
    this.#worth.fill(-1);
    if (allUses === 0 || allTime === 0) return;
    this.#cutGaps(pooledUses, allUses);
    this.#fitRates(pooledUses, pooledTime, gapUses, gapTime, allUses / allTime, doubt);
    this.#fitFactors(doubt);
  }

  /** What a column of a kind is worth at an age: uses for each column-tick of room. */
  worth(kind: number, age: number): number {
    const bucket = bucketOf(age);
    const known = this.#worth[kind * AGE_BUCKETS + bucket] as number;
    return known >= 0 ? known : this.#work(kind, bucket);
  }

  #cutGaps(uses: Float64Array, all: number): void {
    let sum = 0;
    this.#middleGap = AGE_BUCKETS;
    this.#longGap = AGE_BUCKETS;
    for (let bucket = 0; bucket < AGE_BUCKETS; bucket += 1) {
      sum += uses[bucket] as number;
      if (this.#middleGap === AGE_BUCKETS && sum >= all / 3) this.#middleGap = bucket + 1;
      if (this.#longGap === AGE_BUCKETS && sum >= (2 * all) / 3) this.#longGap = bucket + 1;
    }
  }

  /** Rates of all columns by age, each drawn towards that of the age before; then those of each gap, drawn to these. */
  #fitRates(
    pooledUses: Float64Array,
    pooledTime: Float64Array,
    gapUses: Float64Array,
    gapTime: Float64Array,
    mean: number,
    doubt: number,
  ): void {
    const pooled = new Float64Array(AGE_BUCKETS);
    let before = mean;
    for (let bucket = 0; bucket < AGE_BUCKETS; bucket += 1) {
      before = ((pooledUses[bucket] as number) + doubt) / ((pooledTime[bucket] as number) + doubt / before);
      pooled[bucket] = before;
    }
    for (let gap = 0; gap < GAPS; gap += 1) {
      const from = gap * AGE_BUCKETS;
      let uses = 0;
      let expected = 0;
      for (let bucket = 0; bucket < AGE_BUCKETS; bucket += 1) {
        uses += gapUses[from + bucket] as number;
        expected += (gapTime[from + bucket] as number) * (pooled[bucket] as number);
      }
      const factor = (uses + doubt) / (expected + doubt);
      for (let bucket = 0; bucket < AGE_BUCKETS; bucket += 1) {
        const like = (pooled[bucket] as number) * factor;
        this.#rate[from + bucket] =
          ((gapUses[from + bucket] as number) + doubt) / ((gapTime[from + bucket] as number) + doubt / like);
      }
    }
  }

  /** One factor for each value of each property, fitted to each other; then one for each kind, drawn to their product. */
  #fitFactors(doubt: number): void {
    const uses = new Float64Array(KINDS);
    const expected = new Float64Array(KINDS);
    for (let kind = 0; kind < KINDS; kind += 1) {
      const rate = gapOf(kind) * AGE_BUCKETS;
      for (let bucket = 0; bucket < AGE_BUCKETS; bucket += 1) {
        uses[kind] = (uses[kind] as number) + (this.#uses[kind * AGE_BUCKETS + bucket] as number);
        expected[kind] =
          (expected[kind] as number) +
          (this.#time[kind * AGE_BUCKETS + bucket] as number) * (this.#rate[rate + bucket] as number);
      }
    }
    const properties = [
      { of: turnOf, factors: new Float64Array(TURNS).fill(1) },
      { of: noveltyOf, factors: new Float64Array(NOVELTIES).fill(1) },
      { of: lengthOf, factors: new Float64Array(LENGTHS).fill(1) },
    ];
    const product = (kind: number) =>
      properties.reduce((all, { of, factors }) => all * (factors[of(kind)] as number), 1);
    for (let round = 0; round < FITTING_ROUNDS; round += 1) {
      for (const { of, factors } of properties) {
        const seen = new Float64Array(factors.length).fill(doubt);
        const thought = new Float64Array(factors.length).fill(doubt);
        for (let kind = 0; kind < KINDS; kind += 1) {
          const value = of(kind);
          seen[value] = (seen[value] as number) + (uses[kind] as number);
          thought[value] = (thought[value] as number) + (expected[kind] as number) * product(kind);
        }
        for (let value = 0; value < factors.length; value += 1) {
          factors[value] = ((factors[value] as number) * (seen[value] as number)) / (thought[value] as number);
        }
      }
    }
    for (let kind = 0; kind < KINDS; kind += 1) {
      const factor = product(kind);
      this.#factor[kind] = (factor * ((uses[kind] as number) + doubt)) / ((expected[kind] as number) * factor + doubt);
    }
  }

  #work(kind: number, bucket: number): number {
    const factor = this.#factor[kind] as number;
    const from = gapOf(kind) * AGE_BUCKETS;
    let unused = 1;
    let uses = 0;
    let time = 0;
    let best = 0;
    for (let until = bucket; until < AGE_BUCKETS && unused > 1e-3; until += 1) {
      const width = (BUCKET_START[until + 1] as number) - (BUCKET_START[until] as number);
      const rate = factor * (this.#rate[from + until] as number);
      // On average a column is in the middle of its bucket.
      const ticks = until === bucket ? width / 2 : width;
      const stays = Math.exp(-rate * ticks);
      uses += unused * (1 - stays);
      time += rate * ticks > 1e-6 ? (unused * (1 - stays)) / rate : unused * ticks;
      unused *= stays;
      best = Math.max(best, uses / time);
    }
    this.#worth[kind * AGE_BUCKETS + bucket] = best;
    return best;
  }
}
