import { basename, dirname, resolve } from 'node:path';
import { Argument, Command } from 'commander';
import { localError } from '../common/errors.js';
import { formatBytes, formatCount } from '../common/units.js';
import { readConfigFile } from '../kvss/config.js';
import { parseMemoryFile } from '../plan/memory_file.js';
import { effectiveTokens, equalGrants, grantsFor, proportionalTokens, wasteBytes } from '../plan/split.js';
import { type ComparedJob, compareSplits, type SplitComparison } from '../plan/split_comparison.js';
import { BIN_WIDTH, STREAM_ALLOCATIONS, type SweepResult, sweepStreams, sweepTasks } from '../plan/stream_sweep.js';
import { drawSweep, MOST_CURVES } from '../plan/sweep_plot.js';
import { checkWritable, readJson, writeText } from './files.js';
import { bytesOption, integerListOption, integerOption, refuseFlags } from './options.js';
import { modelOptions, type ReadModelFlags, readModel, type StreamFlags, streamOptions } from './plan_model.js';
import { Progress } from './progress.js';
import { alignRows, percent } from './table.js';

interface MemoryFlags extends ReadModelFlags, StreamFlags {
  bytesPerToken?: number[];
  memory?: number;
  increment: number;
  sweep?: string[];
  boxes?: number[];
  workers?: number;
  svg?: string;
  json?: boolean;
}

/** What a shell says of a command that Ctrl-C ended. */
const INTERRUPTED = 130;

const FLAGS_OF_ONE_JOB = ['memory', 'increment'];
const FLAGS_OF_SWEEPS = [
  ...['dtype', 'draftConfig', 'draftDtype', 'multiHead', 'unit', 'padStreams'],
  ...['boxes', 'workers', 'svg'],
];

/** `kvss plan memory`: how memory is shared, and what a naive split of it would lose. */
export function planMemoryCommand(): Command {
  const command = new Command('memory')
    .description('fair shares of memory among jobs, in proportion within each, beside a naive split')
    .addArgument(new Argument('[file]', 'YAML file with nodes, rules and jobs; see docs/PLANNING.md'))
    .option('--bytes-per-token <list>', 'in place of a file: one job with these bytes on its shards', integerListOption)
    .option('--memory <size>', 'memory of all its shards together', bytesOption)
    .option('--increment <size>', 'its grants are multiples of this', bytesOption, 1)
    .option('--sweep <config...>', 'in place of a file: every WIO allocation of the models in these config.json files')
    .option('--boxes <list>', 'boxes of each model that is swept; 1 each if left out', integerListOption);
  return streamOptions(modelOptions(command))
    .option(
      '--workers <count>',
      'worker threads of a sweep; as many as there are cores if left out',
      integerOption(1, 256),
    )
    .option('--svg <file>', 'write a plot of a sweep')
    .option('--json', 'print one JSON object')
    .action(memory);
}

async function memory(file: string | undefined, flags: MemoryFlags, command: Command): Promise<void> {
  const { sweep: configs, bytesPerToken } = flags;
  if ([file, configs, bytesPerToken].filter((each) => each !== undefined).length !== 1) {
    throw localError('KVSS_BAD_INPUT', 'plan memory: say one of a file, --bytes-per-token and --sweep');
  }
  if (bytesPerToken === undefined) refuseFlags(command, FLAGS_OF_ONE_JOB, 'makes sense with --bytes-per-token only');
  if (configs !== undefined) return sweep(configs, flags);
  refuseFlags(command, FLAGS_OF_SWEEPS, 'makes sense with --sweep only');
  if (file === undefined) return oneJob(flags);
  const { empty, jobs } = parseMemoryFile(readConfigFile(file), file, (path) => readJson(resolve(dirname(file), path)));
  const comparison = compareSplits(empty, jobs);
  console.log(flags.json ? JSON.stringify(comparison) : clusterReport(comparison));
}

function oneJob({ bytesPerToken = [], memory: memoryBytes, increment: incrementBytes, json }: MemoryFlags): void {
  if (memoryBytes === undefined) throw localError('KVSS_BAD_INPUT', '--bytes-per-token: say also --memory');
  const rules = { incrementBytes, floorBytes: 0 };
  const tokens = proportionalTokens(memoryBytes, bytesPerToken, rules);
  const [equal, fair] = [
    equalGrants(memoryBytes, bytesPerToken.length, rules),
    grantsFor(tokens, bytesPerToken, rules),
  ];
  const equalTokens = effectiveTokens(equal, bytesPerToken);
  if (json) {
    const split = (grants: number[]) => ({ grants, wasteBytes: wasteBytes(grants, bytesPerToken) });
    console.log(
      JSON.stringify({
        memoryBytes,
        bytesPerToken,
        equal: { tokens: equalTokens, ...split(equal) },
        proportional: { tokens, ...split(fair) },
      }),
    );
    return;
  }
  const [equalWaste, fairWaste] = [equal, fair].map((grants) => wasteBytes(grants, bytesPerToken)) as [
    number[],
    number[],
  ];
  console.log(
    [
      alignRows([
        ['shard', 'bytes a token', 'equal', 'of it waste', 'in proportion', 'of it waste'],
        ...bytesPerToken.map((bytes, shard) => [
          String(shard),
          formatCount(bytes),
          ...[equal, equalWaste, fair, fairWaste].map((list) => formatBytes(list[shard] as number)),
        ]),
        ['tokens', '', formatCount(equalTokens), '', formatCount(tokens), ''],
      ]),
      lossLine(equalTokens, tokens),
    ].join('\n'),
  );
}

function clusterReport({ jobs, nodes, ...effective }: SplitComparison): string {
  const shardRows = ({ name, shards }: ComparedJob) =>
    shards.map((shard, index) => [
      `${name} ${index}`,
      shard.node,
      formatCount(shard.bytesPerToken),
      ...[shard.equalBytes, shard.equalWasteBytes, shard.fairBytes, shard.fairWasteBytes].map(formatBytes),
    ]);
  return [
    alignRows([
      ['job', 'boxes', 'tokens: equal shards', 'first grant', 'fair share', 'with what is free'],
      ...jobs.map(({ name, boxes, equalTokens, firstTokens, fairTokens, lentTokens }) => [
        name,
        ...[boxes, equalTokens, firstTokens, fairTokens, lentTokens].map(formatCount),
      ]),
    ]),
    '',
    alignRows([
      ['shard', 'node', 'bytes a token', 'equal', 'of it waste', 'fair', 'of it waste'],
      ...jobs.flatMap(shardRows),
    ]),
    '',
    alignRows([
      ['node', 'memory', 'free beside fair shares'],
      ...nodes.map(({ name, memoryBytes, fairFreeBytes }) => [
        name,
        formatBytes(memoryBytes),
        formatBytes(fairFreeBytes),
      ]),
    ]),
    '',
    `effective cache: ${formatBytes(effective.equalEffectiveBytes)} with equal shards, ${formatBytes(effective.fairEffectiveBytes)} of fair shares, ${formatBytes(effective.lentEffectiveBytes)} with what is free`,
    lossLine(effective.equalEffectiveBytes, effective.lentEffectiveBytes),
  ].join('\n');
}

function lossLine(equal: number, proportional: number): string {
  if (proportional === 0) return 'Nothing fits.';
  const loss = 1 - equal / proportional;
  return loss >= 0
    ? `Equal shards lose ${percent(loss)} of the effective cache.`
    : `Equal shards hold ${percent(-loss)} more: they go by shards and not by boxes.`;
}

async function sweep(configs: readonly string[], flags: MemoryFlags): Promise<void> {
  const { boxes = configs.map(() => 1), svg, workers } = flags;
  if (boxes.length !== configs.length) {
    throw localError('KVSS_BAD_INPUT', `--boxes: ${boxes.length} numbers for ${configs.length} models`);
  }
  if (svg !== undefined) {
    if (configs.length > MOST_CURVES)
      throw localError('KVSS_BAD_INPUT', `--svg: a plot has room for ${MOST_CURVES} models`);
    checkWritable(svg);
  }
  const cases = configs.map((config, index) => {
    const count = boxes[index] as number;
    return { name: `${basename(config, '.json')} on ${count}`, model: readModel(config, flags), boxes: count };
  });
  const { unit, padStreams = false } = flags;
  const results = await interruptible(
    (signal, onProgress) =>
      sweepStreams(cases, { unit, padStreams }, { ...(workers === undefined ? {} : { workers }), signal, onProgress }),
    sweepTasks(cases.length),
  );
  if (results === undefined) return;
  const shape = `every allocation of 1 to 16 WIO streams to the four domains of a box, but for their order: ${formatCount(STREAM_ALLOCATIONS.length)}; the least that a stream carries is a ${unit}`;
  if (svg !== undefined) writeText(svg, drawSweep(results, shape));
  console.log(flags.json ? JSON.stringify({ unit, padStreams, results }) : sweepReport(results, shape));
}

/** Runs work that Ctrl-C ends: then it says so, and answers undefined. */
async function interruptible<Result>(
  work: (signal: AbortSignal, onProgress: (done: number) => void) => Promise<Result>,
  tasks: number,
): Promise<Result | undefined> {
  const controller = new AbortController();
  const stop = () => controller.abort();
  let done = 0;
  const progress = new Progress(() => `${formatCount(done)} of ${formatCount(tasks)} parts`);
  process.on('SIGINT', stop);
  try {
    return await work(controller.signal, (now) => {
      done = now;
    });
  } catch (thrown) {
    if (!controller.signal.aborted) throw thrown;
    progress.stop();
    console.error('kvss: interrupted');
    process.exitCode = INTERRUPTED;
    return undefined;
  } finally {
    process.off('SIGINT', stop);
    progress.stop();
  }
}

function sweepReport(results: readonly SweepResult[], shape: string): string {
  const bins = [...new Set(results.flatMap((result) => result.bins.map(({ from }) => from)))].sort((a, b) => a - b);
  const cell = ({ bins: own }: SweepResult, from: number) => {
    const bin = own.find((each) => each.from === from);
    return bin
      ? `${(100 * bin.lossMean).toFixed(1)} (${(100 * bin.lossMin).toFixed(1)}..${(100 * bin.lossMax).toFixed(1)})`
      : '';
  };
  return [
    shape,
    '',
    alignRows([
      ['loss in %: mean (least..most)', 'allocations', ...results.map(({ name }) => name)],
      ...bins.map((from) => [
        `fullest / mean ${from.toFixed(1)}..${(from + BIN_WIDTH).toFixed(1)}`,
        formatCount(results[0]?.bins.find((bin) => bin.from === from)?.allocations ?? 0),
        ...results.map((result) => cell(result, from)),
      ]),
      ['all', formatCount(STREAM_ALLOCATIONS.length), ...results.map(({ lossMean }) => (100 * lossMean).toFixed(1))],
      ['lose at least 40 %', '', ...results.map(({ allocations, atNamedLoss }) => percent(atNamedLoss / allocations))],
    ]),
  ].join('\n');
}
