import { readFileSync } from 'node:fs';
import type { HioMode } from '../binding/native.js';
import { startChildDaemon } from '../kvss/child_daemon.js';
import { SwDriver } from '../swdriver/sw_driver.js';

/** What one way of waiting costs with one number of shards. */
export interface HioFigures {
  mode: HioMode;
  shards: number;
  /** Share of one core that the daemon takes while a driver is connected and does nothing. */
  idleCores: number;
  /** The same while one driver evicts one column after another. */
  busyCores: number;
  /** Time of one evict of one column from JavaScript, all shards, in microseconds. */
  evictP50Us: number;
  evictP99Us: number;
  evicts: number;
}

export interface HioOptions {
  modes: readonly HioMode[];
  shardCounts: readonly number[];
  /** How long each of the two phases lasts, in milliseconds. */
  phaseMs: number;
}

const BYTES_PER_TOKEN = 64;
const TICKS_PER_SECOND = 100;

/** Measures every mode with every number of shards, one after the other; each has a daemon of its own. */
export async function* measureHioModes(options: HioOptions): AsyncGenerator<HioFigures> {
  for (const shards of options.shardCounts) {
    for (const mode of options.modes) yield await measure(mode, shards, options.phaseMs);
  }
}

async function measure(mode: HioMode, shards: number, phaseMs: number): Promise<HioFigures> {
  await using daemon = await startChildDaemon(Array<number>(shards).fill(2 ** 22), { hioMode: mode });
  await using driver = await SwDriver.connect({
    daemons: [daemon.socket],
    model: {
      id: 'hio',
      revision: '1',
      dtype: 'none',
      layout: 'none',
      bytesPerToken: Array<number>(shards).fill(BYTES_PER_TOKEN),
    },
    deadlineMs: 10_000,
    connectDeadlineMs: 60_000,
  });
  const idle = await cpuDuring(daemon.pid, () => new Promise((resolve) => setTimeout(resolve, phaseMs)));
  const latencies: number[] = [];
  const busy = await cpuDuring(daemon.pid, () => evictFor(driver, phaseMs, latencies));
  latencies.sort((a, b) => a - b);
  const quantile = (share: number) => latencies[Math.floor(share * (latencies.length - 1))] ?? Number.NaN;
  return {
    mode,
    shards,
    idleCores: idle,
    busyCores: busy,
    evictP50Us: quantile(0.5),
    evictP99Us: quantile(0.99),
    evicts: latencies.length,
  };
}

/** Evicts one new column after another and notes how long each took, in microseconds. */
async function evictFor(driver: SwDriver, durationMs: number, latencies: number[]): Promise<void> {
  const source = { write: () => true };
  const tokens = new Uint32Array(driver.columnTokens);
  const end = performance.now() + durationMs;
  for (let round = 0; performance.now() < end; round += 1) {
    tokens[0] = round;
    const sequence = driver.openSequence({ isolationId: 'bench' });
    sequence.match(tokens).release();
    const from = performance.now();
    await sequence.evict(source);
    latencies.push((performance.now() - from) * 1000);
    // As between two decoded tokens: the engine may go to sleep meanwhile.
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Cores that a process took while `work` ran. */
async function cpuDuring(pid: number, work: () => Promise<void>): Promise<number> {
  const from = performance.now();
  const before = cpuSeconds(pid);
  await work();
  return (cpuSeconds(pid) - before) / ((performance.now() - from) / 1000);
}

function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // Behind the name, which may hold anything: user and system time are fields 14 and 15.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}
