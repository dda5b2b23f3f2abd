type Numbers = Uint8Array | Uint16Array | Uint32Array | Int32Array | Float64Array;

/** A longer array of the same kind that begins with what `old` has; `fill` is behind it, 0 if left out. */
export function enlarged<T extends Numbers>(old: T, length: number, fill = 0): T {
  const array = new (old.constructor as new (length: number) => T)(length);
  array.set(old);
  if (fill !== 0) array.fill(fill, old.length);
  return array;
}
