import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { seededRandom } from '../../src/common/random.js';
import { OnnxModel } from '../../src/runtimes/onnx/onnx_model.js';
import { PieceLayout } from '../../src/runtimes/onnx/piece_layout.js';
import { pause, Scratch, type TestDaemon, until } from '../e2e/support.js';
import { type TinyModel, TinyModels } from './demo_models.js';
import {
  distance,
  joined,
  LINKS,
  look,
  openDecoder,
  poisonIdleStates,
  sameBits,
  startDaemon,
  store,
  tokensOf,
} from './onnx_support.js';
import { chunkEnds, cut, PlainDecoder } from './plain_decoder.js';

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

const SHAPES = [
  { attention: 'decomposed' },
  { attention: 'decomposed', slidingWindow: { tokens: 96, pattern: 2 } },
  { attention: 'fused', slidingWindow: { tokens: 96, pattern: 2 } },
] as const;

describe.each(SHAPES)('many sequences at once, %j', (shape) => {
  test('have the tokens that each has alone, whoever else is aborted or closed', async () => {
    const tiny = await models.make(shape);
    const plain = await PlainDecoder.load(tiny.model);
    const states = poisonIdleStates();
    await using decoder = await openDecoder(tiny, [daemon.socket], { prefillChunkTokens: 128 });
    const random = seededRandom(9);
    const work = Array.from({ length: 12 }, async (_, index) => {
      const tenant = `tenant ${index % 3}`;
      const prompt = joined(tokensOf(1000 + (index % 3), 200), tokensOf(index, 10 + 9 * index));
      const [fate, delay] = [index % 4, 30 * random()];
      const controller = new AbortController();
      await pause(delay);
      const tokens: number[] = [];
      const generation = decoder.generate(prompt, { isolationId: tenant, maxTokens: 40, signal: controller.signal });
      const read = (async () => {
        for await (const token of generation) {
          tokens.push(token);
          if (fate === 1 && tokens.length === 5 + index) break;
          if (index % 5 === 0) await pause(random());
        }
      })();
      if (fate === 2) {
        await pause(40 * random());
        controller.abort(new Error('enough'));
      }
      const ended = await read.then(
        () => 'well',
        (thrown: Error) => thrown.message,
      );
      return { prompt, tokens, fate, index, ended };
    });
    for (const { prompt, tokens, fate, index, ended } of await Promise.all(work)) {
      expect(fate === 2 ? ['well', 'enough'] : ['well']).toContain(ended);
      const count = fate === 1 ? 5 + index : 40;
      if (ended === 'well') expect(tokens).toHaveLength(count);
      if (tokens.length > 0) expect(tokens).toEqual(await plain.continuation(prompt, tokens.length, 128));
    }
    expect(states.poisoned).toBe(12);
    // And what they have stored is right, of the aborted ones as well.
    const prompt = joined(tokensOf(1000, 200), tokensOf(0, 100));
    const { logits, cachedTokens } = await look(decoder, 'tenant 0', prompt);
    expect(cachedTokens).toBeGreaterThanOrEqual(192);
    const whole = await plain.runInChunks(prompt, chunkEnds(0, prompt.length, 128));
    expect(distance(logits, whole.logits)).toBeLessThan(1e-3);
    await plain.release();
  });

  test('a prefill that is aborted between two chunks stores what it has computed', async () => {
    const tiny = await models.make(shape);
    await using decoder = await openDecoder(tiny, [daemon.socket], { prefillChunkTokens: 128 });
    const prompt = tokensOf(7, 600);
    const controller = new AbortController();
    const sequence = decoder.openSequence({ isolationId: 'acme' });
    const { run } = OnnxModel.prototype;
    let runs = 0;
    vi.spyOn(OnnxModel.prototype, 'run').mockImplementation(function (this: OnnxModel, ...args) {
      runs += 1;
      if (runs === 3) controller.abort(new Error('enough'));
      return run.apply(this, args);
    });
    await expect(sequence.prefill(prompt, { signal: controller.signal })).rejects.toThrow('enough');
    expect([runs, sequence.length]).toEqual([3, 384]);
    await expect(sequence.decode(1)).rejects.toThrow('prefill one first');
    await sequence.close();
    const plain = await PlainDecoder.load(tiny.model);
    const { logits, cachedTokens } = await look(decoder, 'acme', prompt);
    expect(cachedTokens).toBe(384);
    const chunked = await plain.runInChunks(prompt, chunkEnds(0, 600, 128));
    expect(sameBits(logits, chunked.logits)).toBe(true);
    await plain.release();
  });

  test('one sequence takes prompt after prompt, longer and shorter ones', async () => {
    const tiny = await models.make(shape);
    const plain = await PlainDecoder.load(tiny.model);
    await using decoder = await openDecoder(tiny, [daemon.socket]);
    const sequence = decoder.openSequence({ isolationId: 'acme' });
    for (const [seed, length] of [
      [1, 300],
      [2, 30],
      [1, 500],
      [3, 64],
      [1, 129],
      [2, 300],
    ] as const) {
      const prompt = tokensOf(seed, length);
      const { logits, cachedTokens } = await sequence.prefill(prompt);
      const { past } = await plain.run(plain.nothing, prompt);
      const chunked = await plain.run(cut(past, cachedTokens), prompt.subarray(cachedTokens));
      expect(distance(logits, chunked.logits)).toBeLessThan(1e-3);
      await sequence.decode(1);
    }
    await sequence.close();
    await plain.release();
  });
});

describe('a store that is gone is a miss and never an error', () => {
  let tiny: TinyModel;
  let plain: PlainDecoder;
  beforeAll(async () => {
    tiny = await models.make({});
    plain = await PlainDecoder.load(tiny.model);
  });
  afterAll(() => plain.release());
  const prompt = tokensOf(11, 400);
  const expected = (cachedTokens: number) =>
    plain
      .runInChunks(prompt, chunkEnds(0, prompt.length, 512))
      .then(({ past }) => plain.run(cut(past, cachedTokens), prompt.subarray(cachedTokens)))
      .then(({ logits }) => logits);

  test('a driver that is closed under its decoder', async () => {
    await using decoder = await openDecoder(tiny, [daemon.socket]);
    await store(decoder, 'acme', prompt);
    const sequence = decoder.openSequence({ isolationId: 'acme' });
    const other = decoder.openSequence({ isolationId: 'acme' });
    expect((await sequence.prefill(prompt)).cachedTokens).toBe(384);
    await decoder.driver.close();
    await sequence.decode(1);
    const { logits, cachedTokens } = await other.prefill(prompt);
    expect(cachedTokens).toBe(0);
    const { logits: plainLogits } = await plain.run(plain.nothing, prompt);
    expect(sameBits(logits, plainLogits)).toBe(true);
    for (let token = 0; token < 70; token += 1) await other.decode(token);
    await sequence.close();
    await other.close();
  });

  test('a lazy start with nobody there, who comes later', async () => {
    const socket = scratch.file('later');
    await using decoder = await openDecoder(tiny, [socket], { shares: [1, 1], driver: { lazy: true } });
    const before = await look(decoder, 'acme', prompt);
    expect(before.cachedTokens).toBe(0);
    expect(await store(decoder, 'acme', prompt)).toBe(0);
    await using _ = await startDaemon(scratch, { name: 'later' });
    await until(() => decoder.driver.usable);
    expect(await store(decoder, 'acme', prompt)).toBe(0);
    const after = await look(decoder, 'acme', prompt);
    expect(after.cachedTokens).toBe(384);
    expect(sameBits(after.logits, await expected(384))).toBe(true);
    expect(sameBits(before.logits, await expected(0))).toBe(true);
  });

  test('a lazy start that cannot know the shards says that it needs shares', async () => {
    await expect(openDecoder(tiny, [scratch.file('nobody')], { driver: { lazy: true } })).rejects.toThrow(
      /^shares: .*lazy/,
    );
  });

  test.each(LINKS)('a daemon over %s that dies in the middle of a refill', async (_, addressOf) => {
    for (const column of [3]) {
      await using mortal = await startDaemon(scratch, { name: `mortal ${column}` });
      await using decoder = await openDecoder(tiny, [addressOf(mortal)], { driver: { deadlineMs: 3_000 } });
      await store(decoder, 'acme', prompt);
      const { scatter } = PieceLayout.prototype;
      vi.spyOn(PieceLayout.prototype, 'scatter').mockImplementation(function (this: PieceLayout, ...args) {
        if (args[1] === column) mortal.kill('SIGKILL');
        scatter.apply(this, args);
      });
      const sequence = decoder.openSequence({ isolationId: 'acme' });
      const { logits, cachedTokens } = await sequence.prefill(prompt);
      expect(sameBits(logits, await expected(cachedTokens))).toBe(true);
      await sequence.close();
      vi.restoreAllMocks();
    }
  });
});
