import { Command, InvalidArgumentError, Option } from 'commander';
import { crossingsOf, describeCrossing } from '../cluster/crossings.js';
import { CALIBRATION, withParameters } from '../cluster/simulation/calibration.js';
import { drawExperiments } from '../cluster/simulation/draw.js';
import { type ExperimentInput, type ExperimentResult, LOSS } from '../cluster/simulation/experiment.js';
import { placeScenario } from '../cluster/simulation/place.js';
import { FIGURES, type FigureRow, readScenario, type Scenario } from '../cluster/simulation/scenario.js';
import { type RowSummary, runExperiments, type Spread, summarise } from '../cluster/simulation/sweep.js';
import { localError } from '../common/errors.js';
import { formatCount } from '../common/units.js';
import { checkWritable, writeText } from './files.js';
import { integerOption } from './options.js';
import { Progress } from './progress.js';
import { alignRows } from './table.js';

const MAX_SEEDS = 10_000;
const MAX_RUNS = 100_000;

type Settings = ReadonlyMap<string, readonly number[]>;

interface SimulateFlags {
  seed: number;
  seeds: number;
  exclusion?: 'on' | 'off';
  set?: Settings;
  workers?: number;
  json?: boolean;
  svg?: string;
}

export function planSimulateCommand(): Command {
  return new Command('simulate')
    .description('simulate jobs that share a cluster: tokens a second of each, alone and beside the others')
    .argument('<scenario...>', 'YAML files of scenarios; see docs/EXPERIMENTS.md')
    .option('--seed <number>', 'of what comes by chance', integerOption(0, 2 ** 31), 1)
    .option('--seeds <count>', 'run with so many seeds, from --seed on', integerOption(1, MAX_SEEDS), 1)
    .addOption(
      new Option(
        '--exclusion <setting>',
        'have all jobs placed anew, with SwDrivers kept off each other or not, whatever the scenario says',
      ).choices(['on', 'off']),
    )
    .addOption(
      new Option(
        '--set <parameter=values>',
        'other values for a parameter of the calibration, such as grammar.maskMs=1,2,4: each in turn; repeat it',
      ).argParser(settingOption),
    )
    .option(
      '--workers <count>',
      'worker threads that runs are spread over; as many as there are cores if left out',
      integerOption(1, 256),
    )
    .option('--svg <file>', 'draw the speed over time, of the first seed')
    .option('--json', 'print one JSON object')
    .action(simulateScenarios);
}

/** A scenario with one set of parameters. */
interface Case {
  readonly scenario: Scenario;
  readonly placement: string;
  readonly parameters: ReadonlyMap<string, number>;
  readonly inputs: readonly ExperimentInput[];
}

async function simulateScenarios(paths: string[], flags: SimulateFlags): Promise<void> {
  const combinations = [...(flags.set ?? new Map()).values()].reduce((product, values) => product * values.length, 1);
  const runs = paths.length * combinations * flags.seeds;
  if (runs > MAX_RUNS)
    throw localError('KVSS_BAD_INPUT', `${formatCount(runs)} runs; ${formatCount(MAX_RUNS)} at most`);
  const cases = paths.flatMap((path) => casesOf(readScenario(path), flags));
  const inputs = cases.flatMap((each) => each.inputs);
  if (flags.svg !== undefined) checkWritable(flags.svg);
  let done = 0;
  const progress = new Progress(() => `${formatCount(done)} of ${formatCount(inputs.length)} runs`);
  let results: ExperimentResult[];
  try {
    const onProgress = (now: number) => {
      done = now;
    };
    results = await runExperiments(inputs, {
      onProgress,
      ...(flags.workers === undefined ? {} : { workers: flags.workers }),
    });
  } finally {
    progress.stop();
  }
  const ofCases = cases.map((_, index) => results.slice(index * flags.seeds, (index + 1) * flags.seeds));
  if (flags.svg !== undefined) {
    const drawn = cases.map((each, index) => ({ ...each, series: ofCases[index]?.[0]?.series ?? [] }));
    writeText(flags.svg, drawExperiments(drawn.map((each) => ({ ...each, placement: placementOf(each) }))));
  }
  const summaries = ofCases.map(summarise);
  if (flags.json)
    console.log(JSON.stringify({ cases: cases.map((each, index) => jsonOf(each, summaries[index] ?? [], flags)) }));
  else console.log(cases.map((each, index) => tableOf(each, summaries[index] ?? [], flags)).join('\n\n'));
}

function casesOf(scenario: Scenario, { seed, seeds, exclusion, set }: SimulateFlags): Case[] {
  const { placed, how } = placeScenario(scenario, exclusion === undefined ? undefined : exclusion === 'on');
  for (const crossing of placed.flatMap(({ pods }) => crossingsOf(scenario.cluster, pods))) {
    console.error(`kvss: warning: ${describeCrossing(crossing)}`);
  }
  return combinationsOf(set ?? new Map()).map((parameters) => {
    const calibration = withParameters(CALIBRATION, parameters);
    const inputs = Array.from({ length: seeds }, (_, index) => ({ scenario, placed, calibration, seed: seed + index }));
    return { scenario, placement: how, parameters, inputs };
  });
}

/** Each value of each parameter with each of the others. */
function combinationsOf(settings: Settings): ReadonlyMap<string, number>[] {
  return [...settings].reduce<Map<string, number>[]>(
    (before, [name, values]) => before.flatMap((each) => values.map((value) => new Map([...each, [name, value]]))),
    [new Map()],
  );
}

function settingOption(text: string, before: Settings = new Map()): Settings {
  const [, name = '', list = ''] = /^([^=]+)=([^=]+)$/.exec(text) ?? [];
  const values = list.split(',').map(Number);
  if (name === '' || list.split(',').includes('') || values.some((value) => !Number.isFinite(value) || value < 0)) {
    throw new InvalidArgumentError(`'${text}' is not PARAMETER=NUMBER,... with numbers from 0 on.`);
  }
  return new Map([...before, [name, values]]);
}

function placementOf({ placement, parameters }: Case): string {
  return [placement, ...[...parameters].map(([name, value]) => `${name} ${value}`)].join(', ');
}

/** What a row is about, for people. */
function nameOf({ jobs, speed, alone, during }: FigureRow): string {
  const when = alone ? ' alone' : during ? ` during ${during.join(', ')}` : '';
  return `${jobs.join(', ')}${when}, ${speed === 'generation' ? 'generated' : 'all'} tokens/s`;
}

function tableOf(each: Case, rows: readonly RowSummary[], { seed, seeds }: SimulateFlags): string {
  const { scenario } = each;
  const which = seeds === 1 ? `seed ${seed}` : `means of seeds ${seed} to ${seed + seeds - 1}`;
  const body = rows.flatMap(({ prompts, figures, lostShare }, index) => {
    const row = scenario.rows[index] as FigureRow;
    const simulated = [
      nameOf(row),
      formatCount(prompts),
      ...FIGURES.map((figure) => formatFigure(figures[figure].mean)),
      lostShare === undefined ? '' : `${(100 * lostShare.mean).toFixed(1)} %`,
    ];
    const ranges = ['  range over the seeds', '', ...FIGURES.map((figure) => formatRange(figures[figure])), ''];
    const { documents } = row;
    const published = documents && [
      row.fitted ? '  source documents, fitted to' : '  source documents',
      '',
      ...FIGURES.map((figure) => (documents[figure] === undefined ? '' : formatFigure(documents[figure]))),
      '',
    ];
    return [simulated, ...(seeds === 1 ? [] : [ranges]), ...(published ? [published] : [])];
  });
  const head = ['', 'prompts', ...FIGURES, `over ${100 * LOSS} % slower`];
  return `${scenario.title}\n${scenario.source}: ${placementOf(each)}, ${which}\n${alignRows([head, ...body])}`;
}

function formatFigure(value: number): string {
  return Number.isNaN(value) ? '-' : formatCount(value);
}

function formatRange({ min, max }: Spread): string {
  return `${formatFigure(min)}..${formatFigure(max)}`;
}

function jsonOf(
  { scenario, placement, parameters }: Case,
  rows: readonly RowSummary[],
  { seed, seeds }: SimulateFlags,
) {
  return {
    scenario: scenario.source,
    title: scenario.title,
    placement,
    parameters: Object.fromEntries(parameters),
    seed,
    seeds,
    rows: rows.map((row, index) => ({ ...(scenario.rows[index] as FigureRow), ...row })),
  };
}
