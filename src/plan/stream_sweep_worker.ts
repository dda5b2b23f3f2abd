import { type BinSums, type SweepTask, sweepChunk } from './stream_sweep.js';

/** What a worker thread of a sweep does with each task. */
export default function work(task: SweepTask): BinSums {
  return sweepChunk(task);
}
