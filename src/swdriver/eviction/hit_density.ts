import { enlarged } from '../../common/enlarged.js';
import { NONE, type Node } from '../prefix_map.js';
import { bucketOf } from './age_buckets.js';
import { LeafBag } from './leaf_bag.js';
import type { LeafRanking } from './leaf_ranking.js';
import { PastPrompts, UNKNOWN } from './past_prompts.js';
import { NO_GAP, type PromptFacts, ReuseOdds } from './reuse_odds.js';
import { RootLeaves } from './root_leaves.js';
import { ShadowCache } from './shadow_cache.js';

export interface HitDensityOptions {
  /** Goes by what it expects, or by last use, instead of by what has been better of late. For tests. */
  rule?: 'density' | 'lru';
  /**
   * Columns before a column that make computing it cost twice as much as the first one: attention looks back at all of
   * them. A column is worth as much more. Infinity counts every token alike, as hit rates do.
   */
  costDoublesAtColumns?: number;
}

/** One column in so many is remembered beyond its eviction. A power of two. */
const SAMPLING = 4;
/** Columns that the sample stands for, as a multiple of the capacity. */
const MEMORY = 6;
/** Leaves that are looked at for a victim: it is among the worst 2 or 3 in 100. */
const LOOKS = 64;
/** The same in the shadow caches, of which only the hit rates matter. */
const SHADOW_LOOKS = 16;
/** Columns of one chain that go without another look: they were used together. */
const RUN = 16;
/** Uses as of this many prompts half outweigh what is otherwise taken for likely. */
const DOUBT_PROMPTS = 8;
/** Times the capacity in columns gone through, after which what was learned counts 1/e. */
const LEARNING_SPAN = 32;
/** Shares of the capacity in columns gone through, after which conclusions are drawn again. */
const CENSUS_SHARE = 1 / 4;
const LEAST_COLUMNS_BETWEEN_CENSUSES = 4096;
const CENSUS_SLOTS = 16_384;
/** Prompts' worth of hits by which worth has to be ahead of last use to be gone by, and behind it not to be any more. */
const AHEAD_PROMPTS = 1;
const BEHIND_PROMPTS = 4;
/** Prompts' worth of hits that a lead is counted to. */
const BOUND_PROMPTS = 8;
/** Most columns in a shadow cache. */
const SHADOW_COLUMNS = 4096;
/** Share of an earlier prompt that has to be the beginning of one that continues it. */
const CONTINUED = 0.75;
const MOST_TURNS = 250;

/**
 * Evicts the leaf that is worth least: that promises the fewest uses for each column-tick of room, by what is learned
 * from the prompts themselves. Knows columns beyond their eviction by a sample of fingerprints, so that it learns also
 * from what it has not kept, and knows a conversation again. Two shadow caches tell whether last use alone would do
 * better, and then it goes by that.
 *
 * Its clock is the number of columns that prompts have gone through.
 */
export class HitDensityRanking implements LeafRanking {
  #lastUse = new Float64Array(0);
  #kind = new Uint8Array(0);
  #depth = new Uint32Array(0);
  #parent = new Int32Array(0);
  #fingerprint = new Uint32Array(0);
  #protected = new Uint8Array(0);
  readonly #leaves = new LeafBag();
  readonly #protectedLeaves = new LeafBag();
  #anyProtected = false;
  readonly #rings = new RootLeaves();
  #capacity = 0;

  readonly #odds = new ReuseOdds();
  #past = new PastPrompts(0);
  #now = 0;
  #censusAt = 0;
  #lastCensus = 0;
  #random = 0x2545f491;

  // The prompt that is being followed, by its last column so far. What it is can be told only when it has ended, which
  // is when something else is used.
  #tip: Node = NONE;
  /** Columns of it that were cached. */
  #found = 0;
  /** Otherwise it goes on with one that has ended before: tokens that were decoded since. */
  #isPrompt = false;
  /** Slots of its columns in the sample, from the last to the first. */
  #marks = new Uint32Array(64);

  /** The last victim, and its parent if that may go without another look. */
  #evicted: Node = NONE;
  #next: Node = NONE;
  #runLeft = 0;

  readonly #rule: 'density' | 'lru' | undefined;
  readonly #costPerColumn: number;
  #byDensity: boolean;
  /** Hits by which density is ahead of last use, in columns of the sample. */
  #lead = 0;
  #densityShadow: ShadowCache;
  #lruShadow: ShadowCache;
  /** Columns of the sample are in the shadows where these bits of the fingerprint are 0. */
  #shadowBits = 0;

  constructor({ rule, costDoublesAtColumns = Number.POSITIVE_INFINITY }: HitDensityOptions = {}) {
    this.#rule = rule;
    this.#costPerColumn = 1 / costDoublesAtColumns;
    this.#byDensity = rule === 'density';
    this.#densityShadow = this.#shadowOf(0, () => 0);
    this.#lruShadow = this.#densityShadow;
  }

  get size(): number {
    return this.#leaves.size + this.#protectedLeaves.size;
  }

  get bytesPerColumn(): number {
    const facts = 8 + 1 + 4 + 4 + 4 + 1;
    const leaves = LeafBag.bytesPerNumber * (this.#anyProtected ? 2 : 1) + RootLeaves.bytesPerNode;
    const memory = ((PastPrompts.bytesPerSlot + 2 * ShadowCache.bytesPerSlot) * this.#past.slots) / this.#capacity;
    return facts + leaves + memory;
  }

  grow(capacity: number): void {
    this.#lastUse = enlarged(this.#lastUse, capacity + 1);
    this.#kind = enlarged(this.#kind, capacity + 1);
    this.#depth = enlarged(this.#depth, capacity + 1);
    this.#parent = enlarged(this.#parent, capacity + 1);
    this.#fingerprint = enlarged(this.#fingerprint, capacity + 1);
    this.#protected = enlarged(this.#protected, capacity + 1);
    this.#leaves.grow(capacity);
    if (this.#anyProtected) this.#protectedLeaves.grow(capacity);
    this.#rings.grow(capacity);
    this.#capacity = capacity;
    const past = new PastPrompts(Math.ceil((capacity * MEMORY) / SAMPLING));
    past.copyFrom(this.#past);
    this.#past = past;
    let sampled = capacity / SAMPLING;
    this.#shadowBits = 0;
    for (; sampled > SHADOW_COLUMNS; sampled /= 2) this.#shadowBits = this.#shadowBits * 2 + 1;
    const columns = Math.max(1, Math.round(sampled));
    this.#densityShadow = this.#shadowOf(columns, (slot) =>
      this.#worth(past.kind[slot] as number, past.lastUse[slot] as number, past.depth[slot] as number),
    );
    this.#lruShadow = this.#shadowOf(columns, (slot) => past.lastUse[slot] as number);
  }

  inserted(node: Node, parent: Node, fingerprint: number): void {
    const fromRoot = parent < 0;
    if (fromRoot || parent !== this.#tip) {
      this.#finish();
      this.#isPrompt = fromRoot;
      this.#found = fromRoot ? 0 : (this.#depth[parent] as number);
    }
    this.#tip = node;
    this.#parent[node] = parent;
    this.#depth[node] = fromRoot ? 1 : (this.#depth[parent] as number) + 1;
    this.#fingerprint[node] = fingerprint;
    this.#kind[node] = fromRoot ? 0 : (this.#kind[parent] as number);
    this.#lastUse[node] = this.#now;
    this.#protected[node] = 0;
    this.#rings.inserted(node, parent);
  }

  used(node: Node): void {
    this.#finish();
    this.#tip = node;
    this.#found = this.#depth[node] as number;
    this.#isPrompt = true;
  }

  offer(node: Node): void {
    const bag = this.#bagOf(node);
    if (bag.has(node)) return;
    bag.add(node);
    this.#rings.add(node, this.#protected[node] === 1);
    const child = this.#evicted;
    if (child === NONE || this.#parent[child] !== node) return;
    this.#evicted = NONE;
    const alike = this.#kind[child] === this.#kind[node] && this.#lastUse[child] === this.#lastUse[node];
    if (alike && this.#runLeft > 0 && this.#protected[node] === 0) this.#next = node;
  }

  withdraw(node: Node): void {
    const bag = this.#bagOf(node);
    if (!bag.has(node)) return;
    bag.remove(node);
    this.#rings.remove(node, this.#protected[node] === 1);
    if (this.#next === node) this.#next = NONE;
  }

  removed(node: Node, parent: Node, evicted: boolean): void {
    this.#evicted = evicted ? node : NONE;
    if (node !== this.#tip) return;
    const before = !this.#isPrompt && this.#depth[node] === this.#found + 1;
    this.#tip = parent < 0 || before ? NONE : parent;
    this.#found = Math.min(this.#found, (this.#depth[node] as number) - 1);
  }

  protect(node: Node, on: boolean): void {
    if (on && !this.#anyProtected) {
      this.#anyProtected = true;
      this.#protectedLeaves.grow(this.#capacity);
    }
    const offered = this.#bagOf(node).has(node);
    this.withdraw(node);
    this.#protected[node] = on ? 1 : 0;
    if (offered) this.offer(node);
  }

  victim(root?: Node): Node {
    // A leaf that may go has to be known for what it is.
    if (this.#tip !== NONE && this.#bagOf(this.#tip).has(this.#tip)) this.#finish();
    return root === undefined ? this.#victimOfAll() : this.#victimOf(root);
  }

  #victimOfAll(): Node {
    if (this.#next !== NONE) {
      this.#runLeft -= 1;
      return this.#next;
    }
    const bag = this.#leaves.size > 0 ? this.#leaves : this.#protectedLeaves;
    const all = bag.size <= LOOKS;
    const looks = all ? bag.size : LOOKS;
    let worst = NONE;
    let least = Number.POSITIVE_INFINITY;
    for (let look = 0; look < looks; look += 1) {
      const node = bag.at(all ? look : this.#draw() % bag.size);
      const worth = this.#worthOf(node);
      if (worth < least || (worth === least && this.#isOlder(node, worst))) {
        least = worth;
        worst = node;
      }
    }
    this.#runLeft = RUN;
    return worst;
  }

  #victimOf(root: Node): Node {
    const isProtected = this.#rings.hand(root, false) === NONE;
    const first = this.#rings.hand(root, isProtected);
    if (first === NONE) return NONE;
    let worst = first;
    let least = this.#worthOf(first);
    for (let look = 1; look < LOOKS; look += 1) {
      const node = this.#rings.turn(root, isProtected);
      if (node === first) break;
      const worth = this.#worthOf(node);
      if (worth < least || (worth === least && this.#isOlder(node, worst))) {
        least = worth;
        worst = node;
      }
    }
    return worst;
  }

  #worthOf(node: Node): number {
    const lastUse = this.#lastUse[node] as number;
    if (!this.#byDensity) return lastUse;
    return this.#worth(this.#kind[node] as number, lastUse, this.#depth[node] as number);
  }

  #worth(kind: number, lastUse: number, depth: number): number {
    return this.#odds.worth(kind, this.#now - lastUse) * (1 + depth * this.#costPerColumn);
  }

  #isOlder(node: Node, than: Node): boolean {
    const [left, right] = [this.#lastUse[node] as number, this.#lastUse[than] as number];
    return left < right || (left === right && (this.#depth[node] as number) > (this.#depth[than] as number));
  }

  #bagOf(node: Node): LeafBag {
    return this.#protected[node] === 1 ? this.#protectedLeaves : this.#leaves;
  }

  /** Learns from the prompt that is being followed, which has ended. */
  #finish(): void {
    const tip = this.#tip;
    if (tip === NONE) return;
    this.#tip = NONE;
    if (this.#isPrompt) this.#finishPrompt(tip);
    else this.#finishExtension(tip);
    if (this.#now >= this.#censusAt) this.#takeCensus();
  }

  #finishPrompt(tip: Node): void {
    const odds = this.#odds;
    const past = this.#past;
    const now = this.#now;
    const columns = this.#depth[tip] as number;
    odds.prompt(columns);
    const facts: PromptFacts = { continues: false, columns, known: this.#found, turn: 0 };
    const gap = this.#lookBack(tip, facts);
    const ofPrompt = odds.kindOfPrompt(facts);
    let kind = odds.kindOfColumn(ofPrompt, facts.turn, 1, gap);
    let marks = 0;
    for (let node = tip; node > 0; node = this.#parent[node] as Node) {
      if (this.#isSampled(node)) {
        const fingerprint = this.#fingerprint[node] as number;
        let slot = past.find(fingerprint);
        let ownGap = gap;
        if (slot === UNKNOWN) {
          slot = this.#newSlot(fingerprint);
        } else {
          const age = now - (past.lastUse[slot] as number);
          odds.sawUse(past.kind[slot] as number, age);
          past.uses[slot] = Math.min(255, (past.uses[slot] as number) + 1);
          ownGap = bucketOf(age);
        }
        kind = odds.kindOfColumn(ofPrompt, facts.turn, past.uses[slot] as number, ownGap);
        this.#note(slot, node, kind, facts.turn, ownGap, columns);
        // What is beyond the capacity was not kept by any rule.
        const shadowed =
          ((fingerprint >>> 8) & this.#shadowBits) === 0 && (this.#depth[node] as number) <= this.#capacity;
        if (shadowed) marks = this.#mark(marks, slot);
      }
      this.#kind[node] = kind;
      this.#lastUse[node] = now;
    }
    this.#now += columns;
    this.#compareRules(marks);
  }

  /** Says what the prompt is to those before it, by its deepest column that is remembered. Answers the gap between them. */
  #lookBack(tip: Node, facts: PromptFacts): number {
    const past = this.#past;
    for (let node = tip; node > 0; node = this.#parent[node] as Node) {
      if (!this.#isSampled(node)) continue;
      const slot = past.find(this.#fingerprint[node] as number);
      if (slot === UNKNOWN) continue;
      const depth = this.#depth[node] as number;
      const earlier = past.promptColumns[slot] as number;
      facts.known = Math.max(facts.known, depth);
      // As exactly as the sample tells.
      if (depth < CONTINUED * earlier && depth < earlier - 2 * SAMPLING) return NO_GAP;
      facts.continues = true;
      facts.turn = Math.min(MOST_TURNS, (past.turn[slot] as number) + 1);
      return bucketOf(this.#now - (past.lastUse[slot] as number));
    }
    return NO_GAP;
  }

  /** Columns that were decoded belong to the prompt before them: they are no use of it. */
  #finishExtension(tip: Node): void {
    const past = this.#past;
    const columns = this.#depth[tip] as number;
    let above: Node = tip;
    while (above > 0 && (this.#depth[above] as number) > this.#found) above = this.#parent[above] as Node;
    const kind = above > 0 ? (this.#kind[above] as number) : 0;
    const { turn, gap } = this.#nearestNote(above);
    for (let node = tip; node !== above; node = this.#parent[node] as Node) {
      this.#kind[node] = kind;
      this.#lastUse[node] = this.#now;
      if (!this.#isSampled(node)) continue;
      const fingerprint = this.#fingerprint[node] as number;
      const known = past.find(fingerprint);
      this.#note(known === UNKNOWN ? this.#newSlot(fingerprint) : known, node, kind, turn, gap, columns);
    }
    this.#now += columns - this.#found;
  }

  #nearestNote(from: Node): { turn: number; gap: number } {
    let node = from;
    for (let step = 0; node > 0 && step < 4 * SAMPLING; step += 1) {
      const slot = this.#isSampled(node) ? this.#past.find(this.#fingerprint[node] as number) : UNKNOWN;
      if (slot !== UNKNOWN) return { turn: this.#past.turn[slot] as number, gap: this.#past.gap[slot] as number };
      node = this.#parent[node] as Node;
    }
    return { turn: 0, gap: NO_GAP };
  }

  #isSampled(node: Node): boolean {
    return ((this.#fingerprint[node] as number) & (SAMPLING - 1)) === 0;
  }

  #newSlot(fingerprint: number): number {
    const slot = this.#past.take(fingerprint);
    this.#past.uses[slot] = 1;
    this.#densityShadow.forget(slot);
    this.#lruShadow.forget(slot);
    return slot;
  }

  #note(slot: number, node: Node, kind: number, turn: number, gap: number, columns: number): void {
    const past = this.#past;
    past.lastUse[slot] = this.#now;
    past.kind[slot] = kind;
    past.turn[slot] = turn;
    past.gap[slot] = gap;
    past.depth[slot] = Math.min(this.#depth[node] as number, 0xffff);
    past.promptColumns[slot] = Math.min(columns, 0xffff);
  }

  #mark(marks: number, slot: number): number {
    if (marks === this.#marks.length) {
      const larger = new Uint32Array(2 * marks);
      larger.set(this.#marks);
      this.#marks = larger;
    }
    this.#marks[marks] = slot;
    return marks + 1;
  }

  /** Lets both rules serve the prompt in the shadow, and goes by the one that has served prompts better. */
  #compareRules(marks: number): void {
    const { depth } = this.#past;
    let densityHits = true;
    let lruHits = true;
    for (let mark = marks - 1; mark >= 0; mark -= 1) {
      const slot = this.#marks[mark] as number;
      // What is done is known better than by its shadow.
      const held = this.#byDensity ? (depth[slot] as number) <= this.#found : this.#densityShadow.holds(slot);
      densityHits &&= held;
      lruHits &&= this.#lruShadow.holds(slot);
      this.#lead += (densityHits ? 1 : 0) - (lruHits ? 1 : 0);
      this.#densityShadow.add(slot);
      this.#lruShadow.add(slot);
    }
    this.#densityShadow.trim(SHADOW_LOOKS);
    this.#lruShadow.trim(SHADOW_LOOKS);
    const promptHits = this.#odds.meanColumns / SAMPLING / (this.#shadowBits + 1);
    const bound = BOUND_PROMPTS * promptHits;
    this.#lead = Math.max(-bound, Math.min(bound, this.#lead));
    if (this.#rule !== undefined) return;
    if (this.#lead > AHEAD_PROMPTS * promptHits) this.#byDensity = true;
    else if (this.#lead < -BEHIND_PROMPTS * promptHits) this.#byDensity = false;
  }

  /** Counts how many columns of each kind there are at each age, a part of them for all, and draws conclusions. */
  #takeCensus(): void {
    const past = this.#past;
    const elapsed = this.#now - this.#lastCensus;
    this.#lastCensus = this.#now;
    this.#censusAt = this.#now + Math.max(LEAST_COLUMNS_BETWEEN_CENSUSES, this.#capacity * CENSUS_SHARE);
    this.#odds.age(Math.exp(-elapsed / (LEARNING_SPAN * this.#capacity)));
    const step = Math.max(1, Math.floor(past.slots / CENSUS_SLOTS));
    for (let slot = this.#draw() % step; slot < past.slots; slot += step) {
      const lastUse = past.lastUse[slot] as number;
      if (lastUse >= 0) this.#odds.sawTime(past.kind[slot] as number, this.#now - lastUse, elapsed * step);
    }
    this.#odds.fit((DOUBT_PROMPTS * this.#odds.meanColumns) / SAMPLING);
  }

  #shadowOf(columns: number, worth: (slot: number) => number): ShadowCache {
    return new ShadowCache(columns, this.#past, worth, () => this.#draw());
  }

  /** The same numbers in every run. */
  #draw(): number {
    let bits = this.#random;
    bits ^= bits << 13;
    bits ^= bits >>> 17;
    bits ^= bits << 5;
    this.#random = bits;
    return bits >>> 0;
  }
}
