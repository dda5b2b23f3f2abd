import { createRequire } from 'node:module';
import { localError, messageOf } from '../common/errors.js';

/** How values travel to or from another store. Keys are named as redis-benchmark names them, `key:000000000000` on. */
export interface PeerPlan {
  protocol: 'redis' | 'memcached';
  operation: 'set' | 'get';
  /** Port on the loopback device, or path of a Unix socket. */
  address: number | string;
  connections: number;
  /** A thread that blocks for each connection, or one for all of them. */
  threads: boolean;
  /** Requests of one connection that are unanswered at most. */
  depth: number;
  pieceBytes: number;
  /** Operations in all, one key after the other and round again. */
  pieces: number;
  keys: number;
  /** Nothing that is waited for may take longer. */
  patienceMs: number;
}

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
  /**
   * SETs or GETs values of another store, straight from and to memory that has two places for each key: the first half is
   * where values come from, the second where they go to. What is not answered to the letter rejects, and so does a value
   * that is not what its key was SET to. Does not block; answers seconds without connecting and comparing.
   */
  peerTransfer(plan: PeerPlan, memory: ArrayBuffer): Promise<number>;
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
