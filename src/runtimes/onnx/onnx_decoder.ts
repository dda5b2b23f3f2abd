import { InferenceSession } from 'onnxruntime-node';
import { z } from 'zod';
import { localError, messageOf } from '../../common/errors.js';
import { connectorFor } from '../../links/connect.js';
import { shardCountOf } from '../../links/shard_count.js';
import { checkKeys } from '../../swdriver/driver_options.js';
import { NESTED_KEYS } from '../../swdriver/hf_config.js';
import { DEFAULT_COLUMN_TOKENS } from '../../swdriver/model.js';
import { describeModel } from '../../swdriver/model_config.js';
import { SwDriver, type SwDriverOptions } from '../../swdriver/sw_driver.js';
import type { DecoderGraph } from './decoder_graph.js';
import { checkGenerateOptions, type GenerateOptions, Generation } from './generation.js';
import { OnnxModel } from './onnx_model.js';
import { type CachedModel, OnnxSequence, type SequenceHost } from './onnx_sequence.js';
import { checkShards, type DecoderLayers, PieceLayout } from './piece_layout.js';
import { revisionOfFile } from './revision.js';

/** A decoder, and what its graph does not say of it. */
export interface OnnxModelOptions {
  /** Path of an ONNX file, or a session that its owner releases. */
  model: string | InferenceSession;
  /**
   * Revision of the weights. For a path the hash of its files if left out, which reads all of them; for a session it has to be
   * given.
   */
  revision?: string;
  /**
   * The parsed config.json beside the model. It says which layers slide, and the longest context; without it every layer
   * sees all tokens. Needed for graphs that do not say how long a head is.
   */
  config?: unknown;
  /** For models that are given by a path. */
  sessionOptions?: InferenceSession.SessionOptions;
  /**
   * Whether the graph appends to its past in place (`past_present_share_buffer` of onnxruntime-genai). Found out with one token
   * if left out.
   */
  sharesState?: boolean;
}

/** What of SwDriverOptions the decoder does not decide itself. */
export type OnnxDriverOptions = Omit<SwDriverOptions, 'daemons' | 'model' | 'memory' | 'carrier'>;

/** How a decoder with a cache is made. `model`, `id` and `daemons` have to be given. */
export interface OnnxDecoderOptions extends OnnxModelOptions {
  /** Name of the model: columns of models of other names are never found. */
  id: string;
  /** Where the daemons are; see SwDriverOptions. */
  daemons: readonly string[];
  /** A smaller model with the same vocabulary, for `speculate`. Its state is cached with the target's. */
  draft?: OnnxModelOptions;
  /** Options of the driver. With `resume` the decoder finds what an earlier process with the same key has left. */
  driver?: OnnxDriverOptions;
  /**
   * Shares of the model for the shards of a stripe, in their order. Equal if left out, and as many as the daemons say; needed
   * for a `lazy` start, where they may not be there.
   */
  shares?: readonly number[];
  /** Tokens that are computed in one run of a prefill; a multiple of the column's. 512 if left out. */
  prefillChunkTokens?: number;
}

const MODEL_OPTIONS: Readonly<Record<keyof OnnxModelOptions, true>> = {
  model: true,
  revision: true,
  config: true,
  sessionOptions: true,
  sharesState: true,
};
const OPTIONS: Readonly<Record<keyof OnnxDecoderOptions, true>> = {
  ...MODEL_OPTIONS,
  id: true,
  daemons: true,
  draft: true,
  driver: true,
  shares: true,
  prefillChunkTokens: true,
};

/** What the decoder decides itself. */
const NOT_OF_DRIVER = ['daemons', 'model', 'memory', 'carrier'] as const;

/** How the bytes of a piece lie: heads of keys and values, each [columnTokens, dim]; see PieceLayout. */
const LAYOUT = 'onnx/heads-tokens-dim/1';
const PREFILL_CHUNK_TOKENS = 512;
const objectSchema = z.looseObject({});
const CONNECT_DEADLINE_MS = 5_000;

/** A session, and whether it is ours to release. */
interface LoadedModel {
  readonly model: OnnxModel;
  readonly layers: readonly DecoderLayers[];
  readonly revision: string;
  readonly contextTokens: number;
  release(): Promise<void>;
}

/**
 * A decoder in ONNX Runtime whose attention state is cached: prompts that begin like earlier ones, of this process or of one
 * before it, are computed from where they differ. The model is any export of the usual form, with keys and values in 32 or 16 bits.
 *
 * Copies of a token's state that remain: from a slot into the past (a tensor has all tokens of a head in one run, a column
 * 64 of them), from the present into a slot, what the graph itself copies (nothing where it appends in place, all of the past
 * in every run where it appends with Concat), and what the binding of ONNX Runtime does: it copies every output once more.
 */
export class OnnxDecoder implements AsyncDisposable {
  readonly #sequences = new Set<OnnxSequence>();
  #closed: Promise<void> | undefined;

  private constructor(
    /** The driver: its report, its figures, its policies. */
    readonly driver: SwDriver,
    private readonly host: SequenceHost,
    private readonly models: readonly LoadedModel[],
  ) {}

  /**
   * Loads the model and connects to the daemons. Rejects with KVSS_BAD_INPUT that names what is wrong with an option, the
   * graph or its config.json, and as SwDriver.connect does.
   */
  static async create(options: OnnxDecoderOptions): Promise<OnnxDecoder> {
    checkOptions(options);
    const { daemons, id, driver: driverOptions = {}, prefillChunkTokens = PREFILL_CHUNK_TOKENS } = options;
    const columnTokens = DEFAULT_COLUMN_TOKENS;
    const models: LoadedModel[] = [];
    try {
      const target = await load(options);
      models.push(target);
      const draft = options.draft && (await load(options.draft));
      if (draft) models.push(draft);
      checkDraft(target, draft);
      const shares = options.shares ?? (await equalShares(daemons, driverOptions));
      const cached = ({ model, layers }: LoadedModel, prefix: string): CachedModel => ({
        model,
        layouts: layers.map(
          (group) =>
            new PieceLayout(model.graph, { ...group, name: prefixed(prefix, group.name) }, shares, columnTokens),
        ),
      });
      const host: SequenceHost = {
        target: cached(target, ''),
        draft: draft && cached(draft, 'draft'),
        columnTokens,
        prefillChunkTokens,
        contextTokens: Math.min(...models.map(({ contextTokens }) => contextTokens)),
      };
      const layouts = [...host.target.layouts, ...(host.draft?.layouts ?? [])];
      checkShards(layouts, shares.length);
      const connect = driverOptions.resume ? SwDriver.resume : SwDriver.connect;
      const driver = await connect({
        ...driverOptions,
        daemons,
        model: {
          id,
          revision: revisionOf(models),
          dtype: models.map(({ model }) => model.graph.dtype).join('+'),
          layout: layoutOf(models),
          groups: layouts.map(({ group }) => group),
          columnTokens,
        },
      });
      return new OnnxDecoder(driver, host, models);
    } catch (thrown) {
      await Promise.all(models.map((model) => model.release()));
      throw thrown;
    }
  }

  /** Size of the vocabulary. */
  get vocabularySize(): number {
    return this.host.target.model.graph.vocabularySize;
  }

  /** Longest sequence that the model can take; infinite where nothing says so. */
  get contextTokens(): number {
    return this.host.contextTokens;
  }

  /** Whether there is a draft, so that sequences can speculate. */
  get speculates(): boolean {
    return this.host.draft !== undefined;
  }

  /** Bytes that a token takes in the store, on all shards of a stripe and in all groups. */
  get bytesPerToken(): number {
    const { target, draft } = this.host;
    const layouts = [...target.layouts, ...(draft?.layouts ?? [])];
    return layouts.reduce((sum, { bytesPerToken }) => sum + bytesPerToken.reduce((a, b) => a + b, 0), 0);
  }

  /**
   * Begins a sequence of a tenant. `adapter`: other weights on top, such as a LoRA in the session, share nothing. Throws
   * KVSS_BAD_INPUT without an isolationId, and KVSS_CLOSED after close().
   */
  openSequence(owner: { isolationId: string; adapter?: string }): OnnxSequence {
    if (this.#closed) throw localError('KVSS_CLOSED', 'the decoder has been closed');
    const sequence = new OnnxSequence(this.host, this.driver.openSequence(owner), (closed) =>
      this.#sequences.delete(closed),
    );
    this.#sequences.add(sequence);
    return sequence;
  }

  /**
   * Computes a prompt and then token after token: iterate over what it answers. With a draft it speculates. See Generation for
   * what else it says. Throws KVSS_BAD_INPUT for options that make no sense; what is wrong with the prompt iterating says.
   */
  generate(prompt: Uint32Array, options: GenerateOptions): Generation {
    checkGenerateOptions(options);
    const { isolationId, adapter } = options;
    return new Generation(
      () => this.openSequence({ isolationId, ...(adapter === undefined ? {} : { adapter }) }),
      prompt,
      options,
      this.speculates,
    );
  }

  /**
   * Ends all sequences, stores what is full, and releases what `create` loaded. Generations that go on reject with KVSS_CLOSED.
   * `park`: leaves the columns for the next process with the same `resume.key`; see SwDriver.close.
   */
  close(options: { park?: boolean } = {}): Promise<void> {
    this.#closed ??= this.#close(options);
    return this.#closed;
  }

  async #close(options: { park?: boolean }): Promise<void> {
    const ended = await Promise.allSettled([...this.#sequences].map((sequence) => sequence.close()));
    await this.driver.close(options);
    await Promise.all(this.models.map((model) => model.release()));
    const failed = ended.find((outcome) => outcome.status === 'rejected');
    if (failed) throw failed.reason;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Throws KVSS_BAD_INPUT for options that make no sense, with the name of the key. */
function checkOptions(options: OnnxDecoderOptions): void {
  const bad = (message: string) => localError('KVSS_BAD_INPUT', message);
  checkKeys(options, OPTIONS, 'options');
  const { daemons, id, driver, shares, prefillChunkTokens = PREFILL_CHUNK_TOKENS } = options;
  if (typeof id !== 'string' || id === '') throw bad('id: a name of the model is needed');
  if (!Array.isArray(daemons) || daemons.length === 0) throw bad('daemons: a list of addresses is needed');
  checkModel(options, 'options', '');
  if (options.draft !== undefined) {
    checkKeys(options.draft, MODEL_OPTIONS, 'options.draft');
    checkModel(options.draft, 'options.draft', 'draft.');
  }
  const given = NOT_OF_DRIVER.find((key) => Reflect.has(driver ?? {}, key));
  if (given) throw bad(`driver.${given}: the decoder decides it itself`);
  if (shares !== undefined && !(Array.isArray(shares) && shares.length > 0 && shares.every((share) => share > 0))) {
    throw bad('shares: a list of numbers above 0 is needed, one for each shard');
  }
  if (!(prefillChunkTokens > 0 && prefillChunkTokens % DEFAULT_COLUMN_TOKENS === 0)) {
    throw bad(
      `prefillChunkTokens: ${prefillChunkTokens} is no multiple of the ${DEFAULT_COLUMN_TOKENS} tokens of a column`,
    );
  }
}

function checkModel({ model, revision, sessionOptions }: OnnxModelOptions, source: string, prefix: string): void {
  const bad = (key: string, message: string) => localError('KVSS_BAD_INPUT', `${prefix}${key}: ${message}`);
  if (typeof model !== 'string' && !Array.isArray(model?.inputMetadata)) {
    throw bad('model', `the path of an ONNX file or an InferenceSession is needed in ${source}`);
  }
  if (revision !== undefined && (typeof revision !== 'string' || revision === '')) {
    throw bad('revision', 'must not be empty');
  }
  if (revision !== undefined) return;
  if (typeof model !== 'string') {
    throw bad('revision', 'a session does not say which weights it has: give a revision');
  }
  if (sessionOptions?.externalData) {
    throw bad('revision', 'with weights in sessionOptions.externalData the files do not say it: give a revision');
  }
}

/** Of target and draft: no other two make the same. */
function revisionOf(models: readonly LoadedModel[]): string {
  const [revision = '', ...more] = models.map(({ revision }) => revision);
  return more.length === 0 ? revision : JSON.stringify([revision, ...more]);
}

/** Which layers a group has is said by the config.json alone: with another one the same bytes are others' state. */
function layoutOf(models: readonly LoadedModel[]): string {
  const groups = models.map(({ layers }) => layers.map(({ name, layers }) => `${name}:${layers}`).join(';'));
  return [LAYOUT, ...groups].join(' ');
}

async function load(options: OnnxModelOptions): Promise<LoadedModel> {
  const { model: given, config, sharesState } = options;
  const path = typeof given === 'string' ? given : undefined;
  const revision = options.revision ?? (await revisionOfFile(path as string));
  const session = typeof given === 'string' ? await openSession(given, options.sessionOptions) : given;
  const release = async () => (path === undefined ? undefined : session.release());
  try {
    const model = await OnnxModel.create(session, {
      ...(sharesState === undefined ? {} : { sharesState }),
      headDim: headDimOf(config),
    });
    const layers = layersOf(model.graph, config);
    const contextTokens = contextOf(config);
    await checkWindows(model, layers, contextTokens);
    return { model, layers, revision, contextTokens, release };
  } catch (thrown) {
    await release();
    throw thrown;
  }
}

async function openSession(path: string, options: InferenceSession.SessionOptions = {}): Promise<InferenceSession> {
  try {
    return await InferenceSession.create(path, options);
  } catch (thrown) {
    throw localError('KVSS_BAD_INPUT', `model: ONNX Runtime cannot load ${path}: ${messageOf(thrown)}`, thrown);
  }
}

/** How long a key or a value of one head is, as far as a config says it. */
export function headDimOf(config: unknown): number | undefined {
  if (config === undefined) return undefined;
  // Of which type its numbers are does not matter.
  const [group] = describeModel(config, { dtype: 'fp32' }).groups;
  // A latent has no heads of keys and values.
  if (group?.queryHeadsPerHead === undefined) return undefined;
  return group.bytesPerTokenPerLayer / (2 * group.headsPerLayer * group.bytesPerNumber);
}

/** Groups of layers: by the config, which has to be that of the graph. */
function layersOf(graph: DecoderGraph, config: unknown): DecoderLayers[] {
  if (config === undefined) {
    return [{ name: 'full', layers: Array.from({ length: graph.layers }, (_, layer) => layer) }];
  }
  const { groups } = describeModel(config, { dtype: graph.dtype });
  const described = groups.flatMap(({ layers }) => layers);
  if (described.length !== graph.layers) {
    throw bad(`has ${described.length} layers, the graph has ${graph.layers}`);
  }
  for (const { layers, bytesPerTokenPerLayer } of groups) {
    for (const layer of layers) {
      const planes = graph.planes.filter((plane) => plane.layer === layer);
      const bytes = planes.reduce((sum, { heads, rowBytes }) => sum + heads * rowBytes, 0);
      if (bytes === bytesPerTokenPerLayer) continue;
      throw bad(`layer ${layer} takes ${bytesPerTokenPerLayer} bytes a token, in the graph it is ${bytes}`);
    }
  }
  return groups.map(({ name, layers, windowTokens }) => ({
    name,
    layers,
    ...(windowTokens === undefined ? {} : { windowTokens }),
  }));

  function bad(what: string) {
    return localError('KVSS_BAD_INPUT', `config.json: it is not the one of the model: ${what}`);
  }
}

/**
 * Throws KVSS_BAD_INPUT where the graph looks further back than the config says: exporters leave windows out, and what lies before a
 * window is not brought back.
 */
async function checkWindows(model: OnnxModel, layers: readonly DecoderLayers[], contextTokens: number): Promise<void> {
  for (const group of layers) {
    const { windowTokens } = group;
    // A window that no sequence outgrows leaves nothing out.
    if (windowTokens === undefined || windowTokens >= contextTokens) continue;
    if (!(await model.looksBeyond(group.layers, windowTokens))) continue;
    throw localError(
      'KVSS_BAD_INPUT',
      `config.json: says that layers ${group.layers} see ${windowTokens} tokens, and in the graph they see more: ` +
        "it was exported without the window; set 'sliding_window' to null, and 'layer_types' if there are any",
    );
  }
}

/** Of the language model, where the config is that of a multimodal one. */
function contextOf(config: unknown): number {
  const outer = objectSchema.safeParse(config).data ?? {};
  const inner = NESTED_KEYS.map((key) => objectSchema.safeParse(outer[key]).data).find((nested) => nested);
  const most = (inner ?? outer).max_position_embeddings;
  return typeof most === 'number' && most > 0 ? most : Number.POSITIVE_INFINITY;
}

/** Names of groups as describeModel gives them to those of a draft. */
function prefixed(prefix: string, name: string): string {
  if (prefix === '') return name;
  return name === 'full' ? prefix : `${prefix}_${name}`;
}

function checkDraft(target: LoadedModel, draft: LoadedModel | undefined): void {
  if (!draft) return;
  const sizes = [target, draft].map(({ model }) => model.graph.vocabularySize);
  if (sizes[0] === sizes[1]) return;
  throw localError(
    'KVSS_BAD_INPUT',
    `draft: it has a vocabulary of ${sizes[1]}, the target one of ${sizes[0]}; they have to be the same`,
  );
}

/** As many equal shares as a stripe has shards. */
async function equalShares(daemons: readonly string[], options: OnnxDriverOptions): Promise<number[]> {
  const { wioStreams = 1, placeBytes = 0, checksums = false, token, striping } = options;
  const connector =
    options.connector ?? connectorFor({ wioStreams, placeBytes, checksums, ...(token === undefined ? {} : { token }) });
  const deadlineMs = options.connectDeadlineMs ?? CONNECT_DEADLINE_MS;
  // Daemons that hold columns of their own are alike.
  const asked = striping === 'within' ? daemons.slice(0, 1) : daemons;
  const counts = await Promise.all(asked.map((address) => shardCountOf(connector, address, deadlineMs))).catch(
    (thrown) => {
      if (!options.lazy) throw thrown;
      const why = messageOf(thrown);
      throw localError(
        'KVSS_BAD_INPUT',
        `shares: no daemon says how many shards it has, so lazy needs them: ${why}`,
        thrown,
      );
    },
  );
  return new Array(counts.reduce((sum, count) => sum + count, 0)).fill(1);
}
