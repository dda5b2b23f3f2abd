import diagnostics from 'node:diagnostics_channel';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { InferenceSession } from 'onnxruntime-node';
import { localError, messageOf } from '../common/errors.js';
import { seededRandom } from '../common/random.js';
import { median } from '../common/statistics.js';
import { formatBytes } from '../common/units.js';
import { type LinkName, startChildDaemon } from '../kvss/child_daemon.js';
import { slotBytesOf } from '../proto/slots.js';
import { type DemoModelOptions, generateDemoModel } from '../runtimes/demo_model/generate.js';
import { headDimOf, OnnxDecoder } from '../runtimes/onnx/onnx_decoder.js';
import { OnnxModel } from '../runtimes/onnx/onnx_model.js';
import { greedy } from '../runtimes/onnx/sampling.js';
import type { MatchMessage } from '../swdriver/accounting/channels.js';

/** What is measured, and how often. */
export interface TtftOptions {
  /** Tokens of the prompts. */
  readonly lengths: readonly number[];
  readonly rounds: number;
  /** Path of an ONNX decoder, with its config.json beside it where it has one; or what demo model to make. */
  readonly model: string | DemoModelOptions;
  readonly prefillChunkTokens: number;
  readonly threads: number;
  readonly link: LinkName;
}

/** Medians over the rounds, for prompts of one length. */
export interface TtftRow {
  promptTokens: number;
  /** What was measured, and how. */
  setting: string;
  /** From the prompt to its first token, with a store in which nothing of it is. */
  coldMs: number;
  /** The same with all of it in the store. */
  cachedMs: number;
  /** coldMs / cachedMs, in the same round. */
  ratio: number;
  /**
   * What a store that is of no use costs a prompt, as a share of `plainMs`: the time that the runtime's thread is busy with
   * looking it up, copying it into slots and hearing of them, and what the daemon computes meanwhile; less what that thread does
   * behind a prefill without a store, which is to collect the runtime's garbage. Measured by itself, because the difference of
   * two prefills is mostly noise.
   */
  noReuseOverhead: number;
  /** The same prefill by the runtime alone. */
  plainMs: number;
  /** coldMs / plainMs, in the same round. */
  coldOverPlain: number;
  /** Tokens of the prompt that came from the store. */
  cachedTokens: number;
  rounds: number;
}

const WARM_UP_PROMPTS = 300;
/** About as long as storing takes. */
const REST_MS = 4;

type Medians = Omit<TtftRow, 'promptTokens' | 'setting' | 'rounds'>;

/** A model on disk, and how to get rid of it. */
interface Files extends AsyncDisposable {
  readonly name: string;
  readonly path: string;
  readonly config: unknown;
}

/** Time to first token, length by length. */
export async function* measureTtft(options: TtftOptions): AsyncGenerator<TtftRow> {
  await using files = await filesOf(options.model);
  const session = await InferenceSession.create(files.path, {
    intraOpNumThreads: options.threads,
    // Threads that spin while they wait take the cores from the store, and from everybody else.
    extra: { session: { intra_op: { allow_spinning: '0' } } },
  }).catch((thrown) => {
    throw localError('KVSS_BAD_INPUT', `cannot load ${files.path}: ${messageOf(thrown)}`, thrown);
  });
  try {
    const model = await OnnxModel.create(session, { headDim: headDimOf(files.config) });
    const columns = Math.ceil(Math.max(...options.lengths) / 64);
    const columnBytes = model.graph.planes.reduce((sum, { heads, rowBytes }) => sum + heads * rowBytes * 64, 0);
    // The prompt of a round, and those before it, which make room.
    const capacityColumns = 3 * columns;
    await using daemon = await startChildDaemon([capacityColumns * slotBytesOf(columnBytes) + 2 ** 22], {
      link: options.link,
    });
    const decoder = await OnnxDecoder.create({
      model: session,
      id: 'bench',
      revision: '1',
      sharesState: model.sharesState,
      daemons: [daemon.streams ?? daemon.socket],
      prefillChunkTokens: options.prefillChunkTokens,
      ...(files.config === undefined ? {} : { config: files.config }),
      driver: { capacityColumns: capacityColumns - 1, deadlineMs: 60_000, connectDeadlineMs: 60_000 },
    });
    try {
      const appends = model.sharesState ? 'in place' : 'by Concat';
      const bytes = formatBytes(decoder.bytesPerToken);
      const setting = `${files.name}, ${bytes} a token, appends ${appends}, ${options.threads} threads, over ${options.link}`;
      await warmUp(decoder);
      for (const promptTokens of options.lengths) {
        const medians = await measureLength(promptTokens, decoder, model, daemon.pid, options);
        yield { promptTokens, setting, ...medians, rounds: options.rounds };
      }
    } finally {
      await decoder.close();
    }
  } finally {
    await session.release();
  }
}

/** A store that has been in use for a while: code that runs for the first times is not compiled as yet. */
async function warmUp({ driver }: OnnxDecoder): Promise<void> {
  for (let prompt = 0; prompt < WARM_UP_PROMPTS; prompt += 1) {
    const sequence = driver.openSequence({ isolationId: 'warm-up' });
    const tokens = Uint32Array.from({ length: 4 * driver.columnTokens }, (_, position) => prompt + position);
    sequence.match(tokens).release();
    await sequence.evict({ write: (_, pieces) => pieces.every((piece) => piece.fill(prompt)) });
    sequence.close();
  }
}

async function measureLength(
  promptTokens: number,
  decoder: OnnxDecoder,
  model: OnnxModel,
  daemonPid: number,
  { rounds, prefillChunkTokens }: TtftOptions,
): Promise<Medians> {
  const measured: Medians[] = [];
  // The first round warms up the memory of the runtime.
  for (let round = -1; round < rounds; round += 1) {
    const random = seededRandom(promptTokens * 1000 + round);
    const prompt = Uint32Array.from({ length: promptTokens }, () => Math.floor(random() * decoder.vocabularySize));
    const plain = () => plainPrefill(model, prompt, prefillChunkTokens);
    const before = round % 2 === 0 ? await plain() : undefined;
    const cold = await prefill(decoder, prompt, daemonPid);
    const cached = await prefill(decoder, prompt, daemonPid);
    const { ms: plainMs, token, restMs } = before ?? (await plain());
    if (cold.token !== token || cached.token !== token) {
      throw new Error(
        `${promptTokens} tokens: the first token is ${token}, with the store ${cold.token}, ${cached.token}`,
      );
    }
    if (cold.cachedTokens > 0) throw new Error('a prompt that is new was found');
    if (round < 0) continue;
    measured.push({
      coldMs: cold.ms,
      cachedMs: cached.ms,
      ratio: cold.ms / cached.ms,
      noReuseOverhead: (cold.matchMs + cold.storeMs - restMs) / plainMs,
      plainMs,
      coldOverPlain: cold.ms / plainMs,
      cachedTokens: cached.cachedTokens,
    });
  }
  const middle = (key: keyof (typeof measured)[number]) => median(measured.map((each) => each[key]));
  return {
    coldMs: middle('coldMs'),
    cachedMs: middle('cachedMs'),
    ratio: middle('ratio'),
    noReuseOverhead: middle('noReuseOverhead'),
    plainMs: middle('plainMs'),
    coldOverPlain: middle('coldOverPlain'),
    cachedTokens: middle('cachedTokens'),
  };
}

/** The chunks of a prefill as the decoder makes them, without a store. */
async function plainPrefill(model: OnnxModel, prompt: Uint32Array, chunkTokens: number) {
  const started = performance.now();
  const state = model.takeState(prompt.length);
  let logits: Float32Array = new Float32Array(0);
  for (let from = 0; from < prompt.length; from += chunkTokens) {
    const to = Math.min(prompt.length, from + chunkTokens);
    logits = await model.run(state, prompt.subarray(from, to), to === prompt.length ? 'last' : 'none');
  }
  const token = greedy(logits);
  const ms = performance.now() - started;
  model.giveState(state);
  const loop = performance.eventLoopUtilization();
  await new Promise((resolve) => setTimeout(resolve, REST_MS));
  return { ms, token, restMs: performance.eventLoopUtilization(loop).active };
}

async function prefill(decoder: OnnxDecoder, prompt: Uint32Array, daemonPid: number) {
  let matchMs = 0;
  const onMatch = (message: unknown) => {
    matchMs = (message as MatchMessage).durationMs;
  };
  diagnostics.subscribe('kvss:match', onMatch);
  const sequence = decoder.openSequence({ isolationId: 'bench' });
  try {
    const started = performance.now();
    const { logits, cachedTokens } = await sequence.prefill(prompt);
    const token = greedy(logits);
    const ms = performance.now() - started;
    const [loop, daemonMs] = [performance.eventLoopUtilization(), cpuMs(daemonPid)];
    await sequence.close();
    // Waiting for the shards takes nothing from anybody: other sequences go on meanwhile.
    const storeMs = performance.eventLoopUtilization(loop).active + cpuMs(daemonPid) - daemonMs;
    return { ms, token, cachedTokens, matchMs, storeMs };
  } finally {
    diagnostics.unsubscribe('kvss:match', onMatch);
    await sequence.close();
  }
}

/** CPU time that a process has taken so far, all threads together; its first field counts in nanoseconds. */
function cpuMs(pid: number): number {
  const threads = readdirSync(`/proc/${pid}/task`);
  return threads.reduce((sum, thread) => {
    const [nanoseconds] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ');
    return sum + Number(nanoseconds) / 1e6;
  }, 0);
}

async function filesOf(model: string | DemoModelOptions): Promise<Files> {
  if (typeof model === 'string') {
    const config = await readFile(join(dirname(model), 'config.json'), 'utf8').catch(() => undefined);
    return {
      name: model,
      path: model,
      config: config === undefined ? undefined : JSON.parse(config),
      async [Symbol.asyncDispose]() {},
    };
  }
  const directory = await mkdtemp(join(tmpdir(), 'kvss-ttft-'));
  const remove = () => rm(directory, { recursive: true, force: true });
  try {
    const files = await generateDemoModel(join(directory, 'model'), model);
    const { attention, dtype } = files.settings;
    return {
      name: `demo decoder of ${(files.parameters / 1e6).toFixed(1)} M parameters, ${dtype}, ${attention} attention`,
      path: files.model,
      config: JSON.parse(await readFile(files.config, 'utf8')),
      [Symbol.asyncDispose]: remove,
    };
  } catch (thrown) {
    await remove();
    throw thrown;
  }
}
