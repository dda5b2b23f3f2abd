import { Gauge, type Registry } from 'prom-client';

/** One line of a metric. `metricName` where it is not the metric's own, as the parts of a histogram. */
export interface Sample {
  labels: Record<string, string | number>;
  value: number;
  metricName?: string;
}

/**
 * Registers a metric whose samples are read when somebody asks. prom-client's own counters want every event pushed; here
 * somebody has counted already, and nothing may be added to an operation.
 */
export function scrapedMetric(
  registry: Registry,
  name: string,
  type: 'counter' | 'gauge' | 'histogram',
  help: string,
  read: () => Sample[],
): void {
  const metric = new Gauge({ name, help, registers: [] });
  metric.get = async () => ({ name, help, type, values: read(), aggregator: 'sum' }) as never;
  registry.registerMetric(metric);
}
