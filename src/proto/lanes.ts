import { KvssError } from '../common/errors.js';
import { TICKET_BYTES } from './frames.js';
import {
  decodeLaneHello,
  encodeLaneHello,
  LANE_MAGIC,
  LaneHelloLayout,
  LaneKind,
  laneKindName,
  MAX_WIO_STREAMS,
  PROTOCOL_VERSION,
  Status,
} from './generated.js';

/** What a stream connection is for, as its first 64 bytes say it. */
export interface LaneHelloInfo {
  kind: LaneKind;
  shard: number;
  /** Number of the lane among those of its kind. */
  stream: number;
  sessionId: number;
  ticket: Uint8Array;
}

/** Hello of a control connection over a stream. */
export const controlHello = (): Uint8Array =>
  encodeLane({ kind: LaneKind.control, shard: 0, stream: 0, sessionId: 0, ticket: new Uint8Array(TICKET_BYTES) });

export function encodeLane(info: LaneHelloInfo): Uint8Array {
  const bytes = new Uint8Array(LaneHelloLayout.bytes);
  const words = new DataView(info.ticket.slice().buffer);
  encodeLaneHello(new DataView(bytes.buffer), 0, {
    magic: LANE_MAGIC,
    version: PROTOCOL_VERSION,
    kind: info.kind,
    shard: info.shard,
    stream: info.stream,
    sessionId: BigInt(info.sessionId),
    ticket0: words.getBigUint64(0, true),
    ticket1: words.getBigUint64(8, true),
    ticket2: words.getBigUint64(16, true),
    ticket3: words.getBigUint64(24, true),
    reserved: 0n,
  });
  return bytes;
}

/** Throws a KvssError with badFrame or badVersion. */
export function decodeLane(bytes: Uint8Array): LaneHelloInfo {
  const hello = decodeLaneHello(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0);
  if (hello.magic !== LANE_MAGIC) throw KvssError.ofStatus(Status.badFrame, 'a stream has to start with KVSL');
  if (hello.version !== PROTOCOL_VERSION) {
    throw KvssError.ofStatus(Status.badVersion, `the other side speaks protocol version ${hello.version}`);
  }
  if (laneKindName(hello.kind) === undefined || hello.reserved !== 0n || hello.stream >= MAX_WIO_STREAMS) {
    throw KvssError.ofStatus(Status.badFrame, 'a stream says hello for a kind of lane that does not exist');
  }
  const { offset } = LaneHelloLayout;
  return {
    kind: hello.kind as LaneKind,
    shard: hello.shard,
    stream: hello.stream,
    sessionId: Number(hello.sessionId),
    ticket: bytes.slice(offset.ticket0, offset.ticket0 + TICKET_BYTES),
  };
}
