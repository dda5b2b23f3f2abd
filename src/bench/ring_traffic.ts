import type { HioMode } from '../binding/native.js';
import { KvssError } from '../common/errors.js';
import { type ChildDaemon, startChildDaemon } from '../kvss/child_daemon.js';
import type { DaemonConnection, OperationBatch } from '../links/link.js';
import { connectShm } from '../links/shm_connection.js';
import type { ShmLink } from '../links/shm_link.js';
import { Opcode, Status } from '../proto/generated.js';
import { slotBytesOf } from '../proto/slots.js';
import { type BenchContext, checkLink } from './context.js';

const DEADLINE_MS = 60_000;
const TIMEOUT_US = 60_000_000;

export interface RingOptions {
  /** Sessions that are open at once, each with a grant of its own. */
  sessions: number;
  pieceBytes: number;
  slots: number;
  ringEntries: number;
  hioMode: HioMode;
}

/** Sessions on one shard in the same host without a driver above them: what the rings and the engine take by themselves. */
export class RingTraffic implements AsyncDisposable {
  private constructor(
    readonly sessions: readonly RingSession[],
    private readonly connections: readonly DaemonConnection[],
    private readonly own: ChildDaemon | undefined,
  ) {}

  static async open(context: BenchContext, options: RingOptions): Promise<RingTraffic> {
    const { sessions, pieceBytes, slots, ringEntries, hioMode } = options;
    checkLink(context, 'shm');
    const budget = sessions * (slots * slotBytesOf(pieceBytes) + 2 ** 21);
    const own = context.daemon === undefined ? await startChildDaemon([budget], { hioMode }) : undefined;
    const connections: DaemonConnection[] = [];
    try {
      const opened: RingSession[] = [];
      for (let session = 0; session < sessions; session += 1) {
        const connection = await connectShm(context.daemon ?? (own as ChildDaemon).socket, DEADLINE_MS);
        connections.push(connection);
        const link = await connection.openLink({ shard: 0, member: 0, slots, pieceBytes, ringEntries });
        opened.push(new RingSession(link as ShmLink));
      }
      return new RingTraffic(opened, connections, own);
    } catch (thrown) {
      await Promise.all(connections.map((connection) => connection.close()));
      await own?.[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.connections.map((connection) => connection.close()));
    await this.own?.[Symbol.asyncDispose]();
  }
}

/** One session, and operations that it has given and that have not been told finished. */
export class RingSession {
  #generation = 0;
  #evicts = 0;
  #open = 0;

  constructor(readonly link: ShmLink) {}

  get open(): number {
    return this.#open;
  }

  /** Descriptors for `count` slots, beginning with `first`. Stamped when they are sent, so that a batch can be used again. */
  batch(opcode: Opcode, first: number, count: number): OperationBatch {
    const slots = Uint32Array.from({ length: count }, (_, index) => (first + index) % this.link.slots);
    return {
      id: 1,
      opcode,
      flags: 0,
      length: count,
      slots,
      places: slots,
      generations: new Float64Array(count),
      tenantTag: 1n,
      after: 0,
      timeoutUs: TIMEOUT_US,
    };
  }

  /** Gives new generations to the slots of a batch. */
  stamp(batch: OperationBatch): void {
    for (let item = 0; item < batch.length; item += 1) {
      this.#generation += 1;
      batch.generations[item] = this.#generation;
    }
  }

  /** Hands a batch over as far as there is room, and answers how many operations that were. */
  submit(batch: OperationBatch, from = 0): number {
    const taken = this.link.submit(batch, from);
    this.#open += taken;
    if (batch.opcode === Opcode.evict) this.#evicts += taken;
    return taken;
  }

  /** Publishes one evict and spins until evictCount has moved. */
  evictOne(batch: OperationBatch): void {
    this.submit(batch);
    const { link } = this;
    const wanted = this.#evicts;
    while (link.evictCount() < wanted);
  }

  /** Hears what has finished and answers how many operations that were. */
  poll(): number {
    const heard = this.link.poll(this.#heard);
    this.#open -= heard;
    return heard;
  }

  readonly #heard = (_: number, item: number, status: Status) => {
    if (status !== Status.ok) throw KvssError.ofStatus(status, `operation ${item} failed`);
  };

  /** Waits for everything, spinning. */
  drain(): void {
    while (this.#open > 0) this.poll();
  }
}
