import { appendFileSync, readdirSync } from 'node:fs';
import { expect, test, vi } from 'vitest';
import { noTotals, type Shape, Simulation, type Totals } from './simulation.js';

// Seeds of hashes are the only chance in the driver that a world could notice.
vi.mock('node:crypto', async (importOriginal) => {
  const { hashSeeds } = await import('./chance.js');
  const randomInt = (end: number) => hashSeeds.random.below(end);
  return { ...(await importOriginal<typeof import('node:crypto')>()), randomInt };
});

/** Seeds that have found something once. */
const REGRESSIONS = [13, 24, 174, 229, 998];

const first = Number(process.env.KVSS_SIM_FIRST ?? 1);
const count = Number(process.env.KVSS_SIM_COUNT ?? 500);

async function simulate(seeds: Iterable<number>, shape: Partial<Shape> = {}): Promise<Totals> {
  const totals = noTotals();
  const open = () => readdirSync('/proc/self/fd').length;
  const before = open();
  for (const seed of seeds) {
    await new Simulation(seed, totals, shape).run();
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
  expect(totals.columnsVerified).toBeGreaterThan(3 * count);
  expect(totals.groupParts).toBeGreaterThan(count);
  expect(totals.gatedCommands).toBeGreaterThan(10 * count);
  expect(totals.collisions).toBeGreaterThan(0);
  expect(totals.columnsVoid).toBeGreaterThan(0);
  expect(totals.earlyReleases).toBeGreaterThan(0);
  for (const fault of ['reset', 'blackHole', 'killDaemon', 'freeze', 'killDriver', 'jump', 'skew', 'flip']) {
    expect(totals.faults[fault] ?? 0, fault).toBeGreaterThan(0);
  }
});

test('seeds that have found something find it no more', { timeout: HOUR_MS }, async () => {
  // Runtimes were not patient then, and models had one group.
  expect((await simulate(REGRESSIONS, { patient: false, groups: [] })).seeds).toBe(REGRESSIONS.length);
});

test('a seed does the same every time', async () => {
  const runs: Totals[] = [];
  for (let run = 0; run < 2; run += 1) runs.push(await simulate([7, 8, 9, 10, 11, 12]));
  expect(runs[1]).toEqual(runs[0]);
});
