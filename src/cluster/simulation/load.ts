import { hashText } from '../../common/hash_text.js';
import { seededRandom } from '../../common/random.js';
import { DEFAULT_COLUMN_TOKENS } from '../../swdriver/model.js';
import type { Calibration, ModelName, Text } from './calibration.js';

/** What a job does while it is there: so many prompts at once, one after another. */
export interface Load {
  readonly model: ModelName;
  readonly text: Text;
  /** Seconds from the start of the scenario. */
  readonly launchS: number;
  /** So long are new prompts begun, in seconds; to the end of the scenario if left out. */
  readonly runS?: number | undefined;
  /** So many prompts at most. */
  readonly prompts?: number | undefined;
  /** Prompts in flight. */
  readonly concurrency: number;
  /** Lengths are anywhere between, evenly. */
  readonly promptTokens: { readonly min: number; readonly max: number };
  readonly outputTokens: number;
  /** Share of a prompt's tokens that are refilled. */
  readonly cachedShare: number;
  /** Whether columns that were computed are evicted to KVSS. */
  readonly evicts: boolean;
  /** Outputs keep to one of so many schemas; free text if left out. */
  readonly schemas?: number | undefined;
  /** Whether the threads of the SwDriver spin on HIO lanes, or sleep until something arrives. */
  readonly hio: 'latency' | 'buffered';
}

/** What one prompt is like: the same for the same seed, job and number, whatever else happens. */
export interface PromptDraw {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Steps of the decode, each as long as one without context. */
  readonly steps: number;
  /** From 0 on; undefined where the output is free. */
  readonly schema: number | undefined;
}

export function drawPrompt(seed: number, job: string, number: number, load: Load, { models }: Calibration): PromptDraw {
  const random = seededRandom(hashText(`${seed} ${job} ${number}`));
  const { min, max } = load.promptTokens;
  const promptTokens = Math.round(min + random() * (max - min));
  const { acceptance, stepGrowthPerToken } = models[load.model];
  const { tokensPerStep, spread, repetitiveShare, repetitiveTokensPerStep } = acceptance[load.text];
  const normal = standardNormal(random);
  // A step gives at least the token that the target model has found itself.
  const usual = Math.max(1, tokensPerStep + spread * normal);
  const repeats = random() < repetitiveShare;
  const tokens = usual - (repeats ? repetitiveTokensPerStep * Math.log(1 - random()) : 0);
  // While it is written, half of the output is there on average.
  const context = promptTokens + load.outputTokens / 2;
  return {
    promptTokens,
    cachedTokens: wholeColumns(promptTokens * load.cachedShare),
    steps: (load.outputTokens / tokens) * (1 + stepGrowthPerToken * context),
    schema: load.schemas === undefined ? undefined : Math.floor(random() * load.schemas),
  };
}

/** So many of the tokens as fill whole columns: only those are evicted and refilled. */
export function wholeColumns(tokens: number): number {
  return Math.floor(tokens / DEFAULT_COLUMN_TOKENS) * DEFAULT_COLUMN_TOKENS;
}

/** Core-milliseconds to compile a schema of a job: log-normal. */
export function drawCompileMs(seed: number, job: string, schema: number, { grammar }: Calibration): number {
  const random = seededRandom(hashText(`${seed} ${job} schema ${schema}`));
  return 1000 * grammar.compileCoreSeconds * Math.exp(grammar.compileSpread * standardNormal(random));
}

/** Box and Muller's method. */
function standardNormal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
