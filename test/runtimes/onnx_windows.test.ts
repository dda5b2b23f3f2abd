import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import type { KvState } from '../../src/runtimes/onnx/kv_state.js';
import { PieceLayout } from '../../src/runtimes/onnx/piece_layout.js';
import { Hit } from '../../src/swdriver/hit.js';
import type { PieceSink } from '../../src/swdriver/runtime.js';
import { Scratch, type TestDaemon } from '../e2e/support.js';
import { TinyModels } from './demo_models.js';
import { look, openDecoder, poisonIdleStates, sameBits, startDaemon, store, tokensOf } from './onnx_support.js';
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

const TEXT = tokensOf(1, 720);
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, index) => from + index);

/** Notes which columns are moved, by group. */
function watch(move: 'gather' | 'scatter'): Record<string, number[]> {
  const seen: Record<string, number[]> = { full: [], sliding: [] };
  const original = PieceLayout.prototype[move];
  vi.spyOn(PieceLayout.prototype, move).mockImplementation(function (
    this: PieceLayout,
    state: KvState,
    column: number,
    pieces: readonly Uint8Array[],
  ) {
    seen[this.name]?.push(column);
    original.call(this, state, column, pieces);
  });
  return seen;
}

/** Windows, and the columns that they overlap. A pattern of 128 leaves no layer that sees all. */
const SHAPES = (
  [
    ['decomposed', 64, 1, 2],
    ['decomposed', 65, 2, 2],
    ['decomposed', 96, 2, 128],
    ['decomposed', 200, 4, 2],
    ['fused', 1, 1, 2],
    ['fused', 96, 2, 2],
    ['fused', 200, 4, 128],
  ] as const
).map(([attention, tokens, columns, pattern]) => ({
  columns,
  options: { attention, slidingWindow: { tokens, pattern } },
}));

describe.each(SHAPES)('$options', ({ columns: windowColumns, options }) => {
  const onlyWindows = options.slidingWindow.pattern === 128;

  test('only the window is refilled, and the logits are those of a plain run', async () => {
    const tiny = await models.make(options);
    const plain = await PlainDecoder.load(tiny.model);
    poisonIdleStates();
    await using decoder = await openDecoder(tiny, [daemon.socket]);
    for (const length of [128, 640]) {
      const prefix = TEXT.subarray(0, length);
      await store(decoder, `${length}`, prefix);
      const move = PieceLayout.prototype.scatter;
      const seen = watch('scatter');
      const prompt = TEXT.subarray(0, length + 40);
      const { logits, cachedTokens } = await look(decoder, `${length}`, prompt);
      const full = length / 64;
      expect(cachedTokens).toBe(length);
      expect(seen.sliding).toEqual(range(Math.max(0, full - windowColumns), full));
      expect(seen.full).toEqual(onlyWindows ? [] : range(0, full));
      const { past } = await plain.runInChunks(prefix, chunkEnds(0, length, 512));
      const chunked = await plain.runInChunks(prompt, chunkEnds(length, prompt.length, 512), cut(past, length));
      expect(sameBits(logits, chunked.logits)).toBe(true);
      PieceLayout.prototype.scatter = move;
    }
    await plain.release();
  });

  test('what lies before a refilled window is never stored', async () => {
    const tiny = await models.make(options);
    const plain = await PlainDecoder.load(tiny.model);
    await using decoder = await openDecoder(tiny, [daemon.socket]);
    await store(decoder, 'acme', TEXT.subarray(0, 640));
    const sequence = decoder.openSequence({ isolationId: 'acme' });
    const seen = watch('gather');
    expect((await sequence.prefill(TEXT.subarray(0, 660))).cachedTokens).toBe(640);
    // All that was stored is gone, so the sequence is asked for each column anew.
    await decoder.driver.forget({ isolationId: 'acme' });
    for (const token of TEXT.subarray(660, 704)) await sequence.decode(token);
    await sequence.close();
    const held = 10 - windowColumns;
    expect(seen.sliding?.filter((column) => column < held)).toEqual([]);
    // Where no layer sees all tokens the first column cannot be stored, and so none behind it.
    expect([...new Set(seen.full)]).toEqual(onlyWindows ? [] : range(0, 11));
    // As the first sequence has computed it, and the second one behind its hit.
    const ends = [512, 640, ...range(660, 705)];
    const { past } = await plain.runInChunks(TEXT.subarray(0, 704), ends);
    for (const [length, cached] of [
      [100, 0],
      [330, 0],
      [720, onlyWindows ? 0 : 704],
    ] as const) {
      const prompt = TEXT.subarray(0, length);
      const { cachedTokens, logits } = await look(decoder, 'acme', prompt);
      expect(cachedTokens).toBe(cached);
      const chunked = await plain.runInChunks(prompt, chunkEnds(cached, length, 512), cut(past, cached));
      expect(sameBits(logits, chunked.logits)).toBe(true);
    }
    await plain.release();
  });

  test('a refill that ends early brings back the window of the shorter prefix, and one that fails nothing', async () => {
    const tiny = await models.make(options);
    const plain = await PlainDecoder.load(tiny.model);
    await using decoder = await openDecoder(tiny, [daemon.socket]);
    for (const length of [320, 640]) await store(decoder, 'acme', TEXT.subarray(0, length));
    const prompt = TEXT.subarray(0, 700);
    /** Hands out columns of which no byte is right, as those that come too late to count may be. */
    const spoil = (sink: PieceSink) => {
      for (const { name, pieceBytes } of decoder.driver.groups) {
        for (const index of range(name === 'full' ? 5 : 10 - windowColumns, 10)) {
          const pieces = pieceBytes.map((bytes) => new Uint8Array(bytes).fill(0xff));
          if ('read' in sink) sink.read({ index, group: name, tenantTag: 0n, generation: 0 }, pieces);
        }
      }
    };
    const early = vi.spyOn(Hit.prototype, 'refill').mockImplementation(async (sink) => {
      early.mockRestore();
      spoil(sink);
      using hit = decoder.driver.openSequence({ isolationId: 'acme' }).match(prompt.subarray(0, 320));
      return await hit.refill(sink);
    });
    const { logits, cachedTokens } = await look(decoder, 'acme', prompt);
    expect(cachedTokens).toBe(320);
    const { past } = await plain.run(plain.nothing, prompt.subarray(0, 320));
    const chunked = await plain.runInChunks(prompt, chunkEnds(320, 700, 512), past);
    expect(sameBits(logits, chunked.logits)).toBe(true);

    const failing = vi.spyOn(Hit.prototype, 'refill').mockImplementation(async (sink) => {
      failing.mockRestore();
      spoil(sink);
      throw new Error('a mistake');
    });
    const sequence = decoder.openSequence({ isolationId: 'acme' });
    await expect(sequence.prefill(prompt)).rejects.toThrow('a mistake');
    await decoder.driver.forget({ isolationId: 'acme' });
    const seen = watch('gather');
    await sequence.close();
    expect([seen.full, seen.sliding]).toEqual([[], []]);
    await plain.release();
  });
});
