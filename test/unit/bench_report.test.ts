import { expect, test } from 'vitest';
import { drawTransfers, fillIn, parseSuiteOutput, reportParts } from '../../src/bench/report.js';
import { sideBySide } from '../../src/bench/rounds.js';
import { latencies } from '../../src/bench/row.js';
import { TARGETS, type Target, verdictOf } from '../../src/bench/targets.js';
import { median } from '../../src/common/statistics.js';

const OUTPUT = [
  { bench: 'machine', cores: 2, cpu: 'a cpu' },
  { bench: 'evict', what: 'one copy', link: 'shm', pieceBytes: 262_144, gbps: 12.345, target: 'shm-copy', value: 0.97 },
  { bench: 'idle', what: '16 shards', target: 'idle', value: 0.5 },
]
  .map((line) => JSON.stringify(line))
  .join('\n');

test('a report has the value of each target and what it amounts to', () => {
  const { targets = '', evict = '', machine } = reportParts(parseSuiteOutput(OUTPUT));
  expect(machine).toBe('cores: 2, cpu: a cpu');
  const line = (id: string) => targets.split('\n').find((text) => text.startsWith(`| \`${id}\``));
  expect(line('shm-copy')).toMatch(/\| 0\.95 \| 0\.99 \| 0\.97 \| bar \|$/);
  expect(line('idle')).toMatch(/\| 50\.00 % \| \*\*missed\*\* \|$/);
  expect(line('scale')).toMatch(/\| not measured \| {2}\|$/);
  expect(evict).toContain('| one copy | shm | 256.0 KiB | 12.35 |');
});

test('a document keeps what is not generated, and one without a place for a part is refused', () => {
  const page = 'before\n<!-- begin a -->\nold\n<!-- end a -->\nafter\n';
  const filled = fillIn(page, { a: 'new' });
  expect(filled).toBe('before\n<!-- begin a -->\nnew\n<!-- end a -->\nafter\n');
  expect(fillIn(filled, { a: 'new' })).toBe(filled);
  expect(() => fillIn(page, { b: 'new' })).toThrow("the document has no place for 'b'");
});

test('what the suite did not print is refused', () => {
  expect(() => parseSuiteOutput('{"bench":"evict"}')).toThrow('there is no line about the machine');
  expect(() => parseSuiteOutput('hello')).toThrow();
});

test('the picture names sizes as they are', () => {
  const row = { bench: 'evict', what: 'one copy', link: 'shm' as const, gbps: 3, baseline: 'memcpy', baselineGbps: 2 };
  const sizes = [2 ** 16, 2 ** 20, 2 ** 21];
  const svg = drawTransfers({ machine: {}, rows: sizes.map((pieceBytes) => ({ ...row, pieceBytes })) });
  for (const size of ['64 KiB', '1 MiB', '2 MiB']) expect(svg).toContain(`>${size}<`);
});

test('a verdict is about the right side of its bar', () => {
  const target = (id: string) => TARGETS.find((each) => each.id === id) as Target;
  expect(verdictOf(target('shm-copy'), 0.94)).toBe('missed');
  expect(verdictOf(target('shm-copy'), 0.95)).toBe('bar');
  expect(verdictOf(target('shm-copy'), 1.2)).toBe('moonshot');
  expect(verdictOf(target('prefix-match'), 401)).toBe('missed');
  expect(verdictOf(target('prefix-match'), 400)).toBe('bar');
  expect(verdictOf(target('prefix-match'), 10)).toBe('moonshot');
  expect(new Set(TARGETS.map(({ id }) => id)).size).toBe(TARGETS.length);
});

test('a ratio is the median of the ratios of the rounds, whoever went first', async () => {
  const subject = [4, 1, 2, 8];
  const baseline = [1, 2, 4, 4];
  const rounds = (seconds: number[]) => () => ({ seconds: seconds.shift() as number, bytes: 8e9, ops: 1 });
  const figures = await sideBySide({ rounds: 3, warmup: 1 }, rounds(subject), rounds(baseline));
  // Without the first round: baseline over subject is 2, 2 and 0.5.
  expect(figures).toMatchObject({ ratio: 2, ratioRange: [0.5, 2], gbps: 4, baselineGbps: 2, ops: 3, rounds: 3 });
});

test('quantiles are values that were measured', () => {
  expect(median([3, 1, 2])).toBe(2);
  const { p50us, p99us, p999us } = latencies(Float64Array.from({ length: 1000 }, (_, index) => 999 - index));
  expect([p50us, p99us, p999us]).toEqual([500, 990, 999]);
});
