// The KVSS daemon of a home: a process of its own, which outlives the chat and so keeps the cache.
import { spawn } from 'node:child_process';
import { closeSync, fstatSync, openSync, readSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ChatError } from './errors.mjs';
import { readJson, runs, writePrivateJson } from './home.mjs';

/** How long the cache waits for the next chat. */
export const PARK_MS = 3_600_000;
const SHARDS = 2;
/** Of each shard. */
const BUDGET = '256MiB';
const START_DEADLINE_MS = 20_000;
const STOP_DEADLINE_MS = 15_000;
const ANSWER_DEADLINE_MS = 2_000;
const POLL_MS = 25;

/**
 * Starts the daemon unless it answers. Resolves with its pid where it has been started. Only for who has the home's lock. Rejects
 * with a ChatError that says what the daemon said.
 */
export async function ensureDaemon(home, budget = BUDGET) {
  if (await answers(home.socket)) return undefined;
  const log = openSync(home.log, 'a+', 0o600);
  try {
    const before = fstatSync(log).size;
    const main = join(dirname(fileURLToPath(import.meta.resolve('kvss/package.json'))), 'dist/cli/main.js');
    const options = ['--shards', String(SHARDS), '--budget', budget, '--max-park-ms', String(PARK_MS)];
    const args = [main, 'serve', '--socket', home.socket, ...options, '--no-http', '--log-level', 'warn'];
    const child = spawn(process.execPath, args, { detached: true, cwd: '/', stdio: ['ignore', log, log] });
    child.unref();
    // Also one that its starter does not live to see answer can be stopped.
    writePrivateJson(home.daemonFile, { pid: child.pid });
    let ended = false;
    child.once('error', () => {
      ended = true;
    });
    child.once('exit', () => {
      ended = true;
    });
    const giveUp = performance.now() + START_DEADLINE_MS;
    while (!(await answers(home.socket))) {
      const why = ended ? lastLine(log, before) : performance.now() > giveUp ? 'it does not answer' : undefined;
      if (why !== undefined) {
        child.kill('SIGKILL');
        rmSync(home.daemonFile, { force: true });
        throw new ChatError(`the KVSS daemon did not start: ${why}`);
      }
      await sleep(POLL_MS);
    }
    return child.pid;
  } finally {
    closeSync(log);
  }
}

/** Stops the daemon. Resolves with the pid that it had, or undefined where none ran. Only for who has the home's lock. */
export async function stopDaemon(home) {
  const pid = readJson(home.daemonFile)?.pid;
  const alive = () => runs(pid, home.socket);
  if (!alive()) {
    if (await answers(home.socket))
      throw new ChatError(`${home.socket}: the daemon there was not started by this chat`);
    rmSync(home.daemonFile, { force: true });
    return undefined;
  }
  process.kill(pid, 'SIGTERM');
  const giveUp = performance.now() + STOP_DEADLINE_MS;
  while (alive() && performance.now() < giveUp) await sleep(POLL_MS);
  if (alive()) process.kill(pid, 'SIGKILL');
  rmSync(home.daemonFile, { force: true });
  return pid;
}

/** Whether a daemon answers at a socket. */
async function answers(socket) {
  const { connectorFor } = await import('kvss');
  try {
    const connection = await connectorFor({ wioStreams: 1, placeBytes: 0, checksums: false })(
      socket,
      ANSWER_DEADLINE_MS,
    );
    await connection.close();
    return true;
  } catch {
    return false;
  }
}

/** What was written to a file behind `from`, the last line of it. */
function lastLine(file, from) {
  const bytes = Buffer.alloc(Math.min(4096, fstatSync(file).size - from));
  readSync(file, bytes, 0, bytes.length, fstatSync(file).size - bytes.length);
  return bytes.toString('utf8').trim().split('\n').at(-1) || 'it said nothing';
}
