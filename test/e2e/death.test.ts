import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { type Hit, type RefillResult, SwDriver } from '../../src/index.js';
import { SubmitSegmentLayout } from '../../src/proto/generated.js';
import { type StampingRequest, StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { freeze, MODEL, message, Scratch, startChild, TestDaemon, until } from './support.js';

/** How many bytes of a memory object are not zero, read through a descriptor that this process opened itself. */
function nonZeroBytes(fd: number, length: number): number {
  const bytes = Buffer.alloc(length);
  const read = readSync(fd, bytes, 0, length, 0);
  return bytes.subarray(0, read).reduce((count, byte) => count + (byte === 0 ? 0 : 1), 0);
}

/** Refills a hit into the wafer, which checks what the driver vouches for. */
async function refill(hit: Hit, request: StampingRequest): Promise<RefillResult> {
  const result = await hit.refill(request.sink);
  request.accept(result.columns);
  return result;
}

const tokensOf = (seed: number, columns: number) =>
  Uint32Array.from({ length: columns * 64 }, (_, at) => Math.imul(at + 1, seed * 2_654_435_761));

describe('kill -9 of a driver in the middle of an evict', () => {
  test('gives its memory back, zeroed, within a second, and others notice nothing', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { budget: '16MiB' });
    const other = startChild('driver.mjs', [daemon.socket, 'globex', 'loop']);
    await message(other.child);
    const freeBefore = await daemon.metric('kvss_free_bytes');
    const grantsBefore = new Set(daemon.memoryObjects('kvss-grant'));

    const victim = startChild('driver.mjs', [daemon.socket, 'acme', 'evict-and-hang']);
    expect(await message(victim.child)).toEqual({ written: 150 });
    expect(await daemon.metric('kvss_free_bytes')).toBeLessThan(freeBefore);
    const grants = daemon.memoryObjects('kvss-grant').filter((path) => !grantsBefore.has(path));
    expect(grants).toHaveLength(2);
    // As a process that still has the memory would see it.
    const kept = grants.map((path) => openSync(path, 'r'));
    for (const fd of kept) expect(nonZeroBytes(fd, 64 * 1024)).toBeGreaterThan(1000);

    const killed = performance.now();
    victim.child.kill('SIGKILL');
    await until(async () => (await daemon.metric('kvss_free_bytes')) === freeBefore);
    const tookMs = performance.now() - killed;
    // The promise is one second. The bound is part of it, and generous against a busy machine.
    expect(tookMs).toBeLessThan(1000);
    for (const fd of kept) expect(nonZeroBytes(fd, 1 << 20)).toBe(0);

    other.child.send('stop');
    const reports: Record<string, unknown>[] = [];
    other.child.on('message', (report) => reports.push(report as Record<string, unknown>));
    expect(await other.finished).toMatchObject({ code: 0, stderr: '' });
    const last = reports.at(-1) as Record<string, number>;
    expect(last).toMatchObject({ done: true, mismatches: 0, downs: 0 });
    expect(last.hits).toBeGreaterThan(0);
  });
});

describe('kill -9 of the daemon in the middle of a refill', () => {
  test('is a miss within the deadline, and the driver works again after a restart', async () => {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    const wafer = new StampingRuntime(64);
    const tokens = tokensOf(3, 40);
    await using driver = await (async () => {
      await using daemon = await TestDaemon.start(socket);
      const driver = await SwDriver.connect({ daemons: [socket], model: MODEL, deadlineMs: 500 });
      const sequence = driver.openSequence({ isolationId: 'acme' });
      sequence.match(tokens).release();
      const { source, sink } = wafer.request('acme', tokens);
      expect(await sequence.evict(source)).toMatchObject({ stored: 40, present: 0, dropped: 0 });

      const hit = driver.openSequence({ isolationId: 'acme' }).match(tokens);
      expect(hit.columns).toBe(40);
      let columnsRead = 0;
      const down = new Promise((resolve) => driver.once('down', resolve));
      const result = await hit.refill({
        async read(column, pieces) {
          if (!('read' in sink)) throw new Error('unexpected sink');
          await sink.read(column, pieces);
          columnsRead += 1;
          if (columnsRead === 10) {
            daemon.kill('SIGKILL');
            await down;
          }
        },
      });
      // The tenth column was being read when its shard died: it does not count any more.
      expect(result).toMatchObject({ columns: 9, tokens: 9 * 64 });
      return driver;
    })();

    // Without a daemon: everything is a miss, nothing throws.
    const alone = driver.openSequence({ isolationId: 'acme' });
    const miss = alone.match(tokens);
    expect(miss.tokens).toBe(0);
    expect(await refill(miss, wafer.request('acme', tokens))).toMatchObject({ columns: 0, tokens: 0 });
    expect(await alone.evict(wafer.request('acme', tokens).source)).toMatchObject({
      stored: 0,
      present: 0,
      dropped: 40,
    });
    expect(driver.capacityColumns).toBe(0);

    const up = new Promise((resolve) => driver.once('up', resolve));
    await using restarted = await TestDaemon.start(socket);
    await up;
    expect(restarted.pid).toBeGreaterThan(0);
    const again = driver.openSequence({ isolationId: 'acme' });
    expect(again.match(tokens).tokens).toBe(0);
    const request = wafer.request('acme', tokens);
    expect((await again.evict(request.source)).stored).toBe(40);
    const hit = again.match(tokens);
    expect(await refill(hit, request)).toMatchObject({ columns: 40, tokens: 40 * 64 });
    expect(wafer.stats).toMatchObject({ mismatches: 0, bytesVerified: 40 * 64 * (16 + 32) });
  });

  test('does not stop a driver process that is at work all the time', async () => {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    const first = await TestDaemon.start(socket);
    const { child, finished } = startChild('driver.mjs', [socket, 'acme', 'loop']);
    await message(child);
    await message(child);
    first.kill('SIGKILL');
    await first.finished;
    await using second = await TestDaemon.start(socket);
    await until(async () => (await second.metric('kvss_refills_total')) > 0);
    child.send('stop');
    const reports: Record<string, number>[] = [];
    child.on('message', (report) => reports.push(report as Record<string, number>));
    expect(await finished).toMatchObject({ code: 0, stderr: '' });
    expect(reports.at(-1)).toMatchObject({ done: true, mismatches: 0, downs: 1, ups: 1 });
    // One deadline for the refill and one for the evict, and time for a busy machine.
    expect(reports.at(-1)?.worstMs).toBeLessThan(5_000);
  });
});

describe('a daemon that is stopped and not dead', () => {
  test('makes refills and evicts end as misses at their deadline, and goes on where it was afterwards', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    await using driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL, deadlineMs: 200 });
    const wafer = new StampingRuntime(64);
    const tokens = tokensOf(5, 20);
    const request = wafer.request('acme', tokens);
    const sequence = driver.openSequence({ isolationId: 'acme' });
    sequence.match(tokens).release();
    await sequence.evict(request.source);

    await daemon.freeze();
    const hit = sequence.match(tokens);
    expect(hit.columns).toBe(20);
    expect(await refill(hit, request)).toMatchObject({ columns: 0, tokens: 0 });
    hit.release();
    const more = tokensOf(6, 10);
    const stalled = driver.openSequence({ isolationId: 'acme' });
    stalled.match(more).release();
    expect(await stalled.evict(wafer.request('acme', more).source)).toMatchObject({
      stored: 0,
      present: 0,
      dropped: 10,
    });

    daemon.kill('SIGCONT');
    // The driver tries nothing new until something that it waits for has finished.
    await until(() => {
      const probe = sequence.match(tokens);
      probe.release();
      return probe.columns === 20;
    });
    const later = sequence.match(tokens);
    expect(await refill(later, request)).toMatchObject({ columns: 20, tokens: 20 * 64 });
    later.release();
    expect((await stalled.evict(wafer.request('acme', more).source)).stored).toBe(10);
    expect(wafer.stats).toMatchObject({ mismatches: 0, bytesVerified: 20 * 64 * (16 + 32) });
  });
});

describe('a daemon that takes its memory away while a slot is read in place', () => {
  test('is noticed after the reading: the column does not count, and the hit says that it no longer holds', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    await using driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
    const wafer = new StampingRuntime(64);
    const tokens = tokensOf(8, 10);
    const sequence = driver.openSequence({ isolationId: 'acme' });
    sequence.match(tokens).release();
    await sequence.evict(wafer.request('acme', tokens).source);
    const hit = sequence.match(tokens);
    let reads = 0;
    const result = await hit.refill({
      read(_column, pieces) {
        reads += 1;
        if (reads < 4) return;
        expect(hit.held).toBe(true);
        daemon.kill('SIGTERM');
        // Nothing of the event loop runs in here, so only the memory itself can tell.
        const giveUp = performance.now() + 30_000;
        while ((pieces[0]?.[0] !== 0 || pieces[0]?.[20] !== 0) && performance.now() < giveUp) {}
        expect(hit.held).toBe(false);
      },
    });
    expect(result).toMatchObject({ columns: 3, tokens: 3 * 64 });
    expect(hit.release()).toBe(false);
  });
});

/** Ways in which a session ends while its driver stands still. The answer is the daemon that there is afterwards. */
const ENDINGS: [string, (daemon: TestDaemon, submits: string[], socket: string) => Promise<TestDaemon>][] = [
  [
    'the daemon has ended the session',
    async (daemon, submits) => {
      // As if the driver had written nonsense into its rings.
      for (const path of submits) {
        const fd = openSync(path, 'r+');
        writeSync(fd, Buffer.alloc(8, 0x5a), 0, 8, SubmitSegmentLayout.offset.evictTail);
        closeSync(fd);
      }
      await daemon.awaitMetric('kvss_sessions', 0);
      return daemon;
    },
  ],
  [
    'the daemon was shut down and started again',
    async (daemon, _submits, socket) => {
      daemon.kill('SIGTERM');
      expect((await daemon.finished).code).toBe(0);
      return TestDaemon.start(socket);
    },
  ],
  [
    'the daemon was killed and started again',
    async (daemon, _submits, socket) => {
      daemon.kill('SIGKILL');
      await daemon.finished;
      return TestDaemon.start(socket);
    },
  ],
];

describe('a driver that stands still with pins, and in the middle of writing into its slots,', () => {
  test.each(ENDINGS)('touches nothing of the next owner when it goes on after %s', async (_how, end) => {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    const first = await TestDaemon.start(socket);
    const victim = startChild('driver.mjs', [socket, 'acme', 'write-on']);
    try {
      expect(await message(victim.child)).toEqual({ pinned: 40, slots: 80 });
      await freeze(victim.child.pid as number);
      await using _second = await end(first, first.memoryObjects('kvss-submit'), socket);

      // All the memory that there is, also what the one that stands still had.
      await using driver = await SwDriver.connect({ daemons: [socket], model: MODEL, deadlineMs: 10_000 });
      expect(driver.capacityColumns).toBe(4_096);
      const wafer = new StampingRuntime(64);
      const tokens = tokensOf(11, 1_000);
      const request = wafer.request('globex', tokens);
      const sequence = driver.openSequence({ isolationId: 'globex' });
      sequence.match(tokens).release();
      expect((await sequence.evict(request.source)).stored).toBe(1_000);

      victim.child.kill('SIGCONT');
      // It has written on, and finds out that its pins do not hold.
      expect(await message(victim.child)).toEqual({ held: false, columns: 0, released: false });
      using hit = driver.openSequence({ isolationId: 'globex' }).match(tokens);
      expect(await refill(hit, request)).toMatchObject({ columns: 1_000 });
      expect(wafer.stats).toMatchObject({ mismatches: 0, bytesVerified: 1_000 * 64 * (16 + 32) });
      victim.child.send('stop');
      expect(await message(victim.child)).toMatchObject({ done: true, stored: 0 });
      expect(await victim.finished).toMatchObject({ code: 0, stderr: '' });
    } finally {
      victim.child.kill('SIGKILL');
      await first[Symbol.asyncDispose]();
    }
  });
});
