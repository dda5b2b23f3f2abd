import type { Registry } from 'prom-client';
import { type Sample, scrapedMetric } from '../../common/scraped_metric.js';
import type { Account } from './accounts.js';
import { LATENCY_BOUNDS_SECONDS, type LatencyHistogram } from './latency_histogram.js';
import { MISS_CAUSES } from './miss_cause.js';
import type { CurvePoint } from './what_if.js';

/** What metrics of a driver are made of. Read at each scrape. */
export interface DriverMetricsSource {
  /** Id of the model; no two sources of one registry have the same model and policy. */
  readonly model: string;
  /** Name of the eviction policy. */
  readonly policy: string;
  /** One account a tenant class, of a bounded number of classes: see Accounts. */
  readonly accounts: Iterable<Readonly<Account>>;
  /** Columns that can be found. */
  readonly columns: number;
  /** Columns that there is room for. */
  readonly capacityColumns: number;
  readonly latencies: {
    readonly match: LatencyHistogram;
    readonly evict: LatencyHistogram;
    readonly refill: LatencyHistogram;
  };
  /** The hit rate that other capacities would have; nothing where that is not kept. Always of the same capacities. */
  curve(): readonly CurvePoint[];
}

type Labels = Sample['labels'];

const ACCOUNT_COUNTERS: readonly [name: string, help: string, read: (account: Readonly<Account>) => number][] = [
  ['kvss_driver_lookups_total', 'Prompts looked up.', (account) => account.lookups],
  ['kvss_driver_prompt_tokens_total', 'Tokens of the prompts looked up.', (account) => account.promptTokens],
  ['kvss_driver_hit_tokens_total', 'Tokens of the prompts that were cached.', (account) => account.hitTokens],
  ['kvss_driver_columns_evicted_total', 'Columns stored.', (account) => account.columnsEvicted],
  ['kvss_driver_columns_refilled_total', 'Columns given back to the runtime.', (account) => account.columnsRefilled],
  [
    'kvss_driver_columns_deleted_total',
    'Columns that made room for others or were forgotten on request.',
    (account) => account.columnsDeleted,
  ],
  ['kvss_driver_columns_expired_total', 'Columns whose time to live had passed.', (account) => account.columnsExpired],
];

const LATENCIES: readonly [operation: keyof DriverMetricsSource['latencies'], name: string, help: string][] = [
  ['match', 'kvss_driver_match_seconds', 'Time of a lookup.'],
  ['evict', 'kvss_driver_evict_seconds', 'Time of an evict call, with what the runtime took.'],
  ['refill', 'kvss_driver_refill_seconds', 'Time of a refill call, with what the runtime took.'],
];

/**
 * Registers the metrics of the drivers of a process, labelled by model, policy, and where it applies tenant class and
 * cause. `sources` is asked at each scrape, so drivers may come and go. Nothing is added to an operation.
 */
export function collectInto(registry: Registry, sources: () => Iterable<DriverMetricsSource>): void {
  const each = (read: (source: DriverMetricsSource, labels: Labels) => Sample[]) => () =>
    [...sources()].flatMap((source) => read(source, { model: source.model, policy: source.policy }));
  const perAccount = (read: (account: Readonly<Account>, labels: Labels) => Sample[]) =>
    each((source, labels) =>
      [...source.accounts].flatMap((account) => read(account, { ...labels, tenant_class: account.tenantClass })),
    );

  for (const [name, help, read] of ACCOUNT_COUNTERS) {
    scrapedMetric(
      registry,
      name,
      'counter',
      help,
      perAccount((account, labels) => [{ labels, value: read(account) }]),
    );
  }
  scrapedMetric(
    registry,
    'kvss_driver_miss_tokens_total',
    'counter',
    'Tokens of the prompts that were not cached, by cause.',
    perAccount((account, labels) =>
      MISS_CAUSES.map((cause) => ({ labels: { ...labels, cause }, value: account.missTokens.of(cause) })),
    ),
  );
  scrapedMetric(
    registry,
    'kvss_driver_columns',
    'gauge',
    'Columns that can be found.',
    each((source, labels) => [{ labels, value: source.columns }]),
  );
  scrapedMetric(
    registry,
    'kvss_driver_capacity_columns',
    'gauge',
    'Columns that there is room for.',
    each((source, labels) => [{ labels, value: source.capacityColumns }]),
  );
  scrapedMetric(
    registry,
    'kvss_driver_what_if_hit_ratio',
    'gauge',
    'Share of the tokens that a cache of so many columns would hit, least recently used first.',
    each((source, labels) =>
      source.curve().map(({ columns, hitRate }) => ({ labels: { ...labels, columns }, value: hitRate })),
    ),
  );
  for (const [operation, name, help] of LATENCIES) {
    scrapedMetric(
      registry,
      name,
      'histogram',
      help,
      each((source, labels) => histogramSamples(name, labels, source.latencies[operation])),
    );
  }
}

function histogramSamples(name: string, labels: Labels, histogram: LatencyHistogram): Sample[] {
  const counts = histogram.prometheusCounts();
  const samples: Sample[] = LATENCY_BOUNDS_SECONDS.map((le, index) => ({
    metricName: `${name}_bucket`,
    labels: { le, ...labels },
    value: counts[index] as number,
  }));
  samples.push(
    { metricName: `${name}_bucket`, labels: { le: '+Inf', ...labels }, value: histogram.count },
    { metricName: `${name}_sum`, labels, value: histogram.sum / 1000 },
    { metricName: `${name}_count`, labels, value: histogram.count },
  );
  return samples;
}
