// A draft proposes tokens, the target gives its verdict: columns are written ahead, and found only when they are verified.
//   node examples/speculative_decoding.mjs
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon, SwDriver } from 'kvss';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const daemon = await KvssDaemon.start({ socket, shards: [{ budget: '8MiB' }], http: false, logLevel: 'silent' });
const groups = [
  { name: 'full', bytesPerToken: [512] },
  { name: 'draft', bytesPerToken: [64] },
];
const driver = await SwDriver.connect({
  daemons: [socket],
  model: { id: 'target+draft', revision: '1', dtype: 'bf16', layout: 'by-layer', columnTokens: 16, groups },
});

// Stands for both models: the state of a column depends on all tokens up to its last one.
function stateOf(tokens, { index, group }, shard, bytes) {
  const hash = createHash('sha256').update(tokens.subarray(0, (index + 1) * driver.columnTokens));
  return Buffer.alloc(bytes, hash.update(`${group} ${shard}`).digest());
}
const source = (tokens) => ({
  write(column, pieces) {
    for (const [shard, piece] of pieces.entries()) piece.set(stateOf(tokens, column, shard, piece.length));
    return true;
  },
});

const tokensFrom = (first, count) => Uint32Array.from({ length: count }, (_, index) => first + index);
const prompt = tokensFrom(0, 64);
const sequence = driver.openSequence({ isolationId: 'acme' });
sequence.match(prompt).release();
await sequence.evict(source(prompt));

const cachedTokens = (tokens) => {
  const hit = driver.openSequence({ isolationId: 'acme' }).match(tokens);
  hit.release();
  return hit.tokens;
};

// region propose
// The draft proposes 40 tokens. Both models have state for them now, and nobody knows as yet whether they are right.
const proposed = tokensFrom(1000, 40);
sequence.propose(proposed);
const guess = Uint32Array.of(...prompt, ...proposed);
const { stored, ahead } = await sequence.evict(source(guess));
console.log(`before the verdict: ${stored} stored, ${ahead} written ahead, ${cachedTokens(guess)} tokens can be found`);
// endregion

// region verify
// The target accepts 20 of them and puts another token behind.
const correction = Uint32Array.of(5);
sequence.verify(20, correction);
console.log(`after the verdict: ${cachedTokens(guess)} tokens can be found, the sequence has ${sequence.length}`);
// endregion

// The next round writes over the rejected column's slot.
const verified = Uint32Array.of(...prompt, ...proposed.subarray(0, 20), ...correction);
const more = tokensFrom(2000, 30);
sequence.propose(more);
const longer = Uint32Array.of(...verified, ...more);
await sequence.evict(source(longer));
sequence.verify(30);
console.log(`all accepted: ${cachedTokens(longer)} of ${longer.length} tokens can be found`);

const hit = driver.openSequence({ isolationId: 'acme' }).match(longer);
let right = 0;
await hit.refill({
  read(column, pieces) {
    if (pieces.every((piece, shard) => stateOf(longer, column, shard, piece.length).equals(piece))) right += 1;
  },
});
hit.release();
console.log(`${right} of ${2 * hit.columns} parts are right`);

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
