// The bits of a double, to take its logarithm apart without computing one.
const double = new Float64Array(1);
const halves = new Uint32Array(double.buffer);
double[0] = 1;
const HIGH_HALF = halves[1] === 0x3ff00000 ? 1 : 0;
const EXPONENT_BIAS = 1023;
const MANTISSA_BITS_OF_HIGH_HALF = 20;

/**
 * Buckets whose width grows with the value: each power of two is cut into `2 ** stepBits` equal steps, so that a bucket
 * is at most `2 ** -stepBits` of its values wide. Bucket 0 has everything below 2 ** minExponent, the last bucket
 * everything from 2 ** maxExponent on.
 *
 * The exponent and the first bits of the mantissa of a double are the number of its bucket already.
 */
export class LogScale {
  readonly buckets: number;
  readonly #lowest: number;
  readonly #shift: number;
  readonly #steps: number;

  constructor(
    readonly minExponent: number,
    readonly maxExponent: number,
    stepBits: number,
  ) {
    this.#steps = 2 ** stepBits;
    this.#shift = MANTISSA_BITS_OF_HIGH_HALF - stepBits;
    this.#lowest = (minExponent + EXPONENT_BIAS) * this.#steps - 1;
    this.buckets = (maxExponent - minExponent) * this.#steps + 2;
  }

  /** The bucket of a value. What is no positive number goes into bucket 0. */
  bucketOf(value: number): number {
    if (!(value > 0)) return 0;
    double[0] = value;
    const bucket = ((halves[HIGH_HALF] as number) >>> this.#shift) - this.#lowest;
    return bucket < 0 ? 0 : bucket < this.buckets ? bucket : this.buckets - 1;
  }

  /** The least value of a bucket; 0 for bucket 0. */
  lowerBound(bucket: number): number {
    if (bucket <= 0) return 0;
    const step = bucket - 1;
    const exponent = this.minExponent + Math.floor(step / this.#steps);
    return 2 ** exponent * (1 + (step % this.#steps) / this.#steps);
  }

  /** Where the next bucket begins; infinite for the last. */
  upperBound(bucket: number): number {
    return bucket >= this.buckets - 1 ? Number.POSITIVE_INFINITY : this.lowerBound(bucket + 1);
  }
}
