import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { localError } from '../common/errors.js';

/**
 * Runs a program that knows nothing of us, and kills it when our end of its standard input closes: that happens however
 * this process dies.
 */
const TIE = `exec 3<&0
"$@" </dev/null &
program=$!
{ read -r _ <&3; kill -KILL $program; } &
watcher=$!
wait $program
status=$?
kill $watcher 2>/dev/null
exit $status`;

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** A program of somebody else that runs as long as it is needed, and never longer than this process. */
export class TiedProgram {
  /** What it has printed. */
  stdout = '';
  stderr = '';
  /** Resolves with its exit status once it has ended and all that it printed is there. */
  readonly ended: Promise<number | null>;
  #running = true;
  readonly #shell: ChildProcess;

  constructor(command: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    this.#shell = spawn('/bin/sh', ['-c', TIE, 'sh', ...command], { stdio: ['pipe', 'pipe', 'pipe'], env });
    this.#shell.stdin?.on('error', () => undefined);
    this.#shell.stdout?.on('data', (chunk) => {
      this.stdout = (this.stdout + chunk).slice(-65_536);
    });
    this.#shell.stderr?.on('data', (chunk) => {
      this.stderr = (this.stderr + chunk).slice(-4_096);
    });
    this.ended = new Promise((resolve) => {
      const end = (status: number | null) => {
        this.#running = false;
        resolve(status);
      };
      this.#shell.once('error', (error) => {
        this.stderr += error.message;
        end(null);
      });
      this.#shell.once('close', end);
    });
  }

  get running(): boolean {
    return this.#running;
  }

  /** What it complained about, for the message of an error. */
  get complaint(): string {
    return (this.stderr.trim() || this.stdout.trim()).split('\n').slice(-3).join(' ') || 'it said nothing';
  }

  async stop(): Promise<void> {
    this.#shell.stdin?.end();
    await this.ended;
  }
}

/** A directory and the programs that use it: all of them are gone afterwards, also after an error or a signal. */
export class PeerBox implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'kvss-peers-'));
  readonly #programs = new Set<TiedProgram>();
  readonly #remove = () => rmSync(this.directory, { recursive: true, force: true });
  /** The programs go with this process; the directory has to be removed by hand. */
  readonly #onSignal = (signal: NodeJS.Signals) => {
    this.#remove();
    this.#forgetSignals();
    process.kill(process.pid, signal);
  };

  constructor() {
    process.on('exit', this.#remove);
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
  }

  start(command: readonly string[]): TiedProgram {
    const program = new TiedProgram(command);
    this.#programs.add(program);
    program.ended.then(() => this.#programs.delete(program));
    return program;
  }

  /** Runs a program to its end; answers what it printed. */
  async run(command: readonly string[], timeoutMs: number): Promise<string> {
    const program = this.start(command);
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      void program.stop();
    }, timeoutMs);
    const status = await program.ended;
    clearTimeout(timer);
    if (late) throw localError('KVSS_UNREACHABLE', `${command[0]} did not end within ${timeoutMs} ms`);
    if (status !== 0) {
      throw localError('KVSS_UNREACHABLE', `${command[0]} ended with status ${status}: ${program.complaint}`);
    }
    return program.stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#programs].map((program) => program.stop()));
    this.#remove();
    this.#forgetSignals();
  }

  #forgetSignals(): void {
    process.off('exit', this.#remove);
    for (const signal of SIGNALS) process.off(signal, this.#onSignal);
  }
}

/** Where a program is, if it is anywhere. */
export function findProgram(name: string): string | undefined {
  return (process.env.PATH ?? '')
    .split(delimiter)
    .filter((place) => place !== '')
    .map((place) => join(place, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

/** A port of the loopback device that nobody has taken yet. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
