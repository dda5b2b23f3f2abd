/** Time comes in from outside, so that tests and simulations can own it. */
export interface Clock {
  /** Milliseconds of a monotonic clock, with fractions. */
  now(): number;
  /** Runs `task` once after `delayMs`, unless the returned function is called before. Does not keep a process alive. */
  schedule(delayMs: number, task: () => void): () => void;
}

/** Longest delay that a Node timer takes; a longer one would fire at once. */
const LONGEST_DELAY_MS = 2 ** 31 - 1;

/** The monotonic clock and the timers of Node. What everything uses that is not given another. */
export const systemClock: Clock = {
  now: () => performance.now(),
  schedule(delayMs, task) {
    const timer = setTimeout(task, Math.min(delayMs, LONGEST_DELAY_MS));
    timer.unref();
    return () => clearTimeout(timer);
  },
};
