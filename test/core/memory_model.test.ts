import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, it } from 'vitest';

const run = promisify(execFile);
const script = fileURLToPath(new URL('../../scripts/memory-model.mjs', import.meta.url));
const models = readdirSync(new URL('../memory-model/', import.meta.url))
  .filter((name) => name.endsWith('.pml') && name !== 'machine.pml')
  .map((name) => name.replace(/\.pml$/, ''));

describe('a model holds in every order that memory allows, and none of its mutants does', () => {
  for (const model of models) {
    it(model, { timeout: 300_000 }, async (context) => {
      const { stdout } = await run(process.execPath, [script, model, '--quick']);
      if (stdout.startsWith('skipped: ')) context.skip(stdout.trim());
    });
  }
});
