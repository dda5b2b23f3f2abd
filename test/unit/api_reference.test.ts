import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** The API of the compiler is unstable: a later one may be without, and then nothing but the check is missing. */
function hasCompilerApi(): boolean {
  try {
    createRequire(import.meta.url).resolve('typescript/unstable/sync');
    return true;
  } catch {
    return false;
  }
}

test('docs/API.md is up to date and everything that is exported has a doc comment', ({ skip }) => {
  skip(!hasCompilerApi(), 'the installed typescript has no typescript/unstable/sync, so docs/API.md is not checked');
  const { status, stderr } = spawnSync(process.execPath, ['scripts/api-reference.mjs', '--check'], {
    cwd: root,
    encoding: 'utf8',
  });
  expect(status, stderr).toBe(0);
});
