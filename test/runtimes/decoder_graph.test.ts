import { expect, test } from 'vitest';
import { type GraphMetadata, readDecoderGraph } from '../../src/runtimes/onnx/decoder_graph.js';
import { refusalOf } from '../refusal.js';

type Metadata = GraphMetadata['inputMetadata'][number];

const tensor = (name: string, type: string, shape: readonly (number | string)[]) =>
  ({ name, isTensor: true, type, shape }) as Metadata;

/** Inputs and outputs of a decoder of two layers, as exporters name them; changed or left out by name. */
function graph(changes: Record<string, Metadata | undefined> = {}, type = 'float32'): GraphMetadata {
  const parts = [0, 1].flatMap((layer) => [`${layer}.key`, `${layer}.value`]);
  const planes = (name: string) => parts.map((part) => tensor(`${name}.${part}`, type, ['batch', 2, 'tokens', 8]));
  const inputs = [
    tensor('input_ids', 'int64', ['batch', 'tokens']),
    tensor('attention_mask', 'int64', ['batch', 'total']),
    ...planes('past_key_values'),
  ];
  const outputs = [tensor('logits', type, ['batch', 'tokens', 100]), ...planes('present')];
  const changed = (list: Metadata[]) =>
    list.flatMap((each) => (each.name in changes ? (changes[each.name] ?? []) : [each]));
  const known = new Set([...inputs, ...outputs].map(({ name }) => name));
  const added = Object.entries(changes).flatMap(([name, each]) => (known.has(name) || !each ? [] : [each]));
  return { inputMetadata: [...changed(inputs), ...added], outputMetadata: changed(outputs) } as GraphMetadata;
}

test('a decoder of the usual form says its planes, its vocabulary and what it is to be fed', () => {
  const read = readDecoderGraph(graph());
  expect(read).toMatchObject({ layers: 2, dtype: 'fp32', logitsType: 'float32', vocabularySize: 100 });
  expect(read.planes).toHaveLength(4);
  expect(read.planes[1]).toEqual({
    layer: 0,
    kind: 'value',
    heads: 2,
    dim: 8,
    rowBytes: 32,
    pastName: 'past_key_values.0.value',
    presentName: 'present.0.value',
  });
  expect(read.inputs).toMatchObject({ attentionMask: { type: 'int64' }, useCacheBranch: false });
  expect([read.inputs.positionIds, read.inputs.logitsToKeep]).toEqual([undefined, undefined]);
});

test('numbers of 16 bits take half the bytes, and keys and values may have sizes of their own', () => {
  const half = readDecoderGraph(graph({}, 'float16'));
  expect(half).toMatchObject({ dtype: 'fp16', logitsType: 'float16' });
  expect(half.planes.every(({ rowBytes }) => rowBytes === 16)).toBe(true);
  const past = tensor('past_key_values.1.value', 'float32', ['batch', 1, 'tokens', 4]);
  const present = tensor('present.1.value', 'float32', ['batch', 1, 'tokens', 4]);
  const read = readDecoderGraph(graph({ [past.name]: past, [present.name]: present }));
  expect(read.planes.map(({ heads, dim }) => [heads, dim])).toEqual([
    [2, 8],
    [2, 8],
    [2, 8],
    [1, 4],
  ]);
});

test.each([
  ['num_logits_to_keep', []],
  ['logits_to_keep', [1]],
] as const)('indices of 32 bits, positions and %s are fed where the graph asks for them', (name, shape) => {
  const { inputs } = readDecoderGraph(
    graph({
      input_ids: tensor('input_ids', 'int32', ['batch', 'tokens']),
      attention_mask: undefined,
      position_ids: tensor('position_ids', 'int32', ['batch', 'tokens']),
      [name]: tensor(name, 'int64', shape),
      use_cache_branch: tensor('use_cache_branch', 'bool', [1]),
    }),
  );
  expect(inputs).toEqual({
    inputIds: expect.objectContaining({ type: 'int32' }),
    attentionMask: undefined,
    positionIds: expect.objectContaining({ type: 'int32' }),
    logitsToKeep: { name, type: 'int64', rank: shape.length },
    useCacheBranch: true,
  });
});

const key = (name: string, type: string, shape: readonly (number | string)[] = ['batch', 2, 'tokens', 8]) =>
  ({ [name]: tensor(name, type, shape) }) as Record<string, Metadata>;
const none = (...names: string[]) => Object.fromEntries(names.map((name) => [name, undefined]));

test.each<[string, Record<string, Metadata | undefined>, RegExp]>([
  ['an input that is no tensor', { cache: { name: 'cache', isTensor: false } }, /'cache': is no tensor/],
  [
    'no past at all',
    none(...[0, 1].flatMap((layer) => [`past_key_values.${layer}.key`, `past_key_values.${layer}.value`])),
    /'past_key_values\.0\.key': missing: the decoder has to be exported with past/,
  ],
  ['a gap in the layers', none('past_key_values.0.value'), /'past_key_values\.0\.value': missing, yet/],
  ['no present', none('present.1.key'), /'present\.1\.key': missing among the outputs/],
  ['a quantised cache', key('past_key_values.0.key', 'int8'), /'past_key_values\.0\.key': .* of the type int8/],
  ['a present of another type', key('present.0.key', 'float16'), /'present\.0\.key': is float16, the past is float32/],
  [
    'layers of two types',
    { ...key('past_key_values.1.key', 'float16'), ...key('present.1.key', 'float16') },
    /some are float32 and some float16/,
  ],
  [
    'heads without a number',
    key('past_key_values.0.key', 'float32', ['batch', 'heads', 'tokens', 8]),
    /'past_key_values\.0\.key': has the shape \[batch, heads, tokens, 8\]/,
  ],
  [
    'a past of three dimensions',
    key('past_key_values.0.key', 'float32', ['batch', 2, 8]),
    /'past_key_values\.0\.key': has the shape/,
  ],
  [
    'a present of other heads than the past',
    key('present.0.key', 'float32', ['batch', 4, 'tokens', 8]),
    /'present\.0\.key': has the shape \[batch, 4, tokens, 8\], the past has \[2, 8\]/,
  ],
  ['no logits', none('logits'), /'logits': missing/],
  ['logits that are whole numbers', key('logits', 'int32', ['batch', 'tokens', 100]), /'logits': is int32/],
  ['a vocabulary without a number', key('logits', 'float32', ['batch', 'tokens', 'v']), /'logits': has the shape/],
  ['an input that nobody knows', key('encoder_hidden_states', 'float32'), /'encoder_hidden_states': nobody knows/],
  ['no tokens', none('input_ids'), /'input_ids': missing/],
  ['tokens that are no whole numbers', key('input_ids', 'float32', ['b', 't']), /'input_ids': is float32, not int64/],
])('%s is refused by name', async (_, changes, message) => {
  expect(await refusalOf(() => readDecoderGraph(graph(changes)))).toMatch(message);
});
