import { Registry } from 'prom-client';
import { expect, test } from 'vitest';
import { Accounts, MAX_TENANT_CLASSES, OTHER_CLASS } from '../../src/swdriver/accounting/accounts.js';
import { CHANNEL_NAMES, hasListeners, publish, subscribe } from '../../src/swdriver/accounting/channels.js';
import { collectInto, type DriverMetricsSource } from '../../src/swdriver/accounting/driver_metrics.js';
import { LatencyHistogram } from '../../src/swdriver/accounting/latency_histogram.js';
import { MissTally } from '../../src/swdriver/accounting/miss_cause.js';

function makeSource(model: string, accounts = new Accounts()) {
  return {
    model,
    policy: 'lru',
    accounts,
    columns: 5,
    capacityColumns: 10,
    latencies: { match: new LatencyHistogram(), evict: new LatencyHistogram(), refill: new LatencyHistogram() },
    curve: () => [
      { columns: 10, hitRate: 0.25 },
      { columns: 100, hitRate: 0.75 },
    ],
  } satisfies DriverMetricsSource;
}

const linesOf = async (registry: Registry) => (await registry.metrics()).split('\n');

test('accounts are one a class, up to the limit, and others share one', () => {
  const accounts = new Accounts();
  for (let index = 0; index < 1000; index += 1) accounts.of(`class ${index}`).lookups += 1;
  accounts.of(OTHER_CLASS).lookups += 1;
  expect([...accounts].length).toBe(MAX_TENANT_CLASSES + 1);
  expect(accounts.of('class 0')).toBe(accounts.of('class 0'));
  expect(accounts.of('class 999')).toBe(accounts.of(OTHER_CLASS));
  expect(accounts.of(OTHER_CLASS).lookups).toBe(1000 - MAX_TENANT_CLASSES + 1);
  expect(accounts.total().lookups).toBe(1001);
  // The name of the shared account takes no place of a class.
  const few = new Accounts(1);
  few.of(OTHER_CLASS).lookups += 1;
  expect(few.of('gold').tenantClass).toBe('gold');
});

test('a total adds up every field', () => {
  const accounts = new Accounts();
  for (const [index, tenantClass] of ['gold', 'free'].entries()) {
    const account = accounts.of(tenantClass);
    account.lookups = 1 + index;
    account.promptTokens = 100;
    account.hitTokens = 40;
    account.missTokens.add('evicted', 60);
    account.columnsEvicted = 2;
    account.columnsRefilled = 3;
    account.columnsDeleted = 4;
    account.columnsExpired = 5;
  }
  const { missTokens, ...sum } = accounts.total();
  expect(sum).toEqual({
    tenantClass: '',
    lookups: 3,
    promptTokens: 200,
    hitTokens: 80,
    columnsEvicted: 4,
    columnsRefilled: 6,
    columnsDeleted: 8,
    columnsExpired: 10,
  });
  expect(missTokens.of('evicted')).toBe(120);
});

test('metrics are read when they are scraped, and carry model, policy, class and cause', async () => {
  const registry = new Registry();
  const source = makeSource('m');
  collectInto(registry, () => [source]);
  const account = source.accounts.of('gold');
  account.lookups = 7;
  account.promptTokens = 700;
  account.hitTokens = 300;
  account.missTokens.add('evicted', 390);
  account.missTokens.add('partial', 10);
  account.columnsExpired = 3;
  source.latencies.match.record(0.003);
  source.latencies.match.record(2);
  const lines = await linesOf(registry);
  const labels = 'model="m",policy="lru"';
  const gold = `${labels},tenant_class="gold"`;
  for (const line of [
    '# TYPE kvss_driver_lookups_total counter',
    `kvss_driver_lookups_total{${gold}} 7`,
    `kvss_driver_prompt_tokens_total{${gold}} 700`,
    `kvss_driver_hit_tokens_total{${gold}} 300`,
    `kvss_driver_miss_tokens_total{${gold},cause="evicted"} 390`,
    `kvss_driver_miss_tokens_total{${gold},cause="partial"} 10`,
    `kvss_driver_miss_tokens_total{${gold},cause="neverStored"} 0`,
    `kvss_driver_columns_expired_total{${gold}} 3`,
    `kvss_driver_columns{${labels}} 5`,
    `kvss_driver_capacity_columns{${labels}} 10`,
    '# TYPE kvss_driver_what_if_hit_ratio gauge',
    `kvss_driver_what_if_hit_ratio{${labels},columns="100"} 0.75`,
    '# TYPE kvss_driver_match_seconds histogram',
    `kvss_driver_match_seconds_bucket{le="0.000002",${labels}} 0`,
    `kvss_driver_match_seconds_bucket{le="0.000004",${labels}} 1`,
    `kvss_driver_match_seconds_bucket{le="+Inf",${labels}} 2`,
    `kvss_driver_match_seconds_count{${labels}} 2`,
    `kvss_driver_match_seconds_sum{${labels}} 0.002003`,
    `kvss_driver_refill_seconds_count{${labels}} 0`,
  ]) {
    expect(lines).toContain(line);
  }
  account.lookups = 8;
  expect(await linesOf(registry)).toContain(`kvss_driver_lookups_total{${gold}} 8`);
});

test('drivers come and go between scrapes, and share the names of their metrics', async () => {
  const registry = new Registry();
  const sources = [makeSource('a')];
  collectInto(registry, () => sources);
  sources.push(makeSource('b'));
  let lines = await linesOf(registry);
  expect(lines.filter((line) => line.startsWith('kvss_driver_columns{'))).toHaveLength(2);
  expect(lines.filter((line) => line === '# TYPE kvss_driver_columns gauge')).toHaveLength(1);
  sources.shift();
  lines = await linesOf(registry);
  expect(lines.filter((line) => line.startsWith('kvss_driver_columns{'))).toEqual([
    'kvss_driver_columns{model="b",policy="lru"} 5',
  ]);
});

test('a thousand classes make a bounded number of lines', async () => {
  const registry = new Registry();
  const source = makeSource('m');
  for (let index = 0; index < 1000; index += 1) source.accounts.of(`class ${index}`);
  collectInto(registry, () => [source]);
  const lookups = (await linesOf(registry)).filter((line) => line.startsWith('kvss_driver_lookups_total{'));
  expect(lookups).toHaveLength(MAX_TENANT_CLASSES + 1);
});

test('a message is built only where somebody listens, and reaches all who do until they stop', () => {
  const heard: unknown[] = [];
  const message = { model: 'm', tenantClass: 'gold', columns: 3 };
  const make = () => {
    heard.push('made');
    return message;
  };
  publish('kvss:expire', make);
  expect(hasListeners('kvss:expire')).toBe(false);
  const stop = subscribe('kvss:expire', ({ columns }) => heard.push(columns));
  expect(hasListeners('kvss:expire')).toBe(true);
  publish('kvss:expire', make);
  stop();
  publish('kvss:expire', make);
  expect(heard).toEqual(['made', 3]);
});

test('every channel can be listened to under its own name', () => {
  expect(CHANNEL_NAMES).toEqual(['kvss:match', 'kvss:refill', 'kvss:evict', 'kvss:expire', 'kvss:stripe']);
  const heard: string[] = [];
  const stops = CHANNEL_NAMES.map((name) => subscribe(name, (message) => heard.push(`${name} ${message.model}`)));
  const about = { model: 'm', tenantClass: 'gold' };
  publish('kvss:match', () => ({
    ...about,
    promptTokens: 10,
    hitTokens: 0,
    columns: 0,
    missTokens: new MissTally().toJSON(),
    durationMs: 1,
  }));
  publish('kvss:refill', () => ({ ...about, columns: 1, missedColumns: 0, tokens: 64, durationMs: 1 }));
  publish('kvss:evict', () => ({ ...about, stored: 1, present: 0, dropped: 0, durationMs: 1 }));
  publish('kvss:expire', () => ({ ...about, columns: 1 }));
  publish('kvss:stripe', () => ({ model: 'm', stripe: 0, up: false, reason: 'gone' }));
  expect(heard).toEqual(CHANNEL_NAMES.map((name) => `${name} m`));
  for (const stop of stops) stop();
  expect(CHANNEL_NAMES.some(hasListeners)).toBe(false);
});
