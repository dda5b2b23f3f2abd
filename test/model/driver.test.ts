import * as fc from 'fast-check';
import { expect, test, vi } from 'vitest';
import type { TenantPolicy } from '../../src/common/tenant_policy.js';
import { ColumnRecords } from '../../src/swdriver/column_records.js';
import { settled } from './manual_clock.js';
import { settings } from './property_settings.js';
import { COLUMN_TOKENS, type SinkKind, type SourceFault, type SourceKind, World, type WorldOptions } from './world.js';

/** What may go wrong in a run: nothing, all that a driver hears of, or also shards that lose pieces silently. */
type Trouble = 'none' | 'failures' | 'losses';
const TROUBLES: readonly Trouble[] = ['none', 'failures', 'losses'];
interface Run {
  readonly trouble: Trouble;
}

/** One thing that can happen, whatever came before: what it names is chosen among what there is. */
class Step implements fc.AsyncCommand<Run, World> {
  constructor(
    readonly text: string,
    readonly act: (world: World) => unknown,
    readonly trouble: Trouble = 'none',
  ) {}

  check({ trouble }: Run): boolean {
    return TROUBLES.indexOf(this.trouble) <= TROUBLES.indexOf(trouble);
  }

  async run(_: Run, world: World): Promise<void> {
    // Calls go on by themselves; what they come to is the world's to watch.
    this.act(world);
    await settled();
    world.check();
  }

  toString(): string {
    return this.text;
  }
}

class Advance extends Step {
  constructor(readonly ms: number) {
    super(`advance(${ms})`, () => {});
  }

  override async run(_: Run, world: World): Promise<void> {
    await world.clock.advance(this.ms);
    world.check();
  }
}

// Few different columns, so that prompts share prefixes; they differ in one token, or in one bit of one.
const COLUMNS = [
  [1, 2, 3, 4],
  [1, 2, 3, 0x8000_0004],
  [1, 0xffff_ffff, 3, 4],
];
const CONVERSATIONS = [
  [0, 1, 2, 0, 1, 2],
  [0, 1, 0, 0, 1, 2],
  [2, 1, 0, 0, 0, 0],
];
const tail = fc.constantFrom<number[]>([], [1], [1, 2, 3]);
const prompt = fc
  .tuple(fc.constantFrom(...CONVERSATIONS), fc.constantFrom(1, 2, 3, 4, 5, 6), tail)
  .map(([columns, length, rest]) => [...columns.slice(0, length).flatMap((column) => COLUMNS[column] ?? []), ...rest]);
const continuation = fc.constantFrom([1], [4], COLUMNS[0] ?? [], [...(COLUMNS[1] ?? []), ...(COLUMNS[0] ?? [])]);
const tenant = fc.constantFrom('a', 'a', 'a', '1:a', 'a1:');
const adapter = fc.constantFrom('', '', '', 'a');
const pick = fc.nat({ max: 1_000 });
const picks = fc.array(pick, { minLength: 1, maxLength: 8 });
const sourceKind = fc.constantFrom<SourceKind>('write', 'writeLater', 'locate');
const sinkKind = fc.constantFrom<SinkKind>('read', 'readLater', 'locate');
const sourceFault = fc.constantFrom<SourceFault>('none', 'none', 'none', 'none', 'lacks', 'throws');
const deadline = fc.constantFrom(undefined, undefined, 20, 300);

const policy = fc.constantFrom<TenantPolicy>(
  {},
  {},
  { ttl: { mode: 'last-use', seconds: 0.2 } },
  { ttl: { mode: 'last-use', seconds: 1.5 } },
  { ttl: { mode: 'first-use', seconds: 0.5 } },
  { noStore: true },
  { storeUpTo: 2 * COLUMN_TOKENS + 1 },
  { quotaBytes: 150 },
);

/** One of what there is, the newest with 0; undefined where there is nothing. */
const one = <Item>(items: readonly Item[], which: number): Item | undefined => items.at(-1 - (which % items.length));

/** Steps with how often they come up. */
const WEIGHTED_STEPS: readonly (readonly [weight: number, step: fc.Arbitrary<Step>])[] = [
  [
    6,
    fc
      .tuple(tenant, adapter, prompt)
      .map(
        ([who, what, tokens]) =>
          new Step(`open(${who}/${what}, [${tokens}])`, (world) => world.open(who, tokens, what)),
      ),
  ],
  [
    8,
    fc.tuple(tenant, prompt, sourceKind, sinkKind).map(
      ([who, tokens, source, sink]) =>
        new Step(`turn(${who}, [${tokens}], ${source}, ${sink})`, (world) => {
          const { owner, hit } = world.open(who, tokens);
          world.refill(hit, sink);
          world.evict(owner, source);
        }),
    ),
  ],
  [
    2,
    fc.tuple(tenant, prompt).map(
      ([who, tokens]) =>
        new Step(`openUnmatched(${who}, [${tokens}])`, (world) => {
          world.append(world.sequence(who), tokens);
        }),
    ),
  ],
  [
    3,
    fc.tuple(pick, prompt).map(
      ([which, tokens]) =>
        new Step(`match(${which}, [${tokens}])`, (world) => {
          const owner = one(world.sequences, which);
          if (!owner) return;
          if (owner.closed) expect(() => world.match(owner, tokens)).toThrow('closed');
          else if (owner.evicting > 0) expect(() => world.match(owner, tokens)).toThrow('wait for the evict');
          else world.match(owner, tokens);
        }),
    ),
  ],
  [
    4,
    fc.tuple(pick, continuation).map(
      ([which, tokens]) =>
        new Step(`append(${which}, [${tokens}])`, (world) => {
          const owner = one(world.sequences, which);
          if (owner && !owner.closed && owner.tokens.length < 40) world.append(owner, tokens);
        }),
    ),
  ],
  [
    8,
    fc.tuple(pick, sourceKind, sourceFault, fc.nat({ max: 3 }), deadline).map(
      ([which, kind, fault, at, ms]) =>
        new Step(`evict(${which}, ${kind}, ${fault}, ${at}, ${ms})`, (world) => {
          const owner = one(world.sequences, which);
          if (owner && !owner.closed) world.evict(owner, kind, fault, at, ms);
        }),
    ),
  ],
  [
    6,
    fc.tuple(pick, sinkKind, deadline).map(
      ([which, kind, ms]) =>
        new Step(`refill(${which}, ${kind}, ${ms})`, (world) => {
          const hit = one(world.hits, which);
          if (hit) world.refill(hit, kind, ms);
        }),
    ),
  ],
  [
    5,
    pick.map(
      (which) =>
        new Step(`release(${which})`, (world) => {
          const hit = one(world.hits, which);
          if (hit) world.release(hit);
        }),
    ),
  ],
  [
    8,
    picks.map(
      (order) =>
        new Step(`shards([${order}])`, (world) => {
          for (const which of order) world.step(which, 'ok');
        }),
    ),
  ],
  [10, fc.constant(new Step('finishAll', (world) => world.box.finishAll()))],
  [5, pick.map((which) => new Step(`resume(${which})`, (world) => world.resumeRuntime(which)))],
  [5, fc.constant(new Step('resumeAll', (world) => world.resumeRuntimes()))],
  [5, fc.constantFrom(1, 30, 110, 700).map((ms) => new Advance(ms))],
  [
    2,
    fc
      .tuple(tenant, policy)
      .map(([who, what]) => new Step(`policy(${who}, ${JSON.stringify(what)})`, (world) => world.setPolicy(who, what))),
  ],
  // From here on what goes wrong, or takes away.
  [1, fc.constant(new Advance(1_100))],
  [1, pick.map((which) => new Step(`failure(${which})`, (world) => world.step(which, 'fail'), 'failures'))],
  [1, tenant.map((who) => new Step(`forget(${who})`, (world) => world.forget(who)))],
  [
    1,
    fc
      .tuple(pick, fc.boolean())
      .map(([which, back]) => new Step(`end(${which}, ${back})`, (world) => world.endDaemon(which, back), 'failures')),
  ],
  [
    2,
    fc.tuple(pick, fc.boolean()).map(
      ([which, refuses]) =>
        new Step(
          `back(${which}, ${refuses})`,
          (world) => {
            world.daemon(which).reachable = true;
            world.daemon(which).refusesMemory = refuses;
          },
          'failures',
        ),
    ),
  ],
  [1, pick.map((which) => new Step(`takeBack(${which})`, (world) => world.takeBack(which), 'failures'))],
  [1, pick.map((which) => new Step(`drain(${which})`, (world) => world.daemon(which).drain(), 'failures'))],
  [
    2,
    fc
      .tuple(pick, pick)
      .map(([link, slot]) => new Step(`lose(${link}, ${slot})`, (world) => world.loseSlot(link, slot), 'losses')),
  ],
  [
    1,
    pick.map(
      (which) =>
        new Step(`close(${which})`, (world) => {
          const owner = one(world.sequences, which);
          if (owner) world.closeSequence(owner);
        }),
    ),
  ],
  [
    1,
    fc.constant(
      new Step('expireWaiting', (world) => {
        for (const link of world.box.links) link.expireWaiting();
      }),
    ),
  ],
];
const steps = WEIGHTED_STEPS.flatMap(([weight, step]) => Array.from({ length: weight }, () => step));

const shape: fc.Arbitrary<WorldOptions> = fc
  .record({
    bytesPerToken: fc.array(fc.constantFrom(5, 8, 12), { minLength: 1, maxLength: 3 }),
    striping: fc.constantFrom<'across' | 'within'>('across', 'within'),
    stripes: fc.integer({ min: 1, max: 3 }),
    capacityColumns: fc.integer({ min: 1, max: 12 }),
    roomColumns: fc.constantFrom(3, 8, 1_000),
    ringEntries: fc.constantFrom(1, 2, 4, 64),
    immediate: fc.boolean(),
    // One driver in three keeps records beside its columns.
    more: fc.constantFrom({}, {}, { resume: { key: new Uint8Array(32) } }),
  })
  .filter(({ stripes, capacityColumns }) => stripes * capacityColumns <= 24);

test('whatever happens, a driver serves right bytes or a miss, and loses neither slots nor calls', async () => {
  const total = new Map<string, number>();
  const run = fc.asyncProperty(
    shape,
    fc.constantFrom(...TROUBLES),
    fc.commands(steps, { maxCommands: 200, size: 'max' }),
    async (options, trouble, commands) => {
      const world = await World.create(options);
      await fc.asyncModelRun(() => ({ model: { trouble }, real: world }), commands);
      for (const [what, count] of Object.entries(world.driver.stats)) total.set(what, (total.get(what) ?? 0) + count);
      await world.finish();
    },
  );
  await fc.assert(run, settings(1_500));
  // A run in which nothing ever happens would prove nothing.
  for (const [what, count] of total) expect(count, what).toBeGreaterThan(500);
});

test('with room for everything and nothing going wrong, a hit is exactly as long as what was evicted', async () => {
  const turn = fc.record({ who: tenant, what: adapter, tokens: prompt, source: sourceKind, sink: sinkKind });
  const run = fc.asyncProperty(shape, fc.array(turn, { minLength: 1, maxLength: 30 }), async (options, turns) => {
    // At most 3 tenants, 2 adapters and a prefix of each of 3 conversations.
    const world = await World.create({ ...options, capacityColumns: 108, roomColumns: 1_000, immediate: true });
    for (const { who, what, tokens, source, sink } of turns) {
      const known = world.knownColumns(who, what, tokens);
      const full = Math.floor(tokens.length / COLUMN_TOKENS);
      const { owner, hit } = world.open(who, tokens, what);
      expect(hit.hit.columns).toBe(known);
      const refill = world.refill(hit, sink);
      await world.letRuntimesFinish();
      expect(await refill).toMatchObject({ columns: known, tokens: known * COLUMN_TOKENS });
      const evict = world.evict(owner, source);
      await world.letRuntimesFinish();
      expect(await evict).toMatchObject({ stored: full - known, present: known, dropped: 0 });
      expect(world.release(hit)).toBe(true);
      world.check();
    }
    await world.finish();
  });
  await fc.assert(run, settings(100));
});

test('closing a driver at any moment ends every call', async () => {
  const run = fc.asyncProperty(
    shape,
    fc.commands(steps, { maxCommands: 60, size: 'max' }),
    async (options, commands) => {
      const world = await World.create(options);
      await fc.asyncModelRun(() => ({ model: { trouble: 'losses' as const }, real: world }), commands);
      await world.driver.close();
      // No time passes, and no shard says anything more.
      await world.letRuntimesFinish();
      expect(world.pending.size).toBe(0);
      expect(world.faults).toEqual([]);
      expect(world.box.daemons.every((daemon) => daemon.connections.size === 0)).toBe(true);
    },
  );
  await fc.assert(run, settings(200));
});

test('a driver that is killed at any moment is followed by one that serves right bytes or a miss', async () => {
  let found = 0;
  const write = vi.spyOn(ColumnRecords.prototype, 'write');
  const run = fc.asyncProperty(
    shape,
    fc.constantFrom(...TROUBLES),
    fc.commands(steps, { maxCommands: 80, size: 'max' }),
    async (options, trouble, commands) => {
      write.mockClear();
      const world = await World.create({ ...options, more: { resume: { key: new Uint8Array(32) } } });
      await fc.asyncModelRun(() => ({ model: { trouble }, real: world }), commands);
      // A generation is the nonce of its record: twice with one key would give away what was in both.
      const generations = write.mock.calls.map(([, , , { generation }]) => generation);
      expect(new Set(generations).size).toBe(generations.length);
      found += await world.follow();
      expect(world.faults).toEqual([]);
    },
  );
  try {
    await fc.assert(run, settings(400));
  } finally {
    write.mockRestore();
  }
  expect(found).toBeGreaterThan(400);
});
