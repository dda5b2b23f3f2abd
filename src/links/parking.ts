import { nativeError } from '../binding/native.js';
import { KvssError, localError } from '../common/errors.js';
import { OWNER_BYTES, type PayloadOf } from '../proto/frames.js';
import { MAX_SLOTS_PER_PAGE, SlotEntryLayout, SlotState, Status } from '../proto/generated.js';
import type { ControlClient } from './control_client.js';
import type { LinkRequest, SlotTable } from './link.js';

/** Longest that a close waits for a daemon which may not answer at all. */
const GOODBYE_MS = 1_000;

/** The `park` of a frame, where the request has one. Throws KVSS_BAD_INPUT. */
export function parkOf({ park, label = '' }: LinkRequest): { park?: PayloadOf<'grant'>['park'] } {
  if (!park) return {};
  checkOwner('park.owner', park.owner);
  return { park: { owner: park.owner, label, ms: Math.ceil(park.ms) } };
}

/** The `resume` of a frame. Throws KVSS_BAD_INPUT. */
export function resumeOf(
  grantId: number,
  request: LinkRequest & { secret: Uint8Array },
): NonNullable<PayloadOf<'attach'>['resume']> {
  const { secret, label = '', pieceBytes } = request;
  checkOwner('secret', secret);
  return { grantId, secret, label, pieceBytes, ...parkOf(request) };
}

function checkOwner(what: string, bytes: Uint8Array): void {
  if (bytes.length !== OWNER_BYTES) {
    throw localError('KVSS_BAD_INPUT', `${what}: has ${bytes.length} bytes, must have ${OWNER_BYTES}`);
  }
}

/** What a request for something parked resolves with, or undefined where the daemon has nothing of the kind. */
export async function unlessNothingParked<T>(asking: Promise<T>): Promise<T | undefined> {
  try {
    return await asking;
  } catch (thrown) {
    const error = nativeError(thrown);
    if (error.status === Status.nothingParked) return undefined;
    throw error;
  }
}

/** Tells a daemon that nothing is to be parked. One that does not answer parks it, as it would if this process died now. */
export async function sayGoodbye(client: ControlClient): Promise<void> {
  await client.request('goodbye', {}, 'farewell', GOODBYE_MS).catch(() => {});
}

/** Asks what the slots of a grant hold. */
export async function readSlotTable(
  client: ControlClient,
  shard: number,
  grantId: number,
  slots: number,
): Promise<SlotTable> {
  const table: SlotTable = {
    generations: new Float64Array(slots),
    tenantTags: new BigUint64Array(slots),
    holds: new Uint8Array(slots),
  };
  // One after the other: more than a few answers do not fit the buffer of a Unix socket.
  for (let from = 0; from < slots; from += MAX_SLOTS_PER_PAGE) {
    const count = Math.min(MAX_SLOTS_PER_PAGE, slots - from);
    const { payload } = await client.request('slotTable', { shard, grantId, from, count }, 'slotPage');
    takePage(table, from, count, payload.slots);
  }
  return table;
}

function takePage({ generations, tenantTags, holds }: SlotTable, from: number, count: number, page: Uint8Array): void {
  const { bytes, offset } = SlotEntryLayout;
  if (page.length !== count * bytes) {
    throw KvssError.ofStatus(Status.badFrame, `${count} slots were asked for, and ${page.length / bytes} came`);
  }
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
  for (let index = 0; index < count; index += 1) {
    const at = index * bytes;
    const slot = from + index;
    generations[slot] = Number(view.getBigUint64(at + offset.generation, true));
    tenantTags[slot] = view.getBigUint64(at + offset.tenantTag, true);
    holds[slot] = view.getUint32(at + offset.state, true) === SlotState.stored ? 1 : 0;
  }
}
