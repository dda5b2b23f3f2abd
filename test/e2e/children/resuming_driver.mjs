// A driver with a key that fills its cache, and kills itself in the middle of writing a column where another one was. Says
// on its output what could be found at that moment.
// Arguments: index module, address, key (hex), capacity in columns, columns of the last prompt to write before.

import { writeSync } from 'node:fs';

const [, , index, address, key, capacity, columnsBefore] = process.argv;
const { SwDriver } = await import(index);
const { StampingRuntime } = await import(new URL('./wafer/stamping_runtime.js', `file://${index}`).href);

const driver = await SwDriver.connect({
  daemons: [address],
  model: { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: [16, 32] },
  capacityColumns: Number(capacity),
  resume: { key: Buffer.from(key, 'hex') },
  deadlineMs: 10_000,
});
const wafer = new StampingRuntime(driver.columnTokens);
const prompt = (seed, columns) =>
  Uint32Array.from({ length: columns * driver.columnTokens }, (_, at) => Math.imul(at + 1, seed * 2654435761));
const find = (seed) => {
  const hit = driver.openSequence({ isolationId: 'acme' }).match(prompt(seed, 10));
  hit.release();
  return hit.columns;
};

for (let seed = 1; seed <= 4; seed += 1) {
  const tokens = prompt(seed, 10);
  const sequence = driver.openSequence({ isolationId: 'acme' });
  sequence.match(tokens).release();
  await sequence.evict(wafer.request('acme', tokens).source);
}
const tokens = prompt(5, 10);
const { source } = wafer.request('acme', tokens);
const last = driver.openSequence({ isolationId: 'acme' });
last.match(tokens).release();
let written = 0;
await last.evict({
  write(column, pieces) {
    if (written < Number(columnsBefore)) {
      written += 1;
      return source.write(column, pieces);
    }
    for (const piece of pieces) piece.fill(0xee, 0, piece.length / 2);
    writeSync(1, JSON.stringify([1, 2, 3, 4].map(find)));
    process.kill(process.pid, 'SIGKILL');
    for (;;) {}
  },
});
