import { DOMAINS_PER_BOX } from '../common/box.js';
import { runInWorkers, type WorkerOptions } from '../common/worker_tasks.js';
import { MAX_WIO_STREAMS } from '../proto/generated.js';
import type { ModelDescription } from '../swdriver/model_config.js';
import { type AllocationInput, type BoxPart, boxParts, domainParts, parseAllocation, type Unit } from './allocation.js';
import { equalSplitLoss } from './split.js';

/** The loss that the source documents name. */
export const NAMED_LOSS = 0.4;

/** A model on so many boxes. */
export interface SweepCase {
  readonly name: string;
  readonly model: ModelDescription;
  readonly boxes: number;
}

export interface SweepOptions {
  readonly unit: Unit;
  readonly padStreams: boolean;
}

/** What the equal split loses for the allocations of one imbalance, which is in `[from, from + BIN_WIDTH)`. */
export interface SweepBin {
  /** Least WIO streams of the fullest domain over those of the mean domain: 1 where all are alike. */
  readonly from: number;
  readonly allocations: number;
  /** How many of them lose NAMED_LOSS or more. */
  readonly atNamedLoss: number;
  /** Losses are 0..1. */
  readonly lossMin: number;
  readonly lossMean: number;
  readonly lossMax: number;
}

export interface SweepResult {
  readonly name: string;
  readonly boxes: number;
  readonly bytesPerToken: number;
  readonly allocations: number;
  readonly atNamedLoss: number;
  /** Of all allocations. */
  readonly lossMean: number;
  /** Rising; bins without an allocation are left out. */
  readonly bins: readonly SweepBin[];
}

/** Allocations `from` to `to`, without it, of one case. */
export interface SweepTask extends SweepOptions {
  readonly of: SweepCase;
  readonly from: number;
  readonly to: number;
}

/** Sums of the allocations of a task, by bin. */
export type BinSums = readonly {
  bin: number;
  count: number;
  atNamedLoss: number;
  sum: number;
  min: number;
  max: number;
}[];

export const BIN_WIDTH = 0.1;
const CHUNK = 250;
const WORKER = new URL('./stream_sweep_worker.js', import.meta.url);

/** Every way to give the four domains of a box 1 to 16 WIO streams each, but for the order of the domains, which falls. */
export const STREAM_ALLOCATIONS: readonly (readonly number[])[] = fallingLists(DOMAINS_PER_BOX, MAX_WIO_STREAMS);

function fallingLists(length: number, most: number): number[][] {
  if (length === 0) return [[]];
  const firsts = Array.from({ length: most }, (_, index) => most - index);
  return firsts.flatMap((first) => fallingLists(length - 1, first).map((rest) => [first, ...rest]));
}

/**
 * What the equal split of memory over the shards of a job loses, for every WIO allocation of its boxes, which are alike. Runs in worker
 * threads; the result is the same whatever their number. Throws KVSS_BAD_INPUT as shardTable does, and rejects with an
 * AbortError when the signal says so.
 */
export async function sweepStreams(
  cases: readonly SweepCase[],
  options: SweepOptions,
  running: WorkerOptions = {},
): Promise<SweepResult[]> {
  // In this thread, so that bad input is refused before workers start.
  for (const { model, boxes } of cases) boxParts(model, parseAllocation({ boxes }));
  const tasksOf = (of: SweepCase) => chunks().map(([from, to]): SweepTask => ({ ...options, of, from, to }));
  const sums = await runInWorkers<SweepTask, BinSums>(WORKER, cases.flatMap(tasksOf), running);
  const perCase = chunks().length;
  return cases.map((of, index) => resultOf(of, sums.slice(index * perCase, (index + 1) * perCase)));
}

/** How many tasks a sweep over so many cases is. */
export const sweepTasks = (cases: number) => cases * chunks().length;

function chunks(): [from: number, to: number][] {
  const count = STREAM_ALLOCATIONS.length;
  return Array.from({ length: Math.ceil(count / CHUNK) }, (_, index) => [
    index * CHUNK,
    Math.min(count, (index + 1) * CHUNK),
  ]);
}

/** One task of a sweep: what a worker does. */
export function sweepChunk({ of: { model, boxes }, from, to, ...options }: SweepTask): BinSums {
  const allocation = parseAllocation({ boxes, ...options } satisfies AllocationInput);
  const kinds = boxKinds(boxParts(model, allocation));
  const bins = new Map<
    number,
    { bin: number; count: number; atNamedLoss: number; sum: number; min: number; max: number }
  >();
  for (const streams of STREAM_ALLOCATIONS.slice(from, to)) {
    const mean = streams.reduce((sum, each) => sum + each, 0) / streams.length;
    // The first domain has most. A little more, so that what is meant to be on the edge is not below it.
    const bin = Math.floor(((streams[0] as number) / mean - 1) / BIN_WIDTH + 1e-9);
    const loss = equalSplitLoss(
      kinds.flatMap(({ parts, count }) => repeated(bytesOfDomains(parts, streams, allocation), count)),
    );
    const sums = bins.get(bin) ?? { bin, count: 0, atNamedLoss: 0, sum: 0, min: 1, max: 0 };
    sums.count += 1;
    sums.atNamedLoss += Number(loss >= NAMED_LOSS - 1e-9);
    sums.sum += loss;
    sums.min = Math.min(sums.min, loss);
    sums.max = Math.max(sums.max, loss);
    bins.set(bin, sums);
  }
  return [...bins.values()];
}

/** Boxes that hold equally many layers of each group are alike. */
function boxKinds(boxes: readonly (readonly BoxPart[])[]): { parts: readonly BoxPart[]; count: number }[] {
  const kinds = new Map<string, { parts: readonly BoxPart[]; count: number }>();
  for (const parts of boxes) {
    const key = parts.map(({ layers }) => layers.length).join();
    const kind = kinds.get(key);
    if (kind) kind.count += 1;
    else kinds.set(key, { parts, count: 1 });
  }
  return [...kinds.values()];
}

function bytesOfDomains(
  parts: readonly BoxPart[],
  streams: readonly number[],
  options: Parameters<typeof domainParts>[2],
): number[] {
  const ofGroups = domainParts(parts, streams, options);
  return streams.map((_, domain) => ofGroups.reduce((sum, domains) => sum + (domains[domain]?.bytesPerToken ?? 0), 0));
}

function repeated(numbers: readonly number[], times: number): number[] {
  return Array(times).fill(numbers).flat();
}

/** Sums are added in the order of the allocations, so that the result does not depend on who was ready first. */
function resultOf({ name, model, boxes }: SweepCase, sums: readonly BinSums[]): SweepResult {
  const all = sums.flat();
  const numbers = [...new Set(all.map(({ bin }) => bin))].sort((a, b) => a - b);
  const bins = numbers.map((number): SweepBin => {
    const own = all.filter(({ bin }) => bin === number);
    const allocations = total(own.map(({ count }) => count));
    return {
      from: 1 + number * BIN_WIDTH,
      allocations,
      atNamedLoss: total(own.map(({ atNamedLoss }) => atNamedLoss)),
      lossMin: Math.min(...own.map(({ min }) => min)),
      lossMean: total(own.map(({ sum }) => sum)) / allocations,
      lossMax: Math.max(...own.map(({ max }) => max)),
    };
  });
  const allocations = total(all.map(({ count }) => count));
  return {
    name,
    boxes,
    bytesPerToken: model.bytesPerToken,
    allocations,
    atNamedLoss: total(all.map(({ atNamedLoss }) => atNamedLoss)),
    lossMean: total(all.map(({ sum }) => sum)) / allocations,
    bins,
  };
}

function total(numbers: readonly number[]): number {
  return numbers.reduce((sum, each) => sum + each, 0);
}
