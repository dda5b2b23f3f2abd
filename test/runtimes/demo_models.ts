import { readFile } from 'node:fs/promises';
import { type DemoModelOptions, generateDemoModel } from '../../src/runtimes/demo_model/generate.js';
import type { Scratch } from '../e2e/support.js';

/** A decoder that takes no time: what is tested of it does not hang on its size. */
export const TINY = {
  vocabularySize: 512,
  hiddenSize: 64,
  layers: 3,
  heads: 4,
  keyValueHeads: 2,
  headDim: 16,
  intermediateSize: 96,
  maxPositions: 4096,
} as const satisfies DemoModelOptions;

/** Threads of ONNX Runtime spin while they wait, and others share the machine. */
export const SESSION_OPTIONS = { intraOpNumThreads: 1 };

/** A model as OnnxDecoder.create wants it. */
export interface TinyModel {
  readonly model: string;
  readonly config: unknown;
}

/** Makes models in a directory, each once. */
export class TinyModels {
  constructor(private readonly scratch: Scratch) {}

  async make(options: DemoModelOptions = {}): Promise<TinyModel & { readonly draft: TinyModel | undefined }> {
    const name = JSON.stringify(options).replaceAll(/\W+/g, '_');
    const files = await generateDemoModel(this.scratch.file(`model${name}`), { ...TINY, ...options });
    const read = async ({ model, config }: { model: string; config: string }): Promise<TinyModel> => ({
      model,
      config: JSON.parse(await readFile(config, 'utf8')),
    });
    return { ...(await read(files)), draft: files.draft && (await read(files.draft)) };
  }
}
