import { runExperiment } from './experiment.js';

/** What a worker thread of a sweep does. */
export default runExperiment;
