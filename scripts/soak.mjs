#!/usr/bin/env node
// Live traffic for a long time: `soak.mjs [--hours H] [--seed S] [--svg FILE]`. The traffic of scripts/chaos.mjs, of which
// only a driver dies now and then: daemons and wafer are to live on. Charts their memory, descriptors and sessions into
// FILE (build/soak.svg) and ends with exit code 1 where one of them rises, or as scripts/chaos.mjs does.
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Cast, census, memoryOf, metricsOf, nowMs, pause } from './traffic.mjs';

const { values } = parseArgs({
  options: {
    hours: { type: 'string', default: '1' },
    seed: { type: 'string', default: '1' },
    svg: { type: 'string', default: fileURLToPath(new URL('../build/soak.svg', import.meta.url)) },
  },
});
const [hours, seed] = [Number(values.hours), Number(values.seed)];
if (!(hours > 0) || !(seed >= 0)) {
  console.error('kvss: --hours and --seed take numbers');
  process.exit(2);
}

const { seededRandom } = await import('../dist/common/random.js');
const { lineChart, niceMax, svgPicture } = await import('../dist/common/plot.js');

const ALLOWANCE_MS = 3_000;
const SAMPLES = 400;
/** Below this many there is nothing to be said of a trend. */
const FEWEST_SAMPLES = 60;
const durationMs = hours * 3_600_000;
const sampleMs = Math.max(1_000, durationMs / SAMPLES);
/** Between two deaths of drivers. */
const PEACE_MS = 12_000;
const MIB = 2 ** 20;

/**
 * What is looked at, of which processes, and by how much its middle may differ between the second quarter of the time and
 * the last one: where a collector of garbage is at work the level is not exact.
 */
const FIGURES = [
  { name: 'anonymous memory', unit: 'MiB', of: ['daemon', 'wafer'], mayRise: (from) => 6 + 0.15 * from },
  { name: 'memory objects', unit: 'MiB', of: ['daemon'], mayRise: () => 1 },
  { name: 'mapped memory objects', unit: 'MiB', of: ['daemon'], mayRise: () => 1 },
  { name: 'descriptors', unit: 'open', of: ['daemon', 'wafer'], mayRise: () => 4 },
  { name: 'sessions', unit: 'connected', of: ['daemon'], mayRise: () => 1 },
];
const COLORS = ['#0969da', '#cf222e', '#1a7f37'];

const random = seededRandom(seed);
const cast = new Cast({ seed });
/** By figure and process: [minutes, value]. */
const series = new Map();
const wrong = [];
let deaths = 0;
process.on('exit', () => cast.dispose());

async function sample(startedMs) {
  for (const member of [...cast.of('daemon'), ...cast.of('wafer')]) {
    const minutes = (nowMs() - startedMs) / 60_000;
    const memory = memoryOf(member.pid);
    const figures = member.kind === 'daemon' ? await metricsOf(member) : undefined;
    const seen = {
      'anonymous memory': memory.anonymous / MIB,
      'mapped memory objects': memory.mapped / MIB,
      'memory objects': memory.objects / MIB,
      descriptors: Object.values(census(member.pid)).reduce((sum, count) => sum + count, 0),
      sessions: figures?.kvss_sessions,
    };
    for (const { name, of } of FIGURES) {
      if (!of.includes(member.kind)) continue;
      const key = `${name}/${member.name}`;
      if (!series.has(key)) series.set(key, []);
      series.get(key).push([minutes, seen[name]]);
    }
  }
}

function middle(points) {
  const sorted = points.map(([, value]) => value).sort((left, right) => left - right);
  return sorted[Math.floor(sorted.length / 2)];
}

/** Where a figure ends above where it was when everything had warmed up. */
function rising() {
  return [...series].flatMap(([key, points]) => {
    if (points.length < FEWEST_SAMPLES) return [];
    const [name, who] = key.split('/');
    const quarter = Math.floor(points.length / 4);
    const [from, to] = [middle(points.slice(quarter, 2 * quarter)), middle(points.slice(-quarter))];
    const allowed = FIGURES.find((figure) => figure.name === name).mayRise(from);
    return to - from > allowed ? [`${name} of ${who} rose from ${from.toFixed(1)} to ${to.toFixed(1)}`] : [];
  });
}

function picture(lines) {
  const [width, height] = [620, 300];
  const last = Math.max(...[...series.values()].map((points) => points.at(-1)[0]));
  const charts = FIGURES.map(({ name, unit }, index) => {
    const mine = [...series].filter(([key]) => key.startsWith(`${name}/`));
    const most = Math.max(...mine.flatMap(([, points]) => points.map(([, value]) => value)));
    const frame = { x: (index % 2) * width, y: 64 + Math.floor(index / 2) * height, width, height };
    const curves = mine.map(([key, points], which) => ({ name: key.split('/')[1], color: COLORS[which], points }));
    return lineChart(frame, name, { label: 'minutes', max: last }, { label: unit, max: niceMax(most) }, curves, []);
  });
  const subtitle = `${last.toFixed(1)} minutes, ${deaths} drivers killed, ${lines.toLocaleString('en-US')} lines verified`;
  const summary = 'Memory, open descriptors and sessions of two daemons and a wafer under live traffic, over time.';
  return svgPicture(
    2 * width,
    64 + Math.ceil(FIGURES.length / 2) * height,
    'KVSS under live traffic',
    subtitle,
    summary,
    charts,
  );
}

try {
  await cast.start();
  cast.work();
  const startedMs = nowMs();
  let nextDeathMs = startedMs + PEACE_MS;
  while (nowMs() - startedMs < durationMs) {
    await sample(startedMs);
    if (nowMs() > nextDeathMs) {
      const drivers = cast.of('driver');
      const victim = drivers[Math.floor(random() * drivers.length)];
      await victim.kill();
      await cast.startMember(victim);
      victim.tell('work');
      deaths += 1;
      nextDeathMs = nowMs() + PEACE_MS;
    }
    await pause(sampleMs);
  }
  wrong.push(...(await cast.rest()));
  const { lines, foreign, calls } = cast.totals;
  wrong.push(...(await cast.end()));
  const past = cast.late.filter(({ deadlineMs, tookMs }) => tookMs > deadlineMs + ALLOWANCE_MS);
  mkdirSync(dirname(values.svg), { recursive: true });
  writeFileSync(values.svg, picture(lines));
  const rises = rising();
  const short = [...series.values()].some((points) => points.length < FEWEST_SAMPLES);
  console.log(`calls           ${calls.toLocaleString('en-US')}, ${past.length} too late`);
  console.log(`lines verified  ${lines.toLocaleString('en-US')}, ${foreign} foreign`);
  console.log(`drivers killed  ${deaths}`);
  console.log(`left behind     ${wrong.length === 0 ? 'nothing' : wrong.join('\n                ')}`);
  console.log(
    `rising          ${short ? 'too short to tell' : rises.length === 0 ? 'nothing' : rises.join('\n                ')}`,
  );
  console.log(`picture         ${values.svg}`);
  if (foreign > 0 || past.length > 0 || wrong.length > 0 || rises.length > 0 || lines === 0) process.exitCode = 1;
} catch (thrown) {
  console.error(thrown);
  process.exitCode = 1;
}
cast.dispose();
