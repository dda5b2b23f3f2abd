import { NumberPool } from '../common/number_pool.js';
import type { ColumnRef, PieceSink, PieceSource } from '../swdriver/runtime.js';
import { columnKeys } from './column_keys.js';
import type { EmulatedRequest, EmulatedRuntime, EmulatedStats } from './emulated_runtime.js';
import type { Phase, PlacedColumn, WaferPort } from './wafer.js';

/**
 * The part of a runtime that goes with a wafer that has memory: knows which places of it are free, and has the wafer
 * compute and check. Works the same whether the wafer is in this process or in another.
 */
export class WaferRuntime implements EmulatedRuntime {
  readonly stats: EmulatedStats = { bytesWritten: 0, bytesVerified: 0, linesVerified: 0, mismatches: 0 };
  readonly #places: NumberPool;

  constructor(
    readonly wafer: WaferPort,
    private readonly columnTokens: number,
    private readonly columnBytes: number,
  ) {
    this.#places = new NumberPool(wafer.places);
  }

  get freePlaces(): number {
    return this.#places.free;
  }

  request(isolationId: string, tokens: Uint32Array): WaferRequest {
    return new WaferRequest(this, columnKeys(isolationId, tokens, this.columnTokens));
  }

  /** @internal */
  takePlace(): number | undefined {
    return this.#places.take();
  }

  /** @internal */
  givePlace(place: number): void {
    this.#places.release(place);
    this.#places.give(place);
  }

  /** @internal */
  async check(columns: readonly PlacedColumn[]): Promise<void> {
    const { bytes, lines, mismatches } = await this.wafer.check(columns);
    this.stats.bytesVerified += bytes;
    this.stats.linesVerified += lines;
    this.stats.mismatches += mismatches;
  }

  /** @internal */
  async compute(phase: Phase, columns: readonly PlacedColumn[]): Promise<void> {
    await this.wafer.compute(phase, columns);
    this.stats.bytesWritten += columns.length * this.columnBytes;
  }
}

/** A request whose columns lie at places of a wafer. */
export class WaferRequest implements EmulatedRequest {
  readonly source: PieceSource = { place: ({ index }: ColumnRef) => this.#places[index] };
  readonly sink: PieceSink = { place: ({ index }: ColumnRef) => this.#take(index) };
  /** Of the columns from the first that are, or are about to be, on the wafer. */
  readonly #places: number[] = [];

  /** @internal `keys`: of all full columns of the request; see columnKeys. */
  constructor(
    private readonly runtime: WaferRuntime,
    private readonly keys: BigUint64Array,
  ) {}

  /** Columns that lie on the wafer. */
  get residentColumns(): number {
    return this.#places.length;
  }

  async accept(columns: number, quiet: Promise<void>): Promise<void> {
    // What was not restored may still be coming: nobody else may have those places before it is quiet.
    for (const place of this.#places.splice(columns)) quiet.then(() => this.runtime.givePlace(place));
    await this.runtime.check(this.#placed(0));
  }

  /** Computes the columns below `end` that are not on the wafer, as far as it has room. */
  async compute(phase: Phase = 'prefill', end = this.keys.length): Promise<void> {
    const from = this.#places.length;
    while (this.#places.length < end && this.#take(this.#places.length) !== undefined);
    await this.runtime.compute(phase, this.#placed(from));
  }

  end(): void {
    for (const place of this.#places.splice(0)) this.runtime.givePlace(place);
  }

  /** Refills ask for columns in order, so there is never a gap. */
  #take(column: number): number | undefined {
    const place = this.#places[column] ?? this.runtime.takePlace();
    if (place !== undefined) this.#places[column] = place;
    return place;
  }

  #placed(from: number): PlacedColumn[] {
    return this.#places.slice(from).map((place, index) => ({ place, key: this.keys[from + index] as bigint }));
  }
}
