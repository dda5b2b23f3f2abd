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
}

/** A session with one daemon. */
export interface DaemonConnection {
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
  /** The daemon is about to go: what is in flight still finishes, nothing new is taken. */
  onDraining: () => void;
  /** Comes once, when the daemon has gone. Not after close(). */
  onEnd: (reason: string) => void;
  /** Whether the daemon has gone. */
  readonly ended: boolean;
  /** Resolves when nothing of it touches the runtime's memory any more. Never rejects. */
  close(): Promise<void>;
}

/** Reaches a daemon. Rejects with KVSS_UNREACHABLE, or with what the daemon answered, within `deadlineMs`. */
export type Connector = (address: string, deadlineMs: number) => Promise<DaemonConnection>;
