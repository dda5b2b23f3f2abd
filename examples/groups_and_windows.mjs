// Layers that are cached alike make a group: here full attention, a sliding window, and a draft model that is optional.
//   node examples/groups_and_windows.mjs
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon, SwDriver } from 'kvss';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const shards = [{ budget: '8MiB' }, { budget: '8MiB' }];
const daemon = await KvssDaemon.start({ socket, shards, http: false, logLevel: 'silent' });

// region groups
const driver = await SwDriver.connect({
  daemons: [socket],
  model: {
    id: 'hybrid',
    revision: '1',
    dtype: 'bf16',
    layout: 'by-layer',
    groups: [
      { name: 'full', bytesPerToken: [512, 512] },
      // All of its layers lie on the first shard. A hit needs the columns that overlap its last 256 tokens.
      { name: 'sliding', bytesPerToken: [1024, 0], windowTokens: 256 },
      // A hit is a hit without it; then the draft computes its own state.
      { name: 'draft', bytesPerToken: [0, 128], required: false },
    ],
  },
});
// endregion
for (const { name, pieceBytes, windowColumns } of driver.groups) {
  console.log(`${name}: pieces of ${pieceBytes.join(' and ')} bytes, a hit needs ${windowColumns} columns`);
}

// Stands for the layers of a group: the state of a column depends on all tokens up to its last one.
function stateOf(tokens, { index, group }, shard, bytes) {
  const hash = createHash('sha256').update(tokens.subarray(0, (index + 1) * driver.columnTokens));
  return Buffer.alloc(bytes, hash.update(`${group} ${shard}`).digest());
}

// region source
// The runtime is asked for a column once a group. Pieces of shards that have no layers of it are empty.
const source = (tokens, draftColumns) => ({
  write(column, pieces) {
    // The draft has computed less than the target. Where it is optional, the column is stored without.
    if (column.group === 'draft' && column.index >= draftColumns) return false;
    for (const [shard, piece] of pieces.entries()) piece.set(stateOf(tokens, column, shard, piece.length));
    return true;
  },
});
// endregion

const prompt = Uint32Array.from({ length: 1280 }, (_, position) => position);
const sequence = driver.openSequence({ isolationId: 'acme' });
sequence.match(prompt).release();
const { stored } = await sequence.evict(source(prompt, 15));
console.log(`stored ${stored} columns`);

// region refill
async function refill(tokens) {
  const asked = { full: [], sliding: [], draft: [] };
  const hit = driver.openSequence({ isolationId: 'acme' }).match(tokens);
  const result = await hit.refill({
    read(column, pieces) {
      asked[column.group].push(column.index);
      for (const [shard, piece] of pieces.entries()) {
        if (!stateOf(tokens, column, shard, piece.length).equals(piece)) throw new Error(`column ${column.index}`);
      }
    },
  });
  const draftTokens = hit.tokensOf('draft');
  hit.release();
  const span = (columns) => (columns.length === 0 ? 'none' : `${columns[0]} to ${columns.at(-1)}`);
  console.log(
    `${result.tokens} of ${tokens.length} tokens: full ${span(asked.full)}, sliding ${span(asked.sliding)}, ` +
      `draft ${span(asked.draft)} (${draftTokens} tokens)`,
  );
}
// endregion
await refill(prompt);
// Windows are kept where prompts end. There is room in the shards, so here all of them were.
await refill(prompt.subarray(0, 700));

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
