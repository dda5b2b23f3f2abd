#!/usr/bin/env node
// Shows that tests can fail: `mutate.mjs [--only NAME|FILE]... [--from NAME] [--with KIND]`. Takes out one safety line of
// test/mutants.mjs after the other, in a copy of the tree, and sees to it that a test notices. All tests that are to notice
// are run once on the whole copy before that, and have to pass. Exit code 1 where a line was not missed. --with sim, native,
// vitest, fuzz or model tries tests of that kind only, and lines that have one.
//
// --list names the lines, --check compares the table with the sources and runs nothing, --write renews docs/MUTANTS.md
// from what was found last about each line, --json prints results for programs.

import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, setPriority, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { mutants } from '../test/mutants.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
/** What was found about each line, with a fingerprint of its entry in the table. */
const FOUND = `${root}build/mutants.json`;
const PAGE = `${root}docs/MUTANTS.md`;
const BUILD_LIMIT_S = 900;
const TARGETS = { asan: 'native_tests_asan', tsan: 'native_tests_tsan' };
const MODEL_LIMIT_S = 600;
/** Where standing still is how the missing line is noticed. */
const HANGS_LIMIT_S = 60;

const { values } = parseArgs({
  options: {
    only: { type: 'string', multiple: true, default: [] },
    from: { type: 'string' },
    with: { type: 'string' },
    list: { type: 'boolean', default: false },
    check: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    write: { type: 'boolean', default: false },
  },
});

function fail(...messages) {
  for (const message of messages) console.error(`kvss: ${message}`);
  process.exit(1);
}

/** For people; with --json they look elsewhere. */
function say(text) {
  if (values.json) console.error(text);
  else console.log(text);
}

// ---- the table -----------------------------------------------------------------------------------------------------

const editsOf = ({ file, find, replace, also = [] }) => [{ file, find, replace }, ...also];

const fingerprint = (mutant) =>
  createHash('sha256')
    .update(JSON.stringify(editsOf(mutant)))
    .digest('hex')
    .slice(0, 16);

function nameOf(killer) {
  switch (killer.kind) {
    case 'native':
      return `native test under ${killer.sanitizer}: ${killer.name}`;
    case 'vitest':
      return killer.name === undefined ? killer.file : `${killer.file}: ${killer.name}`;
    case 'sim':
      return `simulation of ${killer.seeds} seeds`;
    case 'fuzz':
      return `fuzzer ${killer.target} for ${killer.seconds} s`;
    default:
      return `memory model ${killer.model}, its mutant ${killer.mutant}`;
  }
}

function textOf(path) {
  return existsSync(path) ? readFileSync(path, 'utf8') : undefined;
}

/** What is wrong with a killer that can be seen without running it. */
function wrongWith(tree, killer) {
  const within = (path, what) => (textOf(`${tree}${path}`)?.includes(what) ? undefined : `${path} has no '${what}'`);
  switch (killer.kind) {
    case 'native': {
      const folder = `${tree}test/native/`;
      const named = readdirSync(folder).some((file) => readFileSync(folder + file, 'utf8').includes(`"${killer.name}`));
      return named ? undefined : `there is no native test '${killer.name}'`;
    }
    case 'vitest':
      return within(killer.file, killer.part ?? killer.name ?? '');
    case 'sim':
      return killer.seeds > 0 && killer.seeds <= 500 ? undefined : 'a simulation takes 1 to 500 seeds';
    case 'fuzz':
      return within('scripts/fuzz.mjs', `'${killer.target}'`);
    case 'model':
      return within(`test/memory-model/${killer.model}.pml`, ` * mutant ${killer.mutant}: `);
    default:
      return `there are no killers of kind ${killer.kind}`;
  }
}

/** Where the table does not fit a tree. */
function faultsOf(tree, chosen) {
  const faults = [];
  const names = new Set();
  for (const mutant of chosen) {
    const complain = (what) => faults.push(`${mutant.name}: ${what}`);
    if (names.has(mutant.name)) complain('the name is there twice');
    names.add(mutant.name);
    if (!/^P[1-6]: ./.test(mutant.protects ?? '')) complain('does not say which promise it protects');
    if (!mutant.killers?.length) complain('has no killer');
    for (const { file, find, replace } of editsOf(mutant)) {
      const hits = (textOf(`${tree}${file}`)?.split(find).length ?? 1) - 1;
      if (hits !== 1) complain(`'${find}' is ${hits} times in ${file}, and not once`);
      if (find === replace) complain('changes nothing');
    }
    for (const killer of mutant.killers ?? []) {
      const wrong = wrongWith(tree, killer);
      if (wrong !== undefined) complain(wrong);
    }
  }
  return faults;
}

/** Lines that were asked for. */
function choose() {
  let chosen = mutants;
  if (values.from !== undefined) {
    const start = mutants.findIndex(({ name }) => name === values.from);
    if (start < 0) fail(`there is no line '${values.from}'; --list names them`);
    chosen = chosen.slice(start);
  }
  if (values.with !== undefined) {
    chosen = chosen
      .map((mutant) => ({ ...mutant, killers: mutant.killers.filter(({ kind }) => kind === values.with) }))
      .filter(({ killers }) => killers.length > 0);
  }
  if (values.only.length === 0) return chosen;
  for (const wanted of values.only) {
    if (!mutants.some(({ name, file }) => name === wanted || file === wanted))
      fail(`there is no line '${wanted}'; --list names them`);
  }
  return chosen.filter(({ name, file }) => values.only.includes(name) || values.only.includes(file));
}

// ---- processes -----------------------------------------------------------------------------------------------------

/** The process group at work, if any. */
let running;

function endRunning() {
  if (running === undefined) return;
  try {
    process.kill(-running, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

/** Runs a command in the copy and everything that it starts in a group of its own, so that nothing stays behind. */
function run(command, parameters, { cwd, limitSeconds, env = {} }) {
  return new Promise((resolve) => {
    // A run inside another one of vitest must not take its settings over.
    const inherited = Object.entries(process.env).filter(
      ([name]) => !/^(VITEST|VITE_|NODE_ENV|TEST$|KVSS_)/.test(name),
    );
    const child = spawn(command, parameters, {
      cwd,
      env: { ...Object.fromEntries(inherited), ...env },
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    running = child.pid;
    let output = '';
    let late = false;
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8');
      stream.on('data', (text) => {
        // The end says what was wrong.
        output = (output + text).slice(-1_000_000);
      });
    }
    const timer = setTimeout(() => {
      late = true;
      endRunning();
    }, limitSeconds * 1000);
    child.on('error', (error) => {
      output += error.message;
    });
    // Not 'close': a grandchild that keeps a pipe open is ended below.
    child.on('exit', (status) => {
      clearTimeout(timer);
      endRunning();
      running = undefined;
      setImmediate(() => resolve({ status, late, output }));
    });
  });
}

// ---- the copy ------------------------------------------------------------------------------------------------------

let scratch;

function cleanUp() {
  endRunning();
  if (scratch !== undefined) rmSync(scratch, { recursive: true, force: true });
  scratch = undefined;
}

/** The files that git knows or would take, with their times, so that builds go on from what is built. */
function copyTree() {
  const { status, stdout } = spawnSync('git', ['ls-files', '-co', '--exclude-standard', '-z'], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  if (status !== 0) fail('the tree can only be copied from a checkout of git');
  scratch = mkdtempSync(join(tmpdir(), 'kvss-mutants-'));
  const tree = `${scratch}/tree/`;
  for (const file of stdout.split('\0')) {
    if (!file || !existsSync(`${root}${file}`)) continue;
    mkdirSync(dirname(`${tree}${file}`), { recursive: true });
    cpSync(`${root}${file}`, `${tree}${file}`, { preserveTimestamps: true });
  }
  symlinkSync(`${root}node_modules`, `${tree}node_modules`);
  return tree;
}

/** Copies a folder that is built, and has what CMake has written there name the copy's paths. */
function seedFolder(tree, folder) {
  if (!existsSync(`${root}${folder}`)) return;
  mkdirSync(dirname(`${tree}${folder}`), { recursive: true });
  // cpSync keeps no more than milliseconds, and Make compares all there is.
  spawnSync('cp', ['-a', `${root}${folder}`, `${tree}${folder}`]);
  const entries = readdirSync(`${tree}${folder}`, { recursive: true, withFileTypes: true });
  for (const entry of entries) {
    const path = join(entry.parentPath ?? entry.path, entry.name);
    if (!entry.isFile() || !/(^Makefile2?|\.(make|cmake|txt|internal|d|json))$/.test(entry.name)) continue;
    const text = readFileSync(path, 'utf8');
    if (!text.includes(root)) continue;
    const { atime, mtime } = statSync(path);
    writeFileSync(path, text.replaceAll(root.slice(0, -1), tree.slice(0, -1)));
    utimesSync(path, atime, mtime);
  }
  // Objects of sources outside of a folder of CMake lie below the whole path of the source.
  for (const entry of entries) {
    const path = join(entry.parentPath ?? entry.path, entry.name);
    if (!path.endsWith('.dir') || !existsSync(`${path}${root}`)) continue;
    mkdirSync(dirname(`${path}${tree.slice(0, -1)}`), { recursive: true });
    renameSync(`${path}${root.slice(0, -1)}`, `${path}${tree.slice(0, -1)}`);
  }
}

// ---- building ------------------------------------------------------------------------------------------------------

/** What a killer has to have built: folders of CMake with their targets, and dist. */
function buildsOf(killer) {
  switch (killer.kind) {
    case 'native':
      return [`build-tests:${TARGETS[killer.sanitizer]}`];
    case 'sim':
      return ['build/native:kvss', 'build-tests:kvss_simulation'];
    case 'fuzz':
      return [`build/fuzz:fuzz_${killer.target}`];
    case 'vitest':
      if (killer.file.startsWith('test/core/shard_core')) return ['build-tests:kvss_testing'];
      if (/^test\/(e2e|conformance|fuzz|runtimes)\//.test(killer.file)) return ['build/native:kvss', 'dist'];
      // A driver loads the addon, also where its links are simulated.
      if (/^test\/(model|unit)\//.test(killer.file)) return ['build/native:kvss'];
      return [];
    default:
      return [];
  }
}

class Broken extends Error {}

/** Builds in which a line is missing. */
const spoilt = new Set();

/** Brings up to date what a killer needs, as far as a change of `files` concerns it. */
async function build(tree, killer, files) {
  const native = files === undefined || files.some((file) => !file.endsWith('.ts'));
  const script = files === undefined || files.some((file) => file.endsWith('.ts'));
  for (const what of buildsOf(killer)) {
    const [folder, target] = what.split(':');
    const concerned = what === 'dist' ? script : native;
    if (!concerned && !spoilt.has(what)) continue;
    if (concerned && files !== undefined) spoilt.add(what);
    else spoilt.delete(what);
    const parallel = String(Math.max(1, availableParallelism()));
    const { status, output } =
      what === 'dist'
        ? await run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json'], {
            cwd: tree,
            limitSeconds: BUILD_LIMIT_S,
          })
        : await run('cmake', ['--build', folder, '--target', target, '--parallel', parallel], {
            cwd: tree,
            limitSeconds: BUILD_LIMIT_S,
          });
    // What lacks a check may well lack a type; it runs all the same.
    if (status !== 0 && !(what === 'dist' && files !== undefined && !/error TS1\d{3}:/.test(output))) {
      throw new Broken(`${what} cannot be built:\n${output.slice(-4000)}`);
    }
  }
}

// ---- killers -------------------------------------------------------------------------------------------------------

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

async function vitest(tree, files, names, limitSeconds, env = {}) {
  const report = `${scratch}/report.json`;
  rmSync(report, { force: true });
  const pattern = names.length === 0 ? [] : ['-t', names.map(escaped).join('|')];
  const { status, late, output } = await run(
    process.execPath,
    [
      'node_modules/vitest/vitest.mjs',
      'run',
      ...files,
      ...pattern,
      '--no-cache',
      // A machine with much else to do makes tests slow and not wrong. Who stands still is ended from here.
      `--testTimeout=${limitSeconds * 1000}`,
      '--reporter=json',
      `--outputFile=${report}`,
    ],
    { cwd: tree, limitSeconds, env },
  );
  const results = existsSync(report) ? JSON.parse(readFileSync(report, 'utf8')).testResults : [];
  const tests = results.flatMap(({ name, assertionResults }) =>
    assertionResults.map((test) => ({ ...test, file: name.slice(tree.length) })),
  );
  // Where a file cannot even be read, no test of it has noticed anything.
  const unread = results.find(({ message }) => /SyntaxError|Transform failed|PARSE_ERROR/.test(message ?? ''));
  if (unread) throw new Broken(unread.message);
  return { status, late, output, tests };
}

/** Runs a killer: whether it failed, by what, and whether it ran at all. */
async function attempt(tree, killer) {
  const limitSeconds =
    killer.limitSeconds ?? { native: 60, vitest: 300, sim: 900, fuzz: 300 }[killer.kind] ?? MODEL_LIMIT_S;
  const over = ({ late }) => late && { failed: true, late: true, what: `nothing happened for ${limitSeconds} s` };
  switch (killer.kind) {
    case 'native': {
      const program = `build-tests/${TARGETS[killer.sanitizer]}`;
      const outcome = await run(`${tree}${program}`, [killer.name], { cwd: tree, limitSeconds });
      const line = outcome.output.split('\n').find((each) => each.startsWith('not ok'));
      const ran = !outcome.output.includes('# skipped: ') && !outcome.output.includes('no test has this name');
      return over(outcome) || { failed: outcome.status !== 0, ran, what: line ?? 'the program was stopped' };
    }
    case 'vitest': {
      const outcome = await vitest(tree, [killer.file], killer.name === undefined ? [] : [killer.name], limitSeconds);
      const failed = outcome.tests.find(({ status }) => status === 'failed');
      const ran = outcome.tests.some(({ status }) => status === 'passed');
      return over(outcome) || { failed: outcome.status !== 0, ran, what: failed?.fullName ?? 'a process of it ended' };
    }
    case 'sim': {
      const env = { KVSS_SIM_FIRST: '1', KVSS_SIM_COUNT: String(killer.seeds) };
      const names = ['nothing breaks a promise'];
      const outcome = await vitest(tree, ['test/sim/sim.test.ts'], names, limitSeconds, env);
      const message = outcome.tests.flatMap(({ failureMessages }) => failureMessages ?? []).join('\n');
      const seed = /seed (\d+): (.*)/.exec(message);
      const ran = outcome.tests.some(({ status }) => status === 'passed');
      const what = seed
        ? `seed ${seed[1]}: ${seed[2].slice(0, 160)}`
        : message.slice(0, 160) || 'a process of it ended';
      return over(outcome) || { failed: outcome.status !== 0, ran, what, seed: seed ? Number(seed[1]) : undefined };
    }
    case 'fuzz': {
      const parameters = ['scripts/fuzz.mjs', killer.target, '--short', '--seconds', String(killer.seconds)];
      const outcome = await run(process.execPath, parameters, { cwd: tree, limitSeconds });
      const ran = !outcome.output.startsWith('skipped: ');
      return over(outcome) || { failed: outcome.status !== 0, ran, what: 'an input breaks a promise' };
    }
    default: {
      const outcome = await model(tree, killer.model);
      return over(outcome) || { failed: false, ran: !outcome.output.startsWith('skipped: '), ...outcome };
    }
  }
}

/** Each model is searched once: none of its mutants may hold. */
const models = new Map();
async function model(tree, name) {
  const known = models.get(name);
  if (known) return known;
  const parameters = ['scripts/memory-model.mjs', name, '--quick'];
  const outcome = await run(process.execPath, parameters, { cwd: tree, limitSeconds: MODEL_LIMIT_S });
  models.set(name, outcome);
  return outcome;
}

const keyOf = (killer) => JSON.stringify(killer);

/** Everything that is to notice something must have nothing to say about the tree as it is. Answers what cannot run here. */
async function checkKillers(tree, chosen) {
  const killers = [...new Map(chosen.flatMap(({ killers }) => killers).map((each) => [keyOf(each), each])).values()];
  const idle = new Set();
  const complain = (killer, why) => fail(`${nameOf(killer)}: fails where nothing was taken out\n${why}`);
  for (const what of [...new Set(killers.flatMap(buildsOf))]) {
    const folder = what.split(':')[0];
    if (!existsSync(`${tree}${folder}`)) seedFolder(tree, folder);
  }
  const built = new Set();
  for (const killer of killers) {
    const key = buildsOf(killer).join();
    if (built.has(key)) continue;
    built.add(key);
    await build(tree, killer, undefined);
  }
  // Of one kind, the longest will do.
  const longest = (kind, by, of = () => '') => {
    const groups = new Map();
    for (const killer of killers.filter((each) => each.kind === kind)) {
      const best = groups.get(of(killer));
      if (!best || killer[by] > best[by]) groups.set(of(killer), killer);
    }
    return [...groups.values()];
  };
  const single = [
    ...killers.filter(({ kind, name }) => kind === 'native' || (kind === 'vitest' && name === undefined)),
    ...longest('sim', 'seeds'),
    ...longest('fuzz', 'seconds', ({ target }) => target),
    ...longest('model', 'mutant', ({ model: name }) => name),
  ];
  for (const killer of single) {
    const { failed, ran, what, status, output } = await attempt(tree, killer);
    if (failed || (killer.kind === 'model' && status !== 0)) complain(killer, what ?? output);
    if (ran) continue;
    // Where one cannot run, others of its kind cannot either.
    for (const other of killers) {
      const same = killer.kind === 'fuzz' || killer.kind === 'model' ? other.kind === killer.kind : other === killer;
      if (same) idle.add(keyOf(other));
    }
  }
  const named = killers.filter(({ kind, name }) => kind === 'vitest' && name !== undefined);
  if (named.length > 0) {
    const files = [...new Set(named.map(({ file }) => file))];
    const names = [...new Set(named.map(({ name }) => name))];
    const { tests, status, output } = await vitest(tree, files, names, 1800);
    for (const killer of named) {
      const mine = tests.filter(({ file, fullName }) => file === killer.file && fullName.includes(killer.name));
      if (mine.some((test) => test.status === 'failed')) {
        complain(killer, mine.flatMap(({ failureMessages }) => failureMessages ?? []).join('\n'));
      }
      if (mine.length === 0) complain(killer, 'no test has this name');
      if (!mine.some((test) => test.status === 'passed')) idle.add(keyOf(killer));
    }
    if (status !== 0) fail(`tests fail where nothing was taken out\n${output.slice(-4000)}`);
  }
  return idle;
}

/** Takes one line out, and answers who noticed. */
async function tryOut(tree, mutant, idle) {
  const began = performance.now();
  const edits = editsOf(mutant);
  const files = [...new Set(edits.map(({ file }) => file))];
  const before = new Map(files.map((file) => [file, readFileSync(`${tree}${file}`, 'utf8')]));
  const finish = (outcome, rest = {}) => ({
    name: mutant.name,
    file: mutant.file,
    outcome,
    seconds: Math.round((performance.now() - began) / 100) / 10,
    ...rest,
  });
  const able = mutant.killers.filter((killer) => !idle.has(keyOf(killer)));
  if (able.length === 0) return finish('untried', { what: 'none of its killers can run on this machine' });
  let changed = false;
  try {
    const survived = [];
    for (const killer of able) {
      if (killer.kind === 'model') return finish('killed', { killer: nameOf(killer) });
      if (!changed) {
        for (const { file, find, replace } of edits) {
          const text = readFileSync(`${tree}${file}`, 'utf8');
          writeFileSync(
            `${tree}${file}`,
            text.replace(find, () => replace),
          );
        }
        changed = true;
      }
      await build(tree, killer, files);
      const limited = mutant.hangs ? { limitSeconds: HANGS_LIMIT_S, ...killer } : killer;
      const { failed, late, what, seed } = await attempt(tree, limited);
      // Who stands still may be slow only, unless that is what the line prevents.
      if (failed && (!late || mutant.hangs)) return finish('killed', { killer: nameOf(killer), what, seed });
      survived.push(`${nameOf(killer)}${late ? ` (${what})` : ''}`);
    }
    return finish('survived', { what: survived.join('; ') });
  } catch (thrown) {
    if (!(thrown instanceof Broken)) throw thrown;
    return finish('broken', { what: thrown.message });
  } finally {
    if (changed) for (const [file, text] of before) writeFileSync(`${tree}${file}`, text);
  }
}

// ---- results -------------------------------------------------------------------------------------------------------

const readFound = () => (existsSync(FOUND) ? JSON.parse(readFileSync(FOUND, 'utf8')) : {});

function keep(mutant, { outcome, killer, seed }) {
  const found = readFound();
  const print = fingerprint(mutant);
  const before = found[mutant.name]?.fingerprint === print ? found[mutant.name] : {};
  // What one kind of test does not find is nothing new about the line, and neither is who else finds it.
  const partial = values.with !== undefined && (outcome !== 'killed' || before.outcome === 'killed');
  const seeds = seed === undefined ? {} : { seed };
  found[mutant.name] = { ...before, ...(partial ? {} : { outcome, killer }), ...seeds, fingerprint: print };
  mkdirSync(dirname(FOUND), { recursive: true });
  writeFileSync(FOUND, `${JSON.stringify(found, null, 1)}\n`);
}

/** Names of the lines that the page has. */
const namesOnPage = () =>
  [...(textOf(PAGE) ?? '').matchAll(/^\| (.+?) \| .+ \|$/gm)].map(([, name]) => name).filter((name) => name !== 'line');

function page() {
  const found = readFound();
  const cell = (text) => text.replaceAll('|', '\\|');
  const killedBy = (mutant) => {
    const result = found[mutant.name];
    if (result === undefined || result.fingerprint !== fingerprint(mutant)) return '**not tried yet**';
    const { outcome, killer = '', seed } = result;
    if (outcome === undefined && seed === undefined) return '**not tried yet**';
    const simulated = seed === undefined ? [] : [`simulation, seed ${seed}`];
    if (outcome !== 'killed' && seed === undefined) return '**nothing that was tried**';
    return [...(killer === '' || killer.startsWith('simulation') ? [] : [killer]), ...simulated].join('; ');
  };
  const lines = [
    '# Lines that tests would miss',
    '',
    'Written by `npm run mutate -- --write`, from [test/mutants.mjs](../test/mutants.mjs) and the last run. Each line stands for a line of the',
    'product that keeps a promise. Without it a test fails: the one that is named, which is the cheapest that was tried. An order of memory accesses',
    'that x86 gives for nothing is missed by a model of [test/memory-model](../test/memory-model/README.md) instead, which fails without it. Where the',
    'simulation (`npm run test:sim`) was tried as well, the first seed from 1 on that shows it is named. What stands out was not missed, or not tried.',
  ];
  for (const file of new Set(mutants.map((mutant) => mutant.file))) {
    lines.push('', `## ${file}`, '', '| line | what it protects | without it fails |', '|---|---|---|');
    for (const mutant of mutants.filter((each) => each.file === file)) {
      lines.push(`| ${cell(mutant.name)} | ${cell(mutant.protects)} | ${cell(killedBy(mutant))} |`);
    }
  }
  return `${lines.join('\n')}\n`;
}

// --------------------------------------------------------------------------------------------------------------------

const chosen = choose();
if (values.list) {
  for (const { name, file, protects } of chosen) console.log(`${name}\n    ${file}\n    ${protects}`);
  process.exit(0);
}
const faults = faultsOf(root, mutants);
if (faults.length > 0) fail(...faults);
if (values.check) {
  const shown = new Set(namesOnPage());
  const names = mutants.map(({ name }) => name.replaceAll('|', '\\|'));
  const stale = names.filter((name) => !shown.has(name)).concat([...shown].filter((name) => !names.includes(name)));
  if (stale.length > 0) {
    fail(`docs/MUTANTS.md is stale about '${stale[0]}' and ${stale.length - 1} more: npm run mutate -- --write`);
  }
  console.log(`${mutants.length} lines, each of them where the table says`);
  process.exit(0);
}
if (values.write && values.only.length === 0 && values.from === undefined && existsSync(FOUND)) {
  writeFileSync(PAGE, page());
  process.exit(0);
}

setPriority(10);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));
process.on('exit', cleanUp);
const tree = copyTree();
const late = faultsOf(tree, chosen);
if (late.length > 0) fail(...late);
const idle = await checkKillers(tree, chosen).catch((thrown) => fail(thrown.message));
say(`${chosen.length} lines to take out`);
const results = [];
for (const mutant of chosen) {
  const result = await tryOut(tree, mutant, idle);
  results.push(result);
  if (result.outcome !== 'untried') keep(mutant, result);
  const { outcome, name, seconds, killer, what } = result;
  say(
    `${outcome.padEnd(8)} ${seconds.toFixed(1).padStart(6)} s  ${name}\n${' '.repeat(19)}${killer ?? ''}${what ? ` (${what})` : ''}`,
  );
}
const count = (outcome) => results.filter((result) => result.outcome === outcome).length;
if (values.json) console.log(JSON.stringify(results, null, 1));
else
  say(
    `${count('killed')} killed, ${count('survived')} survived, ${count('broken')} broken, ${count('untried')} not tried`,
  );
if (values.write) writeFileSync(PAGE, page());
process.exit(count('survived') + count('broken') > 0 ? 1 : 0);
