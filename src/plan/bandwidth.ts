import { DOMAINS_PER_BOX } from '../common/box.js';
import type { ShardTable } from './allocation.js';

const DOMAINS = Array.from({ length: DOMAINS_PER_BOX }, (_, domain) => domain);

/** Hardware generations, and how many times the throughput of a CS-3 each has, as the source documents expect it. */
export const GENERATIONS = { 'cs-3': 1, 'cs-4': 2 } as const;
export type Generation = keyof typeof GENERATIONS;

/** A cached prompt is to be this much faster than a computed one; 6 is what the source documents still ship. */
export const TARGET_SPEEDUP = 10;

/** How fast a box computes tokens, and how much faster they are to come back. */
export interface Throughput {
  /** Tokens whose state a CS-3 computes anew in a second, of all users together: `throughput_CS`. */
  readonly recomputeTokensPerSecond: number;
  /** TARGET_SPEEDUP, unless it is known otherwise. */
  readonly speedup: number;
  readonly generation: Generation;
}

/** Tokens a second that a box of this generation computes. */
export function computedTokensPerSecond({ recomputeTokensPerSecond, generation }: Throughput): number {
  return recomputeTokensPerSecond * GENERATIONS[generation];
}

/**
 * `throughput_CS_pc_assisted = speedup x throughput_CS`: tokens a second of a box that takes them from the cache.
 * Generating has another speed: recompute is what a cache saves, and so what is multiplied.
 */
export function assistedTokensPerSecond(throughput: Throughput): number {
  return computedTokensPerSecond(throughput) * throughput.speedup;
}

/**
 * Version 0.1 of the source documents: one figure for every node of a table, the mean of what a token takes on each.
 * `max_BW = mean(token_kv_size) x throughput_CS_pc_assisted`, in bytes a second of a node.
 */
export function meanNodeBytesPerSecond(bytesPerTokenOfNodes: readonly number[], throughput: Throughput): number {
  const total = bytesPerTokenOfNodes.reduce((sum, each) => sum + each, 0);
  return (total / bytesPerTokenOfNodes.length) * assistedTokensPerSecond(throughput);
}

/**
 * Version 0.2 of the source documents: both factors belong to one model.
 * `upperbound_BW = per_token_kv_size(model) x throughput_CS_pc_assisted(model)`, in bytes a second, of whatever the bytes of
 * a token are taken of: a box, a NIC, a shard.
 */
export function upperBoundBytesPerSecond(bytesPerToken: number, throughput: Throughput): number {
  return bytesPerToken * assistedTokensPerSecond(throughput);
}

/** What has to pass in a second, each way; the ways do not share a full-duplex link. */
export interface Flow {
  /** Off the wafer: every token that is computed. */
  readonly evictBytesPerSecond: number;
  /** Onto the wafer: the upper bound, where every prompt is cached. */
  readonly refillBytesPerSecond: number;
}

export interface NicFlow extends Flow {
  readonly box: number;
  /** From 0, in each box. */
  readonly nic: number;
  /** Domains whose shards it serves, of its box. */
  readonly domains: readonly number[];
}

/** Evict and refill bandwidth of a table, by shard, by box and by NIC. */
export interface BandwidthPlan {
  /** In the order of the table. */
  readonly shards: readonly Flow[];
  readonly boxes: readonly Flow[];
  readonly nics: readonly NicFlow[];
  /** Version 0.1 of the equation, over all shards of the table. */
  readonly meanShardBytesPerSecond: number;
  /** Of the NIC that carries most. */
  readonly fullestNic: NicFlow;
  /**
   * How much faster than computed a cached token can come back at most, where every NIC carries so many bits a second; not there
   * where that is not known.
   */
  readonly attainableSpeedup?: number;
}

/** Numbers of NICs that a box can have: whole domains on each, or several for each domain. */
export const NICS_PER_BOX = [1, 2, 4, 8, 16] as const;

/** What has to pass where. Every token passes all boxes, each of which holds some of its layers. */
export function planBandwidth(
  table: ShardTable,
  throughput: Throughput,
  nicsPerBox: number,
  nicBitsPerSecond?: number,
): BandwidthPlan {
  const flow = (bytesPerToken: number): Flow => ({
    evictBytesPerSecond: bytesPerToken * computedTokensPerSecond(throughput),
    refillBytesPerSecond: upperBoundBytesPerSecond(bytesPerToken, throughput),
  });
  const bytes = table.shards.map(({ bytesPerToken }) => bytesPerToken);
  const boxCount = bytes.length / DOMAINS_PER_BOX;
  const bytesOf = (box: number, domains: readonly number[]) =>
    domains.reduce((sum, domain) => sum + (bytes[box * DOMAINS_PER_BOX + domain] ?? 0), 0);
  const boxes = Array.from({ length: boxCount }, (_, box) => box);
  const nics = boxes.flatMap((box) =>
    Array.from({ length: nicsPerBox }, (_, nic): NicFlow => {
      const domains = domainsOfNic(nic, nicsPerBox);
      const share = Math.min(1, DOMAINS_PER_BOX / nicsPerBox);
      return { box, nic, domains, ...flow(bytesOf(box, domains) * share) };
    }),
  );
  const fullestNic = nics.reduce((most, each) => (each.refillBytesPerSecond > most.refillBytesPerSecond ? each : most));
  return {
    shards: bytes.map(flow),
    boxes: boxes.map((box) => flow(bytesOf(box, DOMAINS))),
    nics,
    meanShardBytesPerSecond: meanNodeBytesPerSecond(bytes, throughput),
    fullestNic,
    ...(nicBitsPerSecond === undefined
      ? {}
      : { attainableSpeedup: nicBitsPerSecond / 8 / fullestNic.evictBytesPerSecond }),
  };
}

function domainsOfNic(nic: number, nicsPerBox: number): number[] {
  return DOMAINS.filter((domain) =>
    nicsPerBox <= DOMAINS_PER_BOX
      ? Math.floor((domain * nicsPerBox) / DOMAINS_PER_BOX) === nic
      : Math.floor((nic * DOMAINS_PER_BOX) / nicsPerBox) === domain,
  );
}
