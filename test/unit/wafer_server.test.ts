import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { native } from '../../src/binding/native.js';
import { ControlClient } from '../../src/links/control_client.js';
import { openLane } from '../../src/links/open_lane.js';
import { controlHello } from '../../src/proto/lanes.js';
import { packColumns } from '../../src/wafer/packed_columns.js';
import { parseWaferConfig } from '../../src/wafer/wafer_config.js';
import { WaferServer } from '../../src/wafer/wafer_server.js';

const DEADLINE_MS = 5_000;

test('a driver that comes back on another connection ends the one that it had before', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvss-test-'));
  const path = join(directory, 'wafer');
  const config = { boxes: [{ bytesPerToken: [1, 2, 3, 2] }], memoryColumns: 4, listen: [{ path }] };
  const server = WaferServer.start(parseWaferConfig(config));
  const greet = async () => {
    const lane = await openLane({ hostOrPath: path, port: null }, controlHello(), DEADLINE_MS);
    const channel = native.ControlChannel.adopt(lane);
    return ControlClient.greet(channel, DEADLINE_MS, 'carrierHello', 'carrierWelcome', { owner: 'a driver' });
  };
  const ask = (client: ControlClient) =>
    client.request('compute', { phase: 'prefill', columns: packColumns([{ place: 0, key: 7n }]) }, 'computed');
  try {
    const before = await greet();
    await ask(before.client);
    const after = await greet();
    // The memory is the same: its owner is.
    expect(after.welcome.epoch).toBe(before.welcome.epoch);
    await expect(ask(before.client)).rejects.toMatchObject({ code: 'KVSS_UNREACHABLE' });
    await ask(after.client);
    before.client.close();
    after.client.close();
  } finally {
    await server.stop();
    rmSync(directory, { recursive: true });
  }
});
