import { expect, test } from 'vitest';
import { SwDriver } from '../../src/index.js';
import { ReplayMeter, type ReplayReport, replayTraces } from '../../src/replay/replay.js';
import type { Trace } from '../../src/replay/trace.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { MODEL, Scratch, TestDaemon } from './support.js';

const TENANTS = 3;
const SESSIONS = 40;
const REQUESTS = 400;
/** Less than the sessions have together, so that columns make room for others all the time. */
const CAPACITY = 1_000;

/** Sessions that take turns and grow. All begin with the same column, some go on with the same ones, most part ways. */
function agents(tenant: number): Trace {
  const columns = Array.from({ length: SESSIONS }, (_, session) => 3 + (session % 7));
  const requests = Array.from({ length: REQUESTS }, (_, index) => {
    const session = (index * 7 + tenant) % SESSIONS;
    columns[session] = (columns[session] as number) + 2;
    const blocks = Array.from({ length: columns[session] as number }, (_, at) =>
      at === 0 ? 0 : at < 4 ? 1 + (session % 10) * 4 + at : 1_000 * (session + 1) + at,
    );
    return { inputTokens: blocks.length * 64 - 10, blocks, atSeconds: index };
  });
  // The tenants speak the same tokens.
  return { name: `tenant${tenant}`, blockTokens: 64, scope: 0, requests };
}

async function replay(daemon: TestDaemon, hashBits: number): Promise<{ report: ReplayReport; collisions: number }> {
  await using driver = await SwDriver.connect({
    daemons: [daemon.socket],
    model: MODEL,
    capacityColumns: CAPACITY,
    deadlineMs: 30_000,
    // Other policies sample columns by their hashes, and evict others where those are cut.
    policy: 'lru',
    hashBits,
  });
  const meter = new ReplayMeter(driver, new StampingRuntime(driver.columnTokens));
  await replayTraces(
    Array.from({ length: TENANTS }, (_, tenant) => agents(tenant)),
    meter,
  );
  return { report: meter.report(), collisions: driver.collisions };
}

test('a replay with hashes of 8 bits meets many collisions, and finds what it finds without them', async () => {
  using scratch = new Scratch();
  await using daemon = await TestDaemon.start(scratch.file('s'), { budget: '12MiB' });
  const whole = await replay(daemon, 32);
  const cut = await replay(daemon, 8);
  expect(cut.report).toMatchObject({ requests: TENANTS * REQUESTS, columnsDropped: 0, mismatches: 0 });
  expect(cut.report.columnHits).toBeGreaterThan(3_000);
  expect(cut.report.columnsDeleted).toBeGreaterThan(1_000);
  // Not one more and not one less than where hardly any two columns share a bucket.
  for (const key of ['hitTokens', 'columnRefs', 'columnHits', 'columnsEvicted', 'columnsDeleted'] as const) {
    expect(cut.report[key], key).toBe(whole.report[key]);
  }
  expect(cut.collisions).toBeGreaterThan(3_000);
  expect(cut.collisions).toBeGreaterThan(2 * whole.collisions);
});
