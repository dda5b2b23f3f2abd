// Runs the deterministic simulation: `npm run test:sim -- --seed N` for one world, `--seeds COUNT` for so many from a
// random one on, which is printed. test/sim says what is simulated.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: { seed: { type: 'string' }, seeds: { type: 'string' } },
});

function number(name, text) {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0 && value < 2 ** 32) return value;
  console.error(`--${name}: '${text}' is not a whole number above 0`);
  process.exit(2);
}

const first = values.seed === undefined ? 1 + Math.floor(Math.random() * 2 ** 31) : number('seed', values.seed);
const count = values.seeds === undefined ? (values.seed === undefined ? 500 : 1) : number('seeds', values.seeds);
console.log(`${count} worlds from seed ${first}`);

const directory = mkdtempSync(join(tmpdir(), 'kvss-sim-'));
const report = join(directory, 'report');
const { status } = spawnSync(
  'npx',
  ['vitest', 'run', 'test/sim/sim.test.ts', '--testNamePattern', 'nothing breaks a promise'],
  {
    stdio: 'inherit',
    env: { ...process.env, KVSS_SIM_FIRST: String(first), KVSS_SIM_COUNT: String(count), KVSS_SIM_REPORT: report },
  },
);
if (status === 0) {
  const totals = JSON.parse(readFileSync(report, 'utf8'));
  for (const [key, value] of Object.entries(totals)) {
    console.log(`${key.padEnd(18)} ${typeof value === 'object' ? JSON.stringify(value) : value.toLocaleString('en')}`);
  }
} else {
  console.error(`a world broke a promise; 'npm run test:sim -- --seed N' with its seed shows it again`);
}
rmSync(directory, { recursive: true });
process.exit(status ?? 1);
