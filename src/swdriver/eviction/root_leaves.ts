import { enlarged } from '../../common/enlarged.js';
import { NONE, type Node } from '../prefix_map.js';

/**
 * The leaves of each root as two rings, of ordinary ones and of protected ones, each with a hand that goes round: the
 * leaves of one tenant, a few at a time, without a look at those of others.
 */
export class RootLeaves {
  #root = new Int32Array(0);
  #next = new Uint32Array(0);
  #previous = new Uint32Array(0);
  /** Where the hands of root -r are, at 2r and 2r + 1; NONE for a ring without leaves. */
  readonly #hands: Node[] = [];

  static readonly bytesPerNode = 12;

  grow(capacity: number): void {
    this.#root = enlarged(this.#root, capacity + 1);
    this.#next = enlarged(this.#next, capacity + 1);
    this.#previous = enlarged(this.#previous, capacity + 1);
  }

  inserted(node: Node, parent: Node): void {
    const root = parent < 0 ? parent : (this.#root[parent] as number);
    this.#root[node] = root;
    while (this.#hands.length <= -2 * root + 1) this.#hands.push(NONE);
  }

  /** Enters a leaf that is in no ring, as the last that the hand comes to. */
  add(node: Node, isProtected: boolean): void {
    const at = handOf(this.#root[node] as number, isProtected);
    const hand = this.#hands[at] as Node;
    if (hand === NONE) {
      this.#next[node] = node;
      this.#previous[node] = node;
      this.#hands[at] = node;
      return;
    }
    const last = this.#previous[hand] as Node;
    this.#next[last] = node;
    this.#previous[node] = last;
    this.#next[node] = hand;
    this.#previous[hand] = node;
  }

  /** Takes a leaf out of the ring that it is in. */
  remove(node: Node, isProtected: boolean): void {
    const at = handOf(this.#root[node] as number, isProtected);
    const next = this.#next[node] as Node;
    const previous = this.#previous[node] as Node;
    if (next === node) {
      this.#hands[at] = NONE;
      return;
    }
    this.#next[previous] = next;
    this.#previous[next] = previous;
    if (this.#hands[at] === node) this.#hands[at] = next;
  }

  /** The leaf at the hand; NONE where there is none. */
  hand(root: Node, isProtected: boolean): Node {
    return this.#hands[handOf(root, isProtected)] ?? NONE;
  }

  /** Moves the hand on to the next leaf, and answers with it. */
  turn(root: Node, isProtected: boolean): Node {
    const at = handOf(root, isProtected);
    const next = this.#next[this.#hands[at] as Node] as Node;
    this.#hands[at] = next;
    return next;
  }
}

const handOf = (root: Node, isProtected: boolean) => -2 * root + (isProtected ? 1 : 0);
