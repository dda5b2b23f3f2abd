import { CarrierClient, type CarrierOptions } from '../links/carrier_client.js';
import { packColumns } from './packed_columns.js';
import type { CheckResult, Phase, PlacedColumn, WaferPort } from './wafer.js';

/** Columns of one request: 32 KiB of a control frame. */
const COLUMNS_PER_REQUEST = 2048;
/** A wafer computes as fast as it was told to, which may be slow. */
const COMPUTE_DEADLINE_MS = 600_000;

/** A wafer in another process: computes and checks there, and carries the payload of a driver. */
export class RemoteWafer implements WaferPort, AsyncDisposable {
  private constructor(
    /** For SwDriverOptions.carrier. */
    readonly carrier: CarrierClient,
  ) {}

  /** Connects to `tcp://HOST:PORT` or `unix:PATH`. Rejects with KVSS_UNREACHABLE, or with what the wafer answered. */
  static async connect(address: string, options: CarrierOptions): Promise<RemoteWafer> {
    return new RemoteWafer(await CarrierClient.connect(address, options));
  }

  get places(): number {
    return this.carrier.places;
  }

  async compute(phase: Phase, columns: readonly PlacedColumn[]): Promise<void> {
    for (const part of partsOf(columns)) {
      const request = { phase, columns: packColumns(part) };
      await this.carrier.request('compute', request, 'computed', COMPUTE_DEADLINE_MS);
    }
  }

  async check(columns: readonly PlacedColumn[]): Promise<CheckResult> {
    const total: CheckResult = { bytes: 0, lines: 0, mismatches: 0 };
    for (const part of partsOf(columns)) {
      const request = { columns: packColumns(part) };
      const { payload } = await this.carrier.request('check', request, 'checked', COMPUTE_DEADLINE_MS);
      total.bytes += payload.bytes;
      total.lines += payload.lines;
      total.mismatches += payload.mismatches;
    }
    return total;
  }

  async close(): Promise<void> {
    await this.carrier.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function* partsOf(columns: readonly PlacedColumn[]): Generator<readonly PlacedColumn[]> {
  for (let from = 0; from < columns.length; from += COLUMNS_PER_REQUEST) {
    yield columns.slice(from, from + COLUMNS_PER_REQUEST);
  }
}
