import { createHash, randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { OnnxDecoderOptions } from '../../src/runtimes/onnx/index.js';
import { Scratch, startChild, type TestDaemon } from '../e2e/support.js';
import { SESSION_OPTIONS, type TinyModel, TinyModels } from './demo_models.js';
import { LINKS, openDecoder, sameBits, startDaemon, tokensOf } from './onnx_support.js';
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

const PROMPT = tokensOf(1, 300);

/** A decoder in a process of its own, which kills itself when it has stored what it was asked. */
async function inProcess(
  address: string,
  { model, config }: TinyModel,
  key: Uint8Array,
  prompts: [string, Uint32Array][],
) {
  const configFile = scratch.file(`config-${randomBytes(4).toString('hex')}.json`);
  await writeFile(configFile, JSON.stringify(config));
  const options = {
    id: 'tiny',
    daemons: [address],
    model,
    config: configFile,
    sessionOptions: SESSION_OPTIONS,
    driver: { capacityColumns: 50, deadlineMs: 10_000, resume: { key: Buffer.from(key).toString('hex') } },
  };
  const asked = prompts.map(([tenant, tokens]) => [tenant, [...tokens]]);
  const { finished } = startChild('onnx_decoder.mjs', [JSON.stringify(options), JSON.stringify(asked)]);
  const { stdout, stderr, signal } = await finished;
  expect([signal, stderr]).toEqual(['SIGKILL', '']);
  await daemon.awaitMetric('kvss_sessions', 0);
  return JSON.parse(stdout) as { cachedTokens: number; digest: string }[];
}

describe.each(LINKS)('two processes with one key over %s', (_, addressOf) => {
  test('find what the first has computed, with its tenant and its weights only', async () => {
    const [tiny, other] = [await models.make(), await models.make({ seed: 2 })];
    const [key, address] = [randomBytes(32), addressOf(daemon)];
    const first = await inProcess(address, tiny, key, [['acme', PROMPT]]);
    expect(first.map(({ cachedTokens }) => cachedTokens)).toEqual([0]);
    const second = await inProcess(address, tiny, key, [
      ['globex', PROMPT],
      ['acme', PROMPT],
    ]);
    expect(second.map(({ cachedTokens }) => cachedTokens)).toEqual([0, 256]);
    const plain = await PlainDecoder.load(tiny.model);
    const { past } = await plain.run(plain.nothing, PROMPT);
    const { logits } = await plain.runInChunks(PROMPT, chunkEnds(256, 300, 512), cut(past, 256));
    expect(second[1]?.digest).toBe(createHash('sha256').update(logits).digest('hex'));
    await plain.release();
    // Other weights in a file of the same name; then they find their own.
    const third = await inProcess(address, other, key, [['acme', PROMPT]]);
    const fourth = await inProcess(address, other, key, [['acme', PROMPT]]);
    expect([third[0]?.cachedTokens, fourth[0]?.cachedTokens]).toEqual([0, 256]);
    expect(third[0]?.digest).not.toBe(second[1]?.digest);
  });
});

/** What a decoder that follows another one with the same key finds, and what its own successor then does. */
async function found(
  before: readonly [TinyModel, Partial<OnnxDecoderOptions>],
  after: readonly [TinyModel, Partial<OnnxDecoderOptions>],
  adapter?: string,
): Promise<number[]> {
  const resume = { key: randomBytes(32) };
  const cached: number[] = [];
  for (const [turn, [model, options]] of [before, before, after, after].entries()) {
    const decoder = await openDecoder(model, [daemon.socket], { ...options, driver: { capacityColumns: 50, resume } });
    const changed = turn >= 2 && adapter !== undefined ? { adapter } : {};
    const sequence = decoder.openSequence({ isolationId: 'acme', ...changed });
    const { cachedTokens, logits } = await sequence.prefill(PROMPT);
    cached.push(cachedTokens);
    await sequence.close();
    // Found or not, it is what the model computes.
    const again = decoder.openSequence({ isolationId: `acme ${turn}` });
    const alone = await again.prefill(PROMPT.subarray(0, cachedTokens || 300), { storeUpTo: 0 });
    if (cachedTokens === 0) expect(sameBits(alone.logits, logits)).toBe(true);
    await again.close();
    await decoder.close({ park: true });
    await daemon.awaitMetric('kvss_sessions', 0);
  }
  return cached;
}

describe('what is another model finds nothing, and then its own', () => {
  const FOUND_ITS_OWN = [0, 256, 0, 256];

  test('another dtype', async () => {
    const [tiny, half] = [await models.make(), await models.make({ dtype: 'fp16' })];
    expect(await found([tiny, {}], [half, {}])).toEqual(FOUND_ITS_OWN);
  });

  test('another revision, as it was given or as the weights say', async () => {
    const [tiny, other] = [await models.make(), await models.make({ seed: 2 })];
    expect(await found([tiny, {}], [other, {}])).toEqual(FOUND_ITS_OWN);
    expect(await found([tiny, { revision: '1' }], [tiny, { revision: '2' }])).toEqual(FOUND_ITS_OWN);
  });

  test('another id', async () => {
    const tiny = await models.make();
    expect(await found([tiny, { id: 'a' }], [tiny, { id: 'b' }])).toEqual(FOUND_ITS_OWN);
  });

  test('another adapter', async () => {
    const tiny = await models.make();
    // The two share a driver's columns, so the first one's are still there for others.
    expect(await found([tiny, {}], [tiny, {}], 'lora')).toEqual(FOUND_ITS_OWN);
  });

  test('another draft, and revisions that only together look the same', async () => {
    const { target, draft } = await models.makeWithDraft();
    const { draft: other } = await models.makeWithDraft({ seed: 2 });
    expect(await found([target, { draft }], [target, { draft: other }])).toEqual(FOUND_ITS_OWN);
    expect(await found([target, { draft }], [target, {}])).toEqual(FOUND_ITS_OWN);
    const [a, b] = [
      { revision: 'a+b', draft: { ...draft, revision: 'c' } },
      { revision: 'a', draft: { ...draft, revision: 'b+c' } },
    ];
    expect(await found([target, a], [target, b])).toEqual(FOUND_ITS_OWN);
  });

  test('a config.json that has other layers slide, of which as many bytes lie in each group', async () => {
    const made = await models.make({ layers: 4, slidingWindow: { tokens: 4000, pattern: 2 } });
    const layerTypes = (sliding: readonly number[]) =>
      Array.from({ length: 4 }, (_, layer) => (sliding.includes(layer) ? 'sliding_attention' : 'full_attention'));
    // Windows that are longer than the prompt: the logits do not tell the two apart, keys and values at the wrong layer do.
    // As long as the context, too: else the second one is refused, because layer 1 does not slide.
    const variant = (sliding: readonly number[]): TinyModel => ({
      ...made,
      config: { ...(made.config as object), layer_types: layerTypes(sliding), max_position_embeddings: 4000 },
    });
    expect(await found([variant([0, 2]), {}], [variant([0, 1]), {}])).toEqual(FOUND_ITS_OWN);
  });
});
