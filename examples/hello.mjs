// The life of a request: match, refill, compute, evict, release; then a longer turn of the same conversation.
//   node examples/hello.mjs
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon, SwDriver } from 'kvss';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
// A box runs `kvss serve`; here the daemon lives in this process.
const daemon = await KvssDaemon.start({
  socket,
  shards: [{ budget: '8MiB' }, { budget: '16MiB' }],
  http: false,
  logLevel: 'silent',
});

// region connect
const driver = await SwDriver.connect({
  daemons: [socket],
  model: { id: 'my-model', revision: '7', dtype: 'bf16', layout: 'by-layer', bytesPerToken: [512, 1024] },
  deadlineMs: 5_000,
});
driver.on('unavailable', (reason) => console.log(`no box is left, everything is a miss: ${reason}`));
driver.on('available', () => console.log('there is a box again, with nothing in it'));
// endregion

// region runtime
// Stands for the attention layers: the state of a column depends on all tokens up to its last one.
function stateOf(tokens, { index, group }, shard, bytes) {
  const hash = createHash('sha256').update(tokens.subarray(0, (index + 1) * driver.columnTokens));
  return Buffer.alloc(bytes, hash.update(`${group} ${shard}`).digest());
}

// What the runtime keeps of one request; a real one has its tokens' state in pages or in an accelerator's memory.
class Request {
  constructor(tokens) {
    this.tokens = tokens;
  }

  // A PieceSource: copies the state of a column into the slots, one of each shard. A real one gathers its pages here.
  write(column, pieces) {
    for (const [shard, piece] of pieces.entries()) piece.set(stateOf(this.tokens, column, shard, piece.length));
    return true;
  }

  // A PieceSink: a real one scatters the slots into its pages here. This one checks every byte.
  read(column, pieces) {
    for (const [shard, piece] of pieces.entries()) {
      if (!stateOf(this.tokens, column, shard, piece.length).equals(piece)) throw new Error(`column ${column.index}`);
    }
  }
}
// endregion

// region request
async function prefill(sequence, prompt) {
  const request = new Request(prompt);
  const hit = sequence.match(prompt);
  // Tokens that need not be computed. Never more than hit.tokens, fewer where a shard has gone meanwhile.
  const { tokens } = await hit.refill(request).finally(() => hit.release());
  // Here the runtime computes the prompt from `tokens` on.
  const { stored, present } = await sequence.evict(request);
  return `${tokens} of ${prompt.length} tokens from the cache, ${stored} columns stored, ${present} were there`;
}
// endregion

const prompt = Uint32Array.from({ length: 1000 }, (_, position) => position * 3);
const sequence = driver.openSequence({ isolationId: 'acme' });
console.log(`cold: ${await prefill(sequence, prompt)}`);

// region decode
// Decoded tokens, once the model has settled on them. What becomes full is stored by the next evict.
const answer = Uint32Array.from({ length: 100 }, (_, position) => 7000 + position);
sequence.append(answer);
const conversation = Uint32Array.of(...prompt, ...answer);
const turn = await sequence.evict(new Request(conversation));
sequence.close();
// endregion
console.log(`decoded ${answer.length} tokens: ${turn.stored} columns more`);

const next = Uint32Array.of(...conversation, ...Uint32Array.from({ length: 50 }, (_, position) => 9000 + position));
console.log(`next turn: ${await prefill(driver.openSequence({ isolationId: 'acme' }), next)}`);
console.log(`another tenant: ${await prefill(driver.openSequence({ isolationId: 'globex' }), next)}`);
console.log(`columns in the cache: ${driver.columns}`);

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
