import { formatBytes, formatCount } from '../common/units.js';
import type { PolicyReport } from '../replay/policy_replay.js';
import type { ReplayReport } from '../replay/replay.js';

/** Rows of two or more cells as aligned text; all columns but the first are numbers and end flush. */
export function alignRows(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [index, cell] of row.entries()) widths[index] = Math.max(widths[index] ?? 0, cell.length);
  }
  return rows
    .map((row) =>
      row
        .map((cell, index) => (index === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[index] ?? 0)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** A share as people read it: `12.34 %`. */
export const percent = (share: number) => `${(share * 100).toFixed(2)} %`;

/** A replay report as a table for people. */
export function reportTable(report: ReplayReport): string {
  return alignRows([
    ['requests', formatCount(report.requests)],
    ['prompt tokens', formatCount(report.promptTokens)],
    ['prefill tokens saved', formatCount(report.hitTokens)],
    ['token hit rate', percent(report.tokenHitRate)],
    ['column hit rate', percent(report.columnHitRate)],
    ['columns evicted', formatCount(report.columnsEvicted)],
    ['columns refilled', formatCount(report.columnsRefilled)],
    ['columns deleted', formatCount(report.columnsDeleted)],
    ['columns dropped', formatCount(report.columnsDropped)],
    ...(report.groups.length > 1
      ? report.groups.map((group) => [`refilled of ${group.name}`, formatBytes(group.bytesRefilled)])
      : []),
    ['bytes verified', formatBytes(report.bytesVerified)],
    ['mismatches', formatCount(report.mismatches)],
    ['evict', `${report.evictGBps.toFixed(2)} GB/s`],
    ['refill, every byte checked', `${report.refillGBps.toFixed(2)} GB/s`],
    ['slowest call', `${report.slowestCallMs.toFixed(1)} ms`],
    ['time', `${report.seconds.toFixed(1)} s`],
  ]);
}

/** What a policy comes to, as a table for people. */
export function policyTable(report: PolicyReport): string {
  return alignRows([
    ['policy', report.policy],
    ['columns of capacity', formatCount(report.capacityColumns)],
    ['requests', formatCount(report.requests)],
    ['prompt tokens', formatCount(report.promptTokens)],
    ['prefill tokens saved', formatCount(report.hitTokens)],
    ['token hit rate', percent(report.tokenHitRate)],
    ['column hit rate', percent(report.columnHitRate)],
    ['time', `${report.seconds.toFixed(1)} s`],
  ]);
}
