import { Registry } from 'prom-client';
import { type Sample, scrapedMetric } from '../common/scraped_metric.js';
import { type CounterName, LATENCY_BUCKETS, type LatencyName, latencyBoundSeconds } from './counters.js';
import type { ParkedGrants } from './parked.js';
import type { PolicyStore } from './policy_store.js';
import type { Shard } from './shard.js';

const COUNTERS: readonly [CounterName, string, string][] = [
  ['evicts', 'kvss_evicts_total', 'Pieces stored.'],
  ['evictFaults', 'kvss_evict_faults_total', 'Evicts that ended with another status than ok.'],
  ['evictBytes', 'kvss_evict_bytes_total', 'Bytes of stored pieces.'],
  ['refills', 'kvss_refills_total', 'Refills served.'],
  ['refillMisses', 'kvss_refill_misses_total', 'Refills that found the slot empty or overwritten.'],
  ['refillFaults', 'kvss_refill_faults_total', 'Refills that ended with a fault.'],
  ['refillBytes', 'kvss_refill_bytes_total', 'Bytes of served pieces.'],
  ['deletes', 'kvss_deletes_total', 'Pieces forgotten on request.'],
  ['deleteMisses', 'kvss_delete_misses_total', 'Deletes that found nothing to forget.'],
  [
    'tenantAlarms',
    'kvss_tenant_alarms_total',
    "Refills that named another tenant than the slot's. Never rises in a healthy system.",
  ],
  ['deadlines', 'kvss_deadlines_total', 'Operations that ran out of time.'],
  ['gatedEvicts', 'kvss_gated_evicts_total', 'Evicts that had to wait for a command or a reader.'],
  ['gatedCommands', 'kvss_gated_commands_total', 'Refills and deletes that had to wait for an evict.'],
  ['scrubbedBytes', 'kvss_scrubbed_bytes_total', 'Bytes zeroed by deletes.'],
  ['ringFaults', 'kvss_ring_faults_total', 'Sessions ended because their ring positions were impossible.'],
  ['sleeps', 'kvss_engine_sleeps_total', 'Times the engine went to sleep.'],
  ['heartbeat', 'kvss_engine_turns_total', "Turns of the engine's loop. One that stands still is stuck."],
];

/** What metrics are made of. */
export interface MetricsSource {
  readonly shards: readonly Shard[];
  readonly sessionCount: number;
  readonly policies: PolicyStore;
  readonly parked: ParkedGrants;
}

/** Registry of one daemon. Figures are read from the shards' counters at each scrape. */
export function createMetrics(source: MetricsSource): Registry {
  const registry = new Registry();
  const perShard = (read: (shard: Shard) => number) => () =>
    source.shards.map((shard) => ({ labels: labelsOf(shard), value: read(shard) }));
  for (const [counter, name, help] of COUNTERS) {
    scrapedMetric(
      registry,
      name,
      'counter',
      help,
      perShard((shard) => shard.counters.get(counter)),
    );
  }
  scrapedMetric(registry, 'kvss_sessions', 'gauge', 'Connected sessions.', () => [
    { labels: {}, value: source.sessionCount },
  ]);
  scrapedMetric(
    registry,
    'kvss_shard_sessions',
    'gauge',
    'Sessions attached to the shard.',
    perShard((shard) => shard.counters.get('sessions')),
  );
  scrapedMetric(
    registry,
    'kvss_stored_slots',
    'gauge',
    'Slots that hold a piece.',
    perShard((shard) => shard.counters.get('storedSlots')),
  );
  scrapedMetric(
    registry,
    'kvss_budget_bytes',
    'gauge',
    'Memory of the shard.',
    perShard((shard) => shard.state().budgetBytes),
  );
  scrapedMetric(
    registry,
    'kvss_free_bytes',
    'gauge',
    'Memory of the shard that is not granted.',
    perShard((shard) => shard.state().freeBytes),
  );
  scrapedMetric(
    registry,
    'kvss_parked_grants',
    'gauge',
    'Grants of drivers that have died and may come back.',
    perShard((shard) => source.parked.of(shard).length),
  );
  scrapedMetric(
    registry,
    'kvss_parked_bytes',
    'gauge',
    'Memory of drivers that have died and may come back. Makes room where a driver needs it.',
    perShard((shard) => source.parked.bytes(shard)),
  );
  latency(registry, source, 'evictLatency', 'kvss_evict_seconds', 'Time of an evict from read to finished.');
  scrapedMetric(registry, 'kvss_tenant_policies', 'gauge', 'Tenants with a policy of their own.', () => [
    { labels: {}, value: source.policies.size },
  ]);
  latency(registry, source, 'refillLatency', 'kvss_refill_seconds', 'Time of a refill from read to finished.');
  return registry;
}

function labelsOf(shard: Shard): Record<string, string | number> {
  return { shard: shard.index, domain: shard.domain };
}

function latency(registry: Registry, source: MetricsSource, field: LatencyName, name: string, help: string): void {
  scrapedMetric(registry, name, 'histogram', help, () =>
    source.shards.flatMap((shard) => histogramSamples(name, labelsOf(shard), shard.counters.latency(field))),
  );
}

/** The engine keeps buckets and no exact sum; the sum here takes each bucket at its upper bound. */
function histogramSamples(name: string, labels: Sample['labels'], buckets: readonly number[]): Sample[] {
  const samples: Sample[] = [];
  let count = 0;
  let sum = 0;
  for (let bucket = 0; bucket < LATENCY_BUCKETS; bucket += 1) {
    const bound = latencyBoundSeconds(bucket);
    const inBucket = buckets[bucket] ?? 0;
    count += inBucket;
    sum += inBucket * Math.min(bound, latencyBoundSeconds(LATENCY_BUCKETS - 2));
    const le = Number.isFinite(bound) ? bound : '+Inf';
    samples.push({ metricName: `${name}_bucket`, labels: { le, ...labels }, value: count });
  }
  samples.push(
    { metricName: `${name}_sum`, labels, value: sum },
    { metricName: `${name}_count`, labels, value: count },
  );
  return samples;
}
