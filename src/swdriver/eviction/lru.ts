import { enlarged } from '../../common/enlarged.js';
import { LeafHeap } from '../leaf_heap.js';
import { NONE, type Node } from '../prefix_map.js';
import type { LeafRanking } from './leaf_ranking.js';
import { RootLeaves } from './root_leaves.js';

/** Added to the last use of protected columns: they come behind all others. */
const PROTECTED = 2 ** 52;
/** Leaves of one root that are looked at for a victim among them. */
const LOOKS = 64;

/** Least recently used first. Exactly so over all; of one root, the one of 64 leaves that has not been used for longest. */
export class LruRanking implements LeafRanking {
  #lastUse = new Float64Array(0);
  #protected = new Uint8Array(0);
  #heap = new LeafHeap(0);
  readonly #rings = new RootLeaves();
  #tick = 0;

  get size(): number {
    return this.#heap.size;
  }

  get bytesPerColumn(): number {
    const heap = 4 + 8 + 4;
    return 8 + 1 + heap + RootLeaves.bytesPerNode;
  }

  grow(capacity: number): void {
    const before = this.#heap;
    const known = this.#lastUse.length;
    this.#lastUse = enlarged(this.#lastUse, capacity + 1);
    this.#protected = enlarged(this.#protected, capacity + 1);
    this.#rings.grow(capacity);
    this.#heap = new LeafHeap(capacity);
    for (let node = 1; node < known; node += 1) {
      if (before.has(node)) this.#heap.put(node, this.#priorityOf(node));
    }
  }

  inserted(node: Node, parent: Node): void {
    this.#tick += 1;
    this.#lastUse[node] = this.#tick;
    this.#protected[node] = 0;
    this.#rings.inserted(node, parent);
  }

  used(node: Node): void {
    this.#tick += 1;
    this.#lastUse[node] = this.#tick;
    if (this.#heap.has(node)) this.#heap.put(node, this.#priorityOf(node));
  }

  offer(node: Node): void {
    if (!this.#heap.has(node)) this.#rings.add(node, this.#protected[node] === 1);
    this.#heap.put(node, this.#priorityOf(node));
  }

  withdraw(node: Node): void {
    if (!this.#heap.has(node)) return;
    this.#heap.remove(node);
    this.#rings.remove(node, this.#protected[node] === 1);
  }

  removed(node: Node, parent: Node): void {
    if (parent < 0) return;
    // A use of what continued it was a use of the parent too.
    this.#lastUse[parent] = Math.max(this.#lastUse[parent] as number, this.#lastUse[node] as number);
  }

  protect(node: Node, on: boolean): void {
    const offered = this.#heap.has(node);
    this.withdraw(node);
    this.#protected[node] = on ? 1 : 0;
    if (offered) this.offer(node);
  }

  victim(root?: Node): Node {
    if (root === undefined) return this.#heap.lowest;
    const isProtected = this.#rings.hand(root, false) === NONE;
    const first = this.#rings.hand(root, isProtected);
    if (first === NONE) return NONE;
    let oldest = first;
    for (let look = 1; look < LOOKS; look += 1) {
      const node = this.#rings.turn(root, isProtected);
      if (node === first) break;
      if ((this.#lastUse[node] as number) < (this.#lastUse[oldest] as number)) oldest = node;
    }
    return oldest;
  }

  #priorityOf(node: Node): number {
    return (this.#lastUse[node] as number) + (this.#protected[node] === 1 ? PROTECTED : 0);
  }
}
