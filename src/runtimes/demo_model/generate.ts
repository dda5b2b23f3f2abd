import { randomUUID } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { localError, messageOf } from '../../common/errors.js';
import { buildLlamaGraph } from './llama_graph.js';
import { genaiConfig, huggingFaceConfig } from './model_configs.js';
import { encodeModel } from './onnx_format.js';
import {
  DEMO_SIZES,
  type DemoModelOptions,
  type DemoModelSettings,
  type DemoSize,
  parametersOf,
  resolveOptions,
} from './options.js';
import { writeWeights } from './weights.js';

export { DEMO_SIZES, type DemoModelOptions, type DemoModelSettings, type DemoSize };

const MODEL_FILE = 'model.onnx';
const DATA_FILE = 'model.onnx.data';
const CONFIG_FILE = 'config.json';
/** Says what the model was made of. */
const LABEL_FILE = 'demo_model.json';
const DRAFT_DIRECTORY = 'draft';
/** Rises when the same settings give other bytes. */
const GENERATOR_VERSION = 1;

/** Where a model lies. */
export interface DemoModelFiles {
  readonly directory: string;
  /** The graph. */
  readonly model: string;
  /** The weights, which the graph refers to by the file's name. */
  readonly data: string;
  /** As Hugging Face has it. */
  readonly config: string;
  readonly parameters: number;
  readonly settings: DemoModelSettings;
  readonly draft?: DemoModelFiles;
}

/**
 * Makes a small decoder with random weights, to test and to show what works with any decoder: a Llama (RMSNorm, rotary
 * positions, grouped-query attention, SwiGLU) as exporters write it, `model.onnx` with `model.onnx.data`, and its
 * config.json. Its text means nothing, but its attention is real: what it says hangs on what is in its cache.
 *
 * The same options give the same bytes. `directory` appears when all is written, or not at all; a model that was made
 * there of the same options is left as it is. Its parent has to be there.
 *
 * Rejects with KVSS_BAD_INPUT for options that make no sense, for a directory in which something else is, and where
 * files cannot be written.
 */
export async function generateDemoModel(directory: string, options: DemoModelOptions = {}): Promise<DemoModelFiles> {
  const { target: settings, draft } = resolveOptions(options);
  const target = resolve(directory);
  const made = filesOf(target, settings, draft);
  const label = `${JSON.stringify({ generator: GENERATOR_VERSION, settings, draft }, null, 1)}\n`;
  if (await isThere(target, label)) return made;
  // The same directory, because only a rename within one file system is atomic.
  const prefix = `.${basename(target)}.`;
  const temporary = join(dirname(target), `${prefix}${process.pid}.${randomUUID()}.tmp`);
  try {
    await removeLeftovers(dirname(target), prefix);
    await mkdir(temporary);
    if (draft) await writeModel(join(temporary, DRAFT_DIRECTORY), draft);
    await writeModel(temporary, settings);
    await writeFile(join(temporary, LABEL_FILE), label);
    await rename(temporary, target);
  } catch (thrown) {
    await rm(temporary, { recursive: true, force: true });
    // Somebody else may have been faster.
    if (await isThere(target, label)) return made;
    if (!(thrown instanceof Error && 'syscall' in thrown)) throw thrown;
    throw localError('KVSS_BAD_INPUT', `cannot write a model to ${target}: ${thrown.message}`, thrown);
  }
  return made;
}

function filesOf(directory: string, settings: DemoModelSettings, draft?: DemoModelSettings): DemoModelFiles {
  return {
    directory,
    model: join(directory, MODEL_FILE),
    data: join(directory, DATA_FILE),
    config: join(directory, CONFIG_FILE),
    parameters: parametersOf(settings),
    settings,
    ...(draft === undefined ? {} : { draft: filesOf(join(directory, DRAFT_DIRECTORY), draft) }),
  };
}

async function writeModel(directory: string, settings: DemoModelSettings): Promise<void> {
  await mkdir(directory, { recursive: true });
  const { model, weights } = buildLlamaGraph(settings, DATA_FILE);
  const json = (name: string, value: unknown) =>
    writeFile(join(directory, name), `${JSON.stringify(value, null, 2)}\n`);
  await using data = await open(join(directory, DATA_FILE), 'wx');
  await writeWeights(data, weights, settings.seed);
  await writeFile(join(directory, MODEL_FILE), encodeModel(model));
  await json(CONFIG_FILE, huggingFaceConfig(settings));
  await json('genai_config.json', genaiConfig(settings, MODEL_FILE));
}

/** True where this model is; throws where something else is. */
async function isThere(directory: string, label: string): Promise<boolean> {
  const names = await readdir(directory).catch((thrown: NodeJS.ErrnoException) => {
    if (thrown.code === 'ENOENT') return [];
    throw localError('KVSS_BAD_INPUT', `cannot read ${directory}: ${messageOf(thrown)}`, thrown);
  });
  if (names.length === 0) return false;
  const found = await readFile(join(directory, LABEL_FILE), 'utf8').catch(() => undefined);
  if (found === label) return true;
  const what = found === undefined ? 'something else' : 'a model of other options';
  throw localError('KVSS_BAD_INPUT', `cannot write a model to ${directory}: ${what} is there`);
}

/** Removes what processes that were killed have left of this model. */
async function removeLeftovers(parent: string, prefix: string): Promise<void> {
  for (const name of await readdir(parent)) {
    if (!name.startsWith(prefix) || !name.endsWith('.tmp')) continue;
    const pid = Number(name.slice(prefix.length).split('.')[0]);
    if (Number.isInteger(pid) && pid > 0 && !isAlive(pid)) {
      await rm(join(parent, name), { recursive: true, force: true });
    }
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (thrown) {
    return (thrown as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
