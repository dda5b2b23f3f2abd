import { type ChildProcess, fork, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../../', import.meta.url));
/** The command line as it is shipped: `npm test` has compiled it. */
export const MAIN = join(root, 'dist/cli/main.js');
export const INDEX = join(root, 'dist/index.js');

/** A directory of its own for one test, removed when the test file ends. */
export class Scratch implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), 'kvss-test-'));

  file(name: string, content?: string): string {
    const path = join(this.path, name);
    if (content !== undefined) writeFileSync(path, content);
    return path;
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

export interface Finished {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** Runs `kvss` with these arguments to its end. */
export async function kvss(...args: string[]): Promise<Finished> {
  return finish(spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'] }));
}

export function finish(child: ChildProcess): Promise<Finished> {
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', (chunk) => {
    stdout += chunk;
  });
  child.stderr?.on('data', (chunk) => {
    stderr += chunk;
  });
  return new Promise((resolve) => {
    child.once('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

/** A daemon in a process of its own, which a test may treat as badly as it likes. */
export class TestDaemon implements AsyncDisposable {
  private constructor(
    readonly socket: string,
    readonly child: ChildProcess,
    readonly adminUrl: string,
    /** Ports of its stream listeners, 0 for Unix sockets. */
    readonly streamPorts: number[],
    readonly finished: Promise<Finished>,
  ) {}

  static async start(
    socket: string,
    options: { shards?: number; budget?: string; flags?: string[]; through?: string[] } = {},
  ): Promise<TestDaemon> {
    // `through` is a command that runs the one that it is given, in its own place.
    const { shards = 2, budget = '8MiB', flags = [], through = [] } = options;
    const [execPath = process.execPath, ...execArgv] = [...through, process.execPath];
    const args = ['serve', '--socket', socket, '--shards', String(shards), '--budget', budget, '--http-port', '0'];
    const child = fork(MAIN, [...args, '--hio-mode', 'buffered', ...flags], {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      execPath,
      execArgv,
    });
    const finished = finish(child);
    const ready = await Promise.race([message(child), finished]);
    if (!('adminUrl' in ready)) throw new Error(`the daemon did not start: ${(ready as Finished).stderr}`);
    return new TestDaemon(socket, child, ready.adminUrl as string, ready.streamPorts as number[], finished);
  }

  get pid(): number {
    return this.child.pid as number;
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  async freeze(): Promise<void> {
    await freeze(this.pid);
  }

  async metric(name: string): Promise<number> {
    const text = await (await fetch(`${this.adminUrl}/metrics`)).text();
    const lines = text.split('\n').filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }

  /**
   * Waits until a figure is exactly this, and throws with what it is where it does not become so: an engine publishes what
   * it has counted when it has a moment, which may be after the answer.
   */
  async awaitMetric(name: string, value: number): Promise<void> {
    const giveUp = performance.now() + 20_000;
    let seen = await this.metric(name);
    while (seen !== value && performance.now() < giveUp) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      seen = await this.metric(name);
    }
    if (seen !== value) throw new Error(`${name} is ${seen}, not ${value}`);
  }

  /** Descriptor numbers of the daemon whose memory object has this name. */
  memoryObjects(name: string): string[] {
    const directory = `/proc/${this.pid}/fd`;
    return readdirSync(directory)
      .map((fd) => join(directory, fd))
      .filter((path) => linkOf(path).startsWith(`/memfd:${name}`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGCONT');
    this.child.kill('SIGKILL');
    await this.finished;
  }
}

/** Stops every thread of a process; the signal alone returns before they stand. */
export async function freeze(pid: number): Promise<void> {
  process.kill(pid, 'SIGSTOP');
  await until(() =>
    readdirSync(`/proc/${pid}/task`).every((task) =>
      / [Tt] /.test(readFileSync(`/proc/${pid}/task/${task}/stat`, 'utf8').slice(0, 80)),
    ),
  );
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
}

/** The next message of a child over its IPC channel. */
export function message(child: ChildProcess): Promise<Record<string, unknown>> {
  return new Promise((resolve) => {
    child.once('message', (value) => resolve(value as Record<string, unknown>));
  });
}

/** A script of test/e2e/children in a process of its own. It learns where things are from its arguments. */
export function startChild(
  script: string,
  args: string[],
  nodeFlags: string[] = [],
): { child: ChildProcess; finished: Promise<Finished> } {
  const path = fileURLToPath(new URL(`./children/${script}`, import.meta.url));
  const child = fork(path, [INDEX, ...args], { stdio: ['ignore', 'pipe', 'pipe', 'ipc'], execArgv: nodeFlags });
  return { child, finished: finish(child) };
}

/** For what takes its time by its nature; never to wait for something to happen. */
export const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** `kvss wafer` in a process of its own; its first message says that it listens. */
export function startWafer(...args: string[]): { child: ChildProcess; finished: Promise<Finished> } {
  const child = fork(MAIN, ['wafer', ...args], { stdio: ['ignore', 'pipe', 'pipe', 'ipc'] });
  return { child, finished: finish(child) };
}

/** Waits until something is true. The test's own time limit says how long at most. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 10));
}

/** A model for the two shards of a TestDaemon, unequal. */
export const MODEL = { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: [16, 32] };
