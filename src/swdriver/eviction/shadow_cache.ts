import { LeafBag } from './leaf_bag.js';
import type { PastPrompts } from './past_prompts.js';

/**
 * What a cache would hold that evicts by another rule, for a sample of columns by the slots that they have in
 * PastPrompts. Holds no bytes, and knows of prefixes only that deeper columns go first.
 */
export class ShadowCache {
  readonly #members = new LeafBag();
  /** Room for the capacity and a long prompt. */
  readonly #most: number;

  /** The members are few. */
  static readonly bytesPerSlot = 4;

  /** `worth` of a slot: the least goes first, of a few that are looked at. */
  constructor(
    readonly capacity: number,
    private readonly past: PastPrompts,
    private readonly worth: (slot: number) => number,
    private readonly draw: () => number,
  ) {
    this.#most = 2 * capacity + 64;
    this.#members.grow(past.slots, this.#most);
  }

  holds(slot: number): boolean {
    return this.#members.has(slot + 1);
  }

  add(slot: number): void {
    if (this.#members.size === this.#most) this.trim(1);
    this.#members.add(slot + 1);
  }

  forget(slot: number): void {
    this.#members.remove(slot + 1);
  }

  /** Evicts what is too much, each the worst of so many looked at. */
  trim(looks: number): void {
    while (this.#members.size > this.capacity) {
      let worst = 0;
      let least = Number.POSITIVE_INFINITY;
      for (let look = 0; look < looks; look += 1) {
        const slot = this.#members.at(this.draw() % this.#members.size) - 1;
        const worth = this.worth(slot);
        if (worth < least || (worth === least && this.#goesBefore(slot, worst))) {
          least = worth;
          worst = slot;
        }
      }
      this.forget(worst);
    }
  }

  #goesBefore(slot: number, other: number): boolean {
    const { lastUse, depth } = this.past;
    const [left, right] = [lastUse[slot] as number, lastUse[other] as number];
    return left < right || (left === right && (depth[slot] as number) > (depth[other] as number));
  }
}
