import { Command } from 'commander';
import { native } from '../binding/native.js';
import { formatBytes, formatCount } from '../common/units.js';
import { defaultSocketPath } from '../kvss/config.js';
import { type CounterName, latencyQuantile, ShardCounters } from '../kvss/counters.js';
import { ControlClient } from '../links/control_client.js';
import type { PayloadOf, ReportedDriver, ShardState } from '../proto/frames.js';
import { integerOption } from './options.js';
import { driverTables } from './stat_drivers.js';
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
  /** Whether the daemon itself answered; the counters are live in either case. */
  answering: boolean;
  state: PayloadOf<'statsReply'>;
  counters: readonly ShardCounters[];
  counts: Record<'evicts' | 'refills' | 'evictBytes' | 'refillBytes', number>[];
}

async function stat(flags: StatFlags): Promise<void> {
  const { client } = await ControlClient.connect(flags.socket, 1_000);
  let running = true;
  client.onEnd = (reason) => {
    console.error(`kvss: ${reason}`);
    running = false;
  };
  process.once('SIGINT', () => {
    running = false;
  });
  try {
    const { payload, descriptors } = await client.request('stats', {}, 'statsReply');
    const counters = descriptors ? native.mapCounters(descriptors).map((segment) => new ShardCounters(segment)) : [];
    let before = lookAt(payload, true, counters);
    do {
      await new Promise((resolve) => setTimeout(resolve, flags.once ? Math.min(flags.interval, 250) : flags.interval));
      const state = await freshState(client);
      const look = lookAt(state ?? before.state, state !== undefined, counters);
      print(look, before, flags);
      before = look;
    } while (running && !flags.once);
  } finally {
    client.close();
  }
}

/** What only the daemon knows; undefined where it does not answer. */
async function freshState(client: ControlClient): Promise<PayloadOf<'statsReply'> | undefined> {
  try {
    const { payload, descriptors } = await client.request('stats', {}, 'statsReply');
    descriptors?.close();
    return { ...payload, drivers: await allDrivers(client, payload) };
  } catch {
    return undefined;
  }
}

/** The drivers of an answer, and those that did not fit into it. */
async function allDrivers(client: ControlClient, first: PayloadOf<'statsReply'>): Promise<ReportedDriver[]> {
  const drivers = [...(first.drivers ?? [])];
  for (let more = first.moreDrivers === true; more; ) {
    const driversAfter = drivers.at(-1)?.sessionId ?? 0;
    const { payload, descriptors } = await client.request('stats', { driversAfter }, 'statsReply');
    descriptors?.close();
    drivers.push(...(payload.drivers ?? []));
    // An answer that brings nothing new will bring nothing the next time.
    more = payload.moreDrivers === true && (drivers.at(-1)?.sessionId ?? 0) > driversAfter;
  }
  return drivers;
}

function lookAt(state: PayloadOf<'statsReply'>, answering: boolean, counters: readonly ShardCounters[]): Look {
  const counts = counters.map((shard) => ({
    evicts: shard.get('evicts'),
    refills: shard.get('refills'),
    evictBytes: shard.get('evictBytes'),
    refillBytes: shard.get('refillBytes'),
  }));
  return { atMs: performance.now(), answering, state, counters, counts };
}

const TOTALS = [
  'sessions',
  'storedSlots',
  'evicts',
  'refills',
  'deletes',
  'refillMisses',
  'tenantAlarms',
  'deadlines',
  'ringFaults',
] as const satisfies readonly CounterName[];

function shardRow(look: Look, before: Look, index: number) {
  const { [index]: state } = look.state.shards;
  const { [index]: counters } = look.counters;
  const seconds = (look.atMs - before.atMs) / 1000;
  const rate = (name: keyof Look['counts'][number]) =>
    ((look.counts[index]?.[name] ?? 0) - (before.counts[index]?.[name] ?? 0)) / seconds;
  const totals = Object.fromEntries(TOTALS.map((name) => [name, counters?.get(name) ?? 0]));
  return {
    ...(state as ShardState),
    ...(totals as Record<(typeof TOTALS)[number], number>),
    evictsPerSecond: rate('evicts'),
    refillsPerSecond: rate('refills'),
    evictGBps: rate('evictBytes') / 1e9,
    refillGBps: rate('refillBytes') / 1e9,
    evictP99Us: latencyQuantile(counters?.latency('evictLatency') ?? [], 0.99) * 1e6,
  };
}

function print(look: Look, before: Look, flags: StatFlags): void {
  const { uptimeSeconds, sessions, drivers = [] } = look.state;
  const shards = look.counters.map((_, index) => shardRow(look, before, index));
  if (flags.json) {
    console.log(JSON.stringify({ answering: look.answering, uptimeSeconds, sessions, shards, drivers }));
    return;
  }
  const head = [
    ['shard', 'domain', 'budget', 'free', 'stored', 'evict/s', 'GB/s', 'refill/s', 'GB/s', 'evict p99', 'alarms'],
  ];
  const rows = shards.map((row) => [
    String(row.index),
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
  ]);
  const daemon = look.answering
    ? `up ${uptimeSeconds.toFixed(0)} s, ${sessions} sessions`
    : 'the daemon does not answer';
  if (process.stdout.isTTY && !flags.once) process.stdout.write('\x1b[2J\x1b[H');
  console.log([`${daemon}\n${alignRows([...head, ...rows])}`, ...driverTables(drivers)].join('\n\n'));
}
