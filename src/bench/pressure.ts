import { startChildDaemon } from '../kvss/child_daemon.js';
import { slotBytesOf } from '../proto/slots.js';
import { SwDriver } from '../swdriver/sw_driver.js';
import { startChildWafer } from '../wafer/child_wafer.js';
import { MemoryPressure, type PressureOptions, type PressureReport } from '../wafer/memory_pressure.js';
import { RemoteWafer } from '../wafer/remote_wafer.js';
import { WaferRuntime } from '../wafer/wafer_runtime.js';

export interface PressureFigures extends Omit<PressureReport, 'burstMs'> {
  seconds: number;
  columnBytes: number;
  /** How long a burst took, in milliseconds. */
  burstP50Ms: number;
  burstP99Ms: number;
  /** Bytes of bursts a second of bursts. */
  burstGBps: number;
  /** Bytes of pieces that went through the driver's process: it only gives orders. */
  driverPayloadBytes: number;
  bytesVerified: number;
  mismatches: number;
}

const COLUMN_TOKENS = 64;
const BYTES_PER_TOKEN = [768, 1_024, 1_280, 1_024];
const PIECE_BYTES = BYTES_PER_TOKEN.map((bytes) => bytes * COLUMN_TOKENS);
const COLUMN_BYTES = PIECE_BYTES.reduce((sum, bytes) => sum + bytes, 0);

/** Runs a box, a wafer and a driver, three processes, and more conversations than the wafer's memory holds. */
export async function measurePressure(
  options: Omit<PressureOptions, 'isolationId'> & { memoryColumns: number },
): Promise<PressureFigures> {
  const { sequences, promptColumns, decodeColumns } = options;
  const columns = sequences * (promptColumns + decodeColumns);
  const budgets = PIECE_BYTES.map((bytes) => columns * slotBytesOf(bytes) + 2 ** 21);
  await using daemon = await startChildDaemon(budgets, { link: 'unix' });
  const wafer = { bytesPerToken: BYTES_PER_TOKEN, columnTokens: COLUMN_TOKENS, memoryColumns: options.memoryColumns };
  await using child = await startChildWafer({ ...wafer, link: 'unix' });
  await using remote = await RemoteWafer.connect(child.address, { deadlineMs: 60_000 });
  await using driver = await SwDriver.connect({
    daemons: [daemon.streams as string],
    carrier: remote.carrier,
    model: { id: 'pressure', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: BYTES_PER_TOKEN },
    deadlineMs: 30_000,
    connectDeadlineMs: 60_000,
  });
  const runtime = new WaferRuntime(remote, COLUMN_TOKENS, COLUMN_BYTES);
  const from = performance.now();
  const { burstMs, ...report } = await new MemoryPressure(driver, runtime, { ...options, isolationId: 'bench' }).run();
  const sorted = burstMs.toSorted((a, b) => a - b);
  const quantile = (share: number) => sorted[Math.floor(share * (sorted.length - 1))] ?? 0;
  const burstSum = burstMs.reduce((sum, ms) => sum + ms, 0);
  return {
    ...report,
    seconds: (performance.now() - from) / 1000,
    columnBytes: COLUMN_BYTES,
    burstP50Ms: quantile(0.5),
    burstP99Ms: quantile(0.99),
    burstGBps: burstSum === 0 ? 0 : (report.burstColumns * COLUMN_BYTES) / (burstSum * 1e6),
    driverPayloadBytes: driver.payloadBytes,
    bytesVerified: runtime.stats.bytesVerified,
    mismatches: runtime.stats.mismatches,
  };
}
