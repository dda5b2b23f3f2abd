import { formatCount } from '../common/units.js';
import type { ReportedDriver } from '../proto/frames.js';
import { alignRows } from './table.js';

/** Points of a what-if curve that a line has room for. */
const SHOWN_POINTS = 8;

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

/** What drivers have reported, as tables for people: how they do, why they miss, and what more or less room would do. */
export function driverTables(drivers: readonly ReportedDriver[]): string[] {
  if (drivers.length === 0) return [];
  const head = ['driver', 'model', 'policy', 'columns', 'of', 'lookups', 'hit rate', 'misses', 'said'];
  const rows = drivers.map(({ sessionId, ageSeconds, report }) => [
    String(sessionId),
    report.model,
    report.policy,
    formatCount(report.columns),
    formatCount(report.capacityColumns),
    formatCount(report.lookups),
    report.promptTokens === 0 ? '-' : percent(report.hitTokens / report.promptTokens),
    missesOf(report.missTokens),
    `${ageSeconds.toFixed(0)} s ago`,
  ]);
  const tables = [alignRows([head, ...rows])];
  for (const { sessionId, report } of drivers) {
    const points = thinned(report.curve);
    if (points.length === 0) continue;
    tables.push(
      alignRows([
        [`driver ${sessionId}, with columns`, ...points.map(({ columns }) => formatCount(columns))],
        ['hit rate would be', ...points.map(({ hitRate }) => percent(hitRate))],
      ]),
    );
  }
  return tables;
}

/** Causes by their share of the tokens that missed, the largest first. */
function missesOf(missTokens: Readonly<Record<string, number>>): string {
  const causes = Object.entries(missTokens).filter(([, tokens]) => tokens > 0);
  const total = causes.reduce((sum, [, tokens]) => sum + tokens, 0);
  return (
    causes
      .sort(([, a], [, b]) => b - a)
      .map(([cause, tokens]) => `${cause} ${percent(tokens / total)}`)
      .join(', ') || '-'
  );
}

/** Some points of a curve, the first and the last among them. */
function thinned<Point>(curve: readonly Point[]): Point[] {
  if (curve.length <= SHOWN_POINTS) return [...curve];
  const step = (curve.length - 1) / (SHOWN_POINTS - 1);
  return Array.from({ length: SHOWN_POINTS }, (_, index) => curve[Math.round(index * step)] as Point);
}
