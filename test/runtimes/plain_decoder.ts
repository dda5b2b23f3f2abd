import { InferenceSession, Tensor } from 'onnxruntime-node';
import { fromFloat16Array } from '../../src/common/float16.js';
import { SESSION_OPTIONS } from './demo_models.js';

/** Keys and values by the name of their input, [1, heads, tokens, dim]. */
export type Past = ReadonlyMap<string, Tensor>;

type Numbers = Float32Array | Uint16Array;

/**
 * Runs a decoder the way its exporter's examples do: all that comes out of a run goes into the next one. No cache, no memory that
 * is used again, nothing of the adapter.
 */
export class PlainDecoder {
  private constructor(private readonly session: InferenceSession) {}

  static async load(model: string): Promise<PlainDecoder> {
    return new PlainDecoder(await InferenceSession.create(model, SESSION_OPTIONS));
  }

  release(): Promise<void> {
    return this.session.release();
  }

  /** The past of an empty sequence. */
  get nothing(): Past {
    const pasts = this.session.inputMetadata.filter(({ name }) => name.startsWith('past_key_values.'));
    return new Map(
      pasts.map((input) => {
        if (!input.isTensor) throw new Error('no tensor');
        const [, heads, , dim] = input.shape as [unknown, number, unknown, number];
        return [input.name, tensorOf(input.type, numbersOf(input.type, 0), [1, heads, 0, dim])];
      }),
    );
  }

  /** Runs tokens behind a past: the logits behind the last one, and all keys and values. */
  async run(past: Past, tokens: Uint32Array): Promise<{ logits: Float32Array; past: Past }> {
    const before = lengthOf(past);
    const feeds: Record<string, Tensor> = Object.fromEntries(past);
    const { length } = tokens;
    const whole = (numbers: readonly number[]) =>
      new Tensor('int64', BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
    feeds.input_ids = whole([...tokens]);
    feeds.attention_mask = whole(new Array(before + length).fill(1));
    if (this.session.inputNames.includes('position_ids')) {
      feeds.position_ids = whole(Array.from({ length }, (_, at) => before + at));
    }
    const outputs = await this.session.run(feeds);
    const logits = outputs.logits as Tensor;
    const vocabulary = logits.dims[2] as number;
    const last = (logits.data as Numbers).slice((length - 1) * vocabulary);
    return {
      logits: logits.type === 'float32' ? (last as Float32Array) : fromFloat16Array(last as Uint16Array),
      past: new Map(
        [...past.keys()].map((name) => [name, outputs[name.replace('past_key_values', 'present')] as Tensor]),
      ),
    };
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

export const lengthOf = (past: Past) => [...past.values()][0]?.dims[2] as number;

/** The first tokens of a past. */
export function cut(past: Past, tokens: number): Past {
  return new Map(
    [...past].map(([name, { type, dims, data }]) => {
      const [, heads, length, dim] = dims as [number, number, number, number];
      const numbers = numbersOf(type, heads * tokens * dim);
      for (let head = 0; head < heads; head += 1) {
        const from = head * length * dim;
        numbers.set((data as Numbers).subarray(from, from + tokens * dim), head * tokens * dim);
      }
      return [name, tensorOf(type, numbers, [1, heads, tokens, dim])];
    }),
  );
}

const numbersOf = (type: string, count: number): Numbers =>
  type === 'float32' ? new Float32Array(count) : new Uint16Array(count);

const tensorOf = (type: string, numbers: Numbers, dims: number[]) =>
  new Tensor(type as 'float32', numbers as Float32Array, dims);
