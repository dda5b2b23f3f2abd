import { existsSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { kvss, Scratch } from './support.js';

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, at) => from + at);

/** An agent trace with blocks of 64 tokens. */
const agentTrace = (prompts: number[][]) =>
  JSON.stringify({
    block_size: 64,
    requests: prompts.map((blocks, t) => ({ t, in: blocks.length * 64, hash_ids: blocks })),
  });

async function hits(...args: string[]): Promise<{ columnHits: number; tokenHitRate: number; policy: string }> {
  const { code, stdout } = await kvss('replay', '--policy-only', '--json', ...args);
  expect(code).toBe(0);
  return JSON.parse(stdout);
}

describe('kvss replay --policy-only', () => {
  // Two prompts in turn that do not fit together: last use keeps the beginning of the other one only.
  const inTurn = agentTrace([range(0, 20), range(20, 40), range(0, 20), range(20, 40), range(0, 20)]);

  test('reports what each policy comes to, without a daemon', async () => {
    using scratch = new Scratch();
    const trace = scratch.file('a.json', inTurn);
    const lru = await hits(trace, '--policy', 'lru', '--capacity-columns', '25');
    expect(lru).toMatchObject({ policy: 'lru', capacityColumns: 25, requests: 5, columnRefs: 100, columnHits: 15 });
    const all = await hits(trace);
    expect(all).toMatchObject({ policy: 'hit-density', columnHits: 60, tokenHitRate: 0.6, columnHitRate: 0.6 });
    // More prompts in turn than there is room for: with foreknowledge some stay.
    const rounds = range(0, 24).map((at) => range(5 * (at % 6), 5 * (at % 6) + 5));
    const many = scratch.file('many.json', agentTrace(rounds));
    expect((await hits(many, '--policy', 'lru', '--capacity-columns', '20')).columnHits).toBe(0);
    expect((await hits(many, '--policy', 'optimum', '--capacity-columns', '20')).columnHits).toBeGreaterThan(40);
    expect(await hits(trace, '--policy', 'optimum')).toMatchObject({ columnHits: 60 });
    const { stdout } = await kvss('replay', trace, '--policy-only', '--policy', 'lru');
    expect(stdout).toMatch(/policy +lru/);
  });

  test('a trace is a tenant of its own, and the same in every run', async () => {
    using scratch = new Scratch();
    const one = scratch.file('a.json', inTurn);
    const other = scratch.file('b.json', inTurn);
    const run = () => hits(one, other, '--capacity-columns', '60');
    const first = await run();
    expect(first.columnHits).toBeLessThanOrEqual(120);
    expect((await run()).columnHits).toBe(first.columnHits);
    expect(await hits(one, other, '--policy', 'optimum')).toMatchObject({ columnHits: 120 });
  });

  test('says what makes no sense', async () => {
    using scratch = new Scratch();
    const trace = scratch.file('a.json', inTurn);
    for (const [args, message] of [
      [['--policy', 'optimum'], 'add --policy-only'],
      [['--policy', 'fifo'], 'Allowed choices are hit-density, hit-density-by-cost, lru, optimum'],
      [['--policy-only', '--link', 'tcp'], "cannot be used with option '--link"],
      [['--policy-only', '--connect', '/s'], "cannot be used with option '-c, --connect"],
      [['--policy-only', '--speed', '2'], "cannot be used with option '--speed"],
      [['--policy-only', '--group', 'full=1'], "cannot be used with option '--group"],
      [['--policy-only', '--key-file', '/k'], "cannot be used with option '--key-file"],
    ] as const) {
      const { code, stderr } = await kvss('replay', trace, ...args);
      expect(code, args.join(' ')).not.toBe(0);
      expect(stderr).toContain(message);
    }
  });

  test('a policy is chosen for live daemons too', async () => {
    using scratch = new Scratch();
    const trace = scratch.file('a.json', inTurn);
    const flags = ['--policy', 'lru', '--capacity-columns', '25', '--json'];
    const { code, stdout } = await kvss('replay', trace, ...flags);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ columnHits: 15, mismatches: 0 });
  });

  // An hour of real chat, which is not part of the package: see docs/EVICTION.md.
  const chat = process.env.KVSS_CONVERSATION_TRACE ?? '';
  test.skipIf(!existsSync(chat))(
    'the default keeps twice as much as LRU where room is short (KVSS_CONVERSATION_TRACE=FILE to run it)',
    async () => {
      const run = (policy: string) => hits(chat, '--policy', policy, '--capacity-columns', '24000');
      const [lru, density] = [await run('lru'), await run('hit-density')];
      expect(lru.tokenHitRate).toBeCloseTo(0.0676, 3);
      expect(density.tokenHitRate).toBeGreaterThanOrEqual(0.13);
    },
    240_000,
  );
});
