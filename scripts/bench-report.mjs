#!/usr/bin/env node
// Renews the measured parts of docs/PERFORMANCE.md and its pictures: `bench-report.mjs [--from FILE]`. FILE is what
// `npm run -s bench -- --json` printed; without it the suite runs, which takes up to ten minutes. With `--ttft FILE` only the
// time to the first token: what `npm run -s bench:ttft -- --json` printed.

import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { drawTransfers, fillIn, markdownTable, parseSuiteOutput, reportParts } from '../dist/bench/report.js';
import { drawTtft, ttftTable } from '../dist/bench/ttft_report.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const { values } = parseArgs({ options: { from: { type: 'string' }, ttft: { type: 'string' } } });

function runSuite() {
  const { status, stdout } = spawnSync(process.execPath, [`${root}dist/cli/main.js`, 'bench', 'all', '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'],
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  });
  if (status !== 0) process.exit(status ?? 1);
  return stdout;
}

const page = `${root}docs/PERFORMANCE.md`;
const renew = (parts) => writeFileSync(page, fillIn(readFileSync(page, 'utf8'), parts));

if (values.ttft !== undefined) {
  const lines = readFileSync(values.ttft, 'utf8').split('\n');
  const rows = lines.filter((line) => line.trim() !== '').map((line) => JSON.parse(line));
  const [titles, ...cells] = ttftTable(rows);
  renew({ ttft: `${rows[0].setting}; medians of ${rows[0].rounds} prompts:\n\n${markdownTable(titles, cells)}` });
  writeFileSync(`${root}docs/images/ttft.svg`, drawTtft(rows));
} else {
  const output = parseSuiteOutput(values.from === undefined ? runSuite() : readFileSync(values.from, 'utf8'));
  renew(reportParts(output));
  writeFileSync(`${root}docs/images/transfers.svg`, drawTransfers(output));
}
console.log(`renewed ${page}`);
