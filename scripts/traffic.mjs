// Live traffic for scripts/chaos.mjs and scripts/soak.mjs: daemons, drivers and a wafer in processes of their own, over
// shared memory and TCP mixed, and a look at what each of them holds.
import { fork } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const MAIN = join(root, 'dist/cli/main.js');
const INDEX = join(root, 'dist/index.js');
const DRIVER = fileURLToPath(new URL('traffic_driver.mjs', import.meta.url));

export const DEADLINE_MS = 500;
const COLUMN_TOKENS = 64;
const CAPACITY_COLUMNS = 160;
/** Of the four shards of a box, unequal. */
const BYTES_PER_TOKEN = [256, 512, 384, 128];
/** Sessions that a shard has room for: those of four drivers, and as many that have died and are being cleared away. */
const SESSIONS = 8;
/** Longest that anything in the background may take: a daemon that clears away, a process that ends. */
const PATIENCE_MS = 30_000;

export const nowMs = () => Number(process.hrtime.bigint() / 1000n) / 1000;
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** What a process has open, by kind. */
export function census(pid) {
  const kinds = {};
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      const kind = readlinkSync(`/proc/${pid}/fd/${fd}`)
        .replace(/ \(deleted\)$/, '')
        .replace(/:\[?\d+\]?$/, '');
      kinds[kind] = (kinds[kind] ?? 0) + 1;
    } catch {
      // Closed meanwhile.
    }
  }
  return kinds;
}

/** What there is more of than there was. */
export function more(before, now) {
  return Object.entries(now)
    .filter(([kind, count]) => count > (before[kind] ?? 0))
    .map(([kind, count]) => `${count} ${kind} instead of ${before[kind] ?? 0}`);
}

/** A process of the cast. It is started again under the same name after its death. */
class Member {
  child;
  exit;
  /** When it stood still: [fromMs, toMs]. */
  standstills = [];
  handlers = [];
  /** What it has open when it is at rest and nothing is wrong. */
  baseline;

  constructor(name, kind, script, argsOf, options, env) {
    Object.assign(this, { name, kind, script, argsOf, options, env });
  }

  async start() {
    const child = fork(this.script, this.argsOf(), {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: this.env,
      ...this.options,
    });
    this.child = child;
    this.stderr = '';
    child.stderr.on('data', (chunk) => {
      this.stderr = (this.stderr + chunk).slice(-4096);
    });
    child.on('error', () => {});
    this.exit = new Promise((resolve) => {
      child.once('close', (code, signal) => resolve({ code, signal }));
    });
    const first = await Promise.race([
      new Promise((resolve) => {
        child.once('message', resolve);
      }),
      this.exit,
    ]);
    if (!('ready' in first)) throw new Error(`${this.name} did not start: ${this.stderr}`);
    this.ready = first;
    child.on('message', (message) => {
      for (const handler of this.handlers) handler(message);
    });
    return first;
  }

  get pid() {
    return this.child.pid;
  }

  tell(command) {
    if (this.child.connected) this.child.send(command);
  }

  /** The next message with this key. */
  hear(key) {
    return new Promise((resolve, reject) => {
      const handler = (message) => {
        if (!(key in message)) return;
        this.handlers.splice(this.handlers.indexOf(handler), 1);
        resolve(message[key]);
      };
      this.handlers.push(handler);
      this.exit.then(() => reject(new Error(`${this.name} has ended: ${this.stderr}`)));
    });
  }

  async kill() {
    this.child.kill('SIGKILL');
    await this.exit;
  }

  async standStill(ms) {
    const standstill = [nowMs(), Number.POSITIVE_INFINITY];
    this.standstills.push(standstill);
    this.child.kill('SIGSTOP');
    await pause(ms);
    this.child.kill('SIGCONT');
    standstill[1] = nowMs();
  }

  /** Asks it to end, and answers what is wrong with how it did. */
  async end() {
    if (this.kind === 'driver') this.tell('end');
    else this.child.kill('SIGTERM');
    const late = pause(PATIENCE_MS).then(() => 'late');
    const outcome = await Promise.race([this.exit, late]);
    if (outcome === 'late') {
      await this.kill();
      return [`${this.name} did not end when it was asked to`];
    }
    return outcome.code === 0 ? [] : [`${this.name} ended with ${outcome.code ?? outcome.signal}: ${this.stderr}`];
  }
}

/** All the processes of a run. */
export class Cast {
  directory = mkdtempSync(join(tmpdir(), 'kvss-traffic-'));
  members = [];
  /** Of drivers that have died, and of those that live: what they have counted. */
  #past = {};
  #present = new Map();
  late = [];

  constructor({ seed = 1, canary = false } = {}) {
    // What they leave behind in the directory for temporary files is found there.
    const env = { ...process.env, TMPDIR: this.directory };
    const add = (name, kind, script, argsOf, options = {}) => {
      const member = new Member(name, kind, script, argsOf, options, env);
      this.members.push(member);
      return member;
    };
    const budgets = BYTES_PER_TOKEN.map((bytes) => bytes * COLUMN_TOKENS * CAPACITY_COLUMNS * SESSIONS).join();
    const daemons = [0, 1].map((index) => {
      const socket = join(this.directory, `daemon-${index}`);
      const flags = ['--socket', socket, '--shards', '4', '--budget', budgets, '--log-level', 'error'];
      const member = add(`daemon ${index}`, 'daemon', MAIN, () => [
        ...['serve', ...flags, '--http-port', '0', '--no-huge-pages', '--hio-mode', 'buffered'],
        // The next one listens where the one before did: its drivers know no other place.
        ...['--tcp-port', String(member.ready?.streamPorts[0] ?? 0)],
      ]);
      return { member, socket, tcp: () => `tcp://127.0.0.1:${member.ready.streamPorts[0]}` };
    });
    const wafer = add('wafer', 'wafer', MAIN, () => [
      ...['wafer', '--listen', `tcp://127.0.0.1:${wafer.ready?.ports[0] ?? 0}`, '--memory-columns', '160'],
      ...['--bytes-per-token', BYTES_PER_TOKEN.join(), '--log-level', 'error'],
    ]);
    const [first, second] = daemons;
    const stripe = BYTES_PER_TOKEN;
    const drivers = {
      shm: () => ({ daemons: [first.socket, second.socket], striping: 'within', bytesPerToken: stripe }),
      tcp: () => ({ daemons: [first.tcp(), second.tcp()], striping: 'across', bytesPerToken: [...stripe, ...stripe] }),
      mixed: () => ({
        daemons: [first.socket, second.tcp()],
        striping: 'within',
        bytesPerToken: stripe,
        checksums: true,
      }),
      carried: () => ({
        daemons: [second.tcp()],
        striping: 'across',
        bytesPerToken: stripe,
        wafer: `tcp://127.0.0.1:${wafer.ready.ports[0]}`,
      }),
    };
    for (const [index, [name, settingsOf]] of Object.entries(drivers).entries()) {
      const common = { capacityColumns: CAPACITY_COLUMNS, deadlineMs: DEADLINE_MS, checksums: false, canary };
      const member = add(
        `driver over ${name}`,
        'driver',
        DRIVER,
        () => {
          member.starts = (member.starts ?? 0) + 1;
          const settings = { ...common, ...settingsOf(), seed: seed * 100 + index * 10 + member.starts };
          return [INDEX, JSON.stringify(settings)];
        },
        { execArgv: ['--expose-gc'] },
      );
    }
  }

  of(kind) {
    return this.members.filter((member) => member.kind === kind);
  }

  /** Starts all of them, has them work for a moment, and notes what each holds when it is at rest. */
  async start() {
    for (const member of this.members) await this.startMember(member);
    for (const member of [...this.of('daemon'), ...this.of('wafer')]) member.baseline = census(member.pid);
    this.work();
    await pause(1_500);
    const wrong = await this.rest();
    if (wrong.length > 0) throw new Error(`wrong before anything was done to them: ${wrong.join('; ')}`);
  }

  async startMember(member) {
    if (member.kind === 'driver') this.#bury(member);
    await member.start();
    if (member.kind === 'driver') member.handlers = [(message) => this.#note(member, message)];
    else member.handlers = [];
  }

  /** What a driver that has died has counted stays counted. */
  #bury(member) {
    const totals = this.#present.get(member);
    this.#present.delete(member);
    if (totals) this.#past = sumOf([this.#past, totals]);
  }

  #note(member, { totals, late }) {
    if (!totals) return;
    this.#present.set(member, totals);
    for (const [what, deadlineMs, from, to] of late) {
      // A process that stands still cannot answer itself.
      const still = member.standstills.reduce((sum, [since, until]) => sum + overlap(since, until, from, to), 0);
      this.late.push({ who: member.name, what, deadlineMs, tookMs: to - from - still });
    }
  }

  get totals() {
    return sumOf([this.#past, ...this.#present.values()]);
  }

  work() {
    for (const driver of this.of('driver')) driver.tell('work');
  }

  /** Has all drivers come to rest, and answers with everything that somebody holds and should not. */
  async rest() {
    const wrong = [];
    await Promise.all(
      this.of('driver').map(async (driver) => {
        const resting = driver.hear('resting');
        driver.tell('rest');
        const outcome = await Promise.race([resting, pause(PATIENCE_MS)]);
        if (!outcome) wrong.push(`${driver.name} did not come to rest`);
        else if (!driver.baseline) driver.baseline = outcome;
        else wrong.push(...more(driver.baseline, outcome).map((what) => `${driver.name} has ${what}`));
      }),
    );
    for (const daemon of this.of('daemon')) {
      const giveUp = nowMs() + PATIENCE_MS;
      let kept = await keptBy(daemon);
      while (kept.length > 0 && nowMs() < giveUp) {
        await pause(20);
        kept = await keptBy(daemon);
      }
      wrong.push(...kept.map((what) => `${daemon.name} has ${what}`));
    }
    for (const wafer of this.of('wafer')) {
      const giveUp = nowMs() + PATIENCE_MS;
      while (more(wafer.baseline, census(wafer.pid)).length > 0 && nowMs() < giveUp) await pause(20);
      wrong.push(...more(wafer.baseline, census(wafer.pid)).map((what) => `${wafer.name} has ${what}`));
    }
    return wrong;
  }

  /** Ends all of them, drivers first, and answers with what was wrong and what they have left behind. */
  async end() {
    const wrong = [];
    for (const kind of ['driver', 'wafer', 'daemon']) {
      wrong.push(...(await Promise.all(this.of(kind).map((member) => member.end()))).flat());
    }
    wrong.push(...readdirSync(this.directory).map((name) => `the file ${name} is left`));
    this.dispose();
    return wrong;
  }

  dispose() {
    for (const { child } of this.members) child?.kill('SIGKILL');
    if (existsSync(this.directory)) rmSync(this.directory, { recursive: true, force: true });
  }
}

const overlap = (since, until, from, to) => Math.max(0, Math.min(until, to) - Math.max(since, from));

function sumOf(all) {
  const sum = {};
  for (const totals of all) {
    for (const [name, value] of Object.entries(totals)) {
      sum[name] = name === 'longestMs' ? Math.max(sum[name] ?? 0, value) : (sum[name] ?? 0) + value;
    }
  }
  return sum;
}

/** Figures of a daemon, each the sum over its shards. */
export async function metricsOf(daemon) {
  const answer = await fetch(`${daemon.ready.adminUrl}/metrics`, { headers: { connection: 'close' } });
  const sums = {};
  for (const line of (await answer.text()).split('\n')) {
    const [, name, value] = /^(\w+)(?:\{[^}]*\})? (\S+)$/.exec(line) ?? [];
    if (name) sums[name] = (sums[name] ?? 0) + Number(value);
  }
  return sums;
}

/** What a daemon without sessions still has of them. */
async function keptBy(daemon) {
  const figures = await metricsOf(daemon);
  const lost = figures.kvss_budget_bytes - figures.kvss_free_bytes;
  return [
    ...(figures.kvss_sessions > 0 ? [`${figures.kvss_sessions} sessions`] : []),
    ...(lost > 0 ? [`${lost} bytes that are not free`] : []),
    ...(figures.kvss_stored_slots > 0 ? [`${figures.kvss_stored_slots} stored slots`] : []),
    ...more(daemon.baseline, census(daemon.pid)),
  ];
}

/** Bytes that a process takes: of its own, mapped together with others, and in memory objects that it has open. */
export function memoryOf(pid) {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  const bytes = (name) => 1024 * Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? 0);
  const objects = new Map();
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    const path = `/proc/${pid}/fd/${fd}`;
    try {
      if (!readlinkSync(path).startsWith('/memfd:kvss-')) continue;
      const { ino, blocks } = statSync(path);
      objects.set(ino, 512 * blocks);
    } catch {
      // Closed meanwhile.
    }
  }
  return {
    anonymous: bytes('Pss_Anon'),
    mapped: bytes('Pss_Shmem'),
    objects: [...objects.values()].reduce((sum, each) => sum + each, 0),
  };
}
