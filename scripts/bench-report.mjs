#!/usr/bin/env node
// Renews the measured parts of docs/PERFORMANCE.md and its pictures: `bench-report.mjs [--from FILE]`. FILE is what
// `npm run -s bench -- --json` printed; without it the suite runs, which takes up to ten minutes.

import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { drawTransfers, fillIn, parseSuiteOutput, reportParts } from '../dist/bench/report.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const { values } = parseArgs({ options: { from: { type: 'string' } } });

function runSuite() {
  const { status, stdout } = spawnSync(process.execPath, [`${root}dist/cli/main.js`, 'bench', 'all', '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'],
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  });
  if (status !== 0) process.exit(status ?? 1);
  return stdout;
}

const output = parseSuiteOutput(values.from === undefined ? runSuite() : readFileSync(values.from, 'utf8'));
const page = `${root}docs/PERFORMANCE.md`;
writeFileSync(page, fillIn(readFileSync(page, 'utf8'), reportParts(output)));
writeFileSync(`${root}docs/images/transfers.svg`, drawTransfers(output));
console.log(`renewed ${page}`);
