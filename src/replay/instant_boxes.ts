import type {
  CompletionHandler,
  Connector,
  DaemonConnection,
  LinkRequest,
  OperationBatch,
  ShardLink,
} from '../links/link.js';
import { NO_POLICIES } from '../links/policy_feed.js';
import type { ShardState } from '../proto/frames.js';
import { Status } from '../proto/generated.js';
import type { EmulatedRequest, EmulatedRuntime, EmulatedStats } from '../wafer/emulated_runtime.js';

const ENDLESS = Number.MAX_SAFE_INTEGER;
const SHARD: ShardState = { index: 0, domain: 0, budgetBytes: ENDLESS, freeBytes: ENDLESS, hugePages: false };

/** A shard that has finished everything as soon as it is asked, and holds no bytes: any piece is the same memory. */
class InstantLink implements ShardLink {
  readonly inPlace = true;
  readonly places = 0;
  readonly slots: number;
  readonly pieceBytes: number;
  onReady: () => void = () => {};
  readonly #piece: Uint8Array;
  readonly #finished: { batch: OperationBatch; from: number }[] = [];

  constructor({ slots, pieceBytes }: LinkRequest) {
    this.slots = slots;
    this.pieceBytes = pieceBytes;
    this.#piece = new Uint8Array(pieceBytes);
  }

  piece(): Uint8Array {
    return this.#piece;
  }

  payloadBytes(): number {
    return 0;
  }

  intact(): boolean {
    return true;
  }

  submit(batch: OperationBatch, from: number): number {
    this.#finished.push({ batch, from });
    return batch.length - from;
  }

  poll(handler: CompletionHandler): number {
    let count = 0;
    for (const { batch, from } of this.#finished.splice(0)) {
      for (let item = from; item < batch.length; item += 1) handler(batch.id, item, Status.ok);
      count += batch.length - from;
    }
    return count;
  }

  arm(): boolean {
    return this.#finished.length === 0;
  }
}

/** Reaches boxes with one shard each that are nowhere: for replays in which only the driver's decisions count. */
export function instantBoxes(): Connector {
  return async () => {
    const connection: DaemonConnection = {
      shards: [SHARD],
      slotBytes: (pieceBytes) => pieceBytes,
      openLink: async (request) => new InstantLink(request),
      policies: NO_POLICIES,
      report: () => {},
      onDraining: () => {},
      onEnd: () => {},
      ended: false,
      close: async () => {},
    };
    return connection;
  };
}

const NOTHING: EmulatedRequest = {
  source: { write: () => true },
  sink: { read: () => {} },
  accept: () => {},
  compute: () => {},
  end: () => {},
};

/** A runtime that has every column and looks at none. */
export class IdleRuntime implements EmulatedRuntime {
  readonly stats: EmulatedStats = { bytesWritten: 0, bytesVerified: 0, linesVerified: 0, mismatches: 0 };

  request(): EmulatedRequest {
    return NOTHING;
  }
}
