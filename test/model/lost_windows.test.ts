import { expect, test } from 'vitest';
import type { ModelGroup } from '../../src/swdriver/model.js';
import { SwDriver } from '../../src/swdriver/sw_driver.js';
import { ManualClock } from './manual_clock.js';
import { prompt, Rig, type RigOptions } from './rig.js';
import { SimulatedBox } from './simulated_link.js';

// A window of one column, with memory for two of them.
const GROUPS: readonly ModelGroup[] = [
  { name: 'full', bytesPerToken: [2, 4] },
  { name: 'sliding', bytesPerToken: [2, 2], windowTokens: 2, capacityShare: 0.25 },
];
const key = new Uint8Array(32).fill(1);

function lifeOn(box: SimulatedBox, start: RigOptions['start']): Promise<Rig> {
  return Rig.create({
    groups: GROUPS,
    capacityColumns: 8,
    box,
    more: { resume: { key } },
    ...(start ? { start } : {}),
  });
}

const newBox = () => new SimulatedBox(new ManualClock(), [[2 ** 26, 2 ** 26]]);

test('a window that another column is being written over is not found by the driver that comes next', async () => {
  const box = newBox();
  const before = await lifeOn(box, SwDriver.connect);
  for (const seed of [1, 2]) await before.store('a', prompt(1, seed));
  const tokens = prompt(1, 3);
  const sequence = before.driver.openSequence({ isolationId: 'a' });
  sequence.match(Uint32Array.from(tokens)).release();
  let leave = (): void => {};
  await sequence.evict({
    write: ({ group }, pieces) => {
      for (const piece of pieces) piece.fill(0xee);
      if (group === 'sliding') leave = box.wouldLeave();
      return true;
    },
  });
  leave();
  const after = await lifeOn(box, SwDriver.resume);
  expect(after.driver.groups.map(({ windowColumns }) => windowColumns)).toEqual([Number.POSITIVE_INFINITY, 1]);
  expect([1, 2, 3].map((seed) => after.find('a', prompt(1, seed)))).toEqual([0, 1, 0]);
  expect(await after.read('a', prompt(1, 2))).toBe(1);
  await after.end();
});

test('a window of which the slot went to another column does not keep that one from being found again', async () => {
  const box = newBox();
  // Records that lie elsewhere cannot be struck out in place.
  for (const daemon of box.daemons) Object.assign(daemon, { inPlace: false, carries: true });
  const before = await lifeOn(box, SwDriver.connect);
  for (const seed of [1, 2, 3]) await before.store('a', prompt(1, seed));
  expect([1, 2, 3].map((seed) => before.find('a', prompt(1, seed)))).toEqual([0, 1, 1]);
  box.wouldLeave()();
  const after = await lifeOn(box, SwDriver.resume);
  expect([1, 2, 3].map((seed) => after.find('a', prompt(1, seed)))).toEqual([0, 1, 1]);
  for (const seed of [2, 3]) expect(await after.read('a', prompt(1, seed))).toBe(1);
  await after.end();
});
