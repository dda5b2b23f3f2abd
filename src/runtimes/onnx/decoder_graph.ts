import type { InferenceSession } from 'onnxruntime-node';
import { localError } from '../../common/errors.js';

/** Types that keys and values may have. onnxruntime-node has no bfloat16 tensors. */
export type KvDtype = 'fp32' | 'fp16';

const KV_DTYPES: ReadonlyMap<string, KvDtype> = new Map([
  ['float32', 'fp32'],
  ['float16', 'fp16'],
]);
export const BYTES_OF: Readonly<Record<KvDtype, number>> = { fp32: 4, fp16: 2 };

/** Type of numbers that stand for tokens and positions. */
export type IndexType = 'int64' | 'int32';

/** The keys or the values of one layer: a tensor of the shape [batch, heads, tokens, dim]. */
export interface Plane {
  /** Number of the layer, from 0. */
  readonly layer: number;
  readonly kind: 'key' | 'value';
  /** Heads of keys and values, which may be fewer than those of the queries (GQA). */
  readonly heads: number;
  readonly dim: number;
  /** Bytes that one token takes in one head. */
  readonly rowBytes: number;
  readonly pastName: string;
  readonly presentName: string;
}

/** What a graph wants to be fed besides the planes; undefined for what it does not ask for. */
export interface DecoderInputs {
  readonly inputIds: { readonly type: IndexType };
  readonly attentionMask: { readonly type: IndexType } | undefined;
  readonly positionIds: { readonly type: IndexType } | undefined;
  /** Rank of the number of last positions whose logits are wanted. */
  readonly logitsToKeep: { readonly name: string; readonly type: IndexType; readonly rank: number } | undefined;
  /** A merged decoder has a branch with a past, which is taken always. */
  readonly useCacheBranch: boolean;
}

/** A decoder with past and present keys and values, as its graph describes itself. */
export interface DecoderGraph {
  readonly layers: number;
  /** Keys and values of layer 0, of layer 1, and so on. */
  readonly planes: readonly Plane[];
  readonly dtype: KvDtype;
  /** Type of the logits, [batch, tokens, vocabulary]. */
  readonly logitsType: 'float32' | 'float16';
  readonly vocabularySize: number;
  readonly inputs: DecoderInputs;
}

/** What is read of a session; tests need not load a model for it. */
export type GraphMetadata = Pick<InferenceSession, 'inputMetadata' | 'outputMetadata'>;
type TensorMetadata = InferenceSession.TensorValueMetadata;

const PAST = /^past_key_values\.(\d+)\.(key|value)$/;
const LOGITS_TO_KEEP = ['num_logits_to_keep', 'logits_to_keep'];
const LOGITS = 'logits';

/**
 * Reads the inputs and outputs of a decoder of the usual form, as `optimum` and the model builder of `onnxruntime-genai` export it:
 * `input_ids`, `attention_mask`, where wanted `position_ids`, `past_key_values.N.key` and `.value` of the shape
 * [batch, heads, past, dim], and `logits`, `present.N.key` and `.value`. Heads have to be a number in the graph; where dim is none,
 * as in graphs whose cache may be quantised, it is `headDim`.
 *
 * Throws KVSS_BAD_INPUT that names the input or output that is missing, that has a form of its own, or that nobody here can
 * feed: encoder-decoder models, quantised caches, and graphs without a past.
 */
export function readDecoderGraph({ inputMetadata, outputMetadata }: GraphMetadata, headDim?: number): DecoderGraph {
  const outputs = new Map(outputMetadata.map((output) => [output.name, output]));
  const others = new Map<string, TensorMetadata>();
  const pasts = new Map<string, TensorMetadata>();
  for (const input of inputMetadata) {
    if (!input.isTensor) throw bad(input.name, 'is no tensor');
    (PAST.test(input.name) ? pasts : others).set(input.name, input);
  }
  if (pasts.size === 0) {
    throw bad('past_key_values.0.key', 'missing: the decoder has to be exported with past keys and values');
  }
  const layers = 1 + Math.max(...[...pasts.keys()].map((name) => Number(PAST.exec(name)?.[1])));
  const planes: Plane[] = [];
  const types = new Set<KvDtype>();
  for (let layer = 0; layer < layers; layer += 1) {
    for (const kind of ['key', 'value'] as const) {
      const pastName = `past_key_values.${layer}.${kind}`;
      const presentName = `present.${layer}.${kind}`;
      const past = pasts.get(pastName);
      if (!past) throw bad(pastName, 'missing, yet there are later layers');
      const present = outputs.get(presentName);
      if (!present?.isTensor) throw bad(presentName, 'missing among the outputs');
      const dtype = KV_DTYPES.get(past.type);
      if (!dtype) throw bad(pastName, `keys and values of the type ${past.type}; float32 and float16 are possible`);
      if (present.type !== past.type) throw bad(presentName, `is ${present.type}, the past is ${past.type}`);
      const [heads, dim] = headsAndDim(past, headDim);
      const [, presentHeads = heads, , presentDim = dim] = present.shape;
      // Graphs may leave sizes of outputs open.
      if ((isNumber(presentHeads) && presentHeads !== heads) || (isNumber(presentDim) && presentDim !== dim)) {
        throw bad(presentName, `has the shape [${present.shape.join(', ')}], the past has [${heads}, ${dim}]`);
      }
      types.add(dtype);
      planes.push({ layer, kind, heads, dim, rowBytes: dim * BYTES_OF[dtype], pastName, presentName });
    }
  }
  const [dtype, ...more] = types;
  if (!dtype || more.length > 0) throw bad('past_key_values', 'some are float32 and some float16');
  const logits = outputs.get(LOGITS);
  if (!logits?.isTensor) throw bad(LOGITS, 'missing among the outputs');
  if (logits.type !== 'float32' && logits.type !== 'float16') throw bad(LOGITS, `is ${logits.type}`);
  const vocabularySize = logits.shape[2];
  if (typeof vocabularySize !== 'number') {
    throw bad(LOGITS, `has the shape [${logits.shape.join(', ')}]; the last of three has to be the vocabulary's size`);
  }
  return { layers, planes, dtype, logitsType: logits.type, vocabularySize, inputs: inputsOf(others) };
}

const isNumber = (size: number | string) => typeof size === 'number';

function headsAndDim({ name, shape }: TensorMetadata, headDim?: number): readonly [heads: number, dim: number] {
  const [, heads, , said] = shape;
  const wrong = (what: string) => bad(name, `has the shape [${shape.join(', ')}], ${what}`);
  if (shape.length !== 4 || typeof heads !== 'number') {
    throw wrong('not [batch, heads, tokens, dim] with a number of heads');
  }
  const dim = typeof said === 'string' ? headDim : said;
  if (dim === undefined) throw wrong(`which does not say how long a head is ('${said}'): give the model's config.json`);
  return [heads, dim];
}

function inputsOf(others: ReadonlyMap<string, TensorMetadata>): DecoderInputs {
  const known = new Set(['input_ids', 'attention_mask', 'position_ids', 'use_cache_branch', ...LOGITS_TO_KEEP]);
  const unknown = [...others.keys()].find((name) => !known.has(name));
  if (unknown !== undefined) throw bad(unknown, 'nobody knows here what to feed it');
  const index = (name: string) => {
    const input = others.get(name);
    if (!input) return undefined;
    if (input.type !== 'int64' && input.type !== 'int32') throw bad(name, `is ${input.type}, not int64 or int32`);
    return { name, type: input.type, rank: input.shape.length };
  };
  const inputIds = index('input_ids');
  if (!inputIds) throw bad('input_ids', 'missing');
  return {
    inputIds,
    attentionMask: index('attention_mask'),
    positionIds: index('position_ids'),
    logitsToKeep: LOGITS_TO_KEEP.map(index).find((input) => input !== undefined),
    useCacheBranch: others.has('use_cache_branch'),
  };
}

function bad(name: string, what: string) {
  return localError('KVSS_BAD_INPUT', `model: '${name}': ${what}`);
}
