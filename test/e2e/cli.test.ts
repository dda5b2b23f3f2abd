import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { finish, kvss, MAIN, message, Scratch, startChild, startWafer, TestDaemon, until } from './support.js';

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
    const { code, stdout } = await kvss('replay', trace, '--connect', daemon.socket, '--bytes-per-token', '8,24');
    expect(code).toBe(0);
    expect(stdout).toMatch(/^59 columns of 2\.00 KiB over 2 shards\n/);
    expect(stdout).toMatch(/mismatches +0\n/);
    expect(stdout).toMatch(/slowest call +\d+\.\d ms\n/);
    await daemon.awaitMetric('kvss_evicts_total', 2 * 59);
    await daemon.awaitMetric('kvss_refills_total', 2 * 39);
  });

  test('uses several daemons, each by an address of its own kind, and columns lie within one of them', async () => {
    using scratch = new Scratch();
    await using first = await TestDaemon.start(scratch.file('a'));
    await using second = await TestDaemon.start(scratch.file('b'), { flags: ['--tcp-port', '0'] });
    await using third = await TestDaemon.start(scratch.file('c'), {
      flags: ['--stream-socket', scratch.file('c.streams')],
    });
    const trace = scratch.file('agent.json', agentTrace([range(1, 61), range(1, 61)]));
    const tcp = `tcp://127.0.0.1:${second.streamPorts[0]}`;
    const connect = ['--connect', `${first.socket},${tcp}`, '--connect', `unix:${scratch.file('c.streams')}`];
    const sizes = ['--bytes-per-token', '8,24', '--deadline-ms', '20000', '--checksums'];
    const { code, stdout } = await kvss('replay', trace, ...connect, '--striping', 'within', ...sizes, '--json');
    expect(code).toBe(0);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ requests: 2, calls: 4, columnHits: 60, columnsDropped: 0, mismatches: 0 });
    expect(report.slowestCallMs).toBeGreaterThan(0);
    expect(report.slowestCallMs).toBeLessThan(report.seconds * 1000);
    // Two shards each; the roomiest stripe takes the next column.
    for (const daemon of [first, second, third]) await daemon.awaitMetric('kvss_evicts_total', 2 * 20);
  });

  test('spreads a column across the shards of all daemons', async () => {
    using scratch = new Scratch();
    const flags = ['--tcp-port', '0'];
    await using first = await TestDaemon.start(scratch.file('a'), { flags });
    await using second = await TestDaemon.start(scratch.file('b'), { flags, shards: 3 });
    const trace = scratch.file('agent.json', agentTrace([range(1, 40), range(1, 60)]));
    const addresses = [first, second].map((daemon) => `tcp://127.0.0.1:${daemon.streamPorts[0]}`);
    const sizes = ['--bytes-per-token', '1,2,3,4,5', '--deadline-ms', '20000'];
    const { code, stdout } = await kvss('replay', trace, '--connect', addresses.join(), ...sizes, '--json');
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ columnHits: 39, bytesVerified: 39 * 64 * 15, mismatches: 0 });
    await first.awaitMetric('kvss_refills_total', 2 * 39);
    await second.awaitMetric('kvss_refills_total', 3 * 39);
    const within = await kvss('replay', trace, '--connect', addresses.join(), '--striping', 'within');
    expect(within.code).toBe(1);
    expect(within.stderr).toBe(
      'kvss: --striping within: the daemons have to have equally many shards, and have 2, 3 [KVSS_BAD_INPUT]\n',
    );
    const mixed = await kvss('replay', trace, '--connect', `${first.socket},${addresses[1]}`);
    expect(mixed.code).toBe(1);
    expect(mixed.stderr).toMatch(/^kvss: daemons: a column cannot lie across shared memory and streams; .*\n$/);
  });

  test.each([
    [['--link', 'tcp'], 8],
    [['--link', 'unix', '--striping', 'within', '--wio-streams', '2'], 4],
  ])('has a wafer carry the payload over %j, and its own process sees none of it', async (flags, shards) => {
    using scratch = new Scratch();
    const trace = scratch.file('agent.json', agentTrace([range(1, 40), range(1, 60), range(1, 61)]));
    const { code, stdout } = await kvss('replay', trace, '--wafer', ...flags, '--deadline-ms', '20000', '--json');
    expect(code).toBe(0);
    const bytes = (39 + 59) * 64 * 32 * shards;
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ columnHits: 39 + 59, columnsDropped: 0, driverPayloadBytes: 0, mismatches: 0 });
    expect(report.bytesVerified).toBe(bytes);
    const alone = await kvss('replay', trace, ...flags, '--deadline-ms', '20000', '--json');
    const { columnHitRate, driverPayloadBytes } = JSON.parse(alone.stdout);
    expect(columnHitRate).toBe(report.columnHitRate);
    // Everything once each way.
    expect(driverPayloadBytes).toBe(bytes + 60 * 64 * 32 * shards);
  });

  test('uses a wafer that is running, whose memory may be too small for all of a prompt', async () => {
    using scratch = new Scratch();
    const address = `unix:${scratch.file('w')}`;
    const wafer = startWafer('--listen', address, '--bytes-per-token', '1,2,3,4', '--memory-columns', '50');
    try {
      await message(wafer.child);
      const trace = scratch.file('agent.json', agentTrace([range(1, 41), range(1, 61)]));
      const args = ['replay', trace, '--link', 'unix', '--daemons', '1', '--wafer', address, '--json'];
      const { code, stdout } = await kvss(...args, '--bytes-per-token', '1,2,3,4');
      expect(code).toBe(0);
      // What does not fit on the wafer cannot be evicted from there.
      expect(JSON.parse(stdout)).toMatchObject({
        columnHits: 40,
        columnsEvicted: 50,
        columnsDropped: 10,
        mismatches: 0,
      });
      const other = await kvss(...args, '--bytes-per-token', '1,2,3,5');
      expect(other.code).toBe(1);
      expect(other.stderr).toBe(
        'kvss: carrier: it has pieces of 64,128,192,256 bytes, the model makes pieces of 64,128,192,320 bytes [KVSS_BAD_INPUT]\n',
      );
    } finally {
      wafer.child.kill();
    }
    expect((await wafer.finished).code).toBe(0);
  });

  test('runs over a topology, and refuses its spine if it is asked to', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    const trace = scratch.file('agent.json', agentTrace([range(1, 20), range(1, 30)]));
    const topology = scratch.file(
      't.yaml',
      `rails: [{ bandwidth: 500MB }, { bandwidth: 500MB }]
spine: { bandwidth: 500MB, latencyUs: 50 }
boxes: { a: [[0], [1]] }
daemons: { '${daemon.socket}': [0, 0] }`,
    );
    const args = ['replay', trace, '--connect', daemon.socket, '--topology', topology, '--json'];
    const { code, stdout, stderr } = await kvss(...args);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ columnHits: 19, mismatches: 0 });
    expect(stderr).toMatch(/^kvss: domain 1 of box 'a' reaches shard 1 of .* over the spine: .*\n$/);
    const refused = await kvss(...args, '--refuse-spine');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/^kvss: refused: domain 1 of box 'a' .* \[KVSS_SPINE_REFUSED\]\n$/);
  });

  test('shows a daemon the secret that it wants', async () => {
    using scratch = new Scratch();
    const token = 'a secret of the test';
    const config = scratch.file('c.yaml', `streams: [{ host: 127.0.0.1, port: 0, token: '${token}' }]`);
    await using daemon = await TestDaemon.start(scratch.file('s'), { flags: ['--config', config] });
    const trace = scratch.file('agent.json', agentTrace([range(1, 40), range(1, 60)]));
    const args = ['replay', trace, '--connect', `tcp://127.0.0.1:${daemon.streamPorts[0]}`, '--json'];
    const refused = await kvss(...args);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/^kvss: .*\n$/);
    const { code, stdout } = await kvss(...args, '--token', token);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ columnHits: 39, mismatches: 0 });
  });

  test('keeps the times of a trace, faster, if it is asked to', async () => {
    using scratch = new Scratch();
    // The last request comes after three seconds of the trace.
    const trace = scratch.file('agent.json', agentTrace([range(1, 4), range(1, 4), range(1, 4), range(1, 4)]));
    const { code, stdout } = await kvss('replay', trace, '--speed', '10', '--json');
    expect(code).toBe(0);
    expect(JSON.parse(stdout).seconds).toBeGreaterThanOrEqual(0.3);
  });

  test('refuses sizes for another number of shards', async () => {
    using scratch = new Scratch();
    const trace = scratch.file('a.json', agentTrace([[1]]));
    const refused = await kvss('replay', trace, '--bytes-per-token', '1,2');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('--bytes-per-token: 2 numbers for 4 shards');
    const within = await kvss('replay', trace, '--daemons', '2', '--striping', 'within', '--bytes-per-token', '1,2');
    expect(within.code).toBe(1);
    expect(within.stderr).toContain('--bytes-per-token: 2 numbers for 4 shards of each daemon');
  });

  test('names the daemon that cannot be reached', async () => {
    using scratch = new Scratch();
    const refused = await kvss('replay', scratch.file('a.json', agentTrace([[1]])), '--connect', '/nowhere/s');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('cannot connect to a KVSS daemon at /nowhere/s');
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

describe('kvss bench pressure', () => {
  test('evicts in bursts over three processes, and everything comes back', async () => {
    const sizes = ['--sequences', '8', '--prompt-columns', '8', '--decode-columns', '8', '--memory-columns', '64'];
    const { code, stdout } = await kvss('bench', 'pressure', ...sizes, '--json');
    expect(code).toBe(0);
    const figures = JSON.parse(stdout);
    expect(figures).toMatchObject({ columnsGenerated: 64, columnsRecomputed: 0, driverPayloadBytes: 0, mismatches: 0 });
    expect(figures.bursts).toBeGreaterThan(0);
    expect(figures.columnsRefilled).toBe(figures.burstColumns);
    expect(figures.bytesVerified).toBe(figures.columnsRefilled * figures.columnBytes);
  });

  test('says what does not fit', async () => {
    const refused = await kvss('bench', 'pressure', '--memory-columns', '64', '--low-water', '0.5');
    expect(refused.code).toBe(1);
    expect(refused.stderr).toBe(
      'kvss: a sequence of 64 columns does not fit below low water, 32 columns [KVSS_BAD_INPUT]\n',
    );
  });
});

describe('kvss bench spine', () => {
  const TINY = ['--seconds', '0.2', '--columns', '4', '--period', '20', '--deadline', '20000'];

  test('measures two jobs over the spine and over a rail each, and draws both', async () => {
    using scratch = new Scratch();
    const svg = scratch.file('plot.svg');
    const { code, stdout, stderr } = await kvss('bench', 'spine', ...TINY, '--json', '--svg', svg);
    expect(code).toBe(0);
    // Each of the two jobs has a link to each of two shards.
    expect(stderr.match(/^kvss: warning: .* over the spine: .*$/gm)).toHaveLength(4);
    const { columnBytes, arrangements } = JSON.parse(stdout);
    expect(
      arrangements.map(({ over, spineLinks }: { over: string; spineLinks: number }) => [over, spineLinks]),
    ).toEqual([
      ['spine', 4],
      ['rails', 0],
    ]);
    for (const { over, jobs, spineBytes, railBytes } of arrangements) {
      expect(jobs.map(({ job }: { job: string }) => job)).toEqual(['a', 'b']);
      for (const job of jobs) {
        expect(job.bursts).toBeGreaterThan(0);
        expect(job).toMatchObject({ columns: 4 * job.bursts, columnsDropped: 0, lateBursts: 0 });
        expect(job).toMatchObject({ columnsVerified: 4, mismatches: 0 });
        expect(job.p50Ms).toBeGreaterThan(0);
        expect(job.p99Ms).toBeGreaterThanOrEqual(job.p50Ms);
        expect(job.bytesPerSecond).toBeGreaterThan(0);
      }
      const bytes = jobs.map(({ columns }: { columns: number }) => columns * columnBytes);
      expect([spineBytes, railBytes]).toEqual(over === 'spine' ? [bytes[0] + bytes[1], [0, 0]] : [0, bytes]);
    }
    const drawn = readFileSync(svg, 'utf8');
    expect(drawn).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    expect(drawn.match(/<polyline /g)).toHaveLength(2);
    for (const label of ['job a', 'job b', 'one shared spine', 'a rail each', 'MB/s', 'deadline']) {
      expect(drawn).toContain(`>${label}<`);
    }
  });

  test('counts what misses its deadline', async () => {
    // Two bursts at most, of which a millisecond is enough for no column.
    const { code, stdout } = await kvss(
      ...['bench', 'spine', '--seconds', '0.05', '--columns', '4', '--period', '40', '--deadline', '1'],
      ...['--rail', 'bandwidth=1MB,burst=0', '--spine', 'bandwidth=1MB,burst=0', '--json'],
    );
    expect(code).toBe(0);
    for (const { jobs } of JSON.parse(stdout).arrangements) {
      for (const { bursts, lateBursts, columns, columnsDropped, p50Ms, bytesPerSecond } of jobs) {
        expect([lateBursts, columnsDropped]).toEqual([bursts, columns]);
        expect([p50Ms, bytesPerSecond]).toEqual([null, 0]);
      }
    }
  });

  test('refuses the spine where it is told to', async () => {
    const { code, stdout, stderr } = await kvss('bench', 'spine', ...TINY, '--spine-use', 'refuse');
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toMatch(/^kvss: refused: domain 0 of box 'a' reaches shard \d of .* \[KVSS_SPINE_REFUSED\]\n$/);
  });

  test.each([
    [['--rail', 'fast'], "'fast' is not a setting; write for example bandwidth=400MB,latencyUs=5."],
    [['--spine', 'bandwidth=fast'], "'bandwidth': 'fast' is not a size"],
    [['--svg', '/nowhere/plot.svg'], 'cannot write /nowhere/plot.svg'],
  ])('says in one line what is wrong with %j', async (flags, message) => {
    const { code, stdout, stderr } = await kvss('bench', 'spine', ...TINY, ...flags);
    expect([code === 0, stdout]).toEqual([false, '']);
    expect(stderr.trim().split('\n')).toEqual([expect.stringContaining(message)]);
  });
});

describe('kvss', () => {
  test('says its version', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
    expect((await kvss('--version')).stdout.trim()).toBe(version);
  });
});
