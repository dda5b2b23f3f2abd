import { expect, test } from 'vitest';
import { SwDriver } from '../../src/swdriver/sw_driver.js';
import { ManualClock, settled } from './manual_clock.js';
import { SimulatedBox } from './simulated_link.js';

const COLUMN_TOKENS = 4;
const source = { write: () => true };

const columns = (count: number, first: number) =>
  Uint32Array.from({ length: count * COLUMN_TOKENS }, (_, at) => first + at);

/** A driver over one shard that does nothing by itself, with a single place for bytes on their way. */
async function narrow() {
  const clock = new ManualClock();
  const box = new SimulatedBox(clock, [[1_000]]);
  box.daemon().inPlace = false;
  box.daemon().places = 1;
  const driver = await SwDriver.connect({
    daemons: box.addresses,
    model: {
      ...{ id: 'model', revision: 'r1', dtype: 'bf16', layout: 'plain' },
      ...{ bytesPerToken: [2], columnTokens: COLUMN_TOKENS },
    },
    capacityColumns: 16,
    connector: box.connector,
    clock,
  });
  const open = (isolationId: string, tokens: Uint32Array) => {
    const sequence = driver.openSequence({ isolationId });
    return { sequence, hit: sequence.match(tokens) };
  };
  return { box, driver, open };
}

test('an evict that waits for a place goes on behind its own column only, whatever has its number by then', async () => {
  const { box, driver, open } = await narrow();
  const first = open('a', columns(2, 1)).sequence.evict(source);
  await settled();
  // Its first column is on its way and has the place; the second one waits, and meanwhile its tenant is forgotten.
  const forgotten = driver.forget({ isolationId: 'a' });
  const other = open('b', columns(1, 100)).sequence;
  const [link] = box.links;
  link?.finishAll();
  // In the moment in which the place is free, and before the first evict hears of it.
  const second = other.evict(source);
  for (let round = 0; round < 8; round += 1) {
    await settled();
    link?.finishAll();
  }
  expect(await first).toMatchObject({ stored: 0, present: 0, dropped: 2 });
  expect(await second).toMatchObject({ stored: 1, present: 0, dropped: 0 });
  expect(await forgotten).toBe(1);
  expect(driver.columns).toBe(1);
  expect(open('b', Uint32Array.of(...columns(1, 100), ...columns(1, 1 + COLUMN_TOKENS))).hit.columns).toBe(1);
  await driver.close();
});
