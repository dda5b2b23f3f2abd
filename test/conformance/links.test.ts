import { describe, expect, test } from 'vitest';
import { type Hit, SwDriver, type SwDriverOptions } from '../../src/index.js';
import { type StampingRequest, StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { Scratch, TestDaemon, until } from '../e2e/support.js';

/** Every way to reach a daemon has to do the same. */
const LINKS = {
  'shared memory': { flags: [], address: (daemon: TestDaemon) => daemon.socket, options: {} },
  'a Unix socket': {
    flags: ['--stream-socket', '@streams'],
    address: (daemon: TestDaemon) => `unix:${daemon.socket}.streams`,
    options: {},
  },
  TCP: {
    flags: ['--tcp-port', '0'],
    address: (daemon: TestDaemon) => `tcp://127.0.0.1:${daemon.streamPorts[0]}`,
    options: {},
  },
  'TCP with checksums': {
    flags: ['--tcp-port', '0'],
    address: (daemon: TestDaemon) => `tcp://127.0.0.1:${daemon.streamPorts[0]}`,
    options: { checksums: true },
  },
  'TCP with three streams each way and room for three columns on their way': {
    flags: ['--tcp-port', '0'],
    address: (daemon: TestDaemon) => `tcp://127.0.0.1:${daemon.streamPorts[0]}`,
    options: { wioStreams: 3, placeBytes: 3 * 32 * 64, ringEntries: 8 },
  },
} as const;

const MODEL = { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: [16, 32] };

const tokensOf = (seed: number, columns: number) =>
  Uint32Array.from({ length: columns * 64 }, (_, at) => Math.imul(at + 1, seed * 2_654_435_761));

async function refill(hit: Hit, request: StampingRequest): Promise<number> {
  const { columns } = await hit.refill(request.sink);
  request.accept(columns);
  hit.release();
  return columns;
}

describe.each(Object.entries(LINKS))('over %s', (_name, link) => {
  async function box(
    run: (driver: SwDriver, daemon: TestDaemon, wafer: StampingRuntime) => Promise<void>,
    options: Partial<SwDriverOptions> & { budget?: string } = {},
  ): Promise<void> {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    const { budget = '8MiB', ...driverOptions } = options;
    const flags = link.flags.map((flag) => (flag === '@streams' ? `${socket}.streams` : flag));
    await using daemon = await TestDaemon.start(socket, { budget, flags });
    await using driver = await SwDriver.connect({
      daemons: [link.address(daemon)],
      model: MODEL,
      deadlineMs: 20_000,
      ...link.options,
      ...driverOptions,
    });
    const wafer = new StampingRuntime(64);
    await run(driver, daemon, wafer);
    expect(wafer.stats.mismatches).toBe(0);
    await driver.close();
    // Everything that was granted comes back.
    const whole = await daemon.metric('kvss_budget_bytes');
    await until(async () => (await daemon.metric('kvss_free_bytes')) === whole);
  }

  test('what was evicted comes back byte for byte, to its tenant only', () =>
    box(async (driver, daemon, wafer) => {
      const tokens = tokensOf(1, 50);
      const sequence = driver.openSequence({ isolationId: 'acme' });
      const request = wafer.request('acme', tokens);
      sequence.match(tokens).release();
      expect(await sequence.evict(request.source)).toMatchObject({ stored: 50, present: 0, dropped: 0 });
      expect(await refill(driver.openSequence({ isolationId: 'acme' }).match(tokens), request)).toBe(50);
      expect(wafer.stats.bytesVerified).toBe(50 * 64 * (16 + 32));
      expect(driver.openSequence({ isolationId: 'globex' }).match(tokens).columns).toBe(0);
      await daemon.awaitMetric('kvss_evict_bytes_total', 50 * 64 * (16 + 32));
      expect(await daemon.metric('kvss_tenant_alarms_total')).toBe(0);
    }));

  test('a runtime may keep the bytes in memory of its own, both ways', () =>
    box(async (driver) => {
      const tokens = tokensOf(2, 9);
      const own = driver.pieceBytes.map((bytes) => new Uint8Array(9 * bytes));
      for (const [shard, memory] of own.entries()) for (const at of memory.keys()) memory[at] = at * 7 + shard;
      const back = driver.pieceBytes.map((bytes) => new Uint8Array(9 * bytes));
      const place = (memory: Uint8Array[]) => (column: { index: number }, shard: number) => {
        const bytes = driver.pieceBytes[shard] as number;
        return (memory[shard] as Uint8Array).subarray(column.index * bytes, (column.index + 1) * bytes);
      };
      const sequence = driver.openSequence({ isolationId: 'acme' });
      sequence.match(tokens).release();
      expect((await sequence.evict({ locate: place(own) })).stored).toBe(9);
      const hit = sequence.match(tokens);
      expect((await hit.refill({ locate: place(back) })).columns).toBe(9);
      hit.release();
      expect(back).toEqual(own);
    }));

  test('overwritten slots never show what was there before', () =>
    box(
      async (driver, _daemon, wafer) => {
        for (let round = 0; round < 60; round += 1) {
          // Two of each three prompts are new, the third comes again and again.
          const seed = round % 3 === 0 ? 1 : round + 2;
          const tokens = tokensOf(seed, 4 + (seed % 9));
          const tenant = `tenant ${seed % 3}`;
          const sequence = driver.openSequence({ isolationId: tenant });
          const request = wafer.request(tenant, tokens);
          await refill(sequence.match(tokens), request);
          await sequence.evict(request.source);
        }
        expect(driver.stats.columnsDeleted).toBeGreaterThan(100);
        expect(wafer.stats.bytesVerified).toBeGreaterThan(0);
      },
      { capacityColumns: 20 },
    ));

  test('many sequences at once do not get in each other’s way', () =>
    box(async (driver, _daemon, wafer) => {
      await Promise.all(
        Array.from({ length: 12 }, async (_, lane) => {
          for (let round = 0; round < 6; round += 1) {
            const tokens = tokensOf(1 + (lane % 4), 10 + 5 * round);
            const sequence = driver.openSequence({ isolationId: 'acme' });
            const request = wafer.request('acme', tokens);
            await refill(sequence.match(tokens), request);
            await sequence.evict(request.source);
          }
        }),
      );
      expect(driver.columns).toBe(4 * 35);
      expect(driver.stats.refillMisses).toBe(0);
    }));

  test('pieces larger than any socket buffer travel whole', () =>
    box(
      async (driver, _daemon, wafer) => {
        const tokens = tokensOf(3, 5);
        const sequence = driver.openSequence({ isolationId: 'acme' });
        const request = wafer.request('acme', tokens);
        sequence.match(tokens).release();
        expect((await sequence.evict(request.source)).stored).toBe(5);
        expect(await refill(sequence.match(tokens), request)).toBe(5);
        expect(wafer.stats.bytesVerified).toBe(5 * 64 * 3 * 2 ** 16);
      },
      { model: { ...MODEL, bytesPerToken: [2 ** 16, 2 ** 17] }, budget: '64MiB', placeBytes: 3 * 64 * 2 ** 17 },
    ));

  test('a tenant that is forgotten is gone, and its bytes are scrubbed', () =>
    box(async (driver, daemon, wafer) => {
      const tokens = tokensOf(4, 12);
      for (const tenant of ['acme', 'globex']) {
        const sequence = driver.openSequence({ isolationId: tenant });
        sequence.match(tokens).release();
        await sequence.evict(wafer.request(tenant, tokens).source);
      }
      expect(await driver.forget({ isolationId: 'acme' })).toBe(12);
      expect(driver.openSequence({ isolationId: 'acme' }).match(tokens).columns).toBe(0);
      await daemon.awaitMetric('kvss_scrubbed_bytes_total', 12 * 64 * (16 + 32));
      const request = wafer.request('globex', tokens);
      expect(await refill(driver.openSequence({ isolationId: 'globex' }).match(tokens), request)).toBe(12);
    }));

  test('a writer that fails half-way leaves what it had written, and nothing else', () =>
    box(async (driver, _daemon, wafer) => {
      const tokens = tokensOf(5, 10);
      const request = wafer.request('acme', tokens);
      const sequence = driver.openSequence({ isolationId: 'acme' });
      sequence.match(tokens).release();
      const evict = sequence.evict({
        write: async (column, pieces) => {
          if (column.index === 6) throw new Error('the engine failed');
          return 'write' in request.source && request.source.write(column, pieces);
        },
      });
      await expect(evict).rejects.toThrow('the engine failed');
      expect(await refill(sequence.match(tokens), request)).toBe(6);
      expect((await sequence.evict(request.source)).stored).toBe(4);
      expect(await refill(sequence.match(tokens), request)).toBe(10);
    }));

  test('a reader that throws gets its own error, and the next one gets the bytes', () =>
    box(async (driver, _daemon, wafer) => {
      const tokens = tokensOf(6, 20);
      const request = wafer.request('acme', tokens);
      const sequence = driver.openSequence({ isolationId: 'acme' });
      sequence.match(tokens).release();
      await sequence.evict(request.source);
      for (let round = 0; round < 5; round += 1) {
        const hit = sequence.match(tokens);
        const refused = hit.refill({
          read() {
            throw new Error('no room on the accelerator');
          },
        });
        await expect(refused).rejects.toThrow('no room on the accelerator');
        hit.release();
      }
      expect(await refill(sequence.match(tokens), request)).toBe(20);
    }));

  test('a daemon that is killed is a miss, and after a restart the cache begins again', async () => {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    const flags = link.flags.map((flag) => (flag === '@streams' ? `${socket}.streams` : flag));
    const first = await TestDaemon.start(socket, { flags });
    const fixed = flags.map((flag) => (flag === '0' ? String(first.streamPorts[0]) : flag));
    await using driver = await SwDriver.connect({ daemons: [link.address(first)], model: MODEL, ...link.options });
    const wafer = new StampingRuntime(64);
    const tokens = tokensOf(7, 15);
    const request = wafer.request('acme', tokens);
    const sequence = driver.openSequence({ isolationId: 'acme' });
    sequence.match(tokens).release();
    expect((await sequence.evict(request.source)).stored).toBe(15);
    const down = new Promise((resolve) => driver.once('down', resolve));
    const up = new Promise((resolve) => driver.once('up', resolve));
    first.kill('SIGKILL');
    await down;
    expect(sequence.match(tokens).columns).toBe(0);
    expect(await sequence.evict(request.source)).toMatchObject({ stored: 0, present: 0, dropped: 15 });
    await using _second = await TestDaemon.start(socket, { flags: fixed });
    await up;
    expect(sequence.match(tokens).columns).toBe(0);
    expect((await sequence.evict(request.source)).stored).toBe(15);
    expect(await refill(sequence.match(tokens), request)).toBe(15);
    expect(wafer.stats.mismatches).toBe(0);
  });
});
