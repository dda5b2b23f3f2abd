import { localError } from '../../common/errors.js';
import { seededRandom } from '../../common/random.js';
import { checkKeys } from '../../swdriver/driver_options.js';

/** Chooses a token by its logits, one for each token of the vocabulary. */
export type Sampler = (logits: Float32Array) => number;

/** The most likely token; the first of several. */
export const greedy: Sampler = (logits) => {
  let best = 0;
  for (let token = 1; token < logits.length; token += 1) {
    if ((logits[token] as number) > (logits[best] as number)) best = token;
  }
  return best;
};

/** How tokens are drawn. */
export interface SamplingOptions {
  /** Divides the logits: below 1 the likely ones get likelier. 0 is greedy. 1 if left out. */
  temperature?: number;
  /** Only the most likely tokens that make up this share of the probability, above 0 and up to 1. 1 if left out. */
  topP?: number;
  /** Equal seeds draw equal tokens from equal logits. 0 if left out. */
  seed?: number;
}

const OPTIONS: Readonly<Record<keyof SamplingOptions, true>> = { temperature: true, topP: true, seed: true };

/**
 * A sampler that draws from softmax(logits / temperature), cut to the nucleus of `topP`. Throws KVSS_BAD_INPUT with the name of
 * an option that makes no sense or does not exist.
 */
export function sampler(options: SamplingOptions): Sampler {
  checkKeys(options, OPTIONS, 'sampler');
  const { temperature = 1, topP = 1, seed = 0 } = options;
  if (!(temperature >= 0 && temperature <= 100)) {
    throw localError('KVSS_BAD_INPUT', `temperature: ${temperature} is outside of 0 to 100`);
  }
  if (!(topP > 0 && topP <= 1)) throw localError('KVSS_BAD_INPUT', `topP: ${topP} is not above 0 and up to 1`);
  if (!Number.isInteger(seed)) throw localError('KVSS_BAD_INPUT', `seed: ${seed} is no whole number`);
  if (temperature === 0) return greedy;
  const random = seededRandom(seed);
  // Vocabularies are large: to list their tokens anew for each one that is drawn would take longer than to draw it.
  let every: readonly number[] = [];
  return (logits) => {
    const likeliest = logits[greedy(logits)] as number;
    const weights = logits.map((logit) => Math.exp((logit - likeliest) / temperature));
    if (every.length !== logits.length) every = [...logits.keys()];
    const nucleus = topP === 1 ? every : nucleusOf(weights, topP);
    const total = nucleus.reduce((sum, token) => sum + (weights[token] as number), 0);
    let left = random() * total;
    for (const token of nucleus) {
      left -= weights[token] as number;
      if (left < 0) return token;
    }
    return nucleus[0] as number;
  };
}

/** The fewest tokens that make up the share, below 1, of all weights, the heaviest first. */
function nucleusOf(weights: Float32Array, share: number): readonly number[] {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  // All tokens below this make up less than half of what may be missing: the others are enough, and fewer to sort.
  const least = ((1 - share) / 2) * (total / weights.length);
  const tokens: number[] = [];
  for (let token = 0; token < weights.length; token += 1) {
    if ((weights[token] as number) >= least) tokens.push(token);
  }
  tokens.sort((a, b) => (weights[b] as number) - (weights[a] as number));
  const enough = share * total;
  let sum = 0;
  const end = tokens.findIndex((token) => {
    sum += weights[token] as number;
    return sum >= enough;
  });
  return end < 0 ? tokens : tokens.slice(0, end + 1);
}
