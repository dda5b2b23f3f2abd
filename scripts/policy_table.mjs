// What eviction policies come to: replays traces with `kvss replay --policy-only` at capacities, prints a table in
// Markdown and draws a picture.
//   node scripts/policy_table.mjs OUT.svg NAME:FIRST:LAST:BLOCK_COLUMNS:CAPACITIES:TRACE[,TRACE...] ...
// FIRST and LAST cut the requests of each trace, as shares of all of them; capacities are blocks, or shares of the
// working set where they end in %. Needs `npm run build:ts`.
import { writeFileSync } from 'node:fs';
import { lineChart, niceMax, svgPicture } from '../dist/common/plot.js';
import { OPTIMUM, replayPolicy } from '../dist/replay/policy_replay.js';
import { readTrace, workingSetColumns } from '../dist/replay/trace.js';
import { hitDensity, lru } from '../dist/swdriver/eviction_policy.js';

const COLUMN_TOKENS = 64;
const POLICIES = [
  { policy: lru, name: 'LRU', color: '#c2410c' },
  { policy: hitDensity, name: 'hit density', color: '#1d4ed8' },
  { policy: OPTIMUM, name: 'optimum, offline', color: '#57606a' },
];

const [out, ...workloads] = process.argv.slice(2);
const charts = [];
const summary = [];
for (const workload of workloads) {
  const [name, first, last, blockColumns, capacities, paths] = workload.split(':');
  const traces = paths.split(',').map((path, scope) => {
    const trace = readTrace(path, scope);
    const { length } = trace.requests;
    return { ...trace, requests: trace.requests.slice(Math.floor(length * first), Math.floor(length * last)) };
  });
  const workingSet = workingSetColumns(traces, COLUMN_TOKENS);
  console.log(`\n${name}\n\n| capacity | LRU | hit density | optimum | of the gap |\n|---|---|---|---|---|`);
  const points = POLICIES.map(() => []);
  for (const capacity of capacities.split(',')) {
    const columns = capacity.endsWith('%')
      ? Math.round((workingSet * Number.parseFloat(capacity)) / 100)
      : Number(capacity) * Number(blockColumns);
    const rates = [];
    for (const [index, { policy }] of POLICIES.entries()) {
      const { tokenHitRate } = await replayPolicy(traces, policy, columns);
      rates.push(tokenHitRate);
      points[index].push([columns / Number(blockColumns) / 1000, 100 * tokenHitRate]);
    }
    const [least, reached, most] = rates;
    const gap = most - least > 0.0005 ? `${Math.round((100 * (reached - least)) / (most - least))} %` : '-';
    console.log(`| ${capacity} | ${rates.map((rate) => rate.toFixed(4)).join(' | ')} | ${gap} |`);
  }
  const top = Math.max(...points.flat().map(([, rate]) => rate));
  const right = Math.max(...points.flat().map(([columns]) => columns));
  charts.push(
    lineChart(
      { x: 8 + charts.length * 560, y: 60, width: 552, height: 380 },
      name,
      { label: `thousand blocks of ${Number(blockColumns) * COLUMN_TOKENS} tokens`, max: right },
      { label: 'tokens of prompts that hit, %', max: niceMax(top) },
      POLICIES.map(({ name: policy, color }, index) => ({ name: policy, color, points: points[index] })),
      [],
    ),
  );
  summary.push(
    `${name}: ${POLICIES.map(({ name: policy }, index) => `${policy} ${points[index].map(([, rate]) => rate.toFixed(1)).join(', ')}`).join('; ')}`,
  );
}
writeFileSync(
  out,
  svgPicture(
    16 + charts.length * 560,
    450,
    'Hits by capacity',
    'kvss replay --policy-only',
    summary.join('. '),
    charts,
  ),
);
