import { describe, expect, test } from 'vitest';
import { SwDriver, type SwDriverOptions } from '../../src/index.js';
import { RemoteWafer } from '../../src/wafer/remote_wafer.js';
import { Wafer, type WaferPort } from '../../src/wafer/wafer.js';
import { parseWaferConfig, type WaferConfigInput } from '../../src/wafer/wafer_config.js';
import { WaferRuntime } from '../../src/wafer/wafer_runtime.js';
import { WaferServer } from '../../src/wafer/wafer_server.js';
import { Scratch, TestDaemon, until } from './support.js';

const BYTES_PER_TOKEN = [16, 32, 48, 16];
const COLUMN_BYTES = BYTES_PER_TOKEN.reduce((sum, bytes) => sum + bytes * 64, 0);
const MODEL = { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: BYTES_PER_TOKEN };
const WAFER: WaferConfigInput = { boxes: [{ bytesPerToken: BYTES_PER_TOKEN }], memoryColumns: 40 };

const tokensOf = (seed: number, columns: number) =>
  Uint32Array.from({ length: columns * 64 }, (_, at) => Math.imul(at + 1, seed * 2_654_435_761));

const sum = (numbers: readonly number[]) => numbers.reduce((total, each) => total + each, 0);

/** One request as a runtime serves it. */
async function serve(driver: SwDriver, runtime: WaferRuntime, tokens: Uint32Array) {
  const sequence = driver.openSequence({ isolationId: 'acme' });
  const request = runtime.request('acme', tokens);
  const hit = sequence.match(tokens);
  const { columns, quiet } = await hit.refill(request.sink);
  await request.accept(columns, quiet);
  hit.release();
  await request.compute();
  const { stored } = await sequence.evict(request.source);
  request.end();
  return { columns, stored };
}

/** Where the memory of the runtime is: in the driver's process, or behind a carrier. */
const MEMORIES = {
  'memory of the runtime over shared memory': { link: 'shm', carrier: false },
  'memory of the runtime over TCP': { link: 'tcp', carrier: false },
  'a wafer of its own over TCP': { link: 'tcp', carrier: true },
  'a wafer of its own over Unix sockets': { link: 'unix', carrier: true },
} as const;

describe.each(Object.entries(MEMORIES))('with %s', (_name, { link, carrier }) => {
  async function box(
    run: (world: { driver: SwDriver; runtime: WaferRuntime; daemon: TestDaemon; server: WaferServer }) => Promise<void>,
    options: Partial<SwDriverOptions> = {},
  ): Promise<void> {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    const flags = { shm: [], tcp: ['--tcp-port', '0'], unix: ['--stream-socket', `${socket}.streams`] }[link];
    await using daemon = await TestDaemon.start(socket, { shards: 4, flags: [...flags] });
    const listen = link === 'unix' ? { path: scratch.file('w') } : { port: 0 };
    await using server = WaferServer.start(parseWaferConfig({ ...WAFER, listen: [listen] }));
    const address = link === 'unix' ? `unix:${scratch.file('w')}` : `tcp://127.0.0.1:${server.ports[0]}`;
    const remote = carrier ? await RemoteWafer.connect(address, { deadlineMs: 5_000 }) : undefined;
    const local = new Wafer(parseWaferConfig(WAFER));
    const port: WaferPort = remote ?? local;
    const at = { shm: socket, tcp: `tcp://127.0.0.1:${daemon.streamPorts[0]}`, unix: `unix:${socket}.streams` }[link];
    await using driver = await SwDriver.connect({
      daemons: [at],
      model: MODEL,
      deadlineMs: 20_000,
      ...(remote ? { carrier: remote.carrier } : { memory: local.memory }),
      ...options,
    });
    const runtime = new WaferRuntime(port, 64, COLUMN_BYTES);
    await run({ driver, runtime, daemon, server });
    expect(runtime.stats.mismatches).toBe(0);
    expect(runtime.freePlaces).toBe(WAFER.memoryColumns);
    await driver.close();
    await remote?.close();
    const whole = await daemon.metric('kvss_budget_bytes');
    await until(async () => (await daemon.metric('kvss_free_bytes')) === whole);
  }

  test('what was evicted from places comes back into others, byte for byte', () =>
    box(async ({ driver, runtime, server }) => {
      for (let seed = 1; seed <= 6; seed += 1) {
        expect(await serve(driver, runtime, tokensOf(seed, 30))).toEqual({ columns: 0, stored: 30 });
      }
      for (let seed = 1; seed <= 6; seed += 1) {
        expect(await serve(driver, runtime, tokensOf(seed, 35))).toEqual({ columns: 30, stored: 5 });
      }
      expect(runtime.stats.bytesVerified).toBe(6 * 30 * COLUMN_BYTES);
      const moved = 6 * (35 + 30) * COLUMN_BYTES;
      if (link === 'tcp' && !carrier) expect(driver.payloadBytes).toBe(moved);
      else expect(driver.payloadBytes).toBe(0);
      await driver.close();
      await until(() => sum(Object.values(server.totals)) === (carrier ? moved : 0));
    }));

  test('several streams and checksums change nothing', () =>
    box(
      async ({ driver, runtime }) => {
        for (const columns of [0, 40, 40]) {
          expect((await serve(driver, runtime, tokensOf(9, 40))).columns).toBe(columns);
        }
      },
      { wioStreams: 3, checksums: true, ringEntries: 8 },
    ));

  test('a runtime without room for all of a hit gets the first part of it', () =>
    box(async ({ driver, runtime }) => {
      const tokens = tokensOf(3, 30);
      await serve(driver, runtime, tokens);
      const other = runtime.request('acme', tokensOf(4, 25));
      await other.compute();
      expect(runtime.freePlaces).toBe(15);
      const request = runtime.request('acme', tokens);
      using hit = driver.openSequence({ isolationId: 'acme' }).match(tokens);
      const { columns, quiet } = await hit.refill(request.sink);
      expect(columns).toBe(15);
      await request.accept(columns, quiet);
      expect(runtime.freePlaces).toBe(0);
      request.end();
      other.end();
    }));

  test('a place that does not exist is refused, and the driver goes on', () =>
    box(async ({ driver, runtime }) => {
      const tokens = tokensOf(5, 3);
      const sequence = driver.openSequence({ isolationId: 'acme' });
      sequence.match(tokens).release();
      for (const place of [40, -1, 0.5, Number.NaN]) {
        await expect(sequence.evict({ place: () => place })).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
      }
      expect(await serve(driver, runtime, tokens)).toEqual({ columns: 0, stored: 3 });
      using hit = sequence.match(tokens);
      await expect(hit.refill({ place: () => 40 })).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
      expect(await serve(driver, runtime, tokens)).toEqual({ columns: 3, stored: 0 });
    }));
});
