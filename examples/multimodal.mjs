// Prompts with images: the placeholder tokens are equal, the images are not, and a digest tells them apart.
//   node examples/multimodal.mjs
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon, SwDriver } from 'kvss';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const daemon = await KvssDaemon.start({ socket, shards: [{ budget: '8MiB' }], http: false, logLevel: 'silent' });
const driver = await SwDriver.connect({
  daemons: [socket],
  model: { id: 'vision', revision: '1', dtype: 'bf16', layout: 'by-layer', bytesPerToken: [512] },
});

// region spans
// 300 tokens of text, 256 placeholders for an image, a question.
const IMAGE_TOKEN = 128256;
function promptAbout(image) {
  const tokens = new Uint32Array(700);
  for (let position = 0; position < tokens.length; position += 1) tokens[position] = position;
  tokens.fill(IMAGE_TOKEN, 300, 556);
  // Of the pixels as the model sees them, after resizing and cutting.
  const digest = createHash('sha256').update(image).digest();
  return { tokens, spans: [{ offset: 300, length: 256, digest }] };
}
// endregion

// region match
async function ask(image) {
  const { tokens, spans } = promptAbout(image);
  const sequence = driver.openSequence({ isolationId: 'acme' });
  const hit = sequence.match(tokens, { spans });
  let right = 0;
  const refilled = await hit.refill({
    read(column, [piece]) {
      // Columns that end before the image are the same for all images.
      if (piece[0] === ((column.index + 1) * 64 <= 300 ? 0 : image[0])) right += 1;
    },
  });
  hit.release();
  // Here the runtime computes the rest, image included.
  await sequence.evict({
    write(column, [piece]) {
      piece.fill((column.index + 1) * 64 <= 300 ? 0 : image[0]);
      return true;
    },
  });
  return `${refilled.tokens} tokens from the cache, ${right} columns are right`;
}
// endregion

const cat = Uint8Array.of(1, 2, 3);
const dog = Uint8Array.of(4, 5, 6);
console.log(`cat: ${await ask(cat)}`);
console.log(`cat again: ${await ask(cat)}`);
console.log(`dog: ${await ask(dog)}`);
console.log(`dog again: ${await ask(dog)}`);

// region append
// An image in a later turn: offsets count from the first token that is appended.
const { tokens, spans } = promptAbout(cat);
const sequence = driver.openSequence({ isolationId: 'acme' });
sequence.match(tokens, { spans }).release();
const digest = createHash('sha256').update(dog).digest();
sequence.append(new Uint32Array(300).fill(IMAGE_TOKEN), { spans: [{ offset: 20, length: 256, digest }] });
// endregion
console.log(`the conversation has ${sequence.length} tokens, ${sequence.fullColumns} full columns`);

// region errors
try {
  driver.openSequence({ isolationId: 'acme' }).match(tokens, { spans: [{ offset: 600, length: 256, digest }] });
} catch (error) {
  console.log(`${error.code}: ${error.message}`);
}
// endregion

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
