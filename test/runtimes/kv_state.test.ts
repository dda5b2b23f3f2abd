import * as fc from 'fast-check';
import { afterEach, expect, test, vi } from 'vitest';
import type { KvDtype, Plane } from '../../src/runtimes/onnx/decoder_graph.js';
import { KvState } from '../../src/runtimes/onnx/kv_state.js';
import { settings } from '../model/property_settings.js';
import { planesOf } from './planes.js';

/** Rows, each of which is filled with one byte. Comparing buffers takes a fraction of what an expectation does. */
const filled = (rows: readonly number[], rowBytes: number) =>
  Buffer.concat(rows.map((byte) => Buffer.alloc(rowBytes, byte)));

/** The bytes of a tensor, wherever in its memory it lies. */
const bytesOf = ({ data }: { data: unknown }) => {
  const { buffer, byteOffset, byteLength } = data as Uint8Array;
  return new Uint8Array(buffer, byteOffset, byteLength);
};

afterEach(() => vi.unstubAllGlobals());

type Command =
  | { readonly run: number; readonly fails: boolean }
  | { readonly reserve: number }
  | { readonly truncate: number }
  | { readonly layOut: number };

const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ run: fc.integer({ min: 1, max: 200 }), fails: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ reserve: fc.integer({ min: 0, max: 900 }) }) },
  { weight: 2, arbitrary: fc.record({ truncate: fc.integer({ min: 0, max: 500 }) }) },
  { weight: 1, arbitrary: fc.record({ layOut: fc.integer({ min: 0, max: 500 }) }) },
);
const shape = fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 4 }));

test.each([false, true])('is a list of rows in each head, whatever is done to it (shared memory: %s)', (shared) => {
  fc.assert(
    fc.property(
      fc.array(shape, { minLength: 2, maxLength: 4 }),
      fc.constantFrom<KvDtype>('fp32', 'fp16'),
      fc.array(command, { maxLength: 12 }),
      (shapes, dtype, commands) => {
        const planes = planesOf(shapes, dtype);
        const state = new KvState({ planes, dtype }, shared);
        /** For each plane and head the rows that it has, each one a byte that fills it. */
        const oracle = planes.map(({ heads }) => Array.from({ length: heads }, () => [] as number[]));
        let stamp = 0;
        const length = () => oracle[0]?.[0]?.length ?? 0;
        const forEachHead = (act: (rows: number[], plane: number, head: number) => void) => {
          for (const [plane, heads] of oracle.entries())
            for (const [head, rows] of heads.entries()) act(rows, plane, head);
        };
        const check = () => {
          expect(state.length).toBe(length());
          expect(state.capacity).toBeGreaterThanOrEqual(state.length);
          forEachHead((rows, plane, head) => {
            const { rowBytes } = planes[plane] as Plane;
            expect(filled(rows, rowBytes).equals(state.rows(plane, head, 0, rows.length))).toBe(true);
          });
        };
        for (const each of commands) {
          if ('reserve' in each) state.reserve(each.reserve);
          else if ('truncate' in each) {
            state.truncate(each.truncate);
            forEachHead((rows) => rows.splice(each.truncate));
          } else if ('layOut' in each) {
            state.layOut(each.layOut);
            // Whoever lays out writes all of it.
            forEachHead((rows, plane, head) => {
              rows.splice(0);
              const { rowBytes } = planes[plane] as Plane;
              for (let token = 0; token < each.layOut; token += 1) {
                stamp = (stamp + 1) % 256;
                rows.push(stamp);
                state.rows(plane, head, token, token + 1).set(new Uint8Array(rowBytes).fill(stamp));
              }
            });
          } else {
            runOnce(each);
          }
          check();
        }

        /** What a graph does: in place, or all of the past and the new ones into other memory. */
        function runOnce({ run, fails }: { run: number; fails: boolean }) {
          const before = length();
          const { past, present } = state.tensors(run);
          forEachHead((rows, plane, head) => {
            const { pastName, presentName, rowBytes, heads, dim } = planes[plane] as Plane;
            const [from, to] = [past[pastName], present[presentName]];
            if (!from || !to) throw new Error('a tensor is missing');
            const widths = shared ? [state.capacity, state.capacity] : [before, before + run];
            expect([from.dims, to.dims]).toEqual(widths.map((width) => [1, heads, width, dim]));
            expect(shared ? from === to : bytesOf(from).buffer !== bytesOf(to).buffer).toBe(true);
            const [fromStart, toStart] = widths.map((width) => head * width * rowBytes) as [number, number];
            const old = bytesOf(from).slice(fromStart, fromStart + before * rowBytes);
            expect(filled(rows, rowBytes).equals(old)).toBe(true);
            const target = bytesOf(to);
            target.set(old, toStart);
            for (let token = 0; token < run; token += 1) {
              stamp = (stamp + 1) % 256;
              const at = toStart + (before + token) * rowBytes;
              target.fill(stamp, at, at + rowBytes);
              if (!fails) rows.push(stamp);
            }
          });
          // A run that failed may have written, and nothing is to be seen of it.
          if (!fails) state.commit(run);
        }
      },
    ),
    settings(60),
  );
});

test.each([false, true])(
  'memory that cannot be had changes nothing, wherever it ends (shared memory: %s)',
  (shared) => {
    const planes = planesOf(new Array(4).fill([2, 1]), 'fp32');
    for (let failing = 1; failing <= 4; failing += 1) {
      const state = new KvState({ planes, dtype: 'fp32' }, shared);
      state.layOut(200);
      const rowsOf = (plane: number) => [0, 1].map((head) => [...state.rows(plane, head, 0, 200)]);
      for (const plane of planes.keys())
        for (const head of [0, 1]) state.rows(plane, head, 0, 200).fill(1 + 2 * plane + head);
      const before = [...planes.keys()].map(rowsOf);
      let asked = 0;
      class ScarceArray extends Uint8Array {
        constructor(...args: [number]) {
          asked += 1;
          if (asked === failing) throw new RangeError('Array buffer allocation failed');
          super(...args);
        }
      }
      vi.stubGlobal('Uint8Array', ScarceArray);
      expect(() => state.reserve(1000)).toThrow('allocation failed');
      vi.unstubAllGlobals();
      expect([...planes.keys()].map(rowsOf)).toEqual(before);
      state.reserve(1000);
      expect([...planes.keys()].map(rowsOf)).toEqual(before);
    }
  },
);
