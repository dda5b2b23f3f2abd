import { expect, test } from 'vitest';
import { KvssDaemon, SwDriver } from '../../src/index.js';
import { MemoryPressure, type PressureOptions } from '../../src/wafer/memory_pressure.js';
import { Wafer } from '../../src/wafer/wafer.js';
import { parseWaferConfig } from '../../src/wafer/wafer_config.js';
import { WaferRuntime } from '../../src/wafer/wafer_runtime.js';
import { Scratch } from './support.js';

const BYTES_PER_TOKEN = [4, 8, 12, 8];
const COLUMN_BYTES = BYTES_PER_TOKEN.reduce((sum, bytes) => sum + 64 * bytes, 0);

const OPTIONS: PressureOptions = {
  isolationId: 'acme',
  sequences: 10,
  promptColumns: 6,
  decodeColumns: 8,
  highWater: 0.9,
  lowWater: 0.5,
  seed: 1,
};

async function run(options: Partial<PressureOptions>, capacityColumns = 1_000) {
  using scratch = new Scratch();
  const socket = scratch.file('s');
  await using _daemon = await KvssDaemon.start({
    socket,
    http: false,
    logLevel: 'silent',
    shards: BYTES_PER_TOKEN.map(() => ({ budget: '8MiB' })),
  });
  const wafer = new Wafer(parseWaferConfig({ boxes: [{ bytesPerToken: BYTES_PER_TOKEN }], memoryColumns: 64 }));
  await using driver = await SwDriver.connect({
    daemons: [socket],
    model: { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: BYTES_PER_TOKEN },
    memory: wafer.memory,
    capacityColumns,
    deadlineMs: 20_000,
  });
  const runtime = new WaferRuntime(wafer, 64, COLUMN_BYTES);
  const report = await new MemoryPressure(driver, runtime, { ...OPTIONS, ...options }).run();
  expect(runtime.stats.mismatches).toBe(0);
  expect(runtime.freePlaces).toBe(64);
  return { report, stats: runtime.stats };
}

test('conversations that do not fit are evicted in bursts, come back from the store, and all of them finish', async () => {
  const { report, stats } = await run({});
  expect(report.columnsGenerated).toBe(80);
  expect(report.bursts).toBeGreaterThan(0);
  expect(report.burstMs).toHaveLength(report.bursts);
  // More than one conversation goes at once.
  expect(report.burstColumns / report.bursts).toBeGreaterThan(14);
  expect(report.columnsRefilled).toBe(report.burstColumns);
  expect(report.columnsRecomputed).toBe(0);
  expect(stats.bytesVerified).toBe(report.columnsRefilled * COLUMN_BYTES);
});

test('what a store that is too small has not kept is computed again', async () => {
  const { report } = await run({}, 20);
  expect(report.columnsGenerated).toBe(80);
  expect(report.columnsRefilled + report.columnsRecomputed).toBe(report.burstColumns);
  expect(report.columnsRecomputed).toBeGreaterThan(0);
});

test('a wafer with room for all of them evicts nothing', async () => {
  const { report } = await run({ sequences: 4 });
  expect(report).toMatchObject({ bursts: 0, burstColumns: 0, resumes: 0, columnsGenerated: 32 });
});

test('the same seed does the same', async () => {
  const [first, second] = [await run({}), await run({})];
  expect({ ...first.report, burstMs: [] }).toEqual({ ...second.report, burstMs: [] });
});

test.each([
  [{ lowWater: 0.9 }, /low water/],
  [{ highWater: 1.1 }, /low water/],
  [{ lowWater: 0 }, /low water/],
  [{ decodeColumns: 27 }, /a sequence of 33 columns does not fit below low water, 32 columns/],
])('%o is refused', async (options, message) => {
  await expect(run(options)).rejects.toThrow(message);
});
