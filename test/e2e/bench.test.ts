import { describe, expect, test } from 'vitest';
import type { BenchRow } from '../../src/bench/row.js';
import { SUITE } from '../../src/bench/suite.js';
import { TARGETS } from '../../src/bench/targets.js';
import { kvss, Scratch, TestDaemon } from './support.js';

async function rowsOf(...args: string[]): Promise<BenchRow[]> {
  const { code, stdout, stderr } = await kvss('bench', ...args, '--tiny', '--json');
  expect(stderr).toBe('');
  expect(code).toBe(0);
  const [machine, ...rows] = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(machine).toMatchObject({ bench: 'machine', node: process.versions.node });
  return rows;
}

/** Rows of a bench, run once for all tests that look at them. */
const seen = new Map<string, Promise<BenchRow[]>>();
function rowsOnce(name: string): Promise<BenchRow[]> {
  const rows = seen.get(name) ?? rowsOf(name);
  seen.set(name, rows);
  return rows;
}

function expectSound(rows: readonly BenchRow[]): void {
  for (const row of rows) {
    for (const [name, value] of Object.entries(row)) {
      if (typeof value !== 'number') continue;
      expect({ what: row.what, name, value: Number.isFinite(value) && value >= 0 }).toMatchObject({ value: true });
    }
    // What is compared has been measured, and so has what it is compared with.
    if (row.baselineGbps !== undefined) expect(row.baselineGbps).toBeGreaterThan(0);
    if (row.ratio !== undefined) expect(row.ratio).toBeGreaterThan(0);
  }
}

describe('every bench of the suite runs', () => {
  // Peers have a test of their own: they may not be installed.
  test.each(SUITE.filter(({ name }) => name !== 'peers').map(({ name }) => name))('%s', async (name) => {
    const rows = await rowsOnce(name);
    expect(rows.length).toBeGreaterThan(0);
    expect(rows.every(({ bench, what }) => bench === name && what !== '')).toBe(true);
    expectSound(rows);
  });
});

test('every target that needs no peer is measured, and once', async () => {
  const rows: BenchRow[] = [];
  for (const { name } of SUITE) if (name !== 'peers') rows.push(...(await rowsOnce(name)));
  const measured = rows.flatMap(({ target, value }) => (target && value !== undefined ? [target] : []));
  const elsewhere = ['tcp-evict-peers', 'tcp-refill-peers', 'shm-peers'];
  const wanted = TARGETS.map(({ id }) => id).filter((id) => !elsewhere.includes(id));
  expect(measured.toSorted()).toEqual(wanted.toSorted());
});

test('the same work has the same checksum over every link', async () => {
  const rows = [...(await rowsOnce('evict')), ...(await rowsOnce('refill'))];
  expect(new Set(rows.map(({ checksum }) => checksum)).size).toBe(1);
  expect(rows[0]?.checksum).toMatch(/^[0-9a-f]{16}$/);
});

describe('a live daemon', () => {
  test('is measured over shared memory', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { budget: '8MiB' });
    const rows = await rowsOf('evict', '--connect', daemon.socket);
    expect(rows.map(({ link }) => link)).toEqual(['shm']);
    expectSound(rows);
    expect(await daemon.metric('kvss_evicts_total')).toBeGreaterThan(0);
  });

  test.each(['mixed', 'latency'])('has its rings measured: %s', async (name) => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1, budget: '32MiB' });
    const rows = await rowsOf(name, '--connect', daemon.socket);
    expect(rows.length).toBeGreaterThan(0);
    expectSound(rows);
    const { code, stderr } = await kvss('bench', name, '--tiny', '--connect', 'tcp://127.0.0.1:9');
    expect(code).toBe(1);
    expect(stderr).toContain('tcp://127.0.0.1:9: this bench needs a daemon in the same host');
  });

  test('that has no room is told so', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { budget: '4KiB' });
    const { code, stderr } = await kvss('bench', 'evict', '--tiny', '--connect', daemon.socket);
    expect(code).toBe(1);
    expect(stderr).toMatch(/room|memory/);
  });

  test('that is not there is named', async () => {
    using scratch = new Scratch();
    const { code, stderr } = await kvss('bench', 'refill', '--tiny', '--connect', scratch.file('nobody'));
    expect(code).toBe(1);
    expect(stderr).toContain(scratch.file('nobody'));
  });
});
