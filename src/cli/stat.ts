import { Command } from 'commander';
import { native } from '../binding/native.js';
import { formatBytes, formatCount } from '../common/units.js';
import { defaultSocketPath } from '../kvss/config.js';
import { type CounterName, latencyQuantile, ShardCounters } from '../kvss/counters.js';
import { ControlClient } from '../links/control_client.js';
import type { ShardState } from '../proto/frames.js';
import { integerOption } from './options.js';
import { alignRows } from './table.js';

interface StatFlags {
  socket: string;
  interval: number;
  once?: boolean;
  json?: boolean;
}

export function statCommand(): Command {
  return new Command('stat')
    .description('live figures of a running daemon; they come from shared memory and cost it nothing')
    .option('-s, --socket <path>', 'socket of the daemon', defaultSocketPath())
    .option('-i, --interval <ms>', 'time between two looks, in milliseconds', integerOption(50), 1000)
    .option('--once', 'print once and exit')
    .option('--json', 'print one JSON object a look')
    .action(stat);
}

/** One look at a daemon. */
interface Look {
  atMs: number;
  sessions: number;
  uptimeSeconds: number;
  shards: (ShardState & { counters: ShardCounters })[];
  counts: Record<'evicts' | 'refills' | 'evictBytes' | 'refillBytes', number>[];
}

async function stat(flags: StatFlags): Promise<void> {
  const { client } = await ControlClient.connect(flags.socket, 5_000);
  let running = true;
  client.onEnd = (reason) => {
    console.error(`kvss: ${reason}`);
    running = false;
  };
  process.once('SIGINT', () => {
    running = false;
  });
  try {
    let before: Look | undefined;
    do {
      const look = await lookAt(client);
      // Rates need two looks; with --once the first one is silent.
      if (before || !flags.once) print(look, before, flags);
      if (before && flags.once) break;
      before = look;
      await new Promise((resolve) => setTimeout(resolve, flags.once ? Math.min(flags.interval, 250) : flags.interval));
    } while (running);
  } finally {
    client.close();
  }
}

async function lookAt(client: ControlClient): Promise<Look> {
  const { payload, descriptors } = await client.request('stats', {}, 'statsReply');
  const segments = descriptors ? native.mapCounters(descriptors) : [];
  const shards = payload.shards.map((shard, index) => ({
    ...shard,
    counters: new ShardCounters(segments[index] as ArrayBuffer),
  }));
  return {
    atMs: performance.now(),
    sessions: payload.sessions,
    uptimeSeconds: payload.uptimeSeconds,
    shards,
    counts: shards.map(({ counters }) => ({
      evicts: counters.get('evicts'),
      refills: counters.get('refills'),
      evictBytes: counters.get('evictBytes'),
      refillBytes: counters.get('refillBytes'),
    })),
  };
}

const TOTALS: readonly CounterName[] = [
  'sessions',
  'storedSlots',
  'evicts',
  'refills',
  'deletes',
  'refillMisses',
  'tenantAlarms',
  'deadlines',
  'ringFaults',
];

function print(look: Look, before: Look | undefined, flags: StatFlags): void {
  const seconds = before ? (look.atMs - before.atMs) / 1000 : 1;
  const rows = look.shards.map((shard, index) => {
    const now = look.counts[index];
    const then = before?.counts[index] ?? now;
    const rate = (name: keyof NonNullable<typeof now>) => ((now?.[name] ?? 0) - (then?.[name] ?? 0)) / seconds;
    return {
      shard: shard.index,
      domain: shard.domain,
      budgetBytes: shard.budgetBytes,
      freeBytes: shard.freeBytes,
      ...Object.fromEntries(TOTALS.map((name) => [name, shard.counters.get(name)])),
      storedSlots: shard.counters.get('storedSlots'),
      tenantAlarms: shard.counters.get('tenantAlarms'),
      evictsPerSecond: rate('evicts'),
      refillsPerSecond: rate('refills'),
      evictGBps: rate('evictBytes') / 1e9,
      refillGBps: rate('refillBytes') / 1e9,
      evictP99Us: latencyQuantile(shard.counters.latency('evictLatency'), 0.99) * 1e6,
    };
  });
  if (flags.json) {
    console.log(JSON.stringify({ uptimeSeconds: look.uptimeSeconds, sessions: look.sessions, shards: rows }));
    return;
  }
  const head = [
    'shard',
    'domain',
    'budget',
    'free',
    'stored',
    'evict/s',
    'GB/s',
    'refill/s',
    'GB/s',
    'evict p99',
    'alarms',
  ];
  const table = alignRows([
    head,
    ...rows.map((row) => [
      String(row.shard),
      String(row.domain),
      formatBytes(row.budgetBytes),
      formatBytes(row.freeBytes),
      formatCount(row.storedSlots),
      formatCount(row.evictsPerSecond),
      row.evictGBps.toFixed(2),
      formatCount(row.refillsPerSecond),
      row.refillGBps.toFixed(2),
      `< ${row.evictP99Us.toFixed(1)} us`,
      String(row.tenantAlarms),
    ]),
  ]);
  if (process.stdout.isTTY && !flags.once) process.stdout.write('\x1b[2J\x1b[H');
  console.log(`up ${look.uptimeSeconds.toFixed(0)} s, ${look.sessions} sessions\n${table}`);
}
