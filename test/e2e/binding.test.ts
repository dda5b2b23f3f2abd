import { createRequire } from 'node:module';
import { describe, expect, test } from 'vitest';
import { type DescriptorBundle, type NativeChannel, native } from '../../src/binding/native.js';
import { CompletionLayout, DescriptorLayout, encodeDescriptor, Opcode, Status } from '../../src/proto/generated.js';
import { Scratch, until } from './support.js';

/** Names of what a class gives its objects. */
const methodsOf = (exported: unknown) =>
  Object.getOwnPropertyNames((exported as { prototype: object }).prototype)
    .filter((name) => name !== 'constructor')
    .sort();

describe('the native addon', () => {
  test('exports exactly what its contract says', () => {
    const raw = createRequire(import.meta.url)('../../build/native/kvss.node');
    expect(Object.keys(raw).sort()).toEqual(
      [
        'CarrierLane',
        'ControlChannel',
        'ControlListener',
        'Lane',
        'Shard',
        'StreamLane',
        'StreamListener',
        'answerLane',
        'connectLane',
        'copyPiece',
        'joinBundles',
        'mapCounters',
        'mapGrant',
        'protocolVersion',
        'splitBundle',
      ].sort(),
    );
    expect(methodsOf(raw.Shard)).toEqual(
      [
        'addGrant',
        'addLane',
        'openStreamSession',
        'close',
        'closeSession',
        'countersDescriptor',
        'drain',
        'dropParked',
        'memory',
        'openSession',
        'parkSession',
        'readSlots',
        'removeGrant',
        'resumeGrant',
      ].sort(),
    );
    expect(methodsOf(raw.Lane)).toEqual(
      [
        'arm',
        'close',
        'commandCount',
        'completions',
        'descriptors',
        'evictCount',
        'poll',
        'revoked',
        'submitCommands',
        'submitEvicts',
      ].sort(),
    );
    expect(methodsOf(raw.ControlChannel)).toEqual(
      ['close', 'peerPid', 'peerUid', 'ref', 'send', 'start', 'unref'].sort(),
    );
    expect(methodsOf(raw.ControlListener)).toEqual(['close']);
    expect(methodsOf(raw.StreamListener)).toEqual(['close', 'port']);
    expect(methodsOf(raw.StreamLane)).toEqual(
      [
        'arm',
        'broken',
        'close',
        'commandCount',
        'completions',
        'descriptors',
        'evictCount',
        'payloadBytes',
        'places',
        'poll',
        'registerMemory',
        'submit',
      ].sort(),
    );
    expect(methodsOf(raw.CarrierLane)).toEqual(['bytesReceived', 'bytesSent', 'close']);
  });

  test('serves one shard from end to end, every export called by its name', async () => {
    const corrupt: number[] = [];
    const shard = await native.Shard.create(
      { index: 3, budgetBytes: 2 ** 20, hugePages: false, hioMode: 'buffered', spinUs: 0 },
      (session) => corrupt.push(session),
    );
    expect(shard.memory()).toEqual({ budgetBytes: 2 ** 20, freeBytes: 2 ** 20, hugePages: false });
    const endpoints = await shard.openSession(1, 16);
    expect(endpoints.count).toBe(4);
    const grant = await shard.addGrant(1, 9, 10, 100);
    expect(grant).toMatchObject({ slotBytes: 128, bytes: 4096, hugePages: false });
    expect(shard.memory().freeBytes).toBe(2 ** 20 - 4096);
    const [memory] = await native.mapGrant(grant.descriptors, 10, 128);
    expect(memory?.byteLength).toBe(1280);

    let wakes = 0;
    const lane = new native.Lane(endpoints, 16, () => {
      wakes += 1;
    });
    expect([lane.descriptors.byteLength, lane.completions.byteLength]).toEqual([
      16 * DescriptorLayout.bytes,
      32 * CompletionLayout.bytes,
    ]);
    const descriptor = {
      opcode: Opcode.evict as number,
      flags: 0,
      grantId: 9,
      slot: 4,
      pieceBytes: 100,
      generation: 1n,
      tenantTag: 77n,
      after: 0n,
      userData: 5n,
      timeoutUs: 0,
      reserved0: 0,
      reserved1: 0n,
    };
    encodeDescriptor(new DataView(lane.descriptors), 0, descriptor);
    expect(lane.submitEvicts(1)).toBe(1);
    if (lane.arm()) await until(() => wakes > 0);
    await until(() => lane.evictCount() === 1);
    expect(lane.poll()).toBe(1);
    const done = new DataView(lane.completions);
    expect(done.getUint16(CompletionLayout.offset.status, true)).toBe(Status.ok);
    expect(done.getBigUint64(CompletionLayout.offset.generation, true)).toBe(1n);

    encodeDescriptor(new DataView(lane.descriptors), 0, { ...descriptor, opcode: Opcode.refill, after: 1n });
    expect(lane.submitCommands(1)).toBe(1);
    await until(() => lane.commandCount() === 1);
    expect(lane.poll()).toBe(1);
    expect(lane.revoked()).toBe(false);

    expect(await shard.drain(1_000)).toBe(true);
    const counters = native.mapCounters(native.joinBundles(shard.countersDescriptor(), shard.countersDescriptor()));
    expect(counters).toHaveLength(2);
    await shard.removeGrant(1, 9);
    expect(shard.memory().freeBytes).toBe(2 ** 20);
    await expect(shard.removeGrant(1, 9)).rejects.toMatchObject({ status: Status.badGrant });
    await shard.closeSession(1);
    await shard.closeSession(1);
    expect(lane.revoked()).toBe(true);
    lane.close();
    lane.close();
    expect([lane.submitEvicts(1), lane.poll(), lane.arm(), lane.evictCount()]).toEqual([0, 0, true, 0]);
    await shard.close();
    expect(() => shard.memory()).toThrow('the shard is closed');
    expect(corrupt).toEqual([]);
  });

  test('carries packets and descriptors over a control connection', async () => {
    using scratch = new Scratch();
    const path = scratch.file('s');
    let accept: (channel: NativeChannel) => void = () => {};
    const accepted = new Promise<NativeChannel>((resolve) => {
      accept = resolve;
    });
    const listener = new native.ControlListener(path, (channel) => accept(channel));
    const client = native.ControlChannel.connect(path);
    const server = await accepted;
    expect([server.peerPid, server.peerUid]).toEqual([process.pid, process.getuid?.()]);
    const received = new Promise<[Uint8Array, DescriptorBundle | null]>((resolve) => {
      server.start(
        (bytes, descriptors) => resolve([bytes, descriptors]),
        () => {},
      );
    });
    const shard = await native.Shard.create(
      { index: 0, budgetBytes: 4096, hugePages: false, hioMode: 'buffered', spinUs: 0 },
      () => {},
    );
    const sent = shard.countersDescriptor();
    let ended = 0;
    client.start(
      () => {},
      () => {
        ended += 1;
      },
    );
    client.unref();
    client.ref();
    client.send(Uint8Array.of(1, 2, 3), sent);
    expect(sent.count).toBe(0);
    const [bytes, descriptors] = await received;
    expect([...bytes]).toEqual([1, 2, 3]);
    expect(descriptors?.count).toBe(1);
    descriptors?.close();
    expect(descriptors?.count).toBe(0);
    server.close();
    await until(() => ended === 1);
    expect(() => client.send(Uint8Array.of(1))).toThrow('the connection has ended');
    client.close();
    listener.close();
    await shard.close();
  });
});
