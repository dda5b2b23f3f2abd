import { enlarged } from '../../common/enlarged.js';
import { KvssError, localError } from '../../common/errors.js';
import type { MissCause } from '../../swdriver/accounting/miss_cause.js';
import type { Hit } from '../../swdriver/hit.js';
import type { ColumnRef, PieceSource } from '../../swdriver/runtime.js';
import type { MatchOptions, Sequence } from '../../swdriver/sequence.js';
import type { KvState } from './kv_state.js';
import type { OnnxModel } from './onnx_model.js';
import type { PieceLayout } from './piece_layout.js';
import { greedy, type Sampler } from './sampling.js';

/** A model with where its keys and values lie in the store. */
export interface CachedModel {
  readonly model: OnnxModel;
  readonly layouts: readonly PieceLayout[];
}

/** What the sequences of a decoder have in common. */
export interface SequenceHost {
  readonly target: CachedModel;
  readonly draft: CachedModel | undefined;
  readonly columnTokens: number;
  readonly prefillChunkTokens: number;
  /** Longest sequence that the model can take. */
  readonly contextTokens: number;
}

/** How a prompt is computed; see Sequence.match for what is about the cache. */
export interface PrefillOptions extends MatchOptions {
  /** Ends the prefill between two chunks; it rejects with the signal's reason. */
  signal?: AbortSignal;
}

/** A prompt that has been computed. */
export interface Prefill {
  /** Logits behind the last token of the prompt, one for each token of the vocabulary. */
  readonly logits: Float32Array;
  readonly promptTokens: number;
  /** Tokens of the prompt whose keys and values came from the store. At least the last one is computed. */
  readonly cachedTokens: number;
  /** Why tokens were not found, by cause; see Hit.missed. */
  readonly missed: Readonly<Record<MissCause, number>>;
}

/** What one round of speculation came to. */
export interface Speculation {
  /** Tokens that the target has settled on, one at least; the last one has not been computed. */
  readonly tokens: readonly number[];
  readonly proposed: number;
  readonly accepted: number;
}

/** A model with the memory that one sequence has in it. */
interface Part extends CachedModel {
  readonly state: KvState;
  /** For each layout the first token whose keys and values are there: what lies before a window is not. */
  readonly heldFrom: number[];
}

/**
 * One sequence of one tenant in a decoder: `prefill` a prompt, `decode` token by token or `speculate`, and `close` it. What is found
 * in the store is not computed; every column that becomes full is stored in the background.
 *
 * One call at a time. Runs of other sequences come in between.
 */
export class OnnxSequence {
  readonly #target: Part;
  readonly #draft: Part | undefined;
  /** Tokens that have been computed, and those that are being computed; `#count` of them. */
  #tokens = new Uint32Array(0);
  #count = 0;
  /** Whether a prompt has been computed, and nothing has failed since. */
  #ready = false;
  /** Columns that were full when they were stored the last time. */
  #askedColumns = 0;
  #storing: Promise<void> | undefined;
  #draftTurn: Promise<unknown> = Promise.resolve();
  #running: Promise<unknown> = Promise.resolve();
  #busy = false;
  #closed: Promise<void> | undefined;
  /** What storing has rejected with, which close() tells: the draft's run, or our own mistake. */
  #failure: unknown;

  /** @internal */
  constructor(
    private readonly host: SequenceHost,
    private readonly sequence: Sequence,
    private readonly onClosed: (sequence: OnnxSequence) => void,
  ) {
    const partOf = ({ model, layouts }: CachedModel): Part => ({
      model,
      layouts,
      state: model.takeState(1),
      heldFrom: layouts.map(() => 0),
    });
    this.#target = partOf(host.target);
    this.#draft = host.draft && partOf(host.draft);
  }

  /** Tokens whose keys and values are there. */
  get length(): number {
    return this.#target.state.length;
  }

  /** Tokens that the model's context still takes; infinite where nothing says how long it is. */
  get room(): number {
    return this.host.contextTokens - this.length;
  }

  /**
   * Begins with a prompt, in place of whatever was before: takes what is cached, computes the rest in chunks, and begins to
   * store it. Rejects with KVSS_BAD_INPUT for an empty prompt, one that is longer than the model's context, or a token that it has
   * not got, with the signal's reason, and with what ONNX Runtime throws.
   */
  prefill(prompt: Uint32Array, options: PrefillOptions = {}): Promise<Prefill> {
    return this.#alone(async () => {
      const { signal, ...matchOptions } = options;
      if (!(prompt instanceof Uint32Array) || prompt.length === 0) {
        throw localError('KVSS_BAD_INPUT', 'prompt: a Uint32Array of at least one token is needed');
      }
      this.#checkRoom(prompt.length);
      this.#target.model.checkTokens(prompt);
      const tokens = prompt.slice();
      signal?.throwIfAborted();
      // Evicts of an earlier prompt end by their deadline.
      while (this.#storing) await this.#storing;
      const hit = this.sequence.match(tokens, matchOptions);
      this.#ready = false;
      this.#tokens = tokens;
      this.#count = tokens.length;
      this.#askedColumns = 0;
      const cachedTokens = await this.#refill(hit, tokens.length - 1).finally(() => hit.release());
      const logits = await this.#compute(this.#target, tokens.length, 'last', signal);
      this.#ready = true;
      this.#storeSoon();
      return { logits, promptTokens: tokens.length, cachedTokens, missed: hit.missed };
    });
  }

  /** Computes one token behind the others. Resolves with the logits behind it. Rejects as prefill does. */
  decode(token: number): Promise<Float32Array> {
    return this.#alone(async () => {
      this.#checkReady();
      const { state, model } = this.#target;
      this.#checkRoom(state.length + 1);
      model.checkTokens([token]);
      const tokens = Uint32Array.of(token);
      const logits = await model.run(state, tokens, 'last');
      this.#append(tokens);
      this.sequence.append(tokens);
      this.#storeSoon();
      return logits;
    });
  }

  /**
   * Has the draft propose `count` tokens behind `token`, and the target compute all of them in one run: proposals stay as long as
   * `sample` chooses the same from the target's logits. So the tokens are those that the target alone would have come to.
   * Rejects as decode does, and with KVSS_BAD_INPUT in a decoder without a draft.
   */
  speculate(token: number, count: number, sample: Sampler = greedy): Promise<Speculation> {
    return this.#alone(async () => {
      const draft = this.#draft;
      if (!draft) throw localError('KVSS_BAD_INPUT', 'speculate: the decoder has no draft');
      if (!(Number.isInteger(count) && count >= 0)) {
        throw localError('KVSS_BAD_INPUT', `speculate: ${count} is no number of tokens`);
      }
      this.#checkReady();
      const { model, state } = this.#target;
      const { length } = state;
      this.#checkRoom(length + 1 + count);
      model.checkTokens([token]);
      this.#ready = false;
      this.#append(Uint32Array.of(token));
      this.sequence.append(Uint32Array.of(token));
      const proposals = await this.#propose(draft, count);
      this.sequence.propose(proposals);
      let accepted = 0;
      let next = token;
      try {
        const logits = await model.run(state, Uint32Array.of(token, ...proposals), 'all');
        const { vocabularySize } = model.graph;
        for (; ; accepted += 1) {
          next = sample(logits.subarray(accepted * vocabularySize, (accepted + 1) * vocabularySize));
          if (accepted === count || next !== proposals[accepted]) break;
        }
      } finally {
        // Proposals that were not accepted never were, in the store as here: also where the run or `sample` has failed.
        this.sequence.verify(accepted);
        this.#append(proposals.subarray(0, accepted));
        state.truncate(this.#count);
        draft.state.truncate(this.#count);
      }
      this.#ready = true;
      this.#storeSoon();
      return { tokens: [...proposals.subarray(0, accepted), next], proposed: count, accepted };
    });
  }

  /**
   * Stores what is full, and ends. Rejects where storing has failed in a way that is no miss: the draft did not run, or this
   * module has made a mistake. The sequence has ended then as well.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    await this.#running;
    this.#storeSoon();
    while (this.#storing) await this.#storing;
    this.sequence.close();
    for (const { model, state } of this.#parts()) model.giveState(state);
    this.onClosed(this);
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #alone<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#closed) throw localError('KVSS_CLOSED', 'the sequence has been closed');
    if (this.#busy) throw localError('KVSS_BAD_INPUT', 'a sequence does one thing at a time: wait for the call before');
    this.#busy = true;
    const result = work().finally(() => {
      this.#busy = false;
    });
    this.#running = result.catch(() => undefined);
    return result;
  }

  #parts(): Part[] {
    return this.#draft ? [this.#target, this.#draft] : [this.#target];
  }

  #checkReady(): void {
    if (this.#ready) return;
    throw localError('KVSS_BAD_INPUT', 'there is no computed prompt to go on from: prefill one first');
  }

  #checkRoom(tokens: number): void {
    const { contextTokens } = this.host;
    if (tokens <= contextTokens) return;
    throw localError('KVSS_BAD_INPUT', `${tokens} tokens are more than the model's context of ${contextTokens}`);
  }

  /** Takes what the hit has, `most` tokens at most. Answers how many tokens need not be computed. */
  async #refill(hit: Hit, most: number): Promise<number> {
    const { columnTokens } = this.host;
    const parts = this.#parts();
    const reach = Math.min(hit.tokens, most);
    for (const { state, layouts, heldFrom } of parts) {
      // Room for what will be computed as well.
      state.layOut(reach, most + 1);
      for (const [index, layout] of layouts.entries()) {
        heldFrom[index] = 0;
        layout.clear(state, Math.min(reach, this.#windowFrom(layout, hit.columns)));
      }
    }
    if (reach === 0) return 0;
    let columns = 0;
    try {
      ({ columns } = await hit.refill({
        read: ({ group, index }, pieces) => {
          for (const { state, layouts } of parts)
            layouts.find(({ name }) => name === group)?.scatter(state, index, pieces);
        },
      }));
    } catch (thrown) {
      // Room that was laid out and not filled must not be stored by close().
      for (const { state } of parts) state.truncate(0);
      throw thrown;
    }
    const usable = Math.min(columns * columnTokens, most);
    for (const { state, layouts, heldFrom } of parts) {
      state.truncate(usable);
      for (const [index, layout] of layouts.entries()) heldFrom[index] = this.#windowFrom(layout, columns);
    }
    return usable;
  }

  /** The first token that a hit of so many columns brings back in the layers of a layout. */
  #windowFrom({ windowTokens }: PieceLayout, columns: number): number {
    if (windowTokens === undefined) return 0;
    const { columnTokens } = this.host;
    return Math.max(0, columns - Math.ceil(windowTokens / columnTokens)) * columnTokens;
  }

  /**
   * Computes tokens up to `end`, in chunks that end at multiples of the chunk size: so a prompt of which a part was cached goes
   * through the same chunks as one that was not, from the next boundary on.
   */
  async #compute(
    { model, state }: Part,
    end: number,
    wanted: 'none' | 'last',
    signal?: AbortSignal,
  ): Promise<Float32Array> {
    const { prefillChunkTokens } = this.host;
    state.reserve(end);
    for (;;) {
      signal?.throwIfAborted();
      const { length } = state;
      const to = Math.min(end, (Math.floor(length / prefillChunkTokens) + 1) * prefillChunkTokens);
      const logits = await model.run(state, this.#tokens.subarray(length, to), to === end ? wanted : 'none');
      if (to === end) return logits;
    }
  }

  /** Tokens that the draft expects behind the others. */
  #propose(draft: Part, count: number): Promise<Uint32Array> {
    return this.#withDraft(async () => {
      const proposals = new Uint32Array(count);
      let logits = await this.#compute(draft, this.#count, 'last');
      for (let index = 0; index < count; index += 1) {
        proposals[index] = greedy(logits);
        if (index < count - 1)
          logits = await draft.model.run(draft.state, proposals.subarray(index, index + 1), 'last');
      }
      return proposals;
    });
  }

  /** The draft computes what the target has: a column is stored when both have it. */
  #catchUp(draft: Part): Promise<void> {
    return this.#withDraft(async () => {
      // While the target speculates it has rows for proposals, which are not among the tokens.
      const length = Math.min(this.length, this.#count);
      if (draft.state.length < length) await this.#compute(draft, length, 'none');
    });
  }

  /** Proposing and catching up take turns. */
  #withDraft<Result>(work: () => Promise<Result>): Promise<Result> {
    const result = this.#draftTurn.then(work);
    this.#draftTurn = result.catch(() => undefined);
    return result;
  }

  #append(tokens: Uint32Array): void {
    const count = this.#count + tokens.length;
    if (count > this.#tokens.length) this.#tokens = enlarged(this.#tokens, 2 * count);
    this.#tokens.set(tokens, this.#count);
    this.#count = count;
  }

  /** Stores full columns in the background, unless that is going on: then when it has ended. */
  #storeSoon(): void {
    const columns = Math.floor(this.length / this.host.columnTokens);
    if (this.#storing || columns <= this.#askedColumns) return;
    this.#askedColumns = columns;
    this.#storing = this.#store()
      .catch((thrown) => {
        // The driver was closed meanwhile: nothing is stored any more.
        if (!(thrown instanceof KvssError && thrown.code === 'KVSS_CLOSED')) this.#failure ??= thrown;
      })
      .finally(() => {
        this.#storing = undefined;
        this.#storeSoon();
      });
  }

  async #store(): Promise<void> {
    // Whoever waits for a token gets it first.
    await new Promise((resolve) => setImmediate(resolve));
    if (this.#draft) await this.#catchUp(this.#draft);
    await this.sequence.evict(this.#source);
  }

  readonly #source: PieceSource = {
    write: ({ group, index }: ColumnRef, pieces: readonly Uint8Array[]) => {
      const from = index * this.host.columnTokens;
      for (const { state, layouts, heldFrom } of this.#parts()) {
        const at = layouts.findIndex(({ name }) => name === group);
        const layout = layouts[at];
        if (!layout) continue;
        if (from < (heldFrom[at] as number) || from + this.host.columnTokens > state.length) return false;
        layout.gather(state, index, pieces);
        return true;
      }
      return false;
    },
  };
}
