import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import type { TtftRow } from '../../src/bench/ttft.js';
import { ttftTable } from '../../src/bench/ttft_report.js';
import { kvss, Scratch } from './support.js';

const TINY = ['--size', '1M', '--rounds', '1', '--threads', '1'];
const bench = (...args: string[]) => kvss('bench', 'ttft', ...args);

async function rowsOf(...args: string[]): Promise<TtftRow[]> {
  const { code, stdout, stderr } = await bench(...TINY, ...args, '--json');
  expect(stderr).toBe('');
  expect(code).toBe(0);
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

test('prints a row a length, in which all but the last token came from the store, and draws them', async () => {
  using scratch = new Scratch();
  const svg = scratch.file('ttft.svg');
  const rows = await rowsOf('--lengths', '128,200,320', '--svg', svg);
  expect(rows.map(({ promptTokens }) => promptTokens)).toEqual([128, 200, 320]);
  // Of 200 tokens three columns are full.
  expect(rows.map(({ cachedTokens }) => cachedTokens)).toEqual([127, 192, 319]);
  for (const { coldMs, cachedMs, plainMs, ratio, noReuseOverhead, setting } of rows) {
    for (const value of [coldMs, cachedMs, plainMs, noReuseOverhead]) expect(value).toBeGreaterThan(0);
    // One round: the ratio is that of the medians.
    expect(ratio).toBeCloseTo(coldMs / cachedMs, 6);
    expect(setting).toContain('1.0 M parameters, fp32, fused attention');
  }
  const picture = readFileSync(svg, 'utf8');
  expect(picture).toContain(`128 tokens: ${rows[0]?.coldMs.toFixed(0)} ms computed`);
  expect(ttftTable(rows).slice(1)).toHaveLength(3);
});

test('measures the other form, the other numbers and another link', async () => {
  const [row] = await rowsOf('--lengths', '130', '--attention', 'decomposed', '--dtype', 'fp16', '--link', 'tcp');
  expect(row?.setting).toMatch(/fp16, decomposed attention, .* appends by Concat, 1 threads, over tcp/);
  expect(row?.cachedTokens).toBe(128);
});

test('says in one line what it cannot measure, and leaves nothing', async () => {
  using scratch = new Scratch();
  const svg = scratch.file('missing/ttft.svg');
  for (const [args, cause] of [
    [['--model', '/nowhere/model.onnx'], '/nowhere/model.onnx'],
    [['--chunk', '100'], '100 is no multiple of the 64 tokens of a column'],
    [['--svg', svg], `cannot write ${svg}`],
  ] as const) {
    const { code, stdout, stderr } = await bench(...TINY, ...args);
    expect(code).toBe(1);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^kvss: .*\n$/);
    expect(stderr).toContain(cause);
  }
  expect(existsSync(svg)).toBe(false);
});
