#!/usr/bin/env node
// Random death with live traffic: `chaos.mjs [--rounds N] [--seed S] [--minutes M] [--canary]`. In each round a daemon, a
// driver or the wafer is killed and started again, or stands still for a while, under requests of four drivers over shared
// memory and TCP that verify every line. The seed says what happens to whom, and when. Ends with exit code 1 where a line
// was not what belongs there, a call took longer than it may, or anything was left behind. With --minutes it goes on with
// further rounds for that long; with --canary a driver damages what it stores, which must be found out.
import { parseArgs } from 'node:util';
import { Cast, nowMs, pause } from './traffic.mjs';

/** Of one call, over its deadline, on a busy machine. */
const ALLOWANCE_MS = 3_000;
/** Rounds between two looks at what everybody holds. */
const ROUNDS_PER_LOOK = 20;

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '200' },
    seed: { type: 'string', default: '1' },
    minutes: { type: 'string', default: '0' },
    canary: { type: 'boolean', default: false },
    verbose: { type: 'boolean', default: false },
  },
});
const [rounds, seed, minutes] = [values.rounds, values.seed, values.minutes].map(Number);
if (![rounds, seed, minutes].every((number) => number >= 0)) {
  console.error('kvss: --rounds, --seed and --minutes take numbers');
  process.exit(2);
}

const { seededRandom } = await import('../dist/common/random.js');
const random = seededRandom(seed);
const between = (from, to) => from + Math.floor(random() * (to - from));
const oneOf = (list) => list[between(0, list.length)];

/** What happens next; depends on the seed and on how many rounds there were, and on nothing else. */
function nextRound(members) {
  const victim = oneOf(members);
  const standstill = random() < 0.3;
  return {
    victim,
    fate: standstill ? 'stands still' : 'is killed',
    afterMs: between(50, 600),
    // Some are over before a deadline has passed, some take longer than two.
    forMs: standstill ? oneOf([100, 700, 1_600]) : between(0, 300),
  };
}

const cast = new Cast({ seed, canary: values.canary });
const wrong = [];
const victims = {};
let done = 0;
const startedMs = nowMs();
process.on('exit', () => cast.dispose());

async function look() {
  const found = await cast.rest();
  wrong.push(...found.map((what) => `after round ${done}: ${what}`));
}

function say() {
  const { lines = 0, foreign = 0 } = cast.totals;
  const seconds = Math.round((nowMs() - startedMs) / 1000);
  console.error(`${done} rounds, ${lines.toLocaleString('en-US')} lines verified, ${foreign} foreign, ${seconds} s`);
}

try {
  await cast.start();
  cast.work();
  while (done < rounds || nowMs() - startedMs < minutes * 60_000) {
    const { victim, fate, afterMs, forMs } = nextRound(cast.members);
    await pause(afterMs);
    if (values.verbose) console.error(`round ${done + 1}: ${victim.name} ${fate}, ${forMs} ms`);
    if (fate === 'is killed') {
      await victim.kill();
      await pause(forMs);
      await cast.startMember(victim);
      if (victim.kind === 'driver') victim.tell('work');
    } else {
      await victim.standStill(forMs);
    }
    done += 1;
    const key = `${victim.name} ${fate}`;
    victims[key] = (victims[key] ?? 0) + 1;
    if (done % ROUNDS_PER_LOOK === 0) {
      await look();
      say();
      cast.work();
    }
  }
  // For those that were hit last.
  await pause(1_000);
  await look();
  const totals = cast.totals;
  wrong.push(...(await cast.end()));

  const past = cast.late.filter(({ deadlineMs, tookMs }) => tookMs > deadlineMs + ALLOWANCE_MS);
  const overMs = cast.late.reduce((most, { deadlineMs, tookMs }) => Math.max(most, tookMs - deadlineMs), 0);
  const longest = cast.late.reduce((most, call) => (call.tookMs > (most?.tookMs ?? 0) ? call : most), undefined);
  console.log(`rounds            ${done}, seed ${seed}, ${Math.round((nowMs() - startedMs) / 1000)} s`);
  for (const [key, count] of Object.entries(victims).sort()) console.log(`  ${key.padEnd(32)} ${count}`);
  console.log(`calls             ${totals.calls.toLocaleString('en-US')}`);
  console.log(`columns refilled  ${totals.columns.toLocaleString('en-US')}, ${totals.misses} of hits were lost`);
  console.log(`lines verified    ${totals.lines.toLocaleString('en-US')}`);
  console.log(`foreign lines     ${totals.foreign}`);
  console.log(`calls too late    ${past.length}: over their deadline by more than ${ALLOWANCE_MS} ms`);
  if (longest) {
    console.log(`longest call      ${Math.round(longest.tookMs)} ms, a ${longest.what} of a ${longest.who}`);
    console.log(`most over time    ${Math.round(overMs)} ms`);
  }
  console.log(`left behind       ${wrong.length === 0 ? 'nothing' : wrong.join('\n                  ')}`);
  if (totals.foreign > 0 || past.length > 0 || wrong.length > 0 || totals.lines === 0) process.exitCode = 1;
} catch (thrown) {
  console.error(thrown);
  process.exitCode = 1;
}
cast.dispose();
