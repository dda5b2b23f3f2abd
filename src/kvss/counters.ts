import { KvssError } from '../common/errors.js';
import { COUNTERS_MAGIC, CountersSegmentLayout, PROTOCOL_VERSION, Status } from '../proto/generated.js';

type FieldName = keyof typeof CountersSegmentLayout.offset;
/** The fields that are single figures. */
export type CounterName = Exclude<FieldName, 'magic' | 'version' | 'shard' | 'evictLatency' | 'refillLatency'>;
export type LatencyName = 'evictLatency' | 'refillLatency';

export const LATENCY_BUCKETS = 24;

/** Upper bound of a latency bucket in seconds; the last one has none. */
export function latencyBoundSeconds(bucket: number): number {
  return bucket === LATENCY_BUCKETS - 1 ? Number.POSITIVE_INFINITY : 2 ** (bucket + 7) / 1e9;
}

/** Live figures of one shard, read from the memory that its engine writes. Costs no call and disturbs nobody. */
export class ShardCounters {
  readonly #view: DataView;

  constructor(segment: ArrayBuffer) {
    this.#view = new DataView(segment);
    const { offset } = CountersSegmentLayout;
    if (
      this.#view.getUint32(offset.magic, true) !== COUNTERS_MAGIC ||
      this.#view.getUint32(offset.version, true) !== PROTOCOL_VERSION
    ) {
      throw KvssError.ofStatus(Status.badVersion, 'the counters segment is of another protocol version');
    }
  }

  get shard(): number {
    return this.#view.getUint32(CountersSegmentLayout.offset.shard, true);
  }

  get(name: CounterName): number {
    return Number(this.#view.getBigUint64(CountersSegmentLayout.offset[name], true));
  }

  /** Operations by latency; bucket i counts those below latencyBoundSeconds(i) and not in a lower one. */
  latency(name: LatencyName): number[] {
    const start = CountersSegmentLayout.offset[name];
    return Array.from({ length: LATENCY_BUCKETS }, (_, bucket) =>
      Number(this.#view.getBigUint64(start + 8 * bucket, true)),
    );
  }
}

/** The latency in seconds that a share `quantile` of the counted operations stays below, 0 where there are none. */
export function latencyQuantile(buckets: readonly number[], quantile: number): number {
  const total = buckets.reduce((sum, count) => sum + count, 0);
  let seen = 0;
  for (const [bucket, count] of buckets.entries()) {
    seen += count;
    if (total > 0 && seen >= quantile * total) return latencyBoundSeconds(bucket);
  }
  return 0;
}
