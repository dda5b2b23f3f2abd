import { randomInt } from 'node:crypto';
import { enlarged } from '../common/enlarged.js';
import { Contents } from './contents.js';
import type { EvictionPolicy, LeafRanking } from './eviction_policy.js';
import { hashColumn } from './prefix_hash.js';

/**
 * A column in the map (positive), or the root of a namespace (negative). Numbers are used again after removal; keep
 * the serial beside one that you keep.
 */
export type Node = number;

/** No column. */
export const NONE: Node = 0;

const FREE = 0;
/** Its evict is under way: it holds its place, and no match reaches it. */
const STORING = 1;
/** Every piece of every shard is stored, in all groups that keep whole prefixes. */
const STORED = 2;

export interface PrefixMapOptions {
  /** Most columns that the map ever holds at once, stored and storing. */
  capacity: number;
  /** Tokens of a column. */
  columnTokens: number;
  policy: EvictionPolicy;
  /** Groups of layers of the model, of which a column has a part each; 1 if left out. */
  groups?: number;
  /** For tests: fewer bits make collisions. */
  hashBits?: number;
  /** For tests and simulations; random by default. */
  hashSeed?: number;
}

/**
 * The map from token prefixes to columns: a forest with one root a namespace, a node a column. Typed arrays only, no
 * object a column.
 *
 * Matching is exact. A node is reached from its parent by comparing all its tokens, and a root by comparing the whole
 * namespace, so two different prefixes can never meet in one column whatever the hash does (promise P6).
 *
 * The map is closed under prefixes: only leaves are evicted, and a removal takes everything below with it. A pin on one
 * column therefore protects its whole prefix.
 */
export class PrefixMap {
  readonly columnTokens: number;
  /** What columns hold besides tokens. */
  readonly contents = new Contents();
  readonly #ranking: LeafRanking;
  readonly #hashMask: number;
  readonly #hashSeed: number;

  #tokens = new Uint32Array(0);
  #parent = new Int32Array(0);
  #firstChild = new Uint32Array(0);
  #nextSibling = new Uint32Array(0);
  #previousSibling = new Uint32Array(0);
  #hash = new Uint32Array(0);
  #nextInBucket = new Uint32Array(0);
  #state = new Uint8Array(0);
  #stripe = new Uint16Array(0);
  /** Groups whose part of the column is stored, or is being stored: a bit each. */
  #parts = new Uint16Array(0);
  /** Those that are being stored. */
  #pending = new Uint16Array(0);
  /** Content besides tokens, by number; 0 for none. */
  #content = new Uint32Array(0);
  #slot = new Uint32Array(0);
  #pins = new Uint32Array(0);
  #serial = new Uint32Array(0);
  #generation = new Float64Array(0);
  #buckets = new Uint32Array(0);
  #capacity = 0;
  readonly #groups: number;

  // Roots are negative numbers: root r has its first child in #rootChild[-r].
  readonly #roots = new Map<string, Node>();
  readonly #rootChild: Node[] = [NONE];
  #freeHead: Node = NONE;
  #neverUsed = 1;
  #size = 0;
  #stored = 0;
  #collisions = 0;

  constructor(options: PrefixMapOptions) {
    this.columnTokens = options.columnTokens;
    this.#ranking = options.policy.ranking();
    this.#groups = options.groups ?? 1;
    this.#hashMask = options.hashBits === undefined ? 0xffffffff : 2 ** options.hashBits - 1;
    this.#hashSeed = options.hashSeed ?? randomInt(2 ** 32);
    this.grow(options.capacity);
  }

  /** Most columns that the map holds at once. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Makes room for `capacity` columns. Columns keep their numbers. Takes time and memory in proportion. */
  grow(capacity: number): void {
    const nodes = capacity + 1;
    this.#capacity = capacity;
    this.#tokens = enlarged(this.#tokens, nodes * this.columnTokens);
    this.#parent = enlarged(this.#parent, nodes);
    this.#firstChild = enlarged(this.#firstChild, nodes);
    this.#nextSibling = enlarged(this.#nextSibling, nodes);
    this.#previousSibling = enlarged(this.#previousSibling, nodes);
    this.#hash = enlarged(this.#hash, nodes);
    this.#nextInBucket = enlarged(this.#nextInBucket, nodes);
    this.#state = enlarged(this.#state, nodes);
    this.#stripe = enlarged(this.#stripe, nodes);
    this.#parts = enlarged(this.#parts, nodes);
    this.#pending = enlarged(this.#pending, nodes);
    this.#content = enlarged(this.#content, nodes);
    this.#slot = enlarged(this.#slot, nodes * this.#groups);
    this.#pins = enlarged(this.#pins, nodes);
    this.#serial = enlarged(this.#serial, nodes);
    this.#generation = enlarged(this.#generation, nodes * this.#groups);
    this.#ranking.grow(capacity);
    this.#rebuild();
  }

  /** Makes the buckets anew from the columns that there are. */
  #rebuild(): void {
    this.#buckets = new Uint32Array(2 ** Math.ceil(Math.log2(Math.max(this.#capacity, 2))));
    for (let node = 1; node < this.#neverUsed; node += 1) {
      if (this.#state[node] === FREE) continue;
      this.#linkBucket(node);
    }
  }

  /** Columns in the map, stored and storing. */
  get size(): number {
    return this.#size;
  }

  /** Columns that a match can reach, as far as their prefix is stored too. */
  get stored(): number {
    return this.#stored;
  }

  /** Lookups that met another column in their bucket. For tests and metrics. */
  get collisions(): number {
    return this.#collisions;
  }

  /** Bytes that the map takes a column of capacity, tokens included. */
  get bytesPerColumn(): number {
    const links = 4 * 9 + 2 * 3 + 1 + (4 + 8) * this.#groups;
    const buckets = this.#buckets.byteLength / Math.max(this.#capacity, 1);
    return 4 * this.columnTokens + links + buckets + this.#ranking.bytesPerColumn;
  }

  /** Root of a namespace; the string is compared in full. Made where there is none yet. */
  root(namespace: string): Node {
    const known = this.#roots.get(namespace);
    if (known !== undefined) return known;
    const root = -this.#rootChild.length;
    this.#rootChild.push(NONE);
    this.#roots.set(namespace, root);
    return root;
  }

  /** Roots of the namespaces whose name begins with `prefix`. */
  rootsBelow(prefix: string): Node[] {
    return [...this.#roots].filter(([namespace]) => namespace.startsWith(prefix)).map(([, root]) => root);
  }

  /** The columns that continue `parent`, stored and storing. */
  children(parent: Node): Node[] {
    const nodes: Node[] = [];
    for (let node = this.#childHead(parent); node !== NONE; node = this.#nextSibling[node] as Node) nodes.push(node);
    return nodes;
  }

  /**
   * The column that continues `parent` with exactly these tokens and this content, stored or storing; NONE where there is
   * none.
   */
  child(parent: Node, tokens: Uint32Array, at: number, content = 0): Node {
    // Tokens that are not there must not look like zeros.
    if (at + this.columnTokens > tokens.length) return NONE;
    // Most columns have one continuation, and the one used last is likely to be used next: no hash for those.
    const first = this.#childHead(parent);
    if (first === NONE) return NONE;
    if (this.#content[first] === content && this.#sameTokens(first, tokens, at)) return first;
    if (this.#nextSibling[first] === NONE) return NONE;
    const hash = this.#hashOf(parent, tokens, at, content);
    let node = this.#buckets[hash & (this.#buckets.length - 1)] as Node;
    while (node !== NONE) {
      if (
        this.#hash[node] === hash &&
        this.#parent[node] === parent &&
        this.#content[node] === content &&
        this.#sameTokens(node, tokens, at)
      ) {
        this.#unlinkSibling(node);
        this.#linkFirst(parent, node);
        return node;
      }
      this.#collisions += 1;
      node = this.#nextInBucket[node] as Node;
    }
    return NONE;
  }

  /**
   * Follows `tokens` from `parent` through stored columns, writes them to `path` and answers how many there are. At
   * most `maxColumns`, beginning at token `at`. `contents`: what the columns hold besides tokens, from the first of the
   * walk; none where it is left out or has ended.
   */
  walk(
    parent: Node,
    tokens: Uint32Array,
    at: number,
    maxColumns: number,
    path: Node[],
    contents?: Uint32Array,
  ): number {
    let node = parent;
    let columns = 0;
    let cursor = at;
    const last = tokens.length - this.columnTokens;
    while (columns < maxColumns && cursor <= last) {
      // What child() does first; this is the loop that a match spends its time in.
      const first = this.#childHead(node);
      const content = contents === undefined ? 0 : (contents[columns] ?? 0);
      node =
        first !== NONE && this.#content[first] === content && this.#sameTokens(first, tokens, cursor)
          ? first
          : this.child(node, tokens, cursor, content);
      if (node === NONE || this.#state[node] !== STORED) break;
      path[columns] = node;
      columns += 1;
      cursor += this.columnTokens;
    }
    return columns;
  }

  /** Remembers that a prompt reached this column; what is before it counts as used with it. */
  touch(node: Node): void {
    if (this.isRoot(node)) return;
    this.#ranking.used(node);
  }

  /**
   * Adds a storing column below `parent`, with the place of its part of the first group. The caller has seen that there
   * is no such child and that `size` is below the capacity. `spelling`: what the column holds besides tokens.
   */
  insert(
    parent: Node,
    tokens: Uint32Array,
    at: number,
    stripe: number,
    slot: number,
    generation: number,
    spelling = '',
  ): Node {
    if (!this.isRoot(parent) && this.#state[parent] === FREE) throw new Error('PrefixMap: insert below no column');
    const node = this.#take();
    this.#tokens.set(tokens.subarray(at, at + this.columnTokens), node * this.columnTokens);
    this.#parent[node] = parent;
    this.#firstChild[node] = NONE;
    this.#state[node] = STORING;
    this.#stripe[node] = stripe;
    this.#parts[node] = 0;
    this.#pending[node] = 0;
    const content = this.contents.retain(spelling);
    this.#content[node] = content;
    this.addPart(node, 0, slot, generation);
    this.#pins[node] = 0;
    this.#hash[node] = this.#hashOf(parent, tokens, at, content);
    this.#linkBucket(node);
    this.#linkFirst(parent, node);
    if (!this.isRoot(parent)) this.#ranking.withdraw(parent);
    this.#ranking.inserted(node, parent, this.#hash[node] as number);
    this.#size += 1;
    return node;
  }

  /** Gives a column a part of a group, with its place. It counts when it is confirmed, or the column is published. */
  addPart(node: Node, group: number, slot: number, generation: number): void {
    this.#parts[node] = (this.#parts[node] as number) | (1 << group);
    this.#pending[node] = (this.#pending[node] as number) | (1 << group);
    this.#slot[node * this.#groups + group] = slot;
    this.#generation[node * this.#groups + group] = generation;
  }

  /** The part of a group is stored. */
  confirmPart(node: Node, group: number): void {
    this.#pending[node] = (this.#pending[node] as number) & ~(1 << group);
  }

  /** Takes the part of a group away from a column. */
  dropPart(node: Node, group: number): void {
    this.#parts[node] = (this.#parts[node] as number) & ~(1 << group);
    this.confirmPart(node, group);
  }

  /** Whether the column has a place for its part of a group, stored or being stored. */
  hasPart(node: Node, group: number): boolean {
    return ((this.#parts[node] as number) & (1 << group)) !== 0;
  }

  /** Whether the part of a group is stored. */
  partStored(node: Node, group: number): boolean {
    return ((this.#parts[node] as number) & ~(this.#pending[node] as number) & (1 << group)) !== 0;
  }

  /** All pieces of the column are stored, with the parts that it has: matches may reach it. */
  publish(node: Node): void {
    if (this.#state[node] !== STORING) return;
    this.#state[node] = STORED;
    this.#pending[node] = 0;
    this.#stored += 1;
    this.#reconsider(node);
  }

  /**
   * Removes a column and everything that continues it. `visit` hears of each, deepest first, before its number is free;
   * pins on removed columns are void.
   */
  remove(node: Node, visit: (removed: Node) => void): void {
    // Down the first children, then back up, removing on the way: no stack, whatever the depth.
    let cursor = node;
    for (;;) {
      const below = this.#firstChild[cursor] as Node;
      if (below !== NONE) {
        cursor = below;
        continue;
      }
      const parent = this.#parent[cursor] as Node;
      visit(cursor);
      this.#release(cursor, false);
      if (cursor === node) return;
      cursor = parent;
    }
  }

  /** Removes every column of a stripe and what continues them. */
  removeStripe(stripe: number, visit: (removed: Node) => void): void {
    for (let node = 1; node < this.#neverUsed; node += 1) {
      if ((this.#state[node] as number) >= STORING && this.#stripe[node] === stripe) this.remove(node, visit);
    }
  }

  /**
   * Takes the leaf that the policy likes least out of the map and answers with it, of one root if one is named; NONE where
   * all are pinned.
   */
  evictLeaf(visit: (removed: Node) => void, root?: Node): Node {
    const victim = this.#ranking.victim(root);
    if (victim === NONE) return NONE;
    visit(victim);
    this.#release(victim, true);
    return victim;
  }

  /** The column that evictLeaf would evict, of one root if one is named; NONE where all are pinned. */
  victim(root?: Node): Node {
    return this.#ranking.victim(root);
  }

  /** Keeps a column, and with it its prefix, for as long as anything else can be evicted: a system prompt, tools. */
  protect(node: Node): void {
    if (!this.isRoot(node)) this.#ranking.protect(node, true);
  }

  /** Ends the protection of a column, however often it was protected. */
  unprotect(node: Node): void {
    if (!this.isRoot(node)) this.#ranking.protect(node, false);
  }

  /** Whether evictLeaf would find one. */
  get hasVictim(): boolean {
    return this.#ranking.size > 0;
  }

  /** Keeps a column, and with it its prefix, from being evicted until as many unpins. */
  pin(node: Node): void {
    if (this.isRoot(node)) return;
    this.#pins[node] = (this.#pins[node] as number) + 1;
    this.#ranking.withdraw(node);
  }

  /** Ends one pin, if the column is still the one that was pinned. */
  unpin(node: Node, serial: number): void {
    if (this.isRoot(node) || !this.isCurrent(node, serial)) return;
    this.#pins[node] = (this.#pins[node] as number) - 1;
    this.#reconsider(node);
  }

  /** Whether a number still means the column that it meant when its serial was read. */
  isCurrent(node: Node, serial: number): boolean {
    return this.isRoot(node) || (this.#state[node] !== FREE && this.#serial[node] === serial);
  }

  isRoot(node: Node): boolean {
    return node < 0;
  }

  isStored(node: Node): boolean {
    return this.isRoot(node) || this.#state[node] === STORED;
  }

  serial(node: Node): number {
    return this.isRoot(node) ? 0 : (this.#serial[node] as number);
  }

  parent(node: Node): Node {
    return this.#parent[node] as Node;
  }

  stripe(node: Node): number {
    return this.#stripe[node] as number;
  }

  /** What the column holds besides tokens, by number; 0 for nothing. */
  content(node: Node): number {
    return this.#content[node] as number;
  }

  /** Slot of the column's part of a group. */
  slot(node: Node, group = 0): number {
    return this.#slot[node * this.#groups + group] as number;
  }

  /** Generation of the column's part of a group. */
  generation(node: Node, group = 0): number {
    return this.#generation[node * this.#groups + group] as number;
  }

  #take(): Node {
    const reused = this.#freeHead;
    if (reused !== NONE) {
      this.#freeHead = this.#nextSibling[reused] as Node;
      return reused;
    }
    if (this.#neverUsed > this.#capacity) throw new Error('PrefixMap: insert beyond the capacity');
    this.#neverUsed += 1;
    return this.#neverUsed - 1;
  }

  #release(node: Node, evicted: boolean): void {
    const parent = this.#parent[node] as Node;
    this.#ranking.withdraw(node);
    this.#ranking.removed(node, parent, evicted);
    this.#unlinkSibling(node);
    this.#unlinkBucket(node);
    if (this.#state[node] === STORED) this.#stored -= 1;
    this.#state[node] = FREE;
    this.contents.release(this.#content[node] as number);
    this.#serial[node] = (this.#serial[node] as number) + 1;
    this.#nextSibling[node] = this.#freeHead;
    this.#freeHead = node;
    this.#size -= 1;
    if (!this.isRoot(parent)) this.#reconsider(parent);
  }

  /** Puts a column among the leaves that may be evicted, if that is what it is now. */
  #reconsider(node: Node): void {
    if (this.#state[node] === STORED && this.#firstChild[node] === NONE && this.#pins[node] === 0) {
      this.#ranking.offer(node);
    }
  }

  #hashOf(parent: Node, tokens: Uint32Array, at: number, content: number): number {
    // The hash of the parent, not its number: equal prefixes have equal hashes whenever they come.
    const before = parent < 0 ? parent : (this.#hash[parent] as number);
    const hash = hashColumn(before, tokens, at, this.columnTokens, this.#hashSeed);
    return ((hash ^ this.contents.hashOf(content)) & this.#hashMask) >>> 0;
  }

  #sameTokens(node: Node, tokens: Uint32Array, at: number): boolean {
    const mine = this.#tokens;
    const length = this.columnTokens;
    let left = node * length;
    let right = at;
    const end = left + length;
    // Eight at a time with one branch: this loop is most of a match.
    for (; left + 8 <= end; left += 8, right += 8) {
      const difference =
        ((mine[left] as number) ^ (tokens[right] as number)) |
        ((mine[left + 1] as number) ^ (tokens[right + 1] as number)) |
        ((mine[left + 2] as number) ^ (tokens[right + 2] as number)) |
        ((mine[left + 3] as number) ^ (tokens[right + 3] as number)) |
        ((mine[left + 4] as number) ^ (tokens[right + 4] as number)) |
        ((mine[left + 5] as number) ^ (tokens[right + 5] as number)) |
        ((mine[left + 6] as number) ^ (tokens[right + 6] as number)) |
        ((mine[left + 7] as number) ^ (tokens[right + 7] as number));
      if (difference !== 0) return false;
    }
    for (; left < end; left += 1, right += 1) if (mine[left] !== tokens[right]) return false;
    return true;
  }

  #childHead(parent: Node): Node {
    return (parent < 0 ? this.#rootChild[-parent] : this.#firstChild[parent]) as Node;
  }

  #setChildHead(parent: Node, node: Node): void {
    if (parent < 0) this.#rootChild[-parent] = node;
    else this.#firstChild[parent] = node;
  }

  #linkFirst(parent: Node, node: Node): void {
    const head = this.#childHead(parent);
    this.#nextSibling[node] = head;
    this.#previousSibling[node] = NONE;
    if (head !== NONE) this.#previousSibling[head] = node;
    this.#setChildHead(parent, node);
  }

  #unlinkSibling(node: Node): void {
    const next = this.#nextSibling[node] as Node;
    const previous = this.#previousSibling[node] as Node;
    if (next !== NONE) this.#previousSibling[next] = previous;
    if (previous !== NONE) this.#nextSibling[previous] = next;
    else this.#setChildHead(this.#parent[node] as Node, next);
  }

  #linkBucket(node: Node): void {
    const bucket = (this.#hash[node] as number) & (this.#buckets.length - 1);
    this.#nextInBucket[node] = this.#buckets[bucket] as Node;
    this.#buckets[bucket] = node;
  }

  #unlinkBucket(node: Node): void {
    const bucket = (this.#hash[node] as number) & (this.#buckets.length - 1);
    const after = this.#nextInBucket[node] as Node;
    let cursor = this.#buckets[bucket] as Node;
    if (cursor === node) {
      this.#buckets[bucket] = after;
      return;
    }
    while (this.#nextInBucket[cursor] !== node) cursor = this.#nextInBucket[cursor] as Node;
    this.#nextInBucket[cursor] = after;
  }
}
