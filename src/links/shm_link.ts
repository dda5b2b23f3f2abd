import { type DescriptorBundle, type NativeLane, native } from '../binding/native.js';
import { CompletionLayout, DescriptorLayout, Opcode, type Status } from '../proto/generated.js';
import type { CompletionHandler, OperationBatch, ShardLink } from './link.js';

const WORDS = DescriptorLayout.bytes / 4;
const { offset: AT } = DescriptorLayout;
const { offset: DONE } = CompletionLayout;

/** Writes descriptors as 32-bit words: BigInt accessors cost more than all the rest of a submission. */
class DescriptorWriter {
  readonly #words: Uint32Array;

  constructor(memory: ArrayBuffer) {
    this.#words = new Uint32Array(memory);
  }

  put(index: number, batch: OperationBatch, item: number, grantId: number, pieceBytes: number): void {
    const words = this.#words;
    const base = index * WORDS;
    const generation = batch.generations[item] as number;
    words[base + AT.opcode / 4] = batch.opcode | (batch.flags << 16);
    words[base + AT.grantId / 4] = grantId;
    words[base + AT.slot / 4] = batch.slots[item] as number;
    words[base + AT.pieceBytes / 4] = pieceBytes;
    words[base + AT.generation / 4] = generation >>> 0;
    words[base + AT.generation / 4 + 1] = Math.floor(generation / 2 ** 32);
    words[base + AT.tenantTag / 4] = Number(batch.tenantTag & 0xffffffffn);
    words[base + AT.tenantTag / 4 + 1] = Number(batch.tenantTag >> 32n);
    words[base + AT.after / 4] = batch.after >>> 0;
    words[base + AT.after / 4 + 1] = Math.floor(batch.after / 2 ** 32);
    words[base + AT.userData / 4] = batch.id;
    words[base + AT.userData / 4 + 1] = item;
    words[base + AT.timeoutUs / 4] = batch.timeoutUs;
    words[base + AT.reserved0 / 4] = 0;
    words[base + AT.reserved1 / 4] = 0;
    words[base + AT.reserved1 / 4 + 1] = 0;
  }
}

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

/** A shard in the same host: rings in shared memory, slots mapped into this process. */
export class ShmLink implements ShardLink {
  onReady: () => void = () => {};
  readonly #lane: NativeLane;
  readonly #writer: DescriptorWriter;
  readonly #completions: Uint32Array;
  readonly #windows: ArrayBuffer[];
  readonly #slotsPerWindow: number;
  readonly #ringEntries: number;
  readonly #grantId: number;
  readonly #slotBytes: number;

  private constructor(
    session: LaneEndpoints,
    grant: GrantedMemory,
    windows: ArrayBuffer[],
    readonly slots: number,
    readonly pieceBytes: number,
  ) {
    this.#windows = windows;
    this.#slotsPerWindow = (windows[0]?.byteLength ?? grant.slotBytes) / grant.slotBytes;
    this.#lane = new native.Lane(session.descriptors, session.ringEntries, () => this.onReady());
    this.#writer = new DescriptorWriter(this.#lane.descriptors);
    this.#completions = new Uint32Array(this.#lane.completions);
    this.#ringEntries = session.ringEntries;
    this.#grantId = grant.grantId;
    this.#slotBytes = grant.slotBytes;
  }

  /** Maps the grant and attaches to the rings. Takes the descriptors. */
  static async open(session: LaneEndpoints, grant: GrantedMemory, slots: number, pieceBytes: number): Promise<ShmLink> {
    const windows = await native.mapGrant(grant.descriptors, slots, grant.slotBytes);
    return new ShmLink(session, grant, windows, slots, pieceBytes);
  }

  piece(slot: number): Uint8Array {
    const window = Math.floor(slot / this.#slotsPerWindow);
    const memory = this.#windows[window] as ArrayBuffer;
    return new Uint8Array(memory, (slot - window * this.#slotsPerWindow) * this.#slotBytes, this.pieceBytes);
  }

  intact(): boolean {
    return !this.#lane.revoked();
  }

  submit(batch: OperationBatch, from: number): number {
    const count = Math.min(batch.length - from, this.#ringEntries);
    for (let index = 0; index < count; index += 1) {
      this.#writer.put(index, batch, from + index, this.#grantId, this.pieceBytes);
    }
    return batch.opcode === Opcode.evict ? this.#lane.submitEvicts(count) : this.#lane.submitCommands(count);
  }

  poll(handler: CompletionHandler): number {
    const count = this.#lane.poll();
    const words = this.#completions;
    for (let index = 0; index < count; index += 1) {
      const base = (index * CompletionLayout.bytes) / 4;
      const status = (words[base + DONE.opcode / 4] as number) >>> 16;
      const batchId = words[base + DONE.userData / 4] as number;
      const item = words[base + DONE.userData / 4 + 1] as number;
      handler(batchId, item, status as Status);
    }
    return count;
  }

  arm(): boolean {
    return this.#lane.arm();
  }

  close(): void {
    this.#lane.close();
  }
}
