import { z } from 'zod';
import { localError } from '../../common/errors.js';
import { describeIssue } from '../../common/schema.js';

/** How attention is written down: in plain ONNX operators, or as one operator of ONNX Runtime a layer. */
export type AttentionForm = 'decomposed' | 'fused';
export type ModelType = 'fp32' | 'fp16';

/** The shape of a decoder. */
export interface DemoShape {
  readonly vocabularySize: number;
  readonly hiddenSize: number;
  readonly layers: number;
  /** Query heads. */
  readonly heads: number;
  /** Heads of keys and values; divides `heads`. */
  readonly keyValueHeads: number;
  /** Even: rotary positions turn pairs. */
  readonly headDim: number;
  /** Width of the feed-forward network. */
  readonly intermediateSize: number;
}

const shape = (
  [vocabularySize, hiddenSize, layers]: readonly [number, number, number],
  [heads, keyValueHeads, headDim]: readonly [number, number, number],
  intermediateSize: number,
): DemoShape => ({ vocabularySize, hiddenSize, layers, heads, keyValueHeads, headDim, intermediateSize });

/** Shapes by their number of parameters: 1,049,728, 5,114,112, 25,303,552 and 100,682,496, where the head is not tied. */
export const DEMO_SIZES = {
  '1M': shape([1024, 128, 4], [4, 2, 32], 384),
  '5M': shape([4096, 256, 4], [8, 2, 32], 768),
  '25M': shape([8192, 512, 6], [8, 2, 64], 1408),
  '100M': shape([16384, 768, 12], [12, 4, 64], 2048),
} as const satisfies Record<string, DemoShape>;
export type DemoSize = keyof typeof DEMO_SIZES;
export const DEMO_SIZE_NAMES = Object.keys(DEMO_SIZES) as DemoSize[];

/** What kind of model to make. All keys may be left out. */
export interface DemoModelOptions extends Partial<DemoShape> {
  /** The shape; other keys replace single numbers of it. `1M` if left out. */
  readonly size?: DemoSize;
  /** Type of weights, cache and logits. `fp32` if left out. */
  readonly dtype?: ModelType;
  /** `decomposed` if left out. */
  readonly attention?: AttentionForm;
  /**
   * Layers that see the newest `tokens` tokens only, the own included. Every `pattern`-th layer sees all, the others
   * slide: 2 for every second one, 6 for five of six.
   */
  readonly slidingWindow?: { readonly tokens: number; readonly pattern: number };
  /** The head is the embedding. Not so if left out. */
  readonly tied?: boolean;
  /** Base of the wavelengths of rotary positions. 10,000 if left out. */
  readonly ropeTheta?: number;
  /** Longest sequence; the fused form has tables of this length. 8,192 if left out. */
  readonly maxPositions?: number;
  /** The same seed gives the same bytes. 1 if left out. */
  readonly seed?: number;
  /**
   * Makes a draft model besides, for speculative decoding, and a model that it agrees with often. The draft is the first
   * quarter of the layers with the same embedding and head. Two models with random weights would never agree: what the
   * other layers of the model add is scaled down, so they still change what it says, but not each time.
   */
  readonly draft?: boolean;
}

/** Is added to the mean of squares before its root is taken. */
export const NORM_EPSILON = 1e-5;

/** Everything that decides what is in the files. */
export interface DemoModelSettings extends DemoShape {
  readonly dtype: ModelType;
  readonly attention: AttentionForm;
  /** One for each layer: the tokens that it sees, or null where it sees all. */
  readonly windows: readonly (number | null)[];
  readonly tied: boolean;
  readonly ropeTheta: number;
  readonly maxPositions: number;
  readonly seed: number;
  /** Layers from here on add little; the number of all layers where none does. */
  readonly quietFrom: number;
}

const count = (max: number) => z.number().int().min(1).max(max);
const optionsSchema = z.strictObject({
  size: z.enum(DEMO_SIZE_NAMES).default('1M'),
  vocabularySize: count(2 ** 20).optional(),
  hiddenSize: count(16_384).optional(),
  layers: count(128).optional(),
  heads: count(256).optional(),
  keyValueHeads: count(256).optional(),
  headDim: count(512).multipleOf(2).optional(),
  intermediateSize: count(65_536).optional(),
  dtype: z.enum(['fp32', 'fp16']).default('fp32'),
  attention: z.enum(['decomposed', 'fused']).default('decomposed'),
  slidingWindow: z.strictObject({ tokens: count(2 ** 20), pattern: count(128).min(2) }).optional(),
  tied: z.boolean().default(false),
  ropeTheta: z.number().min(2).max(1e9).default(10_000),
  maxPositions: count(2 ** 20).default(8192),
  seed: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).default(1),
  draft: z.boolean().default(false),
});

/** Of the layers of a model, its draft has the first ones: a quarter. */
const DRAFT_SHARE = 1 / 4;

/**
 * Checks options and completes them. Throws KVSS_BAD_INPUT that names the key.
 */
export function resolveOptions(options: DemoModelOptions): { target: DemoModelSettings; draft?: DemoModelSettings } {
  const result = optionsSchema.safeParse(options);
  if (!result.success) throw localError('KVSS_BAD_INPUT', `demo model: ${describeIssue(result.error)}`);
  const { size, slidingWindow, draft, ...given } = result.data;
  const shaped = { ...DEMO_SIZES[size], ...withoutUndefined(given) };
  const { layers, heads, keyValueHeads } = shaped;
  if (heads % keyValueHeads !== 0) {
    throw localError('KVSS_BAD_INPUT', `demo model: 'keyValueHeads': ${keyValueHeads} does not divide ${heads} heads`);
  }
  if (draft && layers < 2) {
    throw localError('KVSS_BAD_INPUT', `demo model: 'draft': has the first layers of a model, and there is only one`);
  }
  const windows = Array.from({ length: layers }, (_, layer) =>
    slidingWindow === undefined || (layer + 1) % slidingWindow.pattern === 0 ? null : slidingWindow.tokens,
  );
  if (!draft) return { target: { ...shaped, windows, quietFrom: layers } };
  const draftLayers = Math.max(1, Math.round(layers * DRAFT_SHARE));
  const quiet = { ...shaped, quietFrom: draftLayers };
  return {
    target: { ...quiet, windows },
    draft: { ...quiet, layers: draftLayers, windows: windows.slice(0, draftLayers) },
  };
}

/** Numbers in the weights of a model; tables of positions do not count. */
export function parametersOf(settings: DemoModelSettings): number {
  const { vocabularySize, hiddenSize, layers, heads, keyValueHeads, headDim, intermediateSize, tied } = settings;
  const attention = 2 * hiddenSize * headDim * (heads + keyValueHeads);
  const layer = attention + 3 * hiddenSize * intermediateSize + 2 * hiddenSize;
  return (tied ? 1 : 2) * vocabularySize * hiddenSize + layers * layer + hiddenSize;
}

type Defined<Fields> = { [Key in keyof Fields]: Exclude<Fields[Key], undefined> };

function withoutUndefined<Fields extends object>(fields: Fields): Defined<Fields> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Defined<Fields>;
}
