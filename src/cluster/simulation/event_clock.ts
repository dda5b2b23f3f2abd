import type { Clock } from '../../common/clock.js';

interface Event {
  readonly at: number;
  /** What was scheduled first runs first. */
  readonly order: number;
  run: (() => void) | undefined;
}

/** Time of a simulation: it passes at once to whatever is due next. Events of the same time run in the order of scheduling. */
export class EventClock implements Clock {
  #now = 0;
  #scheduled = 0;
  /** A binary heap; events that were cancelled leave it when their time comes. */
  readonly #heap: Event[] = [];

  now(): number {
    return this.#now;
  }

  schedule(delayMs: number, task: () => void): () => void {
    const event: Event = { at: this.#now + Math.max(0, delayMs), order: this.#scheduled, run: task };
    this.#scheduled += 1;
    this.#heap.push(event);
    this.#rise(this.#heap.length - 1);
    return () => {
      event.run = undefined;
    };
  }

  /** Runs everything that is due up to and with `untilMs`, and what that sets off. The time is `untilMs` then. */
  run(untilMs: number): void {
    for (let next = this.#heap[0]; next && next.at <= untilMs; next = this.#heap[0]) {
      this.#removeFirst();
      if (!next.run) continue;
      this.#now = next.at;
      next.run();
    }
    this.#now = Math.max(this.#now, untilMs);
  }

  #removeFirst(): void {
    const last = this.#heap.pop() as Event;
    if (this.#heap.length === 0) return;
    this.#heap[0] = last;
    let place = 0;
    for (;;) {
      const left = 2 * place + 1;
      if (left >= this.#heap.length) return;
      const child = left + 1 < this.#heap.length && this.#before(left + 1, left) ? left + 1 : left;
      if (!this.#before(child, place)) return;
      this.#swap(place, child);
      place = child;
    }
  }

  #rise(from: number): void {
    for (let place = from; place > 0; ) {
      const parent = (place - 1) >> 1;
      if (!this.#before(place, parent)) return;
      this.#swap(place, parent);
      place = parent;
    }
  }

  #before(one: number, other: number): boolean {
    const [a, b] = [this.#heap[one] as Event, this.#heap[other] as Event];
    return a.at < b.at || (a.at === b.at && a.order < b.order);
  }

  #swap(one: number, other: number): void {
    const event = this.#heap[one] as Event;
    this.#heap[one] = this.#heap[other] as Event;
    this.#heap[other] = event;
  }
}
