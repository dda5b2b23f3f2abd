#!/usr/bin/env node
// Compiles the native addon, or with --tests the native test programs. Downloads nothing: Node-API headers come from
// the node-api-headers package.

import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const tests = process.argv.includes('--tests');

function found(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

function fail(message) {
  console.error(`kvss: ${message}`);
  process.exit(1);
}

if (process.platform !== 'linux') fail('KVSS needs Linux (memfd, eventfd, pidfd).');
const compiler = process.env.CXX ?? ['c++', 'g++', 'clang++'].find(found);
if (!compiler || !found(compiler)) {
  fail('no C++20 compiler found. Install one, for example: apt-get install g++ (version 11 or later), or set CXX.');
}
if (!found('cmake')) fail('CMake was not found. Install version 3.20 or later, for example: apt-get install cmake.');

const buildFolder = `${root}${tests ? 'build-tests' : 'build/native'}`;
const steps = [
  [
    '-S',
    `${root}native`,
    '-B',
    buildFolder,
    `-DKVSS_TESTS=${tests ? 'ON' : 'OFF'}`,
    `-DCMAKE_CXX_COMPILER=${compiler}`,
  ],
  ['--build', buildFolder, '--parallel', String(Math.max(1, availableParallelism()))],
];
for (const step of steps) {
  // The log is for the day when something fails; on a good day nobody wants to read it.
  const outcome = spawnSync('cmake', step, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 26 });
  if (outcome.status !== 0) {
    console.error(outcome.stdout);
    console.error(outcome.stderr);
    fail(
      `the native build failed with ${compiler}. It needs C++20 (g++ 11, clang 14 or later) and CMake 3.20 or later.`,
    );
  }
}
