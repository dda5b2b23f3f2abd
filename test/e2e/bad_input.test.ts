import { openSync, writeSync } from 'node:fs';
import { createServer } from 'node:net';
import { describe, expect, test } from 'vitest';
import { native } from '../../src/binding/native.js';
import { KvssError, SwDriver } from '../../src/index.js';
import { ControlClient } from '../../src/links/control_client.js';
import { decodeFrame, encodeFrame, FrameType, parsePayload } from '../../src/proto/frames.js';
import {
  encodeLaneWelcome,
  LANE_MAGIC,
  LaneHelloLayout,
  LaneWelcomeLayout,
  PROTOCOL_VERSION,
  Status,
  SubmitSegmentLayout,
} from '../../src/proto/generated.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { kvss, MODEL, Scratch, TestDaemon, until } from './support.js';

describe('a configuration', () => {
  test.each([
    ['an unknown key', 'shards: [{ budget: 8MiB, bugdet: 1 }]', "unknown key 'shards.0.bugdet'"],
    ['an unknown key at the top', 'sockets: /tmp/x', "unknown key 'sockets'"],
    ['a negative size', 'shards: [{ budget: -8MiB }]', "'shards.0.budget': '-8MiB' is not a size"],
    ['a negative number', 'drainTimeoutMs: -1', "'drainTimeoutMs':"],
    ['a size of nothing', 'shards: [{ budget: 0 }]', "'shards.0.budget': '0' is not a size"],
    ['no shards', 'shards: []', "'shards':"],
    ['a ring that is no power of two', 'ringEntries: 1000', "'ringEntries': must be a power of two"],
    ['a mode that does not exist', 'hio: { mode: fast }', "'hio.mode':"],
    ['an address beyond loopback', 'http: { host: 0.0.0.0 }', "'http.host': must be a loopback address"],
    ['broken YAML', 'shards: [', 'config.yaml:'],
    ['a list instead of keys', '- 1', 'expected keys and values'],
  ])('with %s gives one error that names it', async (_what, yaml, complaint) => {
    using scratch = new Scratch();
    const refused = await kvss('serve', '--config', scratch.file('config.yaml', yaml), '--socket', scratch.file('s'));
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain(complaint);
    expect(refused.stderr).toContain('KVSS_BAD_CONFIG');
    expect(refused.stderr.match(/KVSS_/g)).toHaveLength(1);
  });

  test('that cannot be read names the file', async () => {
    const refused = await kvss('serve', '--config', '/nowhere/config.yaml');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('cannot read /nowhere/config.yaml');
  });

  test('that asks for more memory than there is says how much is left, and takes none', async () => {
    using scratch = new Scratch();
    const refused = await kvss(
      'serve',
      '--socket',
      scratch.file('s'),
      '--budget',
      '900TiB',
      '--no-http',
      '--log-level',
      'silent',
    );
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/budgets add up to 3600\.0 TiB, and .* has .* left \[KVSS_NO_MEMORY\]/);
  });

  test('whose HTTP port is taken names the key', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const port = new URL(daemon.adminUrl).port;
    const refused = await kvss('serve', '--socket', scratch.file('t'), '--http-port', port, '--budget', '4MiB');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain(`'http.port': cannot listen on 127.0.0.1:${port}`);
  });
});

describe('a flag', () => {
  test.each([
    [['serve', '--budget', '-5'], "'-5' is not a size"],
    [['serve', '--budget', '5MiB,-5'], "'-5' is not a size"],
    [['serve', '--shards', '0'], "'0' is not an integer in 1..64"],
    [['serve', '--bugdet', '5'], 'unknown option'],
    [['replay'], 'missing required argument'],
    [['replay', 'x.json', '--capacity-columns', 'many'], "'many' is not an integer"],
    [['replay', 'x.json', '--connect', 'a,,b'], "'a,,b' has an empty address"],
    [['replay', 'x.json', '--connect', 'http://h:1'], "'http://h:1' is no address; write a path, unix:PATH or tcp"],
    [['replay', 'x.json', '--connect', 'tcp://h:70000'], "'tcp://h:70000' is no address"],
    [['replay', 'x.json', '--connect', '/s', '--link', 'tcp'], "cannot be used with option '--link"],
    [['wafer', '--memory-columns', '0'], "'0' is not an integer"],
    [['wafer', '--listen', 'http://h:1'], "'http://h:1' is no address"],
    [['replay', 'x.json', '--striping', 'both'], 'Allowed choices are across, within'],
    [['replay', 'x.json', '--deadline-ms', '0'], "'0' is not an integer in 1..3600000"],
    [['replay', 'x.json', '--speed', '-1'], "'-1' is not a number above 0"],
    [['frobnicate'], 'unknown command'],
  ])('%j gives one error that names it', async (args, complaint) => {
    const refused = await kvss(...args);
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain(complaint);
  });
});

describe('a trace', () => {
  const line = '{"timestamp": 0, "input_length": 700, "hash_ids": [1, 2]}';
  test.each([
    ['a truncated line', `${line}\n{"timestamp": 1, "input_le`, ':2: not a trace'],
    [
      'a field of the wrong type',
      `${line}\n{"timestamp": 1, "input_length": "x", "hash_ids": []}`,
      ":2: 'input_length'",
    ],
    [
      'a length that its blocks do not make',
      `${line}\n{"timestamp": 1, "input_length": 9000, "hash_ids": [1]}`,
      ':2: 1 blocks of 512 tokens',
    ],
    ['nothing in it', '', 'not a trace'],
    ['another format', '{"hello": 1}', "'block_size'"],
    ['a truncated file', '{"block_size": 64, "requests": [{"t": 0, "in": 64', 'not a trace'],
  ])('with %s names file, line and cause', async (_what, content, complaint) => {
    using scratch = new Scratch();
    const path = scratch.file('trace.jsonl', content);
    const refused = await kvss('replay', path);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain(`kvss: ${path}`);
    expect(refused.stderr).toContain(complaint);
    expect(refused.stderr).toContain('KVSS_BAD_TRACE');
  });
});

/** A connection without any manners. */
async function rawAnswer(
  socket: string,
  packet: Uint8Array,
): Promise<{ answer: Uint8Array | undefined; ended: boolean }> {
  const channel = native.ControlChannel.connect(socket);
  let answer: Uint8Array | undefined;
  const ended = new Promise<void>((resolve) => {
    channel.start((bytes) => {
      answer = bytes;
    }, resolve);
  });
  channel.send(packet);
  await ended;
  return { answer, ended: true };
}

describe('a driver', () => {
  test('of another protocol version is told so, and only it is turned away', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    await using other = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL, capacityColumns: 10 });
    const hello = encodeFrame({ type: FrameType.hello, requestId: 1, payload: { client: 'from the future' } });
    new DataView(hello.buffer).setUint16(4, 99, true);
    const { answer } = await rawAnswer(daemon.socket, hello);
    const error = parsePayload('error', decodeFrame(answer as Uint8Array).payload);
    expect(KvssError.ofStatus(error.status, error.message)).toMatchObject({
      code: 'KVSS_BAD_VERSION',
      message: 'the other side speaks protocol version 99, this side version 1',
    });
    expect(other.capacityColumns).toBe(10);
  });

  test.each([
    [
      'that speaks another protocol version',
      { version: PROTOCOL_VERSION + 1 },
      { code: 'KVSS_BAD_VERSION', message: expect.stringContaining('speaks protocol version') },
    ],
    [
      'that is none',
      { magic: LANE_MAGIC + 1 },
      { code: 'KVSS_UNREACHABLE', message: expect.stringContaining('is not a KVSS daemon') },
    ],
  ])('does not talk over streams to a daemon %s', async (_what, spoilt, error) => {
    using scratch = new Scratch();
    const welcome = new Uint8Array(LaneWelcomeLayout.bytes);
    const right = { magic: LANE_MAGIC, version: PROTOCOL_VERSION, status: Status.ok, reserved: 0n };
    encodeLaneWelcome(new DataView(welcome.buffer), 0, { ...right, ...spoilt });
    const server = createServer((socket) => {
      let heard = 0;
      socket.on('error', () => {});
      socket.on('data', (bytes) => {
        if (heard < LaneHelloLayout.bytes && heard + bytes.length >= LaneHelloLayout.bytes) socket.write(welcome);
        heard += bytes.length;
      });
    });
    await new Promise<void>((resolve) => server.listen(scratch.file('daemon'), resolve));
    try {
      const connecting = SwDriver.connect({
        daemons: [`unix:${scratch.file('daemon')}`],
        model: MODEL,
        connectDeadlineMs: 2_000,
      });
      await expect(connecting).rejects.toMatchObject(error);
    } finally {
      server.close();
    }
  });

  test('gets no ticket for a shard that it has not attached', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const { client } = await ControlClient.connect(daemon.socket, 5_000);
    await client.request('attachStream', { shard: 0, window: 8 }, 'streamAttached');
    const ask = (shard: number) => client.request('ticket', { shard, lifetimeMs: 1_000 }, 'ticketIssued');
    expect((await ask(0)).payload.ticket).toHaveLength(32);
    await expect(ask(1)).rejects.toMatchObject({ code: 'KVSS_NOT_ALLOWED' });
    client.close();
  });

  test.each([
    ['noise', Uint8Array.from({ length: 100 }, (_, at) => at * 7), 'does not start with KVSS'],
    ['less than a header', Uint8Array.of(1, 2, 3), 'shorter than its header'],
    [
      'a grant before hello',
      encodeFrame({ type: FrameType.grant, requestId: 1, payload: {} }),
      'expected hello, got grant',
    ],
    [
      'an answer',
      encodeFrame({ type: FrameType.hello, requestId: 1, payload: { client: 1 } }),
      'bad hello frame: client',
    ],
  ])('that sends %s gets one clear error and loses its connection', async (_what, packet, complaint) => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const { answer } = await rawAnswer(daemon.socket, packet);
    const error = parsePayload('error', decodeFrame(answer as Uint8Array).payload);
    expect(error.message).toContain(complaint);
    expect((await fetch(`${daemon.adminUrl}/healthz`)).status).toBe(200);
  });

  test('that scribbles over its ring loses its session, and nobody else loses anything', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const wafer = new StampingRuntime(64);
    const tokens = Uint32Array.from({ length: 640 }, (_, at) => at * 3);
    await using other = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL, capacityColumns: 10 });
    const sequence = other.openSequence({ isolationId: 'acme' });
    sequence.match(tokens).release();
    await sequence.evict(wafer.request('acme', tokens).source);
    const segmentsBefore = new Set(daemon.memoryObjects('kvss-submit'));

    await using scribbler = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL, capacityColumns: 10 });
    const segment = daemon.memoryObjects('kvss-submit').find((path) => !segmentsBefore.has(path));
    const down = new Promise<[number, string]>((resolve) => scribbler.once('down', (...args) => resolve(args)));
    writeSync(openSync(segment as string, 'r+'), Buffer.alloc(8, 0xee), 0, 8, SubmitSegmentLayout.offset.evictTail);
    // A sleeping engine looks when it is woken, or at its next heartbeat.
    const [, reason] = await down;
    expect(reason).toContain('impossible positions');
    await daemon.awaitMetric('kvss_ring_faults_total', 1);

    const hit = sequence.match(tokens);
    const request = wafer.request('acme', tokens);
    expect(await hit.refill(request.sink)).toMatchObject({ columns: 10, tokens: 640 });
    request.accept(10);
    expect(wafer.stats).toMatchObject({ mismatches: 0, bytesVerified: 640 * (16 + 32) });
    // It may come back with rings of its own, clean ones.
    await until(() => scribbler.capacityColumns === 10);
  });

  test('that asks for more shards than the daemon has says how many there are', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    await expect(
      SwDriver.connect({ daemons: [daemon.socket], model: { ...MODEL, bytesPerToken: [1, 2, 3] } }),
    ).rejects.toMatchObject({
      code: 'KVSS_BAD_INPUT',
      message: 'the model has bytes per token for 3 shards, the daemons have 2 shards',
    });
  });

  test('for which no memory is left is told so at once', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    await using _first = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
    const greedy = { ...MODEL, bytesPerToken: [2 ** 20, 2 ** 20] };
    await expect(SwDriver.connect({ daemons: [daemon.socket], model: greedy })).rejects.toMatchObject({
      code: 'KVSS_NO_MEMORY',
      message: 'the shards have no memory left for a single column',
    });
  });

  test('that finds nobody at the socket names it, or with lazy waits until somebody comes', async () => {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    await expect(SwDriver.connect({ daemons: [socket], model: MODEL })).rejects.toMatchObject({
      code: 'KVSS_UNREACHABLE',
      message: `cannot connect to a KVSS daemon at ${socket}: No such file or directory`,
    });
    await using driver = await SwDriver.connect({ daemons: [socket], model: MODEL, lazy: true });
    expect(driver.openSequence({ isolationId: 'a' }).match(new Uint32Array(64)).tokens).toBe(0);
    const up = new Promise((resolve) => driver.once('up', resolve));
    await using _daemon = await TestDaemon.start(socket);
    await up;
    expect(driver.capacityColumns).toBeGreaterThan(0);
  });
});
