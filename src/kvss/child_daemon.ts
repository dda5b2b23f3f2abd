import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { HioMode } from '../binding/native.js';
import { localError } from '../common/errors.js';

/** How a driver reaches a daemon. */
export type LinkName = 'shm' | 'tcp' | 'unix';

interface Ready {
  adminUrl: string | null;
  streamPorts: number[];
}

/** A daemon in a process of its own, for commands that bring their own box. */
export interface ChildDaemon extends AsyncDisposable {
  readonly socket: string;
  /** Where it takes streams, if it was asked to. */
  readonly streams: string | undefined;
  readonly adminUrl: string | null;
  readonly pid: number;
  /** Resolves once it has ended by itself or been stopped. */
  readonly ended: Promise<void>;
}

/**
 * Starts `kvss serve` with one shard for each budget, and waits until it listens. It goes when this process goes. Rejects
 * with what it printed where it cannot start.
 */
export async function startChildDaemon(
  budgets: readonly number[],
  options: { http?: boolean; link?: LinkName; hioMode?: HioMode } = {},
): Promise<ChildDaemon> {
  const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
  const socket = join(directory, 'kvss.sock');
  const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  const flags = ['--socket', socket, '--log-level', 'warn', ...(options.http ? ['--http-port', '0'] : ['--no-http'])];
  const streamSocket = `${socket}.streams`;
  if (options.hioMode) flags.push('--hio-mode', options.hioMode);
  if (options.link === 'tcp') flags.push('--tcp-port', '0');
  if (options.link === 'unix') flags.push('--stream-socket', streamSocket);
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
    const { adminUrl, streamPorts } = await readyMessage(child, () => complaints);
    const streams = { tcp: `tcp://127.0.0.1:${streamPorts[0]}`, unix: `unix:${streamSocket}`, shm: undefined };
    return {
      socket,
      streams: streams[options.link ?? 'shm'],
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

function readyMessage(child: ChildProcess, complaints: () => string): Promise<Ready> {
  return new Promise((resolve, reject) => {
    child.once('message', (message) => resolve(message as Ready));
    child.once('close', () =>
      reject(localError('KVSS_UNREACHABLE', `the daemon did not start: ${complaints().trim()}`)),
    );
  });
}
