import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import ort from 'onnxruntime-node';
import { afterAll, expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import {
  DEMO_SIZES,
  type DemoModelFiles,
  type DemoModelOptions,
  generateDemoModel,
} from '../../src/runtimes/demo_model/generate.js';
import { parametersOf, resolveOptions } from '../../src/runtimes/demo_model/options.js';
import { describeModel } from '../../src/swdriver/model_config.js';
import { finish, kvss, MAIN, Scratch, until } from '../e2e/support.js';
import { LlamaReference, readWeights } from './llama_reference.js';
import { cacheOf, numbersOf, OnnxRunner, rowsOf, type Tensors } from './onnx_runner.js';

const scratch = new Scratch();
afterAll(() => scratch[Symbol.dispose]());

let made = 0;
const tiny: DemoModelOptions = {
  vocabularySize: 97,
  hiddenSize: 48,
  layers: 3,
  heads: 6,
  keyValueHeads: 2,
  headDim: 16,
  intermediateSize: 80,
  maxPositions: 1024,
};

function generate(options: DemoModelOptions): Promise<DemoModelFiles> {
  made += 1;
  return generateDemoModel(scratch.file(`model${made}`), options);
}

const tokensOf = (count: number, vocabularySize: number, salt = 0) =>
  Array.from({ length: count }, (_, at) => (at * 7919 + salt * 104_729 + 13) % vocabularySize);
const largestDifference = (left: ArrayLike<number>, right: ArrayLike<number>) => {
  expect(left.length).toBe(right.length);
  return Array.from(left).reduce((most, each, at) => Math.max(most, Math.abs(each - (right[at] as number))), 0);
};
const bestOf = (row: ArrayLike<number>) =>
  Array.from(row).reduce((best, each, at) => (each > (row[best] as number) ? at : best), 0);
const hashOf = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex');

const window = { slidingWindow: { tokens: 5, pattern: 2 } };
const FORMS: [string, DemoModelOptions][] = (['decomposed', 'fused'] as const).flatMap((attention) => [
  [`${attention}, full`, { attention }],
  [`${attention}, sliding`, { attention, ...window }],
]);

/** Of 32 bits in another order of sums; logits are of the size of 4. */
const TOLERANCE_FP32 = 2e-4;
/** Of 16 bits: 11 bits of each number, through three layers. */
const TOLERANCE_FP16 = 0.25;

test.each(FORMS)('a model gives what a plain decoder gives: %s', async (_, options) => {
  const tokens = tokensOf(23, 97);
  for (const [each, tolerance] of [
    [{}, TOLERANCE_FP32],
    [{ tied: true, ropeTheta: 500 }, TOLERANCE_FP32],
    [{ dtype: 'fp16' }, TOLERANCE_FP16],
  ] as const) {
    const files = await generate({ ...tiny, ...options, ...each });
    const expected = new LlamaReference(files.directory).logits(tokens);
    await using runner = await OnnxRunner.open(files);
    const logits = rowsOf((await runner.run(tokens)).logits);
    expect(logits.length).toBe(tokens.length);
    const said = logits.flatMap((row) => [...row]);
    expect(largestDifference(said, expected.flat())).toBeLessThan(tolerance);
  }
});

test('a window, a tied head and a base of positions change what is said', async () => {
  const tokens = tokensOf(23, 97);
  const last = async (options: DemoModelOptions) =>
    new LlamaReference((await generate({ ...tiny, ...options })).directory).logits(tokens).at(-1) as number[];
  const plain = await last({});
  for (const options of [window, { tied: true }, { ropeTheta: 500 }, { seed: 2 }]) {
    expect(largestDifference(await last(options), plain)).toBeGreaterThan(1);
  }
});

test.each(['decomposed', 'fused'] as const)(
  'inputs and outputs are those of an exported model: %s',
  async (attention) => {
    for (const [dtype, type] of [
      ['fp32', 'float32'],
      ['fp16', 'float16'],
    ] as const) {
      await using runner = await OnnxRunner.open(await generate({ ...tiny, layers: 2, attention, dtype }));
      const tensor = (name: string, of: string, shape: (string | number)[]) => ({
        name,
        isTensor: true,
        type: of,
        shape,
      });
      const cache = (name: string, length: string) =>
        [0, 1].flatMap((layer) =>
          ['key', 'value'].map((part) => tensor(`${name}.${layer}.${part}`, type, ['batch_size', 2, length, 16])),
        );
      const tokens = ['batch_size', 'sequence_length'];
      expect(runner.session.inputMetadata).toEqual([
        tensor('input_ids', 'int64', tokens),
        tensor('attention_mask', 'int64', ['batch_size', 'total_sequence_length']),
        ...(attention === 'fused' ? [] : [tensor('position_ids', 'int64', tokens)]),
        ...cache('past_key_values', 'past_sequence_length'),
      ]);
      expect(runner.session.outputMetadata).toEqual([
        tensor('logits', type, [...tokens, 97]),
        ...cache('present', 'total_sequence_length'),
      ]);
    }
  },
);

test.each(FORMS)('a prompt in chunks gives what it gives in one: %s', async (_, options) => {
  const files = await generate({ ...tiny, ...options });
  for (const threads of [1, 2]) {
    // What one session has made another one takes.
    await using runner = await OnnxRunner.open(files, threads);
    await using other = await OnnxRunner.open(files, threads);
    for (const [chunk, count] of [
      [1, 40],
      [63, 150],
      [64, 150],
      [512, 530],
    ] as const) {
      const tokens = tokensOf(count, 97);
      const whole = await runner.run(tokens);
      const logits: number[] = [];
      let past = runner.cache();
      for (let at = 0; at < count; at += chunk) {
        const from = (at / chunk) % 2 === 0 ? runner : other;
        const outputs = await from.run(tokens.slice(at, at + chunk), past);
        logits.push(...numbersOf(outputs.logits));
        past = cacheOf(outputs);
      }
      expect(largestDifference(logits, numbersOf(whole.logits))).toBeLessThan(TOLERANCE_FP32);
      for (const [name, tensor] of Object.entries(cacheOf(whole))) {
        expect(largestDifference(numbersOf(past[name]), numbersOf(tensor))).toBeLessThan(TOLERANCE_FP32);
      }
    }
  }
});

test.each([
  ['fp32', {}, TOLERANCE_FP32],
  ['fp32', window, TOLERANCE_FP32],
  ['fp16', window, TOLERANCE_FP16],
] as const)('fused attention appends to a cache in place: %s %o', async (dtype, options, tolerance) => {
  const files = await generate({ ...tiny, ...options, dtype, attention: 'fused' });
  await using runner = await OnnxRunner.open(files);
  const [tokens, roomTokens] = [tokensOf(80, 97), 128];
  const whole = await runner.run(tokens);
  // Tensors of the same memory as what is there and what comes out.
  const past = runner.cache(roomTokens);
  const twin = ({ type, data, dims }: ort.Tensor) => new ort.Tensor(type, data as Float32Array, dims);
  const entries = Object.entries(past).map(([name, each]) => [name.replace('past_key_values', 'present'), twin(each)]);
  const fetches = { logits: null, ...Object.fromEntries(entries) };
  const logits: number[] = [];
  for (const [from, to] of [
    [0, 50],
    [50, 51],
    [51, 80],
  ] as const) {
    logits.push(...numbersOf((await runner.run(tokens.slice(from, to), past, from, fetches)).logits));
  }
  expect(largestDifference(logits, numbersOf(whole.logits))).toBeLessThan(tolerance);
  for (const [name, tensor] of Object.entries(cacheOf(whole))) {
    const rows = rowsOf(past[name]);
    const inPlace = [0, 1].flatMap((head) => rows.slice(head * roomTokens, head * roomTokens + tokens.length));
    const expected = rowsOf(tensor).flatMap((row) => [...row]);
    expect(
      largestDifference(
        inPlace.flatMap((row) => [...row]),
        expected,
      ),
    ).toBeLessThan(tolerance);
    // Nothing is written behind it.
    const behind = [0, 1].flatMap((head) => rows.slice(head * roomTokens + tokens.length, (head + 1) * roomTokens));
    expect(behind.every((row) => row.every((each) => each === 0))).toBe(true);
  }
});

test.each([{}, { dtype: 'fp16' } as const, window])('padding on the left is not seen: %o', async (options) => {
  await using runner = await OnnxRunner.open(await generate({ ...tiny, ...options }));
  const tolerance = 'dtype' in options ? TOLERANCE_FP16 : TOLERANCE_FP32;
  const [long, short] = [tokensOf(12, 97), tokensOf(7, 97, 1)];
  const padding = new Array<number>(5).fill(0);
  const rows = [long, [...padding, ...short]];
  const mask = [long.map(() => 1), [...padding, ...short.map(() => 1)]];
  const positions = [long.map((_, at) => at), [...padding, ...short.map((_, at) => at)]];
  const both = await runner.runBatch(rows, mask, positions, runner.cache(0, 2));
  const next = await runner.runBatch(
    [[5], [5]],
    mask.map((each) => [...each, 1]),
    [[12], [7]],
    cacheOf(both),
  );
  for (const [index, tokens] of [long, short].entries()) {
    const alone = await runner.run([...tokens, 5]);
    const expected = rowsOf(alone.logits);
    const batched = rowsOf(both.logits).slice(index * 12 + 12 - tokens.length, index * 12 + 12);
    for (const [at, row] of batched.entries()) {
      expect(largestDifference(row, expected[at] as Float32Array)).toBeLessThan(tolerance);
    }
    const last = rowsOf(next.logits)[index] as Float32Array;
    expect(largestDifference(last, expected[tokens.length] as Float32Array)).toBeLessThan(tolerance);
  }
});

/** Continues with the most likely token. */
async function greedy(runner: OnnxRunner, prompt: readonly number[], count: number): Promise<number[]> {
  const said: number[] = [];
  let outputs = await runner.run(prompt);
  while (said.length < count) {
    const token = bestOf(rowsOf(outputs.logits).at(-1) as Float32Array);
    said.push(token);
    outputs = await runner.run([token], cacheOf(outputs));
  }
  return said;
}

const relativeChange = (changed: Float32Array, before: Float32Array) => {
  const norm = (values: Float32Array) => Math.hypot(...values);
  return norm(changed.map((each, at) => each - (before[at] as number))) / norm(before);
};

test.each(['decomposed', 'fused'] as const)('what a model says hangs on what is far back: %s', async (attention) => {
  const files = await generate({ attention });
  const { vocabularySize } = files.settings;
  await using runner = await OnnxRunner.open(files);
  const tokens = tokensOf(200, vocabularySize);
  const outputs = await runner.run(tokens);
  const last = rowsOf(outputs.logits).at(-1) as Float32Array;

  // One of the first tokens.
  const other = [...tokens];
  other[3] = ((other[3] as number) + 1) % vocabularySize;
  expect(relativeChange(rowsOf((await runner.run(other)).logits).at(-1) as Float32Array, last)).toBeGreaterThan(0.1);

  // The same cache but for one token in it. Its place would not do: attention does not mind the order of entries.
  const next = rowsOf((await runner.run([1], cacheOf(outputs))).logits)[0] as Float32Array;
  const changes: number[] = [];
  for (let at = 0; at < 100; at += 10) {
    const without = rowsOf((await runner.run([1], overwriteToken(cacheOf(outputs), at))).logits)[0] as Float32Array;
    changes.push(relativeChange(without, next));
  }
  expect(Math.max(...changes)).toBeGreaterThan(0.1);
  expect(Math.min(...changes)).toBeGreaterThan(1e-3);

  // Neither flat nor sure of itself.
  const sure = rowsOf(outputs.logits).map((row) => {
    const highest = Math.max(...row);
    return 1 / row.reduce((sum, each) => sum + Math.exp(each - highest), 0);
  });
  const mean = sure.reduce((sum, each) => sum + each, 0) / sure.length;
  expect(mean).toBeGreaterThan(0.1);
  expect(mean).toBeLessThan(0.8);

  const said = await greedy(runner, tokens.slice(0, 20), 60);
  expect(new Set(said).size).toBeGreaterThan(30);
  expect(await greedy(runner, [((tokens[0] as number) + 1) % vocabularySize, ...tokens.slice(1, 20)], 60)).not.toEqual(
    said,
  );
});

/** Puts the entry of the next token in the place of a token's in each head, of one sequence. */
function overwriteToken(cache: Tensors, at: number): Tensors {
  const overwrite = (tensor: ort.Tensor) => {
    const [, heads = 0, length = 0, width = 0] = tensor.dims;
    const data = Float32Array.from(numbersOf(tensor));
    for (let head = 0; head < heads; head += 1) {
      const from = (head * length + at) * width;
      data.copyWithin(from, from + width, from + 2 * width);
    }
    return new ort.Tensor('float32', data, tensor.dims);
  };
  return Object.fromEntries(Object.entries(cache).map(([name, tensor]) => [name, overwrite(tensor)]));
}

test('a draft agrees often with its target, and is its first layers', async () => {
  const files = await generate({ draft: true, ...window });
  expect(files.draft?.settings.windows).toEqual([5]);
  await using target = await OnnxRunner.open(files);
  await using draft = await OnnxRunner.open(files.draft as DemoModelFiles);
  const { vocabularySize } = files.settings;
  let same = 0;
  const tokens: number[] = [];
  for (const salt of [1, 2]) {
    const prompt = tokensOf(20, vocabularySize, salt);
    tokens.splice(0, tokens.length, ...prompt, ...(await greedy(target, prompt, 100)));
    const [left, right] = [await target.run(tokens), await draft.run(tokens)];
    for (const part of ['key', 'value']) {
      expect(largestDifference(numbersOf(left[`present.0.${part}`]), numbersOf(right[`present.0.${part}`]))).toBe(0);
    }
    const best = (outputs: Tensors) => rowsOf(outputs.logits).slice(20).map(bestOf);
    const drafted = best(right);
    same += best(left).filter((token, at) => token === drafted[at]).length;
  }
  expect(same / 200).toBeGreaterThan(0.6);
  expect(same / 200).toBeLessThan(0.95);
});

test('config.json says what the cache holds', async () => {
  const options = { ...tiny, layers: 6, slidingWindow: { tokens: 8, pattern: 3 } } as const;
  for (const [dtype, bytes] of [
    ['fp32', 4],
    ['fp16', 2],
  ] as const) {
    const files = await generate({ ...options, dtype, draft: true });
    const read = ({ config }: DemoModelFiles) => JSON.parse(readFileSync(config, 'utf8'));
    const layerBytes = 2 * 2 * 16 * bytes;
    const description = describeModel(read(files), { draft: read(files.draft as DemoModelFiles) });
    const said = description.groups.map((each) => [each.name, each.layers, each.windowTokens, each.bytesPerToken]);
    expect(said).toEqual([
      ['full', [2, 5], undefined, 2 * layerBytes],
      ['sliding', [0, 1, 3, 4], 8, 4 * layerBytes],
      ['draft_sliding', [0, 1], 8, 2 * layerBytes],
    ]);
    expect(description.groups[0]?.dtype).toBe(dtype);
    // As much as a run leaves behind.
    await using runner = await OnnxRunner.open(files);
    const present = Object.values(cacheOf(await runner.run(tokensOf(3, 97))));
    const cacheBytes = present.reduce((sum, { data }) => sum + (data as Float32Array).byteLength, 0);
    expect(cacheBytes).toBe(3 * 6 * layerBytes);
  }
  const files = await generate(tiny);
  expect(describeModel(JSON.parse(readFileSync(files.config, 'utf8'))).groups.map(({ kind }) => kind)).toEqual([
    'full',
  ]);
});

test('sizes are as named, and weights are what they were drawn from', async () => {
  const counts = Object.keys(DEMO_SIZES).map((size) =>
    parametersOf(resolveOptions({ size: size as keyof typeof DEMO_SIZES }).target),
  );
  expect(counts).toEqual([1_049_728, 5_114_112, 25_303_552, 100_682_496]);
  for (const options of [{}, { tied: true }]) {
    const files = await generate(options);
    const weights = [...readWeights(files.directory).values()];
    for (const { dimensions, values } of weights) expect(values.length).toBe(dimensions.reduce((a, b) => a * b, 1));
    expect(weights.reduce((sum, { values }) => sum + values.length, 0)).toBe(files.parameters);
  }
  const weights = readWeights((await generate({ seed: 7 })).directory);
  const { values } = weights.get('model.embed_tokens.weight') as { values: Float64Array };
  const mean = values.reduce((sum, each) => sum + each, 0) / values.length;
  expect(Math.abs(mean)).toBeLessThan(0.02);
  const moment = (power: number) => values.reduce((sum, each) => sum + each ** power, 0) / values.length;
  expect(moment(2)).toBeCloseTo(1, 1);
  expect(Math.abs(moment(4) - 3)).toBeLessThan(0.15);
  const signs = weights.get('model.norm.weight')?.values as Float64Array;
  expect(new Set(signs.map(Math.abs)).size).toBe(1);
  const positive = signs.filter((each) => each > 0).length;
  expect(positive).toBeGreaterThan(signs.length / 4);
  expect(positive).toBeLessThan((signs.length * 3) / 4);
});

test('the same options give the same bytes, and tensors begin on pages', async () => {
  const options: DemoModelOptions = { ...tiny, dtype: 'fp16', attention: 'fused', draft: true, ...window };
  const [first, second, third] = [
    await generate(options),
    await generate(options),
    await generate({ ...options, seed: 2 }),
  ];
  const names = readdirSync(first.directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name).slice(first.directory.length));
  expect(names.length).toBe(9);
  for (const name of names) expect(hashOf(first.directory + name)).toBe(hashOf(second.directory + name));
  expect(hashOf(third.model)).toBe(hashOf(first.model));
  expect(hashOf(third.data)).not.toBe(hashOf(first.data));
  const offsets = [...readWeights(first.directory).values()].map(({ offset }) => offset);
  expect(offsets.every((offset) => offset % 4096 === 0)).toBe(true);
});

test('a model is made once, and of two that make it at once both have it', async () => {
  const directory = scratch.file('once');
  const all = await Promise.all(Array.from({ length: 3 }, () => generateDemoModel(directory, tiny)));
  expect(all[0]).toEqual(all[2]);
  const { mtimeMs } = statSync(all[0]?.data as string);
  await generateDemoModel(directory, tiny);
  expect(statSync(all[0]?.data as string).mtimeMs).toBe(mtimeMs);
  await using runner = await OnnxRunner.open(all[1] as DemoModelFiles);
  expect((await runner.run([1, 2])).logits?.dims).toEqual([1, 2, 97]);
  expect(readdirSync(scratch.path).filter((name) => name.startsWith('.once'))).toEqual([]);
  await expect(generateDemoModel(directory, { ...tiny, seed: 2 })).rejects.toThrow(/a model of other options is there/);
  await expect(generateDemoModel(scratch.path, tiny)).rejects.toThrow(/something else is there/);
  const missing = join(scratch.file('missing'), 'model');
  await expect(generateDemoModel(missing, tiny)).rejects.toThrow(`cannot write a model to ${missing}: ENOENT`);
  await expect(generateDemoModel(all[0]?.config as string, tiny)).rejects.toThrow(
    /cannot read .*config\.json: ENOTDIR/,
  );
  // A place that is there and empty will do.
  mkdirSync(scratch.file('empty'));
  expect(existsSync((await generateDemoModel(scratch.file('empty'), tiny)).model)).toBe(true);
});

test('a process that is killed while it writes leaves no model, and what it leaves is removed', async () => {
  const directory = scratch.file('killed');
  const child = spawn(process.execPath, [MAIN, 'demo-model', directory, '--size', '100M'], { stdio: 'pipe' });
  const finished = finish(child);
  const leftovers = () => readdirSync(scratch.path).filter((name) => name.startsWith('.killed.'));
  await until(() => leftovers().some((name) => existsSync(join(scratch.path, name, 'model.onnx.data'))));
  child.kill('SIGKILL');
  expect((await finished).signal).toBe('SIGKILL');
  expect(existsSync(directory)).toBe(false);
  expect(leftovers().length).toBe(1);
  await generateDemoModel(directory, tiny);
  expect(leftovers()).toEqual([]);
});

test('kvss demo-model makes a model and says what it is', async () => {
  const directory = scratch.file('cli');
  const flags = ['--size', '1M', '--dtype', 'fp16', '--attention', 'fused', '--seed', '5', '--vocab', '512'];
  const sliding = ['--sliding-window', '32', '--sliding-pattern', '4', '--tied', '--draft'];
  const { code, stdout } = await kvss('demo-model', directory, ...flags, ...sliding, '--json');
  expect(code).toBe(0);
  const same = await generate({
    ...{ size: '1M', dtype: 'fp16', attention: 'fused', seed: 5, vocabularySize: 512, tied: true, draft: true },
    slidingWindow: { tokens: 32, pattern: 4 },
  });
  const said = JSON.parse(stdout) as DemoModelFiles;
  expect(said.settings).toEqual(same.settings);
  expect(hashOf(said.data)).toBe(hashOf(same.data));
  expect(hashOf(said.draft?.data as string)).toBe(hashOf(same.draft?.data as string));
  const table = await kvss('demo-model', directory, ...flags, ...sliding);
  expect(table.stdout).toMatch(/^parameters +853,120$/m);
  const refused = await kvss('demo-model', scratch.file('cli2'), '--sliding-pattern', '3');
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('--sliding-pattern: layers slide only with --sliding-window');
});

test.each<[what: RegExp, options: unknown]>([
  [/demo model: unknown key 'layer'/, { layer: 3 }],
  [/demo model: 'size'/, { size: '2M' }],
  [/demo model: 'headDim'/, { headDim: 15 }],
  [/demo model: 'keyValueHeads': 3 does not divide 4 heads/, { keyValueHeads: 3 }],
  [/demo model: 'slidingWindow\.pattern'/, { slidingWindow: { tokens: 4, pattern: 1 } }],
  [/demo model: 'draft'/, { layers: 1, draft: true }],
  [/demo model: 'seed'/, { seed: -1 }],
])('options that make no sense are refused: %s', async (what, options) => {
  const directory = scratch.file('refused');
  const refusal = await generateDemoModel(directory, options as DemoModelOptions).catch((thrown) => thrown);
  expect(refusal).toBeInstanceOf(KvssError);
  expect(refusal.code).toBe('KVSS_BAD_INPUT');
  expect(refusal.message).toMatch(what);
  expect(existsSync(directory)).toBe(false);
});
