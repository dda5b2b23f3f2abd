import type { TargetId } from './row.js';

/** What one figure of the suite ought to be. */
export interface Target {
  id: TargetId;
  what: string;
  bar: number;
  moonshot: number;
  /** How a value is written, e.g. `2.0 us`. */
  format(value: number): string;
  /** Whether smaller values are better. */
  smaller: boolean;
}

const ratio = (digits: number) => (value: number) => value.toFixed(digits);
const times = (value: number) => `${value.toFixed(2)}x`;
const micros = (value: number) => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} us`;
const millions = (what: string) => (value: number) => `${(value / 1e6).toFixed(1)} M ${what}/s`;
const bytes = (value: number) => `${value.toFixed(0)} B`;
const percent = (value: number) => `${(100 * value).toFixed(2)} %`;

/** Ratios and times of one run on two cores. */
export const TARGETS: readonly Target[] = [
  {
    id: 'shm-publish-p50',
    what: 'shared memory, in place: publish one evicted piece and see evictCount move, from JavaScript, p50',
    bar: 1,
    moonshot: 0.4,
    format: micros,
    smaller: true,
  },
  {
    id: 'shm-descriptors',
    what: 'shared memory, in place: descriptors from one JavaScript thread, batched',
    bar: 5e6,
    moonshot: 1e7,
    format: millions('descriptors'),
    smaller: false,
  },
  {
    id: 'shm-copy',
    what: 'shared memory, one copy, 256 KiB to 2 MiB pieces, against memcpy',
    bar: 0.95,
    moonshot: 0.99,
    format: ratio(2),
    smaller: false,
  },
  {
    id: 'shm-refill-p50',
    what: 'shared memory, refill in place: match, gate and hand out a view, p50, any size',
    bar: 2,
    moonshot: 0.7,
    format: micros,
    smaller: true,
  },
  {
    id: 'tcp-evict',
    what: 'TCP evict against the bare socket loop, 256 KiB and up',
    bar: 0.9,
    moonshot: 0.97,
    format: ratio(2),
    smaller: false,
  },
  {
    id: 'tcp-refill',
    what: 'TCP refill against the bare socket loop, 256 KiB and up',
    bar: 0.9,
    moonshot: 0.97,
    format: ratio(2),
    smaller: false,
  },
  {
    id: 'tcp-evict-peers',
    what: 'TCP evict against the better of Redis SET and memcached set, 256 KiB and 1 MiB',
    bar: 1.6,
    moonshot: 1.9,
    format: times,
    smaller: false,
  },
  {
    id: 'tcp-refill-peers',
    what: 'TCP refill against the better of Redis GET and memcached get, 256 KiB and 1 MiB',
    bar: 1,
    moonshot: 1.1,
    format: times,
    smaller: false,
  },
  {
    id: 'shm-peers',
    what: 'same host, one copy each way, against the best peer over a Unix socket',
    bar: 3,
    moonshot: 4,
    format: times,
    smaller: false,
  },
  {
    id: 'mixed-p99',
    what: 'mixed: evict p99 while refills run at full rate, against evict alone',
    bar: 2,
    moonshot: 1.3,
    format: times,
    smaller: true,
  },
  {
    id: 'prefix-match',
    what: 'PrefixMap: match of a fully cached prompt of 131,072 tokens, exact',
    bar: 400,
    moonshot: 150,
    format: micros,
    smaller: true,
  },
  {
    id: 'prefix-insert',
    what: 'PrefixMap: insert',
    bar: 1e6,
    moonshot: 3e6,
    format: millions('columns'),
    smaller: false,
  },
  {
    id: 'prefix-bytes',
    what: 'PrefixMap: memory a column, tokens included',
    bar: 500,
    moonshot: 350,
    format: bytes,
    smaller: true,
  },
  {
    id: 'scale',
    what: 'cost of an operation from 10^3 to 10^6 columns, and from 1 to 64 sessions, the worst of all',
    bar: 1.5,
    moonshot: 1.05,
    format: times,
    smaller: true,
  },
  {
    id: 'no-reuse',
    what: 'CPU time of the driver when nothing is ever reused, as a share of a runtime that takes 1 ms a column',
    bar: 0.01,
    moonshot: 0.002,
    format: percent,
    smaller: true,
  },
  {
    id: 'idle',
    what: '16 idle shards, share of a core',
    bar: 0.02,
    moonshot: 0.005,
    format: percent,
    smaller: true,
  },
];

export type Verdict = 'moonshot' | 'bar' | 'missed';

export function verdictOf({ bar, moonshot, smaller }: Target, value: number): Verdict {
  const reaches = (goal: number) => (smaller ? value <= goal : value >= goal);
  if (reaches(moonshot)) return 'moonshot';
  return reaches(bar) ? 'bar' : 'missed';
}
