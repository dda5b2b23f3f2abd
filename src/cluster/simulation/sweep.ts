import { mean } from '../../common/statistics.js';
import { runInWorkers, type WorkerOptions } from '../../common/worker_tasks.js';
import { type ExperimentInput, type ExperimentResult, type RowResult, runExperiment } from './experiment.js';
import { FIGURES, type Figure } from './scenario.js';

const WORKER = new URL('./sweep_worker.js', import.meta.url);

/**
 * Runs experiments in worker threads, and answers their results in the order of the inputs: the same whatever the number of
 * workers. One experiment alone runs in this thread. Rejects as runInWorkers does.
 */
export async function runExperiments(
  inputs: readonly ExperimentInput[],
  running: WorkerOptions = {},
): Promise<ExperimentResult[]> {
  const [only, ...more] = inputs;
  if (only && more.length === 0) return [runExperiment(only)];
  return runInWorkers<ExperimentInput, ExperimentResult>(WORKER, inputs, running);
}

/** A figure over several seeds. */
export interface Spread {
  readonly mean: number;
  readonly min: number;
  readonly max: number;
}

/** A row over several seeds. */
export interface RowSummary {
  /** Mean number of prompts of a seed. */
  readonly prompts: number;
  readonly figures: Readonly<Record<Figure, Spread>>;
  readonly lostShare: Spread | undefined;
}

/** The rows of one scenario over several seeds: at least one. */
export function summarise(results: readonly ExperimentResult[]): RowSummary[] {
  const [first] = results;
  return (first?.rows ?? []).map((_, index) => {
    const rows = results.map((result) => result.rows[index] as RowResult);
    const lost = rows.flatMap(({ lostShare }) => (lostShare === undefined ? [] : [lostShare]));
    return {
      prompts: mean(rows.map(({ prompts }) => prompts)),
      figures: Object.fromEntries(
        FIGURES.map((figure) => [figure, spreadOf(rows.map(({ figures }) => figures[figure]))]),
      ) as Record<Figure, Spread>,
      lostShare: lost.length === 0 ? undefined : spreadOf(lost),
    };
  });
}

function spreadOf(values: readonly number[]): Spread {
  return { mean: mean(values), min: Math.min(...values), max: Math.max(...values) };
}
