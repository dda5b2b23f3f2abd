import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { expect, test } from 'vitest';
import { OnnxModel } from '../../src/runtimes/onnx/onnx_model.js';
import { refusalOf } from '../refusal.js';

const VOCABULARY = 10;
const [HEADS, DIM] = [2, 3];

interface Shape {
  /** Whether it appends in place. */
  shares?: boolean;
  type?: 'float32' | 'float16';
  index?: 'int64' | 'int32';
  inputs?: readonly [name: string, shape: readonly (string | number)[]][];
}

type Feeds = Record<string, Tensor>;

/**
 * A graph of one layer that remembers tokens: the row that one leaves in each head is the token itself, and the logits behind it
 * say the sum of all tokens so far, and how many there are.
 */
class FakeSession {
  readonly inputMetadata: unknown[];
  readonly outputMetadata: unknown[];
  readonly feeds: Feeds[] = [];
  /** Runs that have begun and not ended. */
  atWork = 0;
  failure: Error | undefined;
  readonly #shape: Required<Shape>;

  constructor(shape: Shape = {}) {
    this.#shape = { shares: false, type: 'float32', index: 'int64', inputs: [], ...shape };
    const { type, index, inputs } = this.#shape;
    const tensor = (name: string, of: string, dims: readonly (string | number)[]) =>
      ({ name, isTensor: true, type: of, shape: dims }) as const;
    const planes = (name: string) =>
      ['key', 'value'].map((kind) => tensor(`${name}.0.${kind}`, type, ['batch', HEADS, 'tokens', DIM]));
    this.inputMetadata = [
      tensor('input_ids', index, ['batch', 'tokens']),
      ...inputs.map(([name, dims]) => tensor(name, name === 'use_cache_branch' ? 'bool' : index, dims)),
      ...planes('past_key_values'),
    ];
    this.outputMetadata = [tensor('logits', type, ['batch', 'tokens', VOCABULARY]), ...planes('present')];
  }

  get session(): InferenceSession {
    return this as unknown as InferenceSession;
  }

  async run(feeds: Feeds, fetches: Feeds): Promise<Feeds> {
    this.feeds.push(feeds);
    expect(this.atWork).toBe(0);
    this.atWork += 1;
    await new Promise((resolve) => setImmediate(resolve));
    this.atWork -= 1;
    if (this.failure) throw this.failure;
    const { shares } = this.#shape;
    const ids = [...(feeds.input_ids as Tensor).data].map(Number);
    const mask = feeds.attention_mask?.dims[1] as number;
    const width = (feeds['past_key_values.0.key'] as Tensor).dims[2] as number;
    const past = shares ? mask - ids.length : width;
    for (const kind of ['key', 'value']) {
      const [from, to] = [feeds[`past_key_values.0.${kind}`] as Tensor, fetches[`present.0.${kind}`] as Tensor];
      const newWidth = shares ? width : past + ids.length;
      if (to.dims[2] !== newWidth) throw new Error(`present has ${to.dims[2]} tokens, not ${newWidth}`);
      if (!shares && mask !== newWidth) throw new Error(`the mask has ${mask} tokens, not ${newWidth}`);
      const [source, target] = [from.data as Float32Array, to.data as Float32Array];
      for (let head = 0; head < HEADS; head += 1) {
        for (let token = 0; token < past + ids.length; token += 1) {
          const row =
            token < past
              ? source.slice((head * width + token) * DIM, (head * width + token + 1) * DIM)
              : new Array(DIM).fill(ids[token - past]);
          target.set(row, (head * newWidth + token) * DIM);
        }
      }
    }
    const { logits } = fetches;
    if (logits) {
      const present = fetches['present.0.key'] as Tensor;
      const rows = logits.dims[1] as number;
      for (let row = 0; row < rows; row += 1) {
        const seen = past + ids.length - rows + row + 1;
        const sum = [...(present.data as Float32Array)].filter((_, at) => at % DIM === 0).slice(0, seen);
        const numbers = logits.data as Float32Array;
        numbers[row * VOCABULARY] = sum.reduce((total, each) => total + each, 0);
        numbers[row * VOCABULARY + 1] = seen;
      }
    }
    return fetches;
  }
}

const MASK: [string, (string | number)[]] = ['attention_mask', ['batch', 'total']];
const summed = (logits: Float32Array, row = 0) => [...logits.subarray(row * VOCABULARY, row * VOCABULARY + 2)];

test.each([true, false])(
  'finds out whether a graph appends in place (%s), and has it remember all tokens',
  async (shares) => {
    const fake = new FakeSession({ shares, inputs: [MASK] });
    const model = await OnnxModel.create(fake.session);
    expect(model.sharesState).toBe(shares);
    const state = model.takeState(1);
    expect(summed(await model.run(state, Uint32Array.of(1, 2, 3), 'last'))).toEqual([6, 3]);
    const all = await model.run(state, Uint32Array.of(4, 5), 'all');
    expect([all.length, summed(all), summed(all, 1)]).toEqual([2 * VOCABULARY, [10, 4], [15, 5]]);
    expect(await model.run(state, Uint32Array.of(1), 'none')).toHaveLength(0);
    state.truncate(3);
    expect(summed(await model.run(state, Uint32Array.of(9), 'last'))).toEqual([15, 4]);
    // Over the end of the memory.
    for (let turn = 0; turn < 3; turn += 1) await model.run(state, new Uint32Array(200).fill(1), 'none');
    expect(summed(await model.run(state, Uint32Array.of(1), 'last'))).toEqual([616, 605]);
  },
);

test('feeds what the graph asks for, in its type', async () => {
  for (const index of ['int64', 'int32'] as const) {
    const inputs: [string, (string | number)[]][] = [
      MASK,
      ['position_ids', ['batch', 'tokens']],
      ['num_logits_to_keep', []],
      ['use_cache_branch', [1]],
    ];
    const fake = new FakeSession({ index, inputs });
    const model = await OnnxModel.create(fake.session, { sharesState: false });
    const state = model.takeState(1);
    await model.run(state, Uint32Array.of(1, 2), 'none');
    expect(summed(await model.run(state, Uint32Array.of(3, 4, 5), 'last'))).toEqual([15, 5]);
    const fed = (name: string) => {
      const { type, dims, data } = (fake.feeds.at(-1) as Feeds)[name] as Tensor;
      return [type, dims, [...data].map(Number)];
    };
    expect(fed('input_ids')).toEqual([index, [1, 3], [3, 4, 5]]);
    expect(fed('attention_mask')).toEqual([index, [1, 5], [1, 1, 1, 1, 1]]);
    expect(fed('position_ids')).toEqual([index, [1, 3], [2, 3, 4]]);
    expect(fed('num_logits_to_keep')).toEqual([index, [], [1]]);
    expect(fed('use_cache_branch')).toEqual(['bool', [1], [1]]);
    const all = await model.run(state, Uint32Array.of(1, 1), 'all');
    expect([summed(all), summed(all, 1)]).toEqual([
      [16, 6],
      [17, 7],
    ]);
    expect(fed('num_logits_to_keep')).toEqual([index, [], [2]]);
  }
});

test('runs take turns in their order, and each has logits of its own', async () => {
  const fake = new FakeSession({ inputs: [MASK] });
  const model = await OnnxModel.create(fake.session);
  const states = Array.from({ length: 6 }, () => model.takeState(1));
  const all = await Promise.all(states.map((state, index) => model.run(state, Uint32Array.of(index), 'last')));
  expect(all.map((logits) => summed(logits)[0])).toEqual([0, 1, 2, 3, 4, 5]);
});

test('a run that fails leaves the state what it was, and the next ones their turn', async () => {
  for (const shares of [true, false]) {
    const fake = new FakeSession({ shares, inputs: [MASK] });
    const model = await OnnxModel.create(fake.session);
    const state = model.takeState(1);
    await model.run(state, Uint32Array.of(5), 'last');
    fake.failure = new Error('out of memory');
    await expect(model.run(state, new Uint32Array(300), 'last')).rejects.toThrow('out of memory');
    fake.failure = undefined;
    expect(state.length).toBe(1);
    expect(summed(await model.run(state, Uint32Array.of(2), 'last'))).toEqual([7, 2]);
  }
});

test('a state that is given back is empty for the next one', async () => {
  const fake = new FakeSession({ inputs: [MASK] });
  const model = await OnnxModel.create(fake.session);
  const state = model.takeState(1);
  await model.run(state, Uint32Array.of(5, 5), 'none');
  model.giveState(state);
  const next = model.takeState(1);
  expect(next).toBe(state);
  expect(summed(await model.run(next, Uint32Array.of(1), 'last'))).toEqual([1, 1]);
});

test('a graph that does not run is refused with what ONNX Runtime says', async () => {
  const fake = new FakeSession({ inputs: [MASK] });
  fake.failure = new Error('no kernel');
  expect(await refusalOf(() => OnnxModel.create(fake.session))).toMatch(
    /^model: it does not run one token and then two behind it: no kernel/,
  );
});
