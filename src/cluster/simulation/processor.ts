import { type FlowClass, maxMinRates } from './max_min.js';

/** Threads of a node that are alike. */
export interface Threads {
  readonly count: number;
  /** Share of a core that each would use: 1 for what computes or spins all the time. */
  readonly demand: number;
}

/** How a kernel divides a core. The defaults of Linux on a machine with eight cores or more: 24 ms and 3 ms. */
export interface SchedulerSettings {
  /** So soon has every runnable thread of a core had its turn, while there are few. */
  readonly latencyMs: number;
  /** A turn is never shorter. */
  readonly minTurnMs: number;
  /** From the moment something arrives for a thread that sleeps until it runs. */
  readonly wakeUpMs: number;
}

/**
 * The share of a core, above 0 and at most 1, that a thread gets which never sleeps: max-min fair over all cores of a node,
 * so that threads which want less have what they want. `threads` includes that thread.
 */
export function shareOfSpinner(cores: number, threads: readonly Threads[]): number {
  const wanted = threads.reduce((sum, { count, demand }) => sum + count * demand, 0);
  if (wanted <= cores) return 1;
  const running = threads.filter(({ count }) => count > 0);
  const classes = running.map(({ count, demand }): FlowClass => ({ links: [0], count, cap: demand }));
  return Math.max(...maxMinRates([cores], classes));
}

/**
 * Mean milliseconds of a step for which all of `lanes` threads have to be on a core once, after `busyMs` on the wafer and on
 * the host. The threads spin: they use up their turns whether or not there is work, so each is off its core when its turn is
 * over, and has share `share` of it.
 *
 * With n = 1 / share runnable threads a core, every thread is on for a turn of `latencyMs / n`, and no shorter than `minTurnMs`,
 * and off for n - 1 turns; where n is no whole number, some cores have one thread more than others. Two bounds, of which the
 * lower is taken:
 * - while all lanes are on, steps take `busyMs`, and all are on for a part `share^lanes` of the time;
 * - a step never takes longer than for the last lane to come on again: the mean of the longest of `lanes` waits, each 0 with
 *   probability `share` and else anywhere in the time that a thread is off.
 * A test compares it with threads that take turns, one by one.
 */
export function spinningStepMs(busyMs: number, lanes: number, share: number, scheduler: SchedulerSettings): number {
  if (share >= 1 || lanes === 0) return busyMs;
  return Math.min(busyMs / share ** lanes, busyMs + meanLongestWaitMs(lanes, share, scheduler));
}

/**
 * Mean milliseconds of a step whose threads sleep until something arrives. They use little of a core, so the kernel lets them go
 * first when they wake up; what they wait for is the wake-up itself.
 */
export function sleepingStepMs(busyMs: number, lanes: number, scheduler: SchedulerSettings): number {
  return lanes === 0 ? busyMs : busyMs + scheduler.wakeUpMs;
}

/** Mean of the longest wait of `lanes` threads for their next turn, from any moment on. */
function meanLongestWaitMs(lanes: number, share: number, scheduler: SchedulerSettings): number {
  const cores = coresOf(1 / share, scheduler);
  // The distribution of one wait is made of straight pieces, and so the integral of 1 - F^lanes has a closed form.
  const ends = [0, ...cores.map(({ offMs }) => offMs)].sort((a, b) => a - b);
  const waitsNoLonger = (ms: number) =>
    cores.reduce(
      (sum, { part, offMs, on }) => sum + part * (offMs === 0 ? 1 : on + (1 - on) * Math.min(1, ms / offMs)),
      0,
    );
  let mean = 0;
  for (let piece = 1; piece < ends.length; piece += 1) {
    const [from, to] = [ends[piece - 1] as number, ends[piece] as number];
    if (to === from) continue;
    const [low, high] = [waitsNoLonger(from), waitsNoLonger(to)];
    const meanPower =
      high === low ? low ** lanes : (high ** (lanes + 1) - low ** (lanes + 1)) / ((lanes + 1) * (high - low));
    mean += (to - from) * (1 - meanPower);
  }
  return mean;
}

/** The kinds of core there are with so many runnable threads a core, which part of the threads is there, and their turns. */
export function coresOf(threadsPerCore: number, { latencyMs, minTurnMs }: SchedulerSettings) {
  const fewer = Math.floor(threadsPerCore);
  const more = threadsPerCore - fewer;
  return [
    { threads: fewer, part: ((1 - more) * fewer) / threadsPerCore },
    { threads: fewer + 1, part: (more * (fewer + 1)) / threadsPerCore },
  ].map(({ threads, part }) => {
    const roundMs = Math.max(latencyMs, threads * minTurnMs);
    return { threads, part, on: 1 / threads, onMs: roundMs / threads, offMs: roundMs * (1 - 1 / threads) };
  });
}
