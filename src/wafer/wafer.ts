import { type Clock, systemClock } from '../common/clock.js';
import { localError } from '../common/errors.js';
import { formatBytes } from '../common/units.js';
import { slotBytesOf } from '../proto/slots.js';
import type { ColumnMemory } from '../swdriver/runtime.js';
import { countMismatches, LINE_BYTES, type Stamp, writeStamp } from './stamp.js';
import type { WaferConfig } from './wafer_config.js';

/** A column in the memory of a wafer. */
export interface PlacedColumn {
  readonly place: number;
  /** Stands for the tokens of the column and of all before it; see columnKeys. */
  readonly key: bigint;
}

export type Phase = 'prefill' | 'decode';

/** What looking at columns has found. */
export interface CheckResult {
  bytes: number;
  lines: number;
  /** Lines that were not exactly what belongs there. */
  mismatches: number;
}

/** What the runtime asks of a wafer, wherever the wafer is. */
export interface WaferPort {
  /** Columns that its memory holds. */
  readonly places: number;
  /** Computes the state of columns into their places. Resolves when that would be done at the rate of the phase. */
  compute(phase: Phase, columns: readonly PlacedColumn[]): Promise<void>;
  /** Checks every byte of columns that were computed, or have come back. */
  check(columns: readonly PlacedColumn[]): Promise<CheckResult>;
}

/**
 * An emulated wafer: boxes with four I/O domains each, a memory for the attention state of so many columns, and a rate at
 * which it computes. The state is a stamp in every line, made from the key of the column: the same column always has the
 * same bytes, and no two columns share a line.
 */
export class Wafer implements WaferPort {
  /** Places of columns, one region for each domain of each box. Links send from it and receive into it. */
  readonly memory: ColumnMemory;
  /** Bytes of the piece of each domain of each box, in the order of the shards of a stripe. */
  readonly pieceBytes: readonly number[];
  #busyUntil = 0;

  constructor(
    private readonly config: WaferConfig,
    private readonly clock: Clock = systemClock,
  ) {
    this.pieceBytes = config.boxes.flatMap((box) => box.bytesPerToken.map((bytes) => bytes * config.columnTokens));
    const regions = this.pieceBytes.map((bytes) => {
      const strideBytes = slotBytesOf(bytes);
      return { memory: allocate(config.memoryColumns * strideBytes), strideBytes };
    });
    this.memory = { places: config.memoryColumns, regions };
  }

  get places(): number {
    return this.config.memoryColumns;
  }

  get columnTokens(): number {
    return this.config.columnTokens;
  }

  async compute(phase: Phase, columns: readonly PlacedColumn[]): Promise<void> {
    for (const column of columns) {
      for (const [domain, piece] of this.#pieces(column).entries()) writeStamp(piece, stampOf(column, domain));
    }
    const { prefillTokensPerSecond, decodeTokensPerSecond, columnTokens } = this.config;
    const rate = phase === 'prefill' ? prefillTokensPerSecond : decodeTokensPerSecond;
    if (rate === undefined || columns.length === 0) return;
    // One thing after another: what is asked for meanwhile waits.
    const now = this.clock.now();
    this.#busyUntil = Math.max(now, this.#busyUntil) + (columns.length * columnTokens * 1000) / rate;
    const leftMs = this.#busyUntil - now;
    await new Promise<void>((resolve) => {
      this.clock.schedule(leftMs, resolve);
    });
  }

  async check(columns: readonly PlacedColumn[]): Promise<CheckResult> {
    const result: CheckResult = { bytes: 0, lines: 0, mismatches: 0 };
    for (const column of columns) {
      for (const [domain, piece] of this.#pieces(column).entries()) {
        result.mismatches += countMismatches(piece, stampOf(column, domain));
        result.bytes += piece.length;
        result.lines += piece.length / LINE_BYTES;
      }
    }
    return result;
  }

  #pieces({ place }: PlacedColumn): Uint8Array[] {
    if (!(place < this.places)) {
      throw localError('KVSS_BAD_INPUT', `place ${place}: the memory of the wafer has ${this.places} places`);
    }
    return this.memory.regions.map(
      ({ memory, strideBytes }, domain) =>
        new Uint8Array(memory, place * strideBytes, this.pieceBytes[domain] as number),
    );
  }
}

function allocate(bytes: number): ArrayBuffer {
  try {
    return new ArrayBuffer(bytes);
  } catch (cause) {
    throw localError(
      'KVSS_BAD_CONFIG',
      `'memoryColumns': ${formatBytes(bytes)} for one domain are not to be had`,
      cause,
    );
  }
}

const stampOf = (column: PlacedColumn, domain: number): Stamp => ({
  tenantTag: 0n,
  columnKey: column.key,
  generation: 0,
  shard: domain,
});
