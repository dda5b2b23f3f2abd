import type { PlacedJob } from '../snapshot.js';
import type { Calibration, ModelName } from './calibration.js';
import { figuresOf, type Series, seriesOf, speedOf } from './figures.js';
import type { Figure, FigureRow, Scenario } from './scenario.js';
import { type LoadedJob, type ServedPrompt, simulate } from './simulation.js';

/** A prompt that falls behind by more than this share of its speed has lost. The source documents speak of a quarter. */
export const LOSS = 0.25;
/** Bins of the speed over time: a plot has room for about so many. */
const BINS = 200;

/** One run of a scenario. All of it is plain data, so that it can go to a worker. */
export interface ExperimentInput {
  readonly scenario: Scenario;
  /** Where its jobs are. */
  readonly placed: readonly PlacedJob[];
  readonly calibration: Calibration;
  readonly seed: number;
}

/** What a run gives for one row of figures. */
export interface RowResult {
  readonly prompts: number;
  readonly figures: Readonly<Record<Figure, number>>;
  /** Share of the prompts that are slower by more than LOSS than the same prompt of the job alone; not there for jobs alone, and without prompts. */
  readonly lostShare: number | undefined;
}

/** The speed over time of all jobs of a model that there are figures of. */
export interface ModelSeries {
  readonly model: ModelName;
  readonly alone: boolean;
  readonly points: Series;
}

export interface ExperimentResult {
  /** In the order of the scenario. */
  readonly rows: readonly RowResult[];
  /** Each model alone first, then with the others. */
  readonly series: readonly ModelSeries[];
}

/** Runs a scenario, and each job that it has figures of alone, with the same prompts. */
export function runExperiment({ scenario, placed, calibration, seed }: ExperimentInput): ExperimentResult {
  const { cluster, durationS, loads, rows } = scenario;
  const jobs = placed.map((each): LoadedJob => ({ placed: each, load: ownLoad(loads, each.job.name) }));
  const served = (some: readonly LoadedJob[]) =>
    simulate({ cluster, jobs: some, calibration, seed, durationS }).map(({ job, prompts }) => [job, prompts] as const);
  const together = new Map(served(jobs));
  const observed = new Set(rows.flatMap((row) => row.jobs));
  const alone = new Map(jobs.filter(({ placed: { job } }) => observed.has(job.name)).flatMap((job) => served([job])));
  const [speed, binS] = [rows[0]?.speed ?? 'generation', Math.max(1, durationS / BINS)];
  const models = new Set([...observed].map((job) => ownLoad(loads, job).model));
  const series = [...models].flatMap((model) =>
    [alone, together].map((served, index) => {
      const prompts = [...observed].flatMap((job) =>
        ownLoad(loads, job).model === model ? (served.get(job) ?? []) : [],
      );
      return { model, alone: index === 0, points: seriesOf(prompts, speed, durationS, binS) };
    }),
  );
  return { rows: rows.map((row) => resultOf(row, together, alone)), series };
}

type PromptsByJob = ReadonlyMap<string, readonly ServedPrompt[]>;

function resultOf(
  { jobs, speed, alone, during }: FigureRow,
  together: PromptsByJob,
  byThemselves: PromptsByJob,
): RowResult {
  const others = during?.map((job) => spanOf(together.get(job) ?? []));
  const speeds: number[] = [];
  let lost = 0;
  for (const job of jobs) {
    const usual = new Map(byThemselves.get(job)?.map((prompt) => [prompt.number, speedOf(prompt, speed)]));
    for (const prompt of (alone ? byThemselves : together).get(job) ?? []) {
      if (others && !others.some(([from, to]) => prompt.startMs < to && prompt.endMs > from)) continue;
      const own = speedOf(prompt, speed);
      speeds.push(own);
      if (own < (1 - LOSS) * (usual.get(prompt.number) ?? 0)) lost += 1;
    }
  }
  return {
    prompts: speeds.length,
    figures: figuresOf(speeds),
    lostShare: alone || speeds.length === 0 ? undefined : lost / speeds.length,
  };
}

/** From the begin of the first prompt to the end of the last. */
function spanOf(prompts: readonly ServedPrompt[]): readonly [fromMs: number, toMs: number] {
  let [from, to] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const { startMs, endMs } of prompts) {
    from = Math.min(from, startMs);
    to = Math.max(to, endMs);
  }
  return [from, to];
}

function ownLoad(loads: Scenario['loads'], job: string) {
  return loads[job] as NonNullable<(typeof loads)[string]>;
}
