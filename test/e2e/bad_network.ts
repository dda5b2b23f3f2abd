import { createServer, connect as dial, type Server, type Socket } from 'node:net';
import { LaneHelloLayout, type LaneKind } from '../../src/proto/generated.js';
import { TestDaemon } from './support.js';

/** Bytes of one way of a connection, on their way. */
interface Way {
  from: Socket;
  to: Socket;
  /** What has been read and not yet been passed on; undefined is the end. */
  waiting: (Buffer | undefined)[];
  /** Bytes since the scissors were set. */
  passed: number;
  /** Nothing passes any more, for good. */
  stalled: boolean;
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
  /** `stall`: nothing more passes this way, and nobody is told. */
  how: 'end' | 'reset' | 'stall';
}

/** What lies between a driver and a daemon, and goes wrong on request. */
export class BadNetwork implements AsyncDisposable {
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
      out: { from: client, to: daemon, waiting: [], passed: 0, stalled: false },
      back: { from: daemon, to: client, waiting: [], passed: 0, stalled: false },
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
    if (way.stalled) way.waiting.length = 0;
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
        const { how } = scissors;
        way.stalled = true;
        way.to.write(bytes.subarray(0, scissors.after - way.passed), () => {
          if (how !== 'stall') this.#part(pair, how);
        });
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

type DaemonOptions = NonNullable<Parameters<typeof TestDaemon.start>[1]>;

/** The daemon that gets hurt, behind a network that does. */
export class SecondDaemon implements AsyncDisposable {
  private constructor(
    private readonly socket: string,
    private readonly port: number,
    private readonly options: DaemonOptions,
    readonly proxy: BadNetwork,
    public daemon: TestDaemon,
  ) {}

  static async start(socket: string, options: DaemonOptions = {}): Promise<SecondDaemon> {
    const daemon = await TestDaemon.start(socket, { ...options, flags: ['--tcp-port', '0'] });
    const port = daemon.streamPorts[0] as number;
    return new SecondDaemon(socket, port, options, await BadNetwork.before(port), daemon);
  }

  /** Kills it as a crash would. */
  async kill(): Promise<void> {
    this.daemon.kill('SIGKILL');
    await this.daemon.finished;
  }

  /** Starts another one at the same address. */
  async startAgain(): Promise<void> {
    this.daemon = await TestDaemon.start(this.socket, { ...this.options, flags: ['--tcp-port', String(this.port)] });
  }

  async restart(): Promise<void> {
    await this.kill();
    await this.startAgain();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.proxy[Symbol.asyncDispose]();
    await this.daemon[Symbol.asyncDispose]();
  }
}
