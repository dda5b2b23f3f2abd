import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { SwDriver } from '../../src/index.js';
import { decodeFrame, encodeFrame, type Frame, FrameType, parsePayload } from '../../src/proto/frames.js';
import {
  DescriptorLayout,
  decodeFrameHeader,
  decodeLaneWelcome,
  encodeDescriptor,
  encodeStreamHeader,
  FrameHeaderLayout,
  LANE_MAGIC,
  LaneHelloLayout,
  LaneKind,
  LaneWelcomeLayout,
  Opcode,
  PROTOCOL_VERSION,
  STREAM_MAGIC,
  Status,
  StreamHeaderLayout,
  StreamType,
} from '../../src/proto/generated.js';
import { controlHello, encodeLane } from '../../src/proto/lanes.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { type Finished, finish, MODEL, Scratch, TestDaemon } from './support.js';

const CLIENT = fileURLToPath(new URL('../python/kvss_client.py', import.meta.url));
const PROTOCOL = fileURLToPath(new URL('../../docs/PROTOCOL.md', import.meta.url));
const TOKEN = 'a secret of more than sixteen letters';

const python = (...args: string[]): Promise<Finished> =>
  finish(spawn('python3', args, { stdio: ['ignore', 'pipe', 'pipe'] }));

const noPython = await new Promise<string | false>((resolve) => {
  const child = spawn('python3', ['-c', 'import sys; sys.exit(sys.version_info < (3, 8))'], { stdio: 'ignore' });
  child.once('error', () => resolve('python3 is not installed'));
  child.once('exit', (code) => resolve(code === 0 ? false : 'python3 is older than 3.8'));
});

const overTcp = (scratch: Scratch, flags: string[] = ['--tcp-port', '0']) =>
  TestDaemon.start(scratch.file('s'), { flags: ['--log-level', 'silent', ...flags] });

const portOf = (daemon: TestDaemon) => daemon.streamPorts[0] as number;

const withToken = (scratch: Scratch) =>
  overTcp(scratch, ['--config', scratch.file('config.yaml', `streams: [{ port: 0, token: ${TOKEN} }]\n`)]);

describe(`a client in plain Python${noPython ? ` (skipped: ${noPython})` : ''}`, () => {
  test.skipIf(noPython).each([
    ['refuse', 1, 'status 66'],
    ['serve', 0, ''],
  ])('that knows of no tenant policies is told nothing of them: %s', async (unaware, code, complaint) => {
    using scratch = new Scratch();
    const policies = scratch.file('policies.yaml', 'default: { noStore: true }\n');
    const config = scratch.file('config.yaml', `unawareDrivers: ${unaware}\npolicyFile: ${policies}\n`);
    await using daemon = await overTcp(scratch, ['--tcp-port', '0', '--config', config]);
    const finished = await python(CLIENT, '127.0.0.1', String(portOf(daemon)));
    expect(finished.code).toBe(code);
    expect(finished.stdout + finished.stderr).toContain(complaint);
  });

  test.skipIf(noPython)('that was written from the protocol page sees what the page says', async () => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    const { code, stdout, stderr } = await python(CLIENT, '127.0.0.1', String(portOf(daemon)));
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const { ok, missEmpty, missOverwritten, missTenant, deadline } = Status;
    expect(JSON.parse(stdout)).toEqual({
      welcome: { shards: 2, epochLetters: 32 },
      window: 16,
      granted: { slotBytes: 3008, bytes: 24_576 },
      evicts: [1, 2, 3, 4].map((sequence) => [sequence, ok, sequence - 1, 99 + sequence, sequence]),
      evictCount: 4,
      gated: {
        answeredEarly: false,
        evictCountAtB: 4,
        status: ok,
        sameBytes: true,
        afterItsEvict: true,
        evictCount: 6,
      },
      refills: [ok, ok, ok, ok, ok, ok],
      refilledRight: 6,
      wrongTenant: { status: missTenant, bytes: null },
      overwritten: { status: missOverwritten, bytes: null, newStatus: ok, newRight: true },
      deleted: { status: ok, refillStatus: missEmpty, bytes: null },
      late: { status: deadline, nextStatus: ok, refillStatus: missEmpty, nextRight: true },
      refused: [Status.badSlot, Status.badLength, Status.badGrant],
      staleEvict: Status.badGeneration,
      ticket: { bytes: 32, same: false, status: ok, right: true },
      stats: { sessions: 1, taken: 24_576, up: true },
      counts: { evicts: [11, 11], commands: [18, 18], unfinished: 0 },
      released: true,
    });
    expect(await daemon.metric('kvss_tenant_alarms_total')).toBe(1);
    await daemon.awaitMetric('kvss_deadlines_total', 1);
  });

  test.skipIf(noPython)('gets in with the token of the listener and not without it', async () => {
    using scratch = new Scratch();
    await using daemon = await withToken(scratch);
    const port = String(portOf(daemon));
    for (const wrong of [[], [`${TOKEN}.`]]) {
      const refused = await python(CLIENT, '127.0.0.1', port, ...wrong);
      expect(refused).toMatchObject({ code: 1, stdout: '' });
      expect(refused.stderr).toContain('hello does not carry the token of this listener (status 66)');
    }
    const { code, stdout } = await python(CLIENT, '127.0.0.1', port, TOKEN);
    expect([code, JSON.parse(stdout).counts.unfinished]).toEqual([0, 0]);
  });

  test.skipIf(noPython)('says in one line what is wrong', async () => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    const elsewhere = await python(CLIENT, '127.0.0.1', new URL(daemon.adminUrl).port);
    expect(elsewhere).toMatchObject({ code: 1, stderr: expect.stringMatching(/^kvss_client: .*not a KVSS daemon\n$/) });
    const port = String(portOf(daemon));
    daemon.kill('SIGKILL');
    await daemon.finished;
    const nobody = await python(CLIENT, '127.0.0.1', port);
    expect(nobody).toMatchObject({ code: 1, stderr: expect.stringMatching(/^kvss_client: cannot connect to .*\n$/) });
    expect(await python(CLIENT)).toMatchObject({ code: 2, stderr: expect.stringContaining('usage:') });
  });
});

/** A connection without any manners. */
class RawStream implements Disposable {
  readonly #socket: Socket;
  #bytes = Buffer.alloc(0);
  #over = false;
  #changed: () => void = () => {};

  constructor(port: number) {
    this.#socket = connect({ host: '127.0.0.1', port, noDelay: true });
    this.#socket.on('data', (chunk: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk]);
      this.#changed();
    });
    // A daemon that does not want the rest of what we say resets the connection: that is an end as well.
    this.#socket.on('error', () => {});
    this.#socket.on('close', () => {
      this.#over = true;
      this.#changed();
    });
  }

  send(...parts: Uint8Array[]): this {
    this.#socket.write(Buffer.concat(parts));
    return this;
  }

  /** Until the kernel has taken everything. */
  sent(): Promise<void> {
    return new Promise((resolve) => this.#socket.write('', () => resolve()));
  }

  async read(count: number): Promise<Buffer> {
    while (this.#bytes.length < count) {
      if (this.#over) throw new Error(`the connection ended after ${this.#bytes.length} of ${count} bytes`);
      await this.#change();
    }
    const taken = this.#bytes.subarray(0, count);
    this.#bytes = this.#bytes.subarray(count);
    return taken;
  }

  /** What else came until the daemon ended the connection. */
  async rest(): Promise<Buffer> {
    while (!this.#over) await this.#change();
    return this.#bytes;
  }

  async laneStatus(): Promise<Status> {
    const welcome = decodeLaneWelcome(viewOf(await this.read(LaneWelcomeLayout.bytes)), 0);
    expect(welcome).toMatchObject({ magic: LANE_MAGIC, version: PROTOCOL_VERSION, reserved: 0n });
    return welcome.status as Status;
  }

  async frame(): Promise<Frame> {
    const header = await this.read(FrameHeaderLayout.bytes);
    const { payloadBytes } = decodeFrameHeader(viewOf(header), 0);
    return decodeFrame(Buffer.concat([header, await this.read(payloadBytes)]));
  }

  async error(): Promise<{ requestId: number; status: number; message: string }> {
    const { type, requestId, payload } = await this.frame();
    expect(type).toBe(FrameType.error);
    return { requestId, ...parsePayload('error', payload) };
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#changed = resolve;
    });
  }
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** A driver that has something stored, to see whether it minds what others do. */
class Bystander implements AsyncDisposable {
  #downs = 0;

  private constructor(
    private readonly driver: SwDriver,
    private readonly tokens: Uint32Array,
  ) {
    driver.on('down', () => {
      this.#downs += 1;
    });
  }

  static async start(port: number): Promise<Bystander> {
    const tokens = Uint32Array.from({ length: 640 }, (_, at) => at * 3);
    const driver = await SwDriver.connect({
      daemons: [`tcp://127.0.0.1:${port}`],
      model: MODEL,
      capacityColumns: 10,
    });
    const sequence = driver.openSequence({ isolationId: 'acme' });
    sequence.match(tokens).release();
    await sequence.evict(new StampingRuntime(64).request('acme', tokens).source);
    return new Bystander(driver, tokens);
  }

  async goesOn(): Promise<void> {
    const wafer = new StampingRuntime(64);
    const request = wafer.request('acme', this.tokens);
    const hit = this.driver.openSequence({ isolationId: 'acme' }).match(this.tokens);
    expect(await hit.refill(request.sink)).toMatchObject({ columns: 10, tokens: 640 });
    request.accept(10);
    expect(wafer.stats).toMatchObject({ mismatches: 0, bytesVerified: 640 * (16 + 32) });
    expect(this.#downs).toBe(0);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.driver.close();
  }
}

const PIECE = 64;

/** A session of our own on shard 0, with one lane of each kind. */
class RawSession implements Disposable {
  readonly control: RawStream;
  readonly lanes: RawStream[] = [];
  sessionId = 0;
  ticket = new Uint8Array(32);

  constructor(readonly port: number) {
    this.control = new RawStream(port);
  }

  static async start(port: number): Promise<RawSession> {
    const session = new RawSession(port);
    session.control.send(controlHello());
    expect(await session.control.laneStatus()).toBe(Status.ok);
    const ask = async (type: FrameType, payload: object) => {
      session.control.send(encodeFrame({ type, requestId: type, payload }));
      return (await session.control.frame()).payload;
    };
    const welcome = parsePayload('welcome', await ask(FrameType.hello, { client: 'raw' }));
    const attached = parsePayload('streamAttached', await ask(FrameType.attachStream, { shard: 0, window: 8 }));
    parsePayload('granted', await ask(FrameType.grant, { shard: 0, grantId: 1, slots: 4, pieceBytes: PIECE }));
    session.sessionId = welcome.sessionId;
    session.ticket = Uint8Array.from(attached.ticket);
    return session;
  }

  /** The first bytes of a lane, which a test may spoil. */
  laneHello(kind: LaneKind): Uint8Array {
    return encodeLane({ kind, shard: 0, stream: 0, sessionId: this.sessionId, ticket: this.ticket });
  }

  async lane(kind: LaneKind): Promise<RawStream> {
    const lane = new RawStream(this.port).send(this.laneHello(kind));
    this.lanes.push(lane);
    expect(await lane.laneStatus()).toBe(Status.ok);
    return lane;
  }

  [Symbol.dispose](): void {
    for (const stream of [this.control, ...this.lanes]) stream[Symbol.dispose]();
  }
}

function streamHeader(type: StreamType, length: number, requestId: bigint, generation: bigint): Uint8Array {
  const bytes = new Uint8Array(StreamHeaderLayout.bytes);
  const header = { magic: STREAM_MAGIC, version: PROTOCOL_VERSION, type, length, checksum: 0, requestId, generation };
  encodeStreamHeader(viewOf(bytes), 0, header);
  return bytes;
}

function evictDescriptor(generation: bigint): Uint8Array {
  const bytes = new Uint8Array(DescriptorLayout.bytes);
  encodeDescriptor(viewOf(bytes), 0, {
    opcode: Opcode.evict,
    flags: 0,
    grantId: 1,
    slot: 0,
    pieceBytes: PIECE,
    generation,
    tenantTag: 7n,
    after: 0n,
    userData: 0n,
    timeoutUs: 0,
    reserved0: 0,
    reserved1: 0n,
  });
  return bytes;
}

describe('the worked exchange over streams of the protocol page', () => {
  /** Every step of the exchange: bytes in hex, with `tt` for the ticket, or undefined for "some control frame". */
  function steps(): { name: string; sends: boolean; hex: string[] | undefined }[] {
    const page = readFileSync(PROTOCOL, 'utf8');
    const block = /### A worked exchange over streams\n[\s\S]*?```\n([\s\S]*?)```/.exec(page)?.[1] ?? '';
    const found: ReturnType<typeof steps> = [];
    for (const line of block.trimEnd().split('\n')) {
      const [, name, arrow, rest = ''] = /^(\S*) +([<>])? *(.*)$/.exec(line) ?? [];
      const hex = /^((?:(?:[0-9a-f]{2}|tt)(?: +|$))+)/.exec(rest)?.[1]?.trim().split(/ +/);
      if (name && arrow) found.push({ name, sends: arrow === '>', hex });
      else found.at(-1)?.hex?.push(...(hex ?? []));
    }
    return found;
  }

  test('happens byte by byte', async () => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    const streams = new Map<string, RawStream>();
    const ticket: string[] = [];
    let compared = 0;
    for (const { name, sends, hex } of steps()) {
      const stream = streams.get(name) ?? new RawStream(portOf(daemon));
      streams.set(name, stream);
      if (hex === undefined) {
        const { type, payload } = await stream.frame();
        expect(type).not.toBe(FrameType.error);
        if (type !== FrameType.streamAttached) continue;
        ticket.push(...Array.from(parsePayload('streamAttached', payload).ticket, (byte) => byte.toString(16)));
      } else if (sends) {
        const left = [...ticket];
        stream.send(Uint8Array.from(hex, (byte) => Number.parseInt(byte === 'tt' ? (left.shift() ?? '') : byte, 16)));
      } else {
        compared += hex.length;
        expect((await stream.read(hex.length)).toString('hex')).toBe(hex.join(''));
      }
    }
    for (const stream of streams.values()) stream[Symbol.dispose]();
    expect([...streams.keys()]).toEqual(['control', 'evict', 'HIO']);
    expect(compared).toBe(3 * LaneWelcomeLayout.bytes + 64);
  });
});

describe('bad input over TCP', () => {
  const { offset } = LaneHelloLayout;
  const spoilt = (hello: Uint8Array, at: number, value: number) => {
    hello[at] = (hello[at] as number) ^ value;
    return hello;
  };

  test.each<[string, Status, (session: RawSession) => Uint8Array]>([
    ['of another magic', Status.badFrame, () => spoilt(controlHello(), offset.magic, 0xff)],
    ['of another version', Status.badVersion, () => spoilt(controlHello(), offset.version, 9)],
    ['of an unknown kind', Status.badFrame, () => spoilt(controlHello(), offset.kind, 0x40)],
    ['with a number that is too high', Status.badFrame, () => spoilt(controlHello(), offset.stream, 16)],
    [
      'of an unknown session',
      Status.notAllowed,
      (session) => spoilt(session.laneHello(LaneKind.hio), offset.sessionId + 2, 1),
    ],
    ['with a wrong ticket', Status.notAllowed, (session) => spoilt(session.laneHello(LaneKind.hio), offset.ticket3, 1)],
    [
      'with the ticket of another shard',
      Status.notAllowed,
      (session) => spoilt(session.laneHello(LaneKind.hio), offset.shard, 1),
    ],
  ])('a lane %s is told so, and nobody else loses anything', async (_what, status, hello) => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    await using bystander = await Bystander.start(portOf(daemon));
    using session = await RawSession.start(portOf(daemon));
    using lane = new RawStream(portOf(daemon)).send(hello(session));
    expect(await lane.laneStatus()).toBe(status);
    expect(await lane.rest()).toHaveLength(0);
    // Not even the session that the lane named minds.
    await session.lane(LaneKind.hio);
    session.control.send(encodeFrame({ type: FrameType.stats, requestId: 99, payload: {} }));
    expect(await session.control.frame()).toMatchObject({ type: FrameType.statsReply, requestId: 99 });
    await bystander.goesOn();
  });

  test.each([
    ['an HIO lane', LaneKind.hio],
    ['an evict lane', LaneKind.wioEvict],
    ['a refill lane', LaneKind.wioRefill],
  ])('%s that is there already is told so, and the first one stays', async (_what, kind) => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    using session = await RawSession.start(portOf(daemon));
    const first = await session.lane(kind);
    using second = new RawStream(portOf(daemon)).send(session.laneHello(kind));
    expect(await second.laneStatus()).toBe(Status.notAllowed);
    expect(await second.rest()).toHaveLength(0);
    session.control.send(encodeFrame({ type: FrameType.stats, requestId: 99, payload: {} }));
    expect(await session.control.frame()).toMatchObject({ type: FrameType.statsReply, requestId: 99 });
    // It is still the session's: its end is the end of all.
    first[Symbol.dispose]();
    await session.control.rest();
  });

  test('attach is refused: no memory can be handed over', async () => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    using control = new RawStream(portOf(daemon)).send(controlHello());
    expect(await control.laneStatus()).toBe(Status.ok);
    control.send(encodeFrame({ type: FrameType.hello, requestId: 1, payload: { client: 'raw' } }));
    expect(await control.frame()).toMatchObject({ type: FrameType.welcome });
    control.send(encodeFrame({ type: FrameType.attach, requestId: 2, payload: { shard: 0, ringEntries: 8 } }));
    expect(await control.error()).toMatchObject({ requestId: 2, status: Status.notAllowed });
  });

  test('a connection that ends in the middle of its hello is forgotten', async () => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    await using bystander = await Bystander.start(portOf(daemon));
    {
      using lane = new RawStream(portOf(daemon)).send(controlHello(), controlHello().subarray(0, 3));
      expect(await lane.laneStatus()).toBe(Status.ok);
      using half = new RawStream(portOf(daemon)).send(controlHello().subarray(0, 63));
      await half.sent();
    }
    await bystander.goesOn();
  });

  test.each([
    ['no token', undefined],
    ['another token', 'a secret of more than sixteen letters, but another one'],
  ])('hello with %s opens nothing where the listener wants one', async (_what, token) => {
    using scratch = new Scratch();
    await using daemon = await withToken(scratch);
    using control = new RawStream(portOf(daemon)).send(controlHello());
    expect(await control.laneStatus()).toBe(Status.ok);
    const hello = { client: 'raw', ...(token === undefined ? {} : { token }) };
    control.send(encodeFrame({ type: FrameType.hello, requestId: 1, payload: hello }));
    expect(await control.error()).toMatchObject({
      status: Status.notAllowed,
      message: 'hello does not carry the token of this listener',
    });
    control.send(encodeFrame({ type: FrameType.stats, requestId: 2, payload: {} }));
    await control.rest();
    // The socket that only this user can reach needs none, and works as before.
    await using driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL, capacityColumns: 10 });
    expect(driver.capacityColumns).toBe(10);
  });

  const frame = (at: number, value: number) => {
    const bytes = encodeFrame({ type: FrameType.hello, requestId: 1, payload: { client: 'raw' } });
    viewOf(bytes).setUint32(at, value, true);
    return bytes.subarray(0, FrameHeaderLayout.bytes);
  };
  test.each([
    [
      'that announces 4 GiB',
      frame(FrameHeaderLayout.offset.payloadBytes, 0xffff_ffff),
      Status.badFrame,
      'it announces 4294967295 bytes of payload',
    ],
    ['of another magic', frame(FrameHeaderLayout.offset.magic, 1), Status.badFrame, 'does not start with KVSS'],
    [
      'that comes before hello',
      encodeFrame({ type: FrameType.attachStream, requestId: 1, payload: {} }),
      Status.badFrame,
      'expected hello, got attachStream',
    ],
  ])('a control frame %s ends its connection only', async (_what, bytes, status, complaint) => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    await using bystander = await Bystander.start(portOf(daemon));
    using control = new RawStream(portOf(daemon)).send(controlHello());
    expect(await control.laneStatus()).toBe(Status.ok);
    control.send(bytes);
    expect(await control.error()).toMatchObject({
      requestId: 0,
      status,
      message: expect.stringContaining(complaint),
    });
    await control.rest();
    await bystander.goesOn();
  });

  const noise = Uint8Array.from({ length: PIECE }, (_, at) => at * 7);
  test.each<[string, Uint8Array[], Uint8Array[]]>([
    [
      'a piece whose length does not match',
      [streamHeader(StreamType.descriptors, 64, 0n, 0n), evictDescriptor(1n)],
      [streamHeader(StreamType.payload, PIECE - 1, 1n, 1n)],
    ],
    [
      'a piece whose generation does not match',
      [streamHeader(StreamType.descriptors, 64, 0n, 0n), evictDescriptor(1n)],
      [streamHeader(StreamType.payload, PIECE, 1n, 2n)],
    ],
    ['a piece of an evict far ahead', [], [streamHeader(StreamType.payload, PIECE, 9n, 1n)]],
    ['a piece of no evict', [], [streamHeader(StreamType.payload, PIECE, 0n, 1n)]],
    ['a piece longer than any', [], [streamHeader(StreamType.payload, 0xffff_ffff, 1n, 1n)]],
    ['descriptors on a lane for pieces', [], [streamHeader(StreamType.descriptors, 64, 0n, 0n)]],
    ['noise on a lane for pieces', [], [noise]],
    ['noise on the lane for descriptors', [noise], []],
    ['half a descriptor', [streamHeader(StreamType.descriptors, 32, 0n, 0n)], []],
  ])('who sends %s loses its session, and nobody else does', async (_what, onHio, onEvict) => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    await using bystander = await Bystander.start(portOf(daemon));
    using session = await RawSession.start(portOf(daemon));
    using innocent = await RawSession.start(portOf(daemon));
    const [evict, hio] = [await session.lane(LaneKind.wioEvict), await session.lane(LaneKind.hio)];
    hio.send(...onHio);
    evict.send(...onEvict);
    expect(await session.control.error()).toMatchObject({ requestId: 0, status: Status.badFrame });
    await Promise.all([session.control.rest(), evict.rest(), hio.rest()]);
    await innocent.lane(LaneKind.hio);
    await bystander.goesOn();
  });

  test.each([
    ['the HIO lane', LaneKind.hio],
    ['an evict lane', LaneKind.wioEvict],
  ])('that %s ends is the end of its session, and no other', async (_what, kind) => {
    using scratch = new Scratch();
    await using daemon = await overTcp(scratch);
    await using bystander = await Bystander.start(portOf(daemon));
    using session = await RawSession.start(portOf(daemon));
    const others = [LaneKind.wioRefill, LaneKind.wioEvict, LaneKind.hio].filter((each) => each !== kind);
    const left = [await session.lane(others[0] as LaneKind), await session.lane(others[1] as LaneKind)];
    (await session.lane(kind))[Symbol.dispose]();
    await Promise.all([session.control, ...left].map((stream) => stream.rest()));
    await bystander.goesOn();
  });
});
