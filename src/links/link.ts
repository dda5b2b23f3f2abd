import type { DriverReport, ShardState } from '../proto/frames.js';
import type { Opcode, Status } from '../proto/generated.js';
import type { DaemonPolicies } from './policy_feed.js';

/** Operations of one kind that travel together, one item a column. The same batch goes to every shard of a stripe. */
export interface OperationBatch {
  readonly id: number;
  readonly opcode: Opcode;
  /** DescriptorFlag bits. */
  readonly flags: number;
  readonly length: number;
  readonly slots: Uint32Array;
  /** Where the bytes of each item are on the runtime's side; see ShardLink.piece. Not looked at for deletes. */
  readonly places: Uint32Array;
  readonly generations: Float64Array;
  readonly tenantTag: bigint;
  /** How many operations of the other queue have to finish first; below 2^53. */
  readonly after: number;
  /** How long the shard may keep an operation waiting, in microseconds. */
  readonly timeoutUs: number;
}

/** Hears of one finished item of a batch. */
export type CompletionHandler = (batchId: number, item: number, status: Status) => void;

/**
 * One driver session on one shard, whatever lies between the two. Single-threaded; nothing here blocks. A link never
 * throws because the shard is gone: it ends, and its connection says so.
 */
export interface ShardLink {
  /** Slots of the grant. */
  readonly slots: number;
  /** Bytes of the piece that a slot holds. */
  readonly pieceBytes: number;

  /** Whether places are the slots themselves. Otherwise bytes travel, and there are as many places as `places` says. */
  readonly inPlace: boolean;
  readonly places: number;

  /**
   * The memory of a place, `pieceBytes` long: the runtime writes evicted pieces there and reads refilled ones. Never asked
   * for where a carrier has the memory.
   */
  piece(place: number): Uint8Array;

  /** Bytes of pieces that this process has sent or received for the link; 0 in place, and where a carrier does it. */
  payloadBytes(): number;

  /**
   * Whether the slots still hold what they held. Asked after bytes were read in place: true means that they were the
   * bytes that had been stored.
   */
  intact(): boolean;

  /** Hands over items of a batch, beginning with item `from`, and answers how many the queue had room for. */
  submit(batch: OperationBatch, from: number): number;

  /** Reports finished items. Answers how many there were. */
  poll(handler: CompletionHandler): number;

  /** Asks for `onReady` at the next completion. Answers false, and asks for nothing, where one waits already. */
  arm(): boolean;
  onReady: () => void;
}

/** Memory of the runtime that holds one piece at each of `places` places. */
export interface PlaceMemory {
  readonly memory: ArrayBuffer;
  /** Bytes from one place to the next, at least those of a piece. */
  readonly strideBytes: number;
  readonly places: number;
}

/** What is wanted of a shard. */
export interface LinkRequest {
  shard: number;
  /** Position of the shard in its stripe. */
  member: number;
  /** The runtime's memory for pieces of this member, where it has its own; see SwDriverOptions.memory. */
  memory?: PlaceMemory;
  slots: number;
  pieceBytes: number;
  ringEntries: number;
  /** Tells grants of one owner on one shard apart that are parked; at most 64 characters. */
  label?: string;
  /** Has the daemon keep the memory where the connection ends without close(), until its owner comes back. */
  park?: Park;
}

export interface Park {
  /** SHA-256 of the secret that brings the memory back. */
  owner: Uint8Array;
  /** How long at most; the daemon may have a lower bound of its own. */
  ms: number;
}

/** What the slots of a grant hold, by slot. */
export interface SlotTable {
  /** The highest that an evict into the slot has named, 0 where there was none. Every evict has to name a higher one. */
  readonly generations: Float64Array;
  /** Stamp of the evict of that generation. */
  readonly tenantTags: BigUint64Array;
  /** 1 where the slot holds the piece of its generation, 0 where it holds nothing. */
  readonly holds: Uint8Array;
}

/** A link that goes on with what was parked, and what is there. */
export interface ResumedLink {
  link: ShardLink;
  slots: SlotTable;
}

export interface CloseOptions {
  park?: boolean;
}

/** A session with one daemon. */
export interface DaemonConnection {
  /** Shards of the daemon, as it described them when it was connected to. */
  readonly shards: readonly ShardState[];
  /** Bytes that one slot takes in a grant of this piece size. */
  slotBytes(pieceBytes: number): number;
  /** Attaches a shard and gets memory there. Rejects with a KvssError that says why not. */
  openLink(request: LinkRequest): Promise<ShardLink>;
  /** The tenant policies of the daemon, kept up to date for as long as the connection lives. */
  readonly policies: DaemonPolicies;
  /**
   * Tells the daemon how the driver does, for its stats and metrics. Never throws and waits for nothing; where the daemon
   * is old or gone, or the report is not one that it would take, it is dropped. Of reports that come faster than they are taken the last one goes.
   */
  report(report: DriverReport): void;
  /**
   * Attaches a shard with the memory that a connection which was lost had there, of the same label, piece size and kind of
   * link. `slots` of the request is not looked at: the link has as many as there were. Undefined where there is nothing that
   * this secret brings back: openLink is the way then. A second call that finds nothing on the same shard may end the
   * connection. Rejects as openLink does; what was parked is gone then.
   */
  resumeLink?(request: LinkRequest & { secret: Uint8Array }): Promise<ResumedLink | undefined>;
  /** The daemon is about to go: what is in flight still finishes, nothing new is taken. */
  onDraining: () => void;
  /** Comes once, when the daemon has gone. Not after close(). */
  onEnd: (reason: string) => void;
  /** Whether the daemon has gone. */
  readonly ended: boolean;
  /**
   * Resolves when nothing of it touches the runtime's memory any more. Never rejects. What the daemon would keep for a
   * connection that is lost it scrubs, unless `park` asks for the same as if it had been lost.
   */
  close(options?: CloseOptions): Promise<void>;
}

/** Reaches a daemon. Rejects with KVSS_UNREACHABLE, or with what the daemon answered, within `deadlineMs`. */
export type Connector = (address: string, deadlineMs: number) => Promise<DaemonConnection>;
