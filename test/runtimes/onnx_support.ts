import { vi } from 'vitest';
import { seededRandom } from '../../src/common/random.js';
import { OnnxDecoder, type OnnxDecoderOptions, type PrefillOptions } from '../../src/runtimes/onnx/index.js';
import type { KvState } from '../../src/runtimes/onnx/kv_state.js';
import { OnnxModel } from '../../src/runtimes/onnx/onnx_model.js';
import { type Scratch, TestDaemon } from '../e2e/support.js';
import { SESSION_OPTIONS, TINY, type TinyModel } from './demo_models.js';

/** Where one daemon is reached. */
export const LINKS: readonly (readonly [name: string, addressOf: (daemon: TestDaemon) => string])[] = [
  ['shared memory', (daemon) => daemon.socket],
  ['TCP', (daemon) => `tcp://127.0.0.1:${daemon.streamPorts[0]}`],
];

export const startDaemon = (scratch: Scratch, options: { name?: string; budget?: string; flags?: string[] } = {}) =>
  TestDaemon.start(scratch.file(options.name ?? 's'), {
    budget: options.budget ?? '64MiB',
    flags: ['--tcp-port', '0', ...(options.flags ?? [])],
  });

/** A decoder over a tiny model, with deadlines that a busy machine keeps. */
export function openDecoder(
  { model, config }: TinyModel,
  daemons: readonly string[],
  { driver, ...more }: Partial<OnnxDecoderOptions> = {},
): Promise<OnnxDecoder> {
  return OnnxDecoder.create({
    id: 'tiny',
    model,
    config,
    daemons,
    sessionOptions: SESSION_OPTIONS,
    driver: { capacityColumns: 200, deadlineMs: 10_000, connectDeadlineMs: 20_000, ...driver },
    ...more,
  });
}

/** Tokens without a meaning, the same for the same seed. */
export function tokensOf(seed: number, length: number): Uint32Array {
  const random = seededRandom(seed);
  return Uint32Array.from({ length }, () => Math.floor(random() * TINY.vocabularySize));
}

export const joined = (...parts: (Uint32Array | readonly number[])[]) =>
  Uint32Array.from(parts.flatMap((part) => [...part]));

/** Computes a prompt and stores its columns. */
export async function store(decoder: OnnxDecoder, tenant: string, prompt: Uint32Array): Promise<number> {
  const sequence = decoder.openSequence({ isolationId: tenant });
  const { cachedTokens } = await sequence.prefill(prompt);
  await sequence.close();
  return cachedTokens;
}

/** Computes a prompt and stores nothing of it. */
export async function look(decoder: OnnxDecoder, tenant: string, prompt: Uint32Array, options: PrefillOptions = {}) {
  const sequence = decoder.openSequence({ isolationId: tenant });
  const prefill = await sequence.prefill(prompt, { storeUpTo: 0, ...options });
  await sequence.close();
  return prefill;
}

/** Whether numbers have the same bits. */
export const sameBits = (a: Float32Array, b: Float32Array) =>
  Buffer.from(a.buffer, a.byteOffset, a.byteLength).equals(Buffer.from(b.buffer, b.byteOffset, b.byteLength));

/** The largest difference of two numbers at the same place. */
export const distance = (a: Float32Array, b: Float32Array) =>
  a.reduce((most, number, index) => Math.max(most, Math.abs(number - (b[index] as number))), 0);

/** A state that is given back is filled with numbers that are none: whoever looked at them would show it. */
export function poisonIdleStates(): { poisoned: number } {
  const seen = { poisoned: 0 };
  const { giveState } = OnnxModel.prototype;
  vi.spyOn(OnnxModel.prototype, 'giveState').mockImplementation(function (this: OnnxModel, state: KvState) {
    // Both buffers where there are two: a run that was never made swaps them.
    for (let turn = 0; turn < 2; turn += 1) {
      state.truncate(0);
      state.layOut(state.capacity);
      for (const [plane, { heads }] of this.graph.planes.entries()) {
        for (let head = 0; head < heads; head += 1) state.rows(plane, head, 0, state.length).fill(0xff);
      }
      state.truncate(0);
      state.commit(0);
    }
    seen.poisoned += 1;
    giveState.call(this, state);
  });
  return seen;
}
