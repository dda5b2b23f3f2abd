import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { finish, kvss, MAIN, Scratch, until } from './support.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const config = (name: string) => `${root}test/unit/fixtures/model_configs/${name}.json`;
const LLAMA = config('llama_3_1_8b');

test('docs/PLANNING.md and its plot are what the commands say', async () => {
  const check = spawn(process.execPath, [`${root}scripts/plan_docs.mjs`, '--check'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  expect(await finish(check)).toMatchObject({ code: 0, stderr: '' });
});

test('a sweep is the same whatever the number of workers, and draws a plot', async () => {
  using scratch = new Scratch();
  const sweep = (workers: string, svg: string) =>
    kvss(
      ...['plan', 'memory', '--sweep', LLAMA, config('deepseek_v3'), '--boxes', '2,31', '--unit', 'layer'],
      ...['--workers', workers, '--svg', svg, '--json'],
    );
  const svgs = ['one.svg', 'three.svg'].map((name) => scratch.file(name));
  const [one, three] = [await sweep('1', svgs[0] as string), await sweep('3', svgs[1] as string)];
  expect(one).toMatchObject({ code: 0, stderr: '' });
  expect(three.stdout).toBe(one.stdout);
  const { results } = JSON.parse(one.stdout);
  expect(results.map(({ allocations }: { allocations: number }) => allocations)).toEqual([3_876, 3_876]);
  // Two latents a box cannot be on four domains: more than 40 % are lost in every allocation.
  expect(results[1].atNamedLoss).toBe(3_876);
  expect(results[0].atNamedLoss).toBeLessThan(2_000);
  const [svg, other] = svgs.map((path) => readFileSync(path, 'utf8'));
  expect(svg).toBe(other);
  expect(svg?.match(/<polyline/g)).toHaveLength(3);
  expect(svg).toContain('>deepseek_v3 on 31<');
});

test('Ctrl-C ends a sweep', async () => {
  // Far more than is done by the time that it is ended.
  const configs = Array(80).fill(config('deepseek_v3'));
  const args = [
    'plan',
    'memory',
    '--boxes',
    configs.map(() => '31').join(),
    '--workers',
    '12',
    '--json',
    '--sweep',
    ...configs,
  ];
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const finished = finish(child);
  // The worker threads are there, beside those that every Node has.
  await until(() => readdirSync(`/proc/${child.pid}/task`).length >= 20);
  child.kill('SIGINT');
  expect(await finished).toEqual({ code: 130, signal: null, stdout: '', stderr: 'kvss: interrupted\n' });
});

test('bad input is one line that names the key and the cause', async () => {
  using scratch = new Scratch();
  const yaml = (text: string) => scratch.file(`${text.length}.yaml`, text);
  const cluster = 'boxes: 2\nnodes: [{ name: a, memory: 1GiB }]\nincrement: 1MiB\n';
  const cases: (readonly [args: readonly string[], code: number, message: string])[] = [
    [['model', LLAMA, '--dtype', 'fp5'], 1, "options: 'dtype': 'fp5' is no dtype of a cache"],
    [['model', LLAMA, '--streams', '4,0,4,4'], 2, "'0' is not an integer"],
    [['model', LLAMA, '--memory', '-1GiB'], 2, "'-1GiB' is not a size"],
    [['memory', yaml('boxes: [')], 1, 'at line 1'],
    [
      ['memory', yaml(`${cluster}jobs: [{ name: j, boxes: 3, bytesPerToken: [1, 1, 1] }]`)],
      1,
      "job 'j': 'boxes': 3, and 2 of the 2 of the cluster are free",
    ],
    [['memory', '--sweep', LLAMA, '--boxes', '40'], 1, "allocation: 'boxes': 40 boxes for 32 layers"],
  ];
  for (const [args, code, message] of cases) {
    const ended = await kvss('plan', ...args);
    const what = args.join(' ');
    expect(ended.stderr, what).toContain(message);
    expect(ended.stderr.trimEnd().split('\n'), what).toHaveLength(1);
    expect({ code: ended.code, stdout: ended.stdout }, what).toEqual({ code, stdout: '' });
  }
});
