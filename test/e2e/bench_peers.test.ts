import { readdirSync } from 'node:fs';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { describe, expect, test, vi } from 'vitest';
import { nativeBench, type PeerPlan } from '../../src/bench/native.js';
import { findProgram, PeerBox } from '../../src/bench/peer_processes.js';
import { PEERS, type PeerName, startPeer } from '../../src/bench/peer_servers.js';
import type { BenchRow } from '../../src/bench/row.js';
import { kvss, Scratch } from './support.js';

const PIECE_BYTES = 4096;
const KEYS = 8;
const NAMES = Object.keys(PEERS) as PeerName[];
const installed = NAMES.filter((name) => findProgram(PEERS[name].program));

/** Somebody who listens where a peer should, and behaves as the test wants. */
class FakePeer implements AsyncDisposable {
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((socket) => {
    this.#sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('data', (bytes) => this.answer(socket, bytes));
  });

  private constructor(private readonly answer: (socket: Socket, bytes: Buffer) => void) {}

  static async start(answer: (socket: Socket, bytes: Buffer) => void, path?: string): Promise<FakePeer> {
    const peer = new FakePeer(answer);
    await new Promise<void>((resolve) => {
      if (path) peer.#server.listen(path, resolve);
      else peer.#server.listen(0, '127.0.0.1', resolve);
    });
    return peer;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Values that hold every byte, line ends too. */
function filledMemory(): ArrayBuffer {
  const memory = nativeBench().runtimeMemory(2 * KEYS * PIECE_BYTES);
  const bytes = new Uint8Array(memory);
  for (let at = 0; at < KEYS * PIECE_BYTES; at += 1) bytes[at] = at * 7 + (at >> 8);
  return memory;
}

function transfer(plan: Pick<PeerPlan, 'protocol' | 'operation' | 'address'> & Partial<PeerPlan>): Promise<number> {
  const defaults = { connections: 1, threads: false, depth: 4, pieceBytes: PIECE_BYTES, pieces: KEYS, keys: KEYS };
  return nativeBench().peerTransfer({ ...defaults, patienceMs: 300, ...plan }, filledMemory());
}

/** A redis that knows two commands and takes everything else for part of a value. */
function tinyRedis() {
  const values = new Map<string, Buffer>();
  const pending = new WeakMap<Socket, Buffer>();
  return (socket: Socket, bytes: Buffer) => {
    let rest = Buffer.concat([pending.get(socket) ?? Buffer.alloc(0), bytes]);
    for (;;) {
      const text = rest.toString('latin1');
      const get = /^\*2\r\n\$3\r\nGET\r\n\$16\r\n(key:\d{12})\r\n/.exec(text);
      const set = /^\*3\r\n\$3\r\nSET\r\n\$16\r\n(key:\d{12})\r\n\$(\d+)\r\n/.exec(text);
      if (get) {
        const value = values.get(get[1] as string) ?? Buffer.alloc(0);
        socket.write(`$${value.length}\r\n`);
        socket.write(value);
        socket.write('\r\n');
        rest = rest.subarray(get[0].length);
      } else if (set && rest.length >= set[0].length + Number(set[2]) + 2) {
        const end = set[0].length + Number(set[2]);
        values.set(set[1] as string, rest.subarray(set[0].length, end));
        socket.write('+OK\r\n');
        rest = rest.subarray(end + 2);
      } else break;
    }
    pending.set(socket, rest);
  };
}

describe('the client that drives peers', () => {
  test.each([
    { connections: 1, threads: false },
    { connections: 4, threads: false },
    { connections: 4, threads: true },
  ])('sets and gets values of any bytes, $connections connections, threads $threads', async (how) => {
    using scratch = new Scratch();
    const path = scratch.file('peer');
    await using _peer = await FakePeer.start(tinyRedis(), path);
    const memory = filledMemory();
    const plan = { protocol: 'redis', address: path, depth: 3, pieceBytes: PIECE_BYTES, keys: KEYS } as const;
    for (const operation of ['set', 'get'] as const) {
      const all = { ...plan, ...how, operation, pieces: 2 * KEYS + 1, patienceMs: 5_000 };
      expect(await nativeBench().peerTransfer(all, memory)).toBeGreaterThan(0);
    }
    const half = memory.byteLength / 2;
    expect(Buffer.from(memory, half).equals(Buffer.from(memory, 0, half))).toBe(true);
  });

  const value = 'x'.repeat(PIECE_BYTES);
  const key = 'key:000000000000';
  test.each([
    ['redis', 'get', "GET of key:000000000000 was answered with '$-1' instead of '$4096'", '$-1\r\n'],
    ['redis', 'get', "'-ERR no such thing' instead of '$4096'", '-ERR no such thing\r\n'],
    ['redis', 'get', "answered with '$40960' instead of '$4096'", `$40960\r\n${value}`],
    ['redis', 'get', "answered with '+OK'", '+OK\r\n'],
    ['redis', 'get', 'does not end where it was said to', `$4096\r\n${value}!\r\n`],
    ['redis', 'get', 'came back with other bytes than it was set to', `$4096\r\n${value}\r\n`.repeat(KEYS)],
    ['redis', 'get', 'did not answer for 300 ms', `$4096\r\n${value}`],
    ['redis', 'set', "with '-OOM command not allowed", "-OOM command not allowed when used memory > 'maxmemory'.\r\n"],
    ['redis', 'set', "answered with '+OKAY' instead of '+OK'", '+OKAY\r\n'],
    ['redis', 'set', 'answered more than it was asked', '+OK\r\n'.repeat(KEYS + 1)],
    ['redis', 'set', 'did not answer for 300 ms', ''],
    ['memcached', 'get', `GET of ${key} was answered with 'END' instead of 'VALUE ${key} 0 4096'`, 'END\r\n'],
    [
      'memcached',
      'get',
      "with 'VALUE key:000000000009 0 4096'",
      `VALUE key:000000000009 0 4096\r\n${value}\r\nEND\r\n`,
    ],
    ['memcached', 'get', 'does not end', `VALUE ${key} 0 4096\r\n${value}\r\nENDE\r\n`],
    ['memcached', 'set', "with 'SERVER_ERROR out of memory storing", 'SERVER_ERROR out of memory storing object\r\n'],
    ['memcached', 'set', "with 'NOT_STORED' instead of 'STORED'", 'NOT_STORED\r\n'],
  ] as const)('%s %s whose answer is wrong: %s', async (protocol, operation, message, reply) => {
    const served = new WeakSet<Socket>();
    await using peer = await FakePeer.start((socket) => {
      if (!served.has(socket)) socket.write(reply);
      served.add(socket);
    });
    // One after the other, so that there is no doubt which request was answered.
    const depth = reply.length > 3 * PIECE_BYTES || reply.startsWith('+OK\r\n+OK') ? KEYS : 1;
    await expect(transfer({ protocol, operation, address: peer.port, depth })).rejects.toThrow(message);
  });

  test.each([false, true])('a peer that hangs up ends the work on all connections, threads %s', async (threads) => {
    await using peer = await FakePeer.start((socket) => socket.destroy());
    const plan = { protocol: 'memcached', operation: 'get', address: peer.port, connections: 4, threads } as const;
    await expect(transfer(plan)).rejects.toThrow(/closed the connection|Connection reset|Broken pipe/);
  });

  test('a peer that is silent on one of many connections is not waited for', async () => {
    await using peer = await FakePeer.start(() => undefined);
    const plan = { protocol: 'redis', operation: 'get', address: peer.port, connections: 4 } as const;
    await expect(transfer(plan)).rejects.toThrow('did not answer for 300 ms');
  });

  test('nobody listens', async () => {
    await expect(transfer({ protocol: 'redis', operation: 'get', address: '/nowhere/at/all' })).rejects.toThrow(
      'cannot connect to the peer: No such file or directory',
    );
  });
});

describe('the programs of peers', () => {
  test('one that ends at once is an error that says why', async () => {
    await using box = new PeerBox();
    await expect(box.run(['/bin/sh', '-c', 'echo that is wrong >&2; exit 3'], 10_000)).rejects.toThrow(
      '/bin/sh ended with status 3: that is wrong',
    );
  });

  test('one that does not end is killed', async () => {
    await using box = new PeerBox();
    await expect(box.run(['sleep', '1000'], 100)).rejects.toThrow('sleep did not end within 100 ms');
  });

  test.each(installed)('%s that cannot start is an error that says why', async (name) => {
    await using box = new PeerBox();
    const setting = { name: 'nonsense', flags: ['--no-such-flag-at-all', '1'] };
    await expect(startPeer(box, name, setting, 'unix')).rejects.toThrow(`${PEERS[name].program} (nonsense) did not`);
  });
});

describe('kvss bench peers --tiny', () => {
  const boxes = () => readdirSync(tmpdir()).filter((name) => name.startsWith('kvss-peers-'));

  test('prints rows that parse, a note for what is missing, and figures for what is there', async () => {
    const before = boxes();
    const { code, stdout, stderr } = await kvss('bench', 'peers', '--tiny', '--json');
    expect([code, stderr]).toEqual([0, '']);
    const rows = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as BenchRow)
      .filter(({ bench }) => bench === 'peers');
    for (const row of rows) expect(row.note !== undefined || (row.gbps ?? 0) > 0).toBe(true);
    for (const name of NAMES) {
      const { program, packages } = PEERS[name];
      if (!installed.includes(name)) {
        const note = rows.find(({ what }) => what === name)?.note;
        expect(note).toContain(`${program} is not installed (Debian package ${packages.program})`);
        continue;
      }
      for (const link of ['tcp', 'unix']) {
        const mine = rows.filter((row) => row.link === link && row.what.startsWith(name));
        expect(mine).toHaveLength(2);
      }
    }
    if (installed.length > 0) {
      const own = rows.filter(({ what }) => what.startsWith('KVSS'));
      expect(own.map(({ link }) => link).sort()).toEqual(['shm', 'shm', 'tcp', 'tcp', 'unix', 'unix']);
      for (const { ratio, baseline } of own) {
        expect(ratio).toBeGreaterThan(0);
        expect(baseline).toMatch(/^(redis|memcached) (SET|GET)/);
      }
      // Whoever stored them, the same bytes came back.
      expect(new Set(rows.flatMap(({ checksum }) => checksum ?? [])).size).toBe(1);
    }
    const targets = rows.flatMap(({ target }) => target ?? []).sort();
    const all = ['shm-peers', 'tcp-evict-peers', 'tcp-refill-peers'];
    expect(targets).toEqual(installed.length === NAMES.length ? all : []);
    expect(boxes()).toEqual(before);
  });

  test('without any of them it says which packages they are in, and names no target', async () => {
    using scratch = new Scratch();
    vi.stubEnv('PATH', scratch.path);
    const { code, stdout, stderr } = await kvss('bench', 'peers', '--tiny', '--json').finally(() => vi.unstubAllEnvs());
    expect([code, stderr]).toEqual([0, '']);
    for (const name of NAMES) expect(stdout).toContain(`(Debian package ${PEERS[name].packages.program}): no figures`);
    expect(stdout).not.toContain('"target"');
  });
});
