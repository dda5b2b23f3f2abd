import { appendFileSync, readdirSync } from 'node:fs';
import { expect, test } from 'vitest';
import { noTotals, Simulation, type Totals } from './simulation.js';

/** Seeds that have found something once. */
const REGRESSIONS = [13, 24, 174, 229, 998];

const first = Number(process.env.KVSS_SIM_FIRST ?? 1);
const count = Number(process.env.KVSS_SIM_COUNT ?? 500);

async function simulate(seeds: Iterable<number>): Promise<Totals> {
  const totals = noTotals();
  const open = () => readdirSync('/proc/self/fd').length;
  const before = open();
  for (const seed of seeds) {
    await new Simulation(seed, totals).run();
    // For whoever started the script and wants to see it move.
    if (process.env.KVSS_SIM_PROGRESS && totals.seeds % 100 === 0) {
      appendFileSync(process.env.KVSS_SIM_PROGRESS, `${totals.seeds}\n`);
    }
  }
  // Descriptors of what has been closed are closed; a few of the runner come and go.
  expect(open()).toBeLessThan(before + 20);
  return totals;
}

const range = function* (from: number, length: number) {
  for (let seed = from; seed < from + length; seed += 1) yield seed;
};

const HOUR_MS = 3_600_000;

test(`nothing breaks a promise in ${count} worlds from seed ${first}`, { timeout: 6 * HOUR_MS }, async () => {
  const totals = await simulate(range(first, count));
  if (process.env.KVSS_SIM_REPORT) appendFileSync(process.env.KVSS_SIM_REPORT, `${JSON.stringify(totals)}\n`);
  expect(totals.seeds).toBe(count);
  if (count < 100) return;
  // A world in which nothing happens keeps every promise.
  expect(totals.columnsVerified).toBeGreaterThan(5 * count);
  expect(totals.gatedCommands).toBeGreaterThan(10 * count);
  for (const fault of ['reset', 'blackHole', 'killDaemon', 'freeze', 'killDriver', 'jump', 'skew', 'flip']) {
    expect(totals.faults[fault] ?? 0, fault).toBeGreaterThan(0);
  }
});

test('seeds that have found something find it no more', { timeout: HOUR_MS }, async () => {
  expect((await simulate(REGRESSIONS)).seeds).toBe(REGRESSIONS.length);
});

test('a seed does the same every time', async () => {
  const runs: Totals[] = [];
  for (let run = 0; run < 2; run += 1) runs.push(await simulate([7, 8, 9, 10, 11, 12]));
  expect(runs[1]).toEqual(runs[0]);
});
