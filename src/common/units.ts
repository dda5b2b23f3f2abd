import { localError } from './errors.js';

const UNITS = new Map([
  ['', 1],
  ['B', 1],
  ['KB', 1e3],
  ['MB', 1e6],
  ['GB', 1e9],
  ['TB', 1e12],
  ['KIB', 2 ** 10],
  ['MIB', 2 ** 20],
  ['GIB', 2 ** 30],
  ['TIB', 2 ** 40],
]);

/** Bytes of a size such as `268435456`, `256MiB` or `1.5GB`. Throws where it is none, and for less than one byte. */
export function parseBytes(text: string | number): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$/.exec(String(text));
  const unit = UNITS.get(match?.[2]?.toUpperCase() ?? 'none');
  const bytes = Math.floor(Number(match?.[1]) * (unit ?? Number.NaN));
  if (!Number.isSafeInteger(bytes) || bytes < 1) {
    throw localError('KVSS_BAD_INPUT', `'${text}' is not a size; write for example 268435456, 256MiB or 1.5GB`);
  }
  return bytes;
}

/** The next multiple of `granule` that is not below `bytes`. Exact for whole numbers. */
export function roundUpTo(bytes: number, granule: number): number {
  const over = bytes % granule;
  return over === 0 ? bytes : bytes - over + granule;
}

/** A size for people, in binary units: `1.5 GiB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  const value = bytes / 2 ** (10 * power);
  return `${power === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[power]}`;
}

/** An integer for people: `1,234,567`. */
export function formatCount(count: number): string {
  return Math.round(count).toLocaleString('en-US');
}

/** A rate for people, as networks count it: `3.2 GB/s`. Always in GB/s, so that rows of a table compare. */
export function formatByteRate(bytesPerSecond: number): string {
  return `${decimal(bytesPerSecond / 1e9)} GB/s`;
}

/** The same rate in bits: `25.6 Gbps`. */
export function formatBitRate(bytesPerSecond: number): string {
  return `${decimal((8 * bytesPerSecond) / 1e9)} Gbps`;
}

function decimal(value: number): string {
  return value.toLocaleString('en-US', { maximumSignificantDigits: value < 1000 ? 3 : 6, maximumFractionDigits: 0 });
}
