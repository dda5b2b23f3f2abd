#!/usr/bin/env node
// Checks the models of test/memory-model with spin: `memory-model.mjs [model...] [--quick]`. Each model has to hold in
// every run that its memory allows, and each of its mutants has to fail. --quick makes the largest model smaller.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const folder = fileURLToPath(new URL('../test/memory-model/', import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { quick: { type: 'boolean', default: false } },
});

const models = readdirSync(folder)
  .filter((name) => name.endsWith('.pml') && name !== 'machine.pml')
  .map((name) => name.replace(/\.pml$/, ''));
const chosen = positionals.length > 0 ? positionals : models;
for (const model of chosen) {
  if (!models.includes(model)) {
    console.error(`kvss: there is no model ${model}; there are ${models.join(', ')}`);
    process.exit(1);
  }
}

for (const [tool, flag] of [
  ['spin', '-V'],
  ['cc', '--version'],
]) {
  if (spawnSync(tool, [flag], { stdio: 'ignore' }).status === 0) continue;
  console.log(`skipped: ${tool} was not found; the memory models need spin and a C compiler`);
  process.exit(0);
}

/** Makes the program that searches all states of a model. */
function compile(model, scratch) {
  const steps = [
    ['spin', ...(values.quick ? ['-DQUICK'] : []), '-a', `${folder}${model}.pml`],
    // COLLAPSE and VECTORSZ: many states, each of them long.
    ['cc', '-O1', '-w', '-DSAFETY', '-DCOLLAPSE', '-DVECTORSZ=2048', '-o', 'search', 'pan.c'],
  ];
  for (const [command, ...parameters] of steps) {
    const { status, stdout, stderr } = spawnSync(command, parameters, { cwd: scratch, encoding: 'utf8' });
    if (status !== 0) throw new Error(`${command} failed for ${model}:\n${stdout}${stderr}`);
  }
}

/** Searches all states, of the model itself (0) or of a mutant. */
function search(scratch, mutant) {
  const { status, stdout, stderr } = spawnSync('./search', ['-m1000000', '-w22'], {
    cwd: scratch,
    encoding: 'utf8',
    env: { ...process.env, KVSS_MUTANT: String(mutant) },
  });
  const errors = /errors: (\d+)/.exec(stdout)?.[1];
  const whole = status === 0 && errors !== undefined && !/max search depth|out of memory|aborting/.test(stdout);
  if (!whole) throw new Error(`the search did not come to its end:\n${stdout}${stderr}`);
  const violation =
    errors === '0' ? undefined : (/assertion violated (.*?) \(at depth/.exec(stdout)?.[1] ?? 'a deadlock');
  // The machine's own: a HISTORY that is too short, or two threads that store to one location.
  if (violation?.includes('pick')) throw new Error(`the machine cannot run this: ${violation}`);
  return {
    violation,
    states: Number(/([\d.e+]+) states, stored/.exec(stdout)?.[1] ?? 0),
    // A process that never ends in any run would make all promises about its end empty.
    neverEnds: /"?-end-"?/.test(stdout),
  };
}

/** What is wrong with a model, or nothing. */
function check(model) {
  const scratch = mkdtempSync(join(tmpdir(), 'kvss-model-'));
  try {
    compile(model, scratch);
    const { violation, states, neverEnds } = search(scratch, 0);
    if (violation !== undefined) return `does not hold: ${violation}`;
    if (neverEnds) return 'has a process that never ends';
    const mutants = [...readFileSync(`${folder}${model}.pml`, 'utf8').matchAll(/^ \* mutant (\d+): (.*)$/gm)];
    if (mutants.length === 0) return 'has no mutants';
    const missed = mutants.filter(([, number]) => search(scratch, Number(number)).violation === undefined);
    if (missed.length > 0) return `holds although ${missed.map(([, , what]) => what).join('; and although ')}`;
    console.log(`${model}: holds in all ${states} states, and none of its ${mutants.length} mutants does`);
    return undefined;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

let failed = false;
for (const model of chosen) {
  const wrong = check(model);
  if (wrong === undefined) continue;
  console.error(`${model}: FAILED, it ${wrong}`);
  failed = true;
}
process.exit(failed ? 1 : 0);
