import { expect, test } from 'vitest';
import { systemClock } from '../../src/common/clock.js';
import type { CompletionHandler, Connector, OperationBatch, ShardLink } from '../../src/links/link.js';
import { NO_POLICIES } from '../../src/links/policy_feed.js';
import { Opcode, Status } from '../../src/proto/generated.js';
import { Stripe } from '../../src/swdriver/stripe.js';
import type { StripeGroup } from '../../src/swdriver/stripe_group.js';

/** A shard that finishes everything at the n-th look after it was asked, or when it is told to. */
class PatientLink implements ShardLink {
  readonly slots = 8;
  readonly pieceBytes = 64;
  readonly places = 8;
  onReady: () => void = () => {};
  polls = 0;
  arms = 0;
  #asked: [number, number][] = [];

  constructor(
    readonly inPlace: boolean,
    private answerAt: number,
  ) {}

  piece = () => new Uint8Array(64);
  payloadBytes = () => 0;
  intact = () => true;

  submit(batch: OperationBatch, from: number): number {
    for (let item = from; item < batch.length; item += 1) this.#asked.push([batch.id, item]);
    this.polls = 0;
    return batch.length - from;
  }

  poll(handler: CompletionHandler): number {
    this.polls += 1;
    if (this.polls < this.answerAt) return 0;
    const finished = this.#asked.splice(0);
    for (const [batch, item] of finished) handler(batch, item, Status.ok);
    return finished.length;
  }

  arm(): boolean {
    this.arms += 1;
    return true;
  }

  answer(): void {
    this.answerAt = 0;
    this.onReady();
  }
}

async function stripeOver(link: PatientLink, spinUs: number): Promise<Stripe> {
  const connect: Connector = async () => ({
    shards: [{ index: 0, domain: 0, budgetBytes: 4096, freeBytes: 4096, hugePages: false }],
    slotBytes: (bytes) => bytes,
    openLink: async () => link,
    policies: NO_POLICIES,
    report: () => {},
    onDraining: () => {},
    onEnd: () => {},
    ended: false,
    close: async () => {},
  });
  const settings = {
    address: { daemons: ['here'] },
    groups: [
      {
        name: 'full',
        pieceBytes: [64],
        keepsAll: true,
        slotsFor: (columns: number) => columns,
        ringEntries: 8,
        silenceMs: 1_000,
        spinUs,
        placedBy: 'stripe' as const,
      },
    ],
    capacityColumns: 8,
    connectDeadlineMs: 1_000,
  };
  const stripe = new Stripe(0, settings, connect, systemClock, { up: () => {}, down: () => {} });
  await stripe.open();
  return stripe;
}

function evict(stripe: Stripe, awaited: boolean): Promise<Uint16Array> {
  const group = stripe.groups[0] as StripeGroup;
  return group.run({
    opcode: Opcode.evict,
    flags: 0,
    slots: Uint32Array.of(group.takeSlot() as number),
    places: Uint32Array.of(0),
    generations: Float64Array.of(1),
    tenantTag: 1n,
    deadlineMs: 60_000,
    awaited,
  });
}

// Longer than any machine stands still.
const LONG_US = 60_000_000;

test('a call that is awaited looks for its answer and asks for no wake-up where it comes in time', async () => {
  const link = new PatientLink(true, 5);
  const stripe = await stripeOver(link, LONG_US);
  expect([...(await evict(stripe, true))]).toEqual([Status.ok]);
  expect(link.arms).toBe(0);
  stripe.close();
});

test.each([
  ['that nobody waits for', true, LONG_US, false],
  ['of a driver that must not look', true, 0, true],
  ['over streams, whose thread needs the processor', false, LONG_US, true],
])('a call %s asks for a wake-up at once', async (_, inPlace, spinUs, awaited) => {
  const link = new PatientLink(inPlace, 5);
  const stripe = await stripeOver(link, spinUs);
  const outcome = evict(stripe, awaited);
  expect(link.arms).toBe(1);
  expect(link.polls).toBeLessThan(5);
  link.answer();
  expect([...(await outcome)]).toEqual([Status.ok]);
  stripe.close();
});

test('a call that looks in vain is woken later, and its outcome is the same', async () => {
  const link = new PatientLink(true, Number.POSITIVE_INFINITY);
  const stripe = await stripeOver(link, 1);
  const outcome = evict(stripe, true);
  expect(link.arms).toBe(1);
  link.answer();
  expect([...(await outcome)]).toEqual([Status.ok]);
  stripe.close();
});
