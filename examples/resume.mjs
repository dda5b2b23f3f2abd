// A driver that is killed and started again finds what it had: the daemon keeps its memory for whoever has the key.
//   node examples/resume.mjs
import { fork } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { KvssDaemon, SwDriver } from 'kvss';

// region options
const optionsFor = (socket, key) => ({
  daemons: [socket],
  model: { id: 'my-model', revision: '7', dtype: 'bf16', layout: 'by-layer', bytesPerToken: [512] },
  // Whoever has the key gets the columns: hand it to the next process as you hand over other secrets.
  resume: { key, parkMs: 30_000 },
});
// endregion

// Stands for the attention layers: the state of a column depends on all tokens up to its last one.
function stateOf(tokens, { index }, shard, bytes) {
  const hash = createHash('sha256').update(tokens.subarray(0, (index + 1) * 64));
  return Buffer.alloc(bytes, hash.update(`${shard}`).digest());
}
const prompt = Uint32Array.from({ length: 640 }, (_, position) => position);

async function serveAndDie(socket, key) {
  const driver = await SwDriver.connect(optionsFor(socket, key));
  const sequence = driver.openSequence({ isolationId: 'acme' });
  sequence.match(prompt).release();
  const { stored } = await sequence.evict({
    write(column, pieces) {
      for (const [shard, piece] of pieces.entries()) piece.set(stateOf(prompt, column, shard, piece.length));
      return true;
    },
  });
  console.log(`the first process stored ${stored} columns and is killed`);
  process.kill(process.pid, 'SIGKILL');
}

const [socketOfParent, keyOfParent] = process.argv.slice(2);
if (socketOfParent !== undefined) await serveAndDie(socketOfParent, Buffer.from(keyOfParent, 'hex'));

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const daemon = await KvssDaemon.start({ socket, shards: [{ budget: '8MiB' }], http: false, logLevel: 'silent' });
const key = randomBytes(32);
await once(fork(fileURLToPath(import.meta.url), [socket, key.toString('hex')]), 'exit');

// region resume
const driver = await SwDriver.resume(optionsFor(socket, key));
const hit = driver.openSequence({ isolationId: 'acme' }).match(prompt);
// endregion
let right = 0;
const { columns } = await hit.refill({
  read(column, pieces) {
    if (pieces.every((piece, shard) => stateOf(prompt, column, shard, piece.length).equals(piece))) right += 1;
  },
});
hit.release();
console.log(`the second one found ${columns} of them, ${right} are right`);

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
