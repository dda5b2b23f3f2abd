import type { Clock } from '../../src/common/clock.js';

interface Task {
  readonly at: number;
  readonly run: () => void;
}

/** Time that stands still until a test moves it on. */
export class ManualClock implements Clock {
  #now = 0;
  readonly #tasks = new Set<Task>();

  now(): number {
    return this.#now;
  }

  schedule(delayMs: number, run: () => void): () => void {
    const task = { at: this.#now + delayMs, run };
    this.#tasks.add(task);
    return () => {
      this.#tasks.delete(task);
    };
  }

  /** Tasks that wait for their time. */
  get waiting(): number {
    return this.#tasks.size;
  }

  /** Time has gone on, and nothing has run meanwhile: what is due runs with the next advance(). */
  jump(ms: number): void {
    this.#now += ms;
  }

  /**
   * Moves time on, once everything has happened that can happen now. What falls due runs in order, and what it sets off
   * has happened before time goes on.
   */
  async advance(ms: number): Promise<void> {
    await settled();
    const end = this.#now + ms;
    for (;;) {
      const at = [...this.#tasks].reduce((first, task) => Math.min(first, task.at), Number.POSITIVE_INFINITY);
      if (at > end) break;
      this.#now = Math.max(this.#now, at);
      for (const task of [...this.#tasks].filter((each) => each.at === at)) {
        // One that ran before may have cancelled it.
        if (this.#tasks.delete(task)) task.run();
      }
      await settled();
    }
    this.#now = end;
    await settled();
  }
}

/** Resolves when everything that could happen without time passing has happened. */
export function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
