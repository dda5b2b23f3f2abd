import * as fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import type { OnnxDecoder, OnnxSequence } from '../../src/runtimes/onnx/index.js';
import { Scratch, type TestDaemon } from '../e2e/support.js';
import { settings } from '../model/property_settings.js';
import { TinyModels } from './demo_models.js';
import { distance, joined, openDecoder, poisonIdleStates, startDaemon, tokensOf } from './onnx_support.js';
import { chunkEnds, PlainDecoder } from './plain_decoder.js';

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

const ROUNDING = 1e-3;

type Step =
  | { readonly prefill: number; readonly length: number; readonly abortAt: number | undefined }
  | { readonly decode: number }
  | { readonly propose: number; readonly keep: number; readonly fails: boolean }
  | { readonly pause: number }
  | 'forget'
  | 'reopen';

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      // Texts that begin alike, and prompts that are whole columns.
      prefill: fc.integer({ min: 0, max: 3 }),
      length: fc.oneof(fc.integer({ min: 1, max: 420 }), fc.constantFrom(64, 128, 192, 256, 320)),
      abortAt: fc.option(fc.integer({ min: 1, max: 4 }), { nil: undefined, freq: 5 }),
    }),
  },
  { weight: 3, arbitrary: fc.record({ decode: fc.integer({ min: 1, max: 70 }) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      propose: fc.integer({ min: 0, max: 80 }),
      keep: fc.integer({ min: 0, max: 80 }),
      fails: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ pause: fc.integer({ min: 0, max: 5 }) }) },
  { weight: 1, arbitrary: fc.constantFrom('forget' as const, 'reopen' as const) },
);

/** A text of a tenant: the first 150 tokens are those of all its texts. */
const textOf = (tenant: number, text: number) =>
  joined(tokensOf(500 + tenant, 150), tokensOf(600 + 10 * tenant + text, 300));

/** Goes through steps with one sequence after another, and compares all logits with those of a plain run. */
async function live(decoder: OnnxDecoder, plain: PlainDecoder, tenant: number, steps: readonly Step[]): Promise<void> {
  const isolationId = `tenant ${tenant}`;
  let sequence: OnnxSequence = decoder.openSequence({ isolationId });
  let tokens: Uint32Array | undefined;
  const check = async (logits: Float32Array, text: Uint32Array) => {
    const expected = await plain.runInChunks(text, chunkEnds(0, text.length, 512));
    expect(distance(logits, expected.logits)).toBeLessThan(ROUNDING);
  };
  for (const each of steps) {
    if (each === 'forget') {
      await decoder.driver.forget({ isolationId });
    } else if (each === 'reopen') {
      await sequence.close();
      sequence = decoder.openSequence({ isolationId });
      tokens = undefined;
    } else if ('pause' in each) {
      await new Promise((resolve) => setTimeout(resolve, each.pause));
    } else if ('prefill' in each) {
      const prompt = textOf(tenant, each.prefill).subarray(0, each.length);
      const controller = new AbortController();
      if (each.abortAt !== undefined) setTimeout(() => controller.abort(new Error('enough')), each.abortAt);
      tokens = await sequence.prefill(prompt, { signal: controller.signal }).then(
        async ({ logits }) => {
          await check(logits, prompt);
          return prompt;
        },
        (thrown: Error) => {
          expect(thrown.message).toBe('enough');
          return undefined;
        },
      );
    } else if (tokens === undefined) {
      await expect(sequence.decode(1)).rejects.toThrow('prefill one first');
    } else if ('decode' in each) {
      const added = tokensOf(each.decode, each.decode);
      let logits = new Float32Array(0) as Float32Array;
      for (const token of added) logits = await sequence.decode(token);
      tokens = joined(tokens, added);
      await check(logits, tokens);
    } else {
      const { propose, keep, fails } = each;
      const text = [...tokens, 9];
      let asked = 0;
      let likeliest: Float32Array | undefined;
      const speculation = sequence.speculate(9, propose, (logits) => {
        asked += 1;
        if (asked > keep && fails) throw new Error('no token');
        likeliest = logits.slice();
        // What the target would choose, or what it would never.
        return logits.indexOf(asked <= keep ? Math.max(...logits) : Math.min(...logits));
      });
      if (keep === 0 && fails) {
        await expect(speculation).rejects.toThrow('no token');
        tokens = undefined;
        continue;
      }
      const ended = await speculation.catch((thrown: Error) => thrown.message);
      if (typeof ended === 'string') {
        expect(ended).toBe('no token');
        tokens = undefined;
        continue;
      }
      text.push(...ended.tokens.slice(0, -1));
      expect([ended.tokens.length, sequence.length]).toEqual([ended.accepted + 1, text.length]);
      tokens = Uint32Array.from(text);
      await check(likeliest as Float32Array, tokens);
    }
  }
  await sequence.close();
}

describe.each([
  { attention: 'decomposed' },
  { attention: 'fused', slidingWindow: { tokens: 96, pattern: 2 } },
  { attention: 'decomposed', slidingWindow: { tokens: 96, pattern: 2 } },
] as const)('%j', (shape) => {
  test('whatever sequences do at once, in a cache that is too small, logits are those of their own text', async () => {
    const { target, draft } = await models.makeWithDraft(shape);
    const plain = await PlainDecoder.load(target.model);
    poisonIdleStates();
    await using decoder = await openDecoder(target, [daemon.socket], {
      draft,
      prefillChunkTokens: 128,
      driver: { capacityColumns: 12 },
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.array(step, { minLength: 1, maxLength: 7 }), { minLength: 1, maxLength: 4 }),
        async (lives) => {
          // Two sequences of each tenant.
          await Promise.all(lives.map((steps, index) => live(decoder, plain, index >> 1, steps)));
        },
      ),
      { ...settings(12), endOnFailure: true },
    );
    const { columnsRefilled, columnsDeleted } = decoder.driver.stats;
    expect(Math.min(columnsRefilled, columnsDeleted)).toBeGreaterThan(10);
    await plain.release();
  });
});
