import type { ColumnRef, PieceSink, PieceSource } from '../../src/swdriver/runtime.js';
import { columnKeys } from '../../src/wafer/column_keys.js';
import type { EmulatedRequest, EmulatedRuntime, EmulatedStats } from '../../src/wafer/emulated_runtime.js';
import { countMismatches, LINE_BYTES, type Stamp, writeStamp } from '../../src/wafer/stamp.js';

/** What a request needs of the world around it. */
export interface Surroundings {
  /** Resolves some time later; never, where the process of the runtime has died meanwhile. */
  pause(): Promise<void>;
  now(): number;
}

interface Seen {
  readonly column: ColumnRef;
  readonly pieces: readonly Uint8Array[];
  mismatches: number;
}

/**
 * A runtime that takes its time: others have their turns between the beginning of a read or a write and its end, as where an
 * accelerator works on the slots by itself. Looks at every line when it begins and when it ends.
 */
export class PatientRuntime implements EmulatedRuntime {
  readonly stats: EmulatedStats = { bytesWritten: 0, bytesVerified: 0, linesVerified: 0, mismatches: 0 };

  constructor(
    private readonly columnTokens: number,
    private readonly surroundings: Surroundings,
  ) {}

  request(isolationId: string, tokens: Uint32Array): PatientRequest {
    return new PatientRequest(this, columnKeys(isolationId, tokens, this.columnTokens), this.surroundings);
  }
}

export class PatientRequest implements EmulatedRequest {
  /** Time that its reads and writes have taken. */
  busyMs = 0;
  /** A column was not, or not any more, what it must be while it was read in place. */
  onSpoilt: (column: number) => void = () => {};
  readonly source: PieceSource;
  readonly sink: PieceSink;
  /** What has been read last of each part. */
  readonly #seen = new Map<string, Seen>();

  /** @internal */
  constructor(
    private readonly runtime: PatientRuntime,
    private readonly keys: BigUint64Array,
    private readonly surroundings: Surroundings,
  ) {
    this.source = { write: (column, pieces) => this.#write(column, pieces) };
    this.sink = { read: (column, pieces) => this.#read(column, pieces) };
  }

  accept(columns: number): void {
    const { stats } = this.runtime;
    for (const [part, { column, pieces, mismatches }] of [...this.#seen]) {
      // What came behind the prefix that the runtime goes on from is void.
      if (column.index >= columns) {
        this.#seen.delete(part);
        continue;
      }
      const bytes = pieces.reduce((sum, piece) => sum + piece.length, 0);
      stats.mismatches += mismatches;
      stats.bytesVerified += bytes;
      stats.linesVerified += bytes / LINE_BYTES;
    }
  }

  /** Whether the columns that were accepted are in their slots as they were read. */
  stillRight(): boolean {
    return [...this.#seen.values()].every((seen) => this.#mismatches(seen) === 0);
  }

  compute(): void {}

  end(): void {}

  async #write(column: ColumnRef, pieces: readonly Uint8Array[]): Promise<boolean> {
    const write = () => {
      for (const [shard, piece] of pieces.entries()) writeStamp(piece, this.#stampOf(column, shard));
    };
    write();
    await this.#pause();
    // To the last moment: who has got the slot meanwhile would find it out.
    write();
    this.runtime.stats.bytesWritten += pieces.reduce((sum, piece) => sum + piece.length, 0);
    return true;
  }

  async #read(column: ColumnRef, pieces: readonly Uint8Array[]): Promise<void> {
    const seen: Seen = { column, pieces, mismatches: 0 };
    this.#seen.set(`${column.group} ${column.index}`, seen);
    for (const last of [false, true]) {
      if (last) await this.#pause();
      seen.mismatches = this.#mismatches(seen);
      if (seen.mismatches > 0) this.onSpoilt(column.index);
    }
  }

  async #pause(): Promise<void> {
    const from = this.surroundings.now();
    await this.surroundings.pause();
    this.busyMs += this.surroundings.now() - from;
  }

  #mismatches({ column, pieces }: Seen): number {
    return pieces.reduce((sum, piece, shard) => sum + countMismatches(piece, this.#stampOf(column, shard)), 0);
  }

  #stampOf(column: ColumnRef, shard: number): Stamp {
    const { tenantTag, generation, index, group } = column;
    return { tenantTag, columnKey: this.keys[index] as bigint, generation, shard, group };
  }
}
