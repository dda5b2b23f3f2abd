import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { describe, expect, test } from 'vitest';
import { SwDriver } from '../../src/index.js';
import { LaneHelloLayout, LaneKind, LaneWelcomeLayout, StreamHeaderLayout } from '../../src/proto/generated.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { MODEL, Scratch, TestDaemon } from './support.js';

const PIECE_BYTES = 64 * 16;

/** A wire that flips one bit in the payload of the third frame of the first lane of a kind. */
class DamagingProxy implements AsyncDisposable {
  damaged = 0;

  private constructor(private readonly server: Server) {}

  static async start(port: number, kind: LaneKind): Promise<DamagingProxy> {
    let proxy: DamagingProxy | undefined;
    let taken = false;
    const server = createServer((near) => {
      const far = connect(port, '127.0.0.1');
      const close = () => {
        near.destroy();
        far.destroy();
      };
      for (const socket of [near, far]) socket.on('error', close).on('close', close);
      let mine = false;
      let up = 0;
      let down = 0;
      const flip = (bytes: Buffer, at: number, from: number): Buffer => {
        if (at < from || at >= from + bytes.length || !proxy) return bytes;
        const copy = Buffer.from(bytes);
        copy[at - from] = (copy[at - from] as number) ^ 0x10;
        proxy.damaged += 1;
        return copy;
      };
      const frame = StreamHeaderLayout.bytes + PIECE_BYTES;
      const inThirdPayload = 2 * frame + StreamHeaderLayout.bytes + 100;
      near.on('data', (bytes) => {
        if (up === 0 && bytes.readUInt16LE(LaneHelloLayout.offset.kind) === kind && bytes.readUInt32LE(8) === 0) {
          mine = !taken;
          taken = true;
        }
        far.write(mine && kind === LaneKind.wioEvict ? flip(bytes, LaneHelloLayout.bytes + inThirdPayload, up) : bytes);
        up += bytes.length;
      });
      far.on('data', (bytes) => {
        near.write(
          mine && kind === LaneKind.wioRefill ? flip(bytes, LaneWelcomeLayout.bytes + inThirdPayload, down) : bytes,
        );
        down += bytes.length;
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    proxy = new DamagingProxy(server);
    return proxy;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.server.close();
  }
}

const tokens = Uint32Array.from({ length: 10 * 64 }, (_, at) => at * 11);

describe('a wire that flips a bit', () => {
  test('on the way to the store: the column is not stored, and what is stored is right', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { flags: ['--tcp-port', '0'] });
    await using wire = await DamagingProxy.start(daemon.streamPorts[0] as number, LaneKind.wioEvict);
    await using driver = await SwDriver.connect({
      daemons: [`tcp://127.0.0.1:${wire.port}`],
      model: MODEL,
      checksums: true,
    });
    const wafer = new StampingRuntime(64);
    const request = wafer.request('acme', tokens);
    const sequence = driver.openSequence({ isolationId: 'acme' });
    sequence.match(tokens).release();
    // What continues the damaged column cannot be reached without it, so it is dropped as well.
    expect(await sequence.evict(request.source)).toMatchObject({ stored: 2, present: 0, dropped: 8 });
    expect(wire.damaged).toBe(1);
    await daemon.awaitMetric('kvss_evict_faults_total', 1);
    expect((await sequence.evict(request.source)).stored).toBe(8);
    const hit = sequence.match(tokens);
    const { columns } = await hit.refill(request.sink);
    request.accept(columns);
    expect([columns, wafer.stats.mismatches]).toEqual([10, 0]);
  });

  test('on the way back: the prefix ends before the column, and the next refill is right', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { flags: ['--tcp-port', '0'] });
    await using wire = await DamagingProxy.start(daemon.streamPorts[0] as number, LaneKind.wioRefill);
    await using driver = await SwDriver.connect({
      daemons: [`tcp://127.0.0.1:${wire.port}`],
      model: MODEL,
      checksums: true,
    });
    const wafer = new StampingRuntime(64);
    const request = wafer.request('acme', tokens);
    const sequence = driver.openSequence({ isolationId: 'acme' });
    sequence.match(tokens).release();
    expect((await sequence.evict(request.source)).stored).toBe(10);
    for (const expected of [2, 10]) {
      const hit = sequence.match(tokens);
      const { columns } = await hit.refill(request.sink);
      request.accept(columns);
      hit.release();
      expect(columns).toBe(expected);
    }
    expect(wire.damaged).toBe(1);
    expect(wafer.stats.mismatches).toBe(0);
  });
});
