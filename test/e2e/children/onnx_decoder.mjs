// A decoder with a key that takes what an earlier one has left, says what it finds of a prompt, computes and stores it, and
// kills itself.
// Arguments: index module, options of OnnxDecoder.create with the key in hex, list of tenants with a prompt each, as JSON.

import { createHash } from 'node:crypto';
import { writeSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

const [, , index, optionsText, promptsText] = process.argv;
const { OnnxDecoder } = await import(new URL('./runtimes/onnx/index.js', `file://${index}`).href);
const { config, driver, ...options } = JSON.parse(optionsText);

const decoder = await OnnxDecoder.create({
  ...options,
  config: JSON.parse(await readFile(config, 'utf8')),
  driver: { ...driver, resume: { key: Buffer.from(driver.resume.key, 'hex') } },
});
const found = [];
for (const [isolationId, tokens] of JSON.parse(promptsText)) {
  const sequence = decoder.openSequence({ isolationId });
  const { cachedTokens, logits } = await sequence.prefill(Uint32Array.from(tokens));
  found.push({ cachedTokens, digest: createHash('sha256').update(logits).digest('hex') });
  await sequence.close();
}
writeSync(1, JSON.stringify(found));
process.kill(process.pid, 'SIGKILL');
