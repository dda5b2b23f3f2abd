import { constants } from 'node:os';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type Actor,
  awaitCensus,
  type CallFate,
  census,
  copyPackage,
  Daemon,
  EVERY,
  expectSound,
  expectWhole,
  PATIENCE_MS,
  type Report,
  removePackage,
  spawnDriver,
  spawnWafer,
  startWafer,
} from './actors.js';
import { Scratch } from './support.js';

/**
 * Call n of a function of the kernel fails, for n = 1, 2, ... until there are no more: see test/native/fail_nth.cc. Only
 * that one fails, so everything has to be whole again in the next round. `npm test` takes one call of each function,
 * `npm run test:steps` all of them.
 */

const { ENOMEM, ENOSPC, EMFILE, ENOBUFS, ECONNRESET, EAGAIN } = constants.errno;
const MEMORY = [
  ['memfd_create', ENOMEM],
  ['ftruncate', ENOMEM],
  ['fallocate', ENOSPC],
  ['pwrite', ENOMEM],
] as const;
const MAPPINGS = [
  ['mmap', ENOMEM],
  ['madvise', EAGAIN],
] as const;
const EVENTS = [
  ['eventfd', EMFILE],
  ['epoll_create1', EMFILE],
  ['epoll_ctl', ENOSPC],
] as const;
const PACKETS = [
  ['sendmsg', ENOBUFS],
  ['recvmsg', ECONNRESET],
] as const;
const STREAMS = [
  ['accept4', EMFILE],
  ['sendmsg', ENOBUFS],
  ['recv', ECONNRESET],
] as const;
const OPENINGS = [
  ['socket', EMFILE],
  ['timerfd_create', EMFILE],
] as const;

type Call = readonly [call: string, errno: number];

/** Has call after call fail. `attempt` answers with the process, once what it and the others did has been looked at. */
async function eachCall(calls: readonly Call[], attempt: (fate: CallFate) => Promise<Actor>): Promise<void> {
  const failed: string[] = [];
  for (const [call, errno] of calls) {
    let at = EVERY > 0 ? 1 : 2;
    for (let more = true; more; at += Math.max(1, EVERY)) {
      const actor = await attempt({ call, at, errno });
      more = actor.events().length > 0 && EVERY > 0;
      if (actor.events().length > 0) failed.push(call);
    }
  }
  expect(failed.length).toBeGreaterThan(0);
  const counts = [...new Set(failed)].map((call) => `${call} ${failed.filter((each) => each === call).length}`);
  console.log(`${expect.getState().currentTestName}: ${counts.join(', ')}`);
}

/** A round in which the call may have failed: an outcome that is clean. */
function expectClean(report: Report | undefined): void {
  if (report?.refused !== undefined) expect(report.refused).toMatch(/^KVSS_/);
  else expectSound(report as Report);
}

async function round(driver: Actor): Promise<Report> {
  driver.tell('go');
  return (await driver.says()) as Report;
}

beforeAll(copyPackage);
afterAll(removePackage);

describe.each([
  ['shm', [...MEMORY, ...MAPPINGS, ...EVENTS, ...PACKETS, ['pipe2', EMFILE], ['accept4', EMFILE], ['fcntl', EMFILE]]],
  ['tcp', [...MEMORY.slice(0, 3), ...MAPPINGS, ...EVENTS, ...STREAMS]],
] as [link: 'shm' | 'tcp', calls: Call[]][])(
  'a daemon over %s of which one call of the kernel fails',
  (link, calls) => {
    test('does not start and says why, or serves on; nothing is lost by it', { timeout: PATIENCE_MS }, async () => {
      using scratch = new Scratch();
      await using driver = spawnDriver(scratch, link, 'connecting');
      await driver.says();
      await eachCall(calls, async (fate) => {
        const actor = Daemon.spawn(scratch, link, fate);
        const daemon = await Daemon.ready(actor);
        if (!daemon) {
          const { code, signal, stderr } = await actor.finished;
          expect({ fate, code, signal, stderr }).toMatchObject({
            code: 1,
            signal: null,
            stderr: expect.stringMatching(/^kvss: /),
          });
          return actor;
        }
        const whole = await daemon.metric('kvss_budget_bytes');
        expectClean(await round(driver));
        const again = await round(driver);
        // The call may be one of the second round.
        if (again.refused !== undefined || again.stored < 4) expectWhole(await round(driver));
        await daemon.awaitMetric('kvss_sessions', 0);
        await daemon.awaitMetric('kvss_free_bytes', whole);
        actor.child.kill('SIGTERM');
        expect({ fate, ...(await actor.finished) }).toMatchObject({ fate, code: 0, signal: null });
        return actor;
      });
      driver.tell('close');
      expect(await driver.finished).toMatchObject({ code: 0, stderr: '' });
    });
  },
);

describe.each([
  ['shm', [...MAPPINGS, ...EVENTS, ...PACKETS, OPENINGS[0]]],
  ['tcp', [...EVENTS, ...STREAMS.slice(1), ...OPENINGS]],
  ['carried', [...EVENTS, ...STREAMS.slice(1), ...OPENINGS]],
] as [link: 'shm' | 'tcp' | 'carried', calls: Call[]][])(
  'a driver over %s of which one call of the kernel fails',
  (link, calls) => {
    test('says why, or has misses; the next round is whole, and the daemon loses nothing', {
      timeout: PATIENCE_MS,
    }, async () => {
      using scratch = new Scratch();
      await using daemonActor = Daemon.spawn(scratch, link);
      const daemon = (await Daemon.ready(daemonActor)) as Daemon;
      const wafer = await startWafer(scratch, link);
      const whole = await daemon.metric('kvss_budget_bytes');
      let before: Record<string, number> | undefined;
      await eachCall(calls, async (fate) => {
        const driver = spawnDriver(scratch, link, 'connecting', fate);
        await driver.says();
        expectClean(await round(driver));
        let again = await round(driver);
        if (again.refused !== undefined || again.stored < 4) again = await round(driver);
        expectWhole(again);
        driver.tell('close');
        expect({ fate, ...(await driver.finished) }).toMatchObject({ fate, code: 0, stderr: '' });
        await daemon.awaitMetric('kvss_sessions', 0);
        await daemon.awaitMetric('kvss_free_bytes', whole);
        before ??= census(daemon.actor.pid);
        await awaitCensus(daemon.actor.pid, before);
        return driver;
      });
      await wafer?.[Symbol.asyncDispose]();
    });
  },
);

describe('a wafer of which one call of the kernel fails', () => {
  test('does not start and says why, or carries on; nothing is lost by it', { timeout: PATIENCE_MS }, async () => {
    using scratch = new Scratch();
    await using daemonActor = Daemon.spawn(scratch, 'carried');
    const daemon = (await Daemon.ready(daemonActor)) as Daemon;
    const whole = await daemon.metric('kvss_budget_bytes');
    await using driver = spawnDriver(scratch, 'carried', 'connecting');
    await driver.says();
    await eachCall([...EVENTS, ...STREAMS, ...OPENINGS], async (fate) => {
      const wafer = spawnWafer(scratch, fate);
      if (!(await wafer.says())) {
        const { code, signal, stderr } = await wafer.finished;
        expect({ fate, code, signal, stderr }).toMatchObject({
          code: 1,
          signal: null,
          stderr: expect.stringMatching(/^kvss: /),
        });
        return wafer;
      }
      expectClean(await round(driver));
      let again = await round(driver);
      if (again.refused !== undefined || again.stored < 4) again = await round(driver);
      expectWhole(again);
      await daemon.awaitMetric('kvss_sessions', 0);
      await daemon.awaitMetric('kvss_free_bytes', whole);
      wafer.child.kill('SIGTERM');
      expect({ fate, ...(await wafer.finished) }).toMatchObject({ fate, code: 0, signal: null });
      return wafer;
    });
    driver.tell('close');
    expect(await driver.finished).toMatchObject({ code: 0, stderr: '' });
  });
});

/**
 * Memory of a few bytes that cannot be had: Node itself ends then, and so may a process of ours. What counts is that the
 * others lose nothing by it.
 */
describe.each(['shm', 'tcp'] as const)('an allocation that fails, over %s,', (link) => {
  const NEW: Call = ['operator new', ENOMEM];
  /** Which allocations fail: all of them, or some at the beginning and fewer and fewer later. */
  const attempts = function* () {
    for (let at = 1; ; at = EVERY > 0 ? at + EVERY : 4 * at) yield { call: NEW[0], at, errno: NEW[1] };
  };

  test('in a driver: it goes on or ends; another driver and the daemon lose nothing', {
    timeout: PATIENCE_MS,
  }, async () => {
    using scratch = new Scratch();
    await using daemonActor = Daemon.spawn(scratch, link);
    const daemon = (await Daemon.ready(daemonActor)) as Daemon;
    const whole = await daemon.metric('kvss_budget_bytes');
    await using other = spawnDriver(scratch, link, 'connecting');
    await other.says();
    let failed = 0;
    let ended = 0;
    for (const fate of attempts()) {
      const driver = spawnDriver(scratch, link, 'connecting', fate);
      if (await driver.says()) {
        driver.tell('go');
        const report = (await driver.says()) as Report | undefined;
        if (report) expectClean(report);
        driver.tell('close');
      }
      await driver.finished;
      if (driver.ended?.signal) ended += 1;
      await daemon.awaitMetric('kvss_sessions', 0);
      await daemon.awaitMetric('kvss_free_bytes', whole);
      expectWhole(await round(other));
      await daemon.awaitMetric('kvss_sessions', 0);
      if (driver.events().length === 0) break;
      failed += 1;
    }
    expect(failed).toBeGreaterThan(0);
    console.log(`${expect.getState().currentTestName}: ${failed} allocations failed, ${ended} ended the driver`);
    other.tell('close');
    expect(await other.finished).toMatchObject({ code: 0, stderr: '' });
  });

  test('in a daemon: it serves on or ends; its driver has misses, and finds the next daemon', {
    timeout: PATIENCE_MS,
  }, async () => {
    using scratch = new Scratch();
    await using driver = spawnDriver(scratch, link, 'connecting');
    await driver.says();
    let failed = 0;
    let ended = 0;
    for (const fate of attempts()) {
      const actor = Daemon.spawn(scratch, link, fate);
      const daemon = await Daemon.ready(actor);
      if (daemon) expectClean(await round(driver));
      actor.child.kill('SIGTERM');
      const { signal } = await actor.finished;
      if (signal === 'SIGABRT') ended += 1;
      if (actor.events().length === 0) break;
      failed += 1;
    }
    expect(failed).toBeGreaterThan(0);
    console.log(`${expect.getState().currentTestName}: ${failed} allocations failed, ${ended} ended the daemon`);
    const actor = Daemon.spawn(scratch, link);
    expect(await Daemon.ready(actor)).toBeDefined();
    expectWhole(await round(driver));
    driver.tell('close');
    expect(await driver.finished).toMatchObject({ code: 0, stderr: '' });
    actor.child.kill('SIGTERM');
    await actor.finished;
  });
});
