import { expect, test } from 'vitest';
import { Wafer } from '../../src/wafer/wafer.js';
import { parseWaferConfig } from '../../src/wafer/wafer_config.js';
import { WaferRuntime } from '../../src/wafer/wafer_runtime.js';
import { ManualClock, settled } from '../model/manual_clock.js';

const COLUMN_TOKENS = 64;
const PLACES = 4;

test('the places of what a refill has not brought are used again when it is quiet, and not before', async () => {
  const config = parseWaferConfig({ boxes: [{ bytesPerToken: [1, 2, 3, 2] }], memoryColumns: PLACES });
  const runtime = new WaferRuntime(new Wafer(config, new ManualClock()), COLUMN_TOKENS, 8 * COLUMN_TOKENS);
  const request = runtime.request(
    'acme',
    Uint32Array.from({ length: 3 * COLUMN_TOKENS }, (_, at) => at),
  );
  const { sink } = request;
  if (!('place' in sink)) throw new Error('a wafer names places');
  for (let index = 0; index < 3; index += 1) sink.place({ index, group: 'full', tenantTag: 7n, generation: 1 + index });
  expect(runtime.freePlaces).toBe(PLACES - 3);
  let beQuiet = () => {};
  await request.accept(
    0,
    new Promise((resolve) => {
      beQuiet = resolve;
    }),
  );
  await settled();
  // The pieces may be late, and not lost.
  expect(runtime.freePlaces).toBe(PLACES - 3);
  beQuiet();
  await settled();
  expect(runtime.freePlaces).toBe(PLACES);
});
