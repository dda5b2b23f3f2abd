import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { SwDriver } from '../../src/index.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { MODEL, Scratch, TestDaemon, until } from './support.js';

const TOKENS = Uint32Array.from({ length: 64 * 5 }, (_, at) => at);
/** More than a daemon without drivers needs: enough for a few of them. */
const DESCRIPTORS_FOR_DRIVERS = 30;

/** Stores a prompt, or finds it there, and answers how many columns came back right. */
async function work(driver: SwDriver, tenant: string): Promise<number> {
  const runtime = new StampingRuntime(64);
  const request = runtime.request(tenant, TOKENS);
  const sequence = driver.openSequence({ isolationId: tenant });
  sequence.match(TOKENS).release();
  await sequence.evict(request.source);
  using hit = driver.openSequence({ isolationId: tenant }).match(TOKENS);
  const { columns } = await hit.refill(request.sink);
  request.accept(columns);
  expect(runtime.stats.mismatches).toBe(0);
  return columns;
}

describe('a daemon that may open few descriptors', () => {
  test.each(['shared memory', 'TCP'])(
    'refuses drivers over %s that are too many, serves the others, and takes more when some have gone',
    async (link) => {
      using scratch = new Scratch();
      await using daemon = await TestDaemon.start(scratch.file('s'), {
        budget: '32MiB',
        flags: ['--tcp-port', '0'],
      });
      const address = link === 'TCP' ? `tcp://127.0.0.1:${daemon.streamPorts[0]}` : daemon.socket;
      const open = () => readdirSync(`/proc/${daemon.pid}/fd`).length;
      const connect = () =>
        SwDriver.connect({
          daemons: [address],
          model: MODEL,
          capacityColumns: 20,
          deadlineMs: 10_000,
          connectDeadlineMs: 2_000,
        });
      const before = open();
      const limit = before + DESCRIPTORS_FOR_DRIVERS;
      // Node opens more than this while it starts.
      const limited = spawnSync('prlimit', ['--pid', String(daemon.pid), `--nofile=${limit}:${limit}`]);
      expect(limited.status).toBe(0);
      const drivers: SwDriver[] = [];
      let refusal: { code?: string } | undefined;
      while (!refusal) {
        const driver = await connect().catch((thrown: { code?: string }) => {
          refusal = thrown;
        });
        if (driver) drivers.push(driver);
      }
      expect(refusal.code).toMatch(/^KVSS_(LIMIT_EXCEEDED|NO_MEMORY|UNREACHABLE|TIMEOUT|DEADLINE|NOT_ALLOWED)$/);
      expect(drivers.length).toBeGreaterThan(1);
      for (const [index, driver] of drivers.entries()) expect(await work(driver, `tenant ${index}`)).toBe(5);
      for (const driver of drivers) await driver.close();
      await until(() => open() <= before);
      await using again = await connect();
      expect(await work(again, 'late')).toBe(5);
      await again.close();
      await daemon.awaitMetric('kvss_sessions', 0);
      await daemon.awaitMetric('kvss_free_bytes', await daemon.metric('kvss_budget_bytes'));
    },
  );
});
