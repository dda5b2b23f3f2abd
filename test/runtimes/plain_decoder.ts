import { Tensor } from 'onnxruntime-node';
import { filesOf } from './demo_models.js';
import { cacheOf, OnnxRunner, rowsOf, type Tensors } from './onnx_runner.js';

/** Keys and values by the name of their input, [1, heads, tokens, dim]. */
export type Past = Tensors;

type Numbers = Float32Array | Uint16Array;

/**
 * Runs a decoder the way its exporter's examples do: all that comes out of a run goes into the next one. No cache, no memory that
 * is used again, nothing of the adapter.
 */
export class PlainDecoder {
  private constructor(private readonly runner: OnnxRunner) {}

  static async load(model: string): Promise<PlainDecoder> {
    return new PlainDecoder(await OnnxRunner.open(filesOf(model)));
  }

  release(): Promise<void> {
    return this.runner.session.release();
  }

  /** The past of an empty sequence. */
  get nothing(): Past {
    return this.runner.cache();
  }

  /** Runs tokens behind a past: the logits behind the last one, and all keys and values. */
  async run(past: Past, tokens: Uint32Array): Promise<{ logits: Float32Array; past: Past }> {
    const outputs = await this.runner.run([...tokens], past);
    return { logits: (rowsOf(outputs.logits).at(-1) as Float32Array).slice(), past: cacheOf(outputs) };
  }

  /** Runs tokens in chunks that end where `ends` says; the last one is that of the tokens. */
  async runInChunks(
    tokens: Uint32Array,
    ends: readonly number[],
    past: Past = this.nothing,
  ): Promise<{ logits: Float32Array; past: Past }> {
    let result: { logits: Float32Array; past: Past } = { logits: new Float32Array(0), past };
    for (const end of ends) {
      const from = lengthOf(result.past);
      if (end > from) result = await this.run(result.past, tokens.subarray(from, end));
    }
    return result;
  }

  /** The likeliest tokens behind a prompt. */
  async continuation(prompt: Uint32Array, count: number, chunk: number): Promise<number[]> {
    const tokens: number[] = [];
    let { logits, past } = await this.runInChunks(prompt, chunkEnds(0, prompt.length, chunk));
    for (;;) {
      const best = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
      tokens.push(best);
      if (tokens.length === count) return tokens;
      ({ logits, past } = await this.run(past, Uint32Array.of(best)));
    }
  }
}

/** Multiples of `chunk` between two lengths, and the longer one. */
export function chunkEnds(from: number, to: number, chunk: number): number[] {
  const ends: number[] = [];
  for (let end = (Math.floor(from / chunk) + 1) * chunk; end < to; end += chunk) ends.push(end);
  return [...ends, to];
}

const lengthOf = (past: Past) => Object.values(past)[0]?.dims[2] as number;

/** The first tokens of a past. */
export function cut(past: Past, tokens: number): Past {
  return Object.fromEntries(
    Object.entries(past).map(([name, { type, dims, data }]) => {
      const [, heads, length, dim] = dims as [number, number, number, number];
      const all = data as Numbers;
      const numbers = all.slice(0, heads * tokens * dim);
      for (let head = 0; head < heads; head += 1) {
        const from = head * length * dim;
        numbers.set(all.subarray(from, from + tokens * dim), head * tokens * dim);
      }
      return [name, new Tensor(type as 'float32', numbers as Float32Array, [1, heads, tokens, dim])];
    }),
  );
}
