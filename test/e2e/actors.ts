import { type ChildProcess, fork } from 'node:child_process';
import { closeSync, cpSync, existsSync, readdirSync, readFileSync, readlinkSync, readSync, rmSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { type Finished, finish, message, pause, type Scratch } from './support.js';

/** Processes to which tests do what they like: drivers, daemons and a wafer, with an addon that can be told to die. */

const root = fileURLToPath(new URL('../../', import.meta.url));
/** A copy of what is shipped, beside an addon that counts steps. One for each test file: they run side by side. */
const STEPS = join(root, `build-tests/steps-${process.pid}`);
const MAIN = join(STEPS, 'dist/cli/main.js');
const INDEX = join(STEPS, 'dist/index.js');
const DRIVER = fileURLToPath(new URL('./children/stepping_driver.mjs', import.meta.url));

const DEADLINE_MS = 300;
/** Of one call, on a busy machine. The promise is the deadline. */
const LONGEST_CALL_MS = DEADLINE_MS + 4_000;
/** Longer than two deadlines: a stream that is silent for that long is given up. */
const STANDSTILL_MS = 700;

/** Every so many steps or calls are tried; 0: only a few of them. */
export const EVERY = Number(process.env.KVSS_EVERY_STEP ?? 0);
/** Longest that a test which tries them may take. */
export const PATIENCE_MS = EVERY > 0 ? 3_600_000 : 120_000;

/** Before all tests of a file. */
export function copyPackage(): void {
  cpSync(join(root, 'build-tests/steps'), STEPS, { recursive: true });
  cpSync(join(root, 'dist'), join(STEPS, 'dist'), { recursive: true });
  cpSync(join(root, 'package.json'), join(STEPS, 'package.json'));
}

/** After them. */
export function removePackage(): void {
  rmSync(STEPS, { recursive: true, force: true });
}

export type Link = 'shm' | 'tcp' | 'carried';
export interface Report extends Record<string, unknown> {
  stored: number;
  refilled: number;
  forgotten: number;
  worstMs: number;
  mismatches: number;
  linesVerified: number;
  errors: string[];
  refused?: string;
}

export const { SIGKILL, SIGSTOP } = constants.signals;

/** At which step a process gets which signal. Step 0: none, and it names all that it reaches. */
export interface StepFate {
  step: number;
  signal: number;
}

/** Which call of its addon fails, and how; see test/native/fail_nth.cc. */
export interface CallFate {
  call: string;
  at: number;
  errno: number;
}

export type Fate = StepFate | CallFate;

function environmentOf(fate: Fate, log: string): Record<string, string> {
  if ('step' in fate) {
    return { KVSS_STEP_AT: String(fate.step), KVSS_STEP_SIGNAL: String(fate.signal), KVSS_STEP_LOG: log };
  }
  return {
    LD_PRELOAD: join(root, 'build-tests/libfail_nth.so'),
    KVSS_FAIL_CALL: fate.call,
    KVSS_FAIL_AT: String(fate.at),
    KVSS_FAIL_ERRNO: String(fate.errno),
    KVSS_FAIL_LOG: log,
  };
}

/** A process of a test, to which something may happen. */
export class Actor implements AsyncDisposable {
  readonly finished: Promise<Finished>;
  ended: Finished | undefined;

  constructor(
    readonly child: ChildProcess,
    readonly log: string,
  ) {
    this.finished = finish(child);
    this.finished.then((outcome) => {
      this.ended = outcome;
    });
  }

  static start(scratch: Scratch, script: string, args: string[], fate?: Fate): Actor {
    const log = scratch.file(`log-${process.hrtime.bigint()}`);
    const env = { ...process.env, ...(fate ? environmentOf(fate, log) : {}) };
    const child = fork(script, args, { stdio: ['ignore', 'pipe', 'pipe', 'ipc'], env });
    // A process that dies leaves messages unread.
    child.on('error', () => {});
    const actor = new Actor(child, log);
    if (fate && 'step' in fate && fate.signal === SIGSTOP) actor.#continueLater();
    return actor;
  }

  /** Has it go on when it has stood still for long enough. */
  async #continueLater(): Promise<void> {
    while (!this.ended && !this.#stopped()) await pause(10);
    await pause(STANDSTILL_MS);
    this.child.kill('SIGCONT');
  }

  #stopped(): boolean {
    try {
      return / [Tt] /.test(readFileSync(`/proc/${this.pid}/stat`, 'utf8').slice(0, 80));
    } catch {
      return false;
    }
  }

  get pid(): number {
    return this.child.pid as number;
  }

  /** The next message, or undefined where it ends before. */
  async says(): Promise<Record<string, unknown> | undefined> {
    return Promise.race([message(this.child), this.finished.then(() => undefined)]);
  }

  tell(command: string): void {
    if (this.child.connected) this.child.send(command);
  }

  /** What has happened to it: steps that it has reached and named, a call that has failed. */
  events(): string[] {
    return existsSync(this.log) ? readFileSync(this.log, 'utf8').trimEnd().split('\n') : [];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL');
    await this.finished;
  }
}

/** What a process has open, by kind. */
export function census(pid: number): Record<string, number> {
  const kinds: Record<string, number> = {};
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    let link: string;
    try {
      link = readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      continue;
    }
    const kind = link.replace(/ \(deleted\)$/, '').replace(/:\[?\d+\]?$/, '');
    kinds[kind] = (kinds[kind] ?? 0) + 1;
  }
  return kinds;
}

/** Waits until a process has no more open than it had, and says what it has where it does not come to that. */
export async function awaitCensus(pid: number, before: Record<string, number>): Promise<void> {
  const giveUp = performance.now() + 20_000;
  const more = () => Object.entries(census(pid)).filter(([kind, count]) => count > (before[kind] ?? 0));
  while (more().length > 0 && performance.now() < giveUp) await pause(10);
  expect(more()).toEqual([]);
}

/** `kvss serve`, and what can be seen of it. */
export class Daemon {
  private constructor(
    readonly actor: Actor,
    readonly adminUrl: string,
  ) {}

  /** Answers undefined where it ended before it was ready. */
  static async ready(actor: Actor): Promise<Daemon | undefined> {
    const ready = await actor.says();
    return ready ? new Daemon(actor, ready.adminUrl as string) : undefined;
  }

  static spawn(scratch: Scratch, link: Link, fate?: Fate): Actor {
    const streams = {
      shm: [],
      tcp: ['--stream-socket', scratch.file('t')],
      carried: ['--stream-socket', scratch.file('t')],
    };
    const shards = ['--shards', link === 'carried' ? '4' : '2', '--budget', '2MiB'];
    const args = ['serve', '--socket', scratch.file('s'), ...shards, '--http-port', '0', '--log-level', 'error'];
    return Actor.start(scratch, MAIN, [...args, '--hio-mode', 'buffered', ...streams[link]], fate);
  }

  async metric(name: string): Promise<number> {
    const text = await (await fetch(`${this.adminUrl}/metrics`, { headers: { connection: 'close' } })).text();
    const lines = text.split('\n').filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }

  async awaitMetric(name: string, value: number): Promise<void> {
    const giveUp = performance.now() + 20_000;
    while ((await this.metric(name)) !== value && performance.now() < giveUp) {
      await pause(5);
    }
    expect({ [name]: await this.metric(name) }).toEqual({ [name]: value });
  }

  /** Descriptors of ours for the grants that it has now. */
  grants(): Map<string, string> {
    const found = new Map<string, string>();
    for (const fd of readdirSync(`/proc/${this.actor.pid}/fd`)) {
      const path = `/proc/${this.actor.pid}/fd/${fd}`;
      try {
        if (readlinkSync(path).startsWith('/memfd:kvss-grant')) found.set(fd, path);
      } catch {
        // Closed meanwhile.
      }
    }
    return found;
  }
}

const addressOf = (scratch: Scratch, link: Link) => (link === 'shm' ? scratch.file('s') : `unix:${scratch.file('t')}`);

/** The second piece needs several turns of a stream. A wafer has boxes of four domains. */
const bytesPerTokenOf = (link: Link) => (link === 'carried' ? '16,2048,16,16' : '16,2048');

export function spawnDriver(scratch: Scratch, link: Link, mode: 'connected' | 'connecting', fate?: Fate): Actor {
  const wafer = link === 'carried' ? `unix:${scratch.file('w')}` : '';
  return Actor.start(scratch, DRIVER, [INDEX, addressOf(scratch, link), bytesPerTokenOf(link), mode, wafer], fate);
}

/** One that lives, and has memory of its own. */
export function spawnOther(scratch: Scratch, link: Link): Actor {
  return Actor.start(scratch, DRIVER, [INDEX, addressOf(scratch, link), bytesPerTokenOf(link), 'connected', '']);
}

export function spawnWafer(scratch: Scratch, fate?: Fate): Actor {
  const shape = ['--bytes-per-token', bytesPerTokenOf('carried'), '--memory-columns', '16', '--log-level', 'error'];
  return Actor.start(scratch, MAIN, ['wafer', '--listen', `unix:${scratch.file('w')}`, ...shape], fate);
}

export async function startWafer(scratch: Scratch, link: Link): Promise<Actor | undefined> {
  if (link !== 'carried') return undefined;
  const wafer = spawnWafer(scratch);
  await wafer.says();
  return wafer;
}

/** What everybody who lives may rely on. */
export function expectSound(report: Report): void {
  expect(report.mismatches).toBe(0);
  expect(report.worstMs).toBeLessThan(LONGEST_CALL_MS);
}

/** And what comes to pass where nobody has died. */
export function expectWhole(report: Report): void {
  expectSound(report);
  expect(report).toMatchObject({ errors: [], forgotten: 3 });
  expect(report.stored).toBeGreaterThan(3);
  expect(report.refilled).toBeGreaterThan(1);
  expect(report.linesVerified).toBeGreaterThan(0);
}

/** Kept open from before a death, to see what becomes of the memory. */
export function expectZeros(fd: number): void {
  const bytes = Buffer.alloc(1 << 20);
  let at = 0;
  for (let read = readSync(fd, bytes, 0, bytes.length, at); read > 0; read = readSync(fd, bytes, 0, bytes.length, at)) {
    expect(bytes.subarray(0, read).every((byte) => byte === 0)).toBe(true);
    at += read;
  }
  closeSync(fd);
}
