/** A binary min-heap of node numbers by priority, with removal and change of any member. Grows never; size it first. */
export class LeafHeap {
  readonly #nodes: Uint32Array;
  readonly #priority: Float64Array;
  /** Place in the heap plus one, by node; 0 for nodes that are not in it. */
  readonly #place: Uint32Array;
  #size = 0;

  /** Nodes are numbers from 1 to `maxNode`. */
  constructor(maxNode: number) {
    this.#nodes = new Uint32Array(maxNode + 1);
    this.#priority = new Float64Array(maxNode + 1);
    this.#place = new Uint32Array(maxNode + 1);
  }

  get size(): number {
    return this.#size;
  }

  has(node: number): boolean {
    return this.#place[node] !== 0;
  }

  /** Node with the lowest priority, 0 where the heap is empty. */
  get lowest(): number {
    return this.#size === 0 ? 0 : (this.#nodes[1] as number);
  }

  /** Adds a node, or changes the priority of one that is in. */
  put(node: number, priority: number): void {
    let place = this.#place[node] as number;
    if (place === 0) {
      this.#size += 1;
      place = this.#size;
    }
    this.#priority[node] = priority;
    this.#sink(this.#rise(place, node), node);
  }

  /** Removes a node; harmless where it is not in. */
  remove(node: number): void {
    const place = this.#place[node] as number;
    if (place === 0) return;
    this.#place[node] = 0;
    const last = this.#nodes[this.#size] as number;
    this.#size -= 1;
    if (last !== node) this.#sink(this.#rise(place, last), last);
  }

  clear(): void {
    this.#size = 0;
    this.#place.fill(0);
  }

  /** Moves the node towards the top from a free place; answers where it came to lie. */
  #rise(from: number, node: number): number {
    const priority = this.#priority[node] as number;
    let place = from;
    while (place > 1) {
      const above = this.#nodes[place >> 1] as number;
      if ((this.#priority[above] as number) <= priority) break;
      this.#set(place, above);
      place >>= 1;
    }
    this.#set(place, node);
    return place;
  }

  #sink(from: number, node: number): void {
    const priority = this.#priority[node] as number;
    let place = from;
    for (;;) {
      let below = place * 2;
      if (below > this.#size) break;
      if (below < this.#size && this.#priorityAt(below + 1) < this.#priorityAt(below)) below += 1;
      if (this.#priorityAt(below) >= priority) break;
      this.#set(place, this.#nodes[below] as number);
      place = below;
    }
    this.#set(place, node);
  }

  #priorityAt(place: number): number {
    return this.#priority[this.#nodes[place] as number] as number;
  }

  #set(place: number, node: number): void {
    this.#nodes[place] = node;
    this.#place[node] = place;
  }
}
