import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import type { TenantPolicy } from '../../src/common/tenant_policy.js';
import type { ModelGroup } from '../../src/swdriver/model.js';
import {
  COLUMN_TOKENS,
  GroupsWorld,
  type GroupsWorldOptions,
  type Kind,
  type SourceFault,
  type Span,
} from './groups_world.js';
import { settled } from './manual_clock.js';
import { settings } from './property_settings.js';

/** What may go wrong in a run: nothing, all that a driver hears of, or also shards that lose pieces silently. */
type Trouble = 'none' | 'failures' | 'losses';
const TROUBLES: readonly Trouble[] = ['none', 'failures', 'losses'];
interface Run {
  readonly trouble: Trouble;
}

/** One thing that can happen, whatever came before: what it names is chosen among what there is. */
class Step implements fc.AsyncCommand<Run, GroupsWorld> {
  constructor(
    readonly text: string,
    readonly act: (world: GroupsWorld) => unknown,
    readonly trouble: Trouble = 'none',
  ) {}

  check({ trouble }: Run): boolean {
    return TROUBLES.indexOf(this.trouble) <= TROUBLES.indexOf(trouble);
  }

  async run(_: Run, world: GroupsWorld): Promise<void> {
    // Calls go on by themselves; what they come to is the world's to watch. Time that is moved on is waited for.
    if (this.text.startsWith('advance')) await this.act(world);
    else this.act(world);
    await settled();
    world.check();
  }

  toString(): string {
    return this.text;
  }
}

// ---- models ------------------------------------------------------------------------------------------------------

const bytes = fc.constantFrom(3, 4, 5);
/** Bytes of each shard, of which some may have nothing. */
const someBytes = (shards: number) =>
  fc
    .array(fc.constantFrom(0, 1, 2, 4), { minLength: shards, maxLength: shards })
    .map((each) => (each.every((one) => one === 0) ? [2, ...each.slice(1)] : each));
const windowTokens = fc.integer({ min: 1, max: 5 * COLUMN_TOKENS });
const capacityShare = fc.constantFrom(undefined, undefined, 0.1, 0.5, 1);

const full = (shards: number): fc.Arbitrary<ModelGroup> =>
  fc.array(bytes, { minLength: shards, maxLength: shards }).map((bytesPerToken) => ({ name: 'full', bytesPerToken }));

const sliding = (shards: number, name: string): fc.Arbitrary<ModelGroup> =>
  fc.record({ bytesPerToken: someBytes(shards), windowTokens, share: capacityShare }).map(({ share, ...group }) => ({
    name,
    ...group,
    ...(share === undefined ? {} : { capacityShare: share }),
  }));

const draft = (shards: number): fc.Arbitrary<ModelGroup> =>
  someBytes(shards).map((bytesPerToken) => ({ name: 'draft', bytesPerToken }));

const optional = (shards: number): fc.Arbitrary<ModelGroup> =>
  fc
    .record({ group: fc.oneof(sliding(shards, 'hints'), draft(shards)), share: capacityShare })
    .map(({ group, share }) => ({
      ...group,
      name: 'hints',
      required: false,
      ...(share === undefined ? {} : { capacityShare: share }),
    }));

const groupsOver = (shards: number): fc.Arbitrary<ModelGroup[]> => {
  // Every shard of a model of windows only has something of the first.
  const onlyWindow = fc
    .record({ group: full(shards), windowTokens })
    .map(({ group, windowTokens: tokens }) => ({ ...group, name: 'wide', windowTokens: tokens }));
  return fc.oneof(
    { weight: 1, arbitrary: fc.tuple(full(shards)) },
    { weight: 2, arbitrary: fc.tuple(full(shards), sliding(shards, 'sliding')) },
    { weight: 2, arbitrary: fc.tuple(full(shards), draft(shards)) },
    { weight: 2, arbitrary: fc.tuple(optional(shards), full(shards), sliding(shards, 'sliding')) },
    { weight: 2, arbitrary: fc.tuple(full(shards), sliding(shards, 'sliding'), draft(shards), optional(shards)) },
    { weight: 1, arbitrary: fc.tuple(onlyWindow) },
    { weight: 2, arbitrary: fc.tuple(onlyWindow, sliding(shards, 'narrow')) },
    { weight: 1, arbitrary: fc.tuple(optional(shards), onlyWindow, sliding(shards, 'narrow')) },
  );
};

const shape: fc.Arbitrary<GroupsWorldOptions> = fc.integer({ min: 1, max: 3 }).chain((shards) =>
  fc
    .record({
      groups: groupsOver(shards),
      striping: fc.constantFrom<'across' | 'within'>('across', 'within'),
      stripes: fc.integer({ min: 1, max: 2 }),
      capacityColumns: fc.integer({ min: 1, max: 12 }),
      links: fc.constantFrom(undefined, undefined, 2, 5, 50),
      memory: fc.boolean(),
      ringEntries: fc.constantFrom(1, 3, 64),
      immediate: fc.boolean(),
    })
    .map(({ links, ...options }) => ({ ...options, ...(links === undefined ? {} : { places: links }) })),
);

// ---- steps -------------------------------------------------------------------------------------------------------

// Two different tokens, so that prompts branch and meet again.
const PROMPTS = [
  [1, 2, 1, 1, 2, 2, 1, 2, 1, 1, 2, 2, 1, 2],
  [1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2, 2, 1, 2],
  [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
];
const MOST_TOKENS = 24;
const tail = fc.array(fc.constantFrom(1, 2), { maxLength: 4 });
const prompt = fc
  .tuple(fc.constantFrom(...PROMPTS), fc.integer({ min: 1, max: 14 }), tail)
  .map(([tokens, length, rest]) => [...tokens.slice(0, length), ...rest]);
const proposal = fc.array(fc.constantFrom(1, 1, 2), { minLength: 1, maxLength: 6 });
const tenant = fc.constantFrom('a', 'a', 'a', 'b');
const adapter = fc.constantFrom('', '', '', '', 'x');
const pick = fc.nat({ max: 1_000 });
const picks = fc.array(pick, { minLength: 1, maxLength: 12 });
const kind = fc.constantFrom<Kind>('now', 'now', 'later', 'locate', 'place');
const sourceFault = fc.constantFrom<SourceFault>('none', 'none', 'none', 'none', 'lacksWindows', 'lacks', 'throws');
const deadline = fc.constantFrom(undefined, undefined, undefined, 20, 300);
// Few different ones, so that prompts have them in common or differ in one thing.
const SPANS: readonly Span[][] = [
  [{ offset: 1, length: 3, content: 0 }],
  [{ offset: 1, length: 3, content: 1 }],
  [{ offset: 1, length: 2, content: 0 }],
  [
    { offset: 0, length: 1, content: 0 },
    { offset: 4, length: 2, content: 0 },
  ],
];
const someSpans = fc.constantFrom<Span[]>([], [], [], SPANS[0] ?? [], SPANS[0] ?? [], ...SPANS);

/** The spans that lie within so many tokens. */
const within = (spans: readonly Span[], tokens: number): Span[] =>
  spans.filter(({ offset, length }) => offset + length <= tokens);

/** One of what there is, the newest with 0; undefined where there is nothing. */
const one = <Item>(items: readonly Item[], which: number): Item | undefined => items.at(-1 - (which % items.length));

const policy = fc.constantFrom<TenantPolicy>(
  {},
  {},
  { ttl: { mode: 'last-use', seconds: 0.2 } },
  { ttl: { mode: 'last-use', seconds: 1.5 } },
  { ttl: { mode: 'first-use', seconds: 0.5 } },
  { noStore: true },
  { storeUpTo: 2 * COLUMN_TOKENS + 1 },
  { quotaBytes: 400 },
);

/** Steps with how often they come up. Whatever else a driver can be asked for, or can suffer, belongs here. */
const WEIGHTED_STEPS: readonly (readonly [weight: number, step: fc.Arbitrary<Step>])[] = [
  [
    4,
    fc
      .tuple(tenant, adapter, prompt, someSpans)
      .map(
        ([who, what, tokens, spans]) =>
          new Step(`open(${who}/${what}, [${tokens}], ${JSON.stringify(spans)})`, (world) =>
            world.open(who, tokens, { adapter: what, spans: within(spans, tokens.length) }),
          ),
      ),
  ],
  [
    9,
    fc.tuple(tenant, prompt, someSpans, kind, kind).map(
      ([who, tokens, spans, source, sink]) =>
        new Step(`turn(${who}, [${tokens}], ${JSON.stringify(spans)}, ${source}, ${sink})`, (world) => {
          const { owner, hit } = world.open(who, tokens, { spans: within(spans, tokens.length) });
          world.refill(hit, sink);
          world.evict(owner, source);
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
    3,
    fc.tuple(pick, tail, someSpans).map(
      ([which, tokens, spans]) =>
        new Step(`append(${which}, [${tokens}], ${JSON.stringify(spans)})`, (world) => {
          const owner = one(world.sequences, which);
          if (!owner || owner.closed || owner.tokens.length > MOST_TOKENS) return;
          if (owner.proposed.length > 0) expect(() => world.append(owner, tokens)).toThrow('wait for their verdict');
          else world.append(owner, tokens, within(spans, tokens.length));
        }),
    ),
  ],
  [
    2,
    fc
      .tuple(tenant, policy)
      .map(([who, what]) => new Step(`policy(${who}, ${JSON.stringify(what)})`, (world) => world.setPolicy(who, what))),
  ],
  [
    6,
    fc.tuple(pick, proposal).map(
      ([which, tokens]) =>
        new Step(`propose(${which}, [${tokens}])`, (world) => {
          const owner = one(world.sequences, which % 3);
          if (!owner || owner.closed || owner.tokens.length + owner.proposed.length > MOST_TOKENS) return;
          world.propose(owner, tokens);
        }),
    ),
  ],
  [
    6,
    fc.tuple(pick, fc.constantFrom(0, 0.5, 0.8, 1, 1), tail).map(
      ([which, share, correction]) =>
        new Step(`verify(${which}, ${share}, [${correction}])`, (world) => {
          const waiting = world.sequences.filter(({ proposed, closed }) => proposed.length > 0 && !closed);
          const owner = one(waiting, which);
          if (!owner) return;
          expect(() => owner.sequence.verify(owner.proposed.length + 1)).toThrow('proposed tokens');
          world.verify(owner, Math.round(owner.proposed.length * share), correction.slice(0, 2));
        }),
    ),
  ],
  [
    6,
    fc.tuple(pick, proposal, kind).map(
      ([which, tokens, how]) =>
        new Step(`speculate(${which}, [${tokens}], ${how})`, (world) => {
          const owner = one(world.sequences, which % 3);
          if (!owner || owner.closed || owner.tokens.length + owner.proposed.length > MOST_TOKENS) return;
          world.propose(owner, tokens);
          world.evict(owner, how);
          world.box.finishAll();
        }),
    ),
  ],
  [
    10,
    fc.tuple(pick, kind, sourceFault, fc.nat({ max: 5 }), deadline).map(
      ([which, how, fault, at, ms]) =>
        new Step(`evict(${which}, ${how}, ${fault}, ${at}, ${ms})`, (world) => {
          const owner = one(world.sequences, which % 4);
          if (owner && !owner.closed) world.evict(owner, how, fault, at, ms);
        }),
    ),
  ],
  [
    6,
    fc.tuple(pick, kind, deadline).map(
      ([which, how, ms]) =>
        new Step(`refill(${which}, ${how}, ${ms})`, (world) => {
          const hit = one(world.hits, which % 5);
          if (hit) world.refill(hit, how, ms);
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
  [4, pick.map((which) => new Step(`resume(${which})`, (world) => world.resumeRuntime(which)))],
  [5, fc.constant(new Step('resumeAll', (world) => world.resumeRuntimes()))],
  [5, fc.constantFrom(1, 30, 110, 700).map((ms) => new Step(`advance(${ms})`, (world) => world.clock.advance(ms)))],
  // From here on what goes wrong, or takes away.
  [1, fc.constantFrom(1_100, 60_000).map((ms) => new Step(`advance(${ms})`, (world) => world.clock.advance(ms)))],
  [1, fc.constantFrom(50, 1_100, 1e9).map((ms) => new Step(`jump(${ms})`, (world) => world.jump(ms)))],
  [1, tenant.map((who) => new Step(`forget(${who})`, (world) => world.forget(who)))],
  [
    1,
    pick.map(
      (which) =>
        new Step(`close(${which})`, (world) => {
          const owner = one(world.sequences, which);
          if (owner) world.close(owner);
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
  [3, pick.map((which) => new Step(`failure(${which})`, (world) => world.step(which, 'fail'), 'failures'))],
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
];
const steps = WEIGHTED_STEPS.flatMap(([weight, step]) => Array.from({ length: weight }, () => step));

test('whatever happens to a model of groups, a driver serves right parts of verified tokens or a miss', async () => {
  const total = new Map<string, number>();
  const run = fc.asyncProperty(
    shape,
    fc.constantFrom(...TROUBLES),
    fc.commands(steps, { maxCommands: 120, size: 'max' }),
    async (options, trouble, commands) => {
      const world = await GroupsWorld.create(options);
      await fc.asyncModelRun(() => ({ model: { trouble }, real: world }), commands);
      await world.finish();
      for (const [what, count] of Object.entries(world.seen)) total.set(what, (total.get(what) ?? 0) + count);
    },
  );
  await fc.assert(run, settings(1_000));
  // A run in which nothing ever happens would prove nothing.
  for (const [what, count] of total) expect(count, what).toBeGreaterThan(50);
});

test('with room for everything and nothing going wrong, a hit is as long as what was evicted and verified', async () => {
  const turn = fc.record({
    who: tenant,
    what: adapter,
    tokens: prompt,
    spans: someSpans,
    kind,
    proposal,
    accepted: fc.nat(6),
  });
  const run = fc.asyncProperty(shape, fc.array(turn, { minLength: 1, maxLength: 12 }), async (options, turns) => {
    const groups = options.groups.map((group) => ({ ...group, capacityShare: 1 }));
    const world = await GroupsWorld.create({ ...options, groups, capacityColumns: 120, immediate: true });
    // A runtime with few places has no room for long prompts.
    const kindOf = (drawn: Kind): Kind => (world.placedByRuntime ? 'place' : drawn);
    for (const { who, what, tokens, spans, kind: drawn, proposal: proposed, accepted } of turns) {
      const [how, some] = [kindOf(drawn), within(spans, tokens.length)];
      const owner = world.sequence(who, what);
      const known = world.knownColumns(owner, tokens, some);
      const hit = world.match(owner, tokens, some);
      expect(hit.hit.columns).toBe(known);
      for (const { name } of world.driver.groups) expect(hit.hit.tokensOf(name)).toBe(known * COLUMN_TOKENS);
      expect(await world.served(world.refill(hit, how))).toMatchObject({ columns: known });
      const full = Math.floor(tokens.length / COLUMN_TOKENS);
      expect(await world.served(world.evict(owner, how))).toMatchObject({ stored: full - known, present: known });
      world.propose(owner, proposed);
      const behind = Math.floor((tokens.length + proposed.length) / COLUMN_TOKENS) - full;
      expect(await world.served(world.evict(owner, how))).toMatchObject({ stored: 0, present: full, ahead: behind });
      world.verify(owner, Math.min(accepted, proposed.length));
      expect(await world.served(world.evict(owner, how))).toMatchObject({ stored: 0, dropped: 0, ahead: 0 });
      expect(world.release(hit)).toBe(true);
      world.close(owner);
      world.check();
      world.checkSlots();
    }
    await world.finish();
  });
  await fc.assert(run, settings(60));
});
