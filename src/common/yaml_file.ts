import { readFileSync } from 'node:fs';
import { type Document, isMap, isNode, LineCounter, parseDocument } from 'yaml';
import type { z } from 'zod';
import { type LocalErrorCode, localError, messageOf } from './errors.js';
import { locateIssue } from './schema.js';

/** A text with keys and values, and where they stand in it. */
export interface LocatedValue<Value> {
  readonly value: Value;
  /** An error that names the source, the line and the key at the path, and the cause. */
  bad(path: readonly PropertyKey[], cause: string): Error;
}

/** Reads a file. Throws an error with the code that names the path and the cause. */
export function readText(path: string, code: LocalErrorCode = 'KVSS_BAD_INPUT'): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    throw localError(code, `cannot read ${path}: ${messageOf(cause)}`, cause);
  }
}

/**
 * Parses YAML (JSON is YAML too) and checks it. Throws KVSS_BAD_INPUT that names source, line, key and cause: for text
 * that is no YAML, for a key that is there twice, and for whatever the schema does not take.
 */
export function parseYaml<Output>(text: string, source: string, schema: z.ZodType<Output>): LocatedValue<Output> {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const at = (offset: number) => `${source}:${lines.linePos(offset).line}`;
  const [error] = document.errors;
  if (error) throw localError('KVSS_BAD_INPUT', `${at(error.pos[0])}: ${error.message}`, error);
  const bad = (path: readonly PropertyKey[], what: string) =>
    localError('KVSS_BAD_INPUT', `${at(offsetOf(document, path))}: ${what}`);
  let input: unknown;
  try {
    input = document.toJS() ?? {};
  } catch (thrown) {
    // Aliases that would make a small text an enormous value.
    throw localError('KVSS_BAD_INPUT', `${source}: ${messageOf(thrown)}`, thrown);
  }
  const parsed = schema.safeParse(input);
  if (!parsed.success) {
    const { path, text: what } = locateIssue(parsed.error);
    throw bad(path, what);
  }
  return { value: parsed.data, bad: (path, cause) => bad(path, `'${path.map(String).join('.')}': ${cause}`) };
}

/** Where the key stands that a path ends with, or the deepest one above it: a missing key stands nowhere. */
function offsetOf(document: Document, path: readonly PropertyKey[]): number {
  for (let length = path.length; length > 0; length -= 1) {
    const parent = document.getIn(path.slice(0, length - 1), true);
    const name = path[length - 1];
    const pair = isMap(parent) ? parent.items.find(({ key }) => String(key) === String(name)) : undefined;
    const node = pair?.key ?? document.getIn(path.slice(0, length), true);
    if (isNode(node) && node.range) return node.range[0];
  }
  return document.contents?.range?.[0] ?? 0;
}
