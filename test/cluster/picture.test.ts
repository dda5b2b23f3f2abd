import { expect, test } from 'vitest';
import { parseCluster } from '../../src/cluster/cluster.js';
import { PlacementEngine } from '../../src/cluster/engine.js';
import { DEFAULT_SHAPE, generateCluster } from '../../src/cluster/generate.js';
import { readJobs } from '../../src/cluster/jobs.js';
import { drawCluster } from '../../src/cluster/picture.js';

const jobs = readJobs(new URL('../../examples/clusters/prompt-caching-jobs.yaml', import.meta.url).pathname);
const count = (svg: string, part: string | RegExp) => svg.split(part).length - 1;

test('a picture has every box, leaf and AX node, and each SwDriver with a bold frame', () => {
  const cluster = parseCluster(generateCluster(DEFAULT_SHAPE));
  const statement = new PlacementEngine(cluster).begin();
  for (const job of jobs) statement.place(job);
  statement.drain('ax-7');
  const svg = drawCluster(statement.snapshot);
  for (const { name } of [...cluster.boxes, ...cluster.leaves]) expect(svg).toContain(`>${name}</text>`);
  for (const { name } of cluster.nodes) expect(svg).toContain(`>${name}${name === 'ax-7' ? ' (drained)' : ''}</text>`);
  expect(count(svg, '>SwD</text>')).toBe(4);
  expect(count(svg, 'stroke="#1f2328" stroke-width="2"')).toBe(4);
  expect(svg).toContain('no stream crosses the spine');
  expect(svg).not.toContain('stroke-dasharray="6 4"');
  expect(svg).toMatch(/<desc>.*SwDrivers: chat on ax-\d, code on ax-\d, search on ax-\d, agents on ax-\d\.<\/desc>/);
  // Coordinates that are no numbers would be left out silently by a browser.
  expect(svg).not.toMatch(/NaN|undefined|Infinity/);
});

test('streams across the spine are drawn, with the load of uplinks and spine', () => {
  const cluster = parseCluster(generateCluster({ ...DEFAULT_SHAPE, boxes: 1, nodes: 1, uplink: '100Gbps' }));
  const statement = new PlacementEngine(cluster).begin();
  const [job] = jobs as [(typeof jobs)[0]];
  statement.place({ ...job, session: { boxes: 1, minimum: 1, increment: 1 } });
  const svg = drawCluster(statement.snapshot);
  // Two shards, each with a line to its leaf and one from the other leaf to the AX node.
  expect(count(svg, 'stroke-dasharray="6 4"')).toBe(4);
  expect(svg).toContain('>spine: 12.5 Gbps of 1.6 Tbps</text>');
  expect(count(svg, '>6.3 % of uplink</text>')).toBe(4);
});

test('of a large cluster what is in use is drawn', () => {
  const cluster = parseCluster(generateCluster({ ...DEFAULT_SHAPE, boxes: 160, nodes: 160 }));
  const statement = new PlacementEngine(cluster).begin();
  statement.place(jobs[0] as (typeof jobs)[0]);
  const svg = drawCluster(statement.snapshot);
  // Two boxes, and the two AX nodes of the two kinds that their rails lead to.
  expect(count(svg, '>box-')).toBe(2);
  expect(count(svg, '>ax-')).toBe(2);
  expect(count(svg, '>leaf-')).toBe(4);
  expect(svg).toContain('(158 AX nodes are not in the picture)');
  expect(svg).not.toMatch(/NaN|undefined|Infinity/);
});
