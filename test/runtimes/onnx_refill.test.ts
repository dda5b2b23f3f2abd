import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import type { DemoModelOptions } from '../../src/runtimes/demo_model/generate.js';
import type { KvState } from '../../src/runtimes/onnx/kv_state.js';
import { PieceLayout } from '../../src/runtimes/onnx/piece_layout.js';
import { Scratch, type TestDaemon } from '../e2e/support.js';
import { TinyModels } from './demo_models.js';
import { distance, LINKS, look, openDecoder, sameBits, startDaemon, store, tokensOf } from './onnx_support.js';
import { chunkEnds, cut, PlainDecoder } from './plain_decoder.js';

const CHUNK = 512;
/** Around the ends of columns and of chunks. */
const LENGTHS = [63, 64, 65, 127, 128, 129, 200, 576, 1000];
const TEXT = tokensOf(1, 1000);
const WINDOW = { tokens: 96, pattern: 2 };

const MOST_COLUMNS = Math.floor(TEXT.length / 64);

const EFFORT = Number(process.env.KVSS_TEST_EFFORT ?? 1);
const tell = EFFORT > 1 ? console.log : () => {};

/** Whether a hit of so many columns is tried with a prompt of this length. Long ones take their time: without effort a few. */
function tried(link: string, length: number, columns: number): boolean {
  const most = Math.floor(length / 64);
  if (columns > most) return false;
  if (EFFORT > 1) return true;
  // TCP is the same code behind the slots.
  const few = link === 'TCP' ? [0, 1, most] : [0, 1, 2, 8, 9, most];
  return few.includes(columns) && (link !== 'TCP' || length === 128 || length === 576);
}

const MODELS: readonly DemoModelOptions[] = (['decomposed', 'fused'] as const).flatMap((attention) =>
  (['fp32', 'fp16'] as const).flatMap((dtype) => [
    { attention, dtype },
    { attention, dtype, slidingWindow: WINDOW },
  ]),
);

const scratch = new Scratch();
const models = new TinyModels(scratch);
let daemon: TestDaemon;
beforeAll(async () => {
  daemon = await startDaemon(scratch, { budget: '256MiB' });
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  scratch[Symbol.dispose]();
});
afterEach(() => vi.restoreAllMocks());

const CASES = MODELS.flatMap((options) => LINKS.map(([link, addressOf]) => ({ options, link, addressOf })));

describe.each(CASES)('$options over $link', ({ options, link, addressOf }) => {
  test('logits behind a refill are those of the same chunks without a cache, bit by bit, whatever the hit', async () => {
    const tiny = await models.make(options);
    const plain = await PlainDecoder.load(tiny.model);
    await using decoder = await openDecoder(tiny, [addressOf(daemon)], { prefillChunkTokens: CHUNK });
    const single = new Map<number, Float32Array>();
    for (const length of LENGTHS) single.set(length, (await plain.run(plain.nothing, TEXT.subarray(0, length))).logits);
    let [equal, cases, farthest] = [0, 0, 0];
    for (let columns = 0; columns <= MOST_COLUMNS; columns += 1) {
      const lengths = LENGTHS.filter((length) => tried(link, length, columns));
      if (lengths.length === 0) continue;
      const tenant = `has ${columns} columns`;
      const stored = TEXT.subarray(0, columns * 64);
      if (columns > 0) expect(await store(decoder, tenant, stored)).toBe(0);
      const { past } = await plain.runInChunks(stored, columns === 0 ? [] : chunkEnds(0, stored.length, CHUNK));
      for (const length of lengths) {
        const prompt = TEXT.subarray(0, length);
        // At least the last token is computed.
        const reused = Math.min(stored.length, length - 1);
        const { logits, cachedTokens } = await look(decoder, tenant, prompt);
        expect(cachedTokens).toBe(reused);
        const chunked = await plain.runInChunks(prompt, chunkEnds(reused, length, CHUNK), cut(past, reused));
        cases += 1;
        if (sameBits(logits, chunked.logits)) equal += 1;
        // A single run is not the same as chunks of it, with or without a cache: products of other shapes round otherwise.
        const one = single.get(length) as Float32Array;
        const off = distance(chunked.logits, one);
        farthest = Math.max(farthest, off);
        expect(distance(logits, one)).toBeLessThanOrEqual(off);
      }
    }
    expect([equal, cases]).toEqual([cases, cases]);
    tell(`${JSON.stringify(options)} over ${link}: ${equal} of ${cases} equal, chunks ${farthest} from one run`);
    await plain.release();
  });
});

describe.each(MODELS)('%j', (options) => {
  test('a longer text serves a prompt that it begins with, or that parts from it', async () => {
    const tiny = await models.make(options);
    const plain = await PlainDecoder.load(tiny.model);
    await using decoder = await openDecoder(tiny, [daemon.socket], { prefillChunkTokens: CHUNK });
    await store(decoder, 'acme', TEXT);
    const { past } = await plain.runInChunks(TEXT, chunkEnds(0, TEXT.length, CHUNK));
    for (const parting of [1, 63, 64, 65, 320, 513, 640, 999]) {
      const prompt = TEXT.slice(0, Math.min(TEXT.length, parting + 70));
      prompt[parting] = ((prompt[parting] as number) + 1) % 512;
      const { logits, cachedTokens } = await look(decoder, 'acme', prompt);
      const whole = Math.floor(parting / 64) * 64;
      // A window has to be there as well where texts part, which is so only where one was seen to.
      if (options.slidingWindow) expect(cachedTokens).toBeLessThanOrEqual(whole);
      else expect(cachedTokens).toBe(whole);
      const ends = chunkEnds(cachedTokens, prompt.length, CHUNK);
      const chunked = await plain.runInChunks(prompt, ends, cut(past, cachedTokens));
      expect(sameBits(logits, chunked.logits)).toBe(true);
    }
    await plain.release();
  });

  test('one changed byte of a refill changes the logits', async () => {
    const tiny = await models.make(options);
    await using decoder = await openDecoder(tiny, [daemon.socket]);
    const prompt = TEXT.subarray(0, 300);
    await store(decoder, 'acme', prompt.subarray(0, 256));
    const { logits, cachedTokens } = await look(decoder, 'acme', prompt);
    expect(cachedTokens).toBe(256);
    expect(sameBits((await look(decoder, 'acme', prompt)).logits, logits)).toBe(true);
    const { scatter } = PieceLayout.prototype;
    // Plane 2 has the keys and 3 the values of layer 1, which sees all tokens in every model.
    for (const [plane, token] of [
      [2, 0],
      [2, 255],
      [3, 5],
      [3, 64],
      [3, 200],
    ] as const) {
      vi.spyOn(PieceLayout.prototype, 'scatter').mockImplementation(function (
        this: PieceLayout,
        state: KvState,
        column: number,
        pieces: readonly Uint8Array[],
      ) {
        scatter.call(this, state, column, pieces);
        const row = state.rows(plane, 0, token, token + 1);
        // The most significant byte of the first number, as it was when its column came.
        const last = options.dtype === 'fp16' ? 1 : 3;
        if (column === Math.floor(token / 64) && this.name === 'full') row[last] = (row[last] as number) ^ 0x40;
      });
      const changed = await look(decoder, 'acme', prompt);
      expect(changed.cachedTokens).toBe(256);
      expect(sameBits(changed.logits, logits)).toBe(false);
      vi.restoreAllMocks();
    }
  });
});
