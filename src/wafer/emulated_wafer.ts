import type { ColumnRef, PieceSink, PieceSource } from '../swdriver/runtime.js';
import { countMismatches, LINE_BYTES, type Stamp, writeStamp } from './stamp.js';

/** What an emulated wafer has moved and checked. */
export interface WaferStats {
  bytesWritten: number;
  bytesVerified: number;
  linesVerified: number;
  /** Lines that were not exactly what belongs there. Must stay 0. */
  mismatches: number;
}

/** The wafer's side of one request. */
export interface WaferRequest {
  readonly source: PieceSource;
  readonly sink: PieceSink;
  /**
   * Takes over the first `columns` columns of a refill, as its result says. What the sink saw behind them is void: a
   * shard may have taken its memory away while it was being read, and the driver has said so.
   */
  accept(columns: number): void;
}

interface Checked {
  bytes: number;
  mismatches: number;
}

/**
 * Stands where an accelerator would: produces the attention state of a prompt's columns and takes it back. The state is
 * a stamp in every 64-byte line, so that each refilled byte can be checked without keeping what was sent. The key of a
 * column is computed here from tenant and tokens alone: a mistake of the PrefixMap cannot hide behind itself.
 */
export class EmulatedWafer {
  readonly stats: WaferStats = { bytesWritten: 0, bytesVerified: 0, linesVerified: 0, mismatches: 0 };

  constructor(private readonly columnTokens: number) {}

  /** The two ends for one request of a tenant over these tokens. */
  request(isolationId: string, tokens: Uint32Array): WaferRequest {
    const checked: Checked[] = [];
    const keys = columnKeys(isolationId, tokens, this.columnTokens);
    const stampOf = (column: ColumnRef, shard: number): Stamp => ({
      tenantTag: column.tenantTag,
      columnKey: keys[column.index] as bigint,
      generation: column.generation,
      shard,
    });
    return {
      source: {
        write: (column, pieces) => {
          for (const [shard, piece] of pieces.entries()) {
            writeStamp(piece, stampOf(column, shard));
            this.stats.bytesWritten += piece.length;
          }
          return true;
        },
      },
      sink: {
        read: (column, pieces) => {
          const seen: Checked = { bytes: 0, mismatches: 0 };
          for (const [shard, piece] of pieces.entries()) {
            seen.mismatches += countMismatches(piece, stampOf(column, shard));
            seen.bytes += piece.length;
          }
          checked[column.index] = seen;
        },
      },
      accept: (columns) => {
        for (const { bytes, mismatches } of checked.splice(0).slice(0, columns)) {
          this.stats.mismatches += mismatches;
          this.stats.bytesVerified += bytes;
          this.stats.linesVerified += bytes / LINE_BYTES;
        }
      },
    };
  }
}

/** Key of every full column: a running hash of the tenant and all tokens up to the end of the column. */
export function columnKeys(isolationId: string, tokens: Uint32Array, columnTokens: number): BigUint64Array {
  let low = 0x811c9dc5;
  let high = 0x2545f491;
  for (let index = 0; index < isolationId.length; index += 1) {
    low = Math.imul(low ^ isolationId.charCodeAt(index), 0x01000193);
    high = Math.imul(high ^ low, 0x85ebca6b) ^ (high >>> 15);
  }
  const keys = new BigUint64Array(Math.floor(tokens.length / columnTokens));
  const words = new Uint32Array(keys.buffer);
  for (let column = 0; column < keys.length; column += 1) {
    const end = (column + 1) * columnTokens;
    for (let at = column * columnTokens; at < end; at += 1) {
      const token = tokens[at] as number;
      low = Math.imul(low ^ token, 0xcc9e2d51) ^ (low >>> 15);
      high = Math.imul(high + token, 0x1b873593) ^ (high >>> 13);
    }
    words[2 * column] = low ^ (high >>> 7);
    words[2 * column + 1] = high;
  }
  return keys;
}
