// The demo model: a decoder with random weights, made at the first start.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { generateDemoModel } from 'kvss/demo-model';
import { VOCABULARY_SIZE } from './tokens.mjs';

/** Most of a small model is its embedding; tied, it is the head too. Only the last position's logits are computed. */
const COMMON = {
  vocabularySize: VOCABULARY_SIZE,
  headDim: 64,
  attention: 'fused',
  tied: true,
  logitsToKeep: true,
};

/** What `--size` takes. */
export const SIZES = {
  /** For tests: answers at once. */
  tiny: { ...COMMON, hiddenSize: 64, layers: 2, heads: 2, keyValueHeads: 2, intermediateSize: 128 },
  small: { ...COMMON, hiddenSize: 256, layers: 6, heads: 4, keyValueHeads: 2, intermediateSize: 768 },
};

/** Where the model of a size is, made if need be. `say` hears of it. */
export async function ensureModel(home, size, say) {
  const directory = join(home.models, size);
  const isNew = !existsSync(directory);
  const startedAt = performance.now();
  const made = await generateDemoModel(directory, SIZES[size]);
  if (isNew) {
    const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
    say(
      `made a demo model of ${(made.parameters / 1e6).toFixed(1)} million random weights in ${seconds} s: ${directory}`,
    );
  }
  return made;
}

/** What the model of a size is called. */
export const modelId = (size) => `kvss-demo-${size}`;
