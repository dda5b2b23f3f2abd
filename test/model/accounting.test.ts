import * as fc from 'fast-check';
import { Registry } from 'prom-client';
import { afterEach, describe, expect, test, vi } from 'vitest';
import type { TenantPolicy } from '../../src/common/tenant_policy.js';
import { driverReport } from '../../src/proto/driver_report.js';
import {
  CHANNEL_NAMES,
  type ChannelMessages,
  type ChannelName,
  subscribe,
} from '../../src/swdriver/accounting/channels.js';
import { MISS_CAUSES } from '../../src/swdriver/accounting/miss_cause.js';
import type { ModelGroup } from '../../src/swdriver/model.js';
import { settled } from './manual_clock.js';
import { settings } from './property_settings.js';
import { COLUMN_BYTES, COLUMN_TOKENS, prompt, Rig } from './rig.js';

// What became of columns is remembered in sets of bounded size: with another seed now and then one is full.
vi.mock('../../src/swdriver/accounting/fingerprint.js', async (original) => {
  const { Fingerprint } = await original<typeof import('../../src/swdriver/accounting/fingerprint.js')>();
  return {
    Fingerprint: class extends Fingerprint {
      constructor() {
        super(7, 8);
      }
    },
  };
});

const WINDOWED: readonly ModelGroup[] = [
  { name: 'full', bytesPerToken: [2, 4] },
  { name: 'sliding', bytesPerToken: [0, 8], windowTokens: 2 * COLUMN_TOKENS, capacityShare: 0.02 },
];
const tokens = (columns: number) => columns * COLUMN_TOKENS;

describe('a lookup says why tokens were missed:', () => {
  test('never stored, by anybody, and the end that fills no column', async () => {
    const rig = await Rig.create();
    expect(rig.missed('a', prompt(3))).toEqual({ neverStored: tokens(3) });
    await rig.store('a', prompt(3));
    expect(rig.missed('a', [...prompt(3), 1, 2, 3])).toEqual({ partial: 3 });
    expect(rig.missed('a', [...prompt(2), ...prompt(2, 9), 1])).toEqual({ neverStored: tokens(2), partial: 1 });
    expect(rig.missed('a', [1, 2])).toEqual({ partial: 2 });
    expect(rig.missed('a', [])).toEqual({});
    // With another adapter it is something else.
    expect(rig.missed('a', prompt(1), { adapter: 'x' })).toEqual({ neverStored: tokens(1) });
    await rig.end();
  });

  test('made room for others', async () => {
    const rig = await Rig.create({ capacityColumns: 10 });
    await rig.store('a', prompt(6));
    await rig.store('b', prompt(8, 2));
    expect(rig.lookUp('a', prompt(7))).toEqual({
      columns: 2,
      missed: { evicted: tokens(4), neverStored: tokens(1) },
    });
    // Back again.
    await rig.store('a', prompt(6));
    expect(rig.missed('a', prompt(6))).toEqual({});
    await rig.end();
  });

  test('expired, when a lookup finds out and afterwards', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', { ttl: { mode: 'first-use', seconds: 10 } });
    await rig.store('a', prompt(3));
    await rig.clock.advance(5_000);
    await rig.store('a', prompt(5));
    rig.clock.jump(5_000);
    for (let round = 0; round < 2; round += 1) {
      expect(rig.missed('a', prompt(6))).toEqual({ expired: tokens(5), neverStored: tokens(1) });
    }
    await rig.end();
  });

  test('only others have it', async () => {
    const rig = await Rig.create();
    await rig.store('b', prompt(4));
    expect(rig.missed('a', prompt(6))).toEqual({ otherTenant: tokens(4), neverStored: tokens(2) });
    await rig.driver.forget({ isolationId: 'b' });
    expect(rig.missed('a', prompt(6))).toEqual({ neverStored: tokens(6) });
    await rig.end();
  });

  test('a window has not got its part', async () => {
    const rig = await Rig.create({ groups: WINDOWED });
    await rig.store('a', prompt(2));
    await rig.store('a', prompt(8));
    // The parts of the beginning have made room.
    const { columns, missed } = rig.lookUp('a', [...prompt(5), ...prompt(1, 2), 1]);
    expect(columns).toBe(0);
    expect(missed).toEqual({ groupMissing: tokens(5), neverStored: tokens(1), partial: 1 });
    expect(rig.find('a', prompt(8))).toBe(8);
    await rig.end();
  });

  test('a shard went with it, or does not answer', async () => {
    const rig = await Rig.create();
    await rig.store('a', prompt(4));
    rig.box.daemon().drain();
    expect(rig.missed('a', prompt(5))).toEqual({ shardDown: tokens(4), neverStored: tokens(1) });
    rig.box.daemon().end();
    expect(rig.missed('a', prompt(5))).toEqual({ shardDown: tokens(4), neverStored: tokens(1) });
    await rig.clock.advance(5_000);
    expect(rig.driver.usable).toBe(true);
    expect(rig.missed('a', prompt(5))).toEqual({ shardDown: tokens(4), neverStored: tokens(1) });
    expect((await rig.store('a', prompt(4))).stored).toBe(4);
    for (const link of rig.box.links) link.lose(1);
    expect(await rig.read('a', prompt(4))).toBe(1);
    expect(rig.missed('a', prompt(4))).toEqual({ shardDown: tokens(3) });
    await rig.end();
  });

  test('a policy did not want it: of storing nothing, of the beginning only, and of a quota', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', { noStore: true });
    await rig.store('a', prompt(4));
    expect(rig.missed('a', [...prompt(4), 1])).toEqual({ policy: tokens(4), partial: 1 });
    rig.driver.policies.set('a', { storeUpTo: tokens(2) + 1 });
    expect(rig.missed('a', prompt(4))).toEqual({ neverStored: tokens(2), policy: tokens(2) });
    await rig.store('a', prompt(4));
    expect(rig.missed('a', prompt(4))).toEqual({ policy: tokens(2) });
    rig.driver.policies.set('a', { quotaBytes: COLUMN_BYTES });
    expect(rig.missed('a', prompt(4))).toEqual({ policy: tokens(1), neverStored: tokens(2) });
    rig.driver.policies.delete('a');
    // What the caller did not want is policy as well, and what is there all the same is found.
    expect(rig.missed('a', prompt(4), { storeUpTo: tokens(3) })).toEqual({
      policy: tokens(2),
      neverStored: tokens(1),
    });
    expect(rig.lookUp('a', prompt(4), '', { storeUpTo: 0 })).toEqual({ columns: 1, missed: { policy: tokens(3) } });
    await rig.end();
  });

  test('of a prompt of which less is to be stored than has expired, every token once', async () => {
    const rig = await Rig.create();
    rig.driver.policies.set('a', { ttl: { mode: 'first-use', seconds: 10 } });
    await rig.store('a', prompt(2));
    await rig.clock.advance(5_000);
    await rig.store('a', prompt(6));
    rig.clock.jump(5_000);
    // What would not be stored again has expired all the same.
    expect(rig.lookUp('a', prompt(8), '', { storeUpTo: tokens(3) })).toEqual({
      columns: 0,
      missed: { expired: tokens(6), policy: tokens(2) },
    });
    await rig.end();
  });

  test('several causes in one prompt', async () => {
    const rig = await Rig.create({ capacityColumns: 12 });
    await rig.store('b', [...prompt(2), ...prompt(4, 5)]);
    await rig.store('a', prompt(2));
    rig.driver.policies.set('a', { storeUpTo: tokens(5) });
    const { columns, missed } = rig.lookUp('a', [...prompt(2), ...prompt(4, 5), 7]);
    expect(columns).toBe(2);
    expect(missed).toEqual({ otherTenant: tokens(3), policy: tokens(1), partial: 1 });
    await rig.end();
  });
});

test('whatever happens, what was hit and what was missed make up every prompt, of each class and of all', async () => {
  const policy = fc.constantFrom<TenantPolicy>(
    {},
    { noStore: true },
    { storeUpTo: 9 },
    { quotaBytes: 5 * COLUMN_BYTES },
    { ttl: { mode: 'first-use', seconds: 2 }, tenantClass: 'gold' },
    { ttl: { mode: 'last-use', seconds: 2 }, tenantClass: 'silver' },
  );
  const tenant = fc.constantFrom('a', 'b');
  const seed = fc.nat({ max: 2 });
  const length = fc.nat({ max: 7 });
  const step = fc.oneof(
    fc.tuple(fc.constant('store' as const), tenant, seed, length, fc.constant(0)),
    fc.tuple(fc.constant('find' as const), tenant, seed, length, fc.nat({ max: 3 })),
    fc.tuple(fc.constant('wait' as const), fc.constant(''), seed, length, fc.nat({ max: 2_500 })),
    fc.tuple(fc.constant('end' as const), fc.constant(''), seed, length, fc.constant(0)),
  );
  const steps = fc.array(fc.oneof({ arbitrary: step, weight: 5 }, { arbitrary: fc.tuple(tenant, policy), weight: 1 }), {
    maxLength: 40,
  });
  await fc.assert(
    fc.asyncProperty(steps, fc.boolean(), async (all, windowed) => {
      const rig = await Rig.create({ capacityColumns: 12, stripes: 2, ...(windowed ? { groups: WINDOWED } : {}) });
      let prompts = 0;
      for (const each of all) {
        if (each.length === 2) {
          rig.driver.policies.set(each[0], each[1]);
          continue;
        }
        const [what, name, which, columns, more] = each;
        if (what === 'wait') await (more % 2 ? rig.clock.advance(more) : rig.clock.jump(more));
        else if (what === 'end') rig.box.daemon(which).end();
        else {
          if (what === 'store') await rig.store(name, prompt(columns, which));
          // lookUp checks each by itself.
          else
            rig.lookUp(
              name,
              [...prompt(columns, which), ...prompt(1, 9).slice(0, more)],
              '',
              more > 1 ? { storeUpTo: 4 * more } : {},
            );
          prompts += columns * COLUMN_TOKENS + (what === 'find' ? more : 0);
        }
      }
      const { report, metricsSource, stats } = rig.driver;
      const missed = Object.values(report.missTokens).reduce((sum, count) => sum + count, 0);
      expect([report.promptTokens, report.hitTokens + missed]).toEqual([prompts, prompts]);
      expect(stats.promptTokens).toBe(prompts);
      for (const account of metricsSource.accounts) {
        expect(account.hitTokens + account.missTokens.total).toBe(account.promptTokens);
      }
      expect(driverReport.parse(report)).toEqual(report);
      await rig.end();
    }),
    settings(100),
  );
});

test('tenants are counted by their class, from when they have it, and without one together', async () => {
  const rig = await Rig.create();
  rig.driver.policies.set('a', { tenantClass: 'gold' });
  rig.driver.policies.set('b', { tenantClass: 'gold' });
  for (const tenant of ['a', 'b', 'c']) await rig.store(tenant, prompt(2));
  await rig.read('a', prompt(2));
  rig.driver.policies.set('a', { tenantClass: 'silver', ttl: { mode: 'last-use', seconds: 1 } });
  await rig.read('a', prompt(2));
  await rig.clock.advance(3_000);
  await rig.driver.forget({ isolationId: 'c' });
  const figures = [...rig.driver.metricsSource.accounts].map(
    ({
      tenantClass,
      lookups,
      promptTokens,
      hitTokens,
      columnsEvicted,
      columnsRefilled,
      columnsDeleted,
      columnsExpired,
    }) => [
      tenantClass,
      lookups,
      promptTokens,
      hitTokens,
      columnsEvicted,
      columnsRefilled,
      columnsDeleted,
      columnsExpired,
    ],
  );
  expect(figures.sort()).toEqual([
    ['default', 1, tokens(2), 0, 2, 0, 2, 0],
    ['gold', 3, tokens(6), tokens(2), 4, 2, 0, 0],
    ['silver', 1, tokens(2), tokens(2), 0, 2, 0, 2],
  ]);
  await rig.end();
});

describe('the report of a driver', () => {
  test('is one that daemons take, of a new driver, a used one, one that is down and one that is closed', async () => {
    const rig = await Rig.create();
    expect(driverReport.parse(rig.driver.report)).toMatchObject({ lookups: 0, columns: 0, capacityColumns: 100 });
    await rig.store('a', prompt(7));
    await rig.read('a', [...prompt(7), 1]);
    const { report } = rig.driver;
    expect(driverReport.strict().parse(report)).toEqual({
      model: 'model',
      policy: 'hit-density',
      columns: 7,
      capacityColumns: 100,
      lookups: 2,
      promptTokens: tokens(14) + 1,
      hitTokens: tokens(7),
      missTokens: Object.fromEntries(
        MISS_CAUSES.map((cause) => [cause, cause === 'neverStored' ? tokens(7) : cause === 'partial' ? 1 : 0]),
      ),
      curve: expect.any(Array),
    });
    expect(report.curve.length).toBeGreaterThan(0);
    rig.box.daemon().reachable = false;
    rig.box.daemon().end();
    expect(driverReport.parse(rig.driver.report)).toMatchObject({ columns: 0, capacityColumns: 0 });
    await rig.end();
    expect(driverReport.parse(rig.driver.report)).toMatchObject({ lookups: 2 });
  });

  test('goes to the daemons as often as it was asked for, and not when it was not', async () => {
    const sent: unknown[] = [];
    const listening =
      (box: Rig['box']): Rig['box']['connector'] =>
      async (address, deadlineMs) =>
        Object.assign(await box.connector(address, deadlineMs), { report: (report: unknown) => sent.push(report) });
    const rig = await Rig.create({ connector: listening, more: { reportMs: 2_000 } });
    await rig.store('a', prompt(3));
    await rig.clock.advance(6_000);
    expect(sent).toHaveLength(3);
    for (const report of sent) expect(driverReport.parse(report)).toMatchObject({ columns: 3 });
    await rig.end();
    await rig.clock.advance(60_000);
    expect(sent).toHaveLength(3);
    const silent = await Rig.create({ connector: listening, more: { reportMs: 0 } });
    await silent.clock.advance(60_000);
    expect(sent).toHaveLength(3);
    await silent.end();
  });
});

test('metrics that are registered are read when they are asked for, by class and cause', async () => {
  const rig = await Rig.create({ capacityColumns: 10 });
  const registry = new Registry();
  rig.driver.registerMetrics(registry);
  rig.driver.policies.set('secret-tenant', { tenantClass: 'gold' });
  await rig.store('secret-tenant', prompt(8));
  await rig.read('secret-tenant', [...prompt(8), 1]);
  await rig.store('other', prompt(5));
  rig.missed('secret-tenant', prompt(8));
  const lines = (await registry.metrics()).split('\n');
  const text = lines.join('\n');
  const value = (name: string, ...labels: string[]) => {
    const found = lines.filter((line) => line.startsWith(`${name}{`) && labels.every((label) => line.includes(label)));
    expect(found, `${name} ${labels}`).toHaveLength(1);
    return Number(found[0]?.slice(found[0].lastIndexOf(' ') + 1));
  };
  const gold = 'tenant_class="gold"';
  expect(value('kvss_driver_lookups_total', gold)).toBe(3);
  expect(value('kvss_driver_prompt_tokens_total', gold)).toBe(tokens(24) + 1);
  expect(value('kvss_driver_hit_tokens_total', gold)).toBe(tokens(8 + 5));
  expect(value('kvss_driver_miss_tokens_total', gold, 'cause="neverStored"')).toBe(tokens(8));
  expect(value('kvss_driver_miss_tokens_total', gold, 'cause="evicted"')).toBe(tokens(3));
  expect(value('kvss_driver_miss_tokens_total', gold, 'cause="partial"')).toBe(1);
  expect(value('kvss_driver_columns_evicted_total', gold)).toBe(8);
  expect(value('kvss_driver_columns_refilled_total', gold)).toBe(8);
  expect(value('kvss_driver_columns_deleted_total', gold)).toBe(3);
  expect(value('kvss_driver_columns_evicted_total', 'tenant_class="default"')).toBe(5);
  expect(value('kvss_driver_columns', 'model="model"', 'policy="hit-density"')).toBe(10);
  expect(value('kvss_driver_capacity_columns')).toBe(10);
  expect(value('kvss_driver_match_seconds_count')).toBe(4);
  expect(value('kvss_driver_evict_seconds_count')).toBe(2);
  expect(value('kvss_driver_refill_seconds_count')).toBe(1);
  expect(text).toContain('kvss_driver_what_if_hit_ratio{');
  for (const cause of MISS_CAUSES) expect(text).toContain(`cause="${cause}"`);
  expect(text).not.toContain('secret-tenant');
  // Every line is a comment or a sample that a scraper reads.
  for (const line of lines)
    expect(line).toMatch(/^$|^# (HELP|TYPE) |^[a-z_]+(\{([a-z_]+="[^"]*",?)*\})? [-+.0-9eInfNa]+$/);
  await rig.end();
});

describe('channels', () => {
  const stops: (() => void)[] = [];
  afterEach(() => {
    for (const stop of stops.splice(0)) stop();
  });

  /** All that is published from now on. */
  function listen(): { [Name in ChannelName]: ChannelMessages[Name][] } {
    const heard = Object.fromEntries(CHANNEL_NAMES.map((name) => [name, []])) as unknown as {
      [Name in ChannelName]: ChannelMessages[Name][];
    };
    for (const name of CHANNEL_NAMES) {
      stops.push(subscribe(name, (message) => (heard[name] as unknown[]).push(message)));
    }
    return heard;
  }

  test('tell whoever listens of lookups, evicts, refills, expiry and stripes, and never of a tenant or a token', async () => {
    const heard = listen();
    const rig = await Rig.create();
    rig.driver.policies.set('secret tenant', { tenantClass: 'gold', ttl: { mode: 'first-use', seconds: 60 } });
    await rig.store('secret tenant', prompt(5, 777), 'secret adapter');
    await rig.read('secret tenant', [...prompt(5, 777), 1], 'secret adapter');
    await rig.clock.advance(70_000);
    rig.box.daemon().end();
    const about = { model: 'model', tenantClass: 'gold' };
    const durationMs = expect.any(Number);
    const missTokens = Object.fromEntries(MISS_CAUSES.map((cause) => [cause, 0]));
    expect(heard['kvss:match']).toEqual([
      {
        ...about,
        promptTokens: tokens(5),
        hitTokens: 0,
        columns: 0,
        missTokens: { ...missTokens, neverStored: tokens(5) },
        durationMs,
      },
      {
        ...about,
        promptTokens: tokens(5) + 1,
        hitTokens: tokens(5),
        columns: 5,
        missTokens: { ...missTokens, partial: 1 },
        durationMs,
      },
    ]);
    expect(heard['kvss:evict']).toEqual([{ ...about, stored: 5, present: 0, dropped: 0, durationMs }]);
    expect(heard['kvss:refill']).toEqual([{ ...about, columns: 5, missedColumns: 0, tokens: tokens(5), durationMs }]);
    expect(heard['kvss:expire']).toEqual([{ ...about, columns: 5 }]);
    expect(heard['kvss:stripe']).toEqual([
      { model: 'model', stripe: 0, up: true, reason: '' },
      { model: 'model', stripe: 0, up: false, reason: expect.any(String) },
    ]);
    const text = JSON.stringify(heard);
    expect(text).not.toContain('secret');
    for (const token of prompt(5, 777)) expect(text).not.toContain(String(token));
    await rig.end();
  });

  test('of columns that expire together with what they continue count each of them once', async () => {
    const heard = listen();
    const rig = await Rig.create();
    rig.driver.policies.set('a', { ttl: { mode: 'first-use', seconds: 10 } });
    await rig.store('a', prompt(3));
    await rig.clock.advance(4_000);
    await rig.store('a', prompt(6));
    await rig.store('a', [...prompt(2), ...prompt(2, 4)]);
    await rig.clock.advance(30_000);
    expect(heard['kvss:expire'].reduce((sum, { columns }) => sum + columns, 0)).toBe(8);
    expect(rig.driver.stats.columnsExpired).toBe(8);
    expect(rig.driver.metricsSource.columns).toBe(0);
    await rig.end();
  });
});

describe('what was forgotten', () => {
  test('was never stored, whatever had become of it before, and others are told nothing of it', async () => {
    const rig = await Rig.create({ capacityColumns: 10 });
    rig.driver.policies.set('a', { ttl: { mode: 'first-use', seconds: 10 } });
    await rig.store('a', prompt(4, 1));
    await rig.clock.advance(20_000);
    await rig.store('a', prompt(4, 2), 'an adapter');
    await rig.store('b', prompt(10, 3));
    await rig.store('a', prompt(4, 4));
    const before = rig.driver.columns;
    expect(rig.missed('a', prompt(4, 1))).toEqual({ expired: tokens(4) });
    expect(rig.missed('a', prompt(4, 2), { adapter: 'an adapter' })).toEqual({ evicted: tokens(4) });
    expect(await rig.driver.forget({ isolationId: 'a' })).toBe(4);
    expect(rig.driver.columns).toBe(before - 4);
    expect(rig.missed('a', prompt(4, 1))).toEqual({ neverStored: tokens(4) });
    expect(rig.missed('a', prompt(4, 2), { adapter: 'an adapter' })).toEqual({ neverStored: tokens(4) });
    expect(rig.missed('a', prompt(4, 4))).toEqual({ neverStored: tokens(4) });
    expect(rig.missed('c', prompt(4, 4))).toEqual({ neverStored: tokens(4) });
    // Those of others are remembered.
    expect(rig.missed('b', prompt(10, 3))).toEqual({ evicted: tokens(4) });
    expect(await rig.driver.forget({ isolationId: 'a' })).toBe(0);
    expect(await rig.driver.forget({ isolationId: 'nobody' })).toBe(0);
    await rig.end();
  });

  test('while it is being stored leaves no trace either', async () => {
    const rig = await Rig.create();
    const sequence = rig.driver.openSequence({ isolationId: 'a' });
    sequence.match(Uint32Array.from(prompt(4))).release();
    const evict = sequence.evict({
      write: async ({ index }) => {
        if (index === 2) await rig.driver.forget({ isolationId: 'a' });
        return true;
      },
    });
    expect((await evict).stored).toBe(0);
    await settled();
    expect(rig.missed('a', prompt(4))).toEqual({ neverStored: tokens(4) });
    expect([rig.driver.columns, rig.driver.storedBytesOf('a')]).toEqual([0, 0]);
    await rig.end();
  });
});
