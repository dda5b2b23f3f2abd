import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { type ModelIdentity, modelPartOf, namespaceOf, pieceBytesOf } from '../../src/swdriver/model.js';
import { settings } from '../model/property_settings.js';

type Parts = readonly [
  isolationId: string,
  id: string,
  revision: string,
  dtype: string,
  layout: string,
  adapter: string,
];

function nameOf([isolationId, id, revision, dtype, layout, adapter]: Parts, bytesPerToken: readonly number[]): string {
  const identity: ModelIdentity = { id, revision, dtype, layout };
  return namespaceOf(modelPartOf(identity, bytesPerToken), isolationId, adapter);
}

const BASE: Parts = ['tenant', 'model', 'r1', 'bf16', 'plain', ''];

test('namespaces that differ in one part are different', () => {
  const names = [
    nameOf(BASE, [8, 8]),
    ...BASE.map((part, index) => nameOf(BASE.with(index, `${part}2`) as unknown as Parts, [8, 8])),
    nameOf(BASE, [8]),
    nameOf(BASE, [8, 9]),
    nameOf(BASE, [88]),
    nameOf(BASE, [8, 8, 8]),
  ];
  expect(new Set(names).size).toBe(names.length);
});

test('parts that run into each other do not spell the same namespace', () => {
  const names = [
    nameOf(['a', 'b', 'r', 'd', 'l', ''], [8]),
    nameOf(['ab', '', 'r', 'd', 'l', ''], [8]),
    nameOf(['', 'ab', 'r', 'd', 'l', ''], [8]),
    nameOf(['a1:b', '', 'r', 'd', 'l', ''], [8]),
    nameOf(['a', '1:b', 'r', 'd', 'l', ''], [8]),
    nameOf(['1:a', 'b', 'r', 'd', 'l', ''], [8]),
    nameOf(['a', 'b', 'r', 'd', 'l', '1:8'], []),
  ];
  expect(new Set(names).size).toBe(names.length);
});

test('two namespaces are the same only where all their parts are', () => {
  // Made of what the spelling itself is made of.
  const tricky = fc
    .array(fc.constantFrom('1', '2', '0', ':', ',', 'a', '1:a', '\u00e9', '\ud83d\ude00', '\ud83d'), { maxLength: 4 })
    .map((bits) => bits.join(''));
  const parts = fc.tuple(tricky, tricky, tricky, tricky, tricky, tricky);
  const bytes = fc.array(fc.constantFrom(1, 11, 111), { minLength: 1, maxLength: 3 });
  const run = fc.property(parts, bytes, parts, bytes, (one, oneBytes, two, twoBytes) => {
    const same = JSON.stringify([one, oneBytes]) === JSON.stringify([two, twoBytes]);
    expect(nameOf(one, oneBytes) === nameOf(two, twoBytes)).toBe(same);
  });
  fc.assert(run, settings(2_000));
});

test('a tenant is the whole beginning of its namespaces and of no other', () => {
  const tenants = ['a', '1:a', 'a1', '11:a', 'aaaaaaaaaaa', '', '1'];
  for (const tenant of tenants) {
    const prefix = `${tenant.length}:${tenant}`;
    const hit = tenants.filter((other) => nameOf(BASE.with(0, other) as unknown as Parts, [8]).startsWith(prefix));
    expect(hit).toEqual([tenant]);
  }
});

test('pieces have the bytes of all tokens of a column', () => {
  const identity = { id: 'm', revision: 'r', dtype: 'd', layout: 'l' };
  expect(pieceBytesOf({ ...identity, bytesPerToken: [1, 0.5, 4096] }, 64)).toEqual([64, 32, 262_144]);
  for (const wrong of [0, -1, 0.3, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
    expect(() => pieceBytesOf({ ...identity, bytesPerToken: [1, wrong] }, 64)).toThrow(
      `bytesPerToken[1]: ${wrong} x 64 tokens is no piece size`,
    );
  }
});
