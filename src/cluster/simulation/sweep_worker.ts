import { type ExperimentInput, type ExperimentResult, runExperiment } from './experiment.js';

/** What a worker thread of a sweep does. */
export default function work(input: ExperimentInput): ExperimentResult {
  return runExperiment(input);
}
