import type { Clock } from '../../src/common/clock.js';

interface Timer {
  readonly at: number;
  /** Of two that are due at the same time the one that was set first comes first. */
  readonly order: number;
  readonly task: () => void;
}

/** A nanosecond. */
const LEAST_MS = 1e-6;

/** Time that moves when the simulation says so. */
export class SimClock implements Clock {
  #now = 0;
  #order = 0;
  readonly #timers = new Set<Timer>();
  /** Milliseconds by which time has jumped in one go: nobody could act in between. */
  jumpedMs = 0;

  now(): number {
    return this.#now;
  }

  schedule(delayMs: number, task: () => void): () => void {
    // What rounding has left of a delay moves time on as well, or who waits for the rest of it would wait for ever.
    const delay = delayMs > 0 ? Math.max(LEAST_MS, delayMs) : 0;
    const timer = { at: this.#now + delay, order: this.#order++, task };
    this.#timers.add(timer);
    return () => {
      this.#timers.delete(timer);
    };
  }

  get nowNs(): number {
    return Math.round(this.#now * 1e6);
  }

  /** When the next timer is due; infinite where there is none. */
  get nextDue(): number {
    return this.#next()?.at ?? Number.POSITIVE_INFINITY;
  }

  /** Moves time on without running what falls due. */
  moveTo(ms: number): void {
    this.#now = Math.max(this.#now, ms);
  }

  jump(ms: number): void {
    this.#now += ms;
    this.jumpedMs += ms;
  }

  /** Runs one timer that is due. Answers whether there was one. */
  runDue(): boolean {
    const timer = this.#next();
    if (!timer || timer.at > this.#now) return false;
    this.#timers.delete(timer);
    timer.task();
    return true;
  }

  #next(): Timer | undefined {
    let next: Timer | undefined;
    for (const timer of this.#timers) {
      if (!next || timer.at < next.at || (timer.at === next.at && timer.order < next.order)) next = timer;
    }
    return next;
  }
}
