import { expect, test } from 'vitest';
import { kvss, Scratch } from './support.js';

const BLOCK_TOKENS = 64;
const GPT_OSS = 'test/unit/fixtures/model_configs/gpt_oss_120b.json';

/** Sessions that grow by some blocks each turn, and now and then go back to an earlier turn and on from there. */
function agentTrace(): string {
  let next = 1;
  const requests: { t: number; in: number; hash_ids: number[] }[] = [];
  for (let session = 0; session < 4; session += 1) {
    let prompt = Array.from({ length: 20 }, (_, block) => block);
    for (let turn = 0; turn < 12; turn += 1) {
      if (turn % 5 === 4) prompt = prompt.slice(0, prompt.length - 7);
      prompt = [...prompt, ...Array.from({ length: 3 + ((turn * 7 + session) % 4) }, () => 1_000 + next++)];
      requests.push({ t: turn + session / 10, in: prompt.length * BLOCK_TOKENS, hash_ids: prompt });
    }
  }
  return JSON.stringify({ block_size: BLOCK_TOKENS, requests });
}

async function replay(...flags: string[]) {
  using scratch = new Scratch();
  const { code, stdout, stderr } = await kvss('replay', scratch.file('agents.json', agentTrace()), '--json', ...flags);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout);
}

const group = (report: { groups: { name: string }[] }, name: string) =>
  report.groups.find((each) => each.name === name) as { name: string; partsRefilled: number; bytesRefilled: number };

test('a model with a draft hits what one without hits, and refills both alike', async () => {
  const alone = await replay();
  const both = await replay('--group', 'full=12,16,20,16', '--group', 'draft=4,0,0,4');
  expect(both).toMatchObject({ mismatches: 0, columnsDropped: 0, columnHits: alone.columnHits });
  expect(group(both, 'draft').partsRefilled).toBe(group(both, 'full').partsRefilled);
  expect(both.bytesVerified).toBe(both.columnsRefilled * BLOCK_TOKENS * (64 + 8));
});

test.each(['shm', 'tcp'])('a hybrid from its config.json refills windows and no more, over %s', async (link) => {
  const report = await replay('--config', GPT_OSS, '--link', link);
  expect(report).toMatchObject({ mismatches: 0, columnsDropped: 0 });
  expect(report.columnHitRate).toBeGreaterThan(0.7);
  const sliding = group(report, 'sliding');
  // 128 tokens are two columns, whatever the length of the prefix.
  expect(sliding.partsRefilled).toBeLessThanOrEqual(2 * report.requests);
  expect(sliding.partsRefilled).toBeGreaterThan(report.requests);
  expect(sliding.bytesRefilled).toBeLessThan(group(report, 'full').bytesRefilled / 10);
});

test.each([
  [['--group', 'full=1,2'], '--group full: 2 numbers for 4 shards'],
  [['--group', 'full'], "'full' is no group"],
  [['--group', 'full=0,0,0,0'], 'no shard holds anything of it'],
  [['--group', 'a=1,1,1,1', '--group', 'a=1,1,1,1'], "'a' is empty or there twice"],
  [['--config', '/nowhere/config.json'], 'cannot read /nowhere/config.json'],
  [['--draft-config', GPT_OSS], '--draft-config: a draft needs the model that it drafts for'],
])('%s is refused, and one line says why', async (flags, why) => {
  using scratch = new Scratch();
  const { code, stdout, stderr } = await kvss('replay', scratch.file('agents.json', agentTrace()), ...flags);
  expect(code).not.toBe(0);
  expect(stdout).toBe('');
  expect(stderr.trim().split('\n').at(-1)).toContain(why);
});
