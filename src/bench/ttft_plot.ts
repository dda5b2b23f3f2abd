import { lineChart, niceMax, svgPicture } from '../common/plot.js';
import type { TtftRow } from './ttft.js';

const COLD = { name: 'computed', color: '#c2410c' };
const CACHED = { name: 'from the store', color: '#1d4ed8' };
const RATIO = { name: 'computed over cached', color: '#0f766e' };

/** Time to first token, computed and cached, and their ratio, by length of the prompt, as SVG. `setting` says what was run. */
export function drawTtft(rows: readonly TtftRow[], setting: string): string {
  const seconds = (ms: number) => ms / 1000;
  const x = { label: 'tokens of the prompt', max: Math.max(...rows.map(({ promptTokens }) => promptTokens)) };
  const summary = rows.map(
    ({ promptTokens, coldMs, cachedMs, ratio }) =>
      `${promptTokens} tokens: ${coldMs.toFixed(0)} ms computed, ${cachedMs.toFixed(1)} ms cached, ${ratio.toFixed(1)} times`,
  );
  const points = (of: (row: TtftRow) => number) => rows.map((row): [number, number] => [row.promptTokens, of(row)]);
  return svgPicture(960, 440, 'Time to the first token', setting, `${summary.join('; ')}.`, [
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
