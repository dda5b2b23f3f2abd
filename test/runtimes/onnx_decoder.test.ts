import { afterAll, beforeAll, expect, test } from 'vitest';
import type { OnnxDecoderOptions } from '../../src/runtimes/onnx/index.js';
import { Scratch, type TestDaemon } from '../e2e/support.js';
import { type TinyModel, TinyModels } from './demo_models.js';
import { joined, look, openDecoder, sameBits, startDaemon, store, tokensOf } from './onnx_support.js';
import { chunkEnds, cut, PlainDecoder } from './plain_decoder.js';

const scratch = new Scratch();
const models = new TinyModels(scratch);
let daemons: TestDaemon[];
let tiny: TinyModel;
let plain: PlainDecoder;
beforeAll(async () => {
  daemons = await Promise.all(['one', 'two'].map((name) => startDaemon(scratch, { name })));
  tiny = await models.make();
  plain = await PlainDecoder.load(tiny.model);
});
afterAll(async () => {
  await plain.release();
  await Promise.all(daemons.map((daemon) => daemon[Symbol.asyncDispose]()));
  scratch[Symbol.dispose]();
});

const PROMPT = tokensOf(1, 300);
const addresses = (count: number) => daemons.slice(0, count).map(({ socket }) => socket);

/** 3 layers of keys and values of 2 heads with 16 numbers of 4 bytes. */
const BYTES_PER_TOKEN = 3 * 2 * 2 * 16 * 4;

test.each<[string, number, Partial<OnnxDecoderOptions>, number[]]>([
  ['two equal shards', 1, {}, [0.5, 0.5]],
  ['unequal shards', 1, { shares: [3, 1] }, [0.75, 0.25]],
  ['a shard that has one head of one layer', 1, { shares: [11, 1] }, [11 / 12, 1 / 12]],
  ['the shards of two daemons', 2, {}, [0.25, 0.25, 0.25, 0.25]],
  ['either of two daemons', 2, { driver: { striping: 'within' } }, [0.5, 0.5]],
])('keys and values lie on %s', async (_, count, options, parts) => {
  await using decoder = await openDecoder(tiny, addresses(count), options);
  expect(decoder.bytesPerToken).toBe(BYTES_PER_TOKEN);
  expect(decoder.driver.pieceBytes).toEqual(parts.map((part) => part * BYTES_PER_TOKEN * 64));
  await store(decoder, 'acme', PROMPT.subarray(0, 256));
  const { logits, cachedTokens } = await look(decoder, 'acme', PROMPT);
  expect(cachedTokens).toBe(256);
  const { past } = await plain.run(plain.nothing, PROMPT.subarray(0, 256));
  const chunked = await plain.runInChunks(PROMPT, chunkEnds(256, 300, 512), cut(past, 256));
  expect(sameBits(logits, chunked.logits)).toBe(true);
});

test('a graph that can append in place gives the same where it is told not to', async () => {
  const fused = await models.make({ attention: 'fused', slidingWindow: { tokens: 96, pattern: 2 } });
  const logits: Float32Array[] = [];
  for (const sharesState of [true, false]) {
    await using decoder = await openDecoder(fused, addresses(1), { sharesState });
    await store(decoder, 'acme', PROMPT.subarray(0, 256));
    const found = await look(decoder, 'acme', PROMPT);
    expect(found.cachedTokens).toBe(256);
    logits.push(found.logits);
  }
  expect(sameBits(logits[0] as Float32Array, logits[1] as Float32Array)).toBe(true);
});

test('tokens that stand for an image meet only where the image is the same', async () => {
  await using decoder = await openDecoder(tiny, addresses(1));
  const spanOf = (image: number) => [{ offset: 100, length: 50, digest: new Uint8Array(32).fill(image) }];
  const sequence = decoder.openSequence({ isolationId: 'acme' });
  await sequence.prefill(PROMPT, { spans: spanOf(1) });
  await sequence.close();
  const found = async (spans?: ReturnType<typeof spanOf>) =>
    (await look(decoder, 'acme', PROMPT, spans ? { spans } : {})).cachedTokens;
  expect([await found(spanOf(1)), await found(spanOf(2)), await found()]).toEqual([256, 64, 64]);
});

test('another adapter shares nothing, and what is not to be stored is not', async () => {
  await using decoder = await openDecoder(tiny, addresses(1));
  const cached = async (adapter: string, storeUpTo: number) => {
    const generation = decoder.generate(PROMPT, { isolationId: 'acme', adapter, storeUpTo, maxTokens: 3 });
    for await (const _ of generation);
    expect(generation.promptTokens).toBe(300);
    return generation.cachedTokens;
  };
  expect([await cached('a', 150), await cached('b', 300), await cached('a', 0), await cached('b', 0)]).toEqual([
    0, 0, 128, 256,
  ]);
});

test('a generation ends with a stop token, and tells what it has found', async () => {
  await using decoder = await openDecoder(tiny, addresses(1));
  const answer = await plain.continuation(PROMPT, 40, 512);
  const stop = answer[20] as number;
  const generation = decoder.generate(PROMPT, { isolationId: 'acme', stopTokens: [stop] });
  const tokens: number[] = [];
  for await (const token of generation) tokens.push(token);
  expect(tokens).toEqual(answer.slice(0, answer.indexOf(stop) + 1));
  expect([generation.outputTokens, generation.cachedTokens]).toEqual([tokens.length, 0]);
  expect(generation.missed).toMatchObject({ neverStored: 256, partial: 44 });
  // The answer is stored as well: the next turn begins behind it.
  const next = joined(PROMPT, answer.slice(0, 20), tokensOf(2, 30));
  expect((await look(decoder, 'acme', next)).cachedTokens).toBe(answer.indexOf(stop) >= 20 ? 320 : 256);
});

test('any model with the vocabulary of the target can be its draft: another dtype, other heads, windows of its own', async () => {
  const draft = await models.make({
    ...{ layers: 2, heads: 2, keyValueHeads: 1, headDim: 32, dtype: 'fp16', attention: 'fused', seed: 3 },
    slidingWindow: { tokens: 70, pattern: 2 },
  });
  await using decoder = await openDecoder(tiny, addresses(1), { draft });
  expect(decoder.driver.groups.map(({ name }) => name).sort()).toEqual(['draft', 'draft_sliding', 'full']);
  const answer = await plain.continuation(PROMPT, 40, 512);
  for (const cachedTokens of [0, 256]) {
    const generation = decoder.generate(PROMPT, { isolationId: 'acme', maxTokens: 40 });
    const tokens: number[] = [];
    for await (const token of generation) tokens.push(token);
    expect(tokens).toEqual(answer);
    expect([generation.cachedTokens, generation.proposed > 0]).toEqual([cachedTokens, true]);
  }
});
