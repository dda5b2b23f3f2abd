import type { NativeStreamLane } from '../binding/native.js';
import { localError } from '../common/errors.js';
import { CompletionReader, DescriptorWriter } from './descriptor_writer.js';
import type { CompletionHandler, OperationBatch, PlaceMemory, ShardLink } from './link.js';

/**
 * A shard that is reached over streams. Pieces are sent from and received into memory of this process that is registered
 * with the lane's thread, or another process carries them: then there are places, but no memory here.
 */
export class StreamLink implements ShardLink {
  readonly inPlace = false;
  onReady: () => void = () => {};
  /** Called once, when a lane has ended or the shard has broken the protocol. */
  onBroken: () => void = () => {};
  readonly #lane: NativeStreamLane;
  readonly #writer: DescriptorWriter;
  readonly #completions: CompletionReader;
  readonly #places: Float64Array;
  readonly #region: number;
  readonly #queue: number;
  #broken = false;

  constructor(
    start: (onWake: () => void) => NativeStreamLane,
    window: number,
    private readonly grantId: number,
    readonly slots: number,
    readonly pieceBytes: number,
    private readonly memory: PlaceMemory | { places: number },
  ) {
    this.#lane = start(() => this.onReady());
    this.#queue = window;
    this.#writer = new DescriptorWriter(this.#lane.descriptors);
    this.#completions = new CompletionReader(this.#lane.completions);
    this.#places = new Float64Array(this.#lane.places);
    this.#region = 'memory' in memory ? this.#lane.registerMemory(memory.memory) : 0;
  }

  get places(): number {
    return this.memory.places;
  }

  piece(place: number): Uint8Array {
    if (!('memory' in this.memory))
      throw localError('KVSS_BAD_INPUT', 'the memory of a carrier is not in this process');
    return new Uint8Array(this.memory.memory, place * this.memory.strideBytes, this.pieceBytes);
  }

  payloadBytes(): number {
    return this.#lane.payloadBytes();
  }

  intact(): boolean {
    // Completed bytes lie in memory of this process: nothing that happens to the shard changes them.
    return true;
  }

  submit(batch: OperationBatch, from: number): number {
    const count = Math.min(batch.length - from, this.#queue);
    // A carrier is told the place itself, the lane's thread its offset.
    const stride = 'memory' in this.memory ? this.memory.strideBytes : 1;
    this.#writer.fill(batch, from, count, this.grantId, this.pieceBytes);
    for (let index = 0; index < count; index += 1) {
      this.#places[2 * index] = this.#region;
      this.#places[2 * index + 1] = (batch.places[from + index] as number) * stride;
    }
    return this.#lane.submit(count);
  }

  poll(handler: CompletionHandler): number {
    const count = this.#lane.poll();
    this.#completions.each(count, handler);
    if (count === 0 && !this.#broken && this.#lane.broken()) {
      this.#broken = true;
      // Not from inside a poll: whoever polls must not find the link gone underneath it.
      queueMicrotask(() => this.onBroken());
    }
    return count;
  }

  arm(): boolean {
    return this.#broken || this.#lane.arm();
  }

  close(): void {
    this.#lane.close();
  }
}
