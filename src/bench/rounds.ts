import { median } from '../common/statistics.js';
import type { BenchRow } from './row.js';

/** One round of a subject or a baseline. */
export interface Round {
  seconds: number;
  bytes: number;
  ops: number;
}

export interface RoundPlan {
  /** Rounds that count. */
  rounds: number;
  /** Rounds before them that do not. */
  warmup: number;
}

/** Runs one round: a bare loop of native code answers at once, everything else later. */
export type Runner = () => Round | Promise<Round>;

type Comparison = Required<
  Pick<BenchRow, 'ops' | 'seconds' | 'gbps' | 'opsPerSec' | 'baselineGbps' | 'ratio' | 'ratioRange' | 'rounds'>
>;

/**
 * Runs a subject and its baseline in turns, so that what else happens on the machine hits both, and answers with the
 * figures of a row. The ratio is the median of the ratios of each round, not the ratio of two medians.
 */
export async function sideBySide(plan: RoundPlan, subject: Runner, baseline: Runner): Promise<Comparison> {
  const [subjects, baselines] = (await inTurns(plan, [subject, baseline])) as [Round[], Round[]];
  return compared(subjects, baselines);
}

/** Runs any number of them in turns. Answers the rounds of each. */
export async function inTurns(plan: RoundPlan, runners: readonly Runner[]): Promise<Round[][]> {
  const results = runners.map((): Round[] => []);
  for (let round = -plan.warmup; round < plan.rounds; round += 1) {
    for (let turn = 0; turn < runners.length; turn += 1) {
      // Each is first as often as the others are.
      const which = (turn + round + plan.warmup * runners.length) % runners.length;
      const result = await (runners[which] as Runner)();
      if (round >= 0) (results[which] as Round[]).push(result);
    }
  }
  return results;
}

/** A subject beside a baseline that ran in the same rounds. */
export function compared(subjects: readonly Round[], baselines: readonly Round[]): Comparison {
  const rate = ({ bytes, seconds }: Round) => bytes / seconds / 1e9;
  // Where nothing has bytes, operations are compared.
  const speed = (round: Round) => (round.bytes > 0 ? rate(round) : round.ops / round.seconds);
  const ratios = subjects.map((round, index) => speed(round) / speed(baselines[index] as Round));
  return {
    ...totals(subjects),
    baselineGbps: median(baselines.map(rate)),
    ratio: median(ratios),
    ratioRange: [Math.min(...ratios), Math.max(...ratios)],
  };
}

/** Runs a subject that stands for itself. */
export async function alone(
  plan: RoundPlan,
  subject: Runner,
): Promise<Required<Pick<BenchRow, 'ops' | 'seconds' | 'gbps' | 'opsPerSec' | 'rounds'>>> {
  const rounds: Round[] = [];
  for (let round = -plan.warmup; round < plan.rounds; round += 1) {
    const result = await subject();
    if (round >= 0) rounds.push(result);
  }
  return totals(rounds);
}

/** Figures of a row that stands for itself. */
export function totals(rounds: readonly Round[]) {
  return {
    ops: rounds.reduce((sum, { ops }) => sum + ops, 0),
    seconds: rounds.reduce((sum, { seconds }) => sum + seconds, 0),
    gbps: median(rounds.map(({ bytes, seconds }) => bytes / seconds / 1e9)),
    opsPerSec: median(rounds.map(({ ops, seconds }) => ops / seconds)),
    rounds: rounds.length,
  };
}
