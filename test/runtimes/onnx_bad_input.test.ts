import { InferenceSession } from 'onnxruntime-node';
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { OnnxDecoder, type OnnxDecoderOptions } from '../../src/runtimes/onnx/index.js';
import { Scratch, type TestDaemon } from '../e2e/support.js';
import { refusalOf } from '../refusal.js';
import { SESSION_OPTIONS, type TinyModel, TinyModels } from './demo_models.js';
import { openDecoder, startDaemon, tokensOf } from './onnx_support.js';

const scratch = new Scratch();
const models = new TinyModels(scratch);
let daemon: TestDaemon;
let target: TinyModel;
let draft: TinyModel;
beforeAll(async () => {
  daemon = await startDaemon(scratch);
  ({ target, draft } = await models.makeWithDraft());
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  scratch[Symbol.dispose]();
});
afterEach(() => vi.restoreAllMocks());

/** Remembers every session that is loaded, and whether it has been released. */
function watchSessions(): { loaded: number; released: number } {
  const seen = { loaded: 0, released: 0 };
  const create = InferenceSession.create.bind(InferenceSession) as (...args: unknown[]) => Promise<InferenceSession>;
  vi.spyOn(InferenceSession, 'create').mockImplementation((async (...args: unknown[]) => {
    const session = await create(...args);
    seen.loaded += 1;
    const release = session.release.bind(session);
    session.release = () => {
      seen.released += 1;
      return release();
    };
    return session;
  }) as never);
  return seen;
}

const create = (changes: Record<string, unknown>) =>
  openDecoder(target, [daemon.socket], changes as Partial<OnnxDecoderOptions>);

const broken = (config: unknown, changes: object) => ({ ...(config as object), ...changes });

/** What has to be refused, by what it has to say. Those of the first list before anything is loaded. */
const OPTIONS: [string, () => Record<string, unknown>, RegExp][] = [
  ['an unknown option', () => ({ chunk: 1 }), /options: there is no 'chunk'/],
  ['an unknown option of the draft', () => ({ draft: { ...draft, id: 'x' } }), /options\.draft: there is no 'id'/],
  ['a draft that is no object', () => ({ draft: 'model.onnx' }), /options\.draft: an object is needed/],
  ['no id', () => ({ id: '' }), /^id: /],
  ['no daemons', () => ({ daemons: [] }), /^daemons: /],
  ['one daemon in place of a list', () => ({ daemons: 'socket' }), /^daemons: /],
  ['no model', () => ({ model: undefined }), /^model: /],
  ['a buffer in place of a model', () => ({ model: Buffer.alloc(8), revision: 'r' }), /^model: /],
  ['no model for the draft', () => ({ draft: {} }), /^draft\.model: /],
  ['an empty revision', () => ({ revision: '' }), /^revision: /],
  [
    'weights from elsewhere without a revision',
    () => ({ sessionOptions: { externalData: ['w'] } }),
    /^revision: .*externalData/,
  ],
  ['chunks that cut columns', () => ({ prefillChunkTokens: 100 }), /prefillChunkTokens: 100 is no multiple of the 64/],
  ['chunks of nothing', () => ({ prefillChunkTokens: 0 }), /prefillChunkTokens: 0/],
  ['no shares', () => ({ shares: [] }), /^shares: /],
  ['a share of nothing', () => ({ shares: [1, 0] }), /^shares: /],
  ['a share that is no number', () => ({ shares: [1, Number.NaN] }), /^shares: /],
  ...['daemons', 'model', 'memory', 'carrier'].map((key): [string, () => Record<string, unknown>, RegExp] => [
    `${key} for the driver`,
    () => ({ driver: { [key]: [] } }),
    new RegExp(`^driver\\.${key}: the decoder decides`),
  ]),
];
const LOADED: typeof OPTIONS = [
  ['an unknown option of the driver', () => ({ driver: { capacity: 1 } }), /there is no 'capacity'/],
  [
    'a config of fewer layers',
    () => ({ config: broken(draft.config, {}) }),
    /config\.json: .* has 1 layers, the graph has 4/,
  ],
  [
    'a config of other heads',
    () => ({ config: broken(target.config, { num_key_value_heads: 4 }) }),
    /layer 0 takes 512 bytes a token, in the graph it is 256/,
  ],
  ['a config that is none', () => ({ config: {} }), /config\.json/],
  ['more shares than heads', () => ({ shares: new Array(40).fill(1) }), /shares: shard \d+ of 40 would hold nothing/],
  ['shares for shards that are not there', () => ({ shares: [1, 1, 1] }), /shard/],
];

test.each(OPTIONS)('%s is refused before anything is loaded', async (_, changes, message) => {
  const sessions = watchSessions();
  expect(await refusalOf(() => create(changes()))).toMatch(message);
  expect(sessions.loaded).toBe(0);
});

test.each(LOADED)('%s is refused, and what was loaded is released', async (_, changes, message) => {
  const sessions = watchSessions();
  expect(await refusalOf(() => create(changes()))).toMatch(message);
  expect(sessions).toEqual({ loaded: 1, released: 1 });
  await daemon.awaitMetric('kvss_sessions', 0);
});

test('a draft of another vocabulary is refused, and both are released', async () => {
  const sessions = watchSessions();
  const other = await models.make({ vocabularySize: 256 });
  expect(await refusalOf(() => create({ draft: other }))).toMatch(
    /draft: it has a vocabulary of 256, the target one of 512/,
  );
  expect(sessions).toEqual({ loaded: 2, released: 2 });
});

test('what ONNX Runtime cannot load, and what is no decoder, is said by name', async () => {
  const file = scratch.file('text.onnx', 'no model');
  expect(await refusalOf(() => create({ model: file }))).toMatch(/ONNX Runtime cannot load .*text\.onnx/);
  expect(await refusalOf(() => create({ model: scratch.file('none.onnx') }))).toMatch(/none\.onnx/);
});

test('daemons that are not there are said by name; sessions that were given stay open, loaded ones do not', async () => {
  const given = await InferenceSession.create(target.model, SESSION_OPTIONS);
  const sessions = watchSessions();
  const nowhere = scratch.file('nowhere');
  expect(await refusalOf(() => openDecoder(target, [nowhere]), 'KVSS_UNREACHABLE')).toContain(nowhere);
  expect(sessions).toEqual({ loaded: 1, released: 1 });
  await refusalOf(
    () =>
      openDecoder({ ...target, model: given as never }, [nowhere], {
        revision: '1',
        draft: { ...draft, revision: '1' },
      }),
    'KVSS_UNREACHABLE',
  );
  expect(sessions).toEqual({ loaded: 2, released: 2 });
  expect(await refusalOf(() => create({ model: given }))).toMatch(/^revision: a session does not say/);
  // It still runs, and after the decoder over it has been closed as well.
  for (let turn = 0; turn < 2; turn += 1) {
    await using decoder = await create({ model: given, revision: '1' });
    const sequence = decoder.openSequence({ isolationId: 'acme' });
    expect((await sequence.prefill(tokensOf(1, 10))).logits).toHaveLength(512);
  }
  await given.release();
});

test('a daemon that has no room leaves nothing behind', async () => {
  const sessions = watchSessions();
  await using small = await startDaemon(scratch, { name: 'small', budget: '16KiB' });
  await refusalOf(() => openDecoder(target, [small.socket]), 'KVSS_NO_MEMORY');
  expect(sessions).toEqual({ loaded: 1, released: 1 });
  await small.awaitMetric('kvss_sessions', 0);
});

test('what a sequence is asked wrongly is refused, and the sequence goes on', async () => {
  await using decoder = await create({});
  await refusalOf(() => decoder.openSequence({ isolationId: '' }));
  const sequence = decoder.openSequence({ isolationId: 'acme' });
  const prompt = tokensOf(2, 100);
  expect(await refusalOf(() => sequence.decode(1))).toMatch(/prefill one first/);
  expect(await refusalOf(() => sequence.prefill(new Uint32Array(0)))).toMatch(/^prompt: /);
  expect(await refusalOf(() => sequence.prefill([1, 2] as never))).toMatch(/^prompt: /);
  expect(await refusalOf(() => sequence.prefill(Uint32Array.of(1, 512)))).toMatch(/token 512 is not in .* of 512/);
  expect(await refusalOf(() => sequence.prefill(tokensOf(1, 4097)))).toMatch(/4097 tokens are more than .* 4096/);
  expect(await refusalOf(() => sequence.prefill(prompt, { storeUpto: 3 } as never))).toMatch(/storeUpto/);
  const span = { offset: 90, length: 20, digest: new Uint8Array(32) };
  await refusalOf(() => sequence.prefill(prompt, { spans: [span] }));

  const running = sequence.prefill(prompt);
  expect(await refusalOf(() => sequence.prefill(prompt))).toMatch(/one thing at a time/);
  expect(await refusalOf(() => sequence.decode(1))).toMatch(/one thing at a time/);
  const { logits } = await running;
  for (const token of [512, -1, 1.5, Number.NaN]) {
    expect(await refusalOf(() => sequence.decode(token))).toMatch(/is not in the model's vocabulary/);
  }
  expect(await refusalOf(() => sequence.speculate(1, 2))).toMatch(/has no draft/);
  expect(sequence.length).toBe(100);
  const next = await sequence.decode(7);
  expect(next).not.toEqual(logits);
  await sequence.close();
  await sequence.close();
  await refusalOf(() => sequence.decode(7), 'KVSS_CLOSED');
  await refusalOf(() => sequence.prefill(prompt), 'KVSS_CLOSED');
});

test('what a generation is asked wrongly is refused by name', async () => {
  await using decoder = await create({ draft });
  const prompt = tokensOf(2, 100);
  const generate = (options: object) => () => decoder.generate(prompt, { isolationId: 'acme', ...options });
  expect(await refusalOf(generate({ max_tokens: 1 }))).toMatch(/there is no 'max_tokens'/);
  for (const maxTokens of [0, -1, Number.NaN]) expect(await refusalOf(generate({ maxTokens }))).toMatch(/^maxTokens: /);
  for (const proposeTokens of [-1, 1.5, Number.NaN]) {
    expect(await refusalOf(generate({ proposeTokens }))).toMatch(/^proposeTokens: /);
  }
  const once = decoder.generate(prompt, { isolationId: 'acme', maxTokens: 2 });
  for await (const _ of once);
  expect(once.outputTokens).toBe(2);
  expect(
    await refusalOf(async () => {
      for await (const _ of once);
    }),
  ).toMatch(/iterated once/);
  const sequence = decoder.openSequence({ isolationId: 'acme' });
  await sequence.prefill(prompt);
  for (const count of [-1, 1.5, Number.NaN]) {
    expect(await refusalOf(() => sequence.speculate(1, count))).toMatch(/is no number of tokens/);
  }
  // Nothing of it was appended.
  expect(sequence.length).toBe(100);
  expect((await sequence.speculate(1, 0)).proposed).toBe(0);
});

test('a generation ends with the context of the model, with and without a draft', async () => {
  for (const more of [{}, { draft }]) {
    const config = { ...(target.config as object), max_position_embeddings: 150 };
    await using decoder = await openDecoder({ ...target, config }, [daemon.socket], more);
    const generation = decoder.generate(tokensOf(3, 100), { isolationId: 'acme', maxTokens: 1000, proposeTokens: 7 });
    const tokens: number[] = [];
    for await (const token of generation) tokens.push(token);
    // The last one is chosen by the logits behind token 150, and has no place itself.
    expect(tokens).toHaveLength(51);
  }
});

test('the context of a language model within a multimodal config counts', async () => {
  const config = { model_type: 'llava', text_config: { ...(target.config as object), max_position_embeddings: 77 } };
  await using decoder = await openDecoder({ ...target, config }, [daemon.socket]);
  expect(decoder.contextTokens).toBe(77);
});

test('closing twice is closing once, and what is asked afterwards is refused', async () => {
  const sessions = watchSessions();
  const decoder = await create({ draft });
  const sequence = decoder.openSequence({ isolationId: 'acme' });
  await sequence.prefill(tokensOf(1, 200));
  const closing = [decoder.close(), decoder.close()];
  await refusalOf(() => decoder.openSequence({ isolationId: 'acme' }), 'KVSS_CLOSED');
  await Promise.all(closing);
  await decoder.close();
  expect(sessions).toEqual({ loaded: 2, released: 2 });
  await refusalOf(() => sequence.decode(1), 'KVSS_CLOSED');
  await refusalOf(async () => {
    for await (const _ of decoder.generate(tokensOf(1, 10), { isolationId: 'acme' }));
  }, 'KVSS_CLOSED');
  await daemon.awaitMetric('kvss_sessions', 0);
});

test('a sequence that fails when it is closed does not keep the driver and the models open', async () => {
  const sessions = watchSessions();
  const decoder = await OnnxDecoder.create({
    id: 'tiny',
    ...target,
    daemons: [daemon.socket],
    sessionOptions: SESSION_OPTIONS,
    driver: { capacityColumns: 50 },
  });
  const sequence = decoder.openSequence({ isolationId: 'acme' });
  vi.spyOn(sequence, 'close').mockRejectedValue(new Error('a mistake'));
  await expect(decoder.close()).rejects.toThrow('a mistake');
  expect(sessions).toEqual({ loaded: 1, released: 1 });
  await daemon.awaitMetric('kvss_sessions', 0);
});
