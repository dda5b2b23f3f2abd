import { formatBytes, formatCount } from '../common/units.js';
import type { BenchRow } from './row.js';

/** A title, and what a row has below it: nothing where it was not measured. */
export type RowColumn = readonly [title: string, cell: (row: BenchRow) => string | undefined];

/** What every table of rows shows of them, up to the name of the baseline. */
export const MEASURED_COLUMNS: readonly RowColumn[] = [
  ['link', ({ link }) => link],
  ['piece', ({ pieceBytes }) => (pieceBytes ? formatBytes(pieceBytes) : undefined)],
  ['GB/s', ({ gbps }) => (gbps ? gbps.toFixed(2) : undefined)],
  ['ops/s', ({ opsPerSec }) => (opsPerSec ? formatCount(Math.round(opsPerSec)) : undefined)],
  ['p50 us', ({ p50us }) => p50us?.toFixed(2)],
  ['p99 us', ({ p99us }) => p99us?.toFixed(2)],
  ['beside', ({ baseline }) => baseline],
];

export const baselineCell = ({ baselineGbps }: BenchRow) => (baselineGbps ? baselineGbps.toFixed(2) : undefined);
