import { Tensor } from 'onnxruntime-node';
import type { DecoderGraph, Plane } from './decoder_graph.js';

/** Sequences get wider in steps of so many tokens. */
const STEP_TOKENS = 256;

/** Feeds and fetches of one run. */
export interface KvTensors {
  readonly past: Readonly<Record<string, Tensor>>;
  readonly present: Readonly<Record<string, Tensor>>;
}

/** Memory of a plane. Where past and present share it there is no `spare`. */
interface PlaneMemory {
  readonly plane: Plane;
  bytes: Uint8Array;
  spare: Uint8Array;
}

const NO_BYTES = new Uint8Array(0);

/**
 * Keys and values of one sequence, in memory that ONNX Runtime reads the past from and writes the present into, from run to
 * run.
 *
 * A graph that appends with Concat wants a past of exactly `length` tokens and writes all of it again behind the new ones: two
 * buffers a plane take turns (`shared: false`). A graph that appends in place (GroupQueryAttention) gets the same buffer as past
 * and present, `capacity` tokens wide, and only writes the new ones (`shared: true`). It is no wider than it has to be: the
 * runtime's binding copies every output that it was asked for once more, also those that lie in memory of ours.
 *
 * Token t of head h of a plane lies at row `h x stride + t`, where the stride is `length` or `capacity`.
 */
export class KvState {
  #length = 0;
  #capacity = 0;
  readonly #planes: PlaneMemory[];
  /** Tensors of the whole capacity: they are the same for every run. */
  #sharedTensors: Readonly<Record<'past' | 'present', Record<string, Tensor>>> | undefined;

  constructor(
    private readonly graph: Pick<DecoderGraph, 'planes' | 'dtype'>,
    private readonly shared: boolean,
  ) {
    this.#planes = graph.planes.map((plane) => ({ plane, bytes: NO_BYTES, spare: NO_BYTES }));
  }

  /** Tokens whose keys and values are there. */
  get length(): number {
    return this.#length;
  }

  /** Tokens that there is memory for. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Makes room for so many tokens; what is there stays. Throws a RangeError without memory, and has changed nothing then. */
  reserve(tokens: number): void {
    if (tokens <= this.#capacity) return;
    const capacity = Math.ceil(tokens / STEP_TOKENS) * STEP_TOKENS;
    // All of it before anything changes: where memory is short, every plane stays what it was.
    const memories = this.#planes.map(({ plane: { heads, rowBytes }, bytes, spare }) => {
      const needed = heads * capacity * rowBytes;
      // That of an earlier sequence may be enough.
      if (bytes.length >= needed) return { bytes, spare };
      return { bytes: new Uint8Array(needed), spare: this.shared ? NO_BYTES : new Uint8Array(needed) };
    });
    for (const [index, memory] of this.#planes.entries()) {
      const { heads, rowBytes } = memory.plane;
      const { bytes: old } = memory;
      Object.assign(memory, memories[index]);
      const length = this.#length * rowBytes;
      const [from, to] = this.shared ? [this.#capacity * rowBytes, capacity * rowBytes] : [length, length];
      if (old === memory.bytes && from === to) continue;
      // From the last head on: a head may move over where the next one was.
      for (let head = heads - 1; head >= 0; head -= 1) {
        memory.bytes.set(old.subarray(head * from, head * from + length), head * to);
      }
    }
    this.#capacity = capacity;
    this.#sharedTensors = undefined;
  }

  /** Empties it for another sequence of so many tokens. */
  reset(tokens: number): void {
    this.#length = 0;
    this.#capacity = 0;
    this.reserve(tokens);
  }

  /**
   * Begins anew with a prefix of so many tokens, which are to be written before anything is run. `room`: for how many tokens there
   * is to be memory, so that nothing has to move for those that come behind.
   */
  layOut(tokens: number, room = tokens): void {
    this.reset(room);
    this.#length = tokens;
  }

  /**
   * The memory of tokens [from, to) of one head of a plane, [to - from, dim]. It may be another one after every run, and after
   * every other call.
   */
  rows(plane: number, head: number, from: number, to: number): Uint8Array {
    const { plane: shape, bytes } = this.#planes[plane] as PlaneMemory;
    const start = (head * this.#stride + from) * shape.rowBytes;
    return bytes.subarray(start, start + (to - from) * shape.rowBytes);
  }

  /** Forgets all tokens from `length` on. Takes a move of what stays where past and present are not shared. */
  truncate(length: number): void {
    if (!this.shared && length < this.#length) {
      for (const { plane, bytes } of this.#planes) {
        const from = this.#length * plane.rowBytes;
        const to = length * plane.rowBytes;
        for (let head = 1; head < plane.heads; head += 1) bytes.copyWithin(head * to, head * from, head * from + to);
      }
    }
    this.#length = Math.min(this.#length, length);
  }

  /** What a run of `tokens` more tokens reads and writes. commit() says that it has done so. */
  tensors(tokens: number): KvTensors {
    const total = this.#length + tokens;
    this.reserve(total);
    if (this.shared) {
      this.#sharedTensors ??= this.#tensorsOf(this.#capacity, this.#capacity);
      return this.#sharedTensors;
    }
    return this.#tensorsOf(this.#length, total);
  }

  /** The run of so many tokens has ended well. */
  commit(tokens: number): void {
    this.#length += tokens;
    if (this.shared) return;
    for (const memory of this.#planes) [memory.bytes, memory.spare] = [memory.spare, memory.bytes];
  }

  get #stride(): number {
    return this.shared ? this.#capacity : this.#length;
  }

  #tensorsOf(pastTokens: number, presentTokens: number): Record<'past' | 'present', Record<string, Tensor>> {
    const past: Record<string, Tensor> = {};
    const present: Record<string, Tensor> = {};
    for (const { plane, bytes, spare } of this.#planes) {
      past[plane.pastName] = this.#tensorOf(plane, bytes, pastTokens);
      present[plane.presentName] = this.shared
        ? (past[plane.pastName] as Tensor)
        : this.#tensorOf(plane, spare, presentTokens);
    }
    return { past, present };
  }

  #tensorOf({ heads, dim }: Plane, { buffer, byteOffset }: Uint8Array, tokens: number): Tensor {
    const dims = [1, heads, tokens, dim];
    const numbers = heads * tokens * dim;
    return this.graph.dtype === 'fp32'
      ? new Tensor('float32', new Float32Array(buffer as ArrayBuffer, byteOffset, numbers), dims)
      : new Tensor('float16', new Uint16Array(buffer as ArrayBuffer, byteOffset, numbers), dims);
  }
}
