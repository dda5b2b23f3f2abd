import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { SwDriver } from '../../src/index.js';
import { LaneKind } from '../../src/proto/generated.js';
import type { Sequence } from '../../src/swdriver/sequence.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { type BadNetwork, SecondDaemon } from './bad_network.js';
import { pause, Scratch, TestDaemon, until } from './support.js';
import { promptOf, Work } from './work.js';

const DEADLINE_MS = 500;
/** Of one call, on a busy machine. The promise is the deadline. */
const LONGEST_CALL_MS = DEADLINE_MS + 4_000;

function found(sequence: Sequence, tokens: Uint32Array): number {
  using hit = sequence.match(tokens);
  return hit.columns;
}

const STRIPINGS = {
  across: { striping: 'across', bytesPerToken: [16, 32, 24, 8] },
  within: { striping: 'within', bytesPerToken: [16, 32] },
} as const;

const MODEL = { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64' };

const allFree = async (daemon: TestDaemon) =>
  (await daemon.metric('kvss_free_bytes')) === (await daemon.metric('kvss_budget_bytes')) &&
  (await daemon.metric('kvss_sessions')) === 0;

describe.each(Object.values(STRIPINGS))(
  'a driver over TCP, striped $striping two daemons,',
  ({ striping, bytesPerToken }) => {
    const within = striping === 'within';

    /** Two daemons, the second behind a bad network, and a driver at work. Checks what has to be true in the end. */
    async function box(hurt: (work: Work, second: SecondDaemon) => Promise<void>): Promise<Work> {
      using scratch = new Scratch();
      const flags = ['--tcp-port', '0'];
      await using first = await TestDaemon.start(scratch.file('a'), { flags });
      await using second = await SecondDaemon.start(scratch.file('b'));
      const { proxy } = second;
      await using driver = await SwDriver.connect({
        daemons: [`tcp://127.0.0.1:${first.streamPorts[0]}`, proxy.address],
        model: { ...MODEL, bytesPerToken: [...bytesPerToken] },
        striping,
        capacityColumns: within ? 24 : 48,
        deadlineMs: DEADLINE_MS,
        connectDeadlineMs: 1_000,
      });
      const work = new Work(driver);
      await work.goesOn();
      await hurt(work, second);
      // It works again, with all of its memory.
      await until(() => driver.capacityColumns === 48);
      await work.goesOn(200);
      await work.stop();
      // A stripe whose daemon was slow may have been given up only just now.
      await until(() => driver.capacityColumns === 48);
      expect(work.wafer.stats.mismatches).toBe(0);
      expect(work.wafer.stats.bytesVerified).toBeGreaterThan(0);
      // Slots were overwritten.
      expect(driver.stats.columnsDeleted).toBeGreaterThan(0);
      for (const ms of Object.values(work.longest)) expect(ms).toBeLessThan(LONGEST_CALL_MS);
      // Only the stripe with the second daemon goes and comes, in turn, and it is there in the end.
      const hurtStripe = within ? 1 : 0;
      const turns = work.events.map((_, index) => `${index % 2 === 0 ? 'down' : 'up'} ${hurtStripe}`);
      expect(work.events).toEqual(turns);
      expect(work.events.length % 2).toBe(0);
      await driver.close();
      await until(() => allFree(first));
      await until(() => allFree(second.daemon));
      return work;
    }

    test('goes on when one of them is killed and started again', async () => {
      const work = await box(async (work, second) => {
        const down = new Promise((resolve) => work.driver.once('down', resolve));
        const restarted = second.restart();
        await down;
        expect(work.driver.capacityColumns).toBe(within ? 24 : 0);
        expect(work.driver.usable).toBe(within);
        if (within) await work.goesOn();
        await restarted;
      });
      expect(work.events).toHaveLength(2);
      expect(work.usable).toEqual(within ? [] : [false, true]);
    });

    test('goes on when one of them freezes for three seconds', async () => {
      const work = await box(async (work, { daemon }) => {
        await daemon.freeze();
        const from = work.hits;
        await pause(3_000);
        if (within) expect(work.hits).toBeGreaterThan(from + 60);
        daemon.kill('SIGCONT');
      });
      expect(work.events).toHaveLength(2);
    });

    test.each([
      ['both ways', { out: true, back: true }],
      ['towards the daemon', { out: true, back: false }],
      ['towards the driver', { out: false, back: true }],
    ])('goes on when the network swallows what it is given %s', async (_name, ways) => {
      const work = await box(async (work, { proxy }) => {
        const down = new Promise((resolve) => work.driver.once('down', resolve));
        proxy.swallow(ways);
        await down;
        if (within) await work.goesOn();
        // Long enough for an attempt to connect that ends nowhere.
        await pause(500);
        proxy.heal();
      });
      expect(work.events).toHaveLength(2);
    });

    test('goes on when all connections are reset, again and again', async () => {
      const work = await box(async (work, { proxy }) => {
        for (let round = 0; round < 5; round += 1) {
          const down = new Promise((resolve) => work.driver.once('down', resolve));
          const up = new Promise((resolve) => work.driver.once('up', resolve));
          proxy.resetAll();
          await down;
          await up;
          // Each time at another moment of its work.
          await work.goesOn(1 + 7 * round);
        }
      });
      expect(work.events).toHaveLength(10);
    });

    test('goes on when everything takes its time', async () => {
      await box(async (work, { proxy }) => {
        proxy.delayMs = 40;
        await work.goesOn();
        // Longer than a call may take.
        proxy.delayMs = DEADLINE_MS;
        await pause(1_500);
        proxy.delayMs = 0;
      });
    });

    test('goes on when a connection ends in the middle of anything', async () => {
      const places: [LaneKind, 'out' | 'back', number[]][] = [
        // In a header, behind it, in the payload behind it, in later ones.
        [LaneKind.wioEvict, 'out', [0, 5, 32, 33, 700, 5_000, 20_001]],
        [LaneKind.wioRefill, 'back', [5, 32, 33, 700, 5_000, 20_001]],
        [LaneKind.hio, 'out', [1, 60, 1_000]],
        [LaneKind.hio, 'back', [1, 60, 1_000]],
      ];
      const cuts = places.flatMap(([kind, way, afters]) =>
        afters.map((after, index) => ({
          kind,
          way,
          after,
          how: index % 2 === 0 ? ('reset' as const) : ('end' as const),
        })),
      );
      const work = await box(async (work, { proxy }) => {
        for (const [index, scissors] of cuts.entries()) {
          const up = new Promise((resolve) => work.driver.once('up', resolve));
          proxy.cut(scissors);
          await until(() => proxy.cuts > index);
          await up;
        }
      });
      expect(work.events).toHaveLength(2 * cuts.length);
    });
  },
);

describe('a driver over TCP, far away from its daemon,', () => {
  async function far(run: (driver: SwDriver, network: BadNetwork) => Promise<void>): Promise<void> {
    using scratch = new Scratch();
    await using far = await SecondDaemon.start(scratch.file('s'));
    await using driver = await SwDriver.connect({
      daemons: [far.proxy.address],
      model: { ...MODEL, bytesPerToken: [16, 32] },
      deadlineMs: DEADLINE_MS,
      // Four columns at once.
      placeBytes: 4 * 64 * 32,
    });
    await run(driver, far.proxy);
  }

  test('ends a call of many parts at its deadline, however well each of them goes', () =>
    far(async (driver, network) => {
      const wafer = new StampingRuntime(64);
      const tokens = promptOf(1, 1, 58);
      const request = wafer.request('acme', tokens);
      const sequence = driver.openSequence({ isolationId: 'acme' });
      sequence.match(tokens).release();
      expect((await sequence.evict(request.source)).stored).toBe(64);
      network.delayMs = 50;
      // Each part takes a tenth of a second at least, and two columns: all of them would take more than three seconds.
      using hit = sequence.match(tokens);
      let from = performance.now();
      const { columns } = await hit.refill(request.sink);
      expect(performance.now() - from).toBeLessThan(2_500);
      request.accept(columns);
      expect(columns).toBeGreaterThan(0);
      expect(columns).toBeLessThan(64);
      // The last part came too late for that call; when it has come the driver trusts its daemon again.
      await until(() => found(sequence, tokens) === 64);
      // And here four columns.
      const others = promptOf(2, 2, 250);
      const other = driver.openSequence({ isolationId: 'acme' });
      other.match(others).release();
      from = performance.now();
      const { stored } = await other.evict(wafer.request('acme', others).source);
      expect(performance.now() - from).toBeLessThan(2_500);
      expect(stored).toBeGreaterThan(0);
      expect(stored).toBeLessThan(256);
      expect(wafer.stats.mismatches).toBe(0);
    }));

  test('has the kernel ask after the other side on every connection, and so has the daemon', async () => {
    // A host that vanishes says no goodbye, and its memory has to come back although the daemon never sends unasked.
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { flags: ['--tcp-port', '0'] });
    const port = daemon.streamPorts[0] as number;
    const daemons = [`tcp://127.0.0.1:${port}`];
    await using driver = await SwDriver.connect({ daemons, model: { ...MODEL, bytesPerToken: [16, 32] } });
    expect(driver.capacityColumns).toBeGreaterThan(0);
    // Columns of the table: number, local and remote address, state (01: established), queues, timer (02: keepalive).
    const end = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
    const timers = () =>
      readFileSync('/proc/net/tcp', 'utf8')
        .split('\n')
        .map((line) => line.trim().split(/\s+/))
        .filter(([, local, remote, state]) => state === '01' && (local?.endsWith(end) || remote?.endsWith(end)))
        .map((row) => row[5]?.slice(0, 2));
    // Control and, for each of two shards, three lanes: seen from both ends. What has just been sent has another timer.
    await until(() => timers().join() === Array(14).fill('02').join());
  });

  test('does not give it up because a call was in a hurry', () =>
    far(async (driver, network) => {
      const tokens = promptOf(1, 1, 1);
      const wafer = new StampingRuntime(64);
      const { source, sink } = wafer.request('acme', tokens);
      const sequence = driver.openSequence({ isolationId: 'acme' });
      sequence.match(tokens).release();
      await sequence.evict(source);
      let downs = 0;
      driver.on('down', () => {
        downs += 1;
      });
      network.delayMs = 20;
      using hit = sequence.match(tokens);
      expect((await hit.refill(sink, { deadlineMs: 5 })).columns).toBe(0);
      // The answer comes, late, and with it the trust.
      await until(() => found(sequence, tokens) === 7 || downs > 0);
      expect(downs).toBe(0);
      expect((await hit.refill(sink)).columns).toBe(7);
    }));
});
