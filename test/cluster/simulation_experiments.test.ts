import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { CALIBRATION, withParameters } from '../../src/cluster/simulation/calibration.js';
import { type RowResult, runExperiment } from '../../src/cluster/simulation/experiment.js';
import { placeScenario } from '../../src/cluster/simulation/place.js';
import { readScenario, type Scenario } from '../../src/cluster/simulation/scenario.js';
import { Scratch } from '../e2e/support.js';

const FOLDER = fileURLToPath(new URL('../../examples/scenarios/', import.meta.url));
const FILES = readdirSync(FOLDER).filter((name) => name.endsWith('.yaml'));

/** The scenario of the source documents' experiment with this number. */
function experiment(number: number): Scenario {
  return readScenario(join(FOLDER, FILES.find((name) => name.startsWith(`${number}-`)) ?? 'none'));
}

interface Changes {
  exclusion?: boolean;
  parameters?: Record<string, number>;
}

function run(scenario: Scenario, { exclusion, parameters = {} }: Changes = {}): readonly RowResult[] {
  const { placed } = placeScenario(scenario, exclusion);
  const calibration = withParameters(CALIBRATION, new Map(Object.entries(parameters)));
  return runExperiment({ scenario, placed, calibration, seed: 1 }).rows;
}

/** Only the first structured-output job, and soon. */
const begin = (scenario: Scenario): Scenario => ({
  ...scenario,
  durationS: 250,
  loads: { ...scenario.loads, 'so-1': { ...(scenario.loads['so-1'] as Scenario['loads'][string]), launchS: 10 } },
});

const within = (share: number, figure: number | undefined, published: number) => {
  expect(Math.abs((figure ?? Number.NaN) / published - 1), `${figure} beside ${published}`).toBeLessThan(share);
};

describe('the experiments of the source documents', () => {
  test('are five scenarios that can say nothing of the calibration: all have the same', () => {
    expect(FILES.map((name) => name[0])).toEqual(['1', '2', '3', '4', '5']);
    using scratch = new Scratch();
    for (const name of FILES) {
      const text = readFileSync(join(FOLDER, name), 'utf8').replaceAll(
        /(cluster|jobs): (\S+\.yaml)/g,
        `$1: ${FOLDER}$2`,
      );
      for (const key of ['calibration', ...Object.keys(CALIBRATION)]) {
        const path = scratch.file(`with-${key}-${name}`, `${text}${key}: {}\n`);
        expect(() => readScenario(path)).toThrow(`unknown key '${key}'`);
      }
      expect(readScenario(scratch.file(name, text)).rows).toEqual(readScenario(join(FOLDER, name)).rows);
    }
  });

  test('have one load of structured output, and the fuzzers differ in their model alone', () => {
    const all = [1, 2, 5].map(experiment);
    const structured = all.flatMap(({ loads }) =>
      [1, 2, 3].map((number) => ({ ...loads[`so-${number}`], launchS: 0 })),
    );
    for (const load of structured) expect(load).toEqual(structured[0]);
    const fuzzers = all.map(({ loads }) => ({ ...loads.fuzzer, model: '' }));
    for (const load of fuzzers) expect(load).toEqual(fuzzers[0]);
    const caching = [3, 4].map((number) => ({ ...experiment(number).loads['llama-1'], promptTokens: {} }));
    expect(caching[0]).toEqual(caching[1]);
  });

  test('1: SwDrivers on one node cost a tenth of the prompts more than a quarter of their speed', () => {
    const scenario = experiment(1);
    const [alone, whole, during] = run(scenario);
    expect(during?.lostShare).toBeGreaterThanOrEqual(0.1);
    // Fitted.
    within(0.02, alone?.figures.avg, 2039.57);
    within(0.05, alone?.figures.std, 305.23);
    within(0.02, alone?.figures.p1, 1913.96);
    within(0.02, alone?.figures.p5, 1948.7);
    within(0.05, during?.figures.avg, 1866.62);
    within(0.2, during?.figures.std, 508.5);
    within(0.3, during?.figures.p1, 83.3);
    within(0.5, during?.figures.p5, 610.92);
    // Predicted.
    within(0.02, whole?.figures.avg, 2023.51);
    within(0.1, whole?.figures.std, 334.04);
    within(0.25, whole?.figures.p1, 1391.5);
    within(0.02, whole?.figures.p5, 1947.45);
  });

  test('2: apart none loses anything', () => {
    const [alone, whole, during] = run(experiment(2));
    expect(during?.prompts).toBeGreaterThan(1_000);
    expect(whole?.lostShare).toBe(0);
    expect(during?.lostShare).toBe(0);
    expect(whole?.figures).toEqual(alone?.figures);
    // Predicted.
    within(0.02, whole?.figures.avg, 2077.88);
    within(0.03, whole?.figures.p1, 1975.84);
    within(0.01, whole?.figures.p50, 2002.97);
    within(0.02, whole?.figures.p99, 3466.78);
    within(0.03, whole?.figures.std, 307.7);
  });

  test('the placement engine comes to the same, by whether it keeps SwDrivers apart', () => {
    const scenario = begin(experiment(1));
    expect(run(scenario, { exclusion: true })[2]?.lostShare).toBe(0);
    expect(run(scenario, { exclusion: false })[2]?.lostShare).toBeGreaterThan(0.05);
    expect(placeScenario(scenario).how).toBe('placed by the file, 4 SwDrivers on ax-2');
    expect(placeScenario(scenario, true).how).toBe('exclusion on, SwDrivers on nodes of their own');
    expect(placeScenario(scenario, false).how).toMatch(/^exclusion off, \d SwDrivers on ax-\d/);
  });

  test('3: jobs that cache prompts are as fast together as alone', () => {
    const [alone, together, generatedAlone, generated] = run(experiment(3));
    expect(together?.lostShare).toBe(0);
    // Fitted.
    within(0.04, alone?.figures.min, 6016);
    within(0.04, alone?.figures.max, 21_110);
    within(0.04, generatedAlone?.figures.min, 1365);
    within(0.04, generatedAlone?.figures.max, 1934);
    // Predicted.
    within(0.05, together?.figures.min, 5765);
    within(0.05, together?.figures.max, 21_784);
    within(0.05, generated?.figures.min, 1359);
    within(0.05, generated?.figures.max, 1957);
  });

  test.each([4, 5])('%i: nobody loses anything, though two SwDrivers share a node', (number) => {
    const scenario = experiment(number);
    expect(placeScenario(scenario).how).toBe('placed by the file, 2 SwDrivers on ax-4');
    for (const { lostShare } of run(scenario)) expect(lostShare ?? 0).toBe(0);
  });
});

describe('what comes out is simulated', () => {
  const scenario = begin(experiment(1));
  const [, , as] = run(scenario);

  test('it does not know what the documents have', () => {
    const rows = scenario.rows.map(({ documents: _, ...row }) => ({ ...row, fitted: false }));
    expect(run({ ...scenario, rows })[2]).toEqual(as);
  });

  test.each([
    ['schemas that compile sooner', { 'grammar.compileCoreSeconds': 0.3 }],
    ['masks that take less', { 'grammar.maskMs': 0.5, 'grammar.compileCoreSeconds': 1 }],
  ])('less is lost with %s', (_, parameters) => {
    expect(run(scenario, { parameters })[2]?.lostShare).toBeLessThan((as?.lostShare ?? 0) / 2);
  });

  test('more is lost with more lanes to wait for', () => {
    const [, , more] = run(scenario, { parameters: { 'swDriver.lanesPerDomain': 4 } });
    expect(more?.lostShare).toBeGreaterThan((as?.lostShare ?? 1) * 1.2);
  });

  test('nothing is lost on nodes with cores enough', () => {
    const nodes = scenario.cluster.nodes.map((node) => ({ ...node, cores: 4_000_000 }));
    const [, , large] = run({ ...scenario, cluster: { ...scenario.cluster, nodes } });
    expect(large?.lostShare).toBe(0);
  });

  test('nothing is lost by a fuzzer whose lanes are in buffered mode', () => {
    const fuzzer = { ...(scenario.loads.fuzzer as Scenario['loads'][string]), hio: 'buffered' as const };
    const [alone, , during] = run({ ...scenario, loads: { ...scenario.loads, fuzzer } });
    expect(during?.lostShare).toBe(0);
    // It pays with a wake-up in each step.
    expect(alone?.figures.p50).toBeLessThan(0.97 * 2_004);
  });
});
