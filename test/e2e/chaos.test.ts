import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';

const run = promisify(execFile);
/** Seven processes have to start, on a machine that has other things to do. */
const PATIENCE_MS = 240_000;
const script = (name: string) => fileURLToPath(new URL(`../../scripts/${name}`, import.meta.url));

/** `npm run chaos` and `npm run soak` go on for longer. */
describe('live traffic', () => {
  test('shows no foreign line, no late call and nothing left behind while its processes die at random', {
    timeout: PATIENCE_MS,
  }, async () => {
    const { stdout } = await run(process.execPath, [script('chaos.mjs'), '--rounds', '8', '--seed', '3']);
    expect(stdout).toContain('foreign lines     0\n');
    expect(stdout).toContain('left behind       nothing\n');
  });

  test('shows it when what is stored was damaged', { timeout: PATIENCE_MS }, async () => {
    const outcome = await run(process.execPath, [script('chaos.mjs'), '--rounds', '0', '--canary']).catch(
      (error) => error,
    );
    expect(outcome).toMatchObject({ code: 1, stdout: expect.stringMatching(/foreign lines {5}[1-9]/) });
  });
});
