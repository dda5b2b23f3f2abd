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

const BITS = new Map([
  ['bps', 1],
  ['kbps', 1e3],
  ['mbps', 1e6],
  ['gbps', 1e9],
  ['tbps', 1e12],
]);

/**
 * Bytes a second of a rate such as `25Gbps` (bits), `3.2GB/s` or `3200000000` (bytes). Throws where it is none, and for
 * less than one byte a second.
 */
export function parseBandwidth(text: string | number): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)(\/s)?\s*$/.exec(String(text));
  const [, number, unit = '', perSecond] = match ?? [];
  const inBytes = perSecond !== undefined || unit === '';
  const bits = inBytes ? 8 * (UNITS.get(unit.toUpperCase()) ?? Number.NaN) : BITS.get(unit.toLowerCase());
  const bytesPerSecond = Math.floor((Number(number) * (bits ?? Number.NaN)) / 8);
  if (!Number.isSafeInteger(bytesPerSecond) || bytesPerSecond < 1) {
    throw localError('KVSS_BAD_INPUT', `'${text}' is not a bandwidth; write for example 25Gbps, 3.2GB/s or 3200000000`);
  }
  return bytesPerSecond;
}

/** A rate for people, in bits as networks are sold: `25 Gbps`. Takes bytes a second. */
export function formatBandwidth(bytesPerSecond: number): string {
  const bits = bytesPerSecond * 8;
  const [unit, scale] = [...BITS].reverse().find(([, each]) => bits >= each) ?? ['bps', 1];
  const name = unit === 'bps' || unit === 'kbps' ? unit : unit.charAt(0).toUpperCase() + unit.slice(1);
  return `${Number((bits / scale).toPrecision(4))} ${name}`;
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
