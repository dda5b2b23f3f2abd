import { LogScale } from './log_scale.js';

/** A point of the curve: the hit rate, 0 to 1, that a cache of so many columns would have now. */
export interface CurvePoint {
  columns: number;
  hitRate: number;
}

export interface HitRateCurveOptions {
  /** Largest capacity that is asked about, in columns. */
  maxColumns: number;
  /** Columns that are followed at a time; 56 to 64 bytes each. 16,384 if left out. */
  samples?: number;
  /** Columns looked up after which what was seen until then counts half. 2 ** 20 if left out; Infinity: never. */
  halveAfterColumns?: number;
}

// Distances in columns, to 2 ** 40, in steps of a 32nd: exact below 64, within 3.1 % from there on.
const SCALE = new LogScale(0, 40, 5);
const POSITIONS_PER_SAMPLE = 4;
const ALL = 2 ** 32;

/** Spreads a number over 32 bits (the finalizer of MurmurHash3). */
function scatter(number: number): number {
  let hash = Math.imul(number ^ (number >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

/**
 * A live estimate of the hit rate against capacity of a cache that evicts the least recently used column first and
 * leaves before what they continue, as the PrefixMap does. Costs one comparison for a column that is not sampled.
 *
 * An access hits in every cache that is at least as large as its stack distance: the number of different columns used
 * since its last use, itself included (Mattson, Gecsei, Slutz, Traiger: Evaluation techniques for storage hierarchies,
 * IBM Systems Journal 9(2), 1970). Distances are measured among the columns alone whose fingerprint is below a threshold,
 * a share `rate` of all, and divided by it; each counts for 1 / rate. The threshold falls as columns come, so that memory
 * is bounded, and what the sampled columns had too many or too few accesses for their share is taken as accesses at
 * the least distance (Waldspurger, Park, Garthwaite, Ahmad: Efficient MRC construction with SHARDS, FAST 2015: fixed-size
 * SHARDS, SHARDS-adj).
 *
 * Unlike there, the threshold is halved at once and not lowered sample by sample, which needs no heap; and a column
 * that lies deeper than `maxColumns` is dropped instead, since no capacity that is asked about would have it. So the rate
 * settles at a half to a whole of samples / maxColumns, however long the driver runs.
 *
 * Errors, measured against exact caches with 16,384 samples, at capacities from a hundredth of maxColumns: root mean
 * square 0.016 and less on Zipf traffic of exponents 0.6 to 1.1, at most 0.04; and 0.006 on an hour of real chat, at most
 * 0.014. The smaller the capacity against maxColumns, the larger.
 *
 * A prompt uses all columns of its prefix. Distances are those before the prompt, as a lookup meets them, and the columns
 * are used from the deepest to the first, so that what is kept is always closed under prefixes.
 */
export class HitRateCurve {
  readonly #limit: number;
  readonly #halveAfter: number;
  #maxColumns: number;
  /** Fingerprints whose low half is below this are sampled. */
  #threshold = ALL;

  // The samples. Number 0 is no sample.
  readonly #low: Uint32Array;
  readonly #high: Uint32Array;
  readonly #position: Uint32Array;
  readonly #free: Uint32Array;
  #freeCount: number;
  #size = 0;
  /** Open addressing by the high half of the fingerprint, since the low one chooses the samples: number of the sample. */
  readonly #table: Uint32Array;

  // The stack: samples by the position of their last use, later ones higher. A Fenwick tree counts them.
  readonly #sampleAt: Uint32Array;
  readonly #tree: Uint32Array;
  #nextPosition = 1;
  #oldest = 1;

  /** Weight of accesses by their distance, of those that met a sampled column again. */
  readonly #weights = new Float64Array(SCALE.buckets);
  /** Weight of all sampled accesses, the first ones of a column too. */
  #sampledWeight = 0;
  /** Columns looked up, sampled or not, and with what fills no column. */
  #columns = 0;
  #columnsRecorded = 0;
  #untilHalved: number;

  constructor(options: HitRateCurveOptions) {
    this.#limit = Math.max(2, options.samples ?? 16_384);
    this.#halveAfter = options.halveAfterColumns ?? 2 ** 20;
    this.#untilHalved = this.#halveAfter;
    this.#maxColumns = Math.max(1, options.maxColumns);
    this.#low = new Uint32Array(this.#limit + 1);
    this.#high = new Uint32Array(this.#limit + 1);
    this.#position = new Uint32Array(this.#limit + 1);
    this.#free = new Uint32Array(this.#limit);
    for (let index = 0; index < this.#limit; index += 1) this.#free[index] = this.#limit - index;
    this.#freeCount = this.#limit;
    this.#table = new Uint32Array(2 ** Math.ceil(Math.log2(this.#limit * 2)));
    this.#sampleAt = new Uint32Array(this.#limit * POSITIONS_PER_SAMPLE + 1);
    this.#tree = new Uint32Array(this.#sampleAt.length);
  }

  /** Largest capacity that is asked about, in columns. A larger one is known once as many columns have gone by. */
  get maxColumns(): number {
    return this.#maxColumns;
  }

  set maxColumns(columns: number) {
    this.#maxColumns = Math.max(1, columns);
  }

  /** Share of the columns that are sampled now. */
  get rate(): number {
    return this.#threshold / ALL;
  }

  /** Columns that are followed now. */
  get samples(): number {
    return this.#size;
  }

  /** Bytes of all tables. */
  get bytes(): number {
    const tables = [this.#low, this.#high, this.#position, this.#free, this.#table, this.#sampleAt, this.#tree];
    return tables.reduce((sum, table) => sum + table.byteLength, this.#weights.byteLength);
  }

  /** Columns that `curve` stands for: those looked up, older ones for less. */
  get weight(): number {
    return this.#columns;
  }

  /** Columns looked up since the beginning. */
  get columnsRecorded(): number {
    return this.#columnsRecorded;
  }

  /**
   * One column was looked up, by itself: a prompt of one column. `owner` is the number of its namespace: what two of
   * them have alike they store twice, so it is two columns.
   */
  record(owner: number, low: number, high: number): void {
    const lowOfOwner = (low ^ scatter(owner)) >>> 0;
    if (lowOfOwner < this.#threshold) {
      const highOfOwner = (high ^ scatter(~owner)) >>> 0;
      this.#look(lowOfOwner, highOfOwner);
      this.#use(lowOfOwner, highOfOwner);
    }
    this.#count(1, 1);
  }

  /**
   * A prompt was looked up by `owner`. `fingerprints` as Fingerprint.chainAll writes them, of its `columns` whole columns.
   * `promptColumns`: its length in columns, with the part that fills none, which makes the hit rate one of tokens.
   */
  recordPrompt(owner: number, fingerprints: Uint32Array, columns: number, promptColumns: number = columns): void {
    const lowOfOwner = scatter(owner);
    const highOfOwner = scatter(~owner);
    for (let at = 0; at < 2 * columns; at += 2) {
      const low = ((fingerprints[at] as number) ^ lowOfOwner) >>> 0;
      if (low < this.#threshold) this.#look(low, ((fingerprints[at + 1] as number) ^ highOfOwner) >>> 0);
    }
    for (let at = 2 * columns - 2; at >= 0; at -= 2) {
      const low = ((fingerprints[at] as number) ^ lowOfOwner) >>> 0;
      if (low < this.#threshold) this.#use(low, ((fingerprints[at + 1] as number) ^ highOfOwner) >>> 0);
    }
    this.#count(columns, promptColumns);
  }

  /** The hit rate, 0 to 1, that a cache of `columns` columns would have; that of maxColumns above it. */
  hitRateAt(columns: number): number {
    if (!(columns >= 1) || this.#columns === 0) return 0;
    const capacity = Math.min(columns, this.#maxColumns);
    const last = SCALE.bucketOf(capacity);
    let weight = 0;
    for (let bucket = 0; bucket < last; bucket += 1) weight += this.#weights[bucket] as number;
    const from = SCALE.lowerBound(last);
    const end = SCALE.upperBound(last);
    // Distances are whole numbers: of a bucket from 64 to 66 a capacity of 64 hits one of two.
    const share = Math.min(1, (Math.floor(capacity) + 1 - from) / Math.max(1, end - from));
    weight += (this.#weights[last] as number) * share;
    return this.#rateOf(weight);
  }

  /** The curve at `points` capacities from `fromColumns` to maxColumns, which differ by the same factor. */
  curve(points = 16, fromColumns = Math.max(1, this.#maxColumns / 1024)): CurvePoint[] {
    const step = points > 1 ? (this.#maxColumns / fromColumns) ** (1 / (points - 1)) : 1;
    return Array.from({ length: points }, (_, index) => {
      const columns = index === points - 1 ? this.#maxColumns : Math.round(fromColumns * step ** index);
      return { columns, hitRate: this.hitRateAt(columns) };
    });
  }

  #rateOf(weight: number): number {
    // Sampled columns may be used more or less often than their share, mostly where few columns have many of the
    // uses; those are uses at short distances.
    const rate = (weight + this.#columns - this.#sampledWeight) / this.#columns;
    return Math.min(1, Math.max(0, rate));
  }

  #count(columns: number, promptColumns: number): void {
    // What fills no column is no access that could have been sampled.
    this.#columns += promptColumns;
    this.#sampledWeight += promptColumns - columns;
    this.#columnsRecorded += columns;
    this.#untilHalved -= columns;
    if (this.#untilHalved > 0) return;
    this.#untilHalved = this.#halveAfter;
    for (let bucket = 0; bucket < this.#weights.length; bucket += 1) {
      this.#weights[bucket] = (this.#weights[bucket] as number) / 2;
    }
    this.#sampledWeight /= 2;
    this.#columns /= 2;
  }

  /** Measures the distance of the last use of a column whose fingerprint is sampled. */
  #look(low: number, high: number): void {
    const weight = ALL / this.#threshold;
    this.#sampledWeight += weight;
    const sample = this.#table[this.#find(low, high)] as number;
    if (sample === 0) return;
    const above = this.#size - this.#countTo(this.#position[sample] as number);
    const bucket = SCALE.bucketOf(1 + above * weight);
    this.#weights[bucket] = (this.#weights[bucket] as number) + weight;
  }

  /** Puts a column whose fingerprint is sampled on top of the stack. */
  #use(low: number, high: number): void {
    let place = this.#find(low, high);
    let sample = this.#table[place] as number;
    if (sample !== 0) {
      this.#unstack(sample);
    } else {
      if (this.#freeCount === 0) {
        this.#makeRoom();
        if (low >= this.#threshold || this.#freeCount === 0) return;
        place = this.#find(low, high);
      }
      this.#freeCount -= 1;
      sample = this.#free[this.#freeCount] as number;
      this.#low[sample] = low;
      this.#high[sample] = high;
      this.#table[place] = sample;
      this.#size += 1;
    }
    if (this.#nextPosition === this.#sampleAt.length) this.#compact();
    this.#position[sample] = this.#nextPosition;
    this.#sampleAt[this.#nextPosition] = sample;
    this.#add(this.#nextPosition, 1);
    this.#nextPosition += 1;
  }

  #unstack(sample: number): void {
    const position = this.#position[sample] as number;
    this.#sampleAt[position] = 0;
    this.#add(position, -1);
  }

  #makeRoom(): void {
    if (this.#size / this.rate >= this.#maxColumns || this.#threshold <= 1) {
      while (this.#sampleAt[this.#oldest] === 0) this.#oldest += 1;
      this.#drop(this.#sampleAt[this.#oldest] as number);
      return;
    }
    // Half of them go, give or take. It may be none where they are few; then once more.
    while (this.#freeCount === 0 && this.#threshold > 1) {
      this.#threshold /= 2;
      for (let position = this.#oldest; position < this.#nextPosition; position += 1) {
        const sample = this.#sampleAt[position] as number;
        if (sample !== 0 && (this.#low[sample] as number) >= this.#threshold) this.#drop(sample);
      }
    }
  }

  #drop(sample: number): void {
    this.#unstack(sample);
    this.#untable(this.#find(this.#low[sample] as number, this.#high[sample] as number));
    this.#free[this.#freeCount] = sample;
    this.#freeCount += 1;
    this.#size -= 1;
  }

  /** Where a fingerprint is in the table, or would be. */
  #find(low: number, high: number): number {
    const mask = this.#table.length - 1;
    let place = high & mask;
    for (;;) {
      const sample = this.#table[place] as number;
      if (sample === 0 || (this.#low[sample] === low && this.#high[sample] === high)) return place;
      place = (place + 1) & mask;
    }
  }

  /** Empties a place of the table and moves up what would not be found behind a gap. */
  #untable(from: number): void {
    const mask = this.#table.length - 1;
    let gap = from;
    for (let place = (gap + 1) & mask; ; place = (place + 1) & mask) {
      const sample = this.#table[place] as number;
      if (sample === 0) break;
      const home = (this.#high[sample] as number) & mask;
      // Whether its own place is not after the gap, going round.
      if (((place - home) & mask) >= ((place - gap) & mask)) {
        this.#table[gap] = sample;
        gap = place;
      }
    }
    this.#table[gap] = 0;
  }

  /** Moves the stack down to the lowest positions, in the same order. */
  #compact(): void {
    let next = 1;
    for (let position = this.#oldest; position < this.#nextPosition; position += 1) {
      const sample = this.#sampleAt[position] as number;
      if (sample === 0) continue;
      this.#sampleAt[next] = sample;
      this.#position[sample] = next;
      next += 1;
    }
    this.#sampleAt.fill(0, next);
    this.#oldest = 1;
    this.#nextPosition = next;
    this.#tree.fill(0);
    for (let position = 1; position < this.#tree.length; position += 1) {
      this.#tree[position] = (this.#tree[position] as number) + (position < next ? 1 : 0);
      const above = position + (position & -position);
      if (above < this.#tree.length) {
        this.#tree[above] = (this.#tree[above] as number) + (this.#tree[position] as number);
      }
    }
  }

  #add(position: number, difference: number): void {
    for (let node = position; node < this.#tree.length; node += node & -node) {
      this.#tree[node] = (this.#tree[node] as number) + difference;
    }
  }

  /** Samples at positions up to this one. */
  #countTo(position: number): number {
    let count = 0;
    for (let node = position; node > 0; node -= node & -node) count += this.#tree[node] as number;
    return count;
  }
}
