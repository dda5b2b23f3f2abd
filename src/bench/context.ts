import { localError } from '../common/errors.js';
import type { LinkName } from '../kvss/child_daemon.js';
import { connectorFor } from '../links/connect.js';
import { shardCountOf } from '../links/shard_count.js';
import { parseStreamAddress } from '../links/stream_address.js';
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

/** How the address of a live daemon is reached. */
export function linkOf(address: string): LinkName {
  const stream = parseStreamAddress(address);
  if (!stream) return 'shm';
  return stream.port === null ? 'unix' : 'tcp';
}

/** Throws KVSS_BAD_INPUT where a live daemon is not reached over the link that is to be measured. */
export function checkLink({ daemon }: BenchContext, link: LinkName): void {
  if (daemon === undefined || linkOf(daemon) === link) return;
  throw localError(
    'KVSS_BAD_INPUT',
    link === 'shm'
      ? `${daemon}: this bench needs a daemon in the same host; give the path of its socket`
      : `${daemon}: this bench needs a daemon that is reached over ${link}`,
  );
}

/** Number of shards of a live daemon. */
export function shardsOf(daemon: string, token: string | undefined): Promise<number> {
  const options = { wioStreams: 1, placeBytes: 0, checksums: false };
  return shardCountOf(connectorFor({ ...options, ...(token === undefined ? {} : { token }) }), daemon, 5_000);
}
