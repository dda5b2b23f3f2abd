import { Command, Option } from 'commander';
import { DOMAINS_PER_BOX } from '../common/box.js';
import { localError } from '../common/errors.js';
import { formatBitRate, formatByteRate, formatBytes, formatCount } from '../common/units.js';
import { type ShardRow, type ShardTable, UNITS, type Unit } from '../plan/allocation.js';
import {
  assistedTokensPerSecond,
  type BandwidthPlan,
  type Flow,
  GENERATIONS,
  type Generation,
  NICS_PER_BOX,
  type NicFlow,
  TARGET_SPEEDUP,
  type Throughput,
} from '../plan/bandwidth.js';
import { type Capacity, type ModelPlan, planModel } from '../plan/model_plan.js';
import { describeModel, type ModelDescription } from '../swdriver/model_config.js';
import { readJson } from './files.js';
import { bytesOption, integerListOption, integerOption, positiveOption, refuseFlags } from './options.js';
import { alignRows, percent } from './table.js';

/** Which model it is, and what its cache is made of. */
export interface ReadModelFlags {
  dtype?: string;
  draftConfig?: string;
  draftDtype?: string;
  multiHead?: boolean;
}

/** What a WIO stream carries. */
export interface StreamFlags {
  unit: Unit;
  padStreams?: boolean;
}

interface ModelFlags extends ReadModelFlags, StreamFlags {
  boxes: number;
  layersPerBox?: number[];
  streams?: number[];
  granule?: number;
  recomputeTokensPerSecond?: number;
  speedup: number;
  generation: Generation;
  nicsPerBox: string;
  nicGbps?: number;
  memory?: number;
  json?: boolean;
}

const COLUMN_TOKENS = 64;

/** Flags that do nothing as long as nobody says how fast tokens are computed. */
const FLAGS_OF_BANDWIDTH = ['speedup', 'generation', 'nicsPerBox', 'nicGbps'];

/** `kvss plan model`: how many bytes a token is on every shard, and what memory and bandwidth that takes. */
export function planModelCommand(): Command {
  return streamOptions(modelOptions(new Command('model')))
    .description('bytes of a token on every shard, the tokens that a memory holds, and the bandwidth that they take')
    .argument('<config>', 'config.json of a model, as Hugging Face has it')
    .option('--boxes <count>', 'boxes that its layers are spread over', integerOption(1), 1)
    .option(
      '--layers-per-box <list>',
      'layers on each box, e.g. 41,39; as even as they go if left out',
      integerListOption,
    )
    .option(
      '--streams <list>',
      'WIO streams of the four domains of a box, e.g. 14,14,13,13, or of all domains, box by box; 1 each if left out',
      integerListOption,
    )
    .option('--granule <size>', 'round the bytes of a token on a shard up to a multiple of this', bytesOption)
    .option('--recompute-tokens-per-second <rate>', 'tokens that a CS-3 computes anew, of all users', positiveOption)
    .addOption(speedupOption())
    .addOption(generationOption())
    .addOption(
      new Option('--nics-per-box <count>', 'NICs that the shards of a box share')
        .choices(NICS_PER_BOX.map(String))
        .default('4'),
    )
    .option('--nic-gbps <rate>', 'what a NIC carries each way, in Gbps', positiveOption)
    .option('--memory <size>', 'memory of all shards together, e.g. 1TiB', bytesOption)
    .option('--json', 'print one JSON object')
    .action(model);
}

/** Options that say which model it is. */
export function modelOptions(command: Command): Command {
  return command
    .option('--dtype <dtype>', 'dtype of the cache; that of the weights if left out')
    .option('--draft-config <file>', 'config.json of its draft model')
    .option('--draft-dtype <dtype>', "dtype of the draft's cache")
    .option('--multi-head', 'as if every attention head had keys and values of its own: what GQA saves');
}

/** Options that say what a WIO stream carries. */
export function streamOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--unit <unit>', 'the least that a stream carries whole; a number: it may be cut anywhere')
        .choices(UNITS)
        .default('head'),
    )
    .option('--pad-streams', 'all streams of a box carry as much as its fullest one');
}

export function speedupOption(): Option {
  return new Option('--speedup <factor>', 'how much faster than computed a cached token is to come back')
    .argParser(positiveOption)
    .default(TARGET_SPEEDUP);
}

export function generationOption(): Option {
  return new Option('--generation <name>', 'hardware; a CS-4 computes twice as fast')
    .choices(Object.keys(GENERATIONS))
    .default('cs-3');
}

/** The model in a config.json, as the options say. */
export function readModel(
  path: string,
  { dtype, draftConfig, draftDtype, multiHead }: ReadModelFlags,
): ModelDescription {
  if (draftConfig === undefined && draftDtype !== undefined) {
    throw localError('KVSS_BAD_INPUT', '--draft-dtype: makes sense with --draft-config only');
  }
  return describeModel(readJson(path), {
    ...(dtype === undefined ? {} : { dtype }),
    ...(draftConfig === undefined ? {} : { draft: readJson(draftConfig) }),
    ...(draftDtype === undefined ? {} : { draftDtype }),
    ...(multiHead === undefined ? {} : { multiHead }),
  });
}

function model(path: string, flags: ModelFlags, command: Command): void {
  const { recomputeTokensPerSecond, speedup, generation, memory, nicGbps } = flags;
  const { boxes, layersPerBox, streams, unit, padStreams, granule } = flags;
  if (recomputeTokensPerSecond === undefined) {
    refuseFlags(command, FLAGS_OF_BANDWIDTH, 'makes sense with --recompute-tokens-per-second only');
  }
  const throughput =
    recomputeTokensPerSecond === undefined ? undefined : { recomputeTokensPerSecond, speedup, generation };
  const plan = planModel(readModel(path, flags), {
    allocation: { boxes, layersPerBox, streams, unit, padStreams, granule },
    nicsPerBox: Number(flags.nicsPerBox),
    ...(memory === undefined ? {} : { memoryBytes: memory }),
    ...(throughput === undefined ? {} : { throughput }),
    ...(nicGbps === undefined ? {} : { nicBitsPerSecond: nicGbps * 1e9 }),
  });
  console.log(
    flags.json ? JSON.stringify({ ...plan, ...(throughput ? { throughput } : {}) }) : report(plan, flags, throughput),
  );
}

function report(plan: ModelPlan, flags: ModelFlags, throughput: Throughput | undefined): string {
  const { capacity, bandwidth } = plan;
  const runs = runsOfBoxes(plan.table);
  return [
    ...plan.model.groups.map(
      ({ name, dtype, layers, bytesPerTokenPerLayer, bytesPerToken, windowTokens }) =>
        `${name}: ${layers.length} layers x ${formatCount(bytesPerTokenPerLayer)} = ${formatCount(bytesPerToken)} bytes a token in ${dtype}` +
        (windowTokens === undefined ? '' : `, within ${formatCount(windowTokens)} tokens`),
    ),
    '',
    shardRows(plan, runs),
    ...(capacity ? ['', capacityRows(capacity, plan)] : []),
    ...(bandwidth && throughput ? ['', bandwidthRows(bandwidth, throughput, runs), '', limits(bandwidth, flags)] : []),
  ].join('\n');
}

/** Boxes one after the other that are alike are one for people: a model may be on dozens of them. */
interface BoxRun {
  /** `box 0`, or `box 0..7`. */
  readonly name: string;
  readonly first: number;
  readonly boxes: number;
}

function runsOfBoxes({ shards }: ShardTable): BoxRun[] {
  const alike: { first: number; boxes: number; key: string }[] = [];
  for (let box = 0; box < shards.length / DOMAINS_PER_BOX; box += 1) {
    const own = shards.slice(box * DOMAINS_PER_BOX, (box + 1) * DOMAINS_PER_BOX);
    const key = JSON.stringify(own.map((row) => [row.streams, row.bytesPerToken, row.paddingBytesPerToken]));
    const last = alike.at(-1);
    if (last?.key === key) last.boxes += 1;
    else alike.push({ first: box, boxes: 1, key });
  }
  return alike.map(({ first, boxes }) => {
    return { name: boxes === 1 ? `box ${first}` : `box ${first}..${first + boxes - 1}`, first, boxes };
  });
}

function shardRows({ table, bandwidth }: ModelPlan, runs: readonly BoxRun[]): string {
  const rates = (flow: Flow | undefined) =>
    flow ? [formatByteRate(flow.evictBytesPerSecond), formatByteRate(flow.refillBytesPerSecond)] : [];
  const { shards } = table;
  return alignRows([
    ['shard', 'streams', 'layers', 'bytes a token', 'of it padding', ...(bandwidth ? ['evict', 'refill'] : [])],
    ...runs.flatMap(({ name, first, boxes }) =>
      shards
        .filter(({ box }) => box === first)
        .map((row) => [
          `${name} domain ${row.domain}`,
          String(row.streams),
          `${layersOf(row)}${boxes === 1 ? '' : ' ...'}`,
          formatCount(row.bytesPerToken),
          formatCount(row.paddingBytesPerToken),
          ...rates(bandwidth?.shards[first * DOMAINS_PER_BOX + row.domain]),
        ]),
    ),
    ['mean', '', '', formatCount(table.meanBytesPerToken), formatCount(table.paddingBytesPerToken / shards.length)],
    ['all', '', '', formatCount(table.bytesPerToken), formatCount(table.paddingBytesPerToken)],
  ]);
}

/** The layers of which something lies on a shard, of all groups but drafts, whose numbers are their own. */
function layersOf({ parts }: ShardRow): string {
  const runs = parts
    .filter(({ group }) => !group.startsWith('draft'))
    .flatMap(({ layers }) => (layers ? [layers] : []));
  if (runs.length === 0) return 'none';
  const [first, last] = [Math.min(...runs.map(([from]) => from)), Math.max(...runs.map(([, to]) => to))];
  return first === last ? String(first) : `${first}-${last}`;
}

function capacityRows(capacity: Capacity, { fullestShard: { box, domain, bytesPerToken } }: ModelPlan): string {
  const { memoryBytes, beyondWindowsTokens, equalLoss } = capacity;
  const tokens = (count: number) => [
    `${formatCount(count)} tokens`,
    `${formatCount(Math.floor(count / COLUMN_TOKENS))} columns`,
  ];
  return [
    `memory: ${formatBytes(memoryBytes)} of all shards`,
    alignRows([
      ['shards in proportion to their bytes a token', ...tokens(capacity.proportionalTokens)],
      ['as much for every shard', ...tokens(capacity.equalTokens)],
      ...(beyondWindowsTokens === undefined
        ? []
        : [['in proportion, where all windows have passed', ...tokens(beyondWindowsTokens)]]),
    ]),
    equalLoss === 0
      ? 'All shards are alike: nothing is lost where each has as much.'
      : `Equal shards hold ${percent(equalLoss)} less: box ${box} domain ${domain} is full first, with ${formatCount(bytesPerToken)} bytes a token.`,
  ].join('\n');
}

function bandwidthRows(
  { boxes, nics, meanShardBytesPerSecond }: BandwidthPlan,
  throughput: Throughput,
  runs: readonly BoxRun[],
): string {
  const { recomputeTokensPerSecond, speedup, generation } = throughput;
  const rates = (bytesPerSecond: number) => [formatByteRate(bytesPerSecond), formatBitRate(bytesPerSecond)];
  const row = (name: string, { evictBytesPerSecond, refillBytesPerSecond }: Flow) => [
    name,
    ...rates(evictBytesPerSecond),
    ...rates(refillBytesPerSecond),
  ];
  const factors = `${formatCount(recomputeTokensPerSecond)} tokens/s x ${GENERATIONS[generation]} (${generation}) x ${speedup}`;
  return [
    `bandwidth: refill ${factors} = ${formatCount(assistedTokensPerSecond(throughput))} tokens/s, evict without the ${speedup}`,
    alignRows([
      ['', 'evict', '', 'refill', ''],
      ...runs.map(({ name, first }) => row(name, boxes[first] as Flow)),
      ...runs.flatMap(({ name, first }) =>
        nics.filter(({ box }) => box === first).map((flow) => row(`${name} ${nicName(flow)}`, flow)),
      ),
      ['mean shard (equation 0.1)', '', '', ...rates(meanShardBytesPerSecond)],
    ]),
  ].join('\n');
}

function nicName({ nic, domains }: NicFlow): string {
  return `NIC ${nic} (domain${domains.length === 1 ? '' : 's'} ${domains.join(', ')})`;
}

function limits({ fullestNic, attainableSpeedup }: BandwidthPlan, { nicGbps, speedup }: ModelFlags): string {
  const fullest = `box ${fullestNic.box} ${nicName(fullestNic)} carries most: ${formatBitRate(fullestNic.refillBytesPerSecond)}`;
  if (nicGbps === undefined || attainableSpeedup === undefined) return `Limit: ${fullest}.`;
  const attainable = `cached tokens come back ${attainableSpeedup.toFixed(1)} times as fast as computed at most`;
  const enough = attainableSpeedup >= speedup ? 'which is enough' : `and ${speedup} are wanted`;
  return `Limit: ${fullest} of ${formatCount(nicGbps)} Gbps. So ${attainable}, ${enough}.`;
}
