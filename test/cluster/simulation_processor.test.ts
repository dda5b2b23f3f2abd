import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CALIBRATION } from '../../src/cluster/simulation/calibration.js';
import { coresOf, shareOfSpinner, sleepingStepMs, spinningStepMs } from '../../src/cluster/simulation/processor.js';
import { seededRandom } from '../../src/common/random.js';
import { settings } from '../model/property_settings.js';

const { scheduler } = CALIBRATION;

describe('cores that threads share', () => {
  test('a thread that never sleeps has what leaves no core idle, and never more than a core', () => {
    const threads = fc.array(
      fc.record({ count: fc.integer({ min: 0, max: 20 }), demand: fc.double({ min: 0.01, max: 1, noNaN: true }) }),
      { maxLength: 6 },
    );
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 32 }),
        fc.integer({ min: 1, max: 40 }),
        threads,
        (cores, spinners, others) => {
          const all = [{ count: spinners, demand: 1 }, ...others];
          const share = shareOfSpinner(cores, all);
          const wanted = all.reduce((sum, { count, demand }) => sum + count * demand, 0);
          const used = all.reduce((sum, { count, demand }) => sum + count * Math.min(demand, share), 0);
          expect(share).toBeLessThanOrEqual(1);
          expect(used).toBeCloseTo(Math.min(cores, wanted), 9);
        },
      ),
      settings(300),
    );
  });

  test('threads that spin burn whole cores whether or not they work', () => {
    expect(shareOfSpinner(8, [{ count: 8, demand: 1 }])).toBe(1);
    expect(shareOfSpinner(8, [{ count: 16, demand: 1 }])).toBe(0.5);
    // Half-idle threads keep what they want while there is more for each than that.
    expect(
      shareOfSpinner(8, [
        { count: 10, demand: 1 },
        { count: 8, demand: 0.25 },
      ]),
    ).toBeCloseTo(0.6, 12);
  });
});

describe('a step that needs several threads on a core', () => {
  test('takes what it takes alone where every thread has a core', () => {
    expect(spinningStepMs(1.5, 4, 1, scheduler)).toBe(1.5);
    expect(sleepingStepMs(1.5, 4, scheduler)).toBe(1.5 + scheduler.wakeUpMs);
  });

  test('takes longer with less of a core, and with more threads to wait for', () => {
    const share = fc.double({ min: 0.02, max: 1, noNaN: true });
    const lanes = fc.integer({ min: 1, max: 16 });
    fc.assert(
      fc.property(share, share, lanes, fc.double({ min: 0.1, max: 50, noNaN: true }), (one, other, count, busyMs) => {
        const [less, more] = one < other ? [one, other] : [other, one];
        const step = spinningStepMs(busyMs, count, more, scheduler);
        expect(step).toBeGreaterThanOrEqual(busyMs);
        expect(spinningStepMs(busyMs, count, less, scheduler)).toBeGreaterThanOrEqual(step * (1 - 1e-9));
        expect(spinningStepMs(busyMs, count + 1, more, scheduler)).toBeGreaterThanOrEqual(step * (1 - 1e-9));
      }),
      settings(300),
    );
  });

  test.each([
    [1, 1],
    [4, 1],
    [4, 3],
    [8, 1],
  ])('with %i threads and %f ms of work is what threads come to that take turns one by one', (lanes, busyMs) => {
    for (const perCore of [1.05, 1.2, 1.5, 2.5, 4, 7.5, 11, 20]) {
      const ratio = spinningStepMs(busyMs, lanes, 1 / perCore, scheduler) / stepInTurnsMs(busyMs, lanes, perCore);
      expect(ratio, `${perCore} threads a core`).toBeGreaterThan(0.7);
      expect(ratio, `${perCore} threads a core`).toBeLessThan(1.35);
    }
  });
});

/** Mean step, from the turns of each thread: it runs, waits until all others of its core have run, and may change cores then. */
function stepInTurnsMs(busyMs: number, lanes: number, threadsPerCore: number): number {
  const random = seededRandom(7);
  const [few, many] = coresOf(threadsPerCore, scheduler);
  const newRound = (beginMs: number) => {
    const core = random() < (many?.part ?? 0) ? many : few;
    // Turns are not exactly alike: without that, threads would stay in step for ever.
    const stretch = 0.75 + random() / 2;
    const onMs = (core?.onMs ?? 0) * stretch;
    return { beginMs, onMs, endMs: beginMs + onMs + (core?.offMs ?? 0) * stretch };
  };
  const rounds = Array.from({ length: lanes }, () => newRound(-20 * random()));
  const steps = 20_000;
  let now = 0;
  for (let step = 0; step < steps; step += 1) {
    const ready = now + busyMs;
    now = ready;
    for (const [lane, round] of rounds.entries()) {
      let current = round;
      while (current.endMs <= ready) current = newRound(current.endMs);
      rounds[lane] = current;
      if (ready - current.beginMs >= current.onMs) now = Math.max(now, current.endMs);
    }
  }
  return now / steps;
}
