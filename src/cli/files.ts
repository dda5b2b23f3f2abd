import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { localError, messageOf } from '../common/errors.js';

/** What a JSON file says. Throws KVSS_BAD_INPUT that names the file where it cannot be read. */
export function readJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch (cause) {
    throw localError('KVSS_BAD_INPUT', `cannot read ${path}: ${messageOf(cause)}`, cause);
  }
}

/**
 * Throws KVSS_BAD_INPUT that names the file where it cannot be written: before the work and not after it. Leaves a file that
 * is there as it is.
 */
export function checkWritable(path: string): void {
  try {
    closeSync(openSync(path, 'a'));
  } catch (cause) {
    throw localError('KVSS_BAD_INPUT', `cannot write ${path}: ${messageOf(cause)}`, cause);
  }
}

/** Writes a file. Throws KVSS_BAD_INPUT that names it where it cannot be written. */
export function writeText(path: string, text: string): void {
  try {
    writeFileSync(path, text);
  } catch (cause) {
    throw localError('KVSS_BAD_INPUT', `cannot write ${path}: ${messageOf(cause)}`, cause);
  }
}
