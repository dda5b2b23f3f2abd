import { z } from 'zod';
import { messageOf } from './errors.js';
import { parseBytes } from './units.js';

/** Bytes, or a number with a unit such as `64GiB`; at least one byte. */
export const size = z.union([z.string(), z.number()]).transform((text, context) => {
  try {
    return parseBytes(text);
  } catch (thrown) {
    context.addIssue({ code: 'custom', message: messageOf(thrown) });
    return z.NEVER;
  }
});

/** What is wrong with a configuration, in one line that names the key. */
export function describeIssue(error: z.ZodError): string {
  const issue = mostSpecific(error.issues);
  if (!issue) return 'invalid';
  const path = issue.path.map(String);
  if (issue.code === 'unrecognized_keys') {
    const keys = issue.keys.map((key) => `'${[...path, key].join('.')}'`).join(', ');
    return `unknown key ${keys}`;
  }
  return `'${path.join('.') || '(top level)'}': ${issue.message}`;
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
