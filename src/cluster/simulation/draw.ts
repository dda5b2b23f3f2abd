import { type Curve, lineChart, niceMax, svgPicture } from '../../common/plot.js';
import type { ModelSeries } from './experiment.js';
import type { Scenario } from './scenario.js';

/** One chart of a picture. */
export interface Drawn {
  readonly scenario: Scenario;
  /** Where the jobs are, for people. */
  readonly placement: string;
  readonly series: readonly ModelSeries[];
}

const [WIDTH, HEIGHT, TOP] = [960, 320, 72];
/** Of a model alone, and with the others: pairs that stay apart for people who see few colours, and on paper. */
const COLORS = [
  ['#9aa4af', '#1d4ed8'],
  ['#d6a77a', '#c2410c'],
] as const;

/** Tokens a second over time of the jobs that a scenario has figures of, alone and beside the others; a chart for each scenario. */
export function drawExperiments(drawn: readonly Drawn[]): string {
  const charts = drawn.map(({ scenario, placement, series }, index) => {
    const [width, height] = [WIDTH - 16, HEIGHT - 12];
    const observed = new Set(scenario.rows.flatMap(({ jobs }) => jobs));
    const most = Math.max(1, ...series.flatMap(({ points }) => points.map(([, tokens]) => tokens)));
    // Room for the label of the axis beside its numbers.
    const [unit, scale] = most < 1_000 ? ['tokens/s', 1] : ['thousand tokens/s', 1_000];
    const models = [...new Set(series.map(({ model }) => model))];
    const curves: Curve[] = series.map(({ model, alone, points }) => ({
      name: `${model}${alone ? ' alone' : ''}`,
      color: COLORS[models.indexOf(model) % COLORS.length]?.[alone ? 0 : 1] ?? '#000000',
      points: points.map(([atS, tokens]) => [atS, tokens / scale] as const),
    }));
    const marks = scenario.jobs.flatMap(({ name }) => {
      const { launchS = 0 } = scenario.loads[name] ?? {};
      return observed.has(name) || launchS === 0 ? [] : [{ x: launchS, label: name }];
    });
    return lineChart(
      { x: 8, y: TOP + index * HEIGHT, width, height },
      `${scenario.title} (${placement})`,
      { label: 'time, s', max: scenario.durationS },
      {
        label: `${unit}${scenario.rows[0]?.speed === 'total' ? ' in all' : ''}`,
        max: niceMax((1.05 * most) / scale),
      },
      curves,
      marks,
    );
  });
  const summary = drawn.map(({ scenario, series }) => {
    const lows = series.map(({ model, alone, points }) => {
      const least = Math.min(...points.map(([, tokens]) => tokens));
      return `${model} ${alone ? 'alone' : 'with the others'} never below ${least.toFixed(0)} tokens/s`;
    });
    return `${scenario.title}: ${lows.join(', ')}`;
  });
  const subtitle =
    'mean over the prompts in flight; where jobs lose nothing, the curves lie on each other; dashed: another job is launched';
  return svgPicture(
    WIDTH,
    TOP + drawn.length * HEIGHT,
    'Tokens a second of a prompt over time',
    subtitle,
    `${summary.join('. ')}.`,
    charts,
  );
}
