let table: Float32Array | undefined;

/** The number that 16 bits stand for as IEEE 754 binary16. */
export function numberOfHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** A new array of the numbers that halves stand for. */
export function widenHalves(halves: Uint16Array): Float32Array {
  // All there are: a look-up takes a tenth of working each out.
  table ??= Float32Array.from({ length: 0x10000 }, (_, bits) => numberOfHalf(bits));
  const numbers = new Float32Array(halves.length);
  for (let index = 0; index < halves.length; index += 1) numbers[index] = table[halves[index] as number] as number;
  return numbers;
}
