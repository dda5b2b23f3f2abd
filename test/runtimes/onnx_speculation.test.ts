import { InferenceSession } from 'onnxruntime-node';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import type { OnnxDecoder, OnnxDecoderOptions } from '../../src/runtimes/onnx/index.js';
import { greedy, sampler } from '../../src/runtimes/onnx/index.js';
import { Sequence } from '../../src/swdriver/sequence.js';
import { Scratch, type TestDaemon } from '../e2e/support.js';
import { SESSION_OPTIONS, type TinyModel, TinyModels } from './demo_models.js';
import { distance, joined, look, openDecoder, startDaemon, store, tokensOf } from './onnx_support.js';
import { PlainDecoder } from './plain_decoder.js';

const scratch = new Scratch();
const models = new TinyModels(scratch);
let daemon: TestDaemon;
beforeAll(async () => {
  daemon = await startDaemon(scratch, { budget: '128MiB' });
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  scratch[Symbol.dispose]();
});
afterEach(() => vi.restoreAllMocks());

/** Far above what rounding does, far below what a wrong token does. */
const ROUNDING = 1e-3;

/** A session that tells how many tokens each run has had. */
class WatchedModel implements AsyncDisposable {
  /** Tokens of each run. */
  readonly runs: number[] = [];
  /** Called before each run; what it throws the run rejects with. */
  before: () => void | Promise<void> = () => {};

  private constructor(
    readonly session: InferenceSession,
    private readonly config: unknown,
  ) {
    const run = session.run.bind(session) as (...args: unknown[]) => ReturnType<InferenceSession['run']>;
    session.run = (async (...args: unknown[]) => {
      const { input_ids } = args[0] as { input_ids: { dims: readonly number[] } };
      this.runs.push(input_ids.dims[1] as number);
      await this.before();
      return run(...args);
    }) as never;
  }

  static async load({ model, config }: TinyModel): Promise<WatchedModel> {
    return new WatchedModel(await InferenceSession.create(model, SESSION_OPTIONS), config);
  }

  get options() {
    return { model: this.session, revision: '1', config: this.config };
  }

  /** Tokens that were computed since the last call. */
  tokens(): number {
    return this.runs.splice(0).reduce((sum, tokens) => sum + tokens, 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.session.release();
  }
}

const SHAPES = [
  {},
  { attention: 'fused' },
  { slidingWindow: { tokens: 96, pattern: 2 } },
  { dtype: 'fp16', attention: 'fused', slidingWindow: { tokens: 96, pattern: 2 } },
] as const;

async function generated(decoder: OnnxDecoder, prompt: Uint32Array, options: Record<string, unknown>) {
  const generation = decoder.generate(prompt, { isolationId: 'acme', maxTokens: 24, ...options });
  const tokens: number[] = [];
  for await (const token of generation) tokens.push(token);
  return { tokens, generation };
}

describe.each(SHAPES)('with a draft, %j', (shape) => {
  let target: WatchedModel;
  let draft: WatchedModel;
  let plain: PlainDecoder;
  const open = (more: Partial<OnnxDecoderOptions> = {}) =>
    openDecoder(target.options as never, [daemon.socket], { revision: '1', draft: draft.options, ...more });

  beforeAll(async () => {
    const made = await models.makeWithDraft(shape);
    target = await WatchedModel.load(made.target);
    draft = await WatchedModel.load(made.draft);
    plain = await PlainDecoder.load(made.target.model);
  });
  afterAll(async () => {
    await target[Symbol.asyncDispose]();
    await draft[Symbol.asyncDispose]();
    await plain.release();
  });
  afterEach(() => {
    target.before = () => {};
    draft.before = () => {};
    target.tokens();
    draft.tokens();
  });

  test('tokens are those of the target alone, greedy and drawn', async () => {
    await using decoder = await open();
    let [proposed, accepted, hits] = [0, 0, 0];
    for (let seed = 0; seed < 7; seed += 1) {
      // Half of a prompt is that of the one before.
      const prompt = joined(tokensOf(100 + (seed >> 1), 90), tokensOf(seed, 30 + 7 * seed));
      for (const temperature of [0, 0.8]) {
        const sample = () => sampler({ temperature, seed });
        const alone = await generated(decoder, prompt, { sample: sample(), proposeTokens: 0, storeUpTo: 0 });
        expect(alone.generation.proposed).toBe(0);
        const proposeTokens = 1 + (seed % 6);
        const together = await generated(decoder, prompt, { sample: sample(), proposeTokens });
        expect(together.tokens).toEqual(alone.tokens);
        proposed += together.generation.proposed;
        accepted += together.generation.accepted;
        hits += together.generation.cachedTokens;
      }
      if (!('dtype' in shape) && seed < 3) {
        const { tokens } = await generated(decoder, prompt, {});
        expect(tokens).toEqual(await plain.continuation(prompt, 24, 512));
      }
    }
    expect(accepted).toBeGreaterThan(0);
    expect(proposed).toBeGreaterThan(accepted);
    expect(hits).toBeGreaterThan(0);
  });

  test('a hit brings back the state of both: neither computes what was cached', async () => {
    await using decoder = await open();
    const prompt = tokensOf(50, 300);
    await store(decoder, 'both', prompt.subarray(0, 256));
    target.tokens();
    draft.tokens();
    const sequence = decoder.openSequence({ isolationId: 'both' });
    const { cachedTokens, logits } = await sequence.prefill(prompt, { storeUpTo: 0 });
    expect(cachedTokens).toBe(256);
    const token = greedy(logits);
    const { accepted } = await sequence.speculate(token, 5);
    // The end of the prompt, the token and its proposals; of the last of them the draft need not know what follows.
    expect(target.tokens()).toBe(44 + 1 + 5);
    expect(draft.tokens()).toBe(44 + 1 + 4);
    expect(sequence.length).toBe(301 + accepted);
    await sequence.close();
    // Without the cache both compute all of it.
    const other = decoder.openSequence({ isolationId: 'other' });
    await other.prefill(prompt, { storeUpTo: 0 });
    await other.speculate(token, 5);
    expect([target.tokens(), draft.tokens()]).toEqual([306, 305]);
    await other.close();
  });

  test('nobody finds a column before the draft has computed it as well', async () => {
    await using decoder = await open();
    let go = () => {};
    const gate = new Promise<void>((resolve) => {
      go = resolve;
    });
    draft.tokens();
    draft.before = () => gate;
    const prompt = tokensOf(51, 150);
    const sequence = decoder.openSequence({ isolationId: 'late' });
    try {
      await sequence.prefill(prompt);
      for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setTimeout(resolve, 1));
      expect([draft.tokens(), decoder.driver.columns]).toEqual([150, 0]);
    } finally {
      go();
    }
    await sequence.close();
    expect(decoder.driver.columns).toBe(2);
    expect((await look(decoder, 'late', prompt)).cachedTokens).toBe(128);
  });

  test('what was decoded without proposals is stored for both', async () => {
    await using decoder = await open();
    const prompt = tokensOf(52, 100);
    const answer = tokensOf(53, 100);
    const sequence = decoder.openSequence({ isolationId: 'decoded' });
    await sequence.prefill(prompt);
    for (const token of answer) await sequence.decode(token);
    await sequence.close();
    draft.tokens();
    const next = decoder.openSequence({ isolationId: 'decoded' });
    const { cachedTokens, logits } = await next.prefill(joined(prompt, answer), { storeUpTo: 0 });
    expect(cachedTokens).toBe(192);
    await next.speculate(greedy(logits), 1);
    expect(draft.tokens()).toBe(8 + 1);
    await next.close();
  });

  test('rejected proposals are never found, accepted ones are, with the right state', async () => {
    await using decoder = await open();
    const prompt = tokensOf(54, 100);
    const propose = vi.spyOn(Sequence.prototype, 'propose');
    const verify = vi.spyOn(Sequence.prototype, 'verify');
    const guess = () => joined(prompt, [7], propose.mock.lastCall?.[0] ?? []);
    const columnsOf = (tenant: string, tokens: Uint32Array) => {
      using hit = decoder.driver.openSequence({ isolationId: tenant }).match(tokens, { storeUpTo: 0 });
      return hit.columns;
    };
    for (const keep of [0, 26, 27, 90, 91, 130] as const) {
      const tenant = `keeps ${keep}`;
      const sequence = decoder.openSequence({ isolationId: tenant });
      await sequence.prefill(prompt);
      let asked = 0;
      const { tokens, accepted } = await sequence.speculate(7, 130, () => {
        const proposals = propose.mock.lastCall?.[0] as Uint32Array;
        // Before the verdict nothing of it is there.
        expect(columnsOf(tenant, guess())).toBeLessThanOrEqual(1);
        asked += 1;
        return asked <= keep ? (proposals[asked - 1] as number) : ((proposals[asked - 1] ?? 0) + 1) % 512;
      });
      expect([accepted, tokens.length, sequence.length]).toEqual([keep, keep + 1, 101 + keep]);
      expect(verify).toHaveBeenLastCalledWith(keep);
      const text = guess();
      await sequence.close();
      const full = Math.floor((101 + keep) / 64);
      expect(columnsOf(tenant, text)).toBe(full);
      // And what is there is what the target computes for that text.
      const { logits, cachedTokens } = await look(decoder, tenant, text.slice(0, 102 + keep));
      expect(cachedTokens).toBe(full * 64);
      const single = await plain.run(plain.nothing, text.slice(0, 102 + keep));
      expect(distance(logits, single.logits)).toBeLessThan('dtype' in shape ? 0.5 : ROUNDING);
    }
  });

  test('proposals around the end of a column, whatever is accepted of them', async () => {
    await using decoder = await open();
    for (let length = 60; length <= 66; length += 2) {
      for (let count = 1; count <= 5; count += 2) {
        for (let keep = 0; keep <= count; keep += 1) {
          const tenant = `${length} ${count} ${keep}`;
          const sequence = decoder.openSequence({ isolationId: tenant });
          await sequence.prefill(tokensOf(length, length));
          const propose = vi.spyOn(Sequence.prototype, 'propose');
          const text = [...tokensOf(length, length)];
          let token = 3;
          for (let round = 0; round < 3; round += 1) {
            let asked = 0;
            const { tokens } = await sequence.speculate(token, count, () => {
              const proposal = propose.mock.lastCall?.[0][asked];
              asked += 1;
              return asked <= keep ? (proposal as number) : (text.length + count) % 512;
            });
            text.push(token, ...tokens.slice(0, -1));
            token = tokens.at(-1) as number;
          }
          expect(sequence.length).toBe(text.length);
          const logits = await sequence.decode(token);
          text.push(token);
          const all = Uint32Array.from(text);
          const limit = 'dtype' in shape ? 0.5 : ROUNDING;
          const single = await plain.run(plain.nothing, all);
          expect(distance(logits, single.logits)).toBeLessThan(limit);
          await sequence.close();
          const again = await look(decoder, tenant, all);
          expect(again.cachedTokens).toBe(Math.min(Math.floor(text.length / 64) * 64, text.length - 1));
          expect(distance(again.logits, single.logits)).toBeLessThan(limit);
          vi.restoreAllMocks();
        }
      }
    }
  });

  test('a sampler that throws leaves no proposals behind, in the state and in the store', async () => {
    await using decoder = await open();
    const prompt = tokensOf(55, 100);
    const sequence = decoder.openSequence({ isolationId: 'throws' });
    await sequence.prefill(prompt);
    const propose = vi.spyOn(Sequence.prototype, 'propose');
    let asked = 0;
    const failing = sequence.speculate(7, 100, () => {
      asked += 1;
      if (asked === 40) throw new Error('no more');
      return propose.mock.lastCall?.[0][asked - 1] as number;
    });
    await expect(failing).rejects.toThrow('no more');
    expect(sequence.length).toBe(101 + 39);
    await sequence.close();
    const text = joined(prompt, [7], propose.mock.lastCall?.[0] ?? []);
    const { cachedTokens, logits } = await look(decoder, 'throws', text);
    expect(cachedTokens).toBe(128);
    const single = await plain.run(plain.nothing, text);
    expect(distance(logits, single.logits)).toBeLessThan('dtype' in shape ? 0.5 : ROUNDING);
  });

  test.each(['target', 'draft'] as const)('a run of the %s that fails spoils nothing', async (which) => {
    await using decoder = await open();
    const prompt = tokensOf(56, 190);
    const sequence = decoder.openSequence({ isolationId: 'fails' });
    await sequence.prefill(prompt);
    const failing = which === 'target' ? target : draft;
    // Whether the draft is asked in the background or to propose, this one fails.
    while (decoder.driver.columns < 2) await new Promise((resolve) => setTimeout(resolve, 1));
    failing.before = () => {
      throw new Error('out of memory');
    };
    await expect(sequence.speculate(7, 8)).rejects.toThrow('out of memory');
    if (which === 'target') await expect(sequence.prefill(prompt)).rejects.toThrow('out of memory');
    failing.before = () => {};
    await expect(sequence.decode(7)).rejects.toThrow('prefill one first');
    const { logits, cachedTokens } = await sequence.prefill(prompt);
    expect(cachedTokens).toBe(128);
    const { tokens } = await sequence.speculate(greedy(logits), 8);
    await sequence.close();
    const fresh = decoder.openSequence({ isolationId: 'fresh' });
    const first = await fresh.prefill(prompt);
    expect(greedy(first.logits)).toBe(greedy(logits));
    expect((await fresh.speculate(greedy(first.logits), 8)).tokens).toEqual(tokens);
    await fresh.close();
  });

  test('a draft that fails in the background leaves its columns unstored, and close() says so', async () => {
    await using decoder = await open();
    const prompt = tokensOf(57, 190);
    const sequence = decoder.openSequence({ isolationId: 'background' });
    draft.before = () => {
      throw new Error('out of memory');
    };
    const { logits } = await sequence.prefill(prompt);
    // The target goes on alone.
    const next = await sequence.decode(greedy(logits));
    expect(next).toHaveLength(512);
    await expect(sequence.close()).rejects.toThrow('out of memory');
    draft.before = () => {};
    expect(decoder.driver.columns).toBe(0);
    expect((await look(decoder, 'background', prompt)).cachedTokens).toBe(0);
  });
});
