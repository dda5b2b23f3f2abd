import { lineChart, svgPicture } from '../common/plot.js';
import { BIN_WIDTH, NAMED_LOSS, type SweepResult } from './stream_sweep.js';

const COLORS = ['#1d4ed8', '#c2410c', '#15803d', '#7e22ce', '#0e7490', '#a16207'];
const LAW_COLOR = '#8c959f';
const MOST_ABOVE_MEAN = 250;

/** How many results a plot has colours for. */
export const MOST_CURVES = COLORS.length;

/** What the equal split loses over how unequal the WIO streams are, as SVG. `shape` says what was swept. */
export function drawSweep(results: readonly SweepResult[], shape: string): string {
  const percents = Array.from({ length: MOST_ABOVE_MEAN / 5 + 1 }, (_, index) => 5 * index);
  const law = percents.map((above) => [above, 100 * (1 - 1 / (1 + above / 100))] as const);
  const summary = results.map(
    ({ name, allocations, atNamedLoss }) =>
      `${name}: ${((100 * atNamedLoss) / allocations).toFixed(0)} % of ${allocations} allocations lose 40 % or more`,
  );
  return svgPicture(1120, 560, 'What equal memory for every shard loses', shape, `${summary.join('. ')}.`, [
    lineChart(
      { x: 8, y: 72, width: 1104, height: 480 },
      'Effective cache that is lost, mean of all allocations of that imbalance',
      { label: 'WIO streams that the fullest domain has above the mean, %', max: MOST_ABOVE_MEAN },
      { label: '% of the effective cache', max: 80 },
      [
        { name: 'whole numbers aside', color: LAW_COLOR, points: law },
        ...results.map(({ name, bins }, index) => ({
          name,
          color: COLORS[index % COLORS.length] as string,
          points: bins.map(({ from, lossMean }) => [100 * (from + BIN_WIDTH / 2 - 1), 100 * lossMean] as const),
        })),
      ],
      [{ x: 100 * (1 / (1 - NAMED_LOSS) - 1), label: '67 % above the mean: 40 % lost' }],
    ),
  ]);
}
