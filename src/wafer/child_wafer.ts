import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startChildCommand } from '../common/child_command.js';

/** A wafer in a process of its own, for commands that bring their own. */
export interface ChildWafer extends AsyncDisposable {
  /** Where drivers connect. */
  readonly address: string;
  readonly pid: number;
}

/** Starts `kvss wafer` and waits until it listens. It goes when this process goes. */
export async function startChildWafer(options: {
  bytesPerToken: readonly number[];
  columnTokens: number;
  memoryColumns: number;
  link: 'tcp' | 'unix';
}): Promise<ChildWafer> {
  const directory = mkdtempSync(join(tmpdir(), 'kvss-wafer-'));
  const socket = join(directory, 'wafer.sock');
  const cleanUp = () => rmSync(directory, { recursive: true, force: true });
  try {
    const wafer = await startChildCommand<{ ports: number[] }>([
      'wafer',
      ...['--listen', options.link === 'tcp' ? 'tcp://127.0.0.1:0' : `unix:${socket}`],
      ...['--bytes-per-token', options.bytesPerToken.join(',')],
      ...['--column-tokens', String(options.columnTokens)],
      ...['--memory-columns', String(options.memoryColumns)],
      ...['--log-level', 'warn'],
    ]);
    return {
      address: options.link === 'tcp' ? `tcp://127.0.0.1:${wafer.ready.ports[0]}` : `unix:${socket}`,
      pid: wafer.pid,
      async [Symbol.asyncDispose]() {
        await wafer.stop();
        cleanUp();
      },
    };
  } catch (thrown) {
    cleanUp();
    throw thrown;
  }
}
