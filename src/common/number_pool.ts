/**
 * Hands out the numbers 0 to size - 1 and takes them back. A number may be held by several at once; given back while it
 * is held, it becomes free with the last release. What it is for must not be touched by two owners: so free means that
 * nobody holds it.
 */
export class NumberPool {
  readonly #free: Uint32Array;
  #freeCount: number;
  readonly #holders: Uint32Array;
  readonly #given: Uint8Array;

  constructor(
    readonly size: number,
    private readonly onFree: () => void = () => {},
  ) {
    // From the top, so that numbers are handed out from 0 upwards.
    this.#free = Uint32Array.from({ length: size }, (_, index) => size - 1 - index);
    this.#freeCount = size;
    this.#holders = new Uint32Array(size);
    this.#given = new Uint8Array(size);
  }

  get free(): number {
    return this.#freeCount;
  }

  /** A free number, held once by the caller; undefined where there is none. */
  take(): number | undefined {
    if (this.#freeCount === 0) return undefined;
    this.#freeCount -= 1;
    const number = this.#free[this.#freeCount] as number;
    this.#holders[number] = 1;
    return number;
  }

  /** Takes numbers out that are free, for owners who have them already. */
  remove(numbers: ReadonlySet<number>): void {
    let kept = 0;
    for (let index = 0; index < this.#freeCount; index += 1) {
      const number = this.#free[index] as number;
      if (numbers.has(number)) continue;
      this.#free[kept] = number;
      kept += 1;
    }
    this.#freeCount = kept;
  }

  hold(number: number): void {
    this.#holders[number] = (this.#holders[number] as number) + 1;
  }

  release(number: number): void {
    this.#holders[number] = (this.#holders[number] as number) - 1;
    if (this.#holders[number] === 0 && this.#given[number] === 1) this.#return(number);
  }

  /** Gives a number back: at once, or when nobody holds it any more. */
  give(number: number): void {
    if (this.#holders[number] === 0) this.#return(number);
    else this.#given[number] = 1;
  }

  #return(number: number): void {
    this.#given[number] = 0;
    this.#free[this.#freeCount] = number;
    this.#freeCount += 1;
    this.onFree();
  }
}
