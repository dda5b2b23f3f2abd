import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
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
    const giveUp = performance.now() + deadlineMs;
    const host = address.port === null ? address.hostOrPath : await numericHost(address.hostOrPath, deadlineMs);
    return await native.connectLane(host, address.port, hello, giveUp - performance.now());
  } catch (thrown) {
    const error = nativeError(thrown);
    // A peer that said no has its own reason; anything else is that there is no peer to be reached.
    if (error.status === Status.badVersion || error.status === Status.draining) throw error;
    throw localError('KVSS_UNREACHABLE', messageOf(thrown), thrown);
  }
}

/** Looks up a name, for which the resolver may take longer than the caller has. */
async function numericHost(host: string, deadlineMs: number): Promise<string> {
  if (isIP(host) !== 0) return host;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`the address of ${host} was not found within ${deadlineMs} ms`)),
      deadlineMs,
    );
  });
  try {
    return (await Promise.race([lookup(host), late])).address;
  } finally {
    clearTimeout(timer);
  }
}
