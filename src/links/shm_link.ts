import { type DescriptorBundle, type NativeLane, native } from '../binding/native.js';
import { Opcode } from '../proto/generated.js';
import { CompletionReader, DescriptorWriter } from './descriptor_writer.js';
import type { CompletionHandler, OperationBatch, ShardLink } from './link.js';

/** What a daemon answers to attach. */
export interface LaneEndpoints {
  descriptors: DescriptorBundle;
  ringEntries: number;
}

/** What a daemon answers to grant. */
export interface GrantedMemory {
  descriptors: DescriptorBundle;
  grantId: number;
  slotBytes: number;
}

/** A grant that is mapped into this process. */
export interface MappedGrant {
  /** Equal whole numbers of slots, the last one what is left. */
  windows: readonly ArrayBuffer[];
  grantId: number;
  slotBytes: number;
}

/** A shard in the same host: rings in shared memory, slots mapped into this process. */
export class ShmLink implements ShardLink {
  readonly inPlace = true;
  onReady: () => void = () => {};
  readonly #lane: NativeLane;
  readonly #writer: DescriptorWriter;
  readonly #completions: CompletionReader;
  readonly #slotsPerWindow: number;

  constructor(
    attach: (onWake: () => void) => NativeLane,
    private readonly ringEntries: number,
    private readonly grant: MappedGrant,
    readonly slots: number,
    readonly pieceBytes: number,
  ) {
    this.#slotsPerWindow = (grant.windows[0]?.byteLength ?? grant.slotBytes) / grant.slotBytes;
    this.#lane = attach(() => this.onReady());
    this.#writer = new DescriptorWriter(this.#lane.descriptors);
    this.#completions = new CompletionReader(this.#lane.completions);
  }

  /** Maps the grant and attaches to the rings. Takes the descriptors. */
  static async open(session: LaneEndpoints, grant: GrantedMemory, slots: number, pieceBytes: number): Promise<ShmLink> {
    const { grantId, slotBytes } = grant;
    const { ringEntries } = session;
    const windows = await native.mapGrant(grant.descriptors, slots, slotBytes);
    const attach = (onWake: () => void) => new native.Lane(session.descriptors, ringEntries, onWake);
    return new ShmLink(attach, ringEntries, { windows, grantId, slotBytes }, slots, pieceBytes);
  }

  get places(): number {
    return this.slots;
  }

  piece(slot: number): Uint8Array {
    const window = Math.floor(slot / this.#slotsPerWindow);
    const memory = this.grant.windows[window] as ArrayBuffer;
    return new Uint8Array(memory, (slot - window * this.#slotsPerWindow) * this.grant.slotBytes, this.pieceBytes);
  }

  payloadBytes(): number {
    return 0;
  }

  intact(): boolean {
    return !this.#lane.revoked();
  }

  submit(batch: OperationBatch, from: number): number {
    const count = Math.min(batch.length - from, this.ringEntries);
    this.#writer.fill(batch, from, count, this.grant.grantId, this.pieceBytes);
    return batch.opcode === Opcode.evict ? this.#lane.submitEvicts(count) : this.#lane.submitCommands(count);
  }

  poll(handler: CompletionHandler): number {
    const count = this.#lane.poll();
    this.#completions.each(count, handler);
    return count;
  }

  /** Evicts that have finished, in order. */
  evictCount(): number {
    return this.#lane.evictCount();
  }

  arm(): boolean {
    return this.#lane.arm();
  }

  close(): void {
    this.#lane.close();
  }
}
