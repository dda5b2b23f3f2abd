import { readFile } from 'node:fs/promises';
import {
  type DemoModelFiles,
  type DemoModelOptions,
  generateDemoModel,
} from '../../src/runtimes/demo_model/generate.js';
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

const made = new Map<string, DemoModelFiles>();

/** All files of a model that was made here. */
export function filesOf(model: string): DemoModelFiles {
  const files = made.get(model);
  if (!files) throw new Error(`nobody has made ${model}`);
  return files;
}

/** Makes models in a directory, each once. */
export class TinyModels {
  constructor(private readonly scratch: Scratch) {}

  async make(options: DemoModelOptions = {}): Promise<TinyModel> {
    return read(await this.#filesOf(options));
  }

  /** A model and one that it agrees with often. */
  async makeWithDraft(options: DemoModelOptions = {}): Promise<{ target: TinyModel; draft: TinyModel }> {
    const files = await this.#filesOf({ layers: 4, ...options, draft: true });
    if (!files.draft) throw new Error('there is no draft');
    return { target: await read(files), draft: await read(files.draft) };
  }

  async #filesOf(options: DemoModelOptions): Promise<DemoModelFiles> {
    const name = JSON.stringify(options).replaceAll(/\W+/g, '_');
    const files = await generateDemoModel(this.scratch.file(`model${name}`), { ...TINY, ...options });
    made.set(files.model, files);
    return files;
  }
}

async function read({ model, config }: DemoModelFiles): Promise<TinyModel> {
  return { model, config: JSON.parse(await readFile(config, 'utf8')) };
}
