/** Ages on a scale of two steps an octave: coarse enough to be learned from few prompts. */
const STEPS = 2;
const FIRST_OCTAVE = 5;
const OCTAVES = 36;

export const AGE_BUCKETS = 1 + OCTAVES * STEPS;

/** Lower end of each bucket, and behind the last one its upper end. */
export const BUCKET_START = Float64Array.from({ length: AGE_BUCKETS + 1 }, (_, bucket) =>
  bucket === 0 ? 0 : 2 ** (FIRST_OCTAVE + ((bucket - 1) >> 1)) * (1 + ((bucket - 1) & 1) / STEPS),
);

/** The bucket of an age. */
export function bucketOf(age: number): number {
  if (age < 2 ** FIRST_OCTAVE) return 0;
  // Beyond 2^31 the bits are those of the age over 2^20.
  const shift = age < 2 ** 31 ? 0 : 20;
  const bits = shift === 0 ? age | 0 : Math.min(age / 2 ** 20, 2 ** 21) | 0;
  const octave = 31 - Math.clz32(bits);
  const bucket = (octave + shift - FIRST_OCTAVE) * STEPS + ((bits >>> (octave - 1)) & 1) + 1;
  return bucket < AGE_BUCKETS ? bucket : AGE_BUCKETS - 1;
}
