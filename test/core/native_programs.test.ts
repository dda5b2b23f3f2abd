import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, it } from 'vitest';

const run = promisify(execFile);
const buildFolder = fileURLToPath(new URL('../../build-tests/', import.meta.url));

/** Each native test is a process of its own, so that one that crashes takes no other with it. */
async function runOne(program: string, name: string): Promise<{ line: string; output: string }> {
  const outcome = await run(program, [name], { encoding: 'utf8', timeout: 55_000, killSignal: 'SIGKILL' }).catch(
    (error: { stdout: string; stderr: string }) => error,
  );
  const lines = outcome.stdout.trimEnd().split('\n');
  return { line: lines.at(-1) ?? '', output: `${outcome.stdout}${outcome.stderr}` };
}

for (const sanitizer of ['asan', 'tsan']) {
  const program = `${buildFolder}native_tests_${sanitizer}`;
  const note = `${program}.skipped`;
  describe(`native code under ${sanitizer}`, () => {
    if (existsSync(note)) {
      it.skip(`left out: ${readFileSync(note, 'utf8')}`);
      return;
    }
    if (!existsSync(program)) {
      it('is built', () => {
        throw new Error(`${program} is missing: run npm run test:native:build`);
      });
      return;
    }
    for (const name of execFileSync(program, ['--list'], { encoding: 'utf8' }).trimEnd().split('\n')) {
      it(name, async (context) => {
        const { line, output } = await runOne(program, name);
        const skipped = line.startsWith(`ok ${name} # skipped: `)
          ? line.slice(`ok ${name} # skipped: `.length)
          : undefined;
        if (skipped !== undefined) context.skip(skipped);
        if (line !== `ok ${name}`) throw new Error(output || `${name} ended without a word`);
      });
    }
  });
}
