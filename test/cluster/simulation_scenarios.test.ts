import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { CALIBRATION } from '../../src/cluster/simulation/calibration.js';
import { runExperiment } from '../../src/cluster/simulation/experiment.js';
import { placeScenario } from '../../src/cluster/simulation/place.js';
import { readScenario, type Scenario } from '../../src/cluster/simulation/scenario.js';
import { formatState } from '../../src/cluster/state_file.js';
import { KvssError } from '../../src/common/errors.js';
import { Scratch } from '../e2e/support.js';

const FOLDER = fileURLToPath(new URL('../../examples/scenarios/', import.meta.url));

function rowsOf(scenario: Scenario) {
  const { placed } = placeScenario(scenario);
  return runExperiment({ scenario, placed, calibration: CALIBRATION, seed: 1 }).rows;
}

test('the scenario in docs/EXPERIMENTS.md is one', () => {
  const page = readFileSync(new URL('../../docs/EXPERIMENTS.md', import.meta.url), 'utf8');
  const [, text = ''] = /```yaml\n(.*?)```/s.exec(page) ?? [];
  using scratch = new Scratch();
  const two = readFileSync(join(FOLDER, 'jobs/four-prompt-caching.yaml'), 'utf8').split('  - name: llama-3')[0] ?? '';
  const jobs = scratch.file('two-chats.yaml', two.replaceAll('llama-', 'chat-'));
  const path = scratch.file(
    'scenario.yaml',
    text.replace('../clusters', `${FOLDER}../clusters`).replace('jobs/two-chats.yaml', jobs),
  );
  const scenario = { ...readScenario(path), durationS: 90 };
  expect(placeScenario(scenario).how).toBe('exclusion on, SwDrivers on nodes of their own');
  const [alone, beside] = rowsOf(scenario);
  expect(alone?.lostShare).toBeUndefined();
  expect(beside?.lostShare).toBe(0);
  expect(beside?.prompts).toBeLessThan(alone?.prompts ?? 0);
});

describe('a scenario', () => {
  const scratch = new Scratch();
  afterAll(() => scratch[Symbol.dispose]());
  scratch.file(
    'cluster.yaml',
    `spine: { bandwidth: 1Gbps }
leaves: [{ name: leaf-0, uplink: 1Gbps }]
boxes: [{ name: box-0, portBandwidth: 1Gbps, domains: [[leaf-0], [leaf-0], [leaf-0], [leaf-0]] }]
nodes:
  - { name: ax-0, cores: 8, memory: 1GiB, nics: [{ leaf: leaf-0, bandwidth: 1Gbps }] }
  - { name: ax-1, cores: 8, memory: 1GiB, nics: [] }
`,
  );
  const jobsWith = (pods: string) => `jobs: [{ name: chat, session: { boxes: 1 }, pods: [${pods}] }]\n`;
  const DRIVER = '{ kind: swdriver, cores: 1, memory: 1MiB }';
  const JOBS = jobsWith(`${DRIVER}, { kind: kvss, cores: 1, memory: 1MiB, streams: { bandwidth: 1Mbps } }`);
  scratch.file('jobs.yaml', JOBS);
  scratch.file('two-drivers.yaml', jobsWith(`${DRIVER}, ${DRIVER}`));
  scratch.file('no-shards.yaml', jobsWith(DRIVER));
  const GOOD = `title: small
cluster: cluster.yaml
jobs: jobs.yaml
durationS: 10
placement:
  explicit:
    chat:
      boxes: [box-0]
      nodes: { swdriver: ax-1, kvss: ax-0 }
loads:
  chat: { model: llama-3.1-8b, text: chat, promptTokens: 64, outputTokens: 64, cachedShare: 0.5 }
figures:
  - jobs: [chat]
`;

  test('is read, and runs', () => {
    const scenario = readScenario(scratch.file('good.yaml', GOOD));
    expect(scenario.loads.chat?.promptTokens).toEqual({ min: 64, max: 64 });
    expect(rowsOf(scenario)[0]?.prompts).toBeGreaterThan(10);
  });

  test('has its jobs in a file of their own, or in itself', () => {
    const inside = GOOD.replace('jobs.yaml', `\n  ${JOBS.replace(/^jobs: \[(.*)\]\n$/, '- $1')}`);
    expect(inside).toContain('jobs: \n  - { name: chat,');
    const scenario = readScenario(scratch.file('inside.yaml', inside));
    const { source } = scenario;
    expect(scenario).toEqual({ ...readScenario(scratch.file('good.yaml', GOOD)), source });
  });

  test('has jobs where a state of kvss plan placement has them', () => {
    const apart = readScenario(scratch.file('good.yaml', GOOD));
    const { explicit } = apart.placement;
    scratch.file('state.json', formatState({ version: 3, cluster: apart.cluster, jobs: explicit, drained: [] }));
    const text = GOOD.replace(/ {2}explicit:.*(?=loads:)/s, '  state: state.json\n');
    const scenario = readScenario(scratch.file('state.yaml', text));
    expect(scenario.placement.explicit).toEqual(explicit);
    expect(placeScenario(scenario).how).toBe('placed by the file, SwDrivers on nodes of their own');
    const both = scratch.file('both.yaml', GOOD.replace('  explicit:', '  state: state.json\n  explicit:'));
    expect(() => readScenario(both)).toThrow(`${both}:8: 'placement.explicit.chat': the state says where it is`);
    scratch.file('other-jobs.yaml', JOBS.replace('cores: 1', 'cores: 2'));
    const other = scratch.file('other.yaml', text.replace('jobs.yaml', 'other-jobs.yaml'));
    expect(() => readScenario(other)).toThrow(`${other}:6: 'placement.state': the scenario has another job 'chat'`);
  });

  test.each([
    [
      'ax-1, kvss: ax-0',
      'ax-9, kvss: ax-0',
      ":9: 'placement.explicit.chat.nodes.swdriver': the cluster has no AX node 'ax-9'",
    ],
    ['kvss: ax-0', 'kvss: [ax-0, ax-0]', ":9: 'placement.explicit.chat.nodes.kvss': 2 nodes for 4 pods"],
    ['kvss: ax-0', 'kvss: ax-1', "AX node 'ax-1' has no NIC for the streams of chat.kvss.box-0.d0.0"],
    [', kvss: ax-0', '', ":9: 'placement.explicit.chat.nodes.kvss': missing; pods that need a node: 4"],
    ['kvss: ax-0', 'kvss: ax-0, kvs: ax-0', ':9: '],
    ['boxes: [box-0]', 'boxes: [box-7]', ":8: 'placement.explicit.chat.boxes.0': the cluster has no box 'box-7'"],
    ['boxes: [box-0]', 'boxes: [box-0, box-0]', ":8: 'placement.explicit.chat.boxes': 2 boxes; the job takes 1 to 1"],
    ['    chat:\n', '    chatt:\n', ":7: 'placement.explicit.chatt': there is no job 'chatt'"],
    ['  chat: { model', '  chatt: { model', ":10: 'loads': job 'chat' has none"],
    ['text: chat,', 'text: chat, ratePerS: -1,', ":11: unknown key 'loads.chat.ratePerS'"],
    ['cachedShare: 0.5', 'cachedShare: -0.5', ":11: 'loads.chat.cachedShare'"],
    ['cachedShare: 0.5', 'cachedShare: 1.5', ":11: 'loads.chat.cachedShare'"],
    ['outputTokens: 64', 'outputTokens: -64', ":11: 'loads.chat.outputTokens'"],
    ['promptTokens: 64', 'promptTokens: { min: 9, max: 8 }', ":11: 'loads.chat.promptTokens': 9 is more than 8"],
    ['llama-3.1-8b', 'llama-9', ":11: 'loads.chat.model'"],
    ['durationS: 10', 'durationS: 0', ":4: 'durationS'"],
    ['durationS: 10', 'durationS: 10\nexclusion: on', ":5: unknown key 'exclusion'"],
    ['jobs: [chat]', 'jobs: [chatt]', ":13: 'figures.0.jobs.0': there is no job 'chatt'"],
    ['jobs: [chat]', 'jobs: [chat]\n    alone: true\n    during: [chat]', ":15: 'figures.0.during'"],
    ['jobs: [chat]', 'jobs: [chat]\n    documents: { p2: 1 }', ':14: '],
    ['    chat:\n', '    chat: { boxes: [box-0], nodes: {} }\n    chat:\n', ':8: '],
    ['jobs.yaml', '[{ name: chat, session: { boxes: 2 }, pods: [] }]', ":3: 'jobs.0.pods'"],
    ['jobs: jobs.yaml', 'jobs:\n  - name: chat\n    session: { boxes: 0 }', ":5: 'jobs.0.session.boxes'"],
    ['  explicit:', '  state: nowhere.json\n  explicit:', 'cannot read'],
    ['jobs.yaml', 'two-drivers.yaml', ":3: 'jobs': job 'chat' has 2 SwDriver pods"],
    ['jobs.yaml', 'no-shards.yaml', ":11: 'loads.chat': evicts and refills need KVSS pods"],
    ['jobs.yaml', 'missing.yaml', 'cannot read'],
    ['title: small', 'title: [', ':'],
  ])('is refused with file, line and cause: %s -> %s', (from, to, message) => {
    expect(GOOD).toContain(from);
    const path = scratch.file('bad.yaml', GOOD.replace(from, to));
    let refusal: unknown;
    try {
      readScenario(path);
    } catch (thrown) {
      refusal = thrown;
    }
    expect(refusal).toBeInstanceOf(KvssError);
    expect(refusal).toMatchObject({ code: 'KVSS_BAD_INPUT' });
    const text = (refusal as KvssError).message;
    expect(text).toContain(message.startsWith(':') ? `${path}${message}` : message);
  });
});
