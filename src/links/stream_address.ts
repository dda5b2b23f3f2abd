import { localError } from '../common/errors.js';

/** Where a daemon takes streams. */
export interface StreamAddress {
  hostOrPath: string;
  /** null for a Unix socket. */
  port: number | null;
}

/** What parseStreamAddress reads. */
export function formatStreamAddress({ hostOrPath, port }: StreamAddress): string {
  if (port === null) return `unix:${hostOrPath}`;
  return hostOrPath.includes(':') ? `tcp://[${hostOrPath}]:${port}` : `tcp://${hostOrPath}:${port}`;
}

/** The stream address that a daemon address spells, or undefined where it is the path of a control socket. */
export function parseStreamAddress(address: string): StreamAddress | undefined {
  if (address.startsWith('unix:')) return { hostOrPath: address.slice('unix:'.length), port: null };
  const match = /^tcp:\/\/(\[[^\]]+\]|[^:/]+):(\d+)$/.exec(address);
  if (match && Number(match[2]) <= 65_535) {
    return { hostOrPath: (match[1] as string).replace(/^\[|\]$/g, ''), port: Number(match[2]) };
  }
  if (/^[a-z]+:\/\//.test(address)) {
    throw localError('KVSS_BAD_INPUT', `'${address}' is no address; write a path, unix:PATH or tcp://HOST:PORT`);
  }
  return undefined;
}
