import { NumberPool } from '../common/number_pool.js';
import { columnKeys } from './column_keys.js';
import type { EmulatedRequest, EmulatedRuntime, EmulatedStats } from './emulated_runtime.js';
import type { PlacedColumn, WaferPort } from './wafer.js';

/**
 * The part of a runtime that goes with a wafer that has memory: knows which places of it are free, and has the wafer
 * compute and check. Works the same whether the wafer is in this process or in another.
 */
export class WaferRuntime implements EmulatedRuntime {
  readonly stats: EmulatedStats = { bytesWritten: 0, bytesVerified: 0, linesVerified: 0, mismatches: 0 };
  readonly #places: NumberPool;

  constructor(
    private readonly wafer: WaferPort,
    private readonly columnTokens: number,
    private readonly columnBytes: number,
  ) {
    this.#places = new NumberPool(wafer.places);
  }

  get freePlaces(): number {
    return this.#places.free;
  }

  request(isolationId: string, tokens: Uint32Array): EmulatedRequest {
    const keys = columnKeys(isolationId, tokens, this.columnTokens);
    const places: (number | undefined)[] = [];
    const placed = (columns: readonly number[]): PlacedColumn[] =>
      columns.map((column) => ({ place: places[column] as number, key: keys[column] as bigint }));
    const take = (column: number): number | undefined => {
      places[column] ??= this.#places.take();
      return places[column];
    };
    return {
      source: { place: ({ index }) => places[index] },
      sink: { place: ({ index }) => take(index) },
      accept: async (columns, quiet) => {
        // What was not restored may still be coming: nobody else may have those places before it is quiet.
        for (const place of places.splice(columns)) {
          if (place !== undefined) quiet.then(() => this.#giveBack(place));
        }
        const { bytes, lines, mismatches } = await this.wafer.check(placed([...places.keys()]));
        this.stats.bytesVerified += bytes;
        this.stats.linesVerified += lines;
        this.stats.mismatches += mismatches;
      },
      compute: async () => {
        const missing: number[] = [];
        for (let column = places.length; column < keys.length; column += 1) {
          if (take(column) === undefined) break;
          missing.push(column);
        }
        await this.wafer.compute('prefill', placed(missing));
        this.stats.bytesWritten += missing.length * this.columnBytes;
      },
      end: () => {
        for (const place of places.splice(0)) if (place !== undefined) this.#giveBack(place);
      },
    };
  }

  #giveBack(place: number): void {
    this.#places.release(place);
    this.#places.give(place);
  }
}
