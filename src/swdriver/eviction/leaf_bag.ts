/** Numbers from 1 to a largest one, each in or out, any of them found by its place: for looking at a few at random. */
export class LeafBag {
  #members = new Uint32Array(0);
  /** Place of each number plus one; 0 for those that are out. */
  #place = new Uint32Array(0);
  #size = 0;

  static readonly bytesPerNumber = 8;

  get size(): number {
    return this.#size;
  }

  /** Makes room for numbers up to `largest`, and for `most` of them at once. */
  grow(largest: number, most = largest): void {
    const members = new Uint32Array(most);
    members.set(this.#members);
    this.#members = members;
    const place = new Uint32Array(largest + 1);
    place.set(this.#place);
    this.#place = place;
  }

  has(member: number): boolean {
    return this.#place[member] !== 0;
  }

  /** The number at a place below `size`. */
  at(place: number): number {
    return this.#members[place] as number;
  }

  /** Harmless where it is in. */
  add(member: number): void {
    if (this.#place[member] !== 0) return;
    this.#members[this.#size] = member;
    this.#size += 1;
    this.#place[member] = this.#size;
  }

  /** Harmless where it is out. */
  remove(member: number): void {
    const place = this.#place[member] as number;
    if (place === 0) return;
    const last = this.#members[this.#size - 1] as number;
    this.#members[place - 1] = last;
    this.#place[last] = place;
    this.#place[member] = 0;
    this.#size -= 1;
  }
}
