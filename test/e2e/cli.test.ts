import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { finish, kvss, MAIN, message, Scratch, startChild, TestDaemon, until } from './support.js';

/** A chat trace: `prompts` lists the blocks of each prompt. */
const chatTrace = (prompts: number[][]) =>
  prompts
    .map((blocks, at) =>
      JSON.stringify({ timestamp: at, input_length: blocks.length * 512, output_length: 1, hash_ids: blocks }),
    )
    .join('\n');

/** An agent trace with blocks of 64 tokens. */
const agentTrace = (prompts: number[][]) =>
  JSON.stringify({
    block_size: 64,
    requests: prompts.map((blocks, t) => ({ t, in: blocks.length * 64, hash_ids: blocks })),
  });

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, at) => from + at);

describe('kvss replay', () => {
  test('tells both formats apart, counts what a cache without limit would hit, and verifies every byte', async () => {
    using scratch = new Scratch();
    const chat = scratch.file(
      'chat.jsonl',
      chatTrace([
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 4, 5],
        [2, 2, 4],
      ]),
    );
    // The same numbers in another file are other blocks.
    const agent = scratch.file('agent.json', agentTrace([range(1, 40), range(1, 60), [...range(1, 30), 99]]));
    const { code, stdout } = await kvss('replay', chat, agent, '--json');
    expect(code).toBe(0);
    const report = JSON.parse(stdout);
    const chatHits = (2 + 3) * 8;
    const agentHits = 39 + 29;
    const refs = 13 * 8 + 39 + 59 + 30;
    expect(report).toMatchObject({
      requests: 7,
      promptTokens: refs * 64,
      columnRefs: refs,
      columnHits: chatHits + agentHits,
      columnsRefilled: chatHits + agentHits,
      columnsEvicted: refs - chatHits - agentHits,
      columnsDeleted: 0,
      columnsDropped: 0,
      mismatches: 0,
    });
    expect(report.columnHitRate).toBeCloseTo((chatHits + agentHits) / refs, 12);
    expect(report.tokenHitRate).toBeCloseTo((chatHits + agentHits) / refs, 12);
    expect(report.bytesVerified).toBe((chatHits + agentHits) * 64 * 8 * (3 + 4 + 5 + 4));
    for (const field of ['evictGBps', 'refillGBps', 'seconds']) expect(report[field]).toBeGreaterThan(0);
  });

  test('stays right when there is room for a tenth only', async () => {
    using scratch = new Scratch();
    const prompts = range(0, 60).map((at) => [...range(0, 20), ...range(100 + (at % 7) * 50, 130 + (at % 7) * 50)]);
    const { code, stdout } = await kvss(
      'replay',
      scratch.file('agent.json', agentTrace(prompts)),
      '--capacity-columns',
      '25',
      '--json',
    );
    expect(code).toBe(0);
    const report = JSON.parse(stdout);
    expect(report.mismatches).toBe(0);
    // The shared head stays: it is used by everyone.
    expect(report.columnHits).toBeGreaterThanOrEqual(59 * 20);
    expect(report.columnHits).toBeLessThan(report.columnRefs * 0.6);
    expect(report.columnsDeleted).toBeGreaterThan(0);
    expect(report.bytesVerified).toBe(report.columnHits * 64 * 8 * 16);
  });

  test('uses a daemon that is running, and prints a table for people', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const trace = scratch.file('agent.json', agentTrace([range(1, 40), range(1, 60)]));
    const { code, stdout } = await kvss('replay', trace, '--socket', daemon.socket, '--bytes-per-token', '8,24');
    expect(code).toBe(0);
    expect(stdout).toMatch(/^59 columns of 2\.00 KiB over 2 shards/);
    expect(stdout).toMatch(/mismatches +0\n/);
    await daemon.awaitMetric('kvss_evicts_total', 2 * 59);
    await daemon.awaitMetric('kvss_refills_total', 2 * 39);
  });

  test('refuses sizes for another number of shards', async () => {
    using scratch = new Scratch();
    const refused = await kvss('replay', scratch.file('a.json', agentTrace([[1]])), '--bytes-per-token', '1,2');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('--bytes-per-token: 2 numbers for 4 shards');
  });
});

describe('kvss demo', () => {
  test('--once --json prints one object: real text came back byte for byte', async () => {
    const { code, stdout, stderr } = await kvss('demo', '--once', '--json');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const report = JSON.parse(stdout);
    expect(report.mismatches).toBe(0);
    expect(report.bytesVerified).toBeGreaterThan(10_000_000);
    expect(report.tokenHitRate).toBeGreaterThan(0.3);
    expect(report.tokenHitRate).toBeLessThan(1);
    expect(report.columnsDropped).toBe(0);
  });
});

describe('kvss stat', () => {
  test('shows what a daemon is doing, without being counted as a driver of a shard', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const { child, finished } = startChild('driver.mjs', [daemon.socket, 'acme', 'loop']);
    await message(child);
    await message(child);
    const { code, stdout } = await kvss('stat', '--socket', daemon.socket, '--once', '--json');
    expect(code).toBe(0);
    const look = JSON.parse(stdout);
    expect(look.shards).toHaveLength(2);
    for (const shard of look.shards) {
      expect(shard).toMatchObject({ sessions: 1, tenantAlarms: 0, ringFaults: 0 });
      expect(shard.evicts).toBeGreaterThan(0);
      expect(shard.freeBytes).toBeLessThan(shard.budgetBytes);
    }
    expect(look.sessions).toBe(2);
    const table = await kvss('stat', '--socket', daemon.socket, '--once');
    expect(table.stdout).toMatch(/^up \d+ s, \d sessions\nshard +domain +budget/);
    child.send('stop');
    expect((await finished).code).toBe(0);
  });

  test('goes on showing counters while the daemon does not answer', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const child = spawn(process.execPath, [MAIN, 'stat', '--socket', daemon.socket, '--json', '--interval', '50']);
    const lines: { answering: boolean; shards: unknown[] }[] = [];
    child.stdout.on('data', (chunk) =>
      lines.push(
        ...String(chunk)
          .trim()
          .split('\n')
          .map((line) => JSON.parse(line)),
      ),
    );
    await until(() => lines.some((line) => line.answering));
    await daemon.freeze();
    await until(() => lines.at(-1)?.answering === false);
    expect(lines.at(-1)?.shards).toHaveLength(2);
    child.kill('SIGINT');
    await finish(child);
  });

  test('names the socket where nobody listens', async () => {
    const refused = await kvss('stat', '--socket', '/nowhere/s');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('cannot connect to a KVSS daemon at /nowhere/s');
  });
});

describe('kvss bench hio', () => {
  test('measures each mode, a line each', async () => {
    const { code, stdout } = await kvss('bench', 'hio', '--shards', '1', '--phase', '100', '--json');
    expect(code).toBe(0);
    const lines = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(lines.map(({ mode, shards }) => [mode, shards])).toEqual([
      ['latency', 1],
      ['adaptive', 1],
      ['buffered', 1],
    ]);
    for (const line of lines) {
      expect(line.evicts).toBeGreaterThan(0);
      expect(line.evictP99Us).toBeGreaterThanOrEqual(line.evictP50Us);
      expect(line.evictP50Us).toBeGreaterThan(0);
      expect(line.idleCores).toBeGreaterThanOrEqual(0);
    }
  });
});

describe('kvss', () => {
  test('says its version', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
    expect((await kvss('--version')).stdout.trim()).toBe(version);
  });
});
