// Memory of the runtime with numbered places for columns: streams send straight from it and receive straight into it.
//   node examples/own_memory.mjs
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon, SwDriver } from 'kvss';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
// A daemon on another host listens on TCP; a stream over a Unix socket works the same.
const stream = join(directory, 'stream.sock');
const daemon = await KvssDaemon.start({
  socket: join(directory, 'kvss.sock'),
  streams: [{ path: stream }],
  shards: [{ budget: '8MiB' }, { budget: '8MiB' }],
  http: false,
  logLevel: 'silent',
});

// region memory
const PLACES = 32;
const bytesPerToken = [512, 256];
// One region for each shard: the piece of the column at place p lies at p * strideBytes.
const regions = bytesPerToken.map((bytes) => ({
  memory: new ArrayBuffer(PLACES * bytes * 64),
  strideBytes: bytes * 64,
}));
const driver = await SwDriver.connect({
  daemons: [`unix:${stream}`],
  model: { id: 'my-model', revision: '7', dtype: 'bf16', layout: 'paged', bytesPerToken },
  memory: { places: PLACES, regions },
  checksums: true,
  deadlineMs: 10_000,
});
// endregion
const pieceAt = (place, shard) =>
  Buffer.from(regions[shard].memory, place * regions[shard].strideBytes, driver.pieceBytes[shard]);

// Stands for the attention layers: the state of a column depends on all tokens up to its last one.
function stateOf(tokens, index, shard) {
  const hash = createHash('sha256').update(tokens.subarray(0, (index + 1) * driver.columnTokens));
  return Buffer.alloc(driver.pieceBytes[shard], hash.update(`${shard}`).digest());
}

const prompt = Uint32Array.from({ length: 640 }, (_, position) => position);
const sequence = driver.openSequence({ isolationId: 'acme' });
sequence.match(prompt).release();
// The engine's page table: where it has computed each column.
const pages = Array.from({ length: 10 }, (_, index) => 31 - index);
for (const [index, place] of pages.entries()) {
  for (const shard of regions.keys()) pieceAt(place, shard).set(stateOf(prompt, index, shard));
}

// region evict
// The source names places; they must not change before the evict has ended.
const { stored } = await sequence.evict({ place: (column) => pages[column.index] });
console.log(`stored ${stored} columns`);
// endregion

// region refill
// Free pages for a hit. Undefined ends the refill there: so much the runtime has room for.
const free = [0, 1, 2, 3, 4, 5, 6, 7];
const table = [];
const hit = driver.openSequence({ isolationId: 'acme' }).match(prompt);
const { columns, quiet } = await hit.refill({
  place(column) {
    const place = free.shift();
    if (place !== undefined) table[column.index] = place;
    return place;
  },
});
hit.release();
// Pages of columns that have not been restored may still be written to until then.
await quiet;
free.push(...table.splice(columns));
// endregion

const right = table.filter((place, index) =>
  [0, 1].every((shard) => pieceAt(place, shard).equals(stateOf(prompt, index, shard))),
).length;
console.log(`matched ${hit.columns} columns, restored ${columns} at places ${table.join(' ')}, ${right} are right`);
console.log(`${driver.payloadBytes} bytes of pieces crossed the streams`);

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
