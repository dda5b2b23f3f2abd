import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { type ColumnRef, type PieceSource, SwDriver, type SwDriverOptions, TenantPolicies } from '../../src/index.js';
import type { Carrier } from '../../src/links/carrier.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { finish, MAIN, MODEL, pause, Scratch, startChild, TestDaemon, until } from './support.js';

const LINKS: [string, (daemon: TestDaemon) => string][] = [
  ['shared memory', (daemon) => daemon.socket],
  ['TCP', (daemon) => `tcp://127.0.0.1:${daemon.streamPorts[0]}`],
];

const startDaemon = (scratch: Scratch, name = 's', budget = '8MiB') =>
  TestDaemon.start(scratch.file(name), { budget, flags: ['--tcp-port', '0'] });

const tokensOf = (seed: number, columns: number) =>
  Uint32Array.from({ length: columns * 64 }, (_, at) => Math.imul(at + 1, seed * 2_654_435_761));

/** Names of groups have any length. */
const LONG_NAME = 'more full layers '.repeat(10);

const join = (...parts: Uint32Array[]) => Uint32Array.from(parts.flatMap((part) => [...part]));

/** Drivers that follow each other, with a runtime that knows what bytes each column has, whoever stored it. */
class Drivers {
  readonly wafer = new StampingRuntime(64);
  readonly key = randomBytes(32);
  readonly options: SwDriverOptions;

  constructor(daemons: readonly string[], options: Partial<SwDriverOptions> = {}) {
    this.options = {
      daemons,
      model: MODEL,
      capacityColumns: 200,
      deadlineMs: 10_000,
      resume: { key: this.key },
      ...options,
    };
  }

  first(more: Partial<SwDriverOptions> = {}): Promise<SwDriver> {
    return SwDriver.connect({ ...this.options, ...more });
  }

  next(more: Partial<SwDriverOptions> = {}): Promise<SwDriver> {
    return SwDriver.resume({ ...this.options, ...more });
  }

  async store(driver: SwDriver, tenant: string, tokens: Uint32Array, adapter = ''): Promise<number> {
    const sequence = driver.openSequence({ isolationId: tenant, adapter });
    sequence.match(tokens).release();
    return (await sequence.evict(this.wafer.request(tenant, tokens).source)).stored;
  }

  /** Columns that come back, all of them right. */
  async read(driver: SwDriver, tenant: string, tokens: Uint32Array, adapter = ''): Promise<number> {
    using hit = driver.openSequence({ isolationId: tenant, adapter }).match(tokens);
    const { sink, accept } = this.wafer.request(tenant, tokens);
    const { columns } = await hit.refill(sink);
    accept(columns);
    expect(this.wafer.stats.mismatches).toBe(0);
    return columns;
  }
}

/** Nobody is connected, so what is to be kept is kept by now. */
const alone = (...daemons: TestDaemon[]) =>
  Promise.all(daemons.map((daemon) => daemon.awaitMetric('kvss_sessions', 0)));

async function putPolicy(daemon: TestDaemon, tenant: string, policy: object): Promise<void> {
  const answer = await fetch(`${daemon.adminUrl}/v1/policies/${tenant}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(policy),
  });
  expect(answer.status).toBe(200);
}

// Daemons and children start and end: meanwhile others go on.
describe.concurrent.each(LINKS)('a driver over %s that is started again', (link, addressOf) => {
  test('after it has left with what it had kept finds it once; after a goodbye, or too late, nothing', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const drivers = new Drivers([addressOf(daemon)]);
    const before = await drivers.first();
    expect(await drivers.store(before, 'acme', tokensOf(1, 40))).toBe(40);
    expect(await drivers.store(before, 'globex', tokensOf(1, 10), 'an adapter')).toBe(10);
    await before.close({ park: true });
    await alone(daemon);

    const after = await drivers.next();
    expect(after.resumed).toEqual({ columns: 50, doubtful: 0 });
    expect(await drivers.read(after, 'acme', tokensOf(1, 50))).toBe(40);
    expect(await drivers.read(after, 'globex', tokensOf(1, 10), 'an adapter')).toBe(10);
    expect(await drivers.read(after, 'globex', tokensOf(1, 10))).toBe(0);
    // One at a time: another one with the key finds nothing while the first is there.
    const twin = await drivers.next();
    expect(twin.resumed).toEqual({ columns: 0, doubtful: 0 });
    await twin.close();
    await after.close();
    await alone(daemon);
    await daemon.awaitMetric('kvss_free_bytes', await daemon.metric('kvss_budget_bytes'));

    const short = { resume: { key: drivers.key, parkMs: 200 } };
    const third = await drivers.next(short);
    expect(third.resumed).toEqual({ columns: 0, doubtful: 0 });
    expect(await drivers.store(third, 'acme', tokensOf(1, 40))).toBe(40);
    await third.close({ park: true });
    await daemon.awaitMetric('kvss_free_bytes', await daemon.metric('kvss_budget_bytes'));
    const fourth = await drivers.next(short);
    expect(fourth.resumed).toEqual({ columns: 0, doubtful: 0 });
    expect(await drivers.read(fourth, 'acme', tokensOf(1, 40))).toBe(0);
    await fourth.close();
    expect(await daemon.metric('kvss_tenant_alarms_total')).toBe(0);
  });

  test('with another key finds nothing and sees nothing, and takes nothing from the one with the right key', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const drivers = new Drivers([addressOf(daemon)]);
    const before = await drivers.first();
    await drivers.store(before, 'acme', tokensOf(1, 40));
    await before.close({ park: true });
    await alone(daemon);

    const stranger = await drivers.next({ resume: { key: randomBytes(32) } });
    expect(stranger.resumed).toEqual({ columns: 0, doubtful: 0 });
    expect(await drivers.read(stranger, 'acme', tokensOf(1, 40))).toBe(0);
    let seen = 0;
    const sequence = stranger.openSequence({ isolationId: 'acme' });
    sequence.match(tokensOf(2, 200)).release();
    const { stored } = await sequence.evict({
      write(_ref: ColumnRef, pieces: readonly Uint8Array[]) {
        // Over streams these are places, which have had nothing of anybody before.
        for (const piece of pieces) seen += piece.reduce((sum, byte) => sum + (byte === 0 ? 0 : 1), 0);
        return true;
      },
    });
    expect([stored, seen]).toEqual([200, 0]);
    await stranger.close();
    await alone(daemon);

    const after = await drivers.next();
    expect(after.resumed).toEqual({ columns: 40, doubtful: 0 });
    expect(await drivers.read(after, 'acme', tokensOf(1, 40))).toBe(40);
    await after.close();
  });

  test('with another model, revision or layout finds nothing, whatever lies there', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const drivers = new Drivers([addressOf(daemon)]);
    for (const more of [{ revision: '2' }, { layout: 'other' }]) {
      const before = await drivers.first();
      await drivers.store(before, 'acme', tokensOf(1, 20));
      await before.close({ park: true });
      await alone(daemon);
      const other = await drivers.next({ model: { ...MODEL, ...more } });
      expect(other.resumed).toEqual({ columns: 0, doubtful: 20 });
      expect(await drivers.read(other, 'acme', tokensOf(1, 20))).toBe(0);
      // All of it can be used.
      expect(await drivers.store(other, 'acme', tokensOf(2, 200))).toBe(200);
      expect(await drivers.read(other, 'acme', tokensOf(2, 200))).toBe(200);
      await other.close();
      await alone(daemon);
    }
    // Columns of other sizes are other memory.
    const before = await drivers.first();
    await drivers.store(before, 'acme', tokensOf(1, 20));
    await before.close({ park: true });
    await alone(daemon);
    const half = await drivers.next({ model: { ...MODEL, columnTokens: 32 } });
    expect(half.resumed.columns).toBe(0);
    expect(await drivers.read(half, 'acme', tokensOf(1, 20))).toBe(0);
    await half.close();
  });

  test('goes on where the other was: evicts over it, continues it, forgets it, with higher generations', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const drivers = new Drivers([addressOf(daemon)], { capacityColumns: 60 });
    const generations: number[] = [];
    const noting = (source: PieceSource): PieceSource => ({
      write(ref, pieces) {
        generations.push(ref.generation);
        return 'write' in source && source.write(ref, pieces);
      },
    });
    let driver = await drivers.first();
    for (let round = 0; round < 3; round += 1) {
      const tokens = tokensOf(1, 20 + round);
      const sequence = driver.openSequence({ isolationId: 'acme' });
      using hit = sequence.match(tokensOf(1, 20));
      expect(hit.columns).toBe(round === 0 ? 0 : 20);
      sequence.append(tokens.slice(20 * 64));
      const { stored, present } = await sequence.evict(noting(drivers.wafer.request('acme', tokens).source));
      expect([stored, present]).toEqual(round === 0 ? [20, 0] : [1, 19 + round]);
      hit.release();
      expect(await drivers.store(driver, 'globex', tokensOf(10 + round, 35))).toBe(35);
      expect(await drivers.read(driver, 'acme', tokens)).toBe(20 + round);
      const { columns } = driver;
      await driver.close({ park: true });
      await alone(daemon);
      driver = await drivers.next();
      expect(driver.resumed).toEqual({ columns, doubtful: expect.any(Number) });
    }
    expect(generations).toEqual([...generations].sort((a, b) => a - b));
    expect(new Set(generations).size).toBe(generations.length);
    expect(await drivers.read(driver, 'acme', tokensOf(1, 22))).toBe(22);
    expect(await driver.forget({ isolationId: 'acme' })).toBe(22);
    expect(await drivers.read(driver, 'acme', tokensOf(1, 22))).toBe(0);
    await driver.close({ park: true });
    await alone(daemon);
    const last = await drivers.next();
    expect(await drivers.read(last, 'acme', tokensOf(1, 22))).toBe(0);
    expect(await drivers.store(last, 'acme', tokensOf(5, 60))).toBe(60);
    expect(await drivers.read(last, 'acme', tokensOf(5, 60))).toBe(60);
    await last.close();
    expect(await daemon.metric('kvss_tenant_alarms_total')).toBe(0);
  });

  test('finds columns of verified tokens that were written ahead, and none of proposed ones', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const drivers = new Drivers([addressOf(daemon)]);
    const before = await drivers.first();
    const propose = async (seed: number) => {
      const tokens = tokensOf(seed, 6);
      const sequence = before.openSequence({ isolationId: 'acme' });
      sequence.match(tokens.slice(0, 2 * 64)).release();
      sequence.propose(tokens.slice(2 * 64));
      const result = await sequence.evict(drivers.wafer.request('acme', tokens).source);
      expect(result).toMatchObject({ stored: 2, ahead: 4 });
      return sequence;
    };
    await propose(1);
    const half = await propose(2);
    const all = await propose(3);
    half.verify(2 * 64);
    all.verify(4 * 64);
    // Behind their records.
    await drivers.store(before, 'acme', tokensOf(4, 1));
    await before.close({ park: true });
    await alone(daemon);
    const after = await drivers.next();
    expect(after.resumed.columns).toBe(2 + 4 + 6 + 1);
    const columns: number[] = [];
    for (const seed of [1, 2, 3]) columns.push(await drivers.read(after, 'acme', tokensOf(seed, 6)));
    expect(columns).toEqual([2, 4, 6]);
    await after.close();
  });

  test('finds the windows and drafts of a model with groups', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch, 's', '16MiB');
    const { bytesPerToken: _, ...identity } = MODEL;
    const groups = [
      { name: 'full', bytesPerToken: [16, 32] },
      { name: LONG_NAME, bytesPerToken: [16, 16] },
      { name: 'sliding', bytesPerToken: [0, 16], windowTokens: 128, capacityShare: 0.5 },
      { name: 'draft', bytesPerToken: [16, 0], required: false },
    ];
    const drivers = new Drivers([addressOf(daemon)], { model: { ...identity, groups } });
    const before = await drivers.first();
    expect(await drivers.store(before, 'acme', tokensOf(1, 30))).toBe(30);
    const branch = join(tokensOf(1, 20), tokensOf(2, 5));
    expect(await drivers.store(before, 'acme', branch)).toBe(5);
    await before.close({ park: true });
    await alone(daemon);
    const after = await drivers.next();
    expect(after.resumed).toEqual({ columns: 35, doubtful: 0 });
    using hit = after.openSequence({ isolationId: 'acme' }).match(tokensOf(1, 30));
    expect([hit.columns, hit.tokensOf('draft')]).toEqual([30, 30 * 64]);
    expect(await drivers.read(after, 'acme', tokensOf(1, 30))).toBe(30);
    expect(await drivers.read(after, 'acme', branch)).toBe(25);
    expect(after.groupStats.map(({ name }) => name)).toEqual(['full', LONG_NAME, 'sliding', 'draft']);
    expect(await drivers.store(after, 'acme', tokensOf(3, 100))).toBe(100);
    expect(await drivers.read(after, 'acme', tokensOf(3, 100))).toBe(100);
    await after.close();
  });

  test('brings columns back into memory of the runtime, with checksums too', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const newMemory = () => ({
      places: 40,
      regions: [1024, 2048].map((strideBytes) => ({ memory: new ArrayBuffer(40 * strideBytes), strideBytes })),
    });
    const [sent, got] = [newMemory(), newMemory()];
    for (const { memory } of sent.regions) new Uint8Array(memory).set(randomBytes(memory.byteLength));
    const drivers = new Drivers([addressOf(daemon)], { checksums: true, wioStreams: 2 });
    const before = await drivers.first({ memory: sent });
    const sequence = before.openSequence({ isolationId: 'acme' });
    sequence.match(tokensOf(1, 40)).release();
    expect(await sequence.evict({ place: ({ index }) => index })).toMatchObject({ stored: 40 });
    await before.close({ park: true });
    await alone(daemon);
    const after = await drivers.next({ memory: got });
    expect(after.resumed).toEqual({ columns: 40, doubtful: 0 });
    using hit = after.openSequence({ isolationId: 'acme' }).match(tokensOf(1, 40));
    expect((await hit.refill({ place: ({ index }) => 39 - index })).columns).toBe(40);
    for (const [shard, { memory, strideBytes }] of got.regions.entries()) {
      const original = Buffer.from(sent.regions[shard]?.memory as ArrayBuffer);
      for (let column = 0; column < 40; column += 1) {
        const bytes = Buffer.from(memory, (39 - column) * strideBytes, strideBytes);
        expect(bytes.equals(original.subarray(column * strideBytes, (column + 1) * strideBytes))).toBe(true);
      }
    }
    await after.close();
  });

  test('finds as many columns as there are, more than there are places for bytes on their way', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch, 's', '24MiB');
    // Places for a few dozen records at a time, of half a kilobyte or more.
    const drivers = new Drivers([addressOf(daemon)], { capacityColumns: 3_000, placeBytes: 2 ** 16 });
    const before = await drivers.first();
    expect(await drivers.store(before, 'acme', tokensOf(1, 2_000))).toBe(2_000);
    for (let tenant = 0; tenant < 20; tenant += 1) {
      expect(await drivers.store(before, `tenant ${tenant}`, tokensOf(1, 10))).toBe(10);
    }
    await before.close({ park: true });
    await alone(daemon);
    const after = await drivers.next();
    expect(after.resumed).toEqual({ columns: 2_200, doubtful: 0 });
    expect(await drivers.read(after, 'acme', tokensOf(1, 2_000))).toBe(2_000);
    expect(await drivers.read(after, 'tenant 19', tokensOf(1, 11))).toBe(10);
    await after.close();
  });

  test('keeps to the policies, also those that came while it was away', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const policies = () => {
      const own = new TenantPolicies();
      own.set('old', { ttl: { mode: 'first-use', seconds: 0.4 } });
      own.set('young', { ttl: { mode: 'first-use', seconds: 3_600 } });
      return own;
    };
    const drivers = new Drivers([addressOf(daemon)]);
    const before = await drivers.first({ policies: policies() });
    for (const tenant of ['old', 'young', 'quiet', 'small']) await drivers.store(before, tenant, tokensOf(1, 10));
    const columnBytes = before.storedBytesOf('small') / 10;
    await before.close({ park: true });
    await alone(daemon);
    await putPolicy(daemon, 'quiet', { noStore: true });
    await putPolicy(daemon, 'small', { quotaBytes: 4 * columnBytes });
    await pause(450);

    const after = await drivers.next({ policies: policies() });
    expect(after.resumed.columns).toBeGreaterThanOrEqual(30);
    const columns: number[] = [];
    for (const tenant of ['old', 'young', 'quiet', 'small']) {
      columns.push(await drivers.read(after, tenant, tokensOf(1, 10)));
    }
    expect(columns).toEqual([0, 10, 0, 4]);
    expect(after.storedBytesOf('small')).toBe(4 * columnBytes);
    expect(await drivers.store(after, 'small', tokensOf(2, 10))).toBe(4);
    expect(after.storedBytesOf('small')).toBe(4 * columnBytes);
    expect(after.storedBytesOf('quiet')).toBe(0);
    // Nobody asks for what has expired.
    await until(() => after.columns === 14);
    await after.close({ park: true });
    await alone(daemon);
    const third = await drivers.next();
    expect(third.resumed.columns).toBe(14);
    await third.close();
  });

  test('after it was killed in the middle of writing where another column was serves neither of the two wrongly', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    for (const columnsBefore of [0, 7]) {
      const drivers = new Drivers([addressOf(daemon)], { capacityColumns: 40 });
      const args = [addressOf(daemon), drivers.key.toString('hex'), '40', String(columnsBefore)];
      const { finished } = startChild('resuming_driver.mjs', args);
      const { signal, stdout } = await finished;
      expect(signal).toBe('SIGKILL');
      const could = JSON.parse(stdout) as number[];
      expect(could.reduce((sum, columns) => sum + columns, 0)).toBe(39 - columnsBefore);
      await alone(daemon);
      const after = await drivers.next();
      const got: number[] = [];
      for (const seed of [1, 2, 3, 4]) got.push(await drivers.read(after, 'acme', tokensOf(seed, 10)));
      // Bytes that travel were not written where the old ones are.
      if (link === 'shared memory') expect(got).toEqual(could);
      for (const [index, columns] of got.entries()) expect(columns).toBeGreaterThanOrEqual(could[index] as number);
      expect(await drivers.read(after, 'acme', tokensOf(5, 10))).toBeLessThanOrEqual(columnsBefore);
      expect(await drivers.store(after, 'acme', tokensOf(6, 40))).toBe(40);
      expect(await drivers.read(after, 'acme', tokensOf(6, 40))).toBe(40);
      await after.close();
      await alone(daemon);
    }
  });

  test('over two stripes finds what is on both, and begins empty on a daemon that was started again meanwhile', async () => {
    using scratch = new Scratch();
    await using first = await startDaemon(scratch, 'a');
    await using second = await startDaemon(scratch, 'b');
    const addresses = [addressOf(first), addressOf(second)];
    const drivers = new Drivers(addresses, { striping: 'within', capacityColumns: 100 });
    const fill = async (driver: SwDriver) => {
      await drivers.store(driver, 'acme', tokensOf(1, 30));
      for (let seed = 2; seed <= 11; seed += 1) await drivers.store(driver, 'acme', tokensOf(seed, 1));
    };
    const before = await drivers.first();
    await fill(before);
    await before.close({ park: true });
    await alone(first, second);
    const after = await drivers.next();
    expect(after.resumed).toEqual({ columns: 40, doubtful: 0 });
    expect(await drivers.read(after, 'acme', tokensOf(1, 30))).toBe(30);
    await after.close({ park: true });
    await alone(first, second);

    second.kill('SIGKILL');
    await second.finished;
    await using again = await TestDaemon.start(second.socket, {
      flags: ['--tcp-port', String(second.streamPorts[0])],
    });
    const third = await drivers.next();
    // Columns take turns: what continues a lost one is of no use.
    const { columns, doubtful } = third.resumed;
    expect([columns > 0, columns + doubtful]).toEqual([true, 20]);
    let found = await drivers.read(third, 'acme', tokensOf(1, 30));
    for (let seed = 2; seed <= 11; seed += 1) found += await drivers.read(third, 'acme', tokensOf(seed, 1));
    expect(found).toBe(columns);
    expect(third.capacityColumns).toBe(200);
    expect(await drivers.store(third, 'globex', tokensOf(1, 200))).toBe(200);
    expect(await drivers.read(third, 'globex', tokensOf(1, 200))).toBe(200);
    await third.close();
    await alone(first, again);
  });
});

describe('kvss replay', () => {
  const SHARDS = 4;
  const BUDGET = '32MiB,44MiB,52MiB,44MiB';

  /** Sessions that take turns and grow, over a head that all share; as the agents' traces are. */
  function trace(requests: number): { text: string; prompts: number[][] } {
    const columns = Array.from({ length: 8 }, (_, lane) => 10 + 4 * lane);
    const prompts = Array.from({ length: requests }, (_, index) => {
      const lane = index % 8;
      columns[lane] = (columns[lane] as number) + 1 + (index % 2);
      return Array.from({ length: columns[lane] as number }, (_, at) => (at < 6 ? at : 1_000 * (lane + 1) + at));
    });
    const entries = prompts.map((blocks, index) => ({ t: index / 50, in: blocks.length * 64, hash_ids: blocks }));
    return { text: JSON.stringify({ block_size: 64, requests: entries }), prompts };
  }

  /** Columns that each request hits of those that requests from `from` on have stored. */
  function hits(prompts: readonly number[][], from: number): number[] {
    const stored = new Set<number>();
    return prompts.slice(from).map((blocks) => {
      // A block is always behind the same ones.
      const first = blocks.findIndex((block) => !stored.has(block));
      for (const block of blocks) stored.add(block);
      return first < 0 ? blocks.length : first;
    });
  }

  const sum = (values: readonly number[]) => values.reduce((all, value) => all + value, 0);

  test.concurrent.each(LINKS)(
    'that is killed and started again goes on with the hits of one that was not (%s)',
    async (_link, addressOf) => {
      using scratch = new Scratch();
      await using daemon = await TestDaemon.start(scratch.file('s'), {
        shards: SHARDS,
        budget: BUDGET,
        flags: ['--tcp-port', '0'],
      });
      const { text, prompts } = trace(300);
      const path = scratch.file('trace.json', text);
      const keyFile = scratch.file('key');
      writeFileSync(keyFile, randomBytes(32));
      const replay = (...more: string[]): ChildProcess =>
        spawn(
          process.execPath,
          [
            ...[MAIN, 'replay', path, '--connect', addressOf(daemon), '--key-file', keyFile, '--json'],
            ...['--bytes-per-token', '24,32,40,32', '--capacity-columns', '1500', ...more],
          ],
          { stdio: ['ignore', 'pipe', 'pipe'] },
        );
      const all = hits(prompts, 0);
      const victim = replay('--speed', '1');
      const killed = finish(victim);
      const refills = () => daemon.metric('kvss_refills_total');
      await until(async () => (await refills()) > (sum(all) * SHARDS) / 6);
      victim.kill('SIGKILL');
      expect((await killed).signal).toBe('SIGKILL');
      await alone(daemon);
      // Requests that it has served to the end, by what has come back.
      const columns = (await refills()) / SHARDS;
      let served = 0;
      for (let sofar = all[0] as number; sofar + (all[served + 1] as number) <= columns; served += 1) {
        sofar += all[served + 1] as number;
      }
      expect(served).toBeGreaterThan(20);
      expect(served).toBeLessThan(300);

      const { code, stdout, stderr } = await finish(replay('--skip', String(served)));
      expect([code, stderr]).toEqual([0, expect.stringContaining('columns of an earlier replay found')]);
      const report = JSON.parse(stdout);
      expect(report).toMatchObject({ requests: 300 - served, mismatches: 0, columnsDropped: 0 });
      // What one that was not killed would have hit of these.
      const uninterrupted = sum(all.slice(served));
      expect(report.columnHits).toBeGreaterThanOrEqual(uninterrupted);
      expect(uninterrupted).toBeGreaterThan(sum(hits(prompts, served)));
      expect(report.columnsRefilled).toBe(report.columnHits);
      expect(await daemon.metric('kvss_tenant_alarms_total')).toBe(0);
    },
  );
});

describe('a driver that cannot be started again', () => {
  test.each<[string, Partial<SwDriverOptions>, string]>([
    ['without a key', { resume: undefined as never }, 'resume: the key of the driver that was there before is needed'],
    ['with a key of nothing', { resume: {} as never }, 'resume.key: at least 32 bytes are needed'],
    ['with a short key', { resume: { key: new Uint8Array(31) } }, 'resume.key: at least 32 bytes are needed'],
    ['with a key that is text', { resume: { key: 'x'.repeat(40) as never } }, 'resume.key: at least 32 bytes'],
    ...[0, -1, 1.5, Number.NaN, 86_400_001, Number.POSITIVE_INFINITY].map(
      (parkMs): [string, Partial<SwDriverOptions>, string] => [
        `to be kept for ${parkMs} ms`,
        { resume: { key: new Uint8Array(32), parkMs } },
        `resume.parkMs: ${parkMs} is outside 1..86400000`,
      ],
    ),
    [
      'with a carrier',
      {
        resume: { key: new Uint8Array(32) },
        carrier: { places: 1, pieceBytes: [1024, 2048] } as unknown as Carrier,
      },
      'carrier: the records of columns cannot lie with a carrier',
    ],
  ])('%s says so by name, and reaches for nobody', async (_how, options, message) => {
    const asked = { daemons: ['/nowhere/at/all'], model: MODEL, ...options };
    await expect(SwDriver.resume(asked)).rejects.toMatchObject({
      code: 'KVSS_BAD_INPUT',
      message: expect.stringContaining(message),
    });
    if (options.resume) {
      await expect(SwDriver.connect(asked)).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
    }
  });
});
