import { chmodSync, closeSync, openSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { native } from '../../src/binding/native.js';
import { KvssError, SwDriver } from '../../src/index.js';
import { ControlClient } from '../../src/links/control_client.js';
import { MODEL, message, Scratch, startChild, TestDaemon } from './support.js';

/** Inode numbers of the KVSS memory objects that a process has mapped. */
function mappedObjects(pid: number): Set<number> {
  const inodes = new Set<number>();
  for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
    const fields = line.trim().split(/\s+/);
    if (fields[5]?.startsWith('/memfd:kvss-')) inodes.add(Number(fields[4]));
  }
  return inodes;
}

/** Inode numbers of the KVSS memory objects that a process has open. */
function openObjects(pid: number): Set<number> {
  const directory = `/proc/${pid}/fd`;
  const paths = readdirSync(directory).map((fd) => `${directory}/${fd}`);
  return new Set(
    paths.filter((path) => readlinkSync(path).startsWith('/memfd:kvss-')).map((path) => statSync(path).ino),
  );
}

describe('two driver processes on one daemon', () => {
  test('both verify clean at the same time', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { budget: '16MiB' });
    const drivers = ['acme', 'globex'].map((tenant) => startChild('driver.mjs', [daemon.socket, tenant, 'loop']));
    const reports: Record<string, number>[] = [];
    for (const { child } of drivers) child.on('message', (report) => reports.push(report as Record<string, number>));
    while ((await daemon.metric('kvss_refills_total')) < 20_000)
      await new Promise((resolve) => setTimeout(resolve, 50));
    for (const { child } of drivers) child.send('stop');
    for (const { finished } of drivers) expect(await finished).toMatchObject({ code: 0, stderr: '' });
    const done = reports.filter((report) => report.done);
    expect(done).toHaveLength(2);
    for (const report of done) {
      expect(report).toMatchObject({ mismatches: 0, downs: 0 });
      expect(report.linesVerified).toBeGreaterThan(10_000);
    }
    expect(await daemon.metric('kvss_tenant_alarms_total')).toBe(0);
  });

  test('have no memory object in common, mapped or open', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { budget: '16MiB' });
    const first = startChild('driver.mjs', [daemon.socket, 'acme', 'hold']);
    const second = startChild('driver.mjs', [daemon.socket, 'globex', 'hold']);
    await Promise.all([message(first.child), message(second.child)]);
    const [a, b] = [first.child.pid as number, second.child.pid as number];
    const mine = mappedObjects(a);
    const theirs = mappedObjects(b);
    // Submit, status and grant of each of two shards.
    expect([mine.size, theirs.size]).toEqual([6, 6]);
    expect([...mine].filter((inode) => theirs.has(inode))).toEqual([]);
    expect([...openObjects(a), ...openObjects(b)]).toEqual([]);
    for (const { child } of [first, second]) child.send('close');
    expect((await first.finished).code).toBe(0);
    expect((await second.finished).code).toBe(0);
  });

  test('get no descriptor of memory that an engine has mapped, also where the connection could carry one', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const { client } = await ControlClient.connect(daemon.socket, 5_000);
    await client.request('attachStream', { shard: 0, window: 8 }, 'streamAttached');
    await client.request('attach', { shard: 1, ringEntries: 8 }, 'attached');
    const grant = { grantId: 1, slots: 1, pieceBytes: 64 };
    expect((await client.request('grant', { shard: 0, ...grant }, 'granted')).descriptors).toBeNull();
    expect((await client.request('grant', { shard: 1, ...grant }, 'granted')).descriptors?.count).toBe(1);
    client.close();
  });

  test('cannot ask the daemon for, or give back, what belongs to the other', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { budget: '16MiB' });
    await using victim = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL, capacityColumns: 100 });
    const { client } = await ControlClient.connect(daemon.socket, 5_000);
    // Grants are numbered by each session for itself, so the other's number names nothing here.
    await expect(client.request('release', { shard: 0, grantId: 1 }, 'released')).rejects.toMatchObject({
      code: 'KVSS_BAD_GRANT',
    });
    await expect(
      client.request('grant', { shard: 0, grantId: 1, slots: 1, pieceBytes: 64 }, 'granted'),
    ).rejects.toMatchObject({ code: 'KVSS_NOT_ALLOWED' });
    client.close();
    expect(victim.capacityColumns).toBe(100);
  });

  test('get completions and counters as memory that they cannot write, not even by opening it again', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    await using _driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
    const map = readFileSync('/proc/self/maps', 'utf8').split('\n');
    const protection = (name: string) =>
      map.filter((line) => line.includes(`/memfd:${name}`)).map((line) => line.split(/\s+/)[1]);
    expect(protection('kvss-status')).toEqual(['r--s', 'r--s']);
    expect(protection('kvss-submit')).toEqual(['rw-s', 'rw-s']);
    // The seal is on the object, so it holds for whoever opens it.
    const [status] = daemon.memoryObjects('kvss-status');
    const fd = openSync(status as string, 'r+');
    const { writeSync } = await import('node:fs');
    expect(() => writeSync(fd, Buffer.from([1]), 0, 1, 0)).toThrow(/EPERM/);
    closeSync(fd);
  });
});

describe('who may connect', () => {
  const asRoot = process.getuid?.() === 0;

  test.skipIf(!asRoot)(
    'another user can neither reach the socket nor the memory of the daemon (needs root to try)',
    async () => {
      using scratch = new Scratch();
      await using daemon = await TestDaemon.start(scratch.file('s'));
      await using _driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
      const { spawnSync } = await import('node:child_process');
      const script = `
      const { readdirSync, openSync } = require('node:fs');
      let reached = 0;
      try { for (const fd of readdirSync('/proc/${daemon.pid}/fd')) { openSync('/proc/${daemon.pid}/fd/' + fd); reached += 1; } } catch {}
      console.log(reached);`;
      const attempt = spawnSync(process.execPath, ['-e', script], { uid: 65534, gid: 65534, encoding: 'utf8' });
      expect(attempt.stdout.trim()).toBe('0');
      expect(statSync(daemon.socket).mode & 0o077).toBe(0);
    },
  );

  test.skipIf(!asRoot)(
    'another user is turned away even where somebody has opened the socket to all (needs root to try)',
    async () => {
      using scratch = new Scratch();
      await using daemon = await TestDaemon.start(scratch.file('s'));
      chmodSync(scratch.path, 0o755);
      chmodSync(daemon.socket, 0o666);
      process.seteuid?.(65534);
      // Connects before it answers, as whoever this process is then.
      const connecting = ControlClient.connect(daemon.socket, 5_000);
      process.seteuid?.(0);
      await expect(connecting).rejects.toMatchObject({
        code: 'KVSS_NOT_ALLOWED',
        message: 'user 65534 may not use this daemon',
      });
      const { client } = await ControlClient.connect(daemon.socket, 5_000);
      client.close();
    },
  );

  test('every tenant needs an isolationId', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    await using driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
    for (const isolationId of ['', undefined, 7]) {
      expect(() => driver.openSequence({ isolationId: isolationId as string })).toThrow(KvssError);
    }
  });

  test('a bundle of descriptors can be used once only', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const { client } = await ControlClient.connect(daemon.socket, 5_000);
    const { descriptors } = await client.request('stats', {}, 'statsReply');
    if (!descriptors) throw new Error('no descriptors');
    expect(descriptors.count).toBe(2);
    expect(native.mapCounters(descriptors)).toHaveLength(2);
    expect(descriptors.count).toBe(0);
    expect(native.mapCounters(descriptors)).toHaveLength(0);
    client.close();
  });
});
