import type { ChildProcess } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { native } from '../../src/binding/native.js';
import { SwDriver, type SwDriverOptions } from '../../src/index.js';
import type { Carrier } from '../../src/links/carrier.js';
import { CarrierClient } from '../../src/links/carrier_client.js';
import { ControlClient } from '../../src/links/control_client.js';
import { openLane } from '../../src/links/open_lane.js';
import { parseStreamAddress, type StreamAddress } from '../../src/links/stream_address.js';
import type { PayloadOf } from '../../src/proto/frames.js';
import { LaneKind } from '../../src/proto/generated.js';
import { controlHello, encodeLane } from '../../src/proto/lanes.js';
import { RemoteWafer } from '../../src/wafer/remote_wafer.js';
import { parseWaferConfig } from '../../src/wafer/wafer_config.js';
import { WaferRuntime } from '../../src/wafer/wafer_runtime.js';
import { WaferServer } from '../../src/wafer/wafer_server.js';
import { ManualClock } from '../model/manual_clock.js';
import { BadNetwork, SecondDaemon } from './bad_network.js';
import { type Finished, kvss, message, pause, Scratch, startChild, startWafer, TestDaemon, until } from './support.js';

const DEADLINE_MS = 500;
/** Of one call, on a busy machine. The promise is the deadline. */
const LONGEST_CALL_MS = DEADLINE_MS + 4_000;

const BYTES_PER_TOKEN = [16, 32, 48, 16];
const SHARDS = BYTES_PER_TOKEN.length;
const COLUMN_BYTES = BYTES_PER_TOKEN.reduce((sum, bytes) => sum + bytes * 64, 0);
const MODEL = { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: BYTES_PER_TOKEN };
const PLACES = 60;

const tokensOf = (seed: number, columns: number) =>
  Uint32Array.from({ length: columns * 64 }, (_, at) => Math.imul(at + 1, seed * 2_654_435_761));

const allFree = async (daemon: TestDaemon) =>
  (await daemon.metric('kvss_free_bytes')) === (await daemon.metric('kvss_budget_bytes')) &&
  (await daemon.metric('kvss_sessions')) === 0;

/** Open sockets of a process. */
function socketsOf(pid: number): number {
  const directory = `/proc/${pid}/fd`;
  return readdirSync(directory).filter((fd) => {
    try {
      return readlinkSync(`${directory}/${fd}`).startsWith('socket:');
    } catch {
      return false;
    }
  }).length;
}

/** `kvss wafer` in a process of its own, which a test may treat as badly as it likes. */
class TestWafer implements AsyncDisposable {
  private constructor(
    readonly child: ChildProcess,
    readonly finished: Promise<Finished>,
    readonly address: string,
  ) {}

  /** Listens at a free port, or where a configuration says. */
  static async start(...flags: string[]): Promise<TestWafer> {
    const { child, finished } = startWafer(
      ...(flags.includes('--config') ? [] : ['--listen', 'tcp://127.0.0.1:0']),
      ...['--log-level', 'silent'],
      ...['--bytes-per-token', BYTES_PER_TOKEN.join(','), '--memory-columns', String(PLACES), ...flags],
    );
    const ready = await Promise.race([message(child), finished]);
    if (!('ports' in ready)) throw new Error(`the wafer did not start: ${(ready as Finished).stderr}`);
    return new TestWafer(child, finished, `tcp://127.0.0.1:${(ready.ports as number[])[0]}`);
  }

  get pid(): number {
    return this.child.pid as number;
  }

  get sockets(): number {
    return socketsOf(this.pid);
  }

  /** Stops every thread; the signal alone returns before they stand. */
  async freeze(): Promise<void> {
    this.child.kill('SIGSTOP');
    await until(() =>
      readdirSync(`/proc/${this.pid}/task`).every((task) =>
        / [Tt] /.test(readFileSync(`/proc/${this.pid}/task/${task}/stat`, 'utf8').slice(0, 80)),
      ),
    );
  }

  thaw(): void {
    this.child.kill('SIGCONT');
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL');
    await this.finished;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.thaw();
    await this.kill();
  }
}

/** A carrier that reaches daemons through a bad network, and a driver that does not. */
const through = (network: BadNetwork, carrier: Carrier): Carrier => ({
  places: carrier.places,
  pieceBytes: carrier.pieceBytes,
  carry: (request) => carrier.carry({ ...request, daemon: network.address }),
});

/** Everything that a test has in hand. */
interface World {
  daemon: TestDaemon;
  /** Between the wafer and the daemon only. */
  network: BadNetwork;
  wafer: TestWafer;
  remote: RemoteWafer;
  driver: SwDriver;
  runtime: WaferRuntime;
}

async function world(
  run: (world: World) => Promise<void>,
  options: Partial<SwDriverOptions> & { dropMs?: number } = {},
): Promise<void> {
  using scratch = new Scratch();
  const { dropMs = 1_000, ...more } = options;
  await using daemon = await TestDaemon.start(scratch.file('s'), { shards: SHARDS, flags: ['--tcp-port', '0'] });
  const port = daemon.streamPorts[0] as number;
  await using network = await BadNetwork.before(port);
  await using wafer = await TestWafer.start();
  await using remote = await RemoteWafer.connect(wafer.address, { deadlineMs: dropMs });
  await using driver = await SwDriver.connect({
    daemons: [`tcp://127.0.0.1:${port}`],
    model: MODEL,
    deadlineMs: DEADLINE_MS,
    connectDeadlineMs: 1_000,
    capacityColumns: 60,
    carrier: through(network, remote.carrier),
    ...more,
  });
  const runtime = new WaferRuntime(remote, 64, COLUMN_BYTES);
  await run({ daemon, network, wafer, remote, driver, runtime });
  expect(runtime.stats.mismatches).toBe(0);
  await driver.close();
  await remote.close();
  await until(() => allFree(daemon));
}

/** One request as a runtime serves it. */
async function serve({ driver, runtime }: Pick<World, 'driver' | 'runtime'>, tokens: Uint32Array) {
  const sequence = driver.openSequence({ isolationId: 'acme' });
  const request = runtime.request('acme', tokens);
  try {
    const hit = sequence.match(tokens);
    const { columns, quiet } = await timed(() => hit.refill(request.sink));
    await request.accept(columns, quiet);
    hit.release();
    await request.compute();
    const { stored } = await timed(() => sequence.evict(request.source));
    return { columns, stored };
  } finally {
    request.end();
  }
}

/** A call of the driver; it ends at its deadline, whatever happens. */
async function timed<Result>(call: () => Promise<Result>): Promise<Result> {
  const from = performance.now();
  const result = await call();
  expect(performance.now() - from).toBeLessThan(LONGEST_CALL_MS);
  return result;
}

const isSettled = async (promise: Promise<unknown>) => {
  let settled = false;
  promise.then(() => {
    settled = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  return settled;
};

const once = (driver: SwDriver, event: 'up' | 'down') =>
  new Promise<void>((resolve) => driver.once(event, () => resolve()));

const MIDDLES = [
  ['in an evict', LaneKind.wioEvict, 'out'],
  ['in a refill', LaneKind.wioRefill, 'back'],
] as const;

describe('a driver whose wafer is', () => {
  test.each(MIDDLES)('killed %s misses, says so, and gives the memory of the daemon back', (_name, kind, way) =>
    world(async ({ driver, runtime, network, wafer, daemon, remote }) => {
      const tokens = tokensOf(1, 30);
      if (kind === LaneKind.wioRefill) expect((await serve({ driver, runtime }, tokens)).stored).toBe(30);
      network.cut({ kind, way, after: 5_000, how: 'stall' });
      const down = once(driver, 'down');
      const sequence = driver.openSequence({ isolationId: 'acme' });
      const request = runtime.request('acme', tokens);
      using hit = sequence.match(tokens);
      let quiet: Promise<void> | undefined;
      if (kind === LaneKind.wioRefill) {
        const refilling = timed(() => hit.refill(request.sink));
        await until(() => network.cuts > 0);
        await wafer.kill();
        const result = await refilling;
        expect(result.columns).toBeLessThan(30);
        quiet = result.quiet;
      } else {
        await request.compute();
        const evicting = timed(() => sequence.evict(request.source));
        await until(() => network.cuts > 0);
        await wafer.kill();
        const { stored, dropped } = await evicting;
        expect(stored).toBeLessThan(30);
        expect(stored + dropped).toBe(30);
      }
      await down;
      await quiet;
      const gone = { code: 'KVSS_UNREACHABLE', message: expect.stringMatching(/has gone|cannot connect/) };
      await expect(remote.compute('prefill', [{ place: 0, key: 1n }])).rejects.toMatchObject(gone);
      await expect(remote.check([{ place: 0, key: 1n }])).rejects.toMatchObject(gone);
      // It goes on as a driver without a cache.
      using nothing = sequence.match(tokens);
      expect(nothing.columns).toBe(0);
      expect((await timed(() => sequence.evict(request.source))).stored).toBe(0);
      expect(driver.usable).toBe(false);
      request.end();
      // Between two attempts to come back nothing is held.
      await until(() => allFree(daemon));
    }),
  );

  // Those that wait for ever for what was dropped, and those that give up on a wafer that does not answer.
  test.each([
    ['until it has answered', 20_000],
    ['until it has been given up', 500],
  ])('stopped misses at once, and uses no place that may still be written to %s', (_name, dropMs) =>
    world(
      async ({ driver, runtime, wafer }) => {
        const tokens = tokensOf(1, 30);
        expect((await serve({ driver, runtime }, tokens)).stored).toBe(30);
        const { sockets } = wafer;
        const down = once(driver, 'down');
        const up = once(driver, 'up');
        await wafer.freeze();
        const request = runtime.request('acme', tokens);
        const sequence = driver.openSequence({ isolationId: 'acme' });
        const hit = sequence.match(tokens);
        // The shards have sent all of it: it waits in the kernel, and will be written when the wafer goes on.
        const { columns, quiet } = await timed(() => hit.refill(request.sink));
        expect(columns).toBe(0);
        expect(await isSettled(quiet)).toBe(false);
        const accepted = request.accept(columns, quiet);
        expect(runtime.freePlaces).toBe(PLACES - 30);
        const from = performance.now();
        const again = runtime.request('acme', tokens);
        const missed = await hit.refill(again.sink);
        expect(missed.columns).toBe(0);
        await again.accept(0, missed.quiet);
        using other = driver.openSequence({ isolationId: 'acme' }).match(tokens);
        expect(other.columns).toBe(0);
        expect(performance.now() - from).toBeLessThan(DEADLINE_MS);
        hit.release();
        await down;
        if (dropMs > 10_000) {
          expect(await isSettled(quiet)).toBe(false);
          expect(runtime.freePlaces).toBe(PLACES - 30);
          wafer.thaw();
        }
        await quiet;
        await accepted;
        request.end();
        await until(() => runtime.freePlaces === PLACES);
        // All places at once: those that were written to late as well.
        const next = runtime.request('acme', tokensOf(2, PLACES));
        const computed = next.compute();
        wafer.thaw();
        await computed;
        await next.accept(PLACES, Promise.resolve());
        expect(runtime.stats).toMatchObject({ mismatches: 0, bytesVerified: PLACES * COLUMN_BYTES });
        next.end();
        await up;
        expect(await serve({ driver, runtime }, tokens)).toEqual({ columns: 0, stored: 30 });
        expect(await serve({ driver, runtime }, tokens)).toEqual({ columns: 30, stored: 0 });
        expect(runtime.freePlaces).toBe(PLACES);
        await until(() => wafer.sockets === sockets);
      },
      { dropMs },
    ),
  );
});

/** Requests one after another, of prompts that share prefixes, until it is stopped. */
class Work {
  hits = 0;
  #stopping = false;
  readonly #running: Promise<void>[];

  constructor(private readonly parties: Pick<World, 'driver' | 'runtime'>) {
    this.#running = [1, 2, 3].map((lane) => this.#loop(lane));
    for (const lane of this.#running) lane.catch(() => undefined);
  }

  async goesOn(columns = 60): Promise<void> {
    const from = this.hits;
    await until(() => this.hits >= from + columns);
  }

  /** Rethrows what any of the calls threw. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.#running);
  }

  async #loop(lane: number): Promise<void> {
    for (let round = lane; !this.#stopping; round += 5) {
      const { columns, stored } = await serve(this.parties, tokensOf(1 + (round % 7), 6 + (round % 11)));
      this.hits += columns;
      // Without daemons nothing else waits.
      if (columns + stored === 0) await pause(2);
    }
  }
}

describe('a driver and its wafer', () => {
  test('go on with new lanes when their daemon is killed and started again, and the wafer keeps no old ones', async () => {
    using scratch = new Scratch();
    await using second = await SecondDaemon.start(scratch.file('s'), { shards: SHARDS });
    await using wafer = await TestWafer.start();
    const alone = wafer.sockets;
    await using remote = await RemoteWafer.connect(wafer.address, { deadlineMs: 1_000 });
    await using driver = await SwDriver.connect({
      daemons: [second.proxy.address],
      model: MODEL,
      deadlineMs: DEADLINE_MS,
      connectDeadlineMs: 1_000,
      wioStreams: 2,
      carrier: remote.carrier,
    });
    const runtime = new WaferRuntime(remote, 64, COLUMN_BYTES);
    const work = new Work({ driver, runtime });
    await work.goesOn();
    // The control connection and, for each shard, an order lane and four lanes of payload.
    const working = alone + 1 + 5 * SHARDS;
    expect(wafer.sockets).toBe(working);
    for (let round = 0; round < 2; round += 1) {
      const [down, up] = [once(driver, 'down'), once(driver, 'up')];
      await second.restart();
      await down;
      await up;
      await work.goesOn();
    }
    await work.stop();
    await until(() => wafer.sockets === working);
    await until(() => runtime.freePlaces === PLACES);
    expect(runtime.stats.mismatches).toBe(0);
    await driver.close();
    await until(() => wafer.sockets === alone + 1);
    await remote.close();
    await until(() => wafer.sockets === alone);
    await until(() => allFree(second.daemon));
  });

  test.each([
    ['both ways', { out: true, back: true }],
    ['towards the daemon', { out: true, back: false }],
    ['towards the wafer', { out: false, back: true }],
  ])('go on when nothing passes between the wafer and the daemon for a while, %s', (_name, ways) =>
    world(async ({ driver, runtime, network, wafer }) => {
      const { sockets } = wafer;
      const work = new Work({ driver, runtime });
      await work.goesOn();
      const { columnsDropped } = driver.stats;
      const [down, up] = [once(driver, 'down'), once(driver, 'up')];
      network.swallow(ways);
      if (ways.back) {
        await down;
        // Long enough for an attempt to open lanes that end nowhere.
        await pause(300);
        network.heal();
        await up;
      } else {
        // The shards say of each evict that its bytes have not come: that is no silence.
        await until(() => driver.stats.columnsDropped > columnsDropped + 20);
        network.heal();
      }
      await work.goesOn();
      await work.stop();
      await until(() => runtime.freePlaces === PLACES);
      await until(() => wafer.sockets === sockets);
    }),
  );

  test('go on when a lane between the wafer and the daemon ends in the middle of anything', () =>
    world(async ({ driver, runtime, network }) => {
      const work = new Work({ driver, runtime });
      await work.goesOn();
      const cuts = [0, 5, 32, 33, 700, 5_000, 20_001].flatMap((after, index) =>
        MIDDLES.filter(([, , way]) => way === 'out' || after > 0).map(([, kind, way]) => ({
          kind,
          way,
          after,
          how: index % 2 === 0 ? ('reset' as const) : ('end' as const),
        })),
      );
      for (const [index, scissors] of cuts.entries()) {
        const up = once(driver, 'up');
        network.cut(scissors);
        await until(() => network.cuts > index);
        await up;
      }
      await work.goesOn();
      await work.stop();
      await until(() => runtime.freePlaces === PLACES);
    }));

  test('leave nothing behind when the process of the driver is killed', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: SHARDS, flags: ['--tcp-port', '0'] });
    await using wafer = await TestWafer.start();
    const alone = wafer.sockets;
    const { child, finished } = startChild('carried_driver.mjs', [
      `tcp://127.0.0.1:${daemon.streamPorts[0]}`,
      wafer.address,
    ]);
    const served = await Promise.race([message(child), finished]);
    expect(served).toEqual({ served: 10 });
    expect(wafer.sockets).toBe(alone + 1 + 3 * SHARDS);
    child.kill('SIGKILL');
    await finished;
    await until(() => wafer.sockets === alone);
    await until(() => allFree(daemon));
  });
});

describe('a wafer', () => {
  /** A session with a daemon and one with a wafer, without a driver. */
  async function parties(
    run: (parties: {
      daemon: ControlClient;
      wafer: CarrierClient;
      /** A request that is right as far as it goes. */
      request: PayloadOf<'carry'>;
      ticket: (lifetimeMs: number) => Promise<Uint8Array>;
      /** Comes with an order lane. */
      order: (link: number, ticket: Uint8Array, sessionId?: number) => ReturnType<typeof openLane>;
      carry: (request: PayloadOf<'carry'>) => Promise<PayloadOf<'carrying'>>;
      sockets: () => number;
    }) => Promise<void>,
    start: () => Promise<{ address: string; pid: number } & AsyncDisposable> = () =>
      TestWafer.start('--streams-per-domain', '2'),
  ): Promise<void> {
    using scratch = new Scratch();
    await using server = await TestDaemon.start(scratch.file('s'), { shards: SHARDS, flags: ['--tcp-port', '0'] });
    await using box = await start();
    const address = `tcp://127.0.0.1:${server.streamPorts[0]}`;
    const greeted = await ControlClient.greet(
      native.ControlChannel.adopt(await openLane(parseStreamAddress(address) as StreamAddress, controlHello(), 5_000)),
      5_000,
      'hello',
      'welcome',
    );
    const daemon = greeted.client;
    const { sessionId } = greeted.welcome;
    await daemon.request('attachStream', { shard: 0, window: 8 }, 'streamAttached');
    const ticket = async (lifetimeMs: number) =>
      (await daemon.request('ticket', { shard: 0, lifetimeMs }, 'ticketIssued')).payload.ticket;
    await using wafer = await CarrierClient.connect(box.address, { deadlineMs: 5_000 });
    const request = {
      ...{ daemon: address, shard: 0, sessionId, ticket: await ticket(60_000) },
      ...{ domain: 0, window: 8, streams: 2, checksums: false },
    };
    await run({
      daemon,
      wafer,
      request,
      ticket,
      order: (link, secret, session = 1) =>
        openLane(
          parseStreamAddress(box.address) as StreamAddress,
          encodeLane({ kind: LaneKind.order, shard: link, stream: 0, sessionId: session, ticket: secret }),
          5_000,
        ),
      carry: async (asked) => (await wafer.request('carry', asked, 'carrying')).payload,
      sockets: () => socketsOf(box.pid),
    });
    daemon.close();
    await until(() => allFree(server));
  }

  test('that is asked to carry what cannot be says why not, and goes on', () =>
    parties(async ({ wafer, request, ticket, carry, sockets }) => {
      const before = sockets();
      const refusals: [string, Partial<PayloadOf<'carry'>>, string][] = [
        ['a wrong ticket', { ticket: new Uint8Array(32) }, 'refused the lane'],
        ['a session that does not exist', { sessionId: 99 }, 'refused the lane'],
        ['a ticket for another shard', { shard: 1 }, 'refused the lane'],
        ['a domain that does not exist', { domain: 4 }, 'there is no domain 4'],
        ['more streams than it has', { streams: 3 }, 'has 2 streams, 3 are asked for'],
        ['a window of no power of two', { window: 12 }, 'power of two'],
        ['the path of a control socket', { daemon: '/run/kvss/kvss.sock' }, "'/run/kvss/kvss.sock' is no address"],
        ['another protocol', { daemon: 'http://127.0.0.1:80' }, "'http://127.0.0.1:80' is no address"],
        ['no address', { daemon: 'tcp://nowhere' }, "'tcp://nowhere' is no address"],
        ['nobody at a port', { daemon: 'tcp://127.0.0.1:1' }, 'cannot open its lanes to tcp://127.0.0.1:1'],
        ['nobody at a path', { daemon: 'unix:/none' }, 'cannot open its lanes to unix:/none'],
      ];
      for (const [what, wrong, why] of refusals) {
        await expect(carry({ ...request, ...wrong }), what).rejects.toMatchObject({
          code: 'KVSS_LIMIT_EXCEEDED',
          message: expect.stringContaining(why),
        });
      }
      const expiring = await ticket(1);
      await pause(50);
      await expect(carry({ ...request, ticket: expiring })).rejects.toMatchObject({
        message: expect.stringContaining('refused the lane'),
      });
      // Not one of them has left a lane behind.
      await until(() => sockets() === before);
      const carried = await wafer.carry(request);
      expect(sockets()).toBe(before + 5);
      await carried.drop();
      await until(() => sockets() === before);
      carried.order.close();
    }));

  test('takes one order lane for what it carries, with the ticket for that', () =>
    parties(async ({ request, carry, order, sockets }) => {
      const before = sockets();
      const { link, ticket } = await carry(request);
      const refused = { code: 'KVSS_UNREACHABLE', message: expect.stringContaining('refused the lane') };
      await expect(order(link, new Uint8Array(32))).rejects.toMatchObject(refused);
      await expect(order(link + 1, ticket)).rejects.toMatchObject(refused);
      await expect(order(link, ticket, 2)).rejects.toMatchObject(refused);
      await expect(order(link, request.ticket)).rejects.toMatchObject(refused);
      const lane = await order(link, ticket);
      await expect(order(link, ticket)).rejects.toMatchObject(refused);
      await until(() => sockets() === before + 5);
      lane.close();
      await until(() => sockets() === before);
      // The lane has ended, and so has what it was for.
      await expect(order(link, ticket)).rejects.toMatchObject(refused);
    }));

  test('does not keep lanes for a driver that does not come for them', async () => {
    const clock = new ManualClock();
    await parties(
      async ({ daemon, carry, request, order }) => {
        const { link, ticket } = await carry(request);
        await clock.advance(9_000);
        await daemon.request('stats', {}, 'statsReply');
        expect(daemon.ended).toBe(false);
        await clock.advance(1_000);
        // A session ends with any of its lanes.
        await until(() => daemon.ended);
        await expect(order(link, ticket)).rejects.toMatchObject({ code: 'KVSS_UNREACHABLE' });
      },
      async () => {
        const boxes = [{ bytesPerToken: BYTES_PER_TOKEN }];
        const config = parseWaferConfig({ boxes, memoryColumns: PLACES, listen: [{ port: 0 }] });
        const server = WaferServer.start(config, undefined, clock);
        return {
          address: `tcp://127.0.0.1:${server.ports[0]}`,
          pid: process.pid,
          [Symbol.asyncDispose]: () => server.stop(),
        };
      },
    );
  });

  const serverAt = (path: string) =>
    WaferServer.start(
      parseWaferConfig({
        boxes: [{ bytesPerToken: BYTES_PER_TOKEN }],
        memoryColumns: PLACES,
        listen: [{ path }],
      }),
    );

  test('works for one driver at a time, and for another one when that has gone', async () => {
    using scratch = new Scratch();
    const path = scratch.file('wafer');
    await using _server = serverAt(path);
    const connect = () => RemoteWafer.connect(`unix:${path}`, { deadlineMs: 5_000 });
    const first = await connect();
    const column = { place: 0, key: 7n };
    await first.compute('prefill', [column]);
    const refused = { code: 'KVSS_LIMIT_EXCEEDED', message: 'the wafer works for another driver' };
    await expect(connect()).rejects.toMatchObject(refused);
    expect(await first.check([column])).toMatchObject({ mismatches: 0 });
    await first.close();
    await until(async () => {
      const next = await connect().catch(() => undefined);
      await next?.close();
      return next !== undefined;
    });
  });

  test('that was started anew is not taken for the one before', async () => {
    using scratch = new Scratch();
    const path = scratch.file('wafer');
    const before = serverAt(path);
    await using remote = await RemoteWafer.connect(`unix:${path}`, { deadlineMs: 5_000 });
    const column = { place: 0, key: 7n };
    await remote.compute('prefill', [column]);
    await before.stop();
    await using _again = serverAt(path);
    const answers = new Set<unknown>();
    // The first calls may only find that the connection has ended.
    await until(async () => {
      const answer = await remote.check([column]).catch((error) => error);
      answers.add(answer.code);
      return answer.message === 'the carrier was started anew, and its memory is gone' || answer.code === undefined;
    });
    expect([...answers]).toEqual(['KVSS_UNREACHABLE']);
  });

  test('wants its token, and says so', async () => {
    using scratch = new Scratch();
    const token = 'a secret of some length';
    const config = scratch.file('wafer.yaml', `listen: [{ port: 0, token: ${token} }]\n`);
    await using wafer = await TestWafer.start('--config', config);
    const why = { code: 'KVSS_NOT_ALLOWED', message: expect.stringContaining('does not carry the token') };
    for (const wrong of [undefined, '', 'another secret of some length']) {
      const options = { deadlineMs: 5_000, ...(wrong === undefined ? {} : { token: wrong }) };
      await expect(RemoteWafer.connect(wafer.address, options)).rejects.toMatchObject(why);
    }
    await using remote = await RemoteWafer.connect(wafer.address, { deadlineMs: 5_000, token });
    expect(remote.places).toBe(PLACES);
  });

  test.concurrent.each([
    [['--memory-columns', '8', '--bytes-per-token', '1,2,3,4'], 1, '--listen'],
    [['--listen', 'tcp://127.0.0.1:0', '--memory-columns', '8'], 1, "'boxes'"],
    [['--listen', 'tcp://127.0.0.1:0', '--bytes-per-token', '1,2,3,4'], 1, "'memoryColumns'"],
    [['--listen', '/tmp/x', '--bytes-per-token', '1,2,3,4', '--memory-columns', '8'], 1, "--listen: '/tmp/x'"],
    [['--listen', 'tcp://0.0.0.0:0', '--bytes-per-token', '1,2,3,4', '--memory-columns', '8'], 1, "'listen.0.token'"],
    [['--listen', 'unix:/none/x', '--bytes-per-token', '1,2,3,4', '--memory-columns', '8'], 1, "'listen.0'"],
    [['--listen', 'tcp://127.0.0.1:0', '--bytes-per-token', '1,2,3'], 1, '--bytes-per-token: 3 numbers'],
    [['--bytes-per-token', '1,2,,4'], 2, "option '--bytes-per-token"],
    [['--column-tokens', '65537'], 2, "option '--column-tokens"],
    [['--streams-per-domain', '17'], 2, "option '--streams-per-domain"],
    [['--prefill-rate', '0'], 2, "option '--prefill-rate"],
    [['--decode-rate', 'fast'], 2, "option '--decode-rate"],
    [['--log-level', 'loud'], 2, "option '--log-level"],
    [['--listen', 'tcp://127.0.0.1:99999'], 2, "option '-l, --listen"],
    [['--config', '/none.yaml'], 1, '/none.yaml'],
    [['--tokens', '4'], 2, "unknown option '--tokens'"],
  ])('is not started by %j, and one line says why', async (flags, code, why) => {
    const refused = await kvss('wafer', ...flags);
    expect(refused).toMatchObject({ code, stdout: '', stderr: expect.stringContaining(why) });
    expect(refused.stderr.trimEnd().split('\n')).toHaveLength(1);
  });

  test.concurrent.each([
    ['listen: [{ prot: 1 }]', "unknown key 'listen.0.prot'"],
    ['boxes: [{ bytesPerToken: [1, 2, 3, 4] }]\nmemoryColumns: many', "'memoryColumns'"],
    ['boxes: [{ bytesPerToken: [1, 2, 3] }]', "'boxes.0.bytesPerToken'"],
    ['boxes: [{ bytesPerToken: [1, 2, 3, 4] }]\ncolumnTokens: 7\nmemoryColumns: 1', "'boxes.0.bytesPerToken.0'"],
    ['memory: 7', "unknown key 'memory'"],
    ['listen: [', 'line 1'],
    ['- 7', 'expected keys and values'],
  ])('is not started with %j in its configuration, and one line says why', async (text, why) => {
    using scratch = new Scratch();
    const refused = await kvss('wafer', '--config', scratch.file('wafer.yaml', text));
    expect(refused).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining(why) });
    expect(refused.stderr).toContain('wafer.yaml');
    expect(refused.stderr.trimEnd().split('\n')).toHaveLength(1);
  });
});
