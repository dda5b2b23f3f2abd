import { describe, expect, test } from 'vitest';
import { connectorFor, type DaemonConnection, type DriverReport } from '../../src/index.js';
import { ControlClient } from '../../src/links/control_client.js';
import { ReportSender } from '../../src/links/report_sender.js';
import { parsePayload, payloadLength } from '../../src/proto/frames.js';
import { MAX_FRAME_BYTES } from '../../src/proto/generated.js';
import { kvss, pause, Scratch, TestDaemon, until } from './support.js';

const REPORT: DriverReport = {
  model: 'llama "3" \\ é',
  policy: 'sieve',
  columns: 900,
  capacityColumns: 1_000,
  lookups: 50,
  promptTokens: 4_000,
  hitTokens: 3_000,
  missTokens: { cold: 750, evicted: 250, noStore: 0 },
  curve: Array.from({ length: 20 }, (_, index) => ({ columns: 100 * (index + 1), hitRate: index / 19 })),
};

const connect = (address: string): Promise<DaemonConnection> =>
  connectorFor({ wioStreams: 1, placeBytes: 2 ** 20, checksums: false })(address, 10_000);

/** More often than a daemon takes them. */
const REPORT_PAUSE_MS = 150;

async function driversOf(
  daemon: TestDaemon,
): Promise<{ sessionId: number; ageSeconds: number; report: DriverReport }[]> {
  const { stdout } = await kvss('stat', '--socket', daemon.socket, '--once', '--json', '--interval', '50');
  return JSON.parse(stdout).drivers;
}

const metrics = async (daemon: TestDaemon) => (await fetch(`${daemon.adminUrl}/metrics`)).text();

describe('the report of a driver', () => {
  test.each(['shared memory', 'TCP'])('over %s is in stat and metrics until its session ends', async (link) => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1, flags: ['--tcp-port', '0'] });
    expect(await driversOf(daemon)).toEqual([]);
    const connection = await connect(link === 'TCP' ? `tcp://127.0.0.1:${daemon.streamPorts[0]}` : daemon.socket);
    connection.report({ ...REPORT, lookups: 1 });
    await daemon.awaitMetric('kvss_driver_lookups_total', 1);
    await pause(REPORT_PAUSE_MS);
    connection.report(REPORT);
    await daemon.awaitMetric('kvss_driver_lookups_total', 50);
    const [driver, ...others] = await driversOf(daemon);
    expect(others).toEqual([]);
    expect(driver?.report).toEqual(REPORT);
    expect(driver?.ageSeconds).toBeLessThan(60);

    const text = await metrics(daemon);
    const labels = `session="${driver?.sessionId}",model="llama \\"3\\" \\\\ é"`;
    for (const line of [
      '# TYPE kvss_driver_hit_tokens_total counter',
      `kvss_driver_hit_tokens_total{${labels}} 3000`,
      `kvss_driver_prompt_tokens_total{${labels}} 4000`,
      `kvss_driver_columns{${labels}} 900`,
      `kvss_driver_capacity_columns{${labels}} 1000`,
      `kvss_driver_miss_tokens_total{${labels},cause="evicted"} 250`,
      `kvss_driver_what_if_hit_ratio{${labels},columns="2000"} 1`,
    ]) {
      expect(text.split('\n')).toContain(line);
    }

    const { stdout } = await kvss('stat', '--socket', daemon.socket, '--once');
    expect(stdout).toMatch(/driver +model +policy +columns +of +lookups +hit rate +misses +said/);
    expect(stdout).toMatch(/sieve +900 +1,000 +50 +75\.0 % +cold 75\.0 %, evicted 25\.0 % +\d+ s ago/);
    expect(stdout).toMatch(/driver \d+, with columns +100 .* 2,000\nhit rate would be +0\.0 % .* 100\.0 %/);

    await connection.close();
    await until(async () => !(await metrics(daemon)).includes('kvss_driver_lookups_total{'));
    expect(await driversOf(daemon)).toEqual([]);
  });

  test('that is no report ends its session, and one that comes too soon is refused', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1 });
    for (const wrong of [
      {},
      { ...REPORT, model: '' },
      { ...REPORT, model: 'a\nkvss_fake 1' },
      { ...REPORT, model: 'x'.repeat(129) },
      { ...REPORT, policy: 'a b' },
      { ...REPORT, columns: -1 },
      { ...REPORT, hitTokens: 0.5 },
      { ...REPORT, missTokens: { 'a"b': 1 } },
      { ...REPORT, missTokens: Object.fromEntries(Array.from({ length: 17 }, (_, index) => [`c${index}`, 1])) },
      { ...REPORT, curve: [{ columns: 1, hitRate: 1.5 }] },
      {
        ...REPORT,
        curve: [
          { columns: 1, hitRate: 0.1 },
          { columns: 1, hitRate: 0.2 },
        ],
      },
      { ...REPORT, curve: Array.from({ length: 65 }, (_, columns) => ({ columns, hitRate: 0 })) },
    ]) {
      const { client } = await ControlClient.connect(daemon.socket, 5_000);
      await expect(client.request('report', wrong, 'reported')).rejects.toMatchObject({ code: 'KVSS_BAD_FRAME' });
      await until(() => client.ended);
    }
    const { client } = await ControlClient.connect(daemon.socket, 5_000);
    await client.request('report', REPORT, 'reported');
    await expect(client.request('report', REPORT, 'reported')).rejects.toMatchObject({ code: 'KVSS_LIMIT_EXCEEDED' });
    await pause(REPORT_PAUSE_MS);
    await client.request('report', REPORT, 'reported');
    client.close();
  });

  test('is shown of as many drivers as there are, over several answers', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1 });
    const causes = Array.from({ length: 16 }, (_, index) => [`cause${index}`.padEnd(32, 'x'), 2 ** 50 + index]);
    const large: DriverReport = {
      ...REPORT,
      model: 'm'.repeat(128),
      missTokens: Object.fromEntries(causes),
      curve: Array.from({ length: 64 }, (_, index) => ({ columns: 2 ** 40 + index, hitRate: 1 / (index + 3) })),
    };
    const count = Math.ceil((2.5 * MAX_FRAME_BYTES) / payloadLength(large));
    const connections = await Promise.all(Array.from({ length: count }, () => connect(daemon.socket)));
    for (const connection of connections) connection.report(large);
    await daemon.awaitMetric('kvss_driver_lookups_total', count * large.lookups);
    const drivers = await driversOf(daemon);
    expect(drivers).toHaveLength(count);
    expect(new Set(drivers.map(({ sessionId }) => sessionId)).size).toBe(count);
    for (const connection of connections) await connection.close();
  });

  test('harms nobody where the daemon is old, slow or gone', async () => {
    let asked = 0;
    let answer: () => void = () => {};
    const client = {
      ended: false,
      request: async (_name: string, report: unknown) => {
        asked += 1;
        expect(parsePayload('report', report).lookups).toBe(asked === 1 ? 0 : 9);
        await new Promise<void>((resolve) => {
          answer = resolve;
        });
        throw new Error('gone');
      },
    };
    const welcome = { daemon: 'd', epoch: 'e', sessionId: 1, pid: 1, shards: [] };
    new ReportSender(client as never, welcome).send(REPORT);
    expect(asked).toBe(0);
    const sender = new ReportSender(client as never, { ...welcome, reports: true });
    sender.send({ ...REPORT, curve: [{ columns: 1, hitRate: Number.NaN }] });
    expect(asked).toBe(0);
    for (let index = 0; index < 10; index += 1) sender.send({ ...REPORT, lookups: index });
    expect(asked).toBe(1);
    answer();
    await pause(0);
    expect(asked).toBe(2);
    answer();
    await pause(0);
    client.ended = true;
    sender.send(REPORT);
    await pause(0);
    expect(asked).toBe(2);
  });
});
