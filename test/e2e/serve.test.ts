import { existsSync, readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { SwDriver } from '../../src/index.js';
import { kvss, MODEL, message, Scratch, startChild, TestDaemon, until } from './support.js';

/** Inode numbers of all memory objects of KVSS that any process on this machine has open or mapped. */
function heldObjects(): Set<number> {
  const inodes = new Set<number>();
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      for (const fd of readdirSync(`/proc/${pid}/fd`)) {
        const path = `/proc/${pid}/fd/${fd}`;
        if (readlinkSync(path).startsWith('/memfd:kvss-')) inodes.add(statSync(path).ino);
      }
      for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
        const fields = line.trim().split(/\s+/);
        if (fields[5]?.startsWith('/memfd:kvss-')) inodes.add(Number(fields[4]));
      }
    } catch {
      // It has ended, or closed the descriptor, meanwhile.
    }
  }
  return inodes;
}

describe('kvss serve', () => {
  test('answers /healthz, /readyz and /metrics', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const health = await fetch(`${daemon.adminUrl}/healthz`);
    expect([health.status, await health.json()]).toEqual([200, { status: 'ok' }]);
    expect((await fetch(`${daemon.adminUrl}/readyz`)).status).toBe(200);
    expect(await daemon.metric('kvss_budget_bytes')).toBe(2 * 8 * 2 ** 20);
    expect(await daemon.metric('kvss_free_bytes')).toBe(2 * 8 * 2 ** 20);
    const text = await (await fetch(`${daemon.adminUrl}/metrics`)).text();
    expect(text).toContain('# TYPE kvss_evict_seconds histogram');
    expect(text).toContain('kvss_evict_seconds_bucket{le="+Inf",shard="0",domain="0"} 0');
  });

  test.each(['SIGTERM', 'SIGINT'] as const)(
    'ends with exit code 0 on %s while a driver is at work, and the driver lives on',
    async (signal) => {
      using scratch = new Scratch();
      await using daemon = await TestDaemon.start(scratch.file('s'));
      const { child, finished } = startChild('driver.mjs', [daemon.socket, 'acme', 'loop']);
      await message(child);
      await message(child);
      daemon.kill(signal);
      expect(await daemon.finished).toMatchObject({ code: 0, signal: null });
      expect(existsSync(daemon.socket)).toBe(false);
      child.send('stop');
      const reports: Record<string, unknown>[] = [];
      child.on('message', (report) => reports.push(report as Record<string, unknown>));
      expect(await finished).toMatchObject({ code: 0, stderr: '' });
      expect(reports.at(-1)).toMatchObject({ done: true, mismatches: 0, downs: 1 });
    },
  );

  test('replaces the socket that a killed daemon left behind', async () => {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    {
      await using killed = await TestDaemon.start(socket);
      killed.kill('SIGKILL');
      await killed.finished;
    }
    expect(existsSync(socket)).toBe(true);
    await using daemon = await TestDaemon.start(socket);
    await using driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
    expect(driver.capacityColumns).toBeGreaterThan(0);
  });

  test('refuses the socket of a live daemon with an error that names it, and does not disturb it', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const second = await kvss('serve', '--socket', daemon.socket, '--no-http', '--budget', '8MiB');
    expect(second.code).toBe(1);
    expect(second.stderr).toContain(`another KVSS daemon is already listening at ${daemon.socket}`);
    await using driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
    expect(driver.capacityColumns).toBeGreaterThan(0);
  });

  test('refuses to replace a file that is no socket', async () => {
    using scratch = new Scratch();
    const path = scratch.file('precious', 'do not lose me');
    const refused = await kvss('serve', '--socket', path, '--no-http', '--budget', '8MiB');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain(`${path} exists and is not a socket`);
    expect(readFileSync(path, 'utf8')).toBe('do not lose me');
  });

  test('leaves no memory behind when it is killed', async () => {
    using scratch = new Scratch();
    const daemon = await TestDaemon.start(scratch.file('s'), {
      shards: 2,
      budget: '256MiB',
      flags: ['--no-huge-pages'],
    });
    const objects = daemon.memoryObjects('kvss-').map((path) => statSync(path));
    expect(objects.reduce((sum, { blocks }) => sum + blocks * 512, 0)).toBeGreaterThan(400 * 2 ** 20);
    daemon.kill('SIGKILL');
    await daemon.finished;
    // Such an object has no name: once nobody has it open or mapped, the kernel has taken its pages back.
    await until(() => {
      const held = heldObjects();
      return objects.every(({ ino }) => !held.has(ino));
    });
  });

  test('gives all memory back when a driver leaves', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
    expect(await daemon.metric('kvss_free_bytes')).toBeLessThan(2 * 8 * 2 ** 20);
    await driver.close();
    await until(async () => (await daemon.metric('kvss_free_bytes')) === 2 * 8 * 2 ** 20);
    await daemon.awaitMetric('kvss_sessions', 0);
  });

  test('takes its settings from a file and lets flags override it', async () => {
    using scratch = new Scratch();
    const config = scratch.file('config.yaml');
    writeFileSync(
      config,
      `socket: ${scratch.file('from-file')}\nshards: [{ budget: 2MiB }, { budget: 4MiB, domain: 3 }]\n`,
    );
    await using daemon = await TestDaemon.start(scratch.file('s'), { budget: '6MiB', flags: ['--config', config] });
    expect(await daemon.metric('kvss_budget_bytes')).toBe(2 * 6 * 2 ** 20);
    const text = await (await fetch(`${daemon.adminUrl}/metrics`)).text();
    expect(text).toContain('kvss_budget_bytes{shard="1",domain="3"} 6291456');
    expect(existsSync(scratch.file('from-file'))).toBe(false);
  });

  test('goes when the process that started it dies', async () => {
    using scratch = new Scratch();
    const { child, finished } = startChild('parent.mjs', [scratch.file('unused')]);
    const { pid } = (await message(child)) as { pid: number };
    child.kill('SIGKILL');
    await finished;
    await until(() => !existsSync(`/proc/${pid}`));
  });
});
