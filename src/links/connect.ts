import { localError } from '../common/errors.js';
import type { Connector } from './link.js';
import { connectShm } from './shm_connection.js';
import { parseStreamAddress } from './stream_address.js';
import { StreamConnection, type StreamOptions } from './stream_connection.js';

/**
 * Reaches a daemon by what its address says: the path of a control socket for shared memory, `unix:PATH` or
 * `tcp://HOST:PORT` for streams.
 */
export function connectorFor(options: StreamOptions): Connector {
  return async (address, deadlineMs) => {
    const stream = parseStreamAddress(address);
    if (stream) return StreamConnection.connect(stream, deadlineMs, options);
    if (options.carrier) {
      throw localError('KVSS_BAD_INPUT', `'${address}': a carrier needs streams; write unix:PATH or tcp://HOST:PORT`);
    }
    return connectShm(address, deadlineMs);
  };
}
