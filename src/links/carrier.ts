import type { DescriptorBundle } from '../binding/native.js';
import type { PayloadOf } from '../proto/frames.js';

/**
 * Moves payload for a driver: another process, with the memory that columns are evicted from and refilled into, and WIO
 * lanes of its own. The driver sends it orders and never sees a byte.
 */
export interface Carrier {
  /** Columns that its memory holds; a column lies at the same place for every member of a stripe. */
  readonly places: number;
  /** Bytes of the piece of each member of a stripe, as the carrier has it. */
  readonly pieceBytes: readonly number[];
  /** Opens WIO lanes of a session on one shard. Rejects with a KvssError that says why not. */
  carry(request: PayloadOf<'carry'>): Promise<CarriedLink>;
}

/** What a carrier does for one session on one shard. */
export interface CarriedLink {
  /** The lane that orders go over. */
  readonly order: DescriptorBundle;
  /** Closes the carrier's lanes. Resolves when nothing of them touches its memory any more, or it has gone. */
  drop(): Promise<void>;
}
