import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { generateDemoModel } from '../../src/runtimes/demo_model/generate.js';
import { revisionOfFile } from '../../src/runtimes/onnx/revision.js';
import { Scratch } from '../e2e/support.js';
import { refusalOf } from '../refusal.js';
import { TINY } from './demo_models.js';

const scratch = new Scratch();
afterAll(() => scratch[Symbol.dispose]());

/** A model, and the same with its weights in a file of another name. */
let model: string;
let renamed: string;
const DATA = 'model.onnx.data';
const OTHER = 'other.onnx.data';

beforeAll(async () => {
  ({ model } = await generateDemoModel(scratch.file('model'), TINY));
  const graph = await readFile(model, 'latin1');
  expect(graph).toContain(DATA);
  renamed = scratch.file('renamed.onnx');
  await writeFile(renamed, graph.replaceAll(DATA, OTHER), 'latin1');
  await writeFile(scratch.file(OTHER), await readFile(join(dirname(model), DATA)));
});

test('is 32 digits, and the same for the same bytes', async () => {
  const revision = await revisionOfFile(model);
  expect(revision).toMatch(/^[0-9a-f]{32}$/);
  expect(await revisionOfFile(model)).toBe(revision);
  const twin = await generateDemoModel(scratch.file('twin'), TINY);
  expect(await revisionOfFile(twin.model)).toBe(revision);
  const other = await generateDemoModel(scratch.file('other'), { ...TINY, seed: 2 });
  expect(await revisionOfFile(other.model)).not.toBe(revision);
});

/** The same file with one bit changed, for as long as `act` takes. */
async function withFlippedBit(path: string, at: number, act: () => Promise<void>): Promise<void> {
  const bytes = await readFile(path);
  const changed = Buffer.from(bytes);
  changed[at] = (changed[at] as number) ^ 1;
  await writeFile(path, changed);
  try {
    await act();
  } finally {
    await writeFile(path, bytes);
  }
}

test('changes with every bit of the graph and of the weights, whatever their file is called', async () => {
  for (const [graph, weights] of [
    [model, join(dirname(model), DATA)],
    [renamed, scratch.file(OTHER)],
  ] as const) {
    const before = await revisionOfFile(graph);
    const bytes = (await readFile(weights)).length;
    const positions = [0, 1, 4095, 4096, bytes >> 1, bytes - 1];
    for (let step = 0; step < 20; step += 1) positions.push((step * 7_919_993) % bytes);
    for (const at of positions) {
      await withFlippedBit(weights, at, async () => expect(await revisionOfFile(graph)).not.toBe(before));
    }
    // The first byte is the tag of the format's version.
    await withFlippedBit(graph, 1, async () => expect(await revisionOfFile(graph)).not.toBe(before));
    expect(await revisionOfFile(graph)).toBe(before);
  }
});

/** A file that names others the way ONNX files do: a message of key and value, each with its length. */
function naming(...names: string[]): Buffer {
  const lengthOf = (name: string) => {
    const { length } = Buffer.from(name);
    return length < 0x80 ? [length] : [(length & 0x7f) | 0x80, length >> 7];
  };
  return Buffer.concat(
    names.map((name) =>
      Buffer.concat([Buffer.from('\x0a\x08location\x12', 'latin1'), Buffer.from(lengthOf(name)), Buffer.from(name)]),
    ),
  );
}

test('counts every file that is named, in names of any length, and bytes that move between them', async () => {
  const long = `${'w'.repeat(200)}.bin`;
  const graph = scratch.file('several.onnx');
  await writeFile(graph, naming('a.bin', long, 'a.bin', 'é.bin'));
  const write = async (a: string, b: string, c: string) => {
    for (const [name, text] of [
      ['a.bin', a],
      [long, b],
      ['é.bin', c],
    ] as const)
      await writeFile(scratch.file(name), text);
    return revisionOfFile(graph);
  };
  const revisions = [
    await write('abc', 'def', 'ghi'),
    await write('ab', 'cdef', 'ghi'),
    await write('abc', 'deg', 'ghi'),
    await write('abc', 'def', 'ghj'),
    await write('abc', 'defg', 'hi'),
    await write('abcdefghi', '', ''),
  ];
  expect(new Set(revisions).size).toBe(revisions.length);
});

test('a file that is missing is named', async () => {
  const graph = scratch.file('lacking.onnx');
  await writeFile(graph, naming('nowhere.bin'));
  expect(await refusalOf(() => revisionOfFile(graph))).toMatch(/^model: cannot read .*lacking\.onnx: .*nowhere\.bin/);
  expect(await refusalOf(() => revisionOfFile(scratch.file('none.onnx')))).toMatch(/none\.onnx/);
});
