import type { Cluster } from '../cluster.js';
import type { PlacedJob } from '../snapshot.js';
import type { Calibration } from './calibration.js';
import { EventClock } from './event_clock.js';
import { JobRun } from './job_run.js';
import type { Load } from './load.js';
import { type FlowClass, maxMinRates } from './max_min.js';
import { Network } from './network.js';
import { shareOfSpinner, type Threads } from './processor.js';

/** A job that has its place, and what it does there. */
export interface LoadedJob {
  readonly placed: PlacedJob;
  readonly load: Load;
}

/** One prompt that was served to its end. Times in milliseconds from the start of the simulation. */
export interface ServedPrompt {
  /** From 0 on, in the order in which the job began them. */
  readonly number: number;
  readonly startMs: number;
  /** When decoding began. */
  readonly decodeMs: number;
  readonly endMs: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
}

/** What a job has done. */
export interface JobOutcome {
  readonly job: string;
  /** In the order in which they were finished. */
  readonly prompts: readonly ServedPrompt[];
}

/** What is simulated: all of it is given, so that equal inputs have equal outcomes. */
export interface SimulationInput {
  readonly cluster: Cluster;
  readonly jobs: readonly LoadedJob[];
  readonly calibration: Calibration;
  readonly seed: number;
  /** How long, in seconds. */
  readonly durationS: number;
}

/**
 * Simulates the jobs of a cluster, from event to event: a job comes or goes, a prompt is refilled, prefilled, decoded or
 * evicted, a schema is compiled. Between two events everything proceeds at constant rates, and after each event all rates are
 * worked out anew: first what share of a core each thread gets on its node, then how fast the wafers step with that, then how
 * the flows share the network. Takes time in proportion to the events, none of the time that it simulates.
 */
export function simulate({ cluster, jobs, calibration, seed, durationS }: SimulationInput): JobOutcome[] {
  const clock = new EventClock();
  const network = new Network(cluster);
  let unsettled = false;
  // All events of a moment count before rates are worked out.
  const changed = () => {
    if (unsettled) return;
    unsettled = true;
    clock.schedule(0, () => {
      unsettled = false;
      settle();
    });
  };
  const runs = jobs.map((job) => new JobRun(job, { clock, network, calibration, seed, durationS, changed }));
  const inUse = new Set(jobs.flatMap(({ placed }) => placed.pods.map(({ node }) => node)));
  const nodes = cluster.nodes.filter(({ name }) => inUse.has(name));
  const shares = new Map<string, number>();
  let threadState = '';
  const settle = () => {
    const state = runs.map((run) => run.threadState).join();
    if (state !== threadState) {
      threadState = state;
      for (const { name, cores } of nodes) {
        const threads: Threads[] = runs.flatMap((run) => run.threadsOn(name));
        shares.set(name, shareOfSpinner(cores / 1000, threads));
      }
    }
    const capacities = [...network.capacities];
    for (const run of runs) run.setShares(shares, capacities);
    const paths = runs.flatMap((run) => run.paths.filter(({ service }) => service.count > 0));
    if (paths.length === 0) return;
    const rates = maxMinRates(
      capacities,
      paths.map(({ links, service }): FlowClass => ({ links, count: service.count })),
    );
    // From bytes a second to bytes a millisecond.
    for (const [index, { service }] of paths.entries()) service.setRate((rates[index] as number) / 1000);
  };
  clock.run(durationS * 1000);
  return runs.map(({ name, served }) => ({ job: name, prompts: served }));
}
