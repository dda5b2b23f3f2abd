import type { ColumnRef } from '../swdriver/runtime.js';
import { columnKeys } from './column_keys.js';
import type { EmulatedRequest, EmulatedRuntime, EmulatedStats } from './emulated_runtime.js';
import { countMismatches, LINE_BYTES, type Stamp, writeStamp } from './stamp.js';

/** The runtime's side of one request, over slots in place: there is nothing to wait for. */
export interface StampingRequest extends EmulatedRequest {
  accept(columns: number): void;
  compute(): void;
}

interface Checked {
  /** Position of the column in its prefix. */
  index: number;
  bytes: number;
  mismatches: number;
}

/**
 * An emulated runtime without memory of its own: writes the attention state of a prompt's columns straight into the
 * slots, and reads it there. The state is
 * a stamp in every 64-byte line, so that each refilled byte can be checked without keeping what was sent. The key of a
 * column is computed here from tenant and tokens alone: a mistake of the PrefixMap cannot hide behind itself.
 */
export class StampingRuntime implements EmulatedRuntime {
  readonly stats: EmulatedStats = { bytesWritten: 0, bytesVerified: 0, linesVerified: 0, mismatches: 0 };

  constructor(private readonly columnTokens: number) {}

  /** The two ends for one request of a tenant over these tokens. */
  request(isolationId: string, tokens: Uint32Array): StampingRequest {
    const checked: Checked[] = [];
    const keys = columnKeys(isolationId, tokens, this.columnTokens);
    const stampOf = (column: ColumnRef, shard: number): Stamp => ({
      tenantTag: column.tenantTag,
      columnKey: keys[column.index] as bigint,
      generation: column.generation,
      shard,
      group: column.group,
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
          const seen: Checked = { index: column.index, bytes: 0, mismatches: 0 };
          for (const [shard, piece] of pieces.entries()) {
            seen.mismatches += countMismatches(piece, stampOf(column, shard));
            seen.bytes += piece.length;
          }
          checked.push(seen);
        },
      },
      accept: (columns) => {
        for (const { index, bytes, mismatches } of checked.splice(0)) {
          if (index >= columns) continue;
          this.stats.mismatches += mismatches;
          this.stats.bytesVerified += bytes;
          this.stats.linesVerified += bytes / LINE_BYTES;
        }
      },
      // The source writes a column at the moment in which it is evicted.
      compute: () => {},
      end: () => {},
    };
  }
}
