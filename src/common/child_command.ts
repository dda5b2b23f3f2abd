import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { localError } from './errors.js';

/** A command of this package in a process of its own. It goes when this process goes, however that dies. */
export interface ChildCommand<Ready> {
  /** What it said when it was ready. */
  readonly ready: Ready;
  readonly pid: number;
  /** Resolves once it has ended by itself or been stopped. */
  readonly ended: Promise<void>;
  stop(): Promise<void>;
}

/** Runs `kvss` with these arguments and waits until it is ready. Rejects with what it printed where it ends before. */
export async function startChildCommand<Ready>(args: readonly string[]): Promise<ChildCommand<Ready>> {
  const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  const child = fork(main, args, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
  let complaints = '';
  child.stderr?.on('data', (chunk) => {
    complaints = (complaints + chunk).slice(-4096);
  });
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  try {
    const ready = await firstMessage<Ready>(child, () => `${args[0]} did not start: ${complaints.trim()}`);
    return {
      ready,
      pid: child.pid ?? 0,
      ended,
      async stop() {
        child.kill('SIGTERM');
        await ended;
      },
    };
  } catch (thrown) {
    child.kill('SIGKILL');
    throw thrown;
  }
}

function firstMessage<Ready>(child: ChildProcess, complaint: () => string): Promise<Ready> {
  return new Promise((resolve, reject) => {
    child.once('message', (message) => resolve(message as Ready));
    child.once('close', () => reject(localError('KVSS_UNREACHABLE', complaint())));
  });
}

/** Runs until SIGTERM, SIGINT, or the end of the command that started this one. Who asks twice does not wait. */
export function runUntilStopped(ready: object, stop: () => Promise<void>): void {
  let signals = 0;
  const end = () => {
    signals += 1;
    if (signals > 1) process.exit(1);
    stop().then(
      () => process.exit(0),
      (thrown) => {
        console.error(thrown);
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', end);
  process.on('SIGINT', end);
  if (process.send) {
    process.on('disconnect', end);
    process.send({ ready: true, ...ready });
  }
}
