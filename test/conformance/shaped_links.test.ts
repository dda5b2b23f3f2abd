import { expect, test } from 'vitest';
import { systemClock } from '../../src/common/clock.js';
import { SwDriver } from '../../src/index.js';
import { connectorFor } from '../../src/links/connect.js';
import { overTopology } from '../../src/wafer/shaped_link.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { Topology } from '../../src/wafer/topology.js';
import { MODEL, Scratch, TestDaemon } from '../e2e/support.js';

const PATH = { bandwidth: '50MB', latencyUs: 100, jitterUs: 400, burst: '4KiB' };
const COLUMN_BYTES = 64 * (16 + 32);

// Real links under a topology with the real clock: what links.test.ts asks of a link holds here too.
test.each(['shared memory', 'TCP'])('over %s and emulated paths what was evicted comes back', async (kind) => {
  using scratch = new Scratch();
  const socket = scratch.file('s');
  await using daemon = await TestDaemon.start(socket, { flags: ['--tcp-port', '0'] });
  const address = kind === 'TCP' ? `tcp://127.0.0.1:${daemon.streamPorts[0]}` : socket;
  const warnings: string[] = [];
  const topology = new Topology(
    {
      rails: [PATH, PATH],
      spine: PATH,
      // The second shard is reached by two streams, one of them over the spine.
      boxes: { box: [[0], [0, 1]] },
      daemons: { [address]: [0, 0] },
    },
    systemClock,
    (message) => warnings.push(message),
  );
  const connector = overTopology(
    connectorFor({ wioStreams: 2, placeBytes: 2 ** 22, checksums: false }),
    topology,
    'box',
  );
  await using driver = await SwDriver.connect({ daemons: [address], model: MODEL, deadlineMs: 20_000, connector });
  expect([topology.spineLinks, warnings.length]).toEqual([1, 1]);
  const wafer = new StampingRuntime(64);
  await Promise.all(
    Array.from({ length: 6 }, async (_, lane) => {
      const tenant = `tenant ${lane}`;
      const tokens = Uint32Array.from({ length: 20 * 64 }, (_, at) => Math.imul(at + 1, lane + 7));
      const sequence = driver.openSequence({ isolationId: tenant });
      const request = wafer.request(tenant, tokens);
      sequence.match(tokens).release();
      expect(await sequence.evict(request.source)).toMatchObject({ stored: 20, present: 0, dropped: 0 });
      const hit = sequence.match(tokens);
      const { columns } = await hit.refill(request.sink);
      request.accept(columns);
      hit.release();
      expect(columns).toBe(20);
    }),
  );
  expect(wafer.stats).toMatchObject({ mismatches: 0, bytesVerified: 6 * 20 * COLUMN_BYTES });
  // Every second piece of the second shard.
  const overSpine = (6 * 20 * 64 * 32) / 2;
  expect([topology.spine.toStore.bytes, topology.spine.toWafer.bytes]).toEqual([overSpine, overSpine]);
  const [rail] = topology.rails;
  expect(rail?.toStore.bytes).toBe(6 * 20 * COLUMN_BYTES - overSpine);
  expect(await driver.forget({ isolationId: 'tenant 3' })).toBe(20);
});
