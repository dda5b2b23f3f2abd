import { z } from 'zod';
import { messageOf } from './errors.js';
import { parseBandwidth, parseBytes } from './units.js';

/** Bytes, or a number with a unit such as `64GiB`; at least one byte. */
export const size = quantity(parseBytes);

/** Bytes a second, or a rate with a unit such as `25Gbps` or `3.2GB/s`; at least one byte a second. */
export const bandwidth = quantity(parseBandwidth);

function quantity(parse: (text: string | number) => number) {
  return z.union([z.string(), z.number()]).transform((text, context) => {
    try {
      return parse(text);
    } catch (thrown) {
      context.addIssue({ code: 'custom', message: messageOf(thrown) });
      return z.NEVER;
    }
  });
}

/** What is wrong with a configuration, in one line that names the key. */
export function describeIssue(error: z.ZodError): string {
  return locateIssue(error).text;
}

/** What is wrong with a configuration: the line of describeIssue, and the path of the key, for who knows where it stands. */
export function locateIssue(error: z.ZodError): { readonly path: readonly PropertyKey[]; readonly text: string } {
  const issue = mostSpecific(error.issues);
  if (!issue) return { path: [], text: 'invalid' };
  const { path } = issue;
  if (issue.code === 'unrecognized_keys') {
    const keys = issue.keys.map((key) => `'${[...path, key].map(String).join('.')}'`).join(', ');
    return { path: [...path, ...issue.keys.slice(0, 1)], text: `unknown key ${keys}` };
  }
  return { path, text: `'${path.map(String).join('.') || '(top level)'}': ${issue.message}` };
}

/** Of a union the alternative that got furthest tells most. */
function mostSpecific(issues: readonly z.core.$ZodIssue[]): z.core.$ZodIssue | undefined {
  // A key that was mistyped is also missing under its right name: the mistyped one tells more.
  const issue = issues.find((candidate) => candidate.code === 'unrecognized_keys') ?? issues[0];
  if (issue?.code !== 'invalid_union') return issue;
  const nested = issue.errors
    .map((alternative) => mostSpecific(alternative))
    .filter((candidate) => candidate !== undefined)
    .sort(
      (a, b) =>
        b.path.length - a.path.length || Number(b.code !== 'invalid_value') - Number(a.code !== 'invalid_value'),
    );
  const [best] = nested;
  return best ? { ...best, path: [...issue.path, ...best.path] } : issue;
}
