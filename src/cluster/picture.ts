import { FAINT, GRID, HALO, INK, line, rectangle, svgPicture, text } from '../common/plot.js';
import { formatBandwidth, formatBytes } from '../common/units.js';
import type { AxNode, Box, Cluster } from './cluster.js';
import { type Crossing, crossingsOf } from './crossings.js';
import { fabricOf } from './fabric.js';
import type { PodKind } from './jobs.js';
import { Ledger } from './ledger.js';
import { leavesOf } from './route.js';
import type { PlacedPod, Snapshot } from './snapshot.js';

/** Groups of leaves that a picture has room for. */
const MAX_ISLANDS = 4;
/** Boxes or AX nodes, from which on only those are drawn that are in use. */
const MAX_ROWS = 24;

const WIDTH = 1240;
const TOP = 84;
const SPINE = { x: 420, y: TOP, width: 250, height: 34 };
const LEAF = { x: 490, width: 110, height: 52 };
const BOX = { x: 40, width: 190, height: 50 };
const NODE = { x: 840, width: 370, height: 80 };
const ROW = 92;
const CHIP = { width: 44, height: 20 };

const LEAF_COLORS = ['#0f766e', '#7c3aed', '#1d4ed8', '#be185d', '#4d7c0f', '#0369a1', '#a21caf', '#57534e'];
const JOB_COLORS = ['#bfdbfe', '#fde68a', '#bbf7d0', '#fbcfe8', '#ddd6fe', '#fed7aa', '#a5f3fc', '#e5e7eb'];
const WARNING = '#c2410c';

const SHORT: Readonly<Record<PodKind, string>> = { swdriver: 'SwD', kvss: 'KVSS', chf: 'CHF', wse: 'WSE' };

/**
 * A picture of a cluster, as SVG: boxes with their domains on the left, leaves with their rails in the middle, AX nodes with
 * their pods on the right, the spine above, and every stream that crosses it. Where there is more than it has
 * room for, it shows islands where something runs, and of large ones what is in use.
 */
export function drawCluster(snapshot: Snapshot): string {
  const { cluster } = snapshot;
  const shown = shownOf(snapshot);
  const placed = snapshot.jobs.flatMap(({ pods }) => pods);
  const crossings = crossingsOf(cluster, placed);
  const top = SPINE.y + SPINE.height + 46;
  const rows = Math.max(shown.nodes.length, shown.boxes.length, shown.leaves.length);
  const height = top + rows * ROW + 64;
  const places = {
    boxes: spread(shown.boxes, top, rows, BOX.height),
    leaves: spread(shown.leaves, top, rows, LEAF.height),
    nodes: spread(shown.nodes, top, rows, NODE.height),
  };
  const colors = new Map(cluster.leaves.map(({ name }, number) => [name, colorOf(LEAF_COLORS, number)]));
  const jobs = new Map(snapshot.jobs.map(({ job }, number) => [job.name, colorOf(JOB_COLORS, number)]));
  const ledger = new Ledger(snapshot);
  const parts = [
    ...cables(shown.boxes, shown.nodes, places, colors),
    ...spineAndLeaves(cluster, ledger, shown.leaves, places.leaves, colors),
    ...crossings.flatMap((crossing) => drawCrossing(snapshot, crossing, places)),
    ...shown.boxes.flatMap((box) => drawBox(box, places.boxes.get(box.name) as number, snapshot, colors, jobs)),
    ...shown.nodes.flatMap((node) => drawNode(node, places.nodes.get(node.name) as number, snapshot, ledger, jobs)),
    ...legend(snapshot, jobs, height - 34),
  ];
  const hidden = cluster.nodes.length - shown.nodes.length;
  const spine =
    crossings.length === 0 ? 'no stream crosses the spine' : `${formatBandwidth(ledger.spine)} cross the spine`;
  const counts = `${cluster.boxes.length} boxes, ${cluster.nodes.length} AX nodes, ${snapshot.jobs.length} ${snapshot.jobs.length === 1 ? 'job' : 'jobs'}: ${spine}`;
  const subtitle = hidden > 0 ? `${counts} (${hidden} AX nodes are not in the picture)` : counts;
  return svgPicture(WIDTH, height, 'Placement on rails', subtitle, `${counts}. ${summary(placed)}`, parts);
}

/** What there is room for: some islands and, where those are large, only what is in use. */
function shownOf(snapshot: Snapshot): Pick<Cluster, 'boxes' | 'leaves' | 'nodes'> {
  const { cluster, jobs, drained } = snapshot;
  const fabric = fabricOf(cluster);
  const islands = new Set(shownIslands(snapshot));
  const boxes = cluster.boxes.filter((_, number) => islands.has(islandOfBox(snapshot, number)));
  const leaves = cluster.leaves.filter((_, number) => islands.has(fabric.islandOfLeaf[number] as number));
  const nodes = cluster.nodes.filter((_, number) => islands.has(fabric.islandOfNode[number] as number));
  if (Math.max(boxes.length, nodes.length) <= MAX_ROWS || jobs.length === 0) return { boxes, leaves, nodes };
  const taken = new Set(jobs.flatMap((job) => job.boxes));
  const busy = new Set([...drained, ...jobs.flatMap(({ pods }) => pods.map(({ node }) => node))]);
  const inUse = {
    boxes: boxes.filter(({ name }) => taken.has(name)),
    nodes: nodes.filter(({ name }) => busy.has(name)),
  };
  const cabled = new Set([...inUse.boxes.flatMap(({ domains }) => domains.flat()), ...inUse.nodes.flatMap(leavesOf)]);
  return { ...inUse, leaves: leaves.filter(({ name }) => cabled.has(name)) };
}

type Places = Readonly<Record<'boxes' | 'leaves' | 'nodes', ReadonlyMap<string, number>>>;

function islandOfBox({ cluster }: Snapshot, box: number): number {
  const fabric = fabricOf(cluster);
  return fabric.cablings[fabric.cablingOfBox[box] as number]?.island as number;
}

/** Islands where something runs; the first ones where nothing does. */
function shownIslands(snapshot: Snapshot): number[] {
  const fabric = fabricOf(snapshot.cluster);
  const used = new Set([
    ...snapshot.jobs.flatMap(({ boxes }) =>
      boxes.map((box) => islandOfBox(snapshot, fabric.boxNumber.get(box) as number)),
    ),
    ...snapshot.jobs.flatMap(({ pods }) =>
      pods.map(({ node }) => fabric.islandOfNode[fabric.nodeNumber.get(node) as number] as number),
    ),
  ]);
  const all = Array.from({ length: fabric.islands }, (_, island) => island);
  return [...used, ...all.filter((island) => !used.has(island))].slice(0, MAX_ISLANDS);
}

/** The upper edge of each, evenly over the rows. */
function spread(items: readonly { readonly name: string }[], top: number, rows: number, height: number) {
  const step = (rows * ROW) / Math.max(1, items.length);
  return new Map(items.map(({ name }, index) => [name, top + (index + 0.5) * step - height / 2]));
}

function cables(boxes: readonly Box[], nodes: readonly AxNode[], places: Places, colors: ReadonlyMap<string, string>) {
  const parts: string[] = [];
  for (const box of boxes) {
    for (const [domain, ports] of box.domains.entries()) {
      for (const leaf of new Set(ports)) {
        const [from, to] = [domainY(box, domain, places), leafY(leaf, places)];
        parts.push(line(BOX.x + BOX.width, from, LEAF.x, to, colors.get(leaf) as string, 'stroke-opacity="0.45"'));
      }
    }
  }
  for (const node of nodes) {
    const leaves = leavesOf(node);
    for (const [index, leaf] of leaves.entries()) {
      const to = nicY(node.name, index, leaves.length, places);
      const color = colors.get(leaf) as string;
      parts.push(line(LEAF.x + LEAF.width, leafY(leaf, places), NODE.x - 6, to, color, 'stroke-width="2"'));
      parts.push(rectangle(NODE.x - 6, to - 5, 6, 10, color));
    }
  }
  return parts;
}

function domainY(box: Box, domain: number, places: Places): number {
  return (places.boxes.get(box.name) as number) + ((domain + 0.5) * BOX.height) / box.domains.length;
}

function leafY(leaf: string, places: Places): number {
  return (places.leaves.get(leaf) as number) + LEAF.height / 2;
}

function nicY(node: string, index: number, count: number, places: Places): number {
  return (places.nodes.get(node) as number) + ((index + 1) * NODE.height) / (count + 1);
}

/** Where the uplink of a leaf runs beside the leaves. */
function uplinkX(index: number, count: number): number {
  return LEAF.x - 14 - (Math.min(count, 8) - 1 - (index % 8)) * 7;
}

function spineAndLeaves(
  { spine }: Cluster,
  ledger: Ledger,
  leaves: Cluster['leaves'],
  places: ReadonlyMap<string, number>,
  colors: ReadonlyMap<string, string>,
): string[] {
  const load = ledger.spine > 0 ? `${formatBandwidth(ledger.spine)} of ` : '';
  const busy = ledger.spine > 0 ? WARNING : FAINT;
  const parts = [
    rectangle(
      SPINE.x,
      SPINE.y,
      SPINE.width,
      SPINE.height,
      ledger.spine > 0 ? '#ffedd5' : '#f6f8fa',
      `stroke="${busy}"`,
    ),
    text(
      SPINE.x + SPINE.width / 2,
      SPINE.y + 22,
      `spine: ${load}${formatBandwidth(spine.bandwidth)}`,
      'text-anchor="middle" font-weight="600"',
      INK,
    ),
  ];
  for (const [index, { name, uplink }] of leaves.entries()) {
    const y = places.get(name) as number;
    const share = ledger.uplinkShare(ledger.fabric.leafNumber.get(name) as number);
    const color = share > 0 ? WARNING : GRID;
    const x = uplinkX(index, leaves.length);
    const width = `stroke-width="${(1.5 + 5 * Math.min(1, share)).toFixed(1)}"`;
    parts.push(line(x, SPINE.y + SPINE.height, x, y + LEAF.height / 2, color, width));
    parts.push(line(x, y + LEAF.height / 2, LEAF.x, y + LEAF.height / 2, color, width));
    parts.push(
      rectangle(LEAF.x, y, LEAF.width, LEAF.height, '#ffffff', `stroke="${colors.get(name)}" stroke-width="2.5"`),
    );
    const middle = LEAF.x + LEAF.width / 2;
    parts.push(text(middle, y + 21, name, 'text-anchor="middle" font-weight="600"', INK));
    const use = share > 0 ? `${(100 * share).toFixed(1)} % of uplink` : `uplink ${formatBandwidth(uplink)}`;
    parts.push(text(middle, y + 40, use, 'text-anchor="middle" font-size="11"', share > 0 ? WARNING : FAINT));
  }
  return parts;
}

/** Streams that cross the spine, from the domain to its leaf and from the other leaf to the AX node; uplinks are drawn by load. */
function drawCrossing({ cluster }: Snapshot, crossing: Crossing, places: Places): string[] {
  const box = cluster.boxes.find(({ name }) => name === crossing.box) as Box;
  const node = cluster.nodes.find(({ name }) => name === crossing.node) as AxNode;
  const look = 'stroke-width="2.5" stroke-dasharray="6 4"';
  const parts: string[] = [];
  if (places.boxes.has(box.name) && places.leaves.has(crossing.boxLeaf)) {
    const [from, to] = [domainY(box, crossing.domain, places), leafY(crossing.boxLeaf, places)];
    parts.push(line(BOX.x + BOX.width, from, LEAF.x, to, WARNING, look));
  }
  if (places.nodes.has(node.name) && places.leaves.has(crossing.nodeLeaf)) {
    const leaves = leavesOf(node);
    const to = nicY(node.name, leaves.indexOf(crossing.nodeLeaf), leaves.length, places);
    parts.push(line(LEAF.x + LEAF.width, leafY(crossing.nodeLeaf, places), NODE.x - 6, to, WARNING, look));
  }
  return parts;
}

function drawBox(
  box: Box,
  y: number,
  { jobs }: Snapshot,
  colors: ReadonlyMap<string, string>,
  jobColors: ReadonlyMap<string, string>,
): string[] {
  const owner = jobs.find(({ boxes }) => boxes.includes(box.name))?.job.name;
  const fill = owner === undefined ? '#ffffff' : (jobColors.get(owner) as string);
  const parts = [
    rectangle(BOX.x, y, BOX.width, BOX.height, fill, `stroke="${FAINT}"`),
    text(BOX.x + 12, y + 22, box.name, 'font-weight="600"', INK),
    text(BOX.x + 12, y + 40, owner === undefined ? 'free' : `job ${owner}`, 'font-size="11"', FAINT),
  ];
  const height = BOX.height / box.domains.length;
  for (const [domain, [leaf = '']] of box.domains.entries()) {
    const top = y + domain * height;
    parts.push(rectangle(BOX.x + BOX.width - 12, top + 1, 12, height - 2, colors.get(leaf) as string));
  }
  return parts;
}

function drawNode(
  node: AxNode,
  y: number,
  { jobs, drained }: Snapshot,
  ledger: Ledger,
  jobColors: ReadonlyMap<string, string>,
): string[] {
  const number = ledger.nodeNumber(node.name);
  const out = drained.includes(node.name);
  const cores = (node.cores - (ledger.coresFree[number] as number)) / 1000;
  const memory = node.memory - (ledger.memoryFree[number] as number);
  const use = `${cores} of ${node.cores / 1000} cores, ${memory === 0 ? '0' : formatBytes(memory)} of ${formatBytes(node.memory)}`;
  const parts = [
    rectangle(
      NODE.x,
      y,
      NODE.width,
      NODE.height,
      out ? '#f6f8fa' : '#ffffff',
      `stroke="${FAINT}"${out ? ' stroke-dasharray="4 3"' : ''}`,
    ),
    text(NODE.x + 10, y + 20, out ? `${node.name} (drained)` : node.name, 'font-weight="600"', INK),
    text(NODE.x + NODE.width - 10, y + 20, use, 'text-anchor="end" font-size="11"', FAINT),
  ];
  const chips = new Map<string, { label: string; color: string; count: number; driver: boolean }>();
  for (const { job, pods } of jobs) {
    for (const { pod, node: on } of pods) {
      if (on !== node.name) continue;
      const { kind } = pod.spec;
      const key = `${job.name} ${kind}`;
      const chip = chips.get(key) ?? {
        label: SHORT[kind],
        color: jobColors.get(job.name) as string,
        count: 0,
        driver: kind === 'swdriver',
      };
      chip.count += 1;
      chips.set(key, chip);
    }
  }
  const room = NODE.x + NODE.width - 10;
  const all = [...chips.values()].sort((a, b) => Number(b.driver) - Number(a.driver));
  let [x, top] = [NODE.x + 10, y + 29];
  const lastRow = top + CHIP.height + 5;
  for (const [index, { label, color, count, driver }] of all.entries()) {
    const content = count > 1 ? `${count} ${label}` : label;
    const width = count > 1 ? CHIP.width + 14 : CHIP.width;
    if (top < lastRow && x + width > room) [x, top] = [NODE.x + 10, lastRow];
    const middle = top + 14;
    // Room is left for the number of those that are not shown.
    if (x + width > room - (top === lastRow && index < all.length - 1 ? 34 : 0)) {
      parts.push(text(x, middle, `+${all.length - index}`, 'font-size="11"', FAINT));
      break;
    }
    const frame = driver ? `stroke="${INK}" stroke-width="2"` : '';
    const weight = driver ? ' font-weight="700"' : '';
    parts.push(rectangle(x, top, width, CHIP.height, color, frame));
    parts.push(text(x + width / 2, middle, content, `text-anchor="middle" font-size="11"${weight}`, INK));
    x += width + 6;
  }
  return parts;
}

function legend({ jobs }: Snapshot, colors: ReadonlyMap<string, string>, y: number): string[] {
  const parts = jobs.slice(0, JOB_COLORS.length).flatMap(({ job }, index) => {
    const x = BOX.x + index * 130;
    return [
      rectangle(x, y, 16, 14, colors.get(job.name) as string),
      text(x + 22, y + 12, `job ${job.name}`, HALO, INK),
    ];
  });
  const note = 'Bold frame: SwDriver. Dashed: across the spine.';
  return [...parts, text(NODE.x + NODE.width, y + 12, note, `text-anchor="end" ${HALO}`, FAINT)];
}

/** What a reader who cannot see the picture is told. */
function summary(placed: readonly PlacedPod[]): string {
  const drivers = placed
    .filter(({ pod }) => pod.spec.kind === 'swdriver')
    .map(({ pod, node }) => `${pod.job} on ${node}`);
  return drivers.length === 0 ? 'Nothing runs.' : `SwDrivers: ${drivers.join(', ')}.`;
}

function colorOf(colors: readonly string[], number: number): string {
  return colors[number % colors.length] as string;
}
