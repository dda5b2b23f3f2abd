import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

const run = promisify(execFile);
const script = fileURLToPath(new URL('../../scripts/mutate.mjs', import.meta.url));

/** Lines of TypeScript whose tests take no time. `npm run mutate` takes all of them out. */
const CHEAP = [
  'map: all tokens are compared',
  'ticket: it opens lanes of its shard only',
  'pool: a number that somebody holds is not free',
];

test('every line of the table is where it says, and so are the tests that would miss it', async () => {
  const { stdout } = await run(process.execPath, [script, '--check']);
  expect(stdout).toMatch(/^\d+ lines, each of them where the table says\n$/);
});

test('a test fails where a line that promises hang on is taken out', { timeout: 180_000 }, async () => {
  const only = CHEAP.flatMap((name) => ['--only', name]);
  const { stdout } = await run(process.execPath, [script, '--json', '--with', 'vitest', ...only]);
  const results: { name: string; outcome: string }[] = JSON.parse(stdout);
  expect(Object.fromEntries(results.map(({ name, outcome }) => [name, outcome]))).toEqual(
    Object.fromEntries(CHEAP.map((name) => [name, 'killed'])),
  );
});
