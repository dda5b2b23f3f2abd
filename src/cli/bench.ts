import { cpus } from 'node:os';
import { Command, InvalidArgumentError, Option } from 'commander';
import { type HioFigures, measureHioModes } from '../bench/hio_modes.js';
import { measurePressure } from '../bench/pressure.js';
import {
  ARRANGEMENTS,
  COLUMN_BYTES,
  type JobFigures,
  type Measured,
  measureSpine,
  quantileText,
} from '../bench/spine.js';
import { drawSpine } from '../bench/spine_plot.js';
import { messageOf } from '../common/errors.js';
import { formatBytes, formatCount, parseBytes } from '../common/units.js';
import type { LinkName } from '../kvss/child_daemon.js';
import { checkPath, type PathInput, type TopologyInput } from '../wafer/topology.js';
import { suiteCommands } from './bench_suite.js';
import { ttftCommand } from './bench_ttft.js';
import { checkWritable, writeText } from './files.js';
import { integerListOption, integerOption, positiveOption } from './options.js';
import { Progress } from './progress.js';
import { alignRows } from './table.js';

interface HioFlags {
  shards: number[];
  phase: number;
  json?: boolean;
}

interface SpineFlags {
  seconds: number;
  columns: number;
  period: number;
  deadline: number;
  rail: PathInput;
  spine: PathInput;
  spineUse: NonNullable<TopologyInput['spineUse']>;
  link: LinkName;
  seed: number;
  json?: boolean;
  svg?: string;
}

const RAIL = { bandwidth: '100MB', latencyUs: 20, jitterUs: 10, burst: '1MiB' };
const SPINE = { bandwidth: '100MB', latencyUs: 60, jitterUs: 200, burst: '1MiB' };

export function benchCommand(): Command {
  const bench = new Command('bench').description('measure this machine');
  bench
    .command('hio')
    .description('CPU use and evict latency of the three ways in which engines wait for work')
    .option('--shards <list>', 'numbers of shards', integerListOption, [1, 4, 16])
    .option('--phase <ms>', 'how long to be idle, and how long to be busy, in milliseconds', integerOption(100), 3_000)
    .option('--json', 'print one JSON object a line')
    .action(hio);
  bench
    .command('spine')
    .description('bursts of evicts of two jobs over one emulated spine, and over an emulated rail each')
    .option('--seconds <n>', 'how long each of the two arrangements runs', positiveOption, 10)
    .option('--columns <n>', `columns of a burst, ${formatBytes(COLUMN_BYTES)} each`, integerOption(1, 4096), 64)
    .option('--period <ms>', 'mean time between bursts of a job, in milliseconds', positiveOption, 240)
    .option('--deadline <ms>', 'longest that a column may take, in milliseconds', positiveOption, 400)
    .addOption(
      new Option('--rail <settings>', 'the path of each rail; what is not given stays as it is')
        .default(RAIL, spell(RAIL))
        .argParser(pathOption(RAIL)),
    )
    .addOption(
      new Option('--spine <settings>', 'the path of the spine, likewise')
        .default(SPINE, spell(SPINE))
        .argParser(pathOption(SPINE)),
    )
    .addOption(
      new Option('--spine-use <what>', 'what happens to links over the spine')
        .choices(['allow', 'warn', 'refuse'])
        .default('warn'),
    )
    .addOption(
      new Option('--link <kind>', 'what the daemons are reached over').choices(['tcp', 'unix', 'shm']).default('tcp'),
    )
    .option('--seed <n>', 'seed of the bursts and of the paths', integerOption(0, 2 ** 32 - 1), 1)
    .option('--json', 'print one JSON object')
    .option('--svg <file>', 'write a plot')
    .action(spine);
  bench
    .command('pressure')
    .description('conversations that do not fit into the memory of a wafer are evicted in bursts and come back')
    .option('--sequences <count>', 'conversations', integerOption(1, 4096), 32)
    .option('--prompt-columns <count>', 'columns of the prompt of each', integerOption(1), 32)
    .option('--decode-columns <count>', 'columns that each generates', integerOption(1), 32)
    .option('--memory-columns <count>', 'columns that the memory of the wafer holds', integerOption(1), 512)
    .option('--high-water <share>', 'share of the memory above which columns have to go', positiveOption, 0.9)
    .option('--low-water <share>', 'share of the memory at which that ends', positiveOption, 0.5)
    .option('--seed <n>', 'seed of the tokens', integerOption(0, 2 ** 32 - 1), 1)
    .option('--json', 'print one JSON object')
    .action(pressure);
  bench.addCommand(ttftCommand());
  for (const command of suiteCommands()) bench.addCommand(command);
  return bench;
}

function spell(path: Readonly<Record<string, unknown>>): string {
  return Object.entries(path)
    .map((entry) => entry.join('='))
    .join(',');
}

/** Settings of a path such as `bandwidth=400MB,latencyUs=5`. */
function pathOption(defaults: PathInput): (text: string) => PathInput {
  return (text) => {
    const given = text.split(',').map((setting) => {
      const [, key, value] = /^(\w+)=(.+)$/.exec(setting) ?? [];
      if (key === undefined || value === undefined) {
        throw new InvalidArgumentError(`'${setting}' is not a setting; write for example bandwidth=400MB,latencyUs=5.`);
      }
      return [key, Number.isNaN(Number(value)) ? value : Number(value)];
    });
    const path = { ...defaults, ...Object.fromEntries(given) };
    try {
      checkPath(path);
    } catch (thrown) {
      throw new InvalidArgumentError(messageOf(thrown));
    }
    return path;
  };
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

async function spine(flags: SpineFlags): Promise<void> {
  const { json, svg, period, deadline, ...shape } = flags;
  if (svg !== undefined) checkWritable(svg);
  const measured: Measured[] = [];
  const progress = new Progress(() => `${measured.length} of ${ARRANGEMENTS.length} measured`);
  try {
    const warn = (message: string) => console.error(`kvss: warning: ${message}`);
    for await (const each of measureSpine({ ...shape, periodMs: period, deadlineMs: deadline, warn }))
      measured.push(each);
  } finally {
    progress.stop();
  }
  const arrangements = measured.map(({ figures }) => figures);
  const bursts = `${shape.columns} columns of ${formatBytes(COLUMN_BYTES)} a burst, one every ${period} ms for each job`;
  if (svg !== undefined) {
    const rate = ({ bandwidth }: PathInput) => `${formatCount(parseBytes(bandwidth) / 1e6)} MB/s`;
    const paths = `each rail ${rate(shape.rail)}, the spine ${rate(shape.spine)}`;
    writeText(svg, drawSpine(measured, deadline, `${bursts}; ${paths}`));
  }
  if (json) {
    console.log(
      JSON.stringify({ ...shape, periodMs: period, deadlineMs: deadline, columnBytes: COLUMN_BYTES, arrangements }),
    );
  } else {
    console.log(`${bursts}, over ${shape.link}`);
    console.log(`rail ${spell({ ...shape.rail })}; spine ${spell({ ...shape.spine })}`);
    console.log(
      alignRows([
        ['', ...arrangements.flatMap(({ over, jobs }) => jobs.map(({ job }) => `job ${job}, ${over}`))],
        ...SPINE_ROWS.map(([name, cell]) => [
          name,
          ...arrangements.flatMap(({ jobs }) => jobs.map((job) => cell(job, deadline))),
        ]),
      ]),
    );
  }
  if (arrangements.some(({ jobs }) => jobs.some(({ mismatches }) => mismatches > 0))) process.exitCode = 1;
}

const SPINE_ROWS: readonly (readonly [string, (job: JobFigures, deadlineMs: number) => string])[] = [
  ['evict p50', ({ p50Ms }, deadlineMs) => quantileText(p50Ms, deadlineMs)],
  ['evict p99', ({ p99Ms }, deadlineMs) => quantileText(p99Ms, deadlineMs)],
  ['stored', ({ bytesPerSecond }) => `${(bytesPerSecond / 1e6).toFixed(1)} MB/s`],
  ['bursts', ({ bursts }) => formatCount(bursts)],
  ['late bursts', ({ lateBursts }) => formatCount(lateBursts)],
  ['columns', ({ columns }) => formatCount(columns)],
  ['columns dropped', ({ columnsDropped }) => formatCount(columnsDropped)],
  ['columns verified', ({ columnsVerified }) => formatCount(columnsVerified)],
  ['mismatches', ({ mismatches }) => formatCount(mismatches)],
];

interface PressureFlags {
  sequences: number;
  promptColumns: number;
  decodeColumns: number;
  memoryColumns: number;
  highWater: number;
  lowWater: number;
  seed: number;
  json?: boolean;
}

async function pressure(flags: PressureFlags): Promise<void> {
  const figures = await measurePressure(flags);
  if (flags.json) {
    console.log(JSON.stringify(figures));
  } else {
    const gbps = `${figures.burstGBps.toFixed(2)} GB/s`;
    const rows = [
      ['bursts', `${figures.bursts}`],
      ['columns evicted in them', `${formatCount(figures.burstColumns)} of ${formatBytes(figures.columnBytes)}`],
      ['a burst, p50 and p99', `${figures.burstP50Ms.toFixed(1)} ms, ${figures.burstP99Ms.toFixed(1)} ms, ${gbps}`],
      ['columns that came back', formatCount(figures.columnsRefilled)],
      ['columns computed again', formatCount(figures.columnsRecomputed)],
      ['columns generated', formatCount(figures.columnsGenerated)],
      ['payload through the driver', formatBytes(figures.driverPayloadBytes)],
      ['verified', `${formatBytes(figures.bytesVerified)}, ${figures.mismatches} mismatches`],
      ['seconds', figures.seconds.toFixed(1)],
    ];
    console.log(alignRows(rows));
  }
  if (figures.mismatches > 0) process.exitCode = 1;
}
