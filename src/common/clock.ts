/** Time comes in from outside, so that tests and simulations can own it. */
export interface Clock {
  /** Milliseconds of a monotonic clock, with fractions. */
  now(): number;
  /** Runs `task` once after `delayMs`, unless the returned function is called before. Does not keep a process alive. */
  schedule(delayMs: number, task: () => void): () => void;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  schedule(delayMs, task) {
    const timer = setTimeout(task, delayMs);
    timer.unref();
    return () => clearTimeout(timer);
  },
};
