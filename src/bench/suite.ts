import { cpus, totalmem } from 'node:os';
import { VERSION } from '../common/version.js';
import type { Bench } from './context.js';
import { httpBench } from './http.js';
import { latencyBench } from './latency.js';
import { mixedBench } from './mixed.js';
import { idleBench, overheadBench, replayBench } from './overhead.js';
import { peersBench } from './peers.js';
import { prefixBench } from './prefix.js';
import { scaleBench } from './scale.js';
import { evictBench, refillBench } from './transfers.js';

/** All benches, in the order in which they run. */
export const SUITE: readonly Bench[] = [
  evictBench,
  refillBench,
  peersBench,
  mixedBench,
  latencyBench,
  prefixBench,
  scaleBench,
  overheadBench,
  idleBench,
  replayBench,
  httpBench,
];

/** What has to be known of the machine to read figures. */
export function machineFacts(): Record<string, string | number> {
  return {
    cores: cpus().length,
    cpu: cpus()[0]?.model ?? 'unknown',
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.versions.node,
    kvss: VERSION,
  };
}
