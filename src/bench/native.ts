import { createRequire } from 'node:module';
import { localError, messageOf } from '../common/errors.js';

/** Native code of the suite: what KVSS is compared with. Calls block until they are done. */
export interface NativeBench {
  /** Memory as a runtime would have it: private, filled with ones, on huge pages where the kernel gives them to who asks. */
  runtimeMemory(bytes: number): ArrayBuffer;
  /** Copies pieces with memcpy from there into memory like that of a grant, 512 MiB round and round; answers seconds. */
  copyPieces(source: ArrayBuffer, pieceBytes: number, pieces: number): number;
  /**
   * Pieces behind headers over bare sockets between two threads, received straight into place, at most `window` of them
   * unacknowledged; answers seconds.
   */
  socketLoop(unix: boolean, streams: number, window: number, pieceBytes: number, pieces: number): number;
  /** One entry there and back through two rings between two threads that spin; fills in the nanoseconds of each trip. */
  ringLoop(roundTripNs: Float64Array): void;
}

let loaded: NativeBench | undefined;

/** Loaded when first asked for: nothing but the suite needs it. */
export function nativeBench(): NativeBench {
  try {
    loaded ??= createRequire(import.meta.url)('../../build/native/kvss_bench.node') as NativeBench;
    return loaded;
  } catch (cause) {
    throw localError(
      'KVSS_NATIVE_MISSING',
      `the addon of the bench suite could not be loaded; run 'npm run build:native'. ${messageOf(cause)}`,
      cause,
    );
  }
}
