import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test, vi } from 'vitest';
import { planCommand } from '../../src/cli/plan.js';
import { KvssError } from '../../src/common/errors.js';
import { describeModel } from '../../src/swdriver/model_config.js';
import { CONFIGS, configOf, modelOf } from './fixtures.js';

/** What `kvss plan` prints for these arguments; names of configs stand for their files. */
async function plan(...args: string[]): Promise<string> {
  const lines: string[] = [];
  const log = vi.spyOn(console, 'log').mockImplementation((line) => void lines.push(String(line)));
  try {
    const files = args.map((arg) => (arg.endsWith('.json') ? CONFIGS + arg : arg));
    await planCommand().parseAsync(files, { from: 'user' });
  } finally {
    log.mockRestore();
  }
  return lines.join('\n');
}

// biome-ignore lint/suspicious/noExplicitAny: what a test asks of it is in its expectations.
const planned = async (...args: string[]): Promise<any> => JSON.parse(await plan(...args, '--json'));

describe('every figure of the documents comes out of a command', () => {
  test('40k tokens/s x 4 KB x 10 x 2', async () => {
    const args = ['bandwidth', '--bytes-per-token', '4KB', '--recompute-tokens-per-second', '40000'];
    expect(await planned(...args, '--generation', 'cs-4')).toMatchObject({ upperBoundBytesPerSecond: 3.2e9 });
    const text = await plan(...args, '--generation', 'cs-4');
    expect(text).toMatch(/upper bound +3\.2 GB\/s\n +25\.6 Gbps/);
    expect(await planned(...args)).toMatchObject({ upperBoundBytesPerSecond: 1.6e9 });
  });

  test('11 GB/s x 8 x 10, and twice that', async () => {
    const args = ['bandwidth', '--recompute-bandwidth', '11GB', '--head-factor', '8'];
    expect(await planned(...args)).toMatchObject({ upperBoundBytesPerSecond: 880e9 });
    expect(await planned(...args, '--generation', 'cs-4')).toMatchObject({ upperBoundBytesPerSecond: 1_760e9 });
    expect(await plan(...args)).toMatch(/upper bound +880 GB\/s\n +7,040 Gbps/);
    expect(await plan(...args, '--generation', 'cs-4')).toContain('1,760 GB/s');
  });

  test('11 GB/s of a 70B on 9 boxes, and 10 GB/s of a 1B', async () => {
    const large = await plan('model', 'llama_3_1_70b.json', '--boxes', '9', '--recompute-tokens-per-second', '30000');
    expect(large).toMatch(/^box 0\.\.7 +1\.11 GB\/s +8\.85 Gbps +11\.1 GB\/s/m);
    const rate = ['--recompute-tokens-per-second', '300000', '--speedup', '1'];
    const { bandwidth } = await planned('model', 'llama_3_2_1b.json', ...rate);
    expect(Math.round(bandwidth.boxes[0].refillBytesPerSecond / 1e9)).toBe(10);
  });

  test('34,560 bytes a token on average over 8 nodes, and what they take', async () => {
    const shape = ['--boxes', '2', '--streams', '14,14,13,13', '--pad-streams'];
    const rate = ['--recompute-tokens-per-second', '30000'];
    const { table, bandwidth } = await planned('model', 'qwen3_32b.json', ...shape, ...rate);
    expect(table.shards).toHaveLength(8);
    expect(table.meanBytesPerToken).toBe(34_560);
    const direct = await planned('bandwidth', '--bytes-per-token', '34560', ...rate);
    expect(bandwidth.meanShardBytesPerSecond).toBe(direct.upperBoundBytesPerSecond);
    expect(direct.upperBoundBytesPerSecond).toBe(34_560 * 300_000);
  });

  test('4 KB a token for 3.5 KB', async () => {
    const shape = ['--boxes', '5', '--unit', 'number', '--granule', '4KB'];
    const { table } = await planned('model', 'deepseek_v3.json', ...shape);
    expect(table.meanBytesPerToken).toBe(4_000);
    expect((table.bytesPerToken - table.paddingBytesPerToken) / 20).toBeCloseTo(3_514, 0);
  });

  test('40 % of the effective cache', async () => {
    const { equal, proportional } = await planned('memory', '--bytes-per-token', '10,6,4,4', '--memory', '24KB');
    expect([equal.tokens, proportional.tokens]).toEqual([600, 1_000]);
    expect(equal.wasteBytes).toEqual([0, 2_400, 3_600, 3_600]);
    expect(await plan('memory', '--bytes-per-token', '10,6,4,4', '--memory', '24KB')).toContain('lose 40.00 %');
  });
});

describe('kvss plan model', () => {
  test('says how a model with windows and a draft lies on boxes', async () => {
    const draft = ['--draft-config', 'llama_3_2_1b.json', '--draft-dtype', 'fp8'];
    const args = ['model', 'gpt_oss_120b.json', '--dtype', 'bf16', ...draft, '--memory', '1GiB'];
    const { model, capacity } = await planned(...args);
    const described = describeModel(configOf('gpt_oss_120b'), {
      dtype: 'bf16',
      draft: configOf('llama_3_2_1b'),
      draftDtype: 'fp8',
    });
    expect(model).toEqual(described);
    expect(capacity.proportionalTokens).toBe(Math.floor(2 ** 30 / (73_728 + 16_384)));
    expect(capacity.beyondWindowsTokens).toBe(Math.floor(2 ** 30 / (36_864 + 16_384)));
    const text = await plan(...args);
    expect(text).toContain('sliding: 18 layers x 2,048 = 36,864 bytes a token in bf16, within 128 tokens');
    expect(text).toContain('draft: 16 layers x 1,024 = 16,384 bytes a token in fp8');
    expect(text).toMatch(/where all windows have passed +20,164 tokens +315 columns/);
    expect(text).toContain('All shards are alike: nothing is lost');
    expect(text).not.toContain('bandwidth');
  });

  test('says what limits', async () => {
    const args = ['model', 'llama_3_1_8b.json', '--streams', '5,1,1,1', '--memory', '1GiB'];
    const rate = ['--recompute-tokens-per-second', '30000'];
    const text = await plan(...args, ...rate, '--nic-gbps', '100');
    // 160 of 256 heads of 512 bytes at 30k tokens/s are 19.7 Gbps; ten times that does not pass.
    expect(text).toContain('Equal shards hold 60.00 % less: box 0 domain 0 is full first, with 81,920 bytes a token.');
    expect(text).toContain('box 0 NIC 0 (domain 0) carries most: 197 Gbps of 100 Gbps.');
    expect(text).toContain('5.1 times as fast as computed at most, and 10 are wanted.');
    expect(await plan(...args, ...rate, '--nic-gbps', '400')).toContain('which is enough.');
    const two = await planned(...args, ...rate, '--nics-per-box', '2');
    expect(two.bandwidth.nics).toHaveLength(2);
  });
});

describe('bad input is refused by its key', () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvss-plan-test-'));
  afterAll(() => rmSync(directory, { recursive: true }));
  const file = (name: string, content: string) => {
    writeFileSync(join(directory, name), content);
    return join(directory, name);
  };
  const cluster = 'boxes: 2\nnodes: [{ name: a, memory: 1GiB }]\nincrement: 1MiB\n';
  const llama = 'llama_3_1_8b.json';

  test.each<[args: string[], message: string]>([
    [['model', llama, '--streams', '4,4'], "allocation: 'streams': 2 numbers; there are 4 domains of a box"],
    [['model', llama, '--boxes', '33'], "allocation: 'boxes': 33 boxes for 32 layers"],
    [['model', llama, '--layers-per-box', '31'], "allocation: 'layersPerBox': the boxes hold 31 layers"],
    [['model', 'none.json'], 'none.json: ENOENT'],
    [['model', 'deepseek_v3.json', '--multi-head'], "'kv_lora_rank': all heads share a latent"],
    [['bandwidth'], 'say --bytes-per-token and --recompute-tokens-per-second'],
    [['memory'], 'say one of a file, --bytes-per-token and --sweep'],
    [['memory', 'x.yaml', '--bytes-per-token', '1'], 'say one of a file, --bytes-per-token and --sweep'],
    [['memory', '--bytes-per-token', '1,2'], '--bytes-per-token: say also --memory'],
    [['memory', '--bytes-per-token', '1', '--memory', '1KB', '--svg', 'x'], '--svg: makes sense with --sweep only'],
    [['memory', 'x.yaml', '--increment', '1KB'], '--increment: makes sense with --bytes-per-token only'],
    [['memory', 'x.yaml', '--dtype', 'fp8'], '--dtype: makes sense with --sweep only'],
    [['model', llama, '--nic-gbps', '100'], '--nic-gbps: makes sense with --recompute-tokens-per-second only'],
    [['model', llama, '--draft-dtype', 'fp8'], '--draft-dtype: makes sense with --draft-config only'],
    [['memory', '--boxes', '1,2', '--sweep', llama], '--boxes: 2 numbers for 1 models'],
    [['memory', '--sweep', llama, '--memory', '1GB'], '--memory: makes sense with --bytes-per-token only'],
    [['memory', '--sweep', llama, '--svg', '/nowhere/x.svg'], 'cannot write /nowhere/x.svg'],
    [['memory', '--svg', 'x', '--sweep', ...Array(7).fill(llama)], '--svg: a plot has room for 6 models'],
    [['memory', file('a.yaml', `${cluster}jobs: [{ name: j, boxes: 1, bytes: [1] }]`)], "'jobs.0.bytes'"],
    [['memory', file('b.yaml', `${cluster}jobs: []\nmemory: 1GiB`)], "'memory'"],
    [
      ['memory', file('c.yaml', `${cluster}floor: 600MiB\njobs: [{ name: j, boxes: 1, bytesPerToken: [1, 1] }]`)],
      "job 'j': the floors of all jobs take 1.17 GiB on node 'a', which has 1.00 GiB",
    ],
    [
      ['memory', file('d.yaml', `${cluster}jobs: [{ name: j, boxes: 1, model: { config: none.json } }]`)],
      "'jobs.0.model': cannot read",
    ],
  ])('%j', async (args, message) => {
    const thrown = await plan(...args).catch((error) => error);
    expect(thrown).toBeInstanceOf(KvssError);
    expect(thrown.message).toContain(message);
    expect(thrown.message).not.toContain('\n');
  });
});

describe('docs/PLANNING.md', () => {
  const page = readFileSync(new URL('../../docs/PLANNING.md', import.meta.url), 'utf8');
  const rows = page
    .split('\n')
    .filter((line) => line.startsWith('|') && line.includes('.json`'))
    .map((line) =>
      line.split('|').map((cell) =>
        cell
          .trim()
          .replaceAll(',', '')
          .replace(/^.*`(\w+)\.json`$/, '$1'),
      ),
    );
  const sizes = rows.filter((row) => row.length === 6);
  const rates = rows.filter((row) => row.length === 8);

  test('has a row of each model', () => {
    const models = ['llama_3_1_8b', 'llama_3_1_70b', 'qwen3_32b', 'deepseek_v3', 'gpt_oss_120b'];
    expect(sizes.map(([, name]) => name)).toEqual(expect.arrayContaining(models));
    expect(rates.length).toBeGreaterThanOrEqual(5);
  });

  test.each(sizes)('%s%s: bytes of a token', (_, name, formula, bf16, fp8) => {
    expect(modelOf(name as string, { dtype: 'bf16' }).bytesPerToken).toBe(Number(bf16));
    expect(modelOf(name as string, { dtype: 'fp8' }).bytesPerToken).toBe(Number(fp8));
    const sums = (formula as string).replace(/ half of it.*$/, '').replace(/[()]/g, '');
    // What stands there as a formula is one: products, and the one sum of a latent.
    const product = sums.split(' x ').map((factor) => factor.split(' + ').reduce((sum, each) => sum + Number(each), 0));
    expect(product.reduce((all, each) => all * each, 1)).toBe(Number(bf16));
  });

  test.each(rates)('%s%s on %s at %s: bandwidth', async (_, name, boxes, rate, bytes, one, two) => {
    const args = ['model', `${name}.json`, '--boxes', boxes as string, '--recompute-tokens-per-second', rate as string];
    const fullest = (flows: { refillBytesPerSecond: number }[]) =>
      Math.max(...flows.map((flow) => flow.refillBytesPerSecond));
    const perSecond = fullest((await planned(...args)).bandwidth.boxes);
    expect(perSecond).toBe(Number(bytes) * Number(rate) * 10);
    const twice = fullest((await planned(...args, '--generation', 'cs-4')).bandwidth.boxes);
    for (const [shown, exact] of [
      [one, perSecond],
      [two, twice],
    ] as const) {
      expect(Number(shown)).toBe(Number((exact / 1e9).toPrecision(3)));
    }
  });
});
