import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { kvss, Scratch } from '../e2e/support.js';

const FOLDER = fileURLToPath(new URL('../../examples/scenarios/', import.meta.url));

describe('kvss plan simulate', () => {
  const scratch = new Scratch();
  afterAll(() => scratch[Symbol.dispose]());
  /** A scenario of the examples that begins and ends sooner. */
  const shorter = (name: string, durationS: number) =>
    scratch.file(
      name,
      readFileSync(join(FOLDER, name), 'utf8')
        .replaceAll(/(cluster|jobs): (\S+\.yaml)/g, `$1: ${FOLDER}$2`)
        .replace(/durationS: \d+/, `durationS: ${durationS}`)
        .replace('launchS: 600', 'launchS: 10'),
    );
  const beside = shorter('1-fuzzer-beside-structured-output.yaml', 100);
  const caching = shorter('3-four-prompt-caching-jobs.yaml', 20);

  test('prints rows beside those of the source documents, and draws them', async () => {
    const svg = scratch.file('speed.svg');
    const { code, stdout, stderr } = await kvss('plan', 'simulate', beside, caching, '--svg', svg);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toContain(`${beside}: placed by the file, 4 SwDrivers on ax-2, seed 1`);
    expect(stdout).toMatch(/^fuzzer during so-1, so-2, so-3, generated tokens\/s +[\d,]+ /m);
    expect(stdout).toMatch(/^ {2}source documents, fitted to +1,867 +509 +83 +611$/m);
    expect(stdout).toMatch(/^ {2}source documents +5,765 +21,784$/m);
    const drawn = readFileSync(svg, 'utf8');
    expect(drawn).toMatch(/^<svg .*<\/svg>\n$/s);
    expect(drawn.match(/<polyline /g)).toHaveLength(4);
    for (const text of ['1. Fuzzer beside three', '3. Four jobs', 'so-1', 'llama-3.1-8b alone', 'tokens/s']) {
      expect(drawn).toContain(text);
    }
  });

  test('comes to the same with any number of workers, and in the order of scenarios, parameters and seeds', async () => {
    const sweep = ['plan', 'simulate', beside, caching, '--seeds', '2', '--set', 'grammar.maskMs=0,2', '--json'];
    const one = await kvss(...sweep, '--workers', '1');
    const three = await kvss(...sweep, '--workers', '3');
    expect({ code: three.code, stderr: three.stderr }).toEqual({ code: 0, stderr: '' });
    expect(three.stdout).toBe(one.stdout);
    const { cases } = JSON.parse(one.stdout);
    const names = cases.map((each: { scenario: string; parameters: object }) => [each.scenario, each.parameters]);
    expect(names).toEqual([
      [beside, { 'grammar.maskMs': 0 }],
      [beside, { 'grammar.maskMs': 2 }],
      [caching, { 'grammar.maskMs': 0 }],
      [caching, { 'grammar.maskMs': 2 }],
    ]);
    const avg = cases[1].rows[2].figures.avg;
    expect(avg.min).toBeLessThan(avg.mean);
    expect(avg.max).toBeGreaterThan(avg.mean);
    expect(cases[1].rows[2]).toMatchObject({ jobs: ['fuzzer'], speed: 'generation', fitted: true });
    // The seeds of a sweep are those of single runs.
    const second = JSON.parse(
      (await kvss('plan', 'simulate', beside, '--seed', '2', '--set', 'grammar.maskMs=2', '--json')).stdout,
    );
    expect([avg.min, avg.max]).toContain(second.cases[0].rows[2].figures.avg.mean);
  });

  test('places all jobs anew where it is told about exclusion', async () => {
    const lost = async (exclusion: string) => {
      const { stdout } = await kvss('plan', 'simulate', beside, '--exclusion', exclusion, '--json');
      const [only] = JSON.parse(stdout).cases;
      return [only.placement.split(',')[0], only.rows[2].lostShare.mean];
    };
    expect(await lost('on')).toEqual(['exclusion on', 0]);
    const [how, share] = await lost('off');
    expect(how).toBe('exclusion off');
    expect(share).toBeGreaterThan(0.1);
  });

  test('warns of streams that cross the spine', async () => {
    const text = readFileSync(caching, 'utf8').replace('kvss: [ax-0, ax-0, ax-1, ax-1]', 'kvss: ax-0');
    const { code, stderr } = await kvss('plan', 'simulate', scratch.file('crossing.yaml', text));
    expect(code).toBe(0);
    expect(stderr.match(/^kvss: warning: .*spine/gm)).toHaveLength(2);
  });

  test.each([
    [['--set', 'grammar.masks=1'], 1, "there is no parameter 'grammar.masks'"],
    [['--set', 'grammar.maskMs=-1'], 2, "'grammar.maskMs=-1' is not PARAMETER=NUMBER"],
    [['--seeds', '1000', '--set', `grammar.maskMs=${Array(101).fill(1).join()}`], 1, '101,000 runs; 100,000 at most'],
    [['--seeds', '0'], 2, "'0' is not an integer"],
    [['--exclusion', 'perhaps'], 2, 'Allowed choices are on, off'],
    [['--svg', '/nowhere/at/all.svg'], 1, 'cannot write /nowhere/at/all.svg'],
  ])('refuses %j', async (flags, code, message) => {
    const finished = await kvss('plan', 'simulate', caching, ...flags);
    expect(finished.code).toBe(code);
    expect(finished.stderr).toContain(message);
    expect(finished.stdout).toBe('');
  });

  test('names file, line and cause of a bad scenario', async () => {
    const bad = scratch.file('bad.yaml', readFileSync(caching, 'utf8').replace('swdriver: ax-3', 'swdriver: ax-33'));
    const { code, stderr } = await kvss('plan', 'simulate', bad);
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /bad\.yaml:\d+: 'placement\.explicit\.llama-2\.nodes\.swdriver': the cluster has no AX node 'ax-33'/,
    );
  });
});
