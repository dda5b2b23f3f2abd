import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { KvState } from '../../src/runtimes/onnx/kv_state.js';
import { checkShards, PieceLayout } from '../../src/runtimes/onnx/piece_layout.js';
import { settings } from '../model/property_settings.js';
import { refusalOf } from '../refusal.js';
import { planesOf } from './planes.js';

const COLUMN_TOKENS = 4;

const stateOf = (planes: ReturnType<typeof planesOf>, shared: boolean, tokens: number, seed: number) => {
  const state = new KvState({ planes, dtype: 'fp32' }, shared);
  state.layOut(tokens);
  let stamp = seed;
  for (const [plane, { heads }] of planes.entries()) {
    for (let head = 0; head < heads; head += 1) {
      const rows = state.rows(plane, head, 0, tokens);
      for (let at = 0; at < rows.length; at += 1) {
        stamp = (Math.imul(stamp, 1_664_525) + 1_013_904_223) >>> 0;
        rows[at] = stamp >>> 24;
      }
    }
  }
  return state;
};

const bytesIn = (state: KvState, planes: ReturnType<typeof planesOf>, of: (layer: number) => boolean, tokens: number) =>
  planes.flatMap(({ heads, layer }, plane) =>
    of(layer) ? Array.from({ length: heads }, (_, head) => [...state.rows(plane, head, 0, tokens)]) : [],
  );

const layers = fc.array(
  fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 4 })),
  { minLength: 1, maxLength: 5 },
);

test('what is gathered and scattered again is the same, and nothing else is touched', () => {
  fc.assert(
    fc.property(
      fc.record({
        layers,
        slides: fc.array(fc.boolean(), { minLength: 5, maxLength: 5 }),
        shares: fc.array(fc.double({ min: 0.1, max: 5, noNaN: true }), { minLength: 1, maxLength: 4 }),
        tokens: fc.integer({ min: 1, max: 4 * COLUMN_TOKENS }),
        short: fc.integer({ min: 0, max: COLUMN_TOKENS - 1 }),
        shared: fc.tuple(fc.boolean(), fc.boolean()),
      }),
      ({ layers: shapes, slides, shares, tokens, short, shared }) => {
        const planes = planesOf(
          shapes.flatMap(([heads, keyDim, valueDim]) => [
            [heads, keyDim],
            [heads, valueDim],
          ]),
          'fp32',
        );
        const columns = Math.floor(tokens / COLUMN_TOKENS);
        const source = stateOf(planes, shared[0], tokens, 1);
        const all = [...shapes.keys()];
        const groups = [all.filter((layer) => !slides[layer]), all.filter((layer) => slides[layer])];
        const layouts = groups
          .filter((held) => held.length > 0)
          .map((held, index) => new PieceLayout({ planes }, { name: `${index}`, layers: held }, shares, COLUMN_TOKENS));
        const total = planes.reduce((sum, { heads, rowBytes }) => sum + heads * rowBytes, 0);
        const split = layouts.flatMap(({ bytesPerToken }) => bytesPerToken).reduce((sum, bytes) => sum + bytes, 0);
        expect(split).toBe(total);
        // The last column may reach beyond the state: of a prompt that is cached as a whole one token is computed.
        const reach = Math.max(0, columns * COLUMN_TOKENS - short);
        for (const layout of layouts) {
          const target = stateOf(planes, shared[1], reach, 2);
          const before = bytesIn(target, planes, () => true, reach);
          for (let column = 0; column < columns; column += 1) {
            const pieces = layout.bytesPerToken.map((bytes) => new Uint8Array(bytes * COLUMN_TOKENS));
            layout.gather(source, column, pieces);
            layout.scatter(target, column, pieces);
          }
          const held = new Set(layoutLayers(layout));
          expect(bytesIn(target, planes, (layer) => held.has(layer), reach)).toEqual(
            bytesIn(source, planes, (layer) => held.has(layer), reach),
          );
          const others = (state: KvState) => bytesIn(state, planes, (layer) => !held.has(layer), reach);
          const untouched = stateOf(planes, shared[1], reach, 2);
          expect(bytesIn(untouched, planes, () => true, reach)).toEqual(before);
          expect(others(target)).toEqual(others(untouched));
          layout.clear(target, reach);
          expect(
            bytesIn(target, planes, (layer) => held.has(layer), reach)
              .flat()
              .every((byte) => byte === 0),
          ).toBe(true);
          expect(others(target)).toEqual(others(untouched));
        }

        function layoutLayers(layout: PieceLayout): readonly number[] {
          const filled = groups.filter((each) => each.length > 0);
          return filled[layouts.indexOf(layout)] ?? [];
        }
      },
    ),
    settings(80),
  );
});

/** Two layers with two heads of 8 bytes each: 8 runs of bytes. */
const PLANES = planesOf(
  [
    [2, 2],
    [2, 2],
    [2, 2],
    [2, 2],
  ],
  'fp32',
);
const layoutFor = (shares: readonly number[], held = [0, 1]) =>
  new PieceLayout({ planes: PLANES }, { name: 'full', layers: held }, shares, COLUMN_TOKENS);

test.each([
  [[1], [64]],
  [
    [1, 1],
    [32, 32],
  ],
  [
    [3, 1],
    [48, 16],
  ],
  [
    [1, 3],
    [16, 48],
  ],
  [
    [1, 1, 1],
    [24, 16, 24],
  ],
  [
    [1, 0],
    [64, 0],
  ],
])('heads are dealt out in proportion to shares of %j', (shares, bytes) => {
  expect(layoutFor(shares).bytesPerToken).toEqual(bytes);
});

test('a group says its window, and nothing where it has none', () => {
  const sliding = { name: 'sliding', layers: [1], windowTokens: 96 };
  const layout = new PieceLayout({ planes: PLANES }, sliding, [1], COLUMN_TOKENS);
  expect(layout.group).toEqual({ name: 'sliding', bytesPerToken: [32], windowTokens: 96 });
  expect(layoutFor([1]).group).toEqual({ name: 'full', bytesPerToken: [64] });
});

test('a shard that would hold nothing is refused, unless another group has something for it', async () => {
  const nine = layoutFor(new Array(9).fill(1));
  expect(await refusalOf(() => checkShards([nine], 9))).toMatch(/shares: shard \d of 9 would hold nothing/);
  expect(() => checkShards([layoutFor(new Array(8).fill(1))], 8)).not.toThrow();
  expect(() => checkShards([layoutFor([1, 0], [0]), layoutFor([0, 1], [1])], 2)).not.toThrow();
});
