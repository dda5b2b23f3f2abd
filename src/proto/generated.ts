// Generated from proto/kvss.yaml by `npm run generate`. Do not edit.

/** Version of every layout in this file. Both sides of a session must speak the same one. */
export const PROTOCOL_VERSION = 1;
/** First four bytes of every frame: the ASCII letters KVSS. */
export const FRAME_MAGIC = 1397970507;
/** First four bytes of a submit segment: KVSQ. */
export const SUBMIT_MAGIC = 1364416075;
/** First four bytes of a status segment: KVSC. */
export const STATUS_MAGIC = 1129535051;
/** First four bytes of a counters segment: KVSN. */
export const COUNTERS_MAGIC = 1314084427;
/** First four bytes of a stream connection: KVSL. */
export const LANE_MAGIC = 1280529995;
/** First four bytes of every frame on a HIO or WIO lane: KVSD. */
export const STREAM_MAGIC = 1146312267;
/** Alignment of slots and of every field that one side writes while the other reads. */
export const CACHE_LINE_BYTES = 64;
/** Header and payload of one control frame. A longer frame ends the connection before anything is allocated for it. */
export const MAX_FRAME_BYTES = 65536;
/** File descriptors that one control frame may carry. */
export const MAX_FRAME_DESCRIPTORS = 64;
/** Entries of a submission ring. Rings are powers of two. */
export const MIN_RING_ENTRIES = 8;
/** Entries of a submission ring. */
export const MAX_RING_ENTRIES = 8192;
/** Shards of one daemon. */
export const MAX_SHARDS = 64;
/** Driver sessions of one daemon. */
export const MAX_SESSIONS = 256;
/** Grants of one session on one shard. */
export const MAX_GRANTS_PER_SESSION = 64;
/** Slots of one grant. The engine keeps 32 bytes of private state a slot. */
export const MAX_SLOTS_PER_GRANT = 16777216;
/** Bytes of one piece. */
export const MAX_PIECE_BYTES = 1073741824;
/** WIO lanes of each direction that one session may have on one shard. */
export const MAX_WIO_STREAMS = 16;
/** SlotEntries of one slotPage. */
export const MAX_SLOTS_PER_PAGE = 2500;
/** Longest time that one operation may wait for its gate and its transfer: ten minutes. */
export const MAX_OPERATION_TIMEOUT_US = 600000000;
/** Tenant policies of one daemon. */
export const MAX_POLICIES = 10000;
/** Entries of one policiesPage; each takes less than 200 bytes, so that the frame stays below maxFrameBytes. */
export const MAX_POLICIES_PER_FRAME = 256;

/** What a control frame says. Requests are odd, the answer to a request is the next even number. */
export const FrameType = {
  /** Driver to daemon, first frame of a connection: who speaks, and which protocol. */
  hello: 1,
  /** Answer to hello: the epoch of the daemon and its shards. */
  welcome: 2,
  /** Open the two queues of this session on one shard. */
  attach: 3,
  /** Answer to attach. Carries four descriptors: submit segment, status segment, submit wake, completion wake. */
  attached: 4,
  /** Ask one shard for memory for slots of one piece size. */
  grant: 5,
  /** Answer to grant. Carries one descriptor: the memory object of the grant. */
  granted: 6,
  /** Give one grant back. */
  release: 7,
  /** Answer to release: the memory has been scrubbed and is free again. */
  released: 8,
  /** Ask for the counters segments and the state of the shards. */
  stats: 9,
  /** Answer to stats. Carries one descriptor a shard: its counters segment, read-only. */
  statsReply: 10,
  /** Open the two queues of this session on one shard for lanes over a stream. */
  attachStream: 11,
  /** Answer to attachStream: the ticket that opens lanes. */
  streamAttached: 12,
  /** Ask for a ticket with which another process may open WIO lanes of this session, for a short time. */
  ticket: 13,
  /** Answer to ticket. */
  ticketIssued: 14,
  /** Driver to carrier, first frame of a connection: who speaks. */
  carrierHello: 15,
  /** Answer to carrierHello: the memory of the carrier. */
  carrierWelcome: 16,
  /** Ask a carrier to carry the payload of a session on one shard. */
  carry: 17,
  /** Answer to carry: the ticket that opens the order lane. */
  carrying: 18,
  /** Ask a carrier to close its lanes of a session on one shard. */
  drop: 19,
  /** Answer to drop: nothing of it touches the memory of the carrier any more. */
  dropped: 20,
  /** Emulated wafers only: fill places with the state of columns. */
  compute: 21,
  /** Answer to compute. */
  computed: 22,
  /** Emulated wafers only: look whether places hold the state of columns. */
  check: 23,
  /** Answer to check. */
  checked: 24,
  /** Driver to daemon: ask for the tenant policies that changed after a version. */
  policies: 25,
  /** Answer to policies: some of them, oldest change first. */
  policiesPage: 26,
  /** Driver to daemon: how its cache does, for stats and metrics. */
  report: 27,
  /** Answer to report. */
  reported: 28,
  /** Ask what the slots of a grant hold. */
  slotTable: 29,
  /** Answer to slotTable: some SlotEntries. */
  slotPage: 30,
  /** The client is about to close, and nothing of it is to be parked. */
  goodbye: 31,
  /** Answer to goodbye. */
  farewell: 32,
  /** A request was refused (it echoes the requestId), or, with requestId 0, the session is over. */
  error: 64,
  /** The daemon is shutting down. Finish what is in flight; send nothing new. */
  draining: 65,
  /** Daemon to driver, unasked: there are tenant policies that the driver has not seen. Not sent again before the driver has asked. */
  policiesChanged: 66,
} as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];
export type FrameTypeName = keyof typeof FrameType;
const FRAME_TYPE_NAMES: ReadonlyMap<number, FrameTypeName> = new Map(
  (Object.entries(FrameType) as [FrameTypeName, number][]).map(([name, value]) => [value, name]),
);
/** Name of a FrameType value, or undefined where the protocol has none. */
export const frameTypeName = (value: number): FrameTypeName | undefined =>
  FRAME_TYPE_NAMES.get(value);

/** What a stream connection is for. */
export const LaneKind = {
  /** Control frames. */
  control: 1,
  /** Descriptors to the shard and completions back. */
  hio: 2,
  /** Payload of evicts to the shard. */
  wioEvict: 3,
  /** Payload of refills from the shard. */
  wioRefill: 4,
  /** From a driver to a carrier: orders, and their acknowledgements back. */
  order: 5,
} as const;
export type LaneKind = (typeof LaneKind)[keyof typeof LaneKind];
export type LaneKindName = keyof typeof LaneKind;
const LANE_KIND_NAMES: ReadonlyMap<number, LaneKindName> = new Map(
  (Object.entries(LaneKind) as [LaneKindName, number][]).map(([name, value]) => [value, name]),
);
/** Name of a LaneKind value, or undefined where the protocol has none. */
export const laneKindName = (value: number): LaneKindName | undefined =>
  LANE_KIND_NAMES.get(value);

/** What a frame on a HIO or WIO lane holds. */
export const StreamType = {
  /** Descriptors, on HIO lanes to the shard. */
  descriptors: 1,
  /** Completions, on HIO lanes from the shard. requestId is evictCount and generation is commandCount after them. */
  completions: 2,
  /** One piece, on WIO lanes. requestId is the sequence of the operation in its queue. */
  payload: 3,
  /** TransferOrders, on order lanes to the carrier. */
  orders: 4,
  /** TransferAcks, on order lanes from the carrier. */
  acks: 5,
} as const;
export type StreamType = (typeof StreamType)[keyof typeof StreamType];
export type StreamTypeName = keyof typeof StreamType;
const STREAM_TYPE_NAMES: ReadonlyMap<number, StreamTypeName> = new Map(
  (Object.entries(StreamType) as [StreamTypeName, number][]).map(([name, value]) => [value, name]),
);
/** Name of a StreamType value, or undefined where the protocol has none. */
export const streamTypeName = (value: number): StreamTypeName | undefined =>
  STREAM_TYPE_NAMES.get(value);

/** What a descriptor asks of the shard. */
export const Opcode = {
  /** A piece goes to KVSS. Travels in the evict queue only. */
  evict: 1,
  /** A piece comes back. Travels in the refill/delete queue only. */
  refill: 2,
  /** Forget a piece. Travels in the refill/delete queue only. */
  delete: 3,
} as const;
export type Opcode = (typeof Opcode)[keyof typeof Opcode];
export type OpcodeName = keyof typeof Opcode;
const OPCODE_NAMES: ReadonlyMap<number, OpcodeName> = new Map(
  (Object.entries(Opcode) as [OpcodeName, number][]).map(([name, value]) => [value, name]),
);
/** Name of a Opcode value, or undefined where the protocol has none. */
export const opcodeName = (value: number): OpcodeName | undefined =>
  OPCODE_NAMES.get(value);

/** How an operation or a request ended. 1 to 31 are outcomes of a healthy store, 32 and above are faults. */
export const Status = {
  /** Done. */
  ok: 0,
  /** Miss: the slot holds no piece (never stored, deleted, or its evict failed). */
  missEmpty: 1,
  /** Miss: the slot holds another generation than the one asked for. */
  missOverwritten: 2,
  /** Miss and alarm: the generation matches but the tenant tag does not. */
  missTenant: 3,
  /** The time of the operation was up. A refill had no effect, an evict leaves its slot empty, a delete that had begun has forgotten its piece. */
  deadline: 16,
  /** The session ended before the operation had finished. */
  cancelled: 17,
  /** Unknown opcode, an opcode in the wrong queue, or a reserved field that is not zero. */
  badOpcode: 32,
  /** The session has no such grant on this shard. */
  badGrant: 33,
  /** The slot number is not below the number of slots of the grant. */
  badSlot: 34,
  /** The length is not the piece size of the grant. */
  badLength: 35,
  /** The generation of an evict is not higher than that of the slot. */
  badGeneration: 36,
  /** The bytes did not arrive or could not be sent. The slot is empty afterwards if it was an evict. */
  transferFailed: 37,
  /** A frame is malformed: magic, length, type or payload. */
  badFrame: 64,
  /** The other side speaks another protocol version. */
  badVersion: 65,
  /** The peer may not do this: its user id is not on the list, or the frame is not valid in this state. */
  notAllowed: 66,
  /** The daemon has no such shard. */
  unknownShard: 67,
  /** The shard cannot grant that much memory. */
  noMemory: 68,
  /** A limit of the protocol or of the configuration was reached. */
  limitExceeded: 69,
  /** The daemon is shutting down. */
  draining: 70,
  /** The client wrote impossible ring positions. The session was ended; no other session is affected. */
  ringCorrupt: 71,
  /** The daemon failed to do this. Its log says why. */
  internal: 72,
  /** Nothing is parked that this secret, label and piece size would bring back. */
  nothingParked: 73,
} as const;
export type Status = (typeof Status)[keyof typeof Status];
export type StatusName = keyof typeof Status;
const STATUS_NAMES: ReadonlyMap<number, StatusName> = new Map(
  (Object.entries(Status) as [StatusName, number][]).map(([name, value]) => [value, name]),
);
/** Name of a Status value, or undefined where the protocol has none. */
export const statusName = (value: number): StatusName | undefined =>
  STATUS_NAMES.get(value);

/** State of a slot, kept by the engine and never mapped by clients. */
export const SlotState = {
  /** Holds nothing that may be read. */
  empty: 0,
  /** An evict is running. */
  writing: 1,
  /** Holds the piece of its generation. */
  stored: 2,
} as const;
export type SlotState = (typeof SlotState)[keyof typeof SlotState];
export type SlotStateName = keyof typeof SlotState;
const SLOT_STATE_NAMES: ReadonlyMap<number, SlotStateName> = new Map(
  (Object.entries(SlotState) as [SlotStateName, number][]).map(([name, value]) => [value, name]),
);
/** Name of a SlotState value, or undefined where the protocol has none. */
export const slotStateName = (value: number): SlotStateName | undefined =>
  SLOT_STATE_NAMES.get(value);

/** Bits of Descriptor.flags. Unknown bits are refused with badOpcode. */
export const DescriptorFlag = {
  /** Delete only: overwrite the slot with zeros before the delete completes. */
  scrub: 1,
} as const;

/** Bits of TransferOrder.flags. Unknown bits end the order lane. */
export const OrderFlag = {
  /** The operation has ended without its bytes: let go of the memory. Acknowledged like the transfer itself, once. */
  withdraw: 1,
} as const;

/** Layout of FrameHeader: byte offsets. Precedes every control frame. On a Unix socket one packet is one frame. The layout never changes. */
export const FrameHeaderLayout = {
  bytes: 24,
  align: 8,
  offset: {
    /** u32: frameMagic */
    magic: 0,
    /** u16: protocolVersion of the sender */
    version: 4,
    /** u16: FrameType */
    type: 6,
    /** u32: length of the msgpack payload that follows, at most maxFrameBytes - 24 */
    payloadBytes: 8,
    /** u32: reserved and zero */
    flags: 12,
    /** u64: chosen by the asking side and echoed in the answer; 0 where nothing was asked */
    requestId: 16,
  },
  type: {
    magic: 'u32',
    version: 'u16',
    type: 'u16',
    payloadBytes: 'u32',
    flags: 'u32',
    requestId: 'u64',
  },
} as const;

/** Precedes every control frame. On a Unix socket one packet is one frame. The layout never changes. */
export interface FrameHeader {
  /** frameMagic */
  magic: number;
  /** protocolVersion of the sender */
  version: number;
  /** FrameType */
  type: number;
  /** length of the msgpack payload that follows, at most maxFrameBytes - 24 */
  payloadBytes: number;
  /** reserved and zero */
  flags: number;
  /** chosen by the asking side and echoed in the answer; 0 where nothing was asked */
  requestId: bigint;
}

/** Writes a FrameHeader at `at`; the view must have 24 bytes left. */
export function encodeFrameHeader(view: DataView, at: number, value: FrameHeader): void {
  view.setUint32(at + 0, value.magic, true);
  view.setUint16(at + 4, value.version, true);
  view.setUint16(at + 6, value.type, true);
  view.setUint32(at + 8, value.payloadBytes, true);
  view.setUint32(at + 12, value.flags, true);
  view.setBigUint64(at + 16, value.requestId, true);
}

/** Reads the FrameHeader at `at`. Says nothing about whether its values make sense. */
export function decodeFrameHeader(view: DataView, at: number): FrameHeader {
  return {
    magic: view.getUint32(at + 0, true),
    version: view.getUint16(at + 4, true),
    type: view.getUint16(at + 6, true),
    payloadBytes: view.getUint32(at + 8, true),
    flags: view.getUint32(at + 12, true),
    requestId: view.getBigUint64(at + 16, true),
  };
}

/** Layout of Descriptor: byte offsets. One operation in a submission ring. The engine reads it once, into private memory. */
export const DescriptorLayout = {
  bytes: 64,
  align: 64,
  offset: {
    /** u16: Opcode */
    opcode: 0,
    /** u16: DescriptorFlag */
    flags: 2,
    /** u32: which grant of this session on this shard */
    grantId: 4,
    /** u32: slot within the grant */
    slot: 8,
    /** u32: must equal the piece size of the grant */
    pieceBytes: 12,
    /** u64: evict: the new generation, higher than the last one of the slot. refill, delete: the generation meant */
    generation: 16,
    /** u64: evict: stamped on the slot. refill: must match the stamp */
    tenantTag: 24,
    /** u64: evict: afterCommand. refill, delete: afterEvict. How many operations of the other queue must have finished first */
    after: 32,
    /** u64: echoed in the completion */
    userData: 40,
    /** u32: microseconds that the operation may wait, counted from when the engine reads it; 0 means maxOperationTimeoutUs */
    timeoutUs: 48,
    /** u32: zero */
    reserved0: 52,
    /** u64: zero */
    reserved1: 56,
  },
  type: {
    opcode: 'u16',
    flags: 'u16',
    grantId: 'u32',
    slot: 'u32',
    pieceBytes: 'u32',
    generation: 'u64',
    tenantTag: 'u64',
    after: 'u64',
    userData: 'u64',
    timeoutUs: 'u32',
    reserved0: 'u32',
    reserved1: 'u64',
  },
} as const;

/** One operation in a submission ring. The engine reads it once, into private memory. */
export interface Descriptor {
  /** Opcode */
  opcode: number;
  /** DescriptorFlag */
  flags: number;
  /** which grant of this session on this shard */
  grantId: number;
  /** slot within the grant */
  slot: number;
  /** must equal the piece size of the grant */
  pieceBytes: number;
  /** evict: the new generation, higher than the last one of the slot. refill, delete: the generation meant */
  generation: bigint;
  /** evict: stamped on the slot. refill: must match the stamp */
  tenantTag: bigint;
  /** evict: afterCommand. refill, delete: afterEvict. How many operations of the other queue must have finished first */
  after: bigint;
  /** echoed in the completion */
  userData: bigint;
  /** microseconds that the operation may wait, counted from when the engine reads it; 0 means maxOperationTimeoutUs */
  timeoutUs: number;
  /** zero */
  reserved0: number;
  /** zero */
  reserved1: bigint;
}

/** Writes a Descriptor at `at`; the view must have 64 bytes left. */
export function encodeDescriptor(view: DataView, at: number, value: Descriptor): void {
  view.setUint16(at + 0, value.opcode, true);
  view.setUint16(at + 2, value.flags, true);
  view.setUint32(at + 4, value.grantId, true);
  view.setUint32(at + 8, value.slot, true);
  view.setUint32(at + 12, value.pieceBytes, true);
  view.setBigUint64(at + 16, value.generation, true);
  view.setBigUint64(at + 24, value.tenantTag, true);
  view.setBigUint64(at + 32, value.after, true);
  view.setBigUint64(at + 40, value.userData, true);
  view.setUint32(at + 48, value.timeoutUs, true);
  view.setUint32(at + 52, value.reserved0, true);
  view.setBigUint64(at + 56, value.reserved1, true);
}

/** Reads the Descriptor at `at`. Says nothing about whether its values make sense. */
export function decodeDescriptor(view: DataView, at: number): Descriptor {
  return {
    opcode: view.getUint16(at + 0, true),
    flags: view.getUint16(at + 2, true),
    grantId: view.getUint32(at + 4, true),
    slot: view.getUint32(at + 8, true),
    pieceBytes: view.getUint32(at + 12, true),
    generation: view.getBigUint64(at + 16, true),
    tenantTag: view.getBigUint64(at + 24, true),
    after: view.getBigUint64(at + 32, true),
    userData: view.getBigUint64(at + 40, true),
    timeoutUs: view.getUint32(at + 48, true),
    reserved0: view.getUint32(at + 52, true),
    reserved1: view.getBigUint64(at + 56, true),
  };
}

/** Layout of Completion: byte offsets. How one operation ended. Completions of one queue may come out of order; the counters never do. */
export const CompletionLayout = {
  bytes: 32,
  align: 32,
  offset: {
    /** u16: Opcode of the operation */
    opcode: 0,
    /** u16: Status */
    status: 2,
    /** u32: slot of the operation */
    slot: 4,
    /** u64: userData of the descriptor */
    userData: 8,
    /** u64: position of the operation in its queue, from 1 */
    sequence: 16,
    /** u64: generation of the slot after the operation, 0 where there is no such slot */
    generation: 24,
  },
  type: {
    opcode: 'u16',
    status: 'u16',
    slot: 'u32',
    userData: 'u64',
    sequence: 'u64',
    generation: 'u64',
  },
} as const;

/** How one operation ended. Completions of one queue may come out of order; the counters never do. */
export interface Completion {
  /** Opcode of the operation */
  opcode: number;
  /** Status */
  status: number;
  /** slot of the operation */
  slot: number;
  /** userData of the descriptor */
  userData: bigint;
  /** position of the operation in its queue, from 1 */
  sequence: bigint;
  /** generation of the slot after the operation, 0 where there is no such slot */
  generation: bigint;
}

/** Writes a Completion at `at`; the view must have 32 bytes left. */
export function encodeCompletion(view: DataView, at: number, value: Completion): void {
  view.setUint16(at + 0, value.opcode, true);
  view.setUint16(at + 2, value.status, true);
  view.setUint32(at + 4, value.slot, true);
  view.setBigUint64(at + 8, value.userData, true);
  view.setBigUint64(at + 16, value.sequence, true);
  view.setBigUint64(at + 24, value.generation, true);
}

/** Reads the Completion at `at`. Says nothing about whether its values make sense. */
export function decodeCompletion(view: DataView, at: number): Completion {
  return {
    opcode: view.getUint16(at + 0, true),
    status: view.getUint16(at + 2, true),
    slot: view.getUint32(at + 4, true),
    userData: view.getBigUint64(at + 8, true),
    sequence: view.getBigUint64(at + 16, true),
    generation: view.getBigUint64(at + 24, true),
  };
}

/** Layout of SlotEntry: byte offsets. What a slot holds, as slotPage has it. */
export const SlotEntryLayout = {
  bytes: 24,
  align: 8,
  offset: {
    /** u64: the highest that an evict into the slot has named; an evict has to name a higher one */
    generation: 0,
    /** u64: stamp of the evict of this generation */
    tenantTag: 8,
    /** u32: SlotState */
    state: 16,
    /** u32: zero */
    reserved: 20,
  },
  type: {
    generation: 'u64',
    tenantTag: 'u64',
    state: 'u32',
    reserved: 'u32',
  },
} as const;

/** What a slot holds, as slotPage has it. */
export interface SlotEntry {
  /** the highest that an evict into the slot has named; an evict has to name a higher one */
  generation: bigint;
  /** stamp of the evict of this generation */
  tenantTag: bigint;
  /** SlotState */
  state: number;
  /** zero */
  reserved: number;
}

/** Writes a SlotEntry at `at`; the view must have 24 bytes left. */
export function encodeSlotEntry(view: DataView, at: number, value: SlotEntry): void {
  view.setBigUint64(at + 0, value.generation, true);
  view.setBigUint64(at + 8, value.tenantTag, true);
  view.setUint32(at + 16, value.state, true);
  view.setUint32(at + 20, value.reserved, true);
}

/** Reads the SlotEntry at `at`. Says nothing about whether its values make sense. */
export function decodeSlotEntry(view: DataView, at: number): SlotEntry {
  return {
    generation: view.getBigUint64(at + 0, true),
    tenantTag: view.getBigUint64(at + 8, true),
    state: view.getUint32(at + 16, true),
    reserved: view.getUint32(at + 20, true),
  };
}

/** Layout of LaneHello: byte offsets. First bytes of a stream connection, from the client. */
export const LaneHelloLayout = {
  bytes: 64,
  align: 8,
  offset: {
    /** u32: laneMagic */
    magic: 0,
    /** u16: protocolVersion */
    version: 4,
    /** u16: LaneKind */
    kind: 6,
    /** u32: index of the shard; 0 for control */
    shard: 8,
    /** u32: number of the lane among those of its kind, from 0 */
    stream: 12,
    /** u64: of the session that the lane belongs to; 0 for control */
    sessionId: 16,
    /** u64: first part of the ticket: 32 random bytes from streamAttached or ticketIssued; zeros for control */
    ticket0: 24,
    /** u64: second part */
    ticket1: 32,
    /** u64: third part */
    ticket2: 40,
    /** u64: fourth part */
    ticket3: 48,
    /** u64: zero */
    reserved: 56,
  },
  type: {
    magic: 'u32',
    version: 'u16',
    kind: 'u16',
    shard: 'u32',
    stream: 'u32',
    sessionId: 'u64',
    ticket0: 'u64',
    ticket1: 'u64',
    ticket2: 'u64',
    ticket3: 'u64',
    reserved: 'u64',
  },
} as const;

/** First bytes of a stream connection, from the client. */
export interface LaneHello {
  /** laneMagic */
  magic: number;
  /** protocolVersion */
  version: number;
  /** LaneKind */
  kind: number;
  /** index of the shard; 0 for control */
  shard: number;
  /** number of the lane among those of its kind, from 0 */
  stream: number;
  /** of the session that the lane belongs to; 0 for control */
  sessionId: bigint;
  /** first part of the ticket: 32 random bytes from streamAttached or ticketIssued; zeros for control */
  ticket0: bigint;
  /** second part */
  ticket1: bigint;
  /** third part */
  ticket2: bigint;
  /** fourth part */
  ticket3: bigint;
  /** zero */
  reserved: bigint;
}

/** Writes a LaneHello at `at`; the view must have 64 bytes left. */
export function encodeLaneHello(view: DataView, at: number, value: LaneHello): void {
  view.setUint32(at + 0, value.magic, true);
  view.setUint16(at + 4, value.version, true);
  view.setUint16(at + 6, value.kind, true);
  view.setUint32(at + 8, value.shard, true);
  view.setUint32(at + 12, value.stream, true);
  view.setBigUint64(at + 16, value.sessionId, true);
  view.setBigUint64(at + 24, value.ticket0, true);
  view.setBigUint64(at + 32, value.ticket1, true);
  view.setBigUint64(at + 40, value.ticket2, true);
  view.setBigUint64(at + 48, value.ticket3, true);
  view.setBigUint64(at + 56, value.reserved, true);
}

/** Reads the LaneHello at `at`. Says nothing about whether its values make sense. */
export function decodeLaneHello(view: DataView, at: number): LaneHello {
  return {
    magic: view.getUint32(at + 0, true),
    version: view.getUint16(at + 4, true),
    kind: view.getUint16(at + 6, true),
    shard: view.getUint32(at + 8, true),
    stream: view.getUint32(at + 12, true),
    sessionId: view.getBigUint64(at + 16, true),
    ticket0: view.getBigUint64(at + 24, true),
    ticket1: view.getBigUint64(at + 32, true),
    ticket2: view.getBigUint64(at + 40, true),
    ticket3: view.getBigUint64(at + 48, true),
    reserved: view.getBigUint64(at + 56, true),
  };
}

/** Layout of LaneWelcome: byte offsets. Answer to LaneHello. Anything but ok is followed by the end of the connection. */
export const LaneWelcomeLayout = {
  bytes: 16,
  align: 8,
  offset: {
    /** u32: laneMagic */
    magic: 0,
    /** u16: protocolVersion */
    version: 4,
    /** u16: Status */
    status: 6,
    /** u64: zero */
    reserved: 8,
  },
  type: {
    magic: 'u32',
    version: 'u16',
    status: 'u16',
    reserved: 'u64',
  },
} as const;

/** Answer to LaneHello. Anything but ok is followed by the end of the connection. */
export interface LaneWelcome {
  /** laneMagic */
  magic: number;
  /** protocolVersion */
  version: number;
  /** Status */
  status: number;
  /** zero */
  reserved: bigint;
}

/** Writes a LaneWelcome at `at`; the view must have 16 bytes left. */
export function encodeLaneWelcome(view: DataView, at: number, value: LaneWelcome): void {
  view.setUint32(at + 0, value.magic, true);
  view.setUint16(at + 4, value.version, true);
  view.setUint16(at + 6, value.status, true);
  view.setBigUint64(at + 8, value.reserved, true);
}

/** Reads the LaneWelcome at `at`. Says nothing about whether its values make sense. */
export function decodeLaneWelcome(view: DataView, at: number): LaneWelcome {
  return {
    magic: view.getUint32(at + 0, true),
    version: view.getUint16(at + 4, true),
    status: view.getUint16(at + 6, true),
    reserved: view.getBigUint64(at + 8, true),
  };
}

/** Layout of StreamHeader: byte offsets. Precedes every frame on a HIO or WIO lane. */
export const StreamHeaderLayout = {
  bytes: 32,
  align: 8,
  offset: {
    /** u32: streamMagic */
    magic: 0,
    /** u16: protocolVersion */
    version: 4,
    /** u16: StreamType */
    type: 6,
    /** u32: bytes that follow */
    length: 8,
    /** u32: CRC32C of what follows, or 0 where the sender computes none */
    checksum: 12,
    /** u64: see StreamType */
    requestId: 16,
    /** u64: payload: generation of the slot */
    generation: 24,
  },
  type: {
    magic: 'u32',
    version: 'u16',
    type: 'u16',
    length: 'u32',
    checksum: 'u32',
    requestId: 'u64',
    generation: 'u64',
  },
} as const;

/** Precedes every frame on a HIO or WIO lane. */
export interface StreamHeader {
  /** streamMagic */
  magic: number;
  /** protocolVersion */
  version: number;
  /** StreamType */
  type: number;
  /** bytes that follow */
  length: number;
  /** CRC32C of what follows, or 0 where the sender computes none */
  checksum: number;
  /** see StreamType */
  requestId: bigint;
  /** payload: generation of the slot */
  generation: bigint;
}

/** Writes a StreamHeader at `at`; the view must have 32 bytes left. */
export function encodeStreamHeader(view: DataView, at: number, value: StreamHeader): void {
  view.setUint32(at + 0, value.magic, true);
  view.setUint16(at + 4, value.version, true);
  view.setUint16(at + 6, value.type, true);
  view.setUint32(at + 8, value.length, true);
  view.setUint32(at + 12, value.checksum, true);
  view.setBigUint64(at + 16, value.requestId, true);
  view.setBigUint64(at + 24, value.generation, true);
}

/** Reads the StreamHeader at `at`. Says nothing about whether its values make sense. */
export function decodeStreamHeader(view: DataView, at: number): StreamHeader {
  return {
    magic: view.getUint32(at + 0, true),
    version: view.getUint16(at + 4, true),
    type: view.getUint16(at + 6, true),
    length: view.getUint32(at + 8, true),
    checksum: view.getUint32(at + 12, true),
    requestId: view.getBigUint64(at + 16, true),
    generation: view.getBigUint64(at + 24, true),
  };
}

/** Layout of TransferOrder: byte offsets. What a carrier is to send or to receive for one operation. */
export const TransferOrderLayout = {
  bytes: 32,
  align: 8,
  offset: {
    /** u16: Opcode of the operation: evict or refill */
    opcode: 0,
    /** u16: OrderFlag */
    flags: 2,
    /** u32: length of the piece */
    pieceBytes: 4,
    /** u64: position of the operation in its queue */
    sequence: 8,
    /** u64: generation of the slot */
    generation: 16,
    /** u32: where in the memory of the carrier the piece lies or goes */
    place: 24,
    /** u32: zero */
    reserved: 28,
  },
  type: {
    opcode: 'u16',
    flags: 'u16',
    pieceBytes: 'u32',
    sequence: 'u64',
    generation: 'u64',
    place: 'u32',
    reserved: 'u32',
  },
} as const;

/** What a carrier is to send or to receive for one operation. */
export interface TransferOrder {
  /** Opcode of the operation: evict or refill */
  opcode: number;
  /** OrderFlag */
  flags: number;
  /** length of the piece */
  pieceBytes: number;
  /** position of the operation in its queue */
  sequence: bigint;
  /** generation of the slot */
  generation: bigint;
  /** where in the memory of the carrier the piece lies or goes */
  place: number;
  /** zero */
  reserved: number;
}

/** Writes a TransferOrder at `at`; the view must have 32 bytes left. */
export function encodeTransferOrder(view: DataView, at: number, value: TransferOrder): void {
  view.setUint16(at + 0, value.opcode, true);
  view.setUint16(at + 2, value.flags, true);
  view.setUint32(at + 4, value.pieceBytes, true);
  view.setBigUint64(at + 8, value.sequence, true);
  view.setBigUint64(at + 16, value.generation, true);
  view.setUint32(at + 24, value.place, true);
  view.setUint32(at + 28, value.reserved, true);
}

/** Reads the TransferOrder at `at`. Says nothing about whether its values make sense. */
export function decodeTransferOrder(view: DataView, at: number): TransferOrder {
  return {
    opcode: view.getUint16(at + 0, true),
    flags: view.getUint16(at + 2, true),
    pieceBytes: view.getUint32(at + 4, true),
    sequence: view.getBigUint64(at + 8, true),
    generation: view.getBigUint64(at + 16, true),
    place: view.getUint32(at + 24, true),
    reserved: view.getUint32(at + 28, true),
  };
}

/** Layout of TransferAck: byte offsets. A carrier has sent or received the piece of an operation, and touches its memory no more. */
export const TransferAckLayout = {
  bytes: 16,
  align: 8,
  offset: {
    /** u16: Opcode of the operation */
    opcode: 0,
    /** u16: Status: ok, transferFailed where the bytes are not those that their checksum names, or cancelled where the order was withdrawn */
    status: 2,
    /** u32: zero */
    reserved: 4,
    /** u64: sequence of the operation */
    sequence: 8,
  },
  type: {
    opcode: 'u16',
    status: 'u16',
    reserved: 'u32',
    sequence: 'u64',
  },
} as const;

/** A carrier has sent or received the piece of an operation, and touches its memory no more. */
export interface TransferAck {
  /** Opcode of the operation */
  opcode: number;
  /** Status: ok, transferFailed where the bytes are not those that their checksum names, or cancelled where the order was withdrawn */
  status: number;
  /** zero */
  reserved: number;
  /** sequence of the operation */
  sequence: bigint;
}

/** Writes a TransferAck at `at`; the view must have 16 bytes left. */
export function encodeTransferAck(view: DataView, at: number, value: TransferAck): void {
  view.setUint16(at + 0, value.opcode, true);
  view.setUint16(at + 2, value.status, true);
  view.setUint32(at + 4, value.reserved, true);
  view.setBigUint64(at + 8, value.sequence, true);
}

/** Reads the TransferAck at `at`. Says nothing about whether its values make sense. */
export function decodeTransferAck(view: DataView, at: number): TransferAck {
  return {
    opcode: view.getUint16(at + 0, true),
    status: view.getUint16(at + 2, true),
    reserved: view.getUint32(at + 4, true),
    sequence: view.getBigUint64(at + 8, true),
  };
}

/** Layout of SubmitSegment: byte offsets. Header of the segment that the client alone writes. The rings follow at the given offsets. */
export const SubmitSegmentLayout = {
  bytes: 512,
  align: 64,
  offset: {
    /** u32: submitMagic */
    magic: 0,
    /** u32: protocolVersion */
    version: 4,
    /** u64: size of the whole segment */
    segmentBytes: 8,
    /** u32: entries of each submission ring, a power of two */
    ringEntries: 16,
    /** u32: byte offset of the evict ring */
    evictRingOffset: 20,
    /** u32: byte offset of the refill/delete ring */
    commandRingOffset: 24,
    /** u64: descriptors ever published in the evict ring */
    evictTail: 64,
    /** u64: descriptors ever published in the refill/delete ring */
    commandTail: 128,
    /** u64: completions ever consumed */
    completionHead: 192,
    /** u32: 1 while the client waits for the completion wake */
    clientSleeping: 256,
  },
  type: {
    magic: 'u32',
    version: 'u32',
    segmentBytes: 'u64',
    ringEntries: 'u32',
    evictRingOffset: 'u32',
    commandRingOffset: 'u32',
    evictTail: 'u64',
    commandTail: 'u64',
    completionHead: 'u64',
    clientSleeping: 'u32',
  },
} as const;

/** Layout of StatusSegment: byte offsets. Header of the segment that the engine alone writes; the client can map it only for reading. */
export const StatusSegmentLayout = {
  bytes: 512,
  align: 64,
  offset: {
    /** u32: statusMagic */
    magic: 0,
    /** u32: protocolVersion */
    version: 4,
    /** u64: size of the whole segment */
    segmentBytes: 8,
    /** u32: entries of the completion ring, a power of two */
    completionEntries: 16,
    /** u32: byte offset of the completion ring */
    completionRingOffset: 20,
    /** u32: published last: 1 once everything before it is valid */
    ready: 24,
    /** u64: descriptors ever taken from the evict ring */
    evictHead: 64,
    /** u64: descriptors ever taken from the refill/delete ring */
    commandHead: 128,
    /** u64: completions ever published */
    completionTail: 192,
    /** u64: evicts that have finished, in order, failed ones included */
    evictCount: 256,
    /** u64: refills and deletes that have finished, in order */
    commandCount: 264,
    /** u32: 1 while the engine waits for the submit wake */
    engineSleeping: 320,
    /** u32: 1 before the memory of the session is taken away; who reads a slot in place looks here after reading */
    revoked: 384,
  },
  type: {
    magic: 'u32',
    version: 'u32',
    segmentBytes: 'u64',
    completionEntries: 'u32',
    completionRingOffset: 'u32',
    ready: 'u32',
    evictHead: 'u64',
    commandHead: 'u64',
    completionTail: 'u64',
    evictCount: 'u64',
    commandCount: 'u64',
    engineSleeping: 'u32',
    revoked: 'u32',
  },
} as const;

/** Layout of CountersSegment: byte offsets. Live figures of one shard, written by its engine alone. Readable even when the daemon's event loop hangs. */
export const CountersSegmentLayout = {
  bytes: 1024,
  align: 64,
  offset: {
    /** u32: countersMagic */
    magic: 0,
    /** u32: protocolVersion */
    version: 4,
    /** u32: index of the shard */
    shard: 8,
    /** u64: rises with every turn of the engine's loop */
    heartbeat: 64,
    /** u64: sessions attached now */
    sessions: 72,
    /** u64: evicts stored */
    evicts: 80,
    /** u64: evicts that finished with another status than ok */
    evictFaults: 88,
    /** u64: bytes of stored pieces */
    evictBytes: 96,
    /** u64: refills served */
    refills: 104,
    /** u64: refills that found the slot empty or overwritten */
    refillMisses: 112,
    /** u64: refills that ended with a fault */
    refillFaults: 120,
    /** u64: bytes of served pieces */
    refillBytes: 128,
    /** u64: pieces forgotten on request */
    deletes: 136,
    /** u64: deletes that found nothing to forget */
    deleteMisses: 144,
    /** u64: refills that named another tenant than the slot's */
    tenantAlarms: 152,
    /** u64: operations that ran out of time */
    deadlines: 160,
    /** u64: evicts that had to wait for a command or a reader */
    gatedEvicts: 168,
    /** u64: commands that had to wait for an evict */
    gatedCommands: 176,
    /** u64: bytes zeroed by deletes */
    scrubbedBytes: 184,
    /** u64: sessions ended because their ring positions were impossible */
    ringFaults: 192,
    /** u64: times the engine went to sleep */
    sleeps: 200,
    /** u64: slots that hold a piece now */
    storedSlots: 208,
    /** u64[24]: evicts by time from read to finished; bucket i counts less than 2^(i+7) ns, the last one everything longer */
    evictLatency: 256,
    /** u64[24]: likewise for refills */
    refillLatency: 448,
  },
  type: {
    magic: 'u32',
    version: 'u32',
    shard: 'u32',
    heartbeat: 'u64',
    sessions: 'u64',
    evicts: 'u64',
    evictFaults: 'u64',
    evictBytes: 'u64',
    refills: 'u64',
    refillMisses: 'u64',
    refillFaults: 'u64',
    refillBytes: 'u64',
    deletes: 'u64',
    deleteMisses: 'u64',
    tenantAlarms: 'u64',
    deadlines: 'u64',
    gatedEvicts: 'u64',
    gatedCommands: 'u64',
    scrubbedBytes: 'u64',
    ringFaults: 'u64',
    sleeps: 'u64',
    storedSlots: 'u64',
    evictLatency: 'u64[24]',
    refillLatency: 'u64[24]',
  },
} as const;
