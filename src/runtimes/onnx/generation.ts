import { localError } from '../../common/errors.js';
import type { MissCause } from '../../swdriver/accounting/miss_cause.js';
import { checkKeys } from '../../swdriver/driver_options.js';
import type { MatchOptions } from '../../swdriver/sequence.js';
import type { OnnxSequence } from './onnx_sequence.js';
import { greedy, type Sampler } from './sampling.js';

/** How tokens are generated. Only `isolationId` has to be given. */
export interface GenerateOptions extends MatchOptions {
  /** The tenant. */
  isolationId: string;
  /** Weights on top of the model's; see OnnxDecoder.openSequence. */
  adapter?: string;
  /** Most tokens to generate, 1 at least. 256 if left out. The end of the model's context ends it before. */
  maxTokens?: number;
  /** Tokens that end the generation; the one that does is the last that comes. */
  stopTokens?: readonly number[];
  /** Chooses tokens; the most likely one if left out. */
  sample?: Sampler;
  /** Tokens that the draft proposes at a time, in a decoder with a draft. 4 if left out; 0 for none. */
  proposeTokens?: number;
  /** Ends it between two runs: iterating rejects with the signal's reason. What has been computed is stored. */
  signal?: AbortSignal;
}

const MAX_TOKENS = 256;
const PROPOSE_TOKENS = 4;
const OPTIONS: Readonly<Record<keyof GenerateOptions, true>> = {
  isolationId: true,
  adapter: true,
  maxTokens: true,
  stopTokens: true,
  sample: true,
  proposeTokens: true,
  signal: true,
  spans: true,
  storeUpTo: true,
  protectTokens: true,
};

/** Throws KVSS_BAD_INPUT with the name of an option that makes no sense or does not exist. */
export function checkGenerateOptions(options: GenerateOptions): void {
  checkKeys(options, OPTIONS, 'generate');
  const { maxTokens = MAX_TOKENS, proposeTokens = PROPOSE_TOKENS } = options;
  if (!(maxTokens >= 1)) throw localError('KVSS_BAD_INPUT', `maxTokens: ${maxTokens} is no number of tokens above 0`);
  if (!(Number.isInteger(proposeTokens) && proposeTokens >= 0)) {
    throw localError('KVSS_BAD_INPUT', `proposeTokens: ${proposeTokens} is no number of tokens`);
  }
}

/**
 * Tokens as they are generated, for `for await`, once. The sequence behind it ends with the iteration, also where that breaks
 * off; full columns of what was generated are stored on the way.
 */
export class Generation implements AsyncIterable<number> {
  /** Tokens of the prompt that came from the store; there when the first token is. */
  cachedTokens = 0;
  /** Why the others did not, by cause. */
  missed: Readonly<Partial<Record<MissCause, number>>> = {};
  /** Tokens that were generated. */
  outputTokens = 0;
  /** Tokens that the draft has proposed, and how many of them the target has accepted. */
  proposed = 0;
  accepted = 0;
  #started = false;

  /** @internal */
  constructor(
    private readonly open: () => OnnxSequence,
    private readonly prompt: Uint32Array,
    private readonly options: GenerateOptions,
    private readonly speculates: boolean,
  ) {}

  /** Tokens of the prompt. */
  get promptTokens(): number {
    return this.prompt.length;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<number, void, undefined> {
    if (this.#started) throw localError('KVSS_BAD_INPUT', 'a generation can be iterated once');
    this.#started = true;
    const { maxTokens = MAX_TOKENS, stopTokens = [], signal } = this.options;
    const stops = new Set(stopTokens);
    const sequence = this.open();
    try {
      for await (const token of this.#tokensOf(sequence)) {
        this.outputTokens += 1;
        yield token;
        if (this.outputTokens >= maxTokens || stops.has(token)) return;
        signal?.throwIfAborted();
      }
    } finally {
      await sequence.close();
    }
  }

  async *#tokensOf(sequence: OnnxSequence): AsyncGenerator<number, void, undefined> {
    const { sample = greedy, maxTokens = MAX_TOKENS, proposeTokens = PROPOSE_TOKENS } = this.options;
    const { spans, storeUpTo, protectTokens, signal } = this.options;
    const { logits, cachedTokens, missed } = await sequence.prefill(this.prompt, {
      ...(spans ? { spans } : {}),
      ...(storeUpTo === undefined ? {} : { storeUpTo }),
      ...(protectTokens === undefined ? {} : { protectTokens }),
      ...(signal ? { signal } : {}),
    });
    this.cachedTokens = cachedTokens;
    this.missed = missed;
    let token = sample(logits);
    yield token;
    while (sequence.room > 0) {
      // The last token of a round is the target's own.
      const wanted = Math.min(proposeTokens, maxTokens - this.outputTokens - 1, sequence.room - 1);
      if (!this.speculates || wanted < 1) {
        token = sample(await sequence.decode(token));
        yield token;
        continue;
      }
      const { tokens, proposed, accepted } = await sequence.speculate(token, wanted, sample);
      this.proposed += proposed;
      this.accepted += accepted;
      token = tokens.at(-1) as number;
      yield* tokens;
    }
  }
}
