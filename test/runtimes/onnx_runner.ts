import ort from 'onnxruntime-node';
import { fromFloat16Array } from '../../src/common/float16.js';
import type { DemoModelFiles } from '../../src/runtimes/demo_model/generate.js';

export type Tensors = Record<string, ort.Tensor>;

/** Runs a model with ONNX Runtime, straight as its documentation says. */
export class OnnxRunner implements AsyncDisposable {
  private constructor(
    readonly session: ort.InferenceSession,
    readonly files: DemoModelFiles,
  ) {}

  static async open(files: DemoModelFiles, threads = 1): Promise<OnnxRunner> {
    const options = { intraOpNumThreads: threads, interOpNumThreads: 1 };
    return new OnnxRunner(await ort.InferenceSession.create(files.model, options), files);
  }

  /** A cache [batch, heads, pastTokens, head_dim] of zeros for each layer, keys and values. */
  cache(pastTokens = 0, batch = 1): Tensors {
    const { keyValueHeads, headDim, layers, dtype } = this.files.settings;
    const dimensions = [batch, keyValueHeads, pastTokens, headDim];
    const count = dimensions.reduce((product, each) => product * each, 1);
    const tensors: Tensors = {};
    for (let layer = 0; layer < layers; layer += 1) {
      for (const part of ['key', 'value']) {
        tensors[`past_key_values.${layer}.${part}`] =
          dtype === 'fp16'
            ? new ort.Tensor('float16', new Uint16Array(count), dimensions)
            : new ort.Tensor('float32', new Float32Array(count), dimensions);
      }
    }
    return tensors;
  }

  /** The next tokens of a sequence of which `past` has `pastTokens` already. */
  run(
    tokens: readonly number[],
    past: Tensors = this.cache(),
    pastTokens = past['past_key_values.0.key']?.dims[2] ?? 0,
    fetches: ort.InferenceSession.FetchesType = this.session.outputNames,
  ): Promise<Tensors> {
    const mask = new Array<number>(pastTokens + tokens.length).fill(1);
    const positions = tokens.map((_, at) => pastTokens + at);
    return this.runBatch([tokens], [mask], [positions], past, fetches);
  }

  async runBatch(
    tokens: readonly (readonly number[])[],
    mask: readonly (readonly number[])[],
    positions: readonly (readonly number[])[],
    past: Tensors,
    fetches: ort.InferenceSession.FetchesType = this.session.outputNames,
  ): Promise<Tensors> {
    const positioned = this.session.inputNames.includes('position_ids') ? { position_ids: integers(positions) } : {};
    const feeds = { input_ids: integers(tokens), attention_mask: integers(mask), ...positioned, ...past };
    return (await this.session.run(feeds, fetches)) as Tensors;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.session.release();
  }
}

function integers(rows: readonly (readonly number[])[]): ort.Tensor {
  return new ort.Tensor('int64', BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0]?.length ?? 0]);
}

/** What a run has put behind the cache, as the cache of the next one. */
export function cacheOf(outputs: Tensors): Tensors {
  const present = Object.entries(outputs).filter(([name]) => name.startsWith('present.'));
  return Object.fromEntries(present.map(([name, tensor]) => [name.replace('present.', 'past_key_values.'), tensor]));
}

/** The numbers of a tensor of 16 or 32 bits. */
export function numbersOf(tensor: ort.Tensor | undefined): Float32Array {
  if (tensor?.data instanceof Float32Array) return tensor.data;
  return fromFloat16Array(tensor?.data as Uint16Array);
}

/** Rows of the last dimension. */
export function rowsOf(tensor: ort.Tensor | undefined): Float32Array[] {
  const numbers = numbersOf(tensor);
  const width = tensor?.dims.at(-1) ?? 1;
  return Array.from({ length: numbers.length / width }, (_, row) => numbers.subarray(row * width, (row + 1) * width));
}
