import type { FileHandle } from 'node:fs/promises';
import { toFloat16Bits } from '../../common/float16.js';
import { hashText } from '../../common/hash_text.js';
import { seededRandom } from '../../common/random.js';

/** Types of weights, and of the cache and logits of the model that has them. */
export type WeightType = 'float' | 'float16';

/** Where the numbers of a tensor come from. */
export type Filling =
  /** A normal distribution. */
  | { readonly kind: 'normal'; readonly mean: number; readonly deviation: number }
  /** One magnitude, either sign with the same chance. */
  | { readonly kind: 'signs'; readonly magnitude: number }
  /** These numbers. */
  | { readonly kind: 'values'; readonly values: Float32Array };

/** A tensor in the data file, row by row. */
export interface Weight {
  readonly name: string;
  readonly type: WeightType;
  readonly dimensions: readonly number[];
  readonly filling: Filling;
}

/** A weight and where its bytes are in the data file. */
export interface PlacedWeight extends Weight {
  readonly offset: number;
  readonly bytes: number;
}

/** Runtimes map the file: a tensor begins on a page. */
const PAGE_BYTES = 4096;
const CHUNK_BYTES = 2 ** 22;
/** A table has one number for each value of 16 random bits. */
const TABLE_ENTRIES = 2 ** 16;

/** Bytes of one number. */
export function bytesOfType(type: WeightType): number {
  return type === 'float' ? 4 : 2;
}

export function countOf(dimensions: readonly number[]): number {
  return dimensions.reduce((product, size) => product * size, 1);
}

/** Lays weights out one behind another, each on a page of its own. */
export function placeWeights(weights: readonly Weight[]): PlacedWeight[] {
  let end = 0;
  return weights.map((weight) => {
    const offset = Math.ceil(end / PAGE_BYTES) * PAGE_BYTES;
    const bytes = countOf(weight.dimensions) * bytesOfType(weight.type);
    end = offset + bytes;
    return { ...weight, offset, bytes };
  });
}

/**
 * Writes weights where they are placed, a few megabytes at a time. The numbers of a tensor hang on the seed and its name
 * alone, so two models with the same seed have the same numbers in what both have.
 */
export async function writeWeights(file: FileHandle, weights: readonly PlacedWeight[], seed: number): Promise<void> {
  const chunk = new Uint8Array(CHUNK_BYTES);
  for (const weight of weights) {
    const fill = fillerOf(weight, seed);
    for (let written = 0; written < weight.bytes; written += CHUNK_BYTES) {
      const bytes = Math.min(CHUNK_BYTES, weight.bytes - written);
      fill(chunk.subarray(0, bytes));
      await writeAll(file, chunk.subarray(0, bytes), weight.offset + written);
    }
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}

/** Fills chunk after chunk with the next numbers of a tensor, in the byte order of ONNX files: little endian. */
function fillerOf({ name, type, filling }: Weight, seed: number): (chunk: Uint8Array) => void {
  const next = filling.kind === 'values' ? valuesOf(filling.values) : drawsOf(filling, hashText(`${seed}/${name}`));
  const [source, draw] = [type === 'float' ? next.table : Uint16Array.from(next.table, toFloat16Bits), next.draw];
  return (chunk) => {
    const numbers =
      type === 'float'
        ? new Float32Array(chunk.buffer, chunk.byteOffset, chunk.byteLength / 4)
        : new Uint16Array(chunk.buffer, chunk.byteOffset, chunk.byteLength / 2);
    draw(numbers, source);
  };
}

type Numbers = Float32Array | Uint16Array;
interface Draws {
  /** All numbers that can come. */
  readonly table: Float32Array;
  /** Fills with entries of the table, which may be in another type by now. */
  readonly draw: (target: Numbers, table: Numbers) => void;
}

function valuesOf(values: Float32Array): Draws {
  let position = 0;
  return {
    table: values,
    draw: (target, table) => {
      target.set(table.subarray(position, position + target.length));
      position += target.length;
    },
  };
}

/**
 * A draw is a look into a table of 65,536 numbers that are equally likely: a hundred million take a second, and no
 * logarithm is computed twice.
 */
function drawsOf(filling: Exclude<Filling, { kind: 'values' }>, seed: number): Draws {
  const random = seededRandom(seed);
  const table =
    filling.kind === 'signs'
      ? Float32Array.from({ length: TABLE_ENTRIES }, (_, entry) => (entry % 2 === 0 ? 1 : -1) * filling.magnitude)
      : NORMAL_QUANTILES.map((quantile) => filling.mean + filling.deviation * quantile);
  return {
    table,
    draw: (target, entries) => {
      // Each call gives 32 bits: two draws.
      for (let index = 0; index < target.length; index += 2) {
        const bits = random() * 2 ** 32;
        target[index] = entries[bits & 0xffff] as number;
        if (index + 1 < target.length) target[index + 1] = entries[bits >>> 16] as number;
      }
    },
  };
}

/** The middles of 65,536 equally likely parts of the standard normal distribution; the outermost are +-4.2. */
const NORMAL_QUANTILES = Float32Array.from({ length: TABLE_ENTRIES }, (_, entry) => {
  const probability = (entry + 0.5) / TABLE_ENTRIES;
  return probability < 0.5 ? -upperQuantile(probability) : upperQuantile(1 - probability);
});

/** What a standard normal number exceeds with this probability, at most 0.5. Abramowitz and Stegun 26.2.23, off by < 4.5e-4. */
function upperQuantile(probability: number): number {
  const t = Math.sqrt(-2 * Math.log(probability));
  const above = 2.515517 + t * (0.802853 + t * 0.010328);
  const below = 1 + t * (1.432788 + t * (0.189269 + t * 0.001308));
  return t - above / below;
}
