/**
 * Numbers of 16 bits as IEEE 754 has them (binary16), for runtimes without a Float16Array: the bits are in a Uint16Array.
 */

const single = new Float32Array(1);
const singleBits = new Uint32Array(single.buffer);

/** The bits of the nearest number of 16 bits, ties to even; infinity from 65,520 on. */
export function toFloat16Bits(value: number): number {
  single[0] = value;
  const bits = singleBits[0] as number;
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fff_ffff;
  if (magnitude > 0x7f80_0000) return sign | 0x7e00;
  if (magnitude >= 0x477f_f000) return sign | 0x7c00;
  // Below 2^-14 numbers are multiples of 2^-24.
  if (magnitude < 0x3880_0000) return sign | roundToEven(Math.abs(single[0] as number) * 2 ** 24);
  // The exponent loses 127 - 15 of its bias, the fraction 13 of its bits.
  const rebased = magnitude - 0x3800_0000;
  return sign | ((rebased + 0xfff + ((rebased >>> 13) & 1)) >>> 13);
}

/** The number that these 16 bits stand for. */
export function fromFloat16Bits(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction === 0 ? sign * Infinity : Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 2 ** 10) * 2 ** (exponent - 15);
}

let numbersOfBits: Float32Array | undefined;

/** A new array of the numbers that these bits stand for. */
export function fromFloat16Array(bits: Uint16Array): Float32Array {
  // All there are: a look-up takes a tenth of working each out.
  numbersOfBits ??= Float32Array.from({ length: 0x10000 }, (_, each) => fromFloat16Bits(each));
  const numbers = new Float32Array(bits.length);
  for (let index = 0; index < bits.length; index += 1) numbers[index] = numbersOfBits[bits[index] as number] as number;
  return numbers;
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const over = value - floor;
  if (over !== 0.5) return over < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}
