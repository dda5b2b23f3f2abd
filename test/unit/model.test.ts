import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { groupsOf, type Model, type ModelIdentity, modelPartOf, namespaceOf } from '../../src/swdriver/model.js';
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
  return namespaceOf(modelPartOf(identity, [{ name: 'full', bytesPerToken }]), isolationId, adapter);
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
  expect(groupsOf({ ...IDENTITY, bytesPerToken: [1, 0.5, 4096] })[0]?.pieceBytes).toEqual([64, 32, 262_144]);
  for (const wrong of [0, -1, 0.3, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
    expect(() => groupsOf({ ...IDENTITY, bytesPerToken: [1, wrong] })).toThrow(
      `bytesPerToken[1]: ${wrong} x 64 tokens is no piece size`,
    );
  }
});

const IDENTITY = { id: 'm', revision: 'r', dtype: 'd', layout: 'l' };
const grouped = (...groups: NonNullable<Model['groups']>) => groupsOf({ ...IDENTITY, groups });

test('groups that keep whole prefixes come first, and windows count in columns', () => {
  const groups = grouped(
    { name: 'sliding', bytesPerToken: [0, 8], windowTokens: 130 },
    { name: 'full', bytesPerToken: [4, 4] },
    { name: 'hints', bytesPerToken: [1, 0], required: false },
    { name: 'draft', bytesPerToken: [2, 2] },
  );
  expect(groups.map(({ name, keepsAll, windowColumns }) => [name, keepsAll, windowColumns])).toEqual([
    ['full', true, Number.POSITIVE_INFINITY],
    ['draft', true, Number.POSITIVE_INFINITY],
    ['sliding', false, 3],
    ['hints', false, Number.POSITIVE_INFINITY],
  ]);
  expect(groups[2]?.pieceBytes).toEqual([0, 512]);
  // A quarter of the columns, and never less than one window.
  expect([1, 4, 100].map((columns) => groups[2]?.slotsFor(columns))).toEqual([1, 3, 25]);
  expect(groups[3]?.slotsFor(100)).toBe(100);
});

test('of a model that has only windows the widest keeps whole prefixes', () => {
  const groups = grouped(
    { name: 'narrow', bytesPerToken: [8], windowTokens: 64 },
    { name: 'wide', bytesPerToken: [8], windowTokens: 4096 },
  );
  expect(groups.map(({ name, keepsAll, windowColumns }) => [name, keepsAll, windowColumns])).toEqual([
    ['wide', true, 64],
    ['narrow', false, 1],
  ]);
});

test('groups that make no sense are refused by the name of what is wrong', () => {
  const full = { name: 'full', bytesPerToken: [8, 8] };
  const wrong: [string, NonNullable<Model['groups']>][] = [
    ['groups: 0 groups', []],
    ["groups[1].name: 'full' is empty or there twice", [full, full]],
    ["groups[0].name: '' is empty", [{ ...full, name: '' }]],
    ['groups[1].bytesPerToken: 1 shards, the groups before have 2', [full, { name: 'b', bytesPerToken: [8] }]],
    ['groups[1].bytesPerToken: no shard holds anything of it', [full, { name: 'b', bytesPerToken: [0, 0] }]],
    ['groups[0].bytesPerToken[0]: -1', [{ ...full, bytesPerToken: [-1, 8] }]],
    ['groups[0].windowTokens: 0', [{ ...full, windowTokens: 0 }]],
    ['groups[0].capacityShare: 2', [{ ...full, capacityShare: 2 }]],
    ['groups: at least one has to be required', [{ ...full, required: false }]],
    [
      'groups: shard 1 holds nothing of any group',
      [
        { name: 'a', bytesPerToken: [8, 0] },
        { name: 'b', bytesPerToken: [8, 0] },
      ],
    ],
  ];
  for (const [message, groups] of wrong) expect(() => grouped(...groups)).toThrow(`model.${message}`);
  expect(() => groupsOf({ ...IDENTITY, bytesPerToken: [8], groups: [full] })).toThrow('give one of the two');
  expect(() => groupsOf(IDENTITY)).toThrow('model.bytesPerToken: at least one shard is needed');
});
