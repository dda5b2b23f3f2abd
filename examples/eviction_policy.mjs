// What goes first when room is needed.
//   node examples/eviction_policy.mjs
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon, SwDriver } from 'kvss';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const daemon = await KvssDaemon.start({ socket, shards: [{ budget: '4MiB' }], http: false, logLevel: 'silent' });

// region policy
const driver = await SwDriver.connect({
  daemons: [socket],
  model: { id: 'my-model', revision: '7', dtype: 'bf16', layout: 'by-layer', bytesPerToken: [512] },
  capacityColumns: 10,
  policy: 'lru',
});
console.log(`${driver.report.policy}: room for ${driver.capacityColumns} columns`);
// endregion

const promptOf = (number) => Uint32Array.from({ length: 256 }, (_, position) => number * 1000 + position);
const cached = (number) => {
  const hit = driver.openSequence({ isolationId: 'acme' }).match(promptOf(number));
  hit.release();
  return hit.columns;
};
async function serve(number) {
  const sequence = driver.openSequence({ isolationId: 'acme' });
  sequence.match(promptOf(number)).release();
  // Here the runtime computes the prompt; see hello.mjs.
  const result = await sequence.evict({
    write(column, pieces) {
      for (const piece of pieces) piece.fill(number + column.index);
      return true;
    },
  });
  console.log(`prompt ${number}: stored ${result.stored}, dropped ${result.dropped}`);
}

// region pressure
// Two prompts of four columns each; a third needs two columns of the one that was used longest ago.
await serve(1);
await serve(2);
cached(1);
await serve(3);
console.log(`still there: ${cached(1)} columns of prompt 1, ${cached(2)} of prompt 2, ${cached(3)} of prompt 3`);
// endregion

// region pinned
// What is pinned stays: with everything pinned nothing new is stored, and nothing throws.
const pins = [1, 2, 3].map((number) => driver.openSequence({ isolationId: 'acme' }).match(promptOf(number)));
await serve(4);
for (const hit of pins) hit.release();
await serve(4);
// endregion
console.log(`${driver.stats.columnsDeleted} columns made room, ${driver.stats.columnsDropped} found none`);

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
