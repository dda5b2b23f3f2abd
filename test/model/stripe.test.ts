import { expect, test } from 'vitest';
import { Opcode, Status } from '../../src/proto/generated.js';
import { Stripe, type StripeEvents } from '../../src/swdriver/stripe.js';
import type { StripeGroup } from '../../src/swdriver/stripe_group.js';
import { ManualClock, settled } from './manual_clock.js';
import { SimulatedBox } from './simulated_link.js';

const PIECE = 8;

async function stripeOver(shards: readonly number[], slots: number, ringEntries = 1024, inPlace = true) {
  const clock = new ManualClock();
  const box = new SimulatedBox(
    clock,
    shards.map((count) => Array.from({ length: count }, () => slots * PIECE)),
  );
  for (const daemon of box.daemons) daemon.inPlace = inPlace;
  const events: StripeEvents = { up: () => {}, down: () => {} };
  const settings = {
    address: { daemons: box.addresses },
    groups: [
      {
        name: 'full',
        pieceBytes: box.daemons.flatMap((daemon) => daemon.budgets.map(() => PIECE)),
        keepsAll: true,
        slotsFor: (columns: number) => columns,
        ringEntries,
        silenceMs: 1_000,
        spinUs: 0,
        placedBy: 'stripe',
      },
    ],
    capacityColumns: slots,
    connectDeadlineMs: 1_000,
  } as const;
  const whole = new Stripe(0, settings, box.connector, clock, events);
  await whole.open();
  return { clock, box, stripe: whole.groups[0] as StripeGroup };
}

const batch = (opcode: Opcode, slots: readonly number[], generation: number) => ({
  opcode,
  flags: 0,
  slots: Uint32Array.from(slots),
  places: new Uint32Array(0),
  generations: new Float64Array(slots.length).fill(generation),
  tenantTag: 7n,
  deadlineMs: 100,
});

test('a slot is handed out once', async () => {
  const { stripe } = await stripeOver([1], 3);
  expect([stripe.takeSlot(), stripe.takeSlot(), stripe.takeSlot(), stripe.takeSlot()]).toEqual([0, 1, 2, undefined]);
});

test('a slot comes back when it has been given back and its taker has let it go, in either order', async () => {
  const { stripe } = await stripeOver([1], 2);
  for (const slot of [stripe.takeSlot() ?? -1, stripe.takeSlot() ?? -1]) {
    if (slot === 0) {
      stripe.giveSlot(slot);
      expect(stripe.freeSlots).toBe(0);
      stripe.letGo(slot, stripe.epoch);
    } else {
      stripe.letGo(slot, stripe.epoch);
      expect(stripe.freeSlots).toBe(1);
      stripe.giveSlot(slot);
    }
  }
  expect(stripe.freeSlots).toBe(2);
});

test('what was taken before a stripe went down is of no account after it', async () => {
  const { stripe, box, clock } = await stripeOver([1], 2);
  const slot = stripe.takeSlot() ?? -1;
  const { epoch } = stripe;
  stripe.giveSlot(slot);
  box.daemon().end();
  stripe.letGo(slot, epoch);
  stripe.giveSlot(slot);
  await clock.advance(60);
  expect(stripe.freeSlots).toBe(2);
  stripe.letGo(slot, epoch);
  expect(stripe.freeSlots).toBe(2);
  expect([stripe.takeSlot(), stripe.takeSlot(), stripe.takeSlot()]).toEqual([0, 1, undefined]);
  // The number is somebody else's by now, who still writes there.
  stripe.giveSlot(slot);
  stripe.letGo(slot, epoch);
  expect(stripe.freeSlots).toBe(0);
  stripe.letGo(slot, stripe.epoch);
  expect(stripe.freeSlots).toBe(1);
});

test('a place that was taken before a stripe went down is of no account after it', async () => {
  const { stripe, box, clock } = await stripeOver([1], 2, 1024, false);
  const place = stripe.takePlace(0) as number;
  const { epoch } = stripe;
  box.daemon().end();
  stripe.givePlace(place, epoch);
  await clock.advance(60);
  expect([stripe.takePlace(0), stripe.takePlace(0), stripe.takePlace(0)]).toEqual([0, 1, undefined]);
  stripe.givePlace(place, epoch);
  expect(stripe.takePlace(0)).toBeUndefined();
  stripe.givePlace(place, stripe.epoch);
  expect(stripe.takePlace(0)).toBe(place);
});

test('a place is not free while something in flight may still fill it', async () => {
  const { stripe, box, clock } = await stripeOver([2], 1, 1024, false);
  const slot = stripe.takeSlot() as number;
  const place = stripe.takePlace(slot) as number;
  const stored = stripe.run({ ...batch(Opcode.evict, [slot], 1), places: Uint32Array.of(place) });
  stripe.givePlace(place, stripe.epoch);
  await clock.advance(101);
  expect(await stored).toEqual(Uint16Array.of(Status.deadline));
  expect(stripe.takePlace(slot)).toBeUndefined();
  box.daemon().link(0).finishAll();
  await settled();
  expect(stripe.takePlace(slot)).toBeUndefined();
  box.finishAll();
  await settled();
  expect(stripe.takePlace(slot)).toBe(place);
});

test('a slot is not free while one of very many refills that touch it is in flight', async () => {
  const { stripe, box, clock } = await stripeOver([1], 1);
  const slot = stripe.takeSlot() ?? -1;
  const stored = stripe.run(batch(Opcode.evict, [slot], 1));
  box.finishAll();
  expect([...(await stored)]).toEqual([Status.ok]);
  stripe.letGo(slot, stripe.epoch);
  // A daemon that stands still collects them: 2^16 wrapped a counter once.
  const refills = stripe.run(batch(Opcode.refill, new Array<number>(65_536).fill(slot), 1));
  await clock.advance(101);
  expect((await refills).every((status) => status === Status.deadline)).toBe(true);
  stripe.giveSlot(slot);
  expect(stripe.freeSlots).toBe(0);
});

test('a stripe of very many shards waits for all of them', async () => {
  const { stripe, box } = await stripeOver([64, 64, 64, 64, 1], 1);
  const slot = stripe.takeSlot() ?? -1;
  const stored = stripe.run(batch(Opcode.evict, [slot], 1));
  stripe.letGo(slot, stripe.epoch);
  stripe.giveSlot(slot);
  for (const link of box.links.slice(0, 256)) link.finishAll();
  await settled();
  expect(stripe.freeSlots).toBe(0);
  box.links[256]?.finishAll();
  expect([...(await stored)]).toEqual([Status.ok]);
  expect(stripe.freeSlots).toBe(1);
});

test('an item ends with the worst status of its shards', async () => {
  const { stripe, box } = await stripeOver([1, 1], 2);
  const slots = [stripe.takeSlot() ?? -1, stripe.takeSlot() ?? -1];
  const stored = stripe.run(batch(Opcode.evict, slots, 1));
  const [good, bad] = box.links;
  good?.finishAll();
  for (const { operation } of bad?.moves() ?? []) {
    bad?.start(operation);
    bad?.finish(operation, operation.slot === 1 ? Status.transferFailed : Status.ok);
  }
  expect([...(await stored)]).toEqual([Status.ok, Status.transferFailed]);
});

test('at the deadline what has not finished counts as such, and what has keeps its status', async () => {
  const { stripe, box, clock } = await stripeOver([1], 2, 1);
  const slots = [stripe.takeSlot() ?? -1, stripe.takeSlot() ?? -1];
  const stored = stripe.run(batch(Opcode.evict, slots, 1));
  box.finishAll();
  await clock.advance(101);
  expect([...(await stored)]).toEqual([Status.ok, Status.deadline]);
});

test('a shard that is only slow is asked again; one that says nothing is not, until it does', async () => {
  const { stripe, box, clock } = await stripeOver([1, 1], 3);
  const slots = [stripe.takeSlot() ?? -1, stripe.takeSlot() ?? -1];
  const [first, second] = box.links;
  const slow = stripe.run(batch(Opcode.evict, slots, 1));
  await clock.advance(50);
  for (const link of box.links) {
    const [move] = link.moves();
    if (!move) throw new Error('nothing to do');
    link.start(move.operation);
    link.finish(move.operation);
  }
  await clock.advance(51);
  expect([...(await slow)]).toEqual([Status.ok, Status.deadline]);
  expect(stripe.usable).toBe(true);

  first?.finishAll();
  const silent = stripe.run(batch(Opcode.refill, slots, 1));
  first?.finishAll();
  await clock.advance(101);
  expect([...(await silent)]).toEqual([Status.deadline, Status.deadline]);
  // The first one answers all the time.
  expect(stripe.usable).toBe(false);
  second?.finishAll();
  await settled();
  expect(stripe.usable).toBe(true);
});

test('a command waits for every evict that was issued before it', async () => {
  const { stripe, box } = await stripeOver([1], 3);
  const slots = [stripe.takeSlot() ?? -1, stripe.takeSlot() ?? -1, stripe.takeSlot() ?? -1];
  const stored = stripe.run(batch(Opcode.evict, slots, 1));
  const refilled = stripe.run(batch(Opcode.refill, slots.slice(0, 1), 1));
  const [link] = box.links;
  expect(link?.commands.map((operation) => operation.after)).toEqual([3]);
  box.finishAll();
  expect([...(await stored), ...(await refilled)]).toEqual([0, 0, 0, 0]);
});

test('completions of what was never asked change nothing', async () => {
  const { stripe, box } = await stripeOver([1, 1], 1);
  const slot = stripe.takeSlot() ?? -1;
  const stored = stripe.run(batch(Opcode.evict, [slot], 1));
  stripe.letGo(slot, stripe.epoch);
  stripe.giveSlot(slot);
  const [link] = box.links;
  const [operation] = link?.evicts ?? [];
  if (!link || !operation) throw new Error('nothing was submitted');
  link.report({ ...operation, batchId: 99 });
  link.report({ ...operation, item: 1 });
  await settled();
  expect(stripe.freeSlots).toBe(0);
  box.finishAll();
  expect([...(await stored)]).toEqual([Status.ok]);
  link.report(operation);
  await settled();
  expect(stripe.freeSlots).toBe(1);
});

test('a shard that reports an item twice does not speak for another one', async () => {
  const { stripe, box } = await stripeOver([1, 1], 2);
  const slots = [stripe.takeSlot() ?? -1, stripe.takeSlot() ?? -1];
  const stored = stripe.run(batch(Opcode.evict, slots, 1));
  let told = false;
  stored.then(() => {
    told = true;
  });
  const [first, second] = box.links;
  first?.finishAll();
  for (const operation of first?.evicts ?? []) first?.report(operation);
  await settled();
  expect(told).toBe(false);
  second?.finishAll();
  expect([...(await stored)]).toEqual([Status.ok, Status.ok]);
});

test('a stripe that is down ends every request at once, and the ones in flight', async () => {
  const { stripe, box } = await stripeOver([1], 1);
  const running = stripe.run(batch(Opcode.evict, [0], 1));
  box.daemon().reachable = false;
  box.daemon().end();
  expect([...(await running), ...(await stripe.run(batch(Opcode.refill, [0], 1)))]).toEqual([
    Status.cancelled,
    Status.cancelled,
  ]);
  expect(stripe).toMatchObject({ usable: false, capacity: 0, freeSlots: 0 });
});
