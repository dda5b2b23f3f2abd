import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DemoModelOptions } from '../../src/runtimes/demo_model/generate.js';
import { readDecoderGraph } from '../../src/runtimes/onnx/decoder_graph.js';
import type { OnnxDecoderOptions } from '../../src/runtimes/onnx/index.js';
import { Scratch, type TestDaemon } from '../e2e/support.js';
import { refusalOf } from '../refusal.js';
import { TINY, TinyModels } from './demo_models.js';
import { look, openDecoder, startDaemon, store, tokensOf } from './onnx_support.js';

const scratch = new Scratch();
const models = new TinyModels(scratch);
let daemon: TestDaemon;
beforeAll(async () => {
  daemon = await startDaemon(scratch);
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  scratch[Symbol.dispose]();
});

const WINDOW = 96;
const SLIDING = { slidingWindow: { tokens: WINDOW, pattern: 2 } } as const satisfies DemoModelOptions;

/** Whether a decoder is made of a model with a config that says something else in some keys; if not, why. */
async function verdict(
  options: DemoModelOptions,
  changes: object,
  more: Partial<OnnxDecoderOptions> = {},
): Promise<string> {
  const { model, config } = await models.make(options);
  const given = { model, config: { ...(config as object), ...changes } };
  try {
    const decoder = await openDecoder(given, [daemon.socket], more);
    const groups = decoder.driver.groups.map(({ name }) => name).join();
    await decoder.close();
    return groups;
  } catch (thrown) {
    return String(thrown);
  }
}

describe.each(['decomposed', 'fused'] as const)('a graph with %s attention', (attention) => {
  test.each(['fp32', 'fp16'] as const)('in %s that has the windows of its config is taken', async (dtype) => {
    expect(await verdict({ ...SLIDING, attention, dtype }, {})).toBe('full,sliding');
  });

  test('that sees one token more than its config says is refused', async () => {
    const said = await verdict({ ...SLIDING, attention }, { sliding_window: WINDOW - 1 });
    expect(said).toContain(`KvssError: config.json: says that layers 0,2 see ${WINDOW - 1} tokens`);
  });

  test.each(['fp32', 'fp16'] as const)('in %s that was exported without the windows is refused', async (dtype) => {
    const slides = { layer_types: ['sliding_attention', 'full_attention', 'sliding_attention'], sliding_window: 64 };
    expect(await verdict({ attention, dtype }, slides)).toContain(
      'layers 0,2 see 64 tokens, and in the graph they see',
    );
    // What the message says to do.
    expect(await verdict({ attention, dtype }, { sliding_window: null, layer_types: null })).toBe('full');
  });

  test('whose windows are wider than its context keeps everything anyhow', async () => {
    const slides = { layer_types: ['sliding_attention', 'full_attention', 'full_attention'], sliding_window: 256 };
    expect(await verdict({ attention }, { ...slides, max_position_embeddings: 256 })).toBe('full,sliding');
  });
});

describe('a graph that does not say how long a head is', () => {
  const names = [0, 1, 2].flatMap((layer) => [`${layer}.key`, `${layer}.value`]);
  const tensor = (name: string, type: string, shape: (string | number)[]) =>
    ({ name, isTensor: true, type, shape }) as never;
  const dims = (length: string) => ['batch_size', TINY.keyValueHeads, length, 'kv_cache_dim'];
  const metadata = {
    inputMetadata: [
      tensor('input_ids', 'int64', ['batch_size', 'sequence_length']),
      ...names.map((name) => tensor(`past_key_values.${name}`, 'float32', dims('past_sequence_length'))),
    ],
    outputMetadata: [
      tensor('logits', 'float32', ['batch_size', 'sequence_length', 512]),
      ...names.map((name) => tensor(`present.${name}`, 'float32', dims('total_sequence_length'))),
    ],
  };

  test('is read with what its config says', () => {
    const { planes } = readDecoderGraph(metadata, 24);
    expect(planes.map(({ heads, dim, rowBytes }) => [heads, dim, rowBytes])).toEqual(Array(6).fill([2, 24, 96]));
  });

  test('is refused without, with what is missing', async () => {
    expect(await refusalOf(() => readDecoderGraph(metadata))).toMatch(
      /past_key_values\.0\.key.*kv_cache_dim.*give the model's config\.json/,
    );
  });
});

test('what its config says of heads does not matter where the graph says it', async () => {
  // As if it were another model: refused for its bytes, not for its heads.
  expect(await verdict({}, { head_dim: 32 })).toContain('config.json: it is not the one of the model');
});

test('a session that its owner keeps is tried as well, and works afterwards', async () => {
  const { model, config } = await models.make({ ...SLIDING, attention: 'fused' });
  const decoder = await openDecoder({ model, config }, [daemon.socket]);
  const prompt = tokensOf(1, 500);
  expect(await store(decoder, 'acme', prompt)).toBe(0);
  const cached = await look(decoder, 'acme', prompt);
  const computed = await look(decoder, 'globex', prompt);
  expect(cached.cachedTokens).toBe(448);
  expect(cached.logits).toEqual(computed.logits);
  await decoder.close();
});
