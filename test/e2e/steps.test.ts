import { type ChildProcess, fork } from 'node:child_process';
import {
  closeSync,
  cpSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';
import { type Finished, finish, message, pause, Scratch, until } from './support.js';

/**
 * A process dies at step n of its work, or stands still there for a while, for n = 1, 2, ... until it gets through: see
 * native/base/step.h. `npm test` takes a few steps of each, `npm run test:steps` all of them.
 */
const ALL = process.env.KVSS_ALL_STEPS !== undefined;
const SAMPLES = 2;
const PATIENCE_MS = ALL ? 3_600_000 : 120_000;

const root = fileURLToPath(new URL('../../', import.meta.url));
/** A copy of what is shipped, beside an addon that counts steps. */
const STEPS = join(root, 'build-tests/steps');
const MAIN = join(STEPS, 'dist/cli/main.js');
const INDEX = join(STEPS, 'dist/index.js');
const DRIVER = fileURLToPath(new URL('./children/stepping_driver.mjs', import.meta.url));

const DEADLINE_MS = 300;
/** Of one call, on a busy machine. The promise is the deadline. */
const LONGEST_CALL_MS = DEADLINE_MS + 4_000;
/** Longer than two deadlines: a stream that is silent for that long is given up. */
const STANDSTILL_MS = 700;
/** More steps than any of them takes. */
const NEVER = 1_000_000_000;

type Link = 'shm' | 'tcp' | 'carried';
interface Report extends Record<string, unknown> {
  stored: number;
  refilled: number;
  forgotten: number;
  worstMs: number;
  mismatches: number;
  linesVerified: number;
  errors: string[];
  refused?: string;
}

const { SIGKILL, SIGSTOP } = constants.signals;

/** What is to happen to a process: at which step it gets which signal. Step 0: none, and it names all that it reaches. */
interface Fate {
  step: number;
  signal: number;
}

/** A process of a test, which may die at a step. */
class Actor implements AsyncDisposable {
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
    const steps = { KVSS_STEP_AT: String(fate?.step), KVSS_STEP_SIGNAL: String(fate?.signal), KVSS_STEP_LOG: log };
    const env = { ...process.env, ...(fate ? steps : {}) };
    const child = fork(script, args, { stdio: ['ignore', 'pipe', 'pipe', 'ipc'], env });
    // A process that dies at a step leaves messages unread.
    child.on('error', () => {});
    const actor = new Actor(child, log);
    if (fate?.signal === SIGSTOP) actor.#continueLater();
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

  /** Steps that it has reached and named. */
  steps(): string[] {
    return existsSync(this.log) ? readFileSync(this.log, 'utf8').trimEnd().split('\n') : [];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL');
    await this.finished;
  }
}

/** What a process has open, by kind. */
function census(pid: number): Record<string, number> {
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
async function awaitCensus(pid: number, before: Record<string, number>): Promise<void> {
  const giveUp = performance.now() + 20_000;
  const more = () => Object.entries(census(pid)).filter(([kind, count]) => count > (before[kind] ?? 0));
  while (more().length > 0 && performance.now() < giveUp) await pause(10);
  expect(more()).toEqual([]);
}

class Daemon {
  private constructor(
    readonly actor: Actor,
    readonly adminUrl: string,
  ) {}

  /** Answers undefined where it died at a step before it was ready. */
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

function spawnDriver(scratch: Scratch, link: Link, mode: 'connected' | 'connecting', fate?: Fate): Actor {
  const wafer = link === 'carried' ? `unix:${scratch.file('w')}` : '';
  return Actor.start(scratch, DRIVER, [INDEX, addressOf(scratch, link), bytesPerTokenOf(link), mode, wafer], fate);
}

/** One that lives, and has memory of its own. */
function spawnOther(scratch: Scratch, link: Link): Actor {
  return Actor.start(scratch, DRIVER, [INDEX, addressOf(scratch, link), bytesPerTokenOf(link), 'connected', '']);
}

function spawnWafer(scratch: Scratch, fate?: Fate): Actor {
  const shape = ['--bytes-per-token', bytesPerTokenOf('carried'), '--memory-columns', '16', '--log-level', 'error'];
  return Actor.start(scratch, MAIN, ['wafer', '--listen', `unix:${scratch.file('w')}`, ...shape], fate);
}

async function startWafer(scratch: Scratch, link: Link): Promise<Actor | undefined> {
  if (link !== 'carried') return undefined;
  const wafer = spawnWafer(scratch);
  await wafer.says();
  return wafer;
}

/** What everybody who lives may rely on. */
function expectSound(report: Report): void {
  expect(report.mismatches).toBe(0);
  expect(report.worstMs).toBeLessThan(LONGEST_CALL_MS);
}

/** And what comes to pass where nobody has died. */
function expectWhole(report: Report): void {
  expectSound(report);
  expect(report).toMatchObject({ errors: [], forgotten: 4 });
  expect(report.stored).toBeGreaterThan(6);
  expect(report.refilled).toBeGreaterThan(3);
  expect(report.linesVerified).toBeGreaterThan(0);
}

/** Kept open from before a death, to see what becomes of the memory. */
function expectZeros(fd: number): void {
  const bytes = Buffer.alloc(1 << 20);
  let at = 0;
  for (let read = readSync(fd, bytes, 0, bytes.length, at); read > 0; read = readSync(fd, bytes, 0, bytes.length, at)) {
    expect(bytes.subarray(0, read).every((byte) => byte === 0)).toBe(true);
    at += read;
  }
  closeSync(fd);
}

/**
 * Has a process get its signal at one step after the other, and at last at none. `attempt` answers with the process, once
 * what it and the others did has been looked at.
 */
async function eachStep(name: string, signal: number, attempt: (fate: Fate) => Promise<Actor>): Promise<void> {
  const first = await attempt({ step: 0, signal });
  expect(await first.finished).toMatchObject({ code: 0, stderr: '' });
  const counted = first.steps().length;
  expect(counted).toBeGreaterThan(20);
  const places = new Map<string, number>();
  const take = async (step: number): Promise<boolean> => {
    const actor = await attempt({ step, signal });
    const outcome = await actor.finished;
    const [reached] = actor.steps();
    if (reached === undefined || signal !== SIGKILL)
      expect({ step, ...outcome }).toMatchObject({ code: 0, stderr: '' });
    else expect({ step, signal: outcome.signal }).toEqual({ step, signal: 'SIGKILL' });
    if (reached === undefined) return false;
    const place = reached.replace(/^\d+ /, '');
    places.set(place, (places.get(place) ?? 0) + 1);
    return true;
  };
  // Threads run side by side, so the number of steps is not the same each time.
  if (ALL) for (let step = 1; await take(step); step += 1);
  else for (let sample = 1; sample <= SAMPLES; sample += 1) await take(Math.floor((sample * counted) / (SAMPLES + 1)));
  expect(await take(NEVER)).toBe(false);
  const rounds = [...places.values()].reduce((sum, count) => sum + count, 0);
  expect(rounds).toBeGreaterThan(0);
  const list = [...places].map(([place, count]) => `${place} (${count})`).join(', ');
  console.log(`${name}: ${rounds} of about ${counted} steps: ${list}`);
}

const SIGNALS = [
  ['kill -9', SIGKILL],
  ['a standstill', SIGSTOP],
] as const;
const LINKS = ['shm', 'tcp', 'carried'] as const;
const CASES = SIGNALS.flatMap(([what, signal]) => LINKS.map((link) => [what, link, signal] as const));

beforeAll(() => {
  rmSync(join(STEPS, 'dist'), { recursive: true, force: true });
  cpSync(join(root, 'dist'), join(STEPS, 'dist'), { recursive: true });
  cpSync(join(root, 'package.json'), join(STEPS, 'package.json'));
});

describe.each(CASES)('%s at each numbered step, over %s,', (what, link, signal) => {
  test('of a driver: its memory is zeroed and free, another driver notices nothing', {
    timeout: PATIENCE_MS,
  }, async () => {
    using scratch = new Scratch();
    await using daemonActor = Daemon.spawn(scratch, link);
    const daemon = (await Daemon.ready(daemonActor)) as Daemon;
    const wafer = await startWafer(scratch, link);
    await using other = spawnOther(scratch, link);
    await other.says();
    other.tell('go');
    expectWhole((await other.says()) as Report);
    const free = await daemon.metric('kvss_free_bytes');
    let before: { daemon: Record<string, number>; wafer: Record<string, number> } | undefined;
    await eachStep(`${what} of a driver over ${link}`, signal, async (fate) => {
      const known = daemon.grants();
      const victim = spawnDriver(scratch, link, 'connected', fate);
      const kept: number[] = [];
      if (await victim.says()) {
        await until(() => daemon.grants().size > known.size || victim.ended !== undefined);
        for (const [fd, path] of daemon.grants()) {
          if (known.has(fd)) continue;
          try {
            kept.push(openSync(path, 'r'));
          } catch {
            // It has died while it connected.
          }
        }
        victim.tell('go');
        other.tell('go');
        const [mine, theirs] = await Promise.all([victim.says(), other.says()]);
        expectWhole(theirs as Report);
        // Its own clock goes on while it stands still.
        if (mine && signal === SIGKILL) expectWhole(mine as Report);
        if (mine) expect(mine).toMatchObject({ mismatches: 0 });
        victim.tell('close');
      }
      await victim.finished;
      await daemon.awaitMetric('kvss_sessions', 1);
      await daemon.awaitMetric('kvss_free_bytes', free);
      for (const fd of kept) expectZeros(fd);
      const now = { daemon: census(daemon.actor.pid), wafer: wafer ? census(wafer.pid) : {} };
      before ??= now;
      await awaitCensus(daemon.actor.pid, before.daemon);
      if (wafer) await awaitCensus(wafer.pid, before.wafer);
      return victim;
    });
    other.tell('close');
    expect(await other.finished).toMatchObject({ code: 0, stderr: '' });
    await wafer?.[Symbol.asyncDispose]();
  });

  test('of a daemon: calls end as misses, and the driver works with the next daemon', {
    timeout: PATIENCE_MS,
  }, async () => {
    using scratch = new Scratch();
    const wafer = await startWafer(scratch, link);
    await using driver = spawnDriver(scratch, link, 'connected');
    await driver.says();
    let before: { driver: Record<string, number>; wafer: Record<string, number> } | undefined;
    await eachStep(`${what} of a daemon over ${link}`, signal, async (fate) => {
      const actor = Daemon.spawn(scratch, link, fate);
      const daemon = await Daemon.ready(actor);
      driver.tell('go');
      actor.finished.then(() => driver.tell('abandon'));
      const report = (await driver.says()) as Report;
      if (daemon && fate.step % NEVER === 0) expectWhole(report);
      actor.child.kill('SIGTERM');
      await actor.finished;
      expectSound(report);
      before ??= { driver: census(driver.pid), wafer: wafer ? census(wafer.pid) : {} };
      await awaitCensus(driver.pid, before.driver);
      if (wafer) await awaitCensus(wafer.pid, before.wafer);
      return actor;
    });
    driver.tell('close');
    expect(await driver.finished).toMatchObject({ code: 0, stderr: '' });
    await wafer?.[Symbol.asyncDispose]();
    // What a killed daemon left behind the next one has replaced, and has taken away itself in the end; but for the
    // path of the stream listener, which is taken over and not removed.
    const left = readdirSync(scratch.path).filter((name) => !name.startsWith('log-'));
    expect(left.filter((name) => name !== 't' && name !== 'w')).toEqual([]);
  });
});

describe.each(SIGNALS)('%s at each numbered step, of a wafer that carries:', (what, signal) => {
  test('calls end as misses, and the shards have their memory back', { timeout: PATIENCE_MS }, async () => {
    using scratch = new Scratch();
    await using daemonActor = Daemon.spawn(scratch, 'carried');
    const daemon = (await Daemon.ready(daemonActor)) as Daemon;
    const free = await daemon.metric('kvss_free_bytes');
    await using driver = spawnDriver(scratch, 'carried', 'connecting');
    await driver.says();
    let before: { driver: Record<string, number>; daemon: Record<string, number> } | undefined;
    await eachStep(`${what} of a wafer`, signal, async (fate) => {
      const wafer = spawnWafer(scratch, fate);
      await wafer.says();
      driver.tell('go');
      const report = (await driver.says()) as Report;
      if (report.refused === undefined) expectSound(report);
      else expect(report.refused).toMatch(/^KVSS_/);
      if (fate.step % NEVER === 0) expectWhole(report);
      wafer.child.kill('SIGTERM');
      await wafer.finished;
      await daemon.awaitMetric('kvss_sessions', 0);
      await daemon.awaitMetric('kvss_free_bytes', free);
      before ??= { driver: census(driver.pid), daemon: census(daemon.actor.pid) };
      await awaitCensus(driver.pid, before.driver);
      await awaitCensus(daemon.actor.pid, before.daemon);
      return wafer;
    });
    driver.tell('close');
    expect(await driver.finished).toMatchObject({ code: 0, stderr: '' });
  });
});
