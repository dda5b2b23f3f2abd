import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Descriptor, DescriptorFlag, Opcode, opcodeName } from '../../src/proto/generated.js';
import { Answer, type CoreEvent } from './shard_core.js';
import { ShardDriver } from './shard_driver.js';

// The same runs every time; KVSS_MODEL_RUNS and KVSS_MODEL_SEED are for longer and other ones.
const SEED = Number(process.env.KVSS_MODEL_SEED ?? 20_240_607);
const RUNS = Number(process.env.KVSS_MODEL_RUNS ?? 4_000);

const GRANTS = [1, 2] as const;
const SLOTS = 2;
const NO_GRANT = 9;

/** What an operation waits for, in terms of what its client has issued to the other queue. */
const gate = fc.oneof(
  { weight: 20, arbitrary: fc.constant({ of: 'nothing' as const, pick: 0 }) },
  { weight: 10, arbitrary: fc.constant({ of: 'all' as const, pick: 0 }) },
  { weight: 10, arbitrary: fc.record({ of: fc.constant('some' as const), pick: fc.nat(1000) }) },
  { weight: 1, arbitrary: fc.record({ of: fc.constant('later' as const), pick: fc.nat(2) }) },
  { weight: 1, arbitrary: fc.constant({ of: 'never' as const, pick: 0 }) },
);
type Gate = { of: 'nothing' | 'all' | 'some' | 'later' | 'never'; pick: number };

function afterOf({ of, pick }: Gate, issued: number): bigint {
  switch (of) {
    case 'nothing':
      return 0n;
    case 'all':
      return BigInt(issued);
    case 'some':
      return BigInt(pick % (issued + 1));
    case 'later':
      return BigInt(issued + 1 + pick);
    case 'never':
      return 2n ** 64n - 1n;
  }
}

const place = {
  grantId: fc.oneof(
    { weight: 30, arbitrary: fc.constantFrom(...GRANTS) },
    { weight: 1, arbitrary: fc.constant(NO_GRANT) },
  ),
  slot: fc.oneof({ weight: 30, arbitrary: fc.nat(SLOTS - 1) }, { weight: 1, arbitrary: fc.constant(SLOTS) }),
  timeoutUs: fc.constantFrom(0, 0, 0, 3, 10, 50, 0xffff_ffff),
  after: gate,
};
const flaws: Partial<Descriptor>[] = [
  { opcode: 0 },
  { opcode: 7 },
  { opcode: Opcode.evict },
  { opcode: Opcode.refill },
  { flags: 2 },
  { pieceBytes: 64 },
  { reserved0: 1 },
  { reserved1: 1n },
];
const flaw = fc.oneof(
  { weight: 25, arbitrary: fc.constant(undefined) },
  { weight: 1, arbitrary: fc.constantFrom(...flaws) },
);
const otherTenant = fc.oneof({ weight: 6, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) });

const step = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('evict' as const),
      ...place,
      // From the last generation that was issued for the slot.
      generation: fc.oneof(
        { weight: 12, arbitrary: fc.constant(1) },
        { weight: 1, arbitrary: fc.integer({ min: -1, max: 3 }) },
      ),
      tenantTag: fc.constantFrom(1n, 2n),
      flaw,
    }),
  },
  {
    weight: 10,
    arbitrary: fc.record({
      do: fc.oneof(
        { weight: 8, arbitrary: fc.constant('refill' as const) },
        { weight: 1, arbitrary: fc.constant('delete' as const) },
        { weight: 2, arbitrary: fc.constant('scrub' as const) },
      ),
      ...place,
      generation: fc.oneof(
        { weight: 5, arbitrary: fc.constant('issued' as const) },
        { weight: 5, arbitrary: fc.constant('present' as const) },
        { weight: 1, arbitrary: fc.constant('other' as const) },
      ),
      otherTenant,
      flaw,
    }),
  },
  {
    weight: 16,
    arbitrary: fc.record({
      do: fc.constant('finish' as const),
      pick: fc.nat(1000),
      succeeded: fc.oneof({ weight: 8, arbitrary: fc.constant(true) }, { weight: 1, arbitrary: fc.constant(false) }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('pass' as const),
      micros: fc.constantFrom(0, 1, 2, 4, 20, 100, 601_000_000),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('answer' as const),
      answer: fc.constantFrom(Answer.pending, Answer.pending, Answer.done, Answer.failed),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('regrant' as const), grantId: fc.constantFrom(...GRANTS) }) },
);
type Step = typeof step extends fc.Arbitrary<infer Value> ? Value : never;

/** A client that may say anything; it remembers what it has issued so that most of what it says makes sense. */
class Client {
  readonly driver: ShardDriver;
  readonly #issued = new Map<string, { generation: number; tenantTag: bigint }>();

  constructor(window: number) {
    this.driver = new ShardDriver(window);
    for (const grantId of GRANTS) this.driver.addGrant(grantId, SLOTS);
  }

  take(action: Step): void {
    const { driver } = this;
    switch (action.do) {
      case 'finish':
        driver.finish(action.pick, action.succeeded);
        return;
      case 'pass':
        driver.pass(action.micros);
        return;
      case 'answer':
        driver.answer(action.answer);
        return;
      case 'regrant':
        if (driver.removeGrant(action.grantId) === 0) {
          driver.addGrant(action.grantId, SLOTS);
          for (let slot = 0; slot < SLOTS; slot++) this.#issued.delete(`${action.grantId}/${slot}`);
        }
        return;
      case 'evict': {
        if (driver.oracle.room('evict') === 0) return;
        const { grantId, slot, timeoutUs, tenantTag } = action;
        const key = `${grantId}/${slot}`;
        const last = this.#issued.get(key)?.generation ?? 0;
        const generation = Math.max(0, last + action.generation);
        this.#issued.set(key, { generation: Math.max(last, generation), tenantTag });
        const after = afterOf(action.after, driver.oracle.issued('command'));
        const { flaw } = action;
        driver.submit('evict', {
          opcode: Opcode.evict,
          ...{ grantId, slot, timeoutUs, tenantTag, after, generation: BigInt(generation) },
          ...(flaw?.opcode === Opcode.evict ? {} : flaw),
        });
        return;
      }
      default: {
        if (driver.oracle.room('command') === 0) return;
        const { grantId, slot, timeoutUs } = action;
        const issued = this.#issued.get(`${grantId}/${slot}`) ?? { generation: 1, tenantTag: 1n };
        const present = driver.oracle.generationOf(grantId, slot);
        const generation = { issued: issued.generation, present, other: issued.generation + 1 }[action.generation];
        const tenantTag = action.generation === 'present' ? driver.oracle.tenantOf(grantId, slot) : issued.tenantTag;
        driver.submit('command', {
          opcode: action.do === 'refill' ? Opcode.refill : Opcode.delete,
          flags: action.do === 'scrub' ? DescriptorFlag.scrub : 0,
          ...{ grantId, slot, timeoutUs, generation: BigInt(generation) },
          tenantTag: action.otherTenant ? 3n - tenantTag : tenantTag,
          after: afterOf(action.after, driver.oracle.issued('evict')),
          ...(action.flaw?.opcode === Opcode.refill ? {} : action.flaw),
        });
      }
    }
  }
}

/** Every operation that was accepted has finished, and nothing else. */
function expectAllFinished(driver: ShardDriver): void {
  expect(driver.oracle.unfinished()).toEqual([]);
  expect(driver.state()).toMatchObject({
    idle: true,
    quiescent: true,
    evictCount: driver.oracle.issued('evict'),
    commandCount: driver.oracle.issued('command'),
  });
}

const well = () => true;
/** Ends transfers in an order that `picks` choose until none runs. */
function finishAll(driver: ShardDriver, picks: readonly number[], succeeds: (pick: number) => boolean): void {
  for (let index = 0, going = true; going; index++) {
    const pick = picks[index % picks.length] ?? 0;
    going = driver.finish(pick, succeeds(pick));
  }
}

const windows = fc.constantFrom(1, 2, 4, 8, 8, 16);
const picks = fc.array(fc.nat(1000), { minLength: 1, maxLength: 8 });

describe('the shard core against an oracle', () => {
  it('does what the rules allow and all that they demand, whatever a client says and however its transfers end', () => {
    const seen = new Map<string, number>();
    const see = (what: string) => seen.set(what, (seen.get(what) ?? 0) + 1);
    fc.assert(
      fc.property(
        windows,
        fc.array(step, { minLength: 10, maxLength: 100, size: 'max' }),
        picks,
        fc.constantFrom('time', 'close'),
        (window, steps, order, end) => {
          const client = new Client(window);
          const { driver } = client;
          for (const action of steps) client.take(action);
          driver.answer(Answer.pending);
          if (end === 'close') {
            driver.close();
            finishAll(driver, order, (pick) => pick % 2 === 0);
          } else {
            // Gates that never open end at their deadlines; what they held up starts then, and is finished too.
            do {
              finishAll(driver, order, well);
              driver.pass(601_000_000);
            } while (driver.oracle.running().length > 0);
          }
          expectAllFinished(driver);
          for (const operation of driver.oracle.operations) {
            const opcode = opcodeName(operation.descriptor.opcode) ?? 'nonsense';
            see(`${operation.queue}: ${opcode} ${driver.oracle.statusOf(operation)}`);
            if (operation.descriptor.flags === DescriptorFlag.scrub && operation.end) see('scrub with a transfer');
          }
          const { tally } = driver.state();
          if (tally.gatedEvicts > 0) see('an evict that waited');
          if (tally.gatedCommands > 0) see('a command that waited');
        },
      ),
      { seed: SEED, numRuns: RUNS },
    );
    // The runs went everywhere that matters, or they would prove little.
    const everywhere = [
      ...[
        'ok',
        'deadline',
        'cancelled',
        'badOpcode',
        'badGrant',
        'badSlot',
        'badLength',
        'badGeneration',
        'transferFailed',
      ].map((status) => `evict: evict ${status}`),
      ...['refill', 'delete'].flatMap((opcode) =>
        [
          'ok',
          'missEmpty',
          'missOverwritten',
          'deadline',
          'cancelled',
          'badOpcode',
          'badGrant',
          'badSlot',
          'badLength',
        ].map((status) => `command: ${opcode} ${status}`),
      ),
      'command: refill missTenant',
      'command: refill transferFailed',
      'command: delete transferFailed',
      'command: evict badOpcode',
      'evict: refill badOpcode',
      'command: nonsense badOpcode',
      'scrub with a transfer',
      'an evict that waited',
      'a command that waited',
    ];
    expect(everywhere.filter((what) => (seen.get(what) ?? 0) < RUNS / 300)).toEqual([]);
  });

  it('needs no deadline to finish what names only earlier operations', () => {
    const honest = fc.record({
      queue: fc.constantFrom('evict' as const, 'command' as const),
      slot: fc.nat(SLOTS - 1),
      gate: fc.record({ of: fc.constantFrom('nothing' as const, 'all' as const, 'some' as const), pick: fc.nat(1000) }),
      scrub: fc.boolean(),
      finish: fc.option(fc.record({ pick: fc.nat(1000), succeeded: fc.boolean() }), { nil: undefined }),
    });
    fc.assert(
      fc.property(
        windows,
        fc.array(honest, { minLength: 10, maxLength: 80, size: 'max' }),
        picks,
        (window, steps, order) => {
          const driver = new ShardDriver(window);
          driver.addGrant(1, SLOTS);
          const generations = new Array<number>(SLOTS).fill(0);
          for (const { queue, slot, gate, scrub, finish } of steps) {
            if (finish) driver.finish(finish.pick, finish.succeeded);
            if (driver.oracle.room(queue) === 0) finishAll(driver, order, well);
            // What finishes now makes room: nothing waits for the clock.
            expect(driver.oracle.room(queue)).toBeGreaterThan(0);
            const after = afterOf(gate, driver.oracle.issued(queue === 'evict' ? 'command' : 'evict'));
            const generation = generations[slot] ?? 0;
            if (queue === 'evict') {
              generations[slot] = generation + 1;
              driver.evict(slot, generation + 1, { after });
            } else if (scrub) {
              driver.scrub(slot, generation, { after });
            } else {
              driver.refill(slot, generation, { after });
            }
          }
          finishAll(driver, order, well);
          expectAllFinished(driver);
        },
      ),
      { seed: SEED, numRuns: Math.ceil(RUNS / 3) },
    );
  });

  it('gives a careful client every piece that it stored', () => {
    // Refills come behind their evict, overwrites behind the refills: no miss is allowed here.
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(SLOTS - 1), fc.nat(3), fc.nat(1000)), { minLength: 5, maxLength: 40 }),
        (rounds) => {
          const driver = new ShardDriver(8);
          driver.addGrant(1, SLOTS);
          const generations = new Array<number>(SLOTS).fill(0);
          for (const [slot, refills, pick] of rounds) {
            while (driver.oracle.room('evict') === 0 || driver.oracle.room('command') < refills)
              driver.finish(pick, true);
            const generation = (generations[slot] ?? 0) + 1;
            generations[slot] = generation;
            driver.evict(slot, generation, { after: BigInt(driver.oracle.issued('command')) });
            for (let refill = 0; refill < refills; refill++) {
              driver.refill(slot, generation, { after: BigInt(driver.oracle.issued('evict')) });
            }
          }
          finishAll(driver, [1], well);
          expectAllFinished(driver);
          expect(driver.oracle.operations.filter((operation) => driver.oracle.statusOf(operation) !== 'ok')).toEqual(
            [],
          );
        },
      ),
      { seed: SEED, numRuns: Math.ceil(RUNS / 6) },
    );
  });
});

describe('the oracle', () => {
  /** Runs `story` with falsified events and answers what the oracle says to them. */
  function verdict(tamper: (event: CoreEvent) => CoreEvent, story: (driver: ShardDriver) => void): () => void {
    return () => {
      const driver = new ShardDriver(8, tamper);
      driver.addGrant(1, SLOTS);
      story(driver);
    };
  }
  const storeAndRead = (driver: ShardDriver) => {
    driver.evict(0, 1);
    driver.finish(0, true);
    driver.refill(0, 1);
    driver.finish(0, true);
  };
  const isCompletion = (event: CoreEvent): event is Uint8Array => event instanceof Uint8Array;

  it('accepts the true story', () => {
    expect(verdict((event) => event, storeAndRead)).not.toThrow();
  });

  it('sees bytes that changed while they were read', () => {
    const tear = (event: CoreEvent): CoreEvent =>
      !isCompletion(event) && event.type === 'end' && event.kind === 1 ? { ...event, halves: [1, 1, 2, 1] } : event;
    expect(verdict(tear, storeAndRead)).toThrow('command 1 saw 1,1,2,1 and not 1');
  });

  it('sees bytes of another evict', () => {
    const swap = (event: CoreEvent): CoreEvent =>
      !isCompletion(event) && event.type === 'end' && event.kind === 1 ? { ...event, halves: [5, 5, 5, 5] } : event;
    expect(verdict(swap, storeAndRead)).toThrow('saw 5,5,5,5');
  });

  it('sees a wrong outcome', () => {
    const miss = (event: CoreEvent): CoreEvent => {
      if (isCompletion(event)) event[2] = 1;
      return event;
    };
    expect(verdict(miss, storeAndRead)).toThrow('evict 1 ended with missEmpty and not with ok');
  });

  it('sees an evict that writes while a refill reads', () => {
    // The transfer of the waiting evict is made up in the place of the refill's end.
    const jump = (event: CoreEvent): CoreEvent =>
      !isCompletion(event) && event.type === 'end' && event.kind === 1
        ? { ...event, type: 'begin', kind: 0, sequence: 2, generation: 2, userData: 3 }
        : event;
    const story = (driver: ShardDriver) => {
      driver.evict(0, 1);
      driver.finish(0, true);
      driver.refill(0, 1);
      driver.evict(0, 2);
      driver.finish(0, true);
    };
    expect(verdict(jump, story)).toThrow('evict 2 started while command 1 touched its slot');
  });

  it('sees an operation that starts before its gate', () => {
    const eager = (event: CoreEvent): CoreEvent =>
      !isCompletion(event) && event.type === 'begin' && event.sequence === 2
        ? { ...event, kind: 1, sequence: 1, slot: 0, offset: 0, userData: 1 }
        : event;
    const story = (driver: ShardDriver) => {
      driver.refill(0, 1, { after: 1n });
      driver.evict(0, 1);
      driver.evict(1, 1);
    };
    expect(verdict(eager, story)).toThrow('command 1 started before its gate');
  });

  it('sees an operation that nobody finished', () => {
    const story = (driver: ShardDriver) => {
      driver.evict(0, 1, { timeoutUs: 1 });
      driver.nowNs += 5_000;
      // The core is not told that time has passed, the oracle is.
      driver.oracle.expire(driver.nowNs);
      driver.oracle.settle(driver.state());
    };
    expect(verdict((event) => event, story)).toThrow('evict 1 outlived its deadline');
  });

  it('sees a count that is off', () => {
    const story = (driver: ShardDriver) => {
      driver.evict(0, 1);
      driver.oracle.settle({ ...driver.state(), evictCount: 1 });
    };
    expect(verdict((event) => event, story)).toThrow('evictCount 1, not 0');
  });
});
