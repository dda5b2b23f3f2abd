import { connectorFor } from '../links/connect.js';
import type { RoundPlan } from './rounds.js';
import type { BenchRow } from './row.js';

/** How thoroughly to measure: `tiny` only shows that a bench works, and its figures mean nothing. */
export type BenchScale = 'full' | 'tiny';

/** What every bench is given. */
export interface BenchContext {
  readonly scale: BenchScale;
  /** A live daemon to measure, as an address that SwDriver.connect takes; one of its own if left out. */
  readonly daemon?: string | undefined;
  /** Secret of the live daemon's listener. */
  readonly token?: string | undefined;
}

/** One part of the suite. It yields a row as soon as it has measured it. */
export interface Bench {
  readonly name: string;
  /** One line of help. */
  readonly summary: string;
  /** Whether it can measure a live daemon. */
  readonly live: boolean;
  run(context: BenchContext): AsyncGenerator<BenchRow>;
}

export function planFor({ scale }: BenchContext, rounds = 5): RoundPlan {
  return scale === 'tiny' ? { rounds: 1, warmup: 0 } : { rounds, warmup: 1 };
}

/** The size for a full run, or that for a tiny one. */
export function sized<Size>({ scale }: BenchContext, full: Size, tiny: Size): Size {
  return scale === 'tiny' ? tiny : full;
}

/** Number of shards of a live daemon. */
export async function shardsOf(daemon: string, token: string | undefined): Promise<number> {
  const connect = connectorFor({
    wioStreams: 1,
    placeBytes: 0,
    checksums: false,
    ...(token === undefined ? {} : { token }),
  });
  const connection = await connect(daemon, 5_000);
  const { length } = connection.shards;
  await connection.close();
  return length;
}
