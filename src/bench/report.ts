import { barChart, niceMax, svgPicture } from '../common/plot.js';
import { formatBytes } from '../common/units.js';
import type { BenchRow } from './row.js';
import { baselineCell, MEASURED_COLUMNS, type RowColumn } from './row_columns.js';
import { TARGETS, verdictOf } from './targets.js';

/** What `kvss bench all --json` printed. */
export interface SuiteOutput {
  machine: Record<string, string | number>;
  rows: readonly BenchRow[];
}

/** Reads the lines that `kvss bench all --json` prints. Throws where one of them is none of them. */
export function parseSuiteOutput(text: string): SuiteOutput {
  const lines = text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line) => JSON.parse(line) as BenchRow);
  const first = lines.findIndex(({ bench }) => bench === 'machine');
  if (first < 0) throw new Error('there is no line about the machine: this is not what `kvss bench --json` prints');
  const { bench: _, ...machine } = lines[first] as unknown as Record<string, string | number>;
  return { machine, rows: lines.filter(({ bench }) => bench !== 'machine') };
}

/** The generated parts of docs/PERFORMANCE.md, by name. */
export function reportParts({ machine, rows }: SuiteOutput): Record<string, string> {
  const benches = [...new Set(rows.map(({ bench }) => bench))];
  return {
    machine: Object.entries(machine)
      .map(([name, value]) => `${name}: ${value}`)
      .join(', '),
    targets: targetTable(rows),
    ...Object.fromEntries(benches.map((bench) => [bench, benchTable(rows.filter((row) => row.bench === bench))])),
  };
}

/** Puts generated parts into a document, each between its marks. Throws where the document has no place for one. */
export function fillIn(document: string, parts: Readonly<Record<string, string>>): string {
  let filled = document;
  for (const [name, content] of Object.entries(parts)) {
    const [begin, end] = [`<!-- begin ${name} -->`, `<!-- end ${name} -->`];
    const [from, to] = [filled.indexOf(begin), filled.indexOf(end)];
    if (from < 0 || to < from) throw new Error(`the document has no place for '${name}': ${begin} ... ${end}`);
    filled = `${filled.slice(0, from + begin.length)}\n${content}\n${filled.slice(to)}`;
  }
  return filled;
}

function targetTable(rows: readonly BenchRow[]): string {
  const lines = TARGETS.map((target) => {
    const value = rows.find((row) => row.target === target.id)?.value;
    const measured = value === undefined ? 'not measured' : target.format(value);
    const verdict = value === undefined ? '' : verdictOf(target, value);
    return [
      `\`${target.id}\``,
      target.what,
      target.format(target.bar),
      target.format(target.moonshot),
      measured,
      verdict === 'missed' ? '**missed**' : verdict,
    ];
  });
  return markdownTable(['id', 'what', 'bar', 'moonshot', 'measured', ''], lines);
}

const COLUMNS: readonly RowColumn[] = [
  ['what', ({ what }) => what],
  ...MEASURED_COLUMNS,
  ['its GB/s', baselineCell],
  ['ratio', ({ ratio }) => ratio?.toFixed(2)],
  ['of rounds', ({ ratioRange }) => ratioRange?.map((ratio) => ratio.toFixed(2)).join(' to ')],
  ['note', ({ note }) => note],
];

function benchTable(rows: readonly BenchRow[]): string {
  const columns = COLUMNS.filter(([, cell]) => rows.some((row) => cell(row) !== undefined));
  return markdownTable(
    columns.map(([title]) => title),
    rows.map((row) => columns.map(([, cell]) => cell(row) ?? '')),
  );
}

function markdownTable(titles: readonly string[], lines: readonly (readonly string[])[]): string {
  const row = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [row(titles), `|${titles.map(() => '---|').join('')}`, ...lines.map(row)].join('\n');
}

const LINKS = [
  { link: 'shm', title: 'Shared memory, one copy', color: '#1d4ed8' },
  { link: 'tcp', title: 'TCP loopback', color: '#0f766e' },
] as const;
const BASELINE_COLOR = '#9ca3af';

/** Evict and refill beside their baselines, by piece size, as SVG. */
export function drawTransfers({ rows }: SuiteOutput): string {
  const charts: string[] = [];
  const told: string[] = [];
  for (const [column, { link, title, color }] of LINKS.entries()) {
    for (const [line, direction] of (['evict', 'refill'] as const).entries()) {
      const mine = rows.filter((row) => row.bench === direction && row.link === link);
      const rates = mine.map(({ gbps }) => gbps ?? 0);
      const bare = mine.map(({ baselineGbps }) => baselineGbps ?? 0);
      const groups = mine.map(({ pieceBytes }) => formatBytes(pieceBytes ?? 0).replace(/\.0+ /, ' '));
      charts.push(
        barChart(
          { x: 8 + column * 476, y: 72 + line * 300, width: 468, height: 290 },
          `${title}: ${direction}`,
          { label: 'GB/s', max: niceMax(1.15 * Math.max(...rates, ...bare, 0.1)) },
          {
            groups,
            series: [
              { name: 'KVSS', color, values: rates },
              { name: mine[0]?.baseline ?? '', color: BASELINE_COLOR, values: bare },
            ],
          },
        ),
      );
      told.push(
        `${title}, ${direction}: ${groups.map((group, at) => `${group} ${rates[at]?.toFixed(2)} GB/s`).join(', ')}`,
      );
    }
  }
  const subtitle = 'median of the rounds; each measured beside its baseline in the same run';
  return svgPicture(960, 680, 'Moving pieces, by size', subtitle, `${told.join('. ')}.`, charts);
}
