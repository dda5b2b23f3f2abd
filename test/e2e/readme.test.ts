import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { finish } from './support.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const readme = readFileSync(`${root}README.md`, 'utf8');

describe('the README', () => {
  test('has an embedding example that runs and prints what it should', async () => {
    const example = /<!-- example: embed -->\n```js\n([\s\S]*?)```\n<!-- end of example -->/.exec(readme)?.[1];
    // From the package's own folder `kvss` resolves to the package itself.
    const child = spawn(process.execPath, ['--input-type=module', '--eval', example ?? 'throw 1'], { cwd: root });
    expect(await finish(child)).toEqual({
      code: 0,
      signal: null,
      stderr: '',
      stdout: [
        'cold: 0 of 1000 tokens are cached',
        'stored 15 columns',
        'warm: 960 tokens come from the cache, 15 columns are right',
        'another tenant: 0 tokens',
        '',
      ].join('\n'),
    });
  });

  test('names only documents that exist', () => {
    const links = [...readme.matchAll(/\]\(([^)#:]+)\)/g)].map((match) => match[1] as string);
    expect(links.length).toBeGreaterThan(3);
    expect(links.filter((link) => !existsSync(`${root}${link}`))).toEqual([]);
  });
});
