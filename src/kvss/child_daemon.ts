import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { HioMode } from '../binding/native.js';
import { startChildCommand } from '../common/child_command.js';

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
  const flags = ['--socket', socket, '--log-level', 'warn', ...(options.http ? ['--http-port', '0'] : ['--no-http'])];
  const streamSocket = `${socket}.streams`;
  if (options.hioMode) flags.push('--hio-mode', options.hioMode);
  if (options.link === 'tcp') flags.push('--tcp-port', '0');
  if (options.link === 'unix') flags.push('--stream-socket', streamSocket);
  const shards = ['--budget', budgets.join(','), '--shards', String(budgets.length)];
  const cleanUp = () => rmSync(directory, { recursive: true, force: true });
  try {
    const daemon = await startChildCommand<Ready>(['serve', ...shards, ...flags]);
    const { adminUrl, streamPorts } = daemon.ready;
    const streams = { tcp: `tcp://127.0.0.1:${streamPorts[0]}`, unix: `unix:${streamSocket}`, shm: undefined };
    return {
      socket,
      streams: streams[options.link ?? 'shm'],
      adminUrl,
      pid: daemon.pid,
      ended: daemon.ended,
      async [Symbol.asyncDispose]() {
        await daemon.stop();
        cleanUp();
      },
    };
  } catch (thrown) {
    cleanUp();
    throw thrown;
  }
}
