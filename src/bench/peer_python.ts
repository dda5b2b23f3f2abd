import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { localError } from '../common/errors.js';
import type { Round } from './rounds.js';

/** A peer that is driven from Python, where the python3 that KVSS_BENCH_PYTHON names has its package. */
export interface PythonPeer {
  name: string;
  script: string;
  module: string;
  packages: string;
}

export const PYTHON_PEERS: readonly PythonPeer[] = [
  {
    name: 'Mooncake Store',
    script: 'mooncake_bench.py',
    module: 'mooncake.store',
    packages: 'mooncake-transfer-engine, or mooncake-transfer-engine-non-cuda where there is no CUDA',
  },
  { name: 'LMCache server', script: 'lmcache_bench.py', module: 'lmcache.v1.server.__main__', packages: 'lmcache' },
];

const IMPORT_MS = 60_000;
const ANSWER_MS = 60_000;

/** Why there is no figure for a peer, or undefined where it can be run. */
export async function whyNot({ module, packages }: PythonPeer): Promise<string | undefined> {
  const python = process.env.KVSS_BENCH_PYTHON;
  if (!python) return `not measured: set KVSS_BENCH_PYTHON to a python3 that has ${packages} (PyPI)`;
  const child = spawn(python, ['-c', `import ${module}`], {
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: IMPORT_MS,
    killSignal: 'SIGKILL',
  });
  let complaint = '';
  child.stderr.on('data', (chunk) => {
    complaint = (complaint + chunk).slice(-4_096);
  });
  const status = await new Promise((resolve) => {
    child.once('error', (error) => {
      complaint = error.message;
      resolve(null);
    });
    child.once('close', resolve);
  });
  if (status === 0) return undefined;
  const last = complaint.trim().split('\n').at(-1);
  return `not measured: ${python} cannot import ${module} (PyPI ${packages}): ${last || 'it said nothing'}`;
}

/** A runner of scripts/peers. It ends when its standard input does, so never later than this process. */
export class PythonRunner implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #ended: Promise<void>;

  private constructor(
    private readonly peer: PythonPeer,
    private readonly pieceBytes: number,
    private readonly pieces: number,
  ) {
    const script = fileURLToPath(new URL(`../../scripts/peers/${peer.script}`, import.meta.url));
    const flags = ['--piece-bytes', String(pieceBytes), '--pieces', String(pieces)];
    this.#child = spawn(process.env.KVSS_BENCH_PYTHON as string, ['-B', script, ...flags], {
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    this.#child.stdin?.on('error', () => undefined);
    this.#ended = new Promise((resolve) => {
      this.#child.once('error', () => resolve());
      this.#child.once('close', () => resolve());
    });
    this.#lines = createInterface({ input: this.#child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
  }

  static async start(peer: PythonPeer, pieceBytes: number, pieces: number): Promise<PythonRunner> {
    const runner = new PythonRunner(peer, pieceBytes, pieces);
    try {
      await runner.#answer();
      return runner;
    } catch (thrown) {
      await runner[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  async round(operation: 'set' | 'get'): Promise<Round> {
    this.#child.stdin?.write(`${operation}\n`);
    const { seconds = Number.NaN } = await this.#answer();
    return { seconds, ops: this.pieces, bytes: this.pieces * this.pieceBytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin?.end();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 5_000);
    await this.#ended;
    clearTimeout(timer);
  }

  async #answer(): Promise<{ seconds?: number }> {
    // Whoever is silent too long is ended, which ends the lines.
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), ANSWER_MS);
    const { value } = await this.#lines.next();
    clearTimeout(timer);
    const answer = (value === undefined ? { error: 'it ended' } : JSON.parse(value)) as {
      error?: string;
      seconds?: number;
    };
    if (answer.error !== undefined) throw localError('KVSS_UNREACHABLE', `${this.peer.name}: ${answer.error}`);
    return answer;
  }
}
