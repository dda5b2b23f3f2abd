import { expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import { COLUMN_TOKENS, digestOf, GroupsWorld, type GroupsWorldOptions, type Span } from './groups_world.js';
import { range } from './world.js';

const over = (options: Partial<GroupsWorldOptions> = {}): Promise<GroupsWorld> =>
  GroupsWorld.create({
    groups: [{ name: 'full', bytesPerToken: [4, 3] }],
    capacityColumns: 16,
    immediate: true,
    ...options,
  });

const columns = (count: number, first = 1): number[] => range(count * COLUMN_TOKENS, first);
const span = (offset: number, length: number, content = 0): Span => ({ offset, length, content });

async function store(world: GroupsWorld, tokens: readonly number[], spans: readonly Span[]): Promise<void> {
  const { owner, hit } = world.open('a', tokens, { spans });
  await world.served(world.evict(owner));
  world.release(hit);
}

/** Columns that a prompt with these spans finds. */
function found(world: GroupsWorld, tokens: readonly number[], spans: readonly Span[]): number {
  const { hit } = world.open('a', tokens, { spans });
  world.release(hit);
  return hit.hit.columns;
}

test('the same placeholders with another digest are another column', async () => {
  const world = await over();
  const prompt = columns(4);
  await store(world, prompt, [span(2, 2, 0)]);
  expect(found(world, prompt, [span(2, 2, 0)])).toBe(4);
  expect(found(world, prompt, [span(2, 2, 1)])).toBe(1);
  expect(found(world, prompt, [])).toBe(1);
  await store(world, prompt, [span(2, 2, 1)]);
  await store(world, prompt, []);
  expect(world.driver.columns).toBe(1 + 3 + 3 + 3);
  for (const spans of [[span(2, 2, 0)], [span(2, 2, 1)], []]) {
    const { hit } = world.open('a', prompt, { spans });
    expect(await world.served(world.refill(hit))).toMatchObject({ columns: 4 });
  }
  await world.finish();
});

test('a digest is compared to its last byte', async () => {
  const world = await over();
  const sequence = world.driver.openSequence({ isolationId: 'a' });
  const digest = digestOf(0);
  sequence.match(Uint32Array.from(columns(1)), { spans: [{ offset: 0, length: 1, digest }] });
  await sequence.evict({ write: () => true });
  digest[31] = 0;
  const spans = [{ offset: 0, length: 1, digest }];
  expect(sequence.match(Uint32Array.from(columns(1)), { spans }).columns).toBe(0);
});

test('an image that lies across two columns is part of both', async () => {
  const world = await over();
  const across = span(COLUMN_TOKENS - 1, 2);
  await store(world, columns(3), [across]);
  expect(found(world, columns(3), [across])).toBe(3);
  expect(found(world, columns(3), [{ ...across, content: 1 }])).toBe(0);
  // An image that ends where the other one goes on.
  expect(found(world, columns(3), [{ ...across, length: 1 }])).toBe(0);
  expect(world.map.contents.size).toBe(2);
  await world.finish();
});

test('offset and length of a span count', async () => {
  const world = await over();
  const prompt = [1, 1, 1, 1];
  await store(world, prompt, [span(0, 1)]);
  for (const other of [span(1, 1), span(0, 2), span(0, 4)]) expect(found(world, prompt, [other])).toBe(0);
  expect(found(world, prompt, [span(0, 1), span(1, 1)])).toBe(0);
  expect(found(world, prompt, [span(0, 1)])).toBe(2);
  // The same span one column later stands behind another prefix.
  expect(found(world, prompt, [span(COLUMN_TOKENS, 1)])).toBe(0);
  await world.finish();
});

test('spans of appended tokens count from the first of those', async () => {
  const world = await over();
  const { owner } = world.open('a', [1, 1, 1], { spans: [span(0, 1, 0)] });
  world.append(owner, [1, 1, 1], [span(1, 2, 1)]);
  expect(await world.served(world.evict(owner))).toMatchObject({ stored: 3 });
  expect(found(world, [1, 1, 1, 1, 1, 1], [span(0, 1, 0), span(4, 2, 1)])).toBe(3);
  expect(found(world, [1, 1, 1, 1, 1, 1], [span(0, 1, 0), span(1, 2, 1)])).toBe(0);
  await world.finish();
});

test('columns behind an image that is the same are shared whatever comes after it', async () => {
  const world = await over();
  await store(world, [...columns(2), ...columns(1, 100)], [span(0, 2)]);
  expect(found(world, [...columns(2), ...columns(1, 200)], [span(0, 2)])).toBe(2);
  await world.finish();
});

test('contents are forgotten with their columns', async () => {
  const world = await over({ capacityColumns: 4 });
  for (const content of [0, 1]) await store(world, columns(2), [span(0, 4, content)]);
  expect(world.map.contents.size).toBe(4);
  // What makes room takes its contents along.
  await store(world, columns(3, 100), []);
  expect(world.map.contents.size).toBeLessThanOrEqual(1);
  await world.served(world.forget('a'));
  expect(world.map.contents.size).toBe(0);
  // Their numbers are used again, for others.
  await store(world, columns(2), [span(0, 2, 5)]);
  expect(found(world, columns(2), [span(0, 2, 0)])).toBe(0);
  world.endDaemon(0, true);
  expect(world.map.contents.size).toBe(0);
  await world.finish();
});

test('spans that are none are refused by the name of what is wrong, and change nothing', async () => {
  const world = await over();
  const { sequence } = world.sequence('a');
  const digest = digestOf(0);
  const good = { offset: 0, length: 1, digest };
  const wrong: [string, object][] = [
    ['spans[1].offset: -1 is no token', { offset: -1, length: 1, digest }],
    ['spans[1].offset: 0.5 is no token', { offset: 0.5, length: 1, digest }],
    ['spans[1].length: 0 tokens from 0', { offset: 0, length: 0, digest }],
    ['spans[1].length: 3 tokens from 2 on are not within 4', { offset: 2, length: 3, digest }],
    ['spans[1].digest: 32 bytes are needed', { offset: 0, length: 1, digest: digest.subarray(1) }],
    ['spans[1].digest: 32 bytes are needed', { offset: 0, length: 1, digest: 'x'.repeat(32) }],
  ];
  sequence.match(Uint32Array.of(1, 2));
  for (const [message, bad] of wrong) {
    const spans = [good, bad as typeof good];
    for (const call of [
      () => sequence.match(Uint32Array.of(1, 2, 3, 4), { spans }),
      () => sequence.append(Uint32Array.of(1, 2, 3, 4), { spans }),
    ]) {
      expect(call).toThrow(KvssError);
      expect(call).toThrow(message);
    }
  }
  expect(sequence.length).toBe(2);
  await sequence.evict({ write: () => true });
  expect(world.map.contents.size).toBe(0);
});
