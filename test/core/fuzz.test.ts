import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, it } from 'vitest';

const run = promisify(execFile);
const script = fileURLToPath(new URL('../../scripts/fuzz.mjs', import.meta.url));

/** The first run compiles the fuzzers. */
const PATIENCE_MS = 900_000;

const TARGETS = [
  ['in shared memory', 'ring'],
  ['in shared memory that it changes while the engine reads it', 'ring_race'],
  ['over streams', 'stream'],
] as const;

/** A few seconds of each, from the inputs that are kept: enough to see that they work. `npm run fuzz` looks further. */
describe('no promise is broken by a fuzzed client', () => {
  for (const [where, target] of TARGETS) {
    it(where, { timeout: PATIENCE_MS }, async (context) => {
      const { stdout } = await run(process.execPath, [script, target, '--short', '--seconds', '5'], {
        maxBuffer: 1 << 26,
      });
      if (stdout.startsWith('skipped: ')) context.skip(stdout.trim());
    });
  }
});
