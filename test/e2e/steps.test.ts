import { openSync, readdirSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type Actor,
  awaitCensus,
  census,
  copyPackage,
  Daemon,
  EVERY,
  expectSound,
  expectWhole,
  expectZeros,
  PATIENCE_MS,
  type Report,
  removePackage,
  SIGKILL,
  SIGSTOP,
  type StepFate,
  spawnDriver,
  spawnOther,
  spawnWafer,
  startWafer,
} from './actors.js';
import { Scratch, until } from './support.js';

/**
 * A process dies at step n of its work, or stands still there for a while, for n = 1, 2, ... until it gets through: see
 * native/base/step.h. `npm test` takes a few steps of each, `npm run test:steps` all of them, and with KVSS_EVERY_STEP=5
 * every fifth.
 */

/** More steps than any of them takes. */
const NEVER = 1_000_000_000;

/**
 * Has a process get its signal at one step after the other, and at last at none. `attempt` answers with the process, once
 * what it and the others did has been looked at.
 */
async function eachStep(name: string, signal: number, attempt: (fate: StepFate) => Promise<Actor>): Promise<void> {
  const first = await attempt({ step: 0, signal });
  expect(await first.finished).toMatchObject({ code: 0, stderr: '' });
  const counted = first.events().length;
  expect(counted).toBeGreaterThan(20);
  const places = new Map<string, number>();
  const take = async (step: number): Promise<boolean> => {
    const actor = await attempt({ step, signal });
    const outcome = await actor.finished;
    const [reached] = actor.events();
    if (reached === undefined || signal !== SIGKILL)
      expect({ step, ...outcome }).toMatchObject({ code: 0, stderr: '' });
    else expect({ step, signal: outcome.signal }).toEqual({ step, signal: 'SIGKILL' });
    if (reached === undefined) return false;
    const place = reached.replace(/^\d+ /, '');
    places.set(place, (places.get(place) ?? 0) + 1);
    return true;
  };
  // Threads run side by side, so the number of steps is not the same each time.
  if (EVERY > 0) for (let step = 1; await take(step); step += EVERY);
  else for (const part of signal === SIGKILL ? [0.3, 0.7] : [0.5]) await take(Math.floor(part * counted));
  if (EVERY > 0 || signal === SIGKILL) expect(await take(NEVER)).toBe(false);
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
const CASES = SIGNALS.flatMap(([what, signal]) => LINKS.map((link) => [what, link, signal] as const)).filter(
  // Those over a carrier are over streams as well.
  ([_what, link, signal]) => EVERY > 0 || signal === SIGKILL || link !== 'tcp',
);

beforeAll(copyPackage);
afterAll(removePackage);

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
