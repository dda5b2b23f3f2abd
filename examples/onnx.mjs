// A decoder in ONNX Runtime whose prompts are cached: generate, go on with a conversation, sequences by hand, a draft.
//   node examples/onnx.mjs
// It makes small models with random weights, because none can be shipped: their tokens mean nothing.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon } from 'kvss';
import { generateDemoModel } from 'kvss/demo-model';
import { greedy, OnnxDecoder, sampler } from 'kvss/onnx';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const shards = [{ budget: '32MiB' }, { budget: '32MiB' }];
const daemon = await KvssDaemon.start({ socket, shards, http: false, logLevel: 'silent' });
const files = await generateDemoModel(join(directory, 'model'), { size: '1M', draft: true });
const config = JSON.parse(readFileSync(files.config, 'utf8'));

// region create
const decoder = await OnnxDecoder.create({
  id: 'demo-1M',
  model: files.model,
  // Which layers slide, and the longest context. Without it all layers see all tokens.
  config,
  daemons: [socket],
  driver: { capacityColumns: 200 },
});
console.log(`${decoder.bytesPerToken} bytes a token, room for ${decoder.driver.capacityColumns} columns`);
// endregion

// region generate
async function answer(prompt, options = {}) {
  const generation = decoder.generate(prompt, { isolationId: 'acme', maxTokens: 40, ...options });
  const tokens = [];
  for await (const token of generation) tokens.push(token);
  console.log(`${generation.cachedTokens} of ${generation.promptTokens} tokens cached, ${tokens.length} generated`);
  return tokens;
}

const prompt = Uint32Array.from({ length: 500 }, (_, position) => (position * 7919) % decoder.vocabularySize);
const first = await answer(prompt);
// The next turn of the conversation: what was asked, what was answered, and something new.
const turn = Uint32Array.of(...prompt, ...first, 17, 4, 99);
await answer(turn, { sample: sampler({ temperature: 0.8, topP: 0.95, seed: 1 }), stopTokens: [0] });
// endregion
const again = await answer(prompt);
console.log(`the same answer: ${again.join() === first.join()}`);
await answer(prompt, { isolationId: 'globex' });

// region sequence
const sequence = decoder.openSequence({ isolationId: 'acme' });
const { logits, cachedTokens } = await sequence.prefill(prompt);
let token = greedy(logits);
for (let count = 0; count < 3; count += 1) token = greedy(await sequence.decode(token));
console.log(`by hand: ${cachedTokens} tokens cached, the sequence has ${sequence.length}`);
await sequence.close();
// endregion
await decoder.close();

// region draft
const speculative = await OnnxDecoder.create({
  id: 'demo-1M',
  model: files.model,
  config,
  draft: { model: files.draft.model, config: JSON.parse(readFileSync(files.draft.config, 'utf8')) },
  daemons: [socket],
});
const generation = speculative.generate(prompt, { isolationId: 'acme', maxTokens: 40, proposeTokens: 4 });
const tokens = [];
for await (const next of generation) tokens.push(next);
// endregion
console.log(`with a draft: the same answer: ${tokens.join() === first.join()}`);
console.log(`some proposals were accepted: ${generation.accepted > 0}, of ${generation.proposed}`);
await speculative.close();
await daemon.stop();
rmSync(directory, { recursive: true });
