import { readFileSync } from 'node:fs';
import { createServer, connect as dial, type Server, type Socket } from 'node:net';
import { describe, expect, test } from 'vitest';
import { SwDriver } from '../../src/index.js';
import { LaneHelloLayout, LaneKind } from '../../src/proto/generated.js';
import type { Sequence } from '../../src/swdriver/sequence.js';
import { EmulatedWafer } from '../../src/wafer/emulated_wafer.js';
import { Scratch, TestDaemon, until } from './support.js';

const DEADLINE_MS = 500;
/** Of one call, on a busy machine. The promise is the deadline. */
const LONGEST_CALL_MS = DEADLINE_MS + 4_000;

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Bytes of one way of a connection, on their way. */
interface Way {
  from: Socket;
  to: Socket;
  /** What has been read and not yet been passed on; undefined is the end. */
  waiting: (Buffer | undefined)[];
  /** Bytes since the scissors were set. */
  passed: number;
}

interface Pair {
  client: Socket;
  daemon: Socket;
  /** What the connection is for, once its hello has passed. */
  kind: LaneKind | undefined;
  out: Way;
  back: Way;
}

interface Scissors {
  kind: LaneKind;
  way: 'out' | 'back';
  after: number;
  how: 'end' | 'reset';
}

/** What lies between a driver and a daemon, and goes wrong on request. */
class BadNetwork implements AsyncDisposable {
  delayMs = 0;
  cuts = 0;
  #hole = { out: false, back: false };
  #scissors: Scissors | undefined;
  readonly #pairs = new Set<Pair>();

  private constructor(
    private readonly server: Server,
    private readonly target: number,
  ) {
    server.on('connection', (client) => this.#join(client));
  }

  static async before(target: number): Promise<BadNetwork> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new BadNetwork(server, target);
  }

  get address(): string {
    const address = this.server.address();
    if (address === null || typeof address === 'string') throw new Error('the proxy does not listen');
    return `tcp://127.0.0.1:${address.port}`;
  }

  /** From now on nothing passes, and nobody is told. */
  swallow(ways: { out: boolean; back: boolean }): void {
    this.#hole = ways;
    for (const pair of this.#pairs) this.#holdBack(pair);
  }

  /** What was swallowed comes after all, late, and so does what follows. */
  heal(): void {
    this.swallow({ out: false, back: false });
  }

  resetAll(): void {
    for (const pair of this.#pairs) this.#part(pair, 'reset');
  }

  /** The next connection of this kind that has passed that many bytes ends there, whatever they are a part of. */
  cut(scissors: Scissors): void {
    for (const { out, back } of this.#pairs) {
      out.passed = 0;
      back.passed = 0;
    }
    this.#scissors = scissors;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const pair of this.#pairs) this.#part(pair, 'reset');
    await new Promise((resolve) => this.server.close(resolve));
  }

  #join(client: Socket): void {
    const daemon = dial({ port: this.target, host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
    const pair: Pair = {
      client,
      daemon,
      kind: undefined,
      out: { from: client, to: daemon, waiting: [], passed: 0 },
      back: { from: daemon, to: client, waiting: [], passed: 0 },
    };
    this.#pairs.add(pair);
    for (const way of [pair.out, pair.back]) {
      way.from.on('error', () => this.#part(pair, 'reset'));
      way.from.on('close', () => this.#part(pair, 'end'));
      const later = (bytes: Buffer | undefined) => {
        way.waiting.push(bytes);
        if (this.delayMs > 0) setTimeout(() => this.#pass(pair, way), this.delayMs);
        else while (way.waiting.length > 0) this.#pass(pair, way);
      };
      way.from.on('data', later);
      way.from.on('end', () => later(undefined));
    }
    this.#holdBack(pair);
  }

  #pass(pair: Pair, way: Way): void {
    if (way.waiting.length === 0 || !this.#pairs.has(pair)) return;
    const bytes = way.waiting.shift();
    if (bytes === undefined) {
      way.to.end();
      return;
    }
    // A hello is written at once and so arrives at once.
    if (way === pair.out) pair.kind ??= bytes.readUInt16LE(LaneHelloLayout.offset.kind) as LaneKind;
    const scissors = this.#scissors;
    if (scissors && scissors.kind === pair.kind && way === pair[scissors.way]) {
      if (way.passed + bytes.length > scissors.after) {
        this.#scissors = undefined;
        this.cuts += 1;
        way.to.write(bytes.subarray(0, scissors.after - way.passed), () => this.#part(pair, scissors.how));
        return;
      }
    }
    way.passed += bytes.length;
    way.to.write(bytes);
  }

  #holdBack({ client, daemon }: Pair): void {
    this.#hole.out ? client.pause() : client.resume();
    this.#hole.back ? daemon.pause() : daemon.resume();
  }

  #part(pair: Pair, how: 'end' | 'reset'): void {
    if (!this.#pairs.delete(pair)) return;
    for (const socket of [pair.client, pair.daemon]) how === 'reset' ? socket.resetAndDestroy() : socket.destroy();
  }
}

/** The daemon that gets hurt, behind a network that does. */
class SecondDaemon implements AsyncDisposable {
  private constructor(
    private readonly socket: string,
    private readonly port: number,
    readonly proxy: BadNetwork,
    public daemon: TestDaemon,
  ) {}

  static async start(socket: string): Promise<SecondDaemon> {
    const daemon = await TestDaemon.start(socket, { flags: ['--tcp-port', '0'] });
    const port = daemon.streamPorts[0] as number;
    return new SecondDaemon(socket, port, await BadNetwork.before(port), daemon);
  }

  async restart(): Promise<void> {
    this.daemon.kill('SIGKILL');
    await this.daemon.finished;
    this.daemon = await TestDaemon.start(this.socket, { flags: ['--tcp-port', String(this.port)] });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.proxy[Symbol.asyncDispose]();
    await this.daemon[Symbol.asyncDispose]();
  }
}

/** A runtime that is at work all the time: several requests at once, of tenants that share prefixes. */
class Work {
  readonly wafer = new EmulatedWafer(64);
  readonly events: string[] = [];
  readonly longest = { match: 0, refill: 0, evict: 0 };
  /** Columns that came back. */
  hits = 0;
  readonly #running: Promise<void>[];
  #stopping = false;

  constructor(readonly driver: SwDriver) {
    driver.on('up', (stripe) => this.events.push(`up ${stripe}`));
    driver.on('down', (stripe) => this.events.push(`down ${stripe}`));
    this.#running = Array.from({ length: 4 }, (_, lane) => this.#loop(lane + 1));
    // Looked at by stop(); a failure before that is none that nobody handles.
    for (const lane of this.#running) lane.catch(() => undefined);
  }

  /** Waits until that many columns more have come back. */
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
    let state = lane * 7919;
    const random = (below: number) => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return (state >>> 8) % below;
    };
    while (!this.#stopping) {
      const tenant = `tenant ${random(3)}`;
      const tokens = promptOf(random(2), random(6), 1 + random(8));
      const sequence = this.driver.openSequence({ isolationId: tenant });
      const request = this.wafer.request(tenant, tokens);
      const hit = await this.#timed('match', () => sequence.match(tokens));
      const sink = random(3) === 0 ? slowly(request.sink) : request.sink;
      const { columns } = await this.#timed('refill', () => hit.refill(sink));
      request.accept(columns);
      hit.release();
      const { stored } = await this.#timed('evict', () => sequence.evict(request.source));
      sequence.close();
      this.hits += columns;
      // Without daemons nothing else waits.
      if (columns + stored === 0) await pause(2);
    }
  }

  async #timed<T>(name: keyof Work['longest'], call: () => T | Promise<T>): Promise<T> {
    const from = performance.now();
    try {
      return await call();
    } finally {
      this.longest[name] = Math.max(this.longest[name], performance.now() - from);
    }
  }
}

type Sink = ReturnType<EmulatedWafer['request']>['sink'];

/** A sink that gives the event loop a turn in each column, so that things can go wrong meanwhile. */
function slowly(sink: Sink): Sink {
  if (!('read' in sink)) throw new Error('unexpected sink');
  return {
    async read(column, pieces) {
      await new Promise((resolve) => setImmediate(resolve));
      await sink.read(column, pieces);
    },
  };
}

function found(sequence: Sequence, tokens: Uint32Array): number {
  using hit = sequence.match(tokens);
  return hit.columns;
}

/** Six columns that prompts share, and a rest of their own. */
function promptOf(prefix: number, seed: number, rest: number): Uint32Array {
  return Uint32Array.from({ length: (6 + rest) * 64 + 5 }, (_, at) =>
    Math.imul(at + 1, at < 6 * 64 ? prefix + 77 : (prefix * 6 + seed + 1) * 2_654_435_761),
  );
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
        if (within) await work.goesOn();
        await restarted;
      });
      expect(work.events).toHaveLength(2);
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
      const wafer = new EmulatedWafer(64);
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
      const wafer = new EmulatedWafer(64);
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
