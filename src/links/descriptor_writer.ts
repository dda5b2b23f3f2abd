import { CompletionLayout, DescriptorLayout, type Status } from '../proto/generated.js';
import type { CompletionHandler, OperationBatch } from './link.js';

const WORDS = DescriptorLayout.bytes / 4;
const { offset: AT } = DescriptorLayout;
const { offset: DONE } = CompletionLayout;

/** Writes descriptors as 32-bit words: BigInt accessors cost more than all the rest of a submission. */
export class DescriptorWriter {
  readonly #words: Uint32Array;

  constructor(memory: ArrayBuffer) {
    this.#words = new Uint32Array(memory);
  }

  /** Writes `count` items of a batch, beginning with item `from`, as the first descriptors of the memory. */
  fill(batch: OperationBatch, from: number, count: number, grantId: number, pieceBytes: number): void {
    const words = this.#words;
    const operation = batch.opcode | (batch.flags << 16);
    const tagLow = Number(batch.tenantTag & 0xffffffffn);
    const tagHigh = Number(batch.tenantTag >> 32n);
    const afterHigh = Math.floor(batch.after / 2 ** 32);
    for (let index = 0; index < count; index += 1) {
      const base = index * WORDS;
      const item = from + index;
      const generation = batch.generations[item] as number;
      words[base + AT.opcode / 4] = operation;
      words[base + AT.grantId / 4] = grantId;
      words[base + AT.slot / 4] = batch.slots[item] as number;
      words[base + AT.pieceBytes / 4] = pieceBytes;
      words[base + AT.generation / 4] = generation >>> 0;
      words[base + AT.generation / 4 + 1] = Math.floor(generation / 2 ** 32);
      words[base + AT.tenantTag / 4] = tagLow;
      words[base + AT.tenantTag / 4 + 1] = tagHigh;
      words[base + AT.after / 4] = batch.after >>> 0;
      words[base + AT.after / 4 + 1] = afterHigh;
      words[base + AT.userData / 4] = batch.id;
      words[base + AT.userData / 4 + 1] = item;
      words[base + AT.timeoutUs / 4] = batch.timeoutUs;
      words[base + AT.reserved0 / 4] = 0;
      words[base + AT.reserved1 / 4] = 0;
      words[base + AT.reserved1 / 4 + 1] = 0;
    }
  }
}

/** Reads completions that a poll has filled in. */
export class CompletionReader {
  readonly #words: Uint32Array;

  constructor(memory: ArrayBuffer) {
    this.#words = new Uint32Array(memory);
  }

  each(count: number, handler: CompletionHandler): void {
    const words = this.#words;
    for (let index = 0; index < count; index += 1) {
      const base = (index * CompletionLayout.bytes) / 4;
      const status = (words[base + DONE.opcode / 4] as number) >>> 16;
      const batchId = words[base + DONE.userData / 4] as number;
      const item = words[base + DONE.userData / 4 + 1] as number;
      handler(batchId, item, status as Status);
    }
  }
}
