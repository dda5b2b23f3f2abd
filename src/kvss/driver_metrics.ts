import type { Registry } from 'prom-client';
import { type Sample, scrapedMetric } from '../common/scraped_metric.js';
import type { ReportedDriver } from '../proto/frames.js';

type Labels = Sample['labels'];

const FIGURES = [
  ['lookups', 'counter', 'kvss_driver_lookups_total', 'Prompts that the driver looked up.'],
  ['promptTokens', 'counter', 'kvss_driver_prompt_tokens_total', 'Tokens of prompts that the driver looked up.'],
  ['hitTokens', 'counter', 'kvss_driver_hit_tokens_total', 'Tokens that need not be computed.'],
  ['columns', 'gauge', 'kvss_driver_columns', 'Columns that the driver can find.'],
  ['capacityColumns', 'gauge', 'kvss_driver_capacity_columns', 'Columns that the driver has room for.'],
] as const;

/**
 * What drivers report of themselves, by session and model. A series is there for as long as its session. The values are
 * the driver's own words; only their form has been checked.
 */
export function addDriverMetrics(registry: Registry, drivers: () => Iterable<ReportedDriver>): void {
  const perDriver = (read: (driver: ReportedDriver, labels: Labels) => Sample[]) => () =>
    [...drivers()].flatMap((driver) => read(driver, { session: driver.sessionId, model: driver.report.model }));
  for (const [key, type, name, help] of FIGURES) {
    scrapedMetric(
      registry,
      name,
      type,
      help,
      perDriver(({ report }, labels) => [{ labels, value: report[key] }]),
    );
  }
  scrapedMetric(
    registry,
    'kvss_driver_miss_tokens_total',
    'counter',
    'Tokens that had to be computed, by cause.',
    perDriver(({ report }, labels) =>
      Object.entries(report.missTokens).map(([cause, value]) => ({ labels: { ...labels, cause }, value })),
    ),
  );
  scrapedMetric(
    registry,
    'kvss_driver_what_if_hit_ratio',
    'gauge',
    'Token hit rate that the same prompts would have had with room for so many columns.',
    perDriver(({ report }, labels) =>
      report.curve.map(({ columns, hitRate }) => ({ labels: { ...labels, columns }, value: hitRate })),
    ),
  );
  scrapedMetric(
    registry,
    'kvss_driver_report_age_seconds',
    'gauge',
    'Time since the last report.',
    perDriver(({ ageSeconds }, labels) => [{ labels, value: ageSeconds }]),
  );
}
