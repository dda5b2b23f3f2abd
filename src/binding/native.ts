import { createRequire } from 'node:module';
import { KvssError, localError, messageOf } from '../common/errors.js';
import { PROTOCOL_VERSION } from '../proto/generated.js';

/** File descriptors on their way through JavaScript. Whoever takes them empties the bundle; see the addon. */
export interface DescriptorBundle {
  /** Descriptors that are still in it. */
  readonly count: number;
  /** Closes what is left. */
  close(): void;
}

export interface ShardSettings {
  index: number;
  budgetBytes: number;
  hugePages: boolean;
  hioMode: HioMode;
  /** How long an adaptive engine looks for work before it sleeps, in microseconds. */
  spinUs: number;
}

/** Why a session cannot be served: impossible ring positions, frames that cannot be, or a connection that has gone. */
export type SessionFault = 'ring' | 'protocol' | 'laneEnded';

export type HioMode = 'latency' | 'buffered' | 'adaptive';

export interface NativeGrant {
  /** One descriptor: the memory object. */
  descriptors: DescriptorBundle;
  slotBytes: number;
  /** Bytes that the grant takes from the budget. */
  bytes: number;
  hugePages: boolean;
}

/** One shard of a daemon: memory and engine thread. Methods reject with the protocol status of what went wrong. */
export interface NativeShard {
  /** Four descriptors: submit segment, status segment, submit wake, completion wake. */
  openSession(sessionId: number, ringEntries: number): Promise<DescriptorBundle>;
  /** A session over streams; it needs lanes before it can do anything. */
  openStreamSession(sessionId: number, window: number, checksums: boolean): Promise<void>;
  /** Gives a stream session lane `stream` of a LaneKind, and answers its hello. */
  addLane(sessionId: number, kind: number, stream: number, lane: DescriptorBundle): Promise<void>;
  addGrant(sessionId: number, grantId: number, slots: number, pieceBytes: number): Promise<NativeGrant>;
  removeGrant(sessionId: number, grantId: number): Promise<void>;
  /** Resolves when the memory of the session has been scrubbed and is free. */
  closeSession(sessionId: number): Promise<void>;
  /** As closeSession, but keeps the memory of these grants with what their slots hold. Resolves with those that it kept. */
  parkSession(sessionId: number, grantIds: number[]): Promise<number[]>;
  /** Gives what was parked to another session, as its grant `grantId`. Where it rejects, the memory has been scrubbed. */
  resumeGrant(sessionId: number, grantId: number, parkedSession: number, parkedGrant: number): Promise<NativeGrant>;
  /** Resolves when what was parked has been scrubbed and is free. */
  dropParked(parkedSession: number, parkedGrant: number): Promise<void>;
  /** SlotEntries of `count` slots of a grant, from slot `from` on. */
  readSlots(sessionId: number, grantId: number, from: number, count: number): Promise<Uint8Array>;
  /** Resolves with true once everything submitted so far has finished, with false after `timeoutMs`. */
  drain(timeoutMs: number): Promise<boolean>;
  countersDescriptor(): DescriptorBundle;
  memory(): { budgetBytes: number; freeBytes: number; hugePages: boolean };
  close(): Promise<void>;
}

/** The driver's end of one shard. `descriptors` and `completions` are shared with native code. */
export interface NativeLane {
  /** Room for as many descriptors as a ring has entries; a submit call publishes the first ones. */
  readonly descriptors: ArrayBuffer;
  /** Filled by poll(). */
  readonly completions: ArrayBuffer;
  /** Publishes the first `count` descriptors, as many as fit, and answers how many did. */
  submitEvicts(count: number): number;
  submitCommands(count: number): number;
  /** Fills `completions` and answers how many came. */
  poll(): number;
  /** Asks for a wake-up at the next completion. Answers false where completions wait already. */
  arm(): boolean;
  evictCount(): number;
  commandCount(): number;
  /** Whether the daemon has begun to take the memory away. Asked after a slot was read in place. */
  revoked(): boolean;
  close(): void;
}

/** The driver's end of one shard over streams, with a thread that moves the bytes. */
export interface NativeStreamLane {
  readonly descriptors: ArrayBuffer;
  readonly completions: ArrayBuffer;
  /** Two 64-bit floats a descriptor: registered memory, and byte offset in it. With a carrier: unused, and its place. */
  readonly places: ArrayBuffer;
  /** Hands over the first `count` descriptors with their places and answers how many there was room for. */
  submit(count: number): number;
  poll(): number;
  arm(): boolean;
  evictCount(): number;
  commandCount(): number;
  /** A connection has ended, or the other side broke the protocol: nothing more will complete. */
  broken(): boolean;
  /** Bytes of pieces that this process has sent and received. */
  payloadBytes(): number;
  /** Memory that pieces are sent from and received into; answers its number. It is held until close(). */
  registerMemory(memory: ArrayBuffer): number;
  /** Stops the thread: no registered memory is touched afterwards. */
  close(): void;
}

/** The carrier's end of one shard, with a thread that moves pieces between its memory and its WIO lanes. */
export interface NativeCarrierLane {
  bytesSent(): number;
  bytesReceived(): number;
  /** Stops the thread: the memory is not touched afterwards. */
  close(): void;
}

export interface NativeStreamListener {
  /** The port that it listens on, 0 for a Unix socket. */
  readonly port: number;
  close(): void;
}

/** One end of a control connection. */
export interface NativeChannel {
  /** Process id of the other end when it connected. */
  readonly peerPid: number;
  readonly peerUid: number;
  /** Begins to deliver packets. `onEnd` comes once, when the peer has gone; not after close(). */
  start(onPacket: (bytes: Uint8Array, descriptors: DescriptorBundle | null) => void, onEnd: () => void): void;
  /** Sends one packet and takes the descriptors. Throws where the peer has gone or does not read. */
  send(bytes: Uint8Array, descriptors?: DescriptorBundle | null): void;
  close(): void;
  ref(): void;
  unref(): void;
}

export interface NativeListener {
  close(): void;
}

/** Everything that the addon exports. Nothing else in the package touches it. */
export interface NativeBinding {
  readonly protocolVersion: number;
  readonly Shard: {
    /** Takes the whole budget from the system. `onFault` names a session that cannot be served any more. */
    create(settings: ShardSettings, onFault: (sessionId: number, fault: SessionFault) => void): Promise<NativeShard>;
  };
  readonly Lane: new (descriptors: DescriptorBundle, ringEntries: number, onWake: () => void) => NativeLane;
  readonly ControlListener: new (path: string, onConnection: (channel: NativeChannel) => void) => NativeListener;
  readonly ControlChannel: {
    connect(path: string): NativeChannel;
    /** A channel over a stream that was accepted or connected. */
    adopt(stream: DescriptorBundle): NativeChannel;
  };
  /** Listens on host and port, or at a path if port is null, and reads the LaneHello of each connection. */
  readonly StreamListener: new (
    hostOrPath: string,
    port: number | null,
    onConnection: (hello: Uint8Array, stream: DescriptorBundle) => void,
  ) => NativeStreamListener;
  /** The bundle holds the HIO lane, then the evict lanes, then the refill lanes; without any, the order lane of a carrier. */
  readonly StreamLane: new (
    streams: DescriptorBundle,
    evictLanes: number,
    refillLanes: number,
    window: number,
    onWake: () => void,
    checksums: boolean,
  ) => NativeStreamLane;
  /**
   * The bundle holds the order lane, then the evict lanes, then as many refill lanes. `onEnd` comes once, when a lane has
   * ended or the driver or the shard broke the protocol; the lane is closed by then.
   */
  readonly CarrierLane: new (
    streams: DescriptorBundle,
    lanes: number,
    window: number,
    checksums: boolean,
    memory: ArrayBuffer,
    places: number,
    strideBytes: number,
    pieceBytes: number,
    onEnd: () => void,
  ) => NativeCarrierLane;
  /** Connects and says hello; rejects unless it is welcome within `timeoutMs`. */
  connectLane(hostOrPath: string, port: number | null, hello: Uint8Array, timeoutMs: number): Promise<DescriptorBundle>;
  /** Answers a hello; the bundle keeps the connection. */
  answerLane(stream: DescriptorBundle, status: number): void;
  /** Maps a grant: buffers of equal whole numbers of slots, the last one what is left. */
  mapGrant(descriptors: DescriptorBundle, slots: number, slotBytes: number): Promise<ArrayBuffer[]>;
  /** Maps counters segments, one buffer each. Read only: writing to one ends the process. */
  mapCounters(descriptors: DescriptorBundle): ArrayBuffer[];
  /**
   * Copies all of the source to the beginning of the target, from 64 KiB on past the caches. Throws a RangeError where the
   * target is shorter or they overlap.
   */
  copyPiece(target: Uint8Array, source: Uint8Array): void;
  /** One bundle with the descriptors of all of them, in order. */
  joinBundles(...bundles: DescriptorBundle[]): DescriptorBundle;
  /** Takes the descriptors behind the first `count` out of a bundle, into one of their own. */
  splitBundle(bundle: DescriptorBundle, count: number): DescriptorBundle;
}

function load(): NativeBinding {
  let binding: NativeBinding;
  try {
    binding = createRequire(import.meta.url)('../../build/native/kvss.node') as NativeBinding;
  } catch (cause) {
    throw localError(
      'KVSS_NATIVE_MISSING',
      `the native addon could not be loaded; run 'npm run build:native'. ${messageOf(cause)}`,
      cause,
    );
  }
  if (binding.protocolVersion !== PROTOCOL_VERSION) {
    throw localError(
      'KVSS_NATIVE_MISSING',
      `the native addon speaks protocol ${binding.protocolVersion}, this package ${PROTOCOL_VERSION}; run 'npm run build:native'`,
    );
  }
  return binding;
}

export const native: NativeBinding = load();

/** The KvssError of something that the addon threw. */
export function nativeError(thrown: unknown): KvssError {
  if (thrown instanceof KvssError) return thrown;
  const status = (thrown as { status?: unknown } | null)?.status;
  return KvssError.ofStatus(typeof status === 'number' ? status : -1, messageOf(thrown));
}
