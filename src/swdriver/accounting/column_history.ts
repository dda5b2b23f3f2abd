import type { MissCause, MissTally } from './miss_cause.js';

/**
 * What became of a column: it is stored; it made room for others (`evicted`); its time to live had passed (`expired`); it
 * went with a shard (`lost`); the policy did not want it (`refused`).
 */
export type ColumnState = 'stored' | 'evicted' | 'expired' | 'lost' | 'refused';

const STATE_BITS = 3;
const STATE_MASK = 2 ** STATE_BITS - 1;
const STAMP_MASK = 2 ** (32 - STATE_BITS) - 1;
const CODES: Record<ColumnState, number> = { stored: 1, evicted: 2, expired: 3, lost: 4, refused: 5 };
const STORED = CODES.stored;
/** The cause of a miss by the code of a state. Who misses what is stored could not reach it. */
const CAUSES: readonly MissCause[] = ['neverStored', 'shardDown', 'evicted', 'expired', 'shardDown', 'policy'];

/** Of an entry that counts the owners who have a prefix stored; owners begin with 1. */
const ANYONE = 0;
const WAYS = 8;
/** Columns in a row that nothing is known of, after which none of those behind them is. */
const LOOKS_IN_VAIN = 16;
// An entry: low and high half of the fingerprint, owner, and a stamp with a state or, for ANYONE, a number of owners.
// That last word is 0 in places that are free.
const WORDS = 4;
const SET_WORDS = WAYS * WORDS;
/** Places for each column of capacity: itself, who has it, and as much again for columns that are gone. */
const PLACES_PER_COLUMN = 4;

export interface ColumnHistoryOptions {
  /** Columns that the driver can have stored. */
  capacity: number;
  /** Most entries to keep, a power of two; 16 bytes each. 2 ** 22 if left out. */
  maxEntries?: number;
}

/**
 * Remembers what became of columns that are not stored any more, and which prefixes are stored by whom, to say why a
 * lookup missed. Keys are fingerprints (see Fingerprint) and owners: numbers of namespaces, 1 to 2 ** 32 - 1.
 *
 * A set-associative table of fixed size: 4 entries for each column of capacity, 64 bytes. Where a set is full, the
 * entry that goes is the one of a gone column that is longest without news; only where there is none, and for a stored
 * column, one of a stored column. What the table cannot remember any more it calls never stored, so causes are right for the recent past and
 * lean towards `neverStored` beyond it. No allocation but in grow().
 */
export class ColumnHistory {
  readonly #maxEntries: number;
  #words = new Uint32Array(0);
  #setMask = 0;
  #clock = 0;
  #entries = 0;

  constructor(options: ColumnHistoryOptions) {
    this.#maxEntries = options.maxEntries ?? 2 ** 22;
    this.grow(options.capacity);
  }

  /** Entries in use, of `capacityEntries`. */
  get entries(): number {
    return this.#entries;
  }

  get capacityEntries(): number {
    return this.#words.length / WORDS;
  }

  /** Bytes of the table. */
  get bytes(): number {
    return this.#words.byteLength;
  }

  /** Makes the table large enough for `capacity` columns, as far as the bound allows. Forgets nothing; never shrinks. */
  grow(capacity: number): void {
    const wanted = Math.min(this.#maxEntries, PLACES_PER_COLUMN * Math.max(capacity, 1));
    const sets = 2 ** Math.ceil(Math.log2(Math.max(1, wanted / WAYS)));
    const old = this.#words;
    if (sets * SET_WORDS <= old.length) return;
    const words = new Uint32Array(sets * SET_WORDS);
    this.#words = words;
    this.#setMask = sets - 1;
    for (let from = 0; from < old.length; from += WORDS) {
      if (old[from + 3] === 0) continue;
      // The entries of a set all come from one smaller one, so there is room for them.
      let to = this.#setOf(old[from + 1] as number, old[from + 2] as number);
      while (words[to + 3] !== 0) to += WORDS;
      for (let word = 0; word < WORDS; word += 1) words[to + word] = old[from + word] as number;
    }
  }

  /** A column of `owner` has come to be in `state`. Touches two sets, so in a large table it costs what misses of the CPU's cache do. */
  note(low: number, high: number, owner: number, state: ColumnState): void {
    const code = CODES[state];
    this.#clock = (this.#clock + 1) & STAMP_MASK;
    let entry = this.#find(low, high, owner);
    const before = entry < 0 ? 0 : this.#stateOf(entry);
    if (before !== STORED && code === STORED) {
      // Counted first: an entry that went to make room for its own count would leave it one too high for ever.
      this.#countUp(low, high);
      entry = this.#find(low, high, owner);
    } else if (before === STORED && code !== STORED) {
      this.#countDown(low, high);
    }
    if (entry < 0) entry = this.#take(low, high, owner, code === STORED);
    if (entry < 0) return;
    this.#words[entry + 3] = (this.#clock << STATE_BITS) | code;
  }

  /**
   * Why `owner` missed a column. What is stored for the owner itself counts as `shardDown`: it was there and could not
   * be reached. The causes that are no column's, `groupMissing` and `partial`, are the caller's to see.
   */
  causeOf(low: number, high: number, owner: number): MissCause {
    const entry = this.#find(low, high, owner);
    if (entry >= 0) return CAUSES[this.#stateOf(entry)] as MissCause;
    return this.#find(low, high, ANYONE) >= 0 ? 'otherTenant' : 'neverStored';
  }

  /**
   * Adds the causes of columns `from` to `end` of a prompt to `tally`, as tokens; `fingerprints` as Fingerprint.chainAll
   * writes them. What continues a prefix that nobody ever stored was never stored either, so some such columns in a row end
   * the search, and a prompt that is new throughout costs few looks. Some, because the table forgets one column here and
   * there; where a later one is known, those before it had the same fate. Answers the cause of column `from`.
   */
  explain(
    fingerprints: Uint32Array,
    from: number,
    end: number,
    owner: number,
    columnTokens: number,
    tally: MissTally,
  ): MissCause {
    let first: MissCause | undefined;
    // Columns before this one have been counted.
    let counted = from;
    for (let column = from; column < end && column - counted < LOOKS_IN_VAIN; column += 1) {
      const low = fingerprints[2 * column] as number;
      const cause = this.causeOf(low, fingerprints[2 * column + 1] as number, owner);
      if (cause === 'neverStored') continue;
      first ??= cause;
      tally.add(cause, (column + 1 - counted) * columnTokens);
      counted = column + 1;
    }
    tally.add('neverStored', (end - counted) * columnTokens);
    return first ?? 'neverStored';
  }

  /** Nothing is remembered of this column of `owner` any more: it was forgotten on request. */
  forget(low: number, high: number, owner: number): void {
    const entry = this.#find(low, high, owner);
    if (entry >= 0) this.#drop(entry);
  }

  /**
   * Nothing is remembered of `owner` any more. Looks at the whole table: milliseconds for a million entries. Whether a
   * tenant that was forgotten had ever been there is not to be seen afterwards, so this is no state of a column.
   */
  forgetOwner(owner: number): void {
    if (owner === ANYONE) return;
    const words = this.#words;
    for (let entry = 0; entry < words.length; entry += WORDS) {
      if (words[entry + 2] === owner && words[entry + 3] !== 0) this.#drop(entry);
    }
  }

  // Owners are spread over the sets: a prompt that thousands of them share must not crowd one set.
  #setOf(high: number, owner: number): number {
    return ((high ^ Math.imul(owner, 0x9e3779b1)) & this.#setMask) * SET_WORDS;
  }

  #stateOf(entry: number): number {
    return (this.#words[entry + 3] as number) & STATE_MASK;
  }

  #find(low: number, high: number, owner: number): number {
    const words = this.#words;
    const from = this.#setOf(high, owner);
    for (let entry = from; entry < from + SET_WORDS; entry += WORDS) {
      if (
        words[entry] === low &&
        words[entry + 1] === high &&
        words[entry + 2] === owner &&
        (words[entry + 3] as number) !== 0
      ) {
        return entry;
      }
    }
    return -1;
  }

  /**
   * A place for an entry that is not there; its last word is 0 and the caller's to fill. -1 where only entries of stored
   * columns could make room and `must` is not set.
   */
  #take(low: number, high: number, owner: number, must: boolean): number {
    const words = this.#words;
    const from = this.#setOf(high, owner);
    let victim = from;
    let worth = Number.POSITIVE_INFINITY;
    for (let entry = from; entry < from + SET_WORDS; entry += WORDS) {
      const here = this.#worth(entry);
      if (here < worth) {
        worth = here;
        victim = entry;
      }
    }
    if (worth > STAMP_MASK && !must) return -1;
    if (words[victim + 3] !== 0) this.#drop(victim);
    words[victim] = low;
    words[victim + 1] = high;
    words[victim + 2] = owner;
    this.#entries += 1;
    return victim;
  }

  /** What goes first when a set is full, lowest first: nothing, gone columns by age, stored ones by age, counts. */
  #worth(entry: number): number {
    const last = this.#words[entry + 3] as number;
    if (last === 0) return -1;
    if (this.#words[entry + 2] === ANYONE) return 4 * STAMP_MASK + last;
    // Stamps go round: what counts is how long ago. Something so old that it looks new again does no harm.
    const age = (this.#clock - (last >>> STATE_BITS)) & STAMP_MASK;
    return (this.#stateOf(entry) === STORED ? 2 * STAMP_MASK : STAMP_MASK) - age;
  }

  #drop(entry: number): void {
    const words = this.#words;
    const counted = words[entry + 2] !== ANYONE && this.#stateOf(entry) === STORED;
    words[entry + 3] = 0;
    this.#entries -= 1;
    if (counted) this.#countDown(words[entry] as number, words[entry + 1] as number);
  }

  /** One more owner has this prefix stored. Counts are never too high: each stands for an entry of an owner. */
  #countUp(low: number, high: number): void {
    let entry = this.#find(low, high, ANYONE);
    if (entry < 0) entry = this.#take(low, high, ANYONE, true);
    this.#words[entry + 3] = (this.#words[entry + 3] as number) + 1;
  }

  #countDown(low: number, high: number): void {
    const entry = this.#find(low, high, ANYONE);
    if (entry < 0) return;
    const owners = (this.#words[entry + 3] as number) - 1;
    this.#words[entry + 3] = owners;
    if (owners === 0) this.#entries -= 1;
  }
}
