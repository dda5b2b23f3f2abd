import { localError } from '../../common/errors.js';
import type { SchedulerSettings } from './processor.js';

/** How many of its draft's tokens a model accepts, for one kind of text. */
export interface Acceptance {
  /** Mean tokens of a step, over the prompts. */
  readonly tokensPerStep: number;
  /** Standard deviation from prompt to prompt. */
  readonly spread: number;
  /** Share of the prompts whose output repeats itself. */
  readonly repetitiveShare: number;
  /** By how many tokens a step of those gives more, on average: exponentially distributed. */
  readonly repetitiveTokensPerStep: number;
}

export const TEXTS = ['fuzz', 'chat'] as const;
/** What prompts are made of: random tokens, or what people write. */
export type Text = (typeof TEXTS)[number];

export const MODELS = ['llama-3.1-8b', 'qwen-3-32b'] as const;
export type ModelName = (typeof MODELS)[number];

/** What a model does on a box when nothing is in its way. */
export interface ModelSpeed {
  /** Milliseconds of a decode step without context: draft, verification and what the host does for it. */
  readonly stepMs: number;
  /** By how much a step grows with each token of context, as a share of `stepMs`. */
  readonly stepGrowthPerToken: number;
  /** Most tokens that a box prefills in a second. */
  readonly prefillTokensPerSecond: number;
  /** Most decode steps of a box in a second, over all prompts in flight. */
  readonly stepsPerSecond: number;
  /** Bytes of KV state of a token, on all domains together. */
  readonly bytesPerToken: number;
  readonly acceptance: Readonly<Record<Text, Acceptance>>;
}

/** What the simulation takes for given: one set for all scenarios. */
export interface Calibration {
  readonly scheduler: SchedulerSettings;
  readonly swDriver: {
    /** Threads for each domain of each box that poll its HIO lane. */
    readonly lanesPerDomain: number;
    /** Tokens that a prefill computes between two times that it needs the host. */
    readonly prefillChunkTokens: number;
  };
  readonly kvss: {
    /** Threads of a shard that look for work all the time. */
    readonly spinningThreads: number;
    /** Bytes that one of them moves in a second of a whole core. */
    readonly bytesPerSecond: number;
  };
  /** Constrained decoding, on the node of the SwDriver. */
  readonly grammar: {
    /** Threads that work on one schema. */
    readonly compileThreads: number;
    /** Core-seconds to compile a schema: half of them take less. */
    readonly compileCoreSeconds: number;
    /** Standard deviation of the logarithm of that. */
    readonly compileSpread: number;
    /** Core-milliseconds for the token mask of one step of one prompt. */
    readonly maskMs: number;
  };
  readonly models: Readonly<Record<ModelName, ModelSpeed>>;
}

/**
 * The one calibration of all scenarios. docs/EXPERIMENTS.md says of each number whether it is known, assumed, or fitted, and to
 * which figures of the source documents.
 */
export const CALIBRATION: Calibration = {
  scheduler: { latencyMs: 24, minTurnMs: 3, wakeUpMs: 0.05 },
  swDriver: { lanesPerDomain: 1, prefillChunkTokens: 512 },
  kvss: { spinningThreads: 1, bytesPerSecond: 11.8e9 },
  grammar: { compileThreads: 8, compileCoreSeconds: 3, compileSpread: 0.45, maskMs: 2.15 },
  models: {
    'llama-3.1-8b': {
      stepMs: 1,
      stepGrowthPerToken: 6.3e-5,
      prefillTokensPerSecond: 40_000,
      stepsPerSecond: 20_000,
      bytesPerToken: 131_072,
      acceptance: {
        fuzz: { tokensPerStep: 2.1, spread: 0.036, repetitiveShare: 0.035, repetitiveTokensPerStep: 1.18 },
        chat: { tokensPerStep: 1.88, spread: 0.05, repetitiveShare: 0, repetitiveTokensPerStep: 0 },
      },
    },
    'qwen-3-32b': {
      stepMs: 3,
      stepGrowthPerToken: 1.8e-5,
      prefillTokensPerSecond: 40_000,
      stepsPerSecond: 7_000,
      bytesPerToken: 262_144,
      acceptance: {
        fuzz: { tokensPerStep: 1.57, spread: 0.27, repetitiveShare: 0, repetitiveTokensPerStep: 0 },
        chat: { tokensPerStep: 2.75, spread: 0.077, repetitiveShare: 0, repetitiveTokensPerStep: 0 },
      },
    },
  },
};

/** Every number of a calibration by its name, such as `grammar.maskMs`. */
export function parametersOf(calibration: Calibration): Map<string, number> {
  const numbers = new Map<string, number>();
  const walk = (value: object, prefix: string) => {
    for (const [key, each] of Object.entries(value)) {
      if (typeof each === 'number') numbers.set(`${prefix}${key}`, each);
      else walk(each, `${prefix}${key}.`);
    }
  };
  walk(calibration, '');
  return numbers;
}

/** A calibration with other values for some of its parameters. Throws KVSS_BAD_INPUT for one that it does not have. */
export function withParameters(calibration: Calibration, values: ReadonlyMap<string, number>): Calibration {
  const names = parametersOf(calibration);
  const unknown = [...values.keys()].find((name) => !names.has(name));
  if (unknown !== undefined) {
    throw localError('KVSS_BAD_INPUT', `there is no parameter '${unknown}'; there are ${[...names.keys()].join(', ')}`);
  }
  const replaced = <Part extends object>(part: Part, prefix: string): Part =>
    Object.fromEntries(
      Object.entries(part).map(([key, each]) => {
        const name = `${prefix}${key}`;
        return [key, typeof each === 'number' ? (values.get(name) ?? each) : replaced(each, `${name}.`)];
      }),
    ) as Part;
  return replaced(calibration, '');
}
