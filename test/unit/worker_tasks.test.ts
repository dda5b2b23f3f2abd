import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { runInWorkers } from '../../src/common/worker_tasks.js';

const directory = mkdtempSync(join(tmpdir(), 'kvss-worker-test-'));
afterAll(() => rmSync(directory, { recursive: true }));

function worker(name: string, body: string): URL {
  const path = join(directory, `${name}.mjs`);
  writeFileSync(path, `export default ${body};`);
  return pathToFileURL(path);
}

test.each([1, 2, 5])('results are in the order of the tasks, with %i workers', async (workers) => {
  // The first tasks take longest.
  const slow = worker('slow', '(task) => new Promise((done) => setTimeout(() => done(10 * task), 20 - 10 * task))');
  const seen: number[] = [];
  const results = await runInWorkers(slow, [0, 1, 2], { workers, onProgress: (done) => seen.push(done) });
  expect(results).toEqual([0, 10, 20]);
  expect(seen).toEqual([1, 2, 3]);
});

test('a task that fails ends the work with its error', async () => {
  const fails = worker('fails', "(task) => { if (task === 1) throw new Error('task 1'); return task; }");
  await expect(runInWorkers(fails, [0, 1, 2], { workers: 1 })).rejects.toThrow('task 1');
});

test('an end that is asked for comes at once, to tasks that never end too', async () => {
  const endless = worker(
    'endless',
    '() => { for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000); }',
  );
  const controller = new AbortController();
  const work = runInWorkers(endless, [0, 1, 2], { workers: 2, signal: controller.signal });
  setTimeout(() => controller.abort(), 50);
  await expect(work).rejects.toThrow(expect.objectContaining({ name: 'AbortError' }));
  await expect(runInWorkers(endless, [0], { signal: controller.signal })).rejects.toThrow(/aborted/);
});
