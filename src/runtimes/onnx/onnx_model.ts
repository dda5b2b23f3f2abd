import { type InferenceSession, Tensor } from 'onnxruntime-node';
import { localError, messageOf } from '../../common/errors.js';
import { fromFloat16Array, toFloat16Bits } from '../../common/float16.js';
import { type DecoderGraph, type IndexType, type KvDtype, readDecoderGraph } from './decoder_graph.js';
import { KvState } from './kv_state.js';

/** Which logits of a run are wanted. */
export type WantedLogits = 'none' | 'last' | 'all';

/** States that are kept for the next sequences: fresh memory costs more than filling it. */
const MOST_IDLE_STATES = 4;
const NO_LOGITS = new Float32Array(0);
/** Errors that a probe provokes are not for the log: 4 is fatal. */
const QUIET = { logSeverityLevel: 4 } as const;

/**
 * A decoder in an InferenceSession: runs tokens behind the state of a sequence. Runs of several sequences take turns, in the
 * order in which they are asked for. ONNX Runtime for Node computes on the thread that calls it: a run keeps the event loop.
 */
export class OnnxModel {
  readonly #idle: KvState[] = [];
  #turn: Promise<unknown> = Promise.resolve();
  /** Ones, as many as the longest sequence so far: every token of a sequence is seen. */
  #ones: BigInt64Array | Int32Array = new BigInt64Array(0);
  #logits: Float32Array | Uint16Array = NO_LOGITS;

  private constructor(
    private readonly session: InferenceSession,
    readonly graph: DecoderGraph,
    /** Whether the graph appends to its past in place, so that past and present are the same memory. */
    readonly sharesState: boolean,
  ) {}

  /**
   * A model over a session. `sharesState`: whether the graph appends in place; tried with one token if left out. `headDim`: for
   * graphs that do not say it. Rejects with KVSS_BAD_INPUT where it is no decoder with past keys and values, or does not run.
   */
  static async create(
    session: InferenceSession,
    { sharesState, headDim }: { sharesState?: boolean; headDim?: number | undefined } = {},
  ): Promise<OnnxModel> {
    const graph = readDecoderGraph(session, headDim);
    return new OnnxModel(session, graph, sharesState ?? (await OnnxModel.#appendsInPlace(session, graph)));
  }

  /**
   * Whether a graph appends to its past in place. With one token, and wider memory as past and present at once, a graph that does
   * writes the first row; one that appends with Concat wants to write something longer, and fails.
   */
  static async #appendsInPlace(session: InferenceSession, graph: DecoderGraph): Promise<boolean> {
    const attempt = async (sharesState: boolean) => {
      const model = new OnnxModel(session, graph, sharesState);
      const state = new KvState(graph, sharesState);
      await model.#run(state, Uint32Array.of(0), 'last', QUIET);
      const inPlace = graph.planes.every((_, plane) =>
        state.rows(plane, 0, 1, state.capacity).every((byte) => byte === 0),
      );
      // There are exports that begin with a prompt, and then only go on token by token, or not at all.
      await model.#run(state, Uint32Array.of(0, 0), 'last', QUIET);
      return inPlace;
    };
    try {
      if (await attempt(true)) return true;
    } catch {
      // Then it has to run without.
    }
    try {
      await attempt(false);
      return false;
    } catch (thrown) {
      const cause = `model: it does not run one token and then two behind it: ${messageOf(thrown)}`;
      throw localError('KVSS_BAD_INPUT', cause, thrown);
    }
  }

  /**
   * Whether any of these layers looks further back than the newest `tokens` tokens, its own included. Tried with one token behind
   * as many: a value in front of them must not change its logits.
   */
  async looksBeyond(layers: readonly number[], tokens: number): Promise<boolean> {
    const state = new KvState(this.graph, this.sharesState);
    // All keys are zero, so that whatever is seen has the same weight.
    state.layOut(tokens);
    const expected = await this.run(state, Uint32Array.of(0), 'last');
    state.truncate(tokens);
    for (const [index, plane] of this.graph.planes.entries()) {
      if (plane.kind === 'key' || !layers.includes(plane.layer)) continue;
      for (let head = 0; head < plane.heads; head += 1) fill(state.rows(index, head, 0, 1), this.graph.dtype);
    }
    const logits = await this.run(state, Uint32Array.of(0), 'last');
    return logits.some((logit, token) => !Object.is(logit, expected[token]));
  }

  /** Empty memory for a sequence of so many tokens; it grows where that is not enough. */
  takeState(tokens: number): KvState {
    const state = this.#idle.pop() ?? new KvState(this.graph, this.sharesState);
    state.reset(tokens);
    return state;
  }

  /** Gives memory back that nobody uses any more. */
  giveState(state: KvState): void {
    if (this.#idle.length < MOST_IDLE_STATES) this.#idle.push(state);
  }

  /**
   * Computes tokens behind the state, and adds theirs to it. Resolves with logits, [rows, vocabularySize]: none, those behind
   * the last token, or those behind each. Rejects with what ONNX Runtime throws; the state is then what it was.
   */
  run(state: KvState, tokens: Uint32Array, wanted: WantedLogits): Promise<Float32Array> {
    const result = this.#turn.then(() => this.#run(state, tokens, wanted));
    this.#turn = result.catch(() => undefined);
    return result;
  }

  /** Throws KVSS_BAD_INPUT for tokens that the model has not got. */
  checkTokens(tokens: Uint32Array | readonly number[]): void {
    const { vocabularySize } = this.graph;
    const isToken = (token: number) => Number.isInteger(token) && token >= 0 && token < vocabularySize;
    const wrong = tokens.find((token) => !isToken(token));
    if (wrong === undefined) return;
    throw localError('KVSS_BAD_INPUT', `token ${wrong} is not in the model's vocabulary of ${vocabularySize}`);
  }

  async #run(
    state: KvState,
    tokens: Uint32Array,
    wanted: WantedLogits,
    options: InferenceSession.RunOptions = {},
  ): Promise<Float32Array> {
    const { inputs, vocabularySize, logitsType } = this.graph;
    const { length } = tokens;
    const rows = inputs.logitsToKeep && wanted !== 'all' ? 1 : length;
    const { past, present } = state.tensors(length);
    const fetches: Record<string, Tensor> = { ...present };
    const logits = wanted === 'none' ? undefined : this.#logitsOf(rows);
    if (logits) fetches.logits = logits;
    await this.session.run({ ...past, ...this.#indexFeeds(state.length, tokens, rows) }, fetches, options);
    state.commit(length);
    if (!logits) return NO_LOGITS;
    // The memory of the logits is used again by the next run, of whatever sequence. `logits.data` has other numbers of 16 bits
    // where the engine has a Float16Array.
    const all = this.#logits.subarray(0, rows * vocabularySize);
    const kept = wanted === 'all' ? all : all.subarray((rows - 1) * vocabularySize);
    return logitsType === 'float32' ? (kept as Float32Array).slice() : fromFloat16Array(kept as Uint16Array);
  }

  #indexFeeds(past: number, tokens: Uint32Array, rows: number): Record<string, Tensor> {
    const { inputIds, attentionMask, positionIds, logitsToKeep, useCacheBranch } = this.graph.inputs;
    const { length } = tokens;
    const feeds: Record<string, Tensor> = {};
    feeds.input_ids = indexTensor(inputIds.type, [1, length], (at) => tokens[at] as number);
    if (attentionMask) feeds.attention_mask = this.#maskOf(attentionMask.type, past + length);
    if (positionIds) feeds.position_ids = indexTensor(positionIds.type, [1, length], (at) => past + at);
    if (logitsToKeep) {
      feeds[logitsToKeep.name] = indexTensor(logitsToKeep.type, new Array(logitsToKeep.rank).fill(1), () => rows);
    }
    if (useCacheBranch) feeds.use_cache_branch = new Tensor('bool', [true], [1]);
    return feeds;
  }

  #maskOf(type: IndexType, tokens: number): Tensor {
    if (this.#ones.length < tokens) {
      const length = 2 * tokens;
      this.#ones = type === 'int64' ? new BigInt64Array(length).fill(1n) : new Int32Array(length).fill(1);
    }
    return new Tensor(type, this.#ones.subarray(0, tokens) as BigInt64Array, [1, tokens]);
  }

  #logitsOf(rows: number): Tensor {
    const { vocabularySize, logitsType } = this.graph;
    const numbers = rows * vocabularySize;
    if (this.#logits.length < numbers) {
      this.#logits = logitsType === 'float32' ? new Float32Array(numbers) : new Uint16Array(numbers);
    }
    return new Tensor(logitsType, this.#logits.subarray(0, numbers) as Float32Array, [1, rows, vocabularySize]);
  }
}

/** Writes the number 256 all over. */
function fill(bytes: Uint8Array, dtype: KvDtype): void {
  const { buffer, byteOffset, byteLength } = bytes;
  if (dtype === 'fp32') new Float32Array(buffer, byteOffset, byteLength / 4).fill(256);
  else new Uint16Array(buffer, byteOffset, byteLength / 2).fill(toFloat16Bits(256));
}

function indexTensor(type: IndexType, dims: readonly number[], numberAt: (index: number) => number): Tensor {
  const length = dims.reduce((product, dim) => product * dim, 1);
  const data = type === 'int64' ? new BigInt64Array(length) : new Int32Array(length);
  for (let index = 0; index < length; index += 1) {
    const number = numberAt(index);
    data[index] = type === 'int64' ? BigInt(number) : number;
  }
  return new Tensor(type, data as BigInt64Array, dims);
}
