#!/usr/bin/env node
// Runs the fuzzers of test/fuzz: `fuzz.mjs [target...] [--seconds N] [--minimise]`. Each target is fuzzed for N seconds
// (60 unless told), from the inputs in test/fuzz/corpus and those that earlier runs found; 0 only replays them. An input
// that breaks a promise ends the run with exit code 1 and is named. With --short, earlier runs do not count, and nothing
// is kept for later ones. With --minimise, what was found is boiled down into test/fuzz/corpus instead.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, setPriority } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const TARGETS = ['ring', 'ring_race', 'stream'];
/** Longer inputs find nothing that shorter ones do not, and take longer. */
const MAX_INPUT_BYTES = 1024;
/** What is kept of one target in the repository. */
const KEPT_FILES = 32;
const KEPT_INPUT_BYTES = 512;

/** The name that libFuzzer gives an input. */
const FOUND = /^[0-9a-f]{40}$/;

const root = fileURLToPath(new URL('..', import.meta.url));
const build = `${root}build/fuzz`;

function run(command, parameters, options = {}) {
  return spawnSync(command, parameters, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28, ...options });
}

function fail(message) {
  console.error(`kvss: ${message}`);
  process.exit(1);
}

/** Why there are no fuzzers on this machine, if there are none. */
function missing(compiler) {
  if (run(compiler, ['--version']).status !== 0) return `${compiler} was not found`;
  const probe = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }';
  const linked = run(compiler, ['-x', 'c++', '-', '-fsanitize=fuzzer,address', '-o', '/dev/null'], { input: probe });
  return linked.status === 0 ? undefined : `${compiler} has no libFuzzer (on Debian: libclang-rt-dev)`;
}

function compile(compiler) {
  const steps = [
    ['-S', `${root}native`, '-B', build, '-DKVSS_FUZZ=ON', `-DCMAKE_CXX_COMPILER=${compiler}`],
    ['--build', build, '--parallel', String(Math.max(1, availableParallelism()))],
  ];
  for (const step of steps) {
    const { status, stdout, stderr } = run('cmake', step);
    if (status === 0) continue;
    console.error(stdout, stderr);
    fail('the fuzzers could not be built');
  }
}

const folders = (target) => ({
  kept: `${root}test/fuzz/corpus/${target}`,
  regressions: `${root}test/fuzz/regressions/${target}`,
  found: `${build}/${values.short ? 'scratch' : 'corpus'}/${target}`,
  crashes: `${build}/crashes/${target}-`,
});

function inputs(target) {
  const { kept, regressions, found } = folders(target);
  if (values.short) rmSync(found, { recursive: true, force: true });
  mkdirSync(found, { recursive: true });
  mkdirSync(`${build}/crashes`, { recursive: true });
  // The first one is where libFuzzer puts what it finds.
  return [found, kept, regressions].filter((folder) => existsSync(folder));
}

/** Fuzzes, and answers whether every promise was kept. */
function fuzz(target, seconds) {
  const { stderr, status } = run(`${build}/fuzz_${target}`, [
    seconds > 0 ? `-max_total_time=${seconds}` : '-runs=0',
    `-max_len=${MAX_INPUT_BYTES}`,
    '-timeout=30',
    '-rss_limit_mb=2048',
    `-artifact_prefix=${folders(target).crashes}`,
    ...inputs(target),
  ]);
  const [, runs, coverage] = /#(\d+)\s+DONE\s+cov: (\d+)/.exec(stderr) ?? [];
  if (status === 0 && runs !== undefined) {
    console.log(`${target}: ${runs} inputs, ${coverage} edges covered, every promise kept`);
    return true;
  }
  const crash = /Test unit written to (\S+)/.exec(stderr)?.[1];
  console.error(stderr.split('\n').slice(-60).join('\n'));
  console.error(`${target}: FAILED, ${crash ? `the input is ${crash}` : 'and left no input'}`);
  return false;
}

/** Boils all inputs down to a few small ones that reach as much. */
function minimise(target) {
  const { kept } = folders(target);
  const best = `${build}/minimised/${target}`;
  rmSync(best, { recursive: true, force: true });
  mkdirSync(best, { recursive: true });
  const merged = run(`${build}/fuzz_${target}`, [
    '-set_cover_merge=1',
    `-max_len=${KEPT_INPUT_BYTES}`,
    best,
    ...inputs(target),
  ]);
  if (merged.status !== 0) fail(`${target} could not be minimised:\n${merged.stderr}`);
  // Where that leaves too many, the longest ones are worth most: they go furthest.
  const files = readdirSync(best)
    .filter((name) => FOUND.test(name))
    .map((name) => ({ name, bytes: statSync(`${best}/${name}`).size }));
  files.sort((left, right) => right.bytes - left.bytes || left.name.localeCompare(right.name));
  mkdirSync(kept, { recursive: true });
  // Those with names were written by hand, and stay.
  for (const name of readdirSync(kept)) if (FOUND.test(name)) rmSync(`${kept}/${name}`);
  for (const { name } of files.slice(0, KEPT_FILES)) writeFileSync(`${kept}/${name}`, readFileSync(`${best}/${name}`));
  console.log(`${target}: ${Math.min(files.length, KEPT_FILES)} inputs kept of ${files.length}`);
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '60' },
    short: { type: 'boolean', default: false },
    minimise: { type: 'boolean', default: false },
  },
});
const seconds = Number(values.seconds);
if (!Number.isInteger(seconds) || seconds < 0) fail('--seconds takes a whole number');
const chosen = positionals.length > 0 ? positionals : TARGETS;
for (const target of chosen) {
  if (!TARGETS.includes(target)) fail(`there is no target ${target}; there are ${TARGETS.join(', ')}`);
}

const compiler = process.env.KVSS_FUZZ_CXX ?? 'clang++';
const reason = missing(compiler);
if (reason !== undefined) {
  console.log(`skipped: ${reason}; the fuzzers need clang with libFuzzer`);
  process.exit(0);
}
setPriority(10);
compile(compiler);
if (values.minimise) for (const target of chosen) minimise(target);
else if (!chosen.map((target) => fuzz(target, seconds)).every(Boolean)) process.exit(1);
