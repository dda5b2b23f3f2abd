import { Piscina } from 'piscina';
import { mean } from '../../common/statistics.js';
import { type ExperimentInput, type ExperimentResult, type RowResult, runExperiment } from './experiment.js';
import { FIGURES, type Figure } from './scenario.js';

/**
 * Runs experiments on so many worker threads, and answers their results in the order of the inputs: the same whatever the
 * number of workers. One experiment, or one worker, needs no other thread. `onResult` is called after each.
 */
export async function runExperiments(
  inputs: readonly ExperimentInput[],
  workers: number,
  onResult: () => void = () => {},
): Promise<ExperimentResult[]> {
  const threads = Math.min(workers, inputs.length);
  if (threads <= 1) {
    const results: ExperimentResult[] = [];
    for (const input of inputs) {
      results.push(runExperiment(input));
      onResult();
      // So that whoever shows the progress has a turn.
      await new Promise((resolve) => setImmediate(resolve));
    }
    return results;
  }
  const pool = new Piscina<ExperimentInput, ExperimentResult>({
    filename: new URL('./sweep_worker.js', import.meta.url).href,
    minThreads: threads,
    maxThreads: threads,
  });
  try {
    return await Promise.all(
      inputs.map(async (input) => {
        const result = await pool.run(input);
        onResult();
        return result;
      }),
    );
  } finally {
    await pool.destroy();
  }
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
