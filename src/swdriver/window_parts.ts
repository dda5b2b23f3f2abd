import { enlarged } from '../common/enlarged.js';
import { LeafHeap } from './leaf_heap.js';
import type { Node } from './prefix_map.js';

/**
 * Which columns of one stripe have their part of one group that does not keep whole prefixes, and which of them goes first
 * when a slot is needed: parts that no prompt has ended near, oldest first, then those whose time is longest ago. A part
 * that a hit holds does not go. PrefixMap numbers columns; whoever removes one there tells `remove`.
 */
export class WindowParts {
  #order: LeafHeap;
  /** When a prompt last ended so that it needed the part; below 0 where none has: the order in which they came. */
  #priority: Float64Array;
  #pins: Uint16Array;
  #tick = 0;

  constructor(private capacity: number) {
    this.#order = new LeafHeap(capacity);
    this.#priority = new Float64Array(capacity + 1);
    this.#pins = new Uint16Array(capacity + 1);
  }

  /** Makes room for columns with numbers up to `capacity`. */
  grow(capacity: number): void {
    const priority = enlarged(this.#priority, capacity + 1);
    const order = new LeafHeap(capacity);
    for (let node = 1; node <= this.capacity; node += 1) {
      if (this.#order.has(node)) order.put(node, priority[node] as number);
    }
    this.#priority = priority;
    this.#pins = enlarged(this.#pins, capacity + 1);
    this.#order = order;
    this.capacity = capacity;
  }

  /** A part has been stored. `needed`: a prompt ended within reach of it. */
  add(node: Node, needed: boolean): void {
    this.#pins[node] = 0;
    this.#tick += 1;
    this.#priority[node] = needed ? this.#tick : this.#tick - Number.MAX_SAFE_INTEGER;
    this.#order.put(node, this.#priority[node] as number);
  }

  /** A prompt has ended so that it needs the part. */
  use(node: Node): void {
    this.#tick += 1;
    this.#priority[node] = this.#tick;
    if (this.#order.has(node)) this.#order.put(node, this.#tick);
  }

  /** Keeps a part until as many unpins. */
  pin(node: Node): void {
    this.#pins[node] = (this.#pins[node] as number) + 1;
    this.#order.remove(node);
  }

  /** Ends one pin of a part that is still there. */
  unpin(node: Node): void {
    this.#pins[node] = (this.#pins[node] as number) - 1;
    if (this.#pins[node] === 0) this.#order.put(node, this.#priority[node] as number);
  }

  /** The part is gone; pins on it are void. Harmless where it was not there. */
  remove(node: Node): void {
    this.#order.remove(node);
  }

  clear(): void {
    this.#order.clear();
  }

  /** Whether the part of a column is there and nobody holds it. */
  mayGo(node: Node): boolean {
    return this.#order.has(node);
  }

  /** The column whose part goes first; NONE where all are held. */
  get victim(): Node {
    return this.#order.lowest;
  }
}
