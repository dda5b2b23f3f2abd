import { describe, expect, test } from 'vitest';
import { Scratch, startChild, TestDaemon, until } from './support.js';

async function run(hazard: string, nodeFlags: string[] = []) {
  using scratch = new Scratch();
  await using daemon = await TestDaemon.start(scratch.file('s'));
  const outcome = await startChild('hazard.mjs', [daemon.socket, hazard], nodeFlags).finished;
  // However it ended: nothing of it is left in the daemon.
  await until(async () => (await daemon.metric('kvss_free_bytes')) === 2 * 8 * 2 ** 20);
  await daemon.awaitMetric('kvss_sessions', 0);
  return outcome;
}

const clean = { code: 0, signal: null, stderr: '' };

describe('an embedding process', () => {
  test('may exit while an evict is pending', async () => {
    expect(await run('exitWhilePending')).toMatchObject(clean);
  });

  test('may exit with driver, sequence and hit still open', async () => {
    expect(await run('exitWithEverythingOpen')).toMatchObject({ ...clean, stdout: '10\n' });
  });

  test('may die of its own error', async () => {
    const outcome = await run('uncaughtError');
    expect(outcome).toMatchObject({ code: 1, signal: null });
    expect(outcome.stderr).toContain('of the embedder');
  });

  test('may use the driver in a worker thread, and in the main thread after it', async () => {
    expect(await run('worker')).toMatchObject({ ...clean, stdout: '10\n0 10\n' });
  });

  test('may terminate a worker thread whose driver is at work', async () => {
    expect(await run('terminatedWorker')).toMatchObject({ ...clean, stdout: `${'1'.repeat(12)}\n` });
  });

  test('may exit while it reaches for a daemon that does not answer', async () => {
    expect(await run('exitWhileConnecting')).toMatchObject(clean);
  });

  test('may terminate a worker thread that reaches for daemons that do not answer', async () => {
    expect(await run('terminatedWhileConnecting')).toMatchObject({ ...clean, stdout: '1\n' });
  });

  test('is not held up by reaching for a dozen daemons that do not answer', async () => {
    expect(await run('manyConnecting')).toMatchObject({ ...clean, stdout: '0\n' });
  });

  test('may keep the event loop busy past a deadline: what was done in time counts', async () => {
    expect(await run('busyLoop')).toMatchObject({ ...clean, stdout: '10\n10\n' });
  });

  test('may attach twice: the two share nothing', async () => {
    expect(await run('attachedTwice')).toMatchObject({ ...clean, stdout: '10 10 10 10\n0 10\n' });
  });

  test('may close the driver, twice, while calls are pending: they end as misses', async () => {
    expect(await run('closedWhilePending')).toMatchObject({ ...clean, stdout: '0 0 0\n' });
  });

  test('may keep views of slots after everything else has been garbage-collected', async () => {
    expect(await run('garbageCollected', ['--expose-gc'])).toMatchObject({ ...clean, stdout: 'true\n' });
  });

  test('may drop a driver without closing it', async () => {
    expect(await run('droppedWithoutClose', ['--expose-gc'])).toMatchObject(clean);
  });

  test('may host the daemon as well', async () => {
    expect(await run('daemonInTheSameProcess')).toMatchObject({ ...clean, stdout: '10\n0 0\n' });
  });
});
