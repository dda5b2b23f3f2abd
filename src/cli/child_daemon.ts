import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { localError } from '../common/errors.js';

/** A daemon in a process of its own, for commands that bring their own box. */
export interface ChildDaemon extends AsyncDisposable {
  readonly socket: string;
  readonly adminUrl: string | null;
  readonly pid: number;
  /** Resolves once it has ended by itself or been stopped. */
  readonly ended: Promise<void>;
}

/**
 * Starts `kvss serve` with one shard for each budget, and waits until it listens. It goes when this process goes. Rejects
 * with what it printed where it cannot start.
 */
export async function startChildDaemon(budgets: readonly number[], http: boolean): Promise<ChildDaemon> {
  const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
  const socket = join(directory, 'kvss.sock');
  const main = fileURLToPath(new URL('./main.js', import.meta.url));
  const flags = ['--socket', socket, '--log-level', 'warn', ...(http ? ['--http-port', '0'] : ['--no-http'])];
  const child = fork(main, ['serve', '--budget', budgets.join(','), '--shards', String(budgets.length), ...flags], {
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  });
  let complaints = '';
  child.stderr?.on('data', (chunk) => {
    complaints = (complaints + chunk).slice(-4096);
  });
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const cleanUp = () => rmSync(directory, { recursive: true, force: true });
  try {
    const { adminUrl } = await readyMessage(child, () => complaints);
    return {
      socket,
      adminUrl,
      pid: child.pid ?? 0,
      ended,
      async [Symbol.asyncDispose]() {
        child.kill('SIGTERM');
        await ended;
        cleanUp();
      },
    };
  } catch (thrown) {
    child.kill('SIGKILL');
    cleanUp();
    throw thrown;
  }
}

function readyMessage(child: ChildProcess, complaints: () => string): Promise<{ adminUrl: string | null }> {
  return new Promise((resolve, reject) => {
    child.once('message', (message) => resolve(message as { adminUrl: string | null }));
    child.once('close', () =>
      reject(localError('KVSS_UNREACHABLE', `the daemon did not start: ${complaints().trim()}`)),
    );
  });
}
