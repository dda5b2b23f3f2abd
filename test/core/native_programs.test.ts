import { execFile, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, it } from 'vitest';

const run = promisify(execFile);
const buildFolder = fileURLToPath(new URL('../../build-tests/', import.meta.url));

/** What ThreadSanitizer of older compilers says on a kernel whose address layout it does not know. */
const CANNOT_RUN_HERE = 'unexpected memory mapping';

/** Each native test is a process of its own, so that one that crashes takes no other with it. */
async function runOne(program: string, name: string): Promise<{ line: string; output: string }> {
  const outcome = await run(program, [name], { encoding: 'utf8', timeout: 55_000, killSignal: 'SIGKILL' }).catch(
    (error: { stdout: string; stderr: string }) => error,
  );
  const lines = outcome.stdout.trimEnd().split('\n');
  return { line: lines.at(-1) ?? '', output: `${outcome.stdout}${outcome.stderr}` };
}

/** Why the tests of a program cannot be run on this machine, or their names. */
function namesOf(program: string): { skipped: string } | { names: string[] } {
  const note = `${program}.skipped`;
  if (existsSync(note)) return { skipped: readFileSync(note, 'utf8') };
  if (!existsSync(program)) throw new Error(`${program} is missing: run npm run test:native:build`);
  const { status, stdout, stderr } = spawnSync(program, ['--list'], { encoding: 'utf8' });
  if (stderr?.includes(CANNOT_RUN_HERE)) return { skipped: stderr };
  if (status !== 0) throw new Error(`${program} does not run: ${stderr}`);
  return { names: stdout.trimEnd().split('\n') };
}

for (const sanitizer of ['asan', 'tsan']) {
  const program = `${buildFolder}native_tests_${sanitizer}`;
  describe(`native code under ${sanitizer}`, () => {
    const found = namesOf(program);
    if ('skipped' in found) {
      it.skip(`left out: ${found.skipped}`);
      return;
    }
    for (const name of found.names) {
      it(name, async (context) => {
        const { line, output } = await runOne(program, name);
        const skipped = `ok ${name} # skipped: `;
        if (line.startsWith(skipped)) context.skip(line.slice(skipped.length));
        if (output.includes(CANNOT_RUN_HERE)) context.skip(output);
        if (line !== `ok ${name}`) throw new Error(output || `${name} ended without a word`);
      });
    }
  });
}
