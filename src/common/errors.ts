import { Status, type StatusName, statusName } from '../proto/generated.js';

/** Where something went wrong on this side, without a protocol status of its own. */
export type LocalErrorCode =
  | 'KVSS_BAD_CONFIG'
  | 'KVSS_BAD_INPUT'
  | 'KVSS_BAD_TRACE'
  | 'KVSS_UNREACHABLE'
  | 'KVSS_CLOSED'
  | 'KVSS_TIMEOUT'
  | 'KVSS_SPINE_REFUSED'
  | 'KVSS_NO_PLACEMENT'
  | 'KVSS_STALE'
  | 'KVSS_NATIVE_MISSING';

/**
 * Codes are stable: `KVSS_` and the protocol's status in capitals, such as KVSS_NO_MEMORY (docs/PROTOCOL.md has them), or a local
 * one: KVSS_BAD_CONFIG, KVSS_BAD_INPUT, KVSS_BAD_TRACE, KVSS_UNREACHABLE, KVSS_CLOSED, KVSS_TIMEOUT, KVSS_SPINE_REFUSED,
 * KVSS_NO_PLACEMENT, KVSS_STALE, KVSS_NATIVE_MISSING.
 */
export type KvssErrorCode = `KVSS_${string}`;

/**
 * Every error that KVSS raises. `code` is for programs, `message` names the cause for people. A miss is not an error;
 * it is an outcome.
 */
export class KvssError extends Error {
  override readonly name = 'KvssError';

  constructor(
    /** What went wrong, for programs. */
    readonly code: KvssErrorCode,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }

  /** The error of a protocol status, e.g. `noMemory` -> `KVSS_NO_MEMORY`. */
  static ofStatus(status: number, message: string): KvssError {
    return new KvssError(codeOfStatus(status), message);
  }

  /** The protocol status to tell the other side; `internal` for what has none. */
  get status(): Status {
    const name = STATUS_BY_CODE.get(this.code);
    return name === undefined ? Status.internal : Status[name];
  }
}

function codeOfStatus(status: number): KvssErrorCode {
  return codeOfName(statusName(status) ?? 'internal');
}

function codeOfName(name: StatusName): KvssErrorCode {
  return `KVSS_${name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()}`;
}

const STATUS_BY_CODE: ReadonlyMap<string, StatusName> = new Map(
  (Object.keys(Status) as StatusName[]).map((name) => [codeOfName(name), name]),
);

/** A local error with one of the codes that have no protocol status. */
export function localError(code: LocalErrorCode, message: string, cause?: unknown): KvssError {
  return new KvssError(code, message, cause === undefined ? undefined : { cause });
}

/** Text of anything that was thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
