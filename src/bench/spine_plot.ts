import { barChart, lineChart, niceMax, svgPicture } from '../common/plot.js';
import { type Arrangement, type Measured, quantileText } from './spine.js';

const LOOK: Record<Arrangement, { name: string; color: string }> = {
  spine: { name: 'one shared spine', color: '#c2410c' },
  rails: { name: 'a rail each', color: '#1d4ed8' },
};
const MOST_POINTS = 400;

/** Latency and throughput of both arrangements side by side, as SVG. `shape` says what was run. */
export function drawSpine(measured: readonly Measured[], deadlineMs: number, shape: string): string {
  const slowest = Math.max(deadlineMs, ...measured.map(({ latenciesMs }) => latenciesMs.at(-1) ?? 0));
  const rates = measured.map(({ figures }) => figures.jobs.map(({ bytesPerSecond }) => bytesPerSecond / 1e6));
  const summary = measured.map(({ figures }, index) => {
    const jobs = figures.jobs.map(
      ({ job, p50Ms, p99Ms }, at) =>
        `job ${job} p50 ${quantileText(p50Ms, deadlineMs)}, p99 ${quantileText(p99Ms, deadlineMs)}, ${rates[index]?.[at]?.toFixed(1)} MB/s`,
    );
    return `${LOOK[figures.over].name}: ${jobs.join('; ')}`;
  });
  return svgPicture(960, 440, 'Two jobs evict bursts of columns', shape, `${summary.join('. ')}.`, [
    lineChart(
      { x: 8, y: 72, width: 560, height: 360 },
      'How soon a column of a burst is stored',
      { label: 'time since the burst began, ms', max: niceMax(1.05 * slowest) },
      { label: 'columns of both jobs, %', max: 100 },
      measured.map(({ figures: { over, jobs }, latenciesMs }) => {
        const dropped = jobs.reduce((sum, { columnsDropped }) => sum + columnsDropped, 0);
        const columns = dropped + latenciesMs.length;
        const note = dropped > 0 ? { note: `${((100 * dropped) / columns).toFixed(1)} % dropped` } : {};
        return { ...LOOK[over], ...note, points: distribution(columns, latenciesMs) };
      }),
      [{ x: deadlineMs, label: 'deadline' }],
    ),
    barChart(
      { x: 588, y: 72, width: 364, height: 360 },
      'What is stored',
      { label: 'MB/s', max: niceMax(1.1 * Math.max(...rates.flat())) },
      {
        groups: (measured[0]?.figures.jobs ?? []).map(({ job }) => `job ${job}`),
        series: measured.map(({ figures }, index) => ({ ...LOOK[figures.over], values: rates[index] as number[] })),
      },
    ),
  ]);
}

/** Share of all columns that are stored after so many milliseconds. Dropped ones never are: the curve ends below 100 %. */
function distribution(columns: number, latenciesMs: readonly number[]): [number, number][] {
  const step = Math.max(1, Math.ceil(latenciesMs.length / MOST_POINTS));
  const points: [number, number][] = [[latenciesMs[0] ?? 0, 0]];
  for (const [index, ms] of latenciesMs.entries()) {
    if (index % step === 0 || index === latenciesMs.length - 1) points.push([ms, (100 * (index + 1)) / columns]);
  }
  return points;
}
