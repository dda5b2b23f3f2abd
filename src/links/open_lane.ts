import { type DescriptorBundle, native, nativeError } from '../binding/native.js';
import { localError, messageOf } from '../common/errors.js';
import { Status } from '../proto/generated.js';
import type { StreamAddress } from './stream_address.js';

/** Connects a lane. Rejects with what the other side answered, or KVSS_UNREACHABLE, within `deadlineMs`. */
export async function openLane(
  address: StreamAddress,
  hello: Uint8Array,
  deadlineMs: number,
): Promise<DescriptorBundle> {
  try {
    return await native.connectLane(address.hostOrPath, address.port, hello, deadlineMs);
  } catch (thrown) {
    const error = nativeError(thrown);
    // A peer that said no has its own reason; anything else is that there is no peer to be reached.
    if (error.status === Status.badVersion || error.status === Status.draining) throw error;
    throw localError('KVSS_UNREACHABLE', messageOf(thrown), thrown);
  }
}
