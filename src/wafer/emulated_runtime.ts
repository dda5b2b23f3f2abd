import type { PieceSink, PieceSource } from '../swdriver/runtime.js';

/** What an emulated runtime has moved and checked. */
export interface EmulatedStats {
  bytesWritten: number;
  bytesVerified: number;
  linesVerified: number;
  /** Lines that were not exactly what belongs there. Must stay 0. */
  mismatches: number;
}

/** The runtime's side of one request. In this order: refill into the sink, accept, compute, evict from the source, end. */
export interface EmulatedRequest {
  readonly source: PieceSource;
  readonly sink: PieceSink;
  /**
   * Takes over the first `columns` columns of a refill, as its result says, and checks them. What the sink saw behind them
   * is void.
   */
  accept(columns: number, quiet: Promise<void>): void | Promise<void>;
  /** Computes the columns that the refill has not brought. */
  compute(): void | Promise<void>;
  /** Lets go of the request's memory. */
  end(): void;
}

/** Stands where an inference runtime would. */
export interface EmulatedRuntime {
  readonly stats: Readonly<EmulatedStats>;
  request(isolationId: string, tokens: Uint32Array): EmulatedRequest;
}
