import { lineChart, niceMax, svgPicture } from '../common/plot.js';
import { formatCount } from '../common/units.js';
import type { TtftRow } from './ttft.js';

const COLD = { name: 'computed', color: '#c2410c' };
const CACHED = { name: 'from the store', color: '#1d4ed8' };
const RATIO = { name: 'computed over cached', color: '#0f766e' };

/** Time to first token, computed and cached, and their ratio, by length of the prompt, as SVG. */
export function drawTtft(rows: readonly TtftRow[]): string {
  const seconds = (ms: number) => ms / 1000;
  const x = { label: 'tokens of the prompt', max: Math.max(...rows.map(({ promptTokens }) => promptTokens)) };
  const summary = rows.map(
    ({ promptTokens, coldMs, cachedMs, ratio }) =>
      `${promptTokens} tokens: ${coldMs.toFixed(0)} ms computed, ${cachedMs.toFixed(1)} ms cached, ${ratio.toFixed(1)} times`,
  );
  const points = (of: (row: TtftRow) => number) => rows.map((row): [number, number] => [row.promptTokens, of(row)]);
  return svgPicture(960, 440, 'Time to the first token', rows[0]?.setting ?? '', `${summary.join('; ')}.`, [
    lineChart(
      { x: 8, y: 72, width: 472, height: 360 },
      'How long a prompt takes',
      x,
      { label: 'seconds', max: niceMax(1.05 * seconds(Math.max(...rows.map(({ coldMs }) => coldMs)))) },
      [
        { ...COLD, points: points(({ coldMs }) => seconds(coldMs)) },
        { ...CACHED, points: points(({ cachedMs }) => seconds(cachedMs)) },
      ],
      [],
    ),
    lineChart(
      { x: 488, y: 72, width: 464, height: 360 },
      'How many times faster',
      x,
      { label: 'ratio', max: niceMax(1.05 * Math.max(...rows.map(({ ratio }) => ratio))) },
      [{ ...RATIO, points: points(({ ratio }) => ratio) }],
      [],
    ),
  ]);
}

const ms = (value: number) => `${value.toFixed(value < 100 ? 1 : 0)} ms`;

/** The rows for people, with a line of titles. */
export function ttftTable(rows: readonly TtftRow[]): string[][] {
  return [
    ['prompt tokens', 'cold', 'cached', 'ratio', 'no reuse costs', 'without a store', 'cold over that'],
    ...rows.map((row) => [
      formatCount(row.promptTokens),
      ms(row.coldMs),
      ms(row.cachedMs),
      `${row.ratio.toFixed(1)} x`,
      `${(100 * row.noReuseOverhead).toFixed(2)} %`,
      ms(row.plainMs),
      row.coldOverPlain.toFixed(3),
    ]),
  ];
}
