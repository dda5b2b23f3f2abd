import { cpus } from 'node:os';
import { Command } from 'commander';
import { type HioFigures, measureHioModes } from '../bench/hio_modes.js';
import { integerListOption, integerOption } from './options.js';
import { Progress } from './progress.js';
import { alignRows } from './table.js';

interface HioFlags {
  shards: number[];
  phase: number;
  json?: boolean;
}

export function benchCommand(): Command {
  const bench = new Command('bench').description('measure this machine');
  bench
    .command('hio')
    .description('CPU use and evict latency of the three ways in which engines wait for work')
    .option('--shards <list>', 'numbers of shards', integerListOption, [1, 4, 16])
    .option('--phase <ms>', 'how long to be idle, and how long to be busy, in milliseconds', integerOption(100), 3_000)
    .option('--json', 'print one JSON object a line')
    .action(hio);
  return bench;
}

async function hio(flags: HioFlags): Promise<void> {
  const rows: HioFigures[] = [];
  const modes = ['latency', 'adaptive', 'buffered'] as const;
  const progress = new Progress(() => `${rows.length} of ${flags.shards.length * modes.length} measured`);
  try {
    for await (const figures of measureHioModes({ modes, shardCounts: flags.shards, phaseMs: flags.phase })) {
      rows.push(figures);
      if (flags.json) console.log(JSON.stringify(figures));
    }
  } finally {
    progress.stop();
  }
  if (flags.json) return;
  const percent = (cores: number) => `${(100 * cores).toFixed(1)} %`;
  console.log(`${cpus().length} cores, ${cpus()[0]?.model ?? 'unknown'}, Node ${process.versions.node}`);
  console.log(
    alignRows([
      ['mode', 'shards', 'idle, of a core', 'busy, of a core', 'evict p50', 'evict p99', 'evicts'],
      ...rows.map((row) => [
        row.mode,
        String(row.shards),
        percent(row.idleCores),
        percent(row.busyCores),
        `${row.evictP50Us.toFixed(1)} us`,
        `${row.evictP99Us.toFixed(1)} us`,
        String(row.evicts),
      ]),
    ]),
  );
}
