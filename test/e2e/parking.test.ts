import { createHash, randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import type { Carrier } from '../../src/links/carrier.js';
import { connectorFor } from '../../src/links/connect.js';
import { ControlClient } from '../../src/links/control_client.js';
import type { DaemonConnection, LinkRequest, OperationBatch, ResumedLink, ShardLink } from '../../src/links/link.js';
import { DescriptorFlag, Opcode, Status, SubmitSegmentLayout } from '../../src/proto/generated.js';
import { message, Scratch, startChild, TestDaemon, until } from './support.js';

const SLOTS = 40;
const PIECE = 4096;
const TAG = 7n;

/** Ways to reach a daemon, all of which have to do the same. */
const LINKS: [string, (daemon: TestDaemon) => string][] = [
  ['shared memory', (daemon) => daemon.socket],
  ['a Unix socket', (daemon) => `unix:${daemon.socket}.streams`],
  ['TCP', (daemon) => `tcp://127.0.0.1:${daemon.streamPorts[0]}`],
];

function startDaemon(scratch: Scratch, ...flags: string[]): Promise<TestDaemon> {
  const socket = scratch.file('s');
  return TestDaemon.start(socket, {
    shards: 2,
    budget: '1MiB',
    flags: ['--tcp-port', '0', '--stream-socket', `${socket}.streams`, ...flags],
  });
}

const connect = (address: string): Promise<DaemonConnection> =>
  connectorFor({ wioStreams: 2, placeBytes: SLOTS * PIECE, checksums: false })(address, 10_000);

/** A secret, and what a daemon is told of it. */
function newOwner(): { secret: Buffer; owner: Buffer } {
  const secret = randomBytes(32);
  return { secret, owner: createHash('sha256').update(secret).digest() };
}

const request = (more: Partial<LinkRequest> = {}): LinkRequest => ({
  shard: 0,
  member: 0,
  slots: SLOTS,
  pieceBytes: PIECE,
  ringEntries: 64,
  label: 'full',
  ...more,
});

const byteOf = (slot: number, generation: number, at: number) => (slot * 31 + generation * 7 + at) & 0xff;

function fill(piece: Uint8Array, slot: number, generation: number): void {
  for (let at = 0; at < piece.length; at += 1) piece[at] = byteOf(slot, generation, at);
}

function wrongBytes(piece: Uint8Array, slot: number, generation: number): number {
  return piece.reduce((wrong, byte, at) => wrong + (byte === byteOf(slot, generation, at) ? 0 : 1), 0);
}

/** Runs one operation for each slot, and answers how each ended. */
async function run(
  link: ShardLink,
  opcode: Opcode,
  slots: readonly number[],
  generations: readonly number[],
  after = 0,
): Promise<Status[]> {
  const batch: OperationBatch = {
    id: 1,
    opcode,
    flags: opcode === Opcode.delete ? DescriptorFlag.scrub : 0,
    length: slots.length,
    slots: Uint32Array.from(slots),
    places: Uint32Array.from(slots),
    generations: Float64Array.from(generations),
    tenantTag: TAG,
    after,
    timeoutUs: 20_000_000,
  };
  const statuses: Status[] = [];
  let sent = 0;
  let open = slots.length;
  await until(() => {
    if (sent < slots.length) sent += link.submit(batch, sent);
    link.poll((_id, item, status) => {
      statuses[item] = status;
      open -= 1;
    });
    return open === 0;
  });
  return statuses;
}

const numbers = (from: number, count: number) => Array.from({ length: count }, (_, index) => from + index);

/** Stores a piece in each of the first slots; the generation of slot n is n + 100. */
async function store(link: ShardLink, count: number): Promise<void> {
  const slots = numbers(0, count);
  const generations = slots.map((slot) => slot + 100);
  for (const slot of slots) fill(link.piece(slot), slot, slot + 100);
  expect(await run(link, Opcode.evict, slots, generations)).toEqual(slots.map(() => Status.ok));
}

/** Reads everything back that a resumed link is said to hold, and answers how much that was. */
async function verify({ link, slots: table }: ResumedLink): Promise<number> {
  const held = numbers(0, link.slots).filter((slot) => table.holds[slot] === 1);
  const generations = held.map((slot) => table.generations[slot] as number);
  if (!link.inPlace) for (const slot of held) link.piece(slot).fill(0);
  expect(await run(link, Opcode.refill, held, generations)).toEqual(held.map(() => Status.ok));
  for (const [index, slot] of held.entries()) {
    expect(wrongBytes(link.piece(slot), slot, generations[index] as number)).toBe(0);
    expect(table.tenantTags[slot]).toBe(TAG);
  }
  expect(link.intact()).toBe(true);
  return held.length;
}

const resume = (connection: DaemonConnection, secret: Uint8Array, more: Partial<LinkRequest> = {}) =>
  (connection.resumeLink as NonNullable<DaemonConnection['resumeLink']>)({ ...request(more), secret });

/** Asks on a connection of its own. */
async function finds(address: string, secret: Uint8Array, more: Partial<LinkRequest> = {}): Promise<boolean> {
  const connection = await connect(address);
  try {
    return (await resume(connection, secret, more)) !== undefined;
  } finally {
    await connection.close();
  }
}

/** Descriptors of the memory of all grants, as a process that kept them would have them. */
function keepGrants(daemon: TestDaemon): { nonZero(): number } & Disposable {
  const fds = daemon.memoryObjects('kvss-grant').map((path) => openSync(path, 'r'));
  expect(fds.length).toBeGreaterThan(0);
  return {
    nonZero() {
      return fds.reduce((count, fd) => {
        const bytes = Buffer.alloc(SLOTS * PIECE);
        const read = readSync(fd, bytes, 0, bytes.length, 0);
        return count + bytes.subarray(0, read).filter((byte) => byte !== 0).length;
      }, 0);
    },
    [Symbol.dispose]() {
      for (const fd of fds) closeSync(fd);
    },
  };
}

const everythingFree = async (daemon: TestDaemon) =>
  daemon.awaitMetric('kvss_free_bytes', await daemon.metric('kvss_budget_bytes'));

describe.each(LINKS)('over %s', (_name, addressOf) => {
  test('whoever has the secret goes on with the memory of a connection that was lost: bytes, generations, tags', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    const first = await connect(address);
    const park = { owner, ms: 60_000 };
    const link = await first.openLink(request({ park }));
    await store(link, 30);
    expect(await run(link, Opcode.delete, [3], [103], 30)).toEqual([Status.ok]);
    await first.close({ park: true });
    await daemon.awaitMetric('kvss_parked_grants', 1);
    expect(await daemon.metric('kvss_parked_bytes')).toBe(SLOTS * PIECE);

    const second = await connect(address);
    // How many there were is the daemon's to know.
    const resumed = (await resume(second, secret, { park, slots: 1 })) as ResumedLink;
    expect(resumed.link.slots).toBe(SLOTS);
    expect(resumed.slots.generations.slice(28, 32)).toEqual(Float64Array.of(128, 129, 0, 0));
    expect(resumed.slots.holds.slice(2, 5)).toEqual(Uint8Array.of(1, 0, 1));
    expect(resumed.slots.generations[3]).toBe(103);
    expect(await verify(resumed)).toBe(29);
    expect(await daemon.metric('kvss_parked_grants')).toBe(0);
    // Counts begin anew, generations do not.
    fill(resumed.link.piece(1), 1, 500);
    expect(await run(resumed.link, Opcode.evict, [1, 2], [500, 102])).toEqual([Status.ok, Status.badGeneration]);
    expect(await run(resumed.link, Opcode.refill, [1, 2], [500, 102], 2)).toEqual([Status.ok, Status.ok]);

    // And once more.
    await second.close({ park: true });
    await daemon.awaitMetric('kvss_parked_grants', 1);
    const third = await connect(address);
    const again = (await resume(third, secret)) as ResumedLink;
    expect(again.slots.generations[1]).toBe(500);
    expect(await verify(again)).toBe(29);
    // This time nobody asked for it to be kept.
    await third.close({ park: true });
    await everythingFree(daemon);
    expect(await daemon.metric('kvss_parked_grants')).toBe(0);
    expect(await daemon.metric('kvss_tenant_alarms_total')).toBe(0);
  });

  test('kill -9 in the middle of evicts: what the table says is there has all its bytes', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    for (let round = 0; round < 3; round += 1) {
      const args = [address, owner.toString('hex'), 'full', String(SLOTS), String(PIECE)];
      const victim = startChild('parking.mjs', args);
      await message(victim.child);
      await message(victim.child);
      victim.child.kill('SIGKILL');
      await victim.finished;
      const connection = await connect(address);
      const resumed = (await resume(connection, secret)) as ResumedLink;
      // Ten were on their way at most.
      expect(await verify(resumed)).toBeGreaterThanOrEqual(SLOTS - 10);
      expect(Math.max(...resumed.slots.generations)).toBeGreaterThanOrEqual(400);
      await connection.close();
      await everythingFree(daemon);
    }
  });

  test('nobody else gets it, and nobody learns whether it is there', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    const first = await connect(address);
    await store(await first.openLink(request({ park: { owner, ms: 60_000 } })), SLOTS);
    // Not while it is in use.
    expect(await finds(address, secret)).toBe(false);
    await first.close({ park: true });
    await daemon.awaitMetric('kvss_parked_grants', 1);

    expect(await finds(address, newOwner().secret)).toBe(false);
    expect(await finds(address, owner)).toBe(false);
    expect(await finds(address, secret, { label: 'records' })).toBe(false);
    expect(await finds(address, secret, { shard: 1 })).toBe(false);
    for (const [, other] of LINKS) {
      // Memory that a client could map is not given to an engine that maps it, nor the other way round.
      const sameKind = (address === daemon.socket) === (other(daemon) === daemon.socket);
      if (!sameKind) expect(await finds(other(daemon), secret)).toBe(false);
    }
    const guesser = await connect(address);
    expect(await resume(guesser, randomBytes(32))).toBeUndefined();
    expect(await resume(guesser, randomBytes(32))).toBeUndefined();
    expect(guesser.ended).toBe(false);
    // As many as there are shards is a driver that comes too late; one more is a guess.
    const ended = new Promise((resolve) => {
      guesser.onEnd = resolve;
    });
    expect(await resume(guesser, randomBytes(32))).toBeUndefined();
    await ended;
    await guesser.close();

    // A refused claim leaves the connection as it was.
    const connection = await connect(address);
    expect(await resume(connection, randomBytes(32))).toBeUndefined();
    const fresh = await connection.openLink(request({ slots: 10 }));
    expect(await run(fresh, Opcode.refill, [0], [100])).toEqual([Status.missEmpty]);
    if (fresh.inPlace) expect(fresh.piece(0).every((byte) => byte === 0)).toBe(true);
    await connection.close();

    const own = await connect(address);
    expect(await verify((await resume(own, secret)) as ResumedLink)).toBe(SLOTS);
    // Once.
    expect(await finds(address, secret)).toBe(false);
    await own.close();
    await everythingFree(daemon);
    daemon.kill('SIGTERM');
    const { stderr } = await daemon.finished;
    expect(stderr).toContain('parked');
    for (const said of [secret, owner]) {
      expect(stderr).not.toContain(said.toString('hex'));
      expect(stderr).not.toContain(said.toString('base64'));
    }
    expect(stderr).not.toContain('"full"');
  });

  test('of two claims at once one gets it', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    const first = await connect(address);
    await store(await first.openLink(request({ park: { owner, ms: 60_000 } })), SLOTS);
    const others = await Promise.all([1, 2, 3].map(() => connect(address)));
    await first.close({ park: true });
    await daemon.awaitMetric('kvss_parked_grants', 1);
    const claims = await Promise.all(others.map((each) => resume(each, secret)));
    const got = claims.filter((claim) => claim !== undefined);
    expect(got).toHaveLength(1);
    expect(await verify(got[0] as ResumedLink)).toBe(SLOTS);
    for (const each of others) await each.close();
    await everythingFree(daemon);
  });

  test('a goodbye, the end of the time and a shutdown leave zeros', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    const parkFor = async (ms: number) => {
      const connection = await connect(address);
      await store(await connection.openLink(request({ park: { owner, ms } })), SLOTS);
      return connection;
    };
    {
      const connection = await parkFor(60_000);
      using kept = keepGrants(daemon);
      expect(kept.nonZero()).toBeGreaterThan(SLOTS * PIECE * 0.9);
      await connection.close();
      await everythingFree(daemon);
      expect(kept.nonZero()).toBe(0);
      expect(await finds(address, secret)).toBe(false);
    }
    {
      const connection = await parkFor(300);
      using kept = keepGrants(daemon);
      await connection.close({ park: true });
      await everythingFree(daemon);
      expect(kept.nonZero()).toBe(0);
      expect(await daemon.metric('kvss_parked_grants')).toBe(0);
      expect(await finds(address, secret)).toBe(false);
    }
    const connection = await parkFor(60_000);
    using kept = keepGrants(daemon);
    await connection.close({ park: true });
    await daemon.awaitMetric('kvss_parked_grants', 1);
    expect(kept.nonZero()).toBeGreaterThan(SLOTS * PIECE * 0.9);
    daemon.kill('SIGTERM');
    expect((await daemon.finished).code).toBe(0);
    expect(kept.nonZero()).toBe(0);
  });

  test('a second grant of one name takes the place of the first, other names stay', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    const park = { owner, ms: 60_000 };
    const lose = async (label: string, count: number) => {
      const connection = await connect(address);
      await store(await connection.openLink(request({ label, park })), count);
      await connection.close({ park: true });
    };
    await lose('full', 5);
    await daemon.awaitMetric('kvss_parked_grants', 1);
    await lose('records', 6);
    await daemon.awaitMetric('kvss_parked_grants', 2);
    await lose('full', 7);
    await daemon.awaitMetric('kvss_free_bytes', 2 * 2 ** 20 - 2 * SLOTS * PIECE);
    const connections = await Promise.all([connect(address), connect(address)]);
    const [full, records] = connections as [DaemonConnection, DaemonConnection];
    expect(await verify((await resume(full, secret)) as ResumedLink)).toBe(7);
    expect(await verify((await resume(records, secret, { label: 'records' })) as ResumedLink)).toBe(6);
    for (const connection of connections) await connection.close();
    await everythingFree(daemon);
  });

  test('a driver that is there gets the memory, the oldest that is parked first', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const address = addressOf(daemon);
    const owners = [newOwner(), newOwner(), newOwner()];
    for (const [index, { owner }] of owners.entries()) {
      const connection = await connect(address);
      await store(await connection.openLink(request({ park: { owner, ms: 60_000 } })), SLOTS);
      await connection.close({ park: true });
      await daemon.awaitMetric('kvss_parked_grants', index + 1);
    }
    const live = await connect(address);
    const [shard] = live.shards;
    expect(shard).toMatchObject({ parkedBytes: 3 * SLOTS * PIECE, freeBytes: 2 ** 20 - 3 * SLOTS * PIECE });
    // What cannot be had takes nothing from anybody.
    await expect(live.openLink(request({ slots: 257 }))).rejects.toMatchObject({ code: 'KVSS_NO_MEMORY' });
    expect(await daemon.metric('kvss_parked_grants')).toBe(3);
    const other = await connect(address);
    const link = await other.openLink(request({ slots: 256 - SLOTS }));
    expect(await daemon.metric('kvss_parked_grants')).toBe(1);
    if (link.inPlace)
      expect(numbers(0, link.slots).every((slot) => link.piece(slot).every((byte) => byte === 0))).toBe(true);
    const found = await Promise.all(owners.map(({ secret }) => finds(address, secret)));
    expect(found).toEqual([false, false, true]);
    await other.close();
    await live.close();
    await everythingFree(daemon);
  });

  test('pieces of another size bring nothing back, and free it', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    const first = await connect(address);
    await store(await first.openLink(request({ park: { owner, ms: 60_000 } })), SLOTS);
    using kept = keepGrants(daemon);
    await first.close({ park: true });
    await daemon.awaitMetric('kvss_parked_grants', 1);
    expect(await finds(address, secret, { pieceBytes: 2 * PIECE })).toBe(false);
    expect(kept.nonZero()).toBe(0);
    await everythingFree(daemon);
  });

  test('a daemon that may park nothing does as ever', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch, '--max-park-ms', '0');
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    const first = await connect(address);
    await store(await first.openLink(request({ park: { owner, ms: 60_000 } })), SLOTS);
    using kept = keepGrants(daemon);
    await first.close({ park: true });
    await everythingFree(daemon);
    expect(kept.nonZero()).toBe(0);
    expect(await finds(address, secret)).toBe(false);
  });

  test('a table of many slots comes whole', async () => {
    using scratch = new Scratch();
    const socket = scratch.file('s');
    await using daemon = await TestDaemon.start(socket, {
      shards: 1,
      budget: '16MiB',
      flags: ['--tcp-port', '0', '--stream-socket', `${socket}.streams`],
    });
    const address = addressOf(daemon);
    const { secret, owner } = newOwner();
    const slots = 51_234;
    const first = await connect(address);
    const link = await first.openLink(request({ slots, pieceBytes: 64, park: { owner, ms: 60_000 } }));
    const used = [0, 2_499, 2_500, 39_999, 40_000, slots - 1];
    const generations = used.map((slot) => slot + 2 ** 40);
    // One place each: over streams there are fewer places than slots.
    for (const [index, slot] of used.entries()) {
      const place = link.inPlace ? slot : index;
      fill(link.piece(place), slot, generations[index] as number);
      const batch: OperationBatch = {
        id: 1,
        opcode: Opcode.evict,
        flags: 0,
        length: 1,
        slots: Uint32Array.of(slot),
        places: Uint32Array.of(place),
        generations: Float64Array.of(generations[index] as number),
        tenantTag: TAG,
        after: 0,
        timeoutUs: 20_000_000,
      };
      expect(link.submit(batch, 0)).toBe(1);
      let done = false;
      await until(() => {
        link.poll((_id, _item, status) => {
          expect(status).toBe(Status.ok);
          done = true;
        });
        return done;
      });
    }
    await first.close({ park: true });
    await daemon.awaitMetric('kvss_parked_grants', 1);
    const second = await connect(address);
    const { slots: table } = (await resume(second, secret, { pieceBytes: 64 })) as ResumedLink;
    expect(table.generations).toHaveLength(slots);
    const held = numbers(0, slots).filter((slot) => table.holds[slot] === 1);
    expect(held).toEqual(used);
    expect(held.map((slot) => table.generations[slot])).toEqual(generations);
    await second.close();
  });
});

describe('a process that goes on writing after its connection has ended', () => {
  test('spoils what its owner resumes, and nothing of the next owner', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const { secret, owner } = newOwner();
    const first = await connect(daemon.socket);
    const link = await first.openLink(request({ park: { owner, ms: 60_000 } }));
    await store(link, SLOTS);
    // The mapping lives for as long as somebody holds it.
    const late = link.piece(5);
    await first.close({ park: true });
    const second = await connect(daemon.socket);
    const resumed = (await resume(second, secret)) as ResumedLink;
    late.fill(0xee);
    expect(resumed.link.piece(5).every((byte) => byte === 0xee)).toBe(true);
    expect(wrongBytes(resumed.link.piece(6), 6, 106)).toBe(0);
    await second.close();
    await everythingFree(daemon);
    expect(late.every((byte) => byte === 0)).toBe(true);

    late.fill(0xee);
    const next = await connect(daemon.socket);
    const other = await next.openLink(request({ slots: 256 }));
    late.fill(0xdd);
    expect(numbers(0, 256).every((slot) => other.piece(slot).every((byte) => byte === 0))).toBe(true);
    await next.close();
  });
});

describe('a driver that broke its rings', () => {
  test('leaves nothing behind, whatever it asked for', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const { secret, owner } = newOwner();
    const connection = await connect(daemon.socket);
    await store(await connection.openLink(request({ park: { owner, ms: 60_000 } })), SLOTS);
    using kept = keepGrants(daemon);
    const ended = new Promise((resolve) => {
      connection.onEnd = resolve;
    });
    for (const path of daemon.memoryObjects('kvss-submit')) {
      const fd = openSync(path, 'r+');
      writeSync(fd, Buffer.alloc(8, 0x5a), 0, 8, SubmitSegmentLayout.offset.evictTail);
      closeSync(fd);
    }
    await ended;
    await everythingFree(daemon);
    expect(kept.nonZero()).toBe(0);
    expect(await daemon.metric('kvss_parked_grants')).toBe(0);
    expect(await finds(daemon.socket, secret)).toBe(false);
  });
});

describe('a slot table', () => {
  test('is that of the own grants only', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const victim = await connect(daemon.socket);
    await store(await victim.openLink(request()), SLOTS);
    const { client } = await ControlClient.connect(daemon.socket, 5_000);
    const ask = (more: object) =>
      client.request('slotTable', { shard: 0, grantId: 1, from: 0, count: 1, ...more }, 'slotPage');
    await expect(ask({})).rejects.toMatchObject({ code: 'KVSS_BAD_GRANT' });
    await client.request('attach', { shard: 0, ringEntries: 8 }, 'attached');
    await expect(ask({})).rejects.toMatchObject({ code: 'KVSS_BAD_GRANT' });
    await client.request('grant', { shard: 0, grantId: 1, slots: 3, pieceBytes: 64 }, 'granted');
    expect(Buffer.from((await ask({ count: 3 })).payload.slots)).toEqual(Buffer.alloc(3 * 24));
    await expect(ask({ from: 1, count: 3 })).rejects.toMatchObject({ code: 'KVSS_BAD_SLOT' });
    client.close();
    await victim.close();
  });
});

describe('what a carrier moves', () => {
  test('cannot be parked or resumed, and the error says so', async () => {
    using scratch = new Scratch();
    await using daemon = await startDaemon(scratch);
    const { secret, owner } = newOwner();
    const carrier = { places: 1, pieceBytes: [PIECE] } as unknown as Carrier;
    const connection = await connectorFor({ wioStreams: 1, placeBytes: PIECE, checksums: false, carrier })(
      `unix:${daemon.socket}.streams`,
      5_000,
    );
    await expect(resume(connection, secret)).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
    const park = { owner, ms: 1_000 };
    await expect(connection.openLink(request({ park }))).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
    await connection.close();
  });
});
