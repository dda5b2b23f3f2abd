import { Packr } from 'msgpackr';
import { z } from 'zod';
import { KvssError } from '../common/errors.js';
import { TENANT_DIGEST_BYTES, tenantPolicy } from '../common/tenant_policy.js';
import { driverReport, reportedDriver } from './driver_report.js';
import {
  decodeFrameHeader,
  encodeFrameHeader,
  FRAME_MAGIC,
  FrameHeaderLayout,
  FrameType,
  frameTypeName,
  MAX_FRAME_BYTES,
  MAX_PIECE_BYTES,
  MAX_POLICIES_PER_FRAME,
  MAX_RING_ENTRIES,
  MAX_SESSIONS,
  MAX_SHARDS,
  MAX_SLOTS_PER_GRANT,
  MAX_SLOTS_PER_PAGE,
  MAX_WIO_STREAMS,
  MIN_RING_ENTRIES,
  PROTOCOL_VERSION,
  SlotEntryLayout,
  Status,
} from './generated.js';
import { isPlainMsgpack } from './plain_msgpack.js';

export const TICKET_BYTES = 32;

/** Bytes of the secret that brings parked memory back, and of its SHA-256. */
export const OWNER_BYTES = 32;

/** One control frame: a fixed header and a msgpack map. */
export interface Frame {
  type: FrameType;
  /** 0 where nothing is asked or answered. */
  requestId: number;
  payload: unknown;
}

// Plain msgpack only, both ways; isPlainMsgpack keeps out what the decoder would take besides.
const codec = new Packr({ useRecords: false, mapsAsObjects: true, int64AsType: 'number', moreTypes: false });

/** Bytes that a payload takes in a frame. */
export function payloadLength(payload: unknown): number {
  return codec.pack(payload).length;
}

export function encodeFrame(frame: Frame): Uint8Array {
  const payload = codec.pack(frame.payload);
  const bytes = new Uint8Array(FrameHeaderLayout.bytes + payload.length);
  if (bytes.length > MAX_FRAME_BYTES) {
    throw KvssError.ofStatus(Status.limitExceeded, `a control frame of ${bytes.length} bytes is too long`);
  }
  encodeFrameHeader(new DataView(bytes.buffer), 0, {
    magic: FRAME_MAGIC,
    version: PROTOCOL_VERSION,
    type: frame.type,
    payloadBytes: payload.length,
    flags: 0,
    requestId: BigInt(frame.requestId),
  });
  bytes.set(payload, FrameHeaderLayout.bytes);
  return bytes;
}

/** Throws a KvssError with badFrame or badVersion; what was wrong is in the message. */
export function decodeFrame(bytes: Uint8Array): Frame {
  const bad = (what: string) => KvssError.ofStatus(Status.badFrame, `bad control frame: ${what}`);
  if (bytes.length < FrameHeaderLayout.bytes) throw bad(`${bytes.length} bytes are shorter than its header`);
  const header = decodeFrameHeader(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0);
  if (header.magic !== FRAME_MAGIC) throw bad('it does not start with KVSS');
  if (header.version !== PROTOCOL_VERSION) {
    throw KvssError.ofStatus(
      Status.badVersion,
      `the other side speaks protocol version ${header.version}, this side version ${PROTOCOL_VERSION}`,
    );
  }
  if (frameTypeName(header.type) === undefined) throw bad(`unknown type ${header.type}`);
  if (header.flags !== 0) throw bad('reserved flags are set');
  if (header.payloadBytes !== bytes.length - FrameHeaderLayout.bytes) {
    throw bad(`it announces ${header.payloadBytes} bytes of payload and has ${bytes.length - FrameHeaderLayout.bytes}`);
  }
  if (header.requestId > BigInt(Number.MAX_SAFE_INTEGER)) throw bad('the requestId is too large');
  const body = bytes.subarray(FrameHeaderLayout.bytes);
  if (!isPlainMsgpack(body)) throw bad('the payload is not msgpack of plain values');
  let payload: unknown;
  try {
    payload = codec.unpack(body);
  } catch {
    throw bad('the payload is not msgpack');
  }
  return { type: header.type as FrameType, requestId: Number(header.requestId), payload };
}

const count = (max: number) => z.number().int().min(0).max(max);
const positive = (max: number) => z.number().int().min(1).max(max);
const bytes = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const shard = count(MAX_SHARDS - 1);

/** 32 random bytes that open lanes. */
const ticket = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.length === TICKET_BYTES,
  'a ticket has 32 bytes',
);

/** Which tenant; see tenantDigest. */
const digest = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.length === TENANT_DIGEST_BYTES,
  'a digest has 32 bytes',
);

const ownerBytes = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.length === OWNER_BYTES,
  `must have ${OWNER_BYTES} bytes`,
);
/** Tells the grants of one owner on one shard apart. */
const label = z.string().max(64);
const DAY_MS = 86_400_000;

/** Keeps a grant for a while where its session ends without a goodbye. */
const park = z.object({
  /** SHA-256 of the secret that brings it back. */
  owner: ownerBytes,
  label,
  ms: positive(DAY_MS),
});

/** Instead of a grant: one that was parked. */
const resume = z.object({
  /** What it is called from now on. */
  grantId: count(2 ** 32 - 1),
  secret: ownerBytes,
  label,
  pieceBytes: positive(MAX_PIECE_BYTES),
  /** What is to become of it the next time. */
  park: park.optional(),
});

const resumed = z.object({
  slots: positive(MAX_SLOTS_PER_GRANT),
  slotBytes: positive(MAX_PIECE_BYTES),
  bytes,
  hugePages: z.boolean(),
});

const slotEntries = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.length % SlotEntryLayout.bytes === 0,
  `entries have ${SlotEntryLayout.bytes} bytes each`,
);

/** Columns on an emulated wafer: 64 bits of place and 64 bits of key each. */
const packedColumns = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.length % 16 === 0,
  'columns have 16 bytes each',
);

/** Shards that one stripe may have: those of a few boxes. */
const MAX_STRIPE_SHARDS = 1024;

const shardState = z.object({
  index: shard,
  /** I/O domain of the box that the shard serves. */
  domain: count(65535),
  budgetBytes: bytes,
  freeBytes: bytes,
  hugePages: z.boolean(),
  /** Of memory that is neither free nor any session's, but makes room for one. */
  parkedBytes: bytes.optional(),
});

/** What the payload of each frame type looks like. Unknown keys are ignored, so that fields can be added. */
export const Payload = {
  hello: z.object({
    client: z.string().max(256),
    /** Shared secret of a stream listener that wants one. */
    token: z.string().max(1024).optional(),
    /** Whether the client follows tenant policies: it asks for them when it is told that there are some. */
    policies: z.boolean().optional(),
  }),
  welcome: z.object({
    daemon: z.string().max(256),
    /** Chosen at random when the daemon starts: two daemons, or two lives of one, never share it. */
    epoch: z.string().max(64),
    sessionId: count(Number.MAX_SAFE_INTEGER),
    pid: count(2 ** 31),
    shards: z.array(shardState).max(MAX_SHARDS),
    /** Version of the tenant policies. Where it is there, the client may store nothing before it has asked for them. */
    policies: count(Number.MAX_SAFE_INTEGER).optional(),
    /** Whether the daemon takes reports. */
    reports: z.boolean().optional(),
  }),
  attach: z.object({
    shard,
    ringEntries: z.number().int().min(MIN_RING_ENTRIES).max(MAX_RING_ENTRIES),
    resume: resume.optional(),
  }),
  attached: z.object({ ringEntries: positive(MAX_RING_ENTRIES), resumed: resumed.optional() }),
  attachStream: z.object({
    shard,
    window: z.number().int().min(MIN_RING_ENTRIES).max(MAX_RING_ENTRIES),
    /** Whether payload of refills is to carry a checksum. */
    checksums: z.boolean().optional(),
    resume: resume.optional(),
  }),
  streamAttached: z.object({ window: positive(MAX_RING_ENTRIES), ticket, resumed: resumed.optional() }),
  ticket: z.object({ shard, lifetimeMs: positive(600_000) }),
  ticketIssued: z.object({ ticket }),
  grant: z.object({
    shard,
    grantId: count(2 ** 32 - 1),
    slots: positive(MAX_SLOTS_PER_GRANT),
    pieceBytes: positive(MAX_PIECE_BYTES),
    park: park.optional(),
  }),
  granted: z.object({ slotBytes: positive(MAX_PIECE_BYTES), bytes, hugePages: z.boolean() }),
  release: z.object({ shard, grantId: count(2 ** 32 - 1) }),
  released: z.object({}),
  stats: z.object({
    /** Only drivers of later sessions than this one; the others were in an answer before. */
    driversAfter: bytes.optional(),
  }),
  statsReply: z.object({
    shards: z.array(shardState).max(MAX_SHARDS),
    sessions: count(65536),
    uptimeSeconds: z.number(),
    /** Drivers that have reported, by session. */
    drivers: z.array(reportedDriver).max(MAX_SESSIONS).optional(),
    /** Whether there are more than fit into the frame. */
    moreDrivers: z.boolean().optional(),
  }),
  carrierHello: z.object({
    client: z.string().max(256),
    /** Chosen at random by the driver, the same for every connection of it: the memory has one owner at a time. */
    owner: z.string().min(1).max(64),
    /** Shared secret of a listener that wants one. */
    token: z.string().max(1024).optional(),
  }),
  carrierWelcome: z.object({
    carrier: z.string().max(256),
    /** Chosen at random when the memory gets an owner: another one means that what was in it is void. */
    epoch: z.string().max(64),
    sessionId: count(Number.MAX_SAFE_INTEGER),
    /** Columns that its memory holds. */
    places: positive(MAX_SLOTS_PER_GRANT),
    /** Bytes of the piece of each domain, in the order of the shards of a stripe. */
    pieceBytes: z.array(positive(MAX_PIECE_BYTES)).min(1).max(MAX_STRIPE_SHARDS),
  }),
  carry: z.object({
    /** Where the daemon takes streams, as the carrier reaches it. */
    daemon: z.string().max(1024),
    shard,
    sessionId: count(Number.MAX_SAFE_INTEGER),
    ticket,
    /** Position of the shard in its stripe, which says whose memory and how large a piece. */
    domain: count(MAX_STRIPE_SHARDS - 1),
    window: positive(MAX_RING_ENTRIES),
    /** WIO lanes of each direction. */
    streams: positive(MAX_WIO_STREAMS),
    checksums: z.boolean(),
  }),
  /** `link` names what is carried, and is the shard of the order lane's hello. */
  carrying: z.object({ link: count(2 ** 32 - 1), ticket }),
  drop: z.object({ link: count(2 ** 32 - 1) }),
  dropped: z.object({}),
  compute: z.object({ phase: z.enum(['prefill', 'decode']), columns: packedColumns }),
  computed: z.object({}),
  check: z.object({ columns: packedColumns }),
  checked: z.object({ bytes, lines: bytes, mismatches: bytes }),
  policies: z.object({
    /** `version` and `basis` of the last page; 0 for none. */
    since: bytes,
    basis: bytes,
  }),
  policiesPage: z.object({
    /** Version up to which the client has all changes with this page. */
    version: bytes,
    /** Another one than was asked with goes with `reset`. */
    basis: bytes,
    /** Whether everything that came before is void. */
    reset: z.boolean(),
    /** Whether changes after `version` are left. Until they have come, what is known is incomplete. */
    more: z.boolean(),
    /** Policy of tenants without one of their own. */
    default: tenantPolicy,
    /** An entry without a policy says that the tenant has none of its own any more. */
    entries: z.array(z.object({ digest, policy: tenantPolicy.optional() })).max(MAX_POLICIES_PER_FRAME),
  }),
  report: driverReport,
  reported: z.object({}),
  slotTable: z.object({
    shard,
    grantId: count(2 ** 32 - 1),
    from: count(MAX_SLOTS_PER_GRANT),
    count: positive(MAX_SLOTS_PER_PAGE),
  }),
  slotPage: z.object({ slots: slotEntries }),
  goodbye: z.object({}),
  farewell: z.object({}),
  error: z.object({ status: count(65535), message: z.string().max(4096) }),
  draining: z.object({}),
  policiesChanged: z.object({}),
} as const;

export type PayloadOf<Name extends keyof typeof Payload> = z.infer<(typeof Payload)[Name]>;
export type ShardState = z.infer<typeof shardState>;
export type { DriverReport, ReportedDriver } from './driver_report.js';

/** The payload of a frame of a known type, checked. Throws a KvssError with badFrame that names the field. */
export function parsePayload<Name extends keyof typeof Payload>(name: Name, payload: unknown): PayloadOf<Name> {
  const parsed = Payload[name].safeParse(payload);
  if (parsed.success) return parsed.data as PayloadOf<Name>;
  const issue = parsed.error.issues[0];
  throw KvssError.ofStatus(
    Status.badFrame,
    `bad ${name} frame: ${issue?.path.join('.') || 'payload'}: ${issue?.message ?? 'invalid'}`,
  );
}

export { FrameType };
