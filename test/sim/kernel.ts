import type {
  DescriptorBundle,
  NativeBinding,
  NativeChannel,
  NativeGrant,
  NativeShard,
  SessionFault,
  ShardSettings,
} from '../../src/binding/native.js';
import {
  COUNTERS_MAGIC,
  CountersSegmentLayout,
  FrameHeaderLayout,
  LaneKind,
  PROTOCOL_VERSION,
  Status,
} from '../../src/proto/generated.js';
import { decodeLane } from '../../src/proto/lanes.js';
import type { History } from './history.js';
import {
  type SimCarrierLane,
  type SimRingLane,
  type SimShard,
  type SimStreamLane,
  simulation,
  type Wire,
} from './native.js';
import type { Random } from './random.js';
import type { SimClock } from './sim_clock.js';

/** Something that may have its turn. Answers whether it found anything to do. */
export interface Actor {
  readonly name: string;
  turn(): boolean;
}

/** A process of the simulated machine. What belongs to a dead one never runs again. */
export class Process {
  alive = true;
  /** A stopped process does nothing, and nobody notices at once. */
  stopped = false;
  readonly onDeath: (() => void)[] = [];

  constructor(readonly name: string) {}

  get runs(): boolean {
    return this.alive && !this.stopped;
  }
}

/** Errors as the addon throws them. */
function nativeFailure(status: Status, message: string): Error {
  return Object.assign(new Error(message), { status });
}

/** What passes for file descriptors. */
class Bundle implements DescriptorBundle {
  constructor(
    readonly parts: unknown[],
    private readonly onClose: () => void = () => {},
  ) {}
  get count(): number {
    return this.parts.length;
  }
  take(): unknown[] {
    return this.parts.splice(0);
  }
  close(): void {
    if (this.parts.splice(0).length > 0) this.onClose();
  }
}

interface Packet {
  bytes: Uint8Array;
  descriptors: DescriptorBundle | null;
}

/** One end of a control connection. */
class SimChannel implements NativeChannel {
  readonly peerPid: number;
  readonly peerUid = process.getuid?.() ?? 0;
  readonly inbox: Packet[] = [];
  onPacket: ((bytes: Uint8Array, descriptors: DescriptorBundle | null) => void) | undefined;
  onEnd: (() => void) | undefined;
  peer!: SimChannel;
  closed = false;
  /** The other end has gone; told after what it had sent. */
  endWaits = false;
  /** Packets do not arrive any more, and nobody is told. */
  swallowed = false;

  constructor(
    private readonly connection: Connection,
    readonly owner: Process,
    local: boolean,
  ) {
    this.peerPid = local ? 1 : 0;
  }

  start(onPacket: (bytes: Uint8Array, descriptors: DescriptorBundle | null) => void, onEnd: () => void): void {
    this.onPacket = onPacket;
    this.onEnd = onEnd;
  }

  send(bytes: Uint8Array, descriptors: DescriptorBundle | null = null): void {
    if (this.closed || this.peer.closed || this.connection.over)
      throw nativeFailure(Status.notAllowed, 'the peer has gone');
    this.peer.inbox.push({ bytes, descriptors });
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.inbox.length = 0;
    this.peer.endWaits = true;
  }

  /** Takes the next packet, or the end. Answers whether there was either. */
  deliver(): boolean {
    if (this.closed || this.swallowed || !this.owner.runs || !this.onPacket) return false;
    const packet = this.inbox.shift();
    if (packet) {
      // Whose the descriptors are from now on.
      for (const part of (packet.descriptors as Bundle | null)?.parts ?? []) {
        if (typeof part === 'object' && part !== null && 'session' in part) Object.assign(part, { client: this.owner });
      }
      this.onPacket(packet.bytes, packet.descriptors);
      return true;
    }
    if (!this.endWaits) return false;
    this.closed = true;
    this.onEnd?.();
    return true;
  }

  ref(): void {}
  unref(): void {}
}

/** A stream connection, first as nothing but a hello, then with packets or bytes. */
export class Connection {
  readonly ends: [SimChannel, SimChannel];
  #wire: Wire | undefined;
  #settle: { resolve(bundle: DescriptorBundle): void; reject(error: Error): void } | undefined;
  answered = false;
  /** Bytes from this end (0 client, 1 server) go nowhere. */
  readonly swallows: [boolean, boolean] = [false, false];
  over = false;
  kind: LaneKind | undefined;

  constructor(
    readonly client: Process,
    readonly server: Process,
    local: boolean,
  ) {
    const ends: [SimChannel, SimChannel] = [new SimChannel(this, client, local), new SimChannel(this, server, local)];
    ends[0].peer = ends[1];
    ends[1].peer = ends[0];
    this.ends = ends;
  }

  get wire(): Wire {
    this.#wire ??= new simulation.Wire();
    return this.#wire;
  }

  get hasWire(): boolean {
    return this.#wire !== undefined;
  }

  /** The client waits for the welcome. */
  expect(settle: { resolve(bundle: DescriptorBundle): void; reject(error: Error): void }): void {
    this.#settle = settle;
  }

  answer(status: Status): void {
    const settle = this.#settle;
    this.#settle = undefined;
    this.answered = true;
    if (status === Status.ok) settle?.resolve(new Bundle([{ connection: this, end: 0 }], () => this.end()));
    else settle?.reject(nativeFailure(status, `the other side refused the lane with status ${status}`));
  }

  fail(error: Error): void {
    this.#settle?.reject(error);
    this.#settle = undefined;
  }

  swallow(from: 0 | 1, on: boolean): void {
    this.swallows[from] = on;
    this.ends[from === 0 ? 1 : 0].swallowed = on;
  }

  /** Ends at once for both, and what was on its way is lost. */
  end(): void {
    if (this.over) return;
    this.over = true;
    this.#wire?.end();
    for (const end of this.ends) {
      end.inbox.length = 0;
      end.endWaits = true;
    }
    this.fail(nativeFailure(Status.notAllowed, 'the connection was reset'));
  }
}

interface Listener {
  process: Process;
  local: boolean;
  accept(connection: Connection, hello: Uint8Array): void;
}

/** A shard of a daemon, whose engine has its turns from the simulation. */
class KernelShard implements NativeShard {
  readonly core: SimShard;
  readonly sessions = new Set<number>();
  readonly #drains: { until: number; resolve(drained: boolean): void }[] = [];

  constructor(
    private readonly kernel: Kernel,
    readonly process: Process,
    private readonly budgetBytes: number,
    readonly onFault: (session: number, fault: SessionFault) => void,
  ) {
    this.core = new simulation.SimShard(budgetBytes);
    process.onDeath.push(() => this.core.crash());
  }

  async openSession(session: number, ringEntries: number): Promise<DescriptorBundle> {
    this.kernel.mayFail('a session');
    this.core.openRing(session, ringEntries);
    this.sessions.add(session);
    return new Bundle([{ shard: this, session }, 0, 0, 0]);
  }

  async openStreamSession(session: number, window: number, checksums: boolean): Promise<void> {
    this.kernel.mayFail('a session');
    this.core.openStream(session, window, checksums);
    this.sessions.add(session);
  }

  async addLane(session: number, kind: number, stream: number, lane: DescriptorBundle): Promise<void> {
    const [{ connection }] = (lane as Bundle).take() as [{ connection: Connection }];
    this.core.addLane(session, kind, stream, connection.wire);
    connection.answer(connection.wire.takeWelcome() as Status);
  }

  async addGrant(session: number, grant: number, slots: number, pieceBytes: number) {
    this.kernel.mayFail('a grant');
    const { memory, slotBytes, bytes } = this.core.addGrant(session, grant, slots, pieceBytes);
    return { descriptors: new Bundle([memory]), slotBytes, bytes, hugePages: false };
  }

  async removeGrant(): Promise<void> {
    throw nativeFailure(Status.internal, 'not used by a driver');
  }

  async parkSession(): Promise<number[]> {
    throw nativeFailure(Status.internal, 'no driver of the simulation asks for it');
  }

  async resumeGrant(): Promise<NativeGrant> {
    throw nativeFailure(Status.internal, 'no driver of the simulation asks for it');
  }

  async dropParked(): Promise<void> {
    throw nativeFailure(Status.internal, 'no driver of the simulation asks for it');
  }

  async readSlots(): Promise<Uint8Array> {
    throw nativeFailure(Status.internal, 'no driver of the simulation asks for it');
  }

  async closeSession(session: number): Promise<void> {
    this.sessions.delete(session);
    this.core.closeSession(session, this.kernel.clock.nowNs);
  }

  drain(timeoutMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      this.#drains.push({ until: this.kernel.clock.now() + timeoutMs, resolve });
      // So that time does not stand still while somebody waits for it.
      this.kernel.clock.schedule(timeoutMs, () => {});
    });
  }

  countersDescriptor(): DescriptorBundle {
    return new Bundle([]);
  }

  memory() {
    return { budgetBytes: this.budgetBytes, freeBytes: this.core.freeBytes(), hugePages: false };
  }

  async close(): Promise<void> {
    this.kernel.removeShard(this);
  }

  /** The engine's turn with one of its sessions. */
  turn(session: number): boolean {
    const outcome = this.core.pump(session, this.kernel.clock.nowNs);
    if (typeof outcome === 'string') this.onFault(session, outcome);
    return outcome !== false;
  }

  finishDrains(): boolean {
    for (const [index, { until, resolve }] of this.#drains.entries()) {
      const idle = !this.core.unfinished();
      if (!idle && this.kernel.clock.now() < until) continue;
      this.#drains.splice(index, 1);
      resolve(idle);
      return true;
    }
    return false;
  }
}

/** What a kernel does for processes: connections, memory, threads. Every turn of it is the simulation's choice. */
export class Kernel {
  readonly connections: Connection[] = [];
  readonly shards: KernelShard[] = [];
  readonly ringLanes: { lane: SimRingLane; owner: Process; onWake: () => void }[] = [];
  readonly streamLanes: { lane: SimStreamLane; owner: Process; onWake: () => void }[] = [];
  readonly carrierLanes: { lane: SimCarrierLane; owner: Process; onEnd: () => void }[] = [];
  /** The process whose code is being run, where that cannot be told from an address. */
  current: Process = new Process('nobody');
  /** Chance that something that takes memory or descriptors fails. */
  failureChance = 0;
  failures = 0;
  readonly #listeners = new Map<string, Listener>();
  readonly #hellos: { connection: Connection; listener: Listener; hello: Uint8Array }[] = [];

  constructor(
    readonly clock: SimClock,
    private readonly random: Random,
    private readonly history: History,
    /** The process that a client address names, behind its last `@`. */
    private readonly clientOf: (name: string) => Process,
  ) {}

  mayFail(what: string): void {
    if (!this.random.chance(this.failureChance)) return;
    this.failures += 1;
    throw nativeFailure(Status.noMemory, `no memory for ${what}`);
  }

  /** Takes the place of the addon's exports. */
  binding(): Partial<NativeBinding> {
    const kernel = this;
    return {
      Shard: {
        create: async (settings: ShardSettings, onFault: (session: number, fault: SessionFault) => void) => {
          const shard = new KernelShard(kernel, kernel.current, settings.budgetBytes, onFault);
          kernel.shards.push(shard);
          return shard;
        },
      },
      ControlListener: class {
        constructor(
          readonly path: string,
          onConnection: (channel: NativeChannel) => void,
        ) {
          const accept = (connection: Connection) => onConnection(connection.ends[1]);
          kernel.#listen(path, { process: kernel.current, local: true, accept });
        }
        close(): void {
          kernel.#listeners.delete(this.path);
        }
      },
      StreamListener: class {
        readonly port = 0;
        constructor(
          readonly path: string,
          _port: number | null,
          onConnection: (hello: Uint8Array, stream: DescriptorBundle) => void,
        ) {
          const accept = (connection: Connection, hello: Uint8Array) =>
            onConnection(hello, new Bundle([{ connection, end: 1 }], () => connection.end()));
          kernel.#listen(path, { process: kernel.current, local: false, accept });
        }
        close(): void {
          kernel.#listeners.delete(this.path);
        }
      },
      ControlChannel: {
        connect: (path: string): NativeChannel => {
          const { address, client } = kernel.#parse(path);
          const listener = kernel.#listeners.get(address);
          if (!listener) throw nativeFailure(Status.notAllowed, `nobody listens at ${path}`);
          const connection = kernel.#connect(client, listener);
          connection.kind = LaneKind.control;
          kernel.#hellos.push({ connection, listener, hello: new Uint8Array() });
          return connection.ends[0];
        },
        adopt: (stream: DescriptorBundle): NativeChannel => {
          const [{ connection, end }] = (stream as Bundle).take() as [{ connection: Connection; end: 0 | 1 }];
          return connection.ends[end];
        },
      },
      connectLane: (path: string, _port: number | null, hello: Uint8Array, timeoutMs: number) =>
        kernel.#connectLane(path, hello, timeoutMs),
      answerLane: (stream: DescriptorBundle, status: number) => {
        const [part] = (stream as Bundle).parts as [{ connection: Connection } | undefined];
        part?.connection.answer(status as Status);
      },
      Lane: class {
        constructor(descriptors: DescriptorBundle, ringEntries: number, onWake: () => void) {
          const [{ shard, session, client }] = (descriptors as Bundle).take() as [
            { shard: KernelShard; session: number; client: Process },
          ];
          if (!shard.sessions.has(session)) throw nativeFailure(Status.notAllowed, 'the session has ended');
          const lane = new simulation.SimRingLane(shard.core, session, ringEntries);
          kernel.history.watchRings(lane);
          kernel.ringLanes.push({ lane, owner: client, onWake });
          // biome-ignore lint/correctness/noConstructorReturn: the lane itself is what the product gets
          return lane;
        }
      } as unknown as NativeBinding['Lane'],
      StreamLane: class {
        constructor(
          streams: DescriptorBundle,
          evictLanes: number,
          refillLanes: number,
          window: number,
          onWake: () => void,
          checksums: boolean,
        ) {
          const parts = (streams as Bundle).take() as { connection: Connection }[];
          const [hio, ...rest] = parts.map(({ connection }) => connection.wire) as [Wire, ...Wire[]];
          const carried = evictLanes + refillLanes === 0;
          const lane = new simulation.SimStreamLane(
            hio,
            carried ? (rest[0] as Wire) : null,
            carried ? [] : rest.slice(0, evictLanes),
            carried ? [] : rest.slice(evictLanes),
            window,
            checksums,
          );
          kernel.history.watchStream(lane);
          kernel.streamLanes.push({ lane, owner: parts[0]?.connection.client as Process, onWake });
          // biome-ignore lint/correctness/noConstructorReturn: the lane itself is what the product gets
          return lane;
        }
      } as unknown as NativeBinding['StreamLane'],
      CarrierLane: class {
        constructor(
          streams: DescriptorBundle,
          lanes: number,
          window: number,
          checksums: boolean,
          memory: ArrayBuffer,
          places: number,
          strideBytes: number,
          pieceBytes: number,
          onEnd: () => void,
        ) {
          const parts = (streams as Bundle).take() as { connection: Connection }[];
          const [order, ...rest] = parts.map(({ connection }) => connection.wire) as [Wire, ...Wire[]];
          const lane = new simulation.SimCarrierLane(
            order,
            rest.slice(0, lanes),
            rest.slice(lanes),
            window,
            checksums,
            memory,
            places,
            strideBytes,
            pieceBytes,
          );
          kernel.carrierLanes.push({ lane, owner: parts[0]?.connection.server as Process, onEnd });
          const totals = { bytesSent: () => 0, bytesReceived: () => 0 };
          // biome-ignore lint/correctness/noConstructorReturn: the lane itself is what the product gets
          return Object.assign(lane, totals);
        }
      } as unknown as NativeBinding['CarrierLane'],
      mapGrant: async (descriptors: DescriptorBundle) => (descriptors as Bundle).take() as ArrayBuffer[],
      mapCounters: () => {
        const segment = new ArrayBuffer(CountersSegmentLayout.bytes);
        const view = new DataView(segment);
        view.setUint32(CountersSegmentLayout.offset.magic, COUNTERS_MAGIC, true);
        view.setUint32(CountersSegmentLayout.offset.version, PROTOCOL_VERSION, true);
        return [segment];
      },
      splitBundle: () => {
        throw nativeFailure(Status.internal, 'no driver of the simulation asks for it');
      },
      joinBundles: (...bundles: DescriptorBundle[]) => {
        const parts = bundles.flatMap((bundle) => (bundle as Bundle).take());
        return new Bundle(parts, () => {
          for (const part of parts) (part as { connection?: Connection }).connection?.end();
        });
      },
    };
  }

  /** Everything that could have a turn now. */
  *actors(): Generator<Actor> {
    for (const hello of this.#hellos) {
      yield { name: 'accept', turn: () => this.#accept(hello) };
    }
    for (const [index, connection] of this.connections.entries()) {
      if (connection.over) continue;
      for (const end of [0, 1] as const) {
        yield { name: `deliver ${index}.${end}`, turn: () => connection.ends[end].deliver() };
        if (connection.hasWire) yield { name: `forward ${index}.${end}`, turn: () => this.#forward(connection, end) };
      }
    }
    for (const connection of this.connections) {
      if (!connection.over) continue;
      for (const end of connection.ends) {
        if (!end.closed) yield { name: 'end', turn: () => end.deliver() };
      }
    }
    for (const [index, shard] of this.shards.entries()) {
      if (!shard.process.runs) continue;
      for (const session of shard.sessions) {
        yield { name: `engine ${index} session ${session}`, turn: () => shard.turn(session) };
      }
      yield { name: 'drain', turn: () => shard.finishDrains() };
    }
    for (const { lane, owner, onWake } of this.ringLanes) {
      if (owner.runs) yield { name: 'wake', turn: () => wake(lane, onWake) };
    }
    for (const { lane, owner, onWake } of this.streamLanes) {
      if (!owner.runs) continue;
      yield { name: 'lane', turn: () => lane.turn() };
      yield { name: 'wake', turn: () => wake(lane, onWake) };
    }
    for (const [index, { lane, owner, onEnd }] of this.carrierLanes.entries()) {
      if (!owner.runs) continue;
      yield { name: 'carrier', turn: () => lane.turn() };
      yield {
        name: 'carrier ends',
        turn: () => {
          if (!lane.broken()) return false;
          this.carrierLanes.splice(index, 1);
          lane.close();
          onEnd();
          return true;
        },
      };
    }
  }

  /** Lanes to memory of slots that a process has lost so far, whether it knows that yet or not. */
  revokedLanes(process: Process): number {
    return this.ringLanes.filter(({ lane, owner }) => owner === process && lane.revoked()).length;
  }

  /** Forgets what has ended, so that turns stay cheap. */
  tidy(): void {
    const drop = <T>(list: T[], gone: (item: T) => boolean) => {
      for (let index = list.length - 1; index >= 0; index -= 1) if (gone(list[index] as T)) list.splice(index, 1);
    };
    drop(this.connections, ({ over, ends }) => over && ends.every((end) => end.closed || !end.owner.alive));
  }

  /** Gives everything back to the real machine. */
  shutDown(): void {
    for (const connection of this.connections) connection.end();
    for (const { lane } of [...this.ringLanes, ...this.streamLanes, ...this.carrierLanes]) lane.close();
  }

  /** A process dies: its connections are reset, its listeners and its memory are gone. */
  kill(process: Process): void {
    process.alive = false;
    for (const [address, listener] of this.#listeners) {
      if (listener.process === process) this.#listeners.delete(address);
    }
    for (const connection of this.connections) {
      if (connection.client === process || connection.server === process) connection.end();
    }
    for (const shard of this.shards.filter((each) => each.process === process)) this.removeShard(shard);
    for (const task of process.onDeath.splice(0)) task();
    this.tidy();
  }

  removeShard(shard: KernelShard): void {
    const index = this.shards.indexOf(shard);
    if (index >= 0) this.shards.splice(index, 1);
  }

  #listen(path: string, listener: Listener): void {
    if (this.#listeners.has(path)) throw nativeFailure(Status.notAllowed, `${path} is taken`);
    this.#listeners.set(path, listener);
  }

  #parse(path: string): { address: string; client: Process } {
    const at = path.lastIndexOf('@');
    return { address: path.slice(0, at), client: this.clientOf(path.slice(at + 1)) };
  }

  #connect(client: Process, listener: Listener): Connection {
    const connection = new Connection(client, listener.process, listener.local);
    this.connections.push(connection);
    return connection;
  }

  #connectLane(path: string, hello: Uint8Array, timeoutMs: number): Promise<DescriptorBundle> {
    const { address, client } = this.#parse(path);
    const listener = this.#listeners.get(address);
    // Nothing is heard of what a dead process asks for.
    if (!client.alive) return new Promise(() => {});
    if (!listener) return Promise.reject(nativeFailure(Status.notAllowed, `nobody listens at ${path}`));
    const connection = this.#connect(client, listener);
    connection.kind = decodeLane(hello).kind;
    this.#hellos.push({ connection, listener, hello });
    return new Promise((resolve, reject) => {
      const cancel = this.clock.schedule(Math.ceil(timeoutMs), () => {
        connection.fail(nativeFailure(Status.deadline, `${path} did not answer within ${timeoutMs} ms`));
        connection.end();
      });
      const settled =
        <T>(settle: (value: T) => void) =>
        (value: T) => {
          cancel();
          settle(value);
        };
      connection.expect({ resolve: settled(resolve), reject: settled(reject) });
    });
  }

  #accept(waiting: { connection: Connection; listener: Listener; hello: Uint8Array }): boolean {
    const { connection, listener, hello } = waiting;
    if (!listener.process.alive || connection.over) {
      this.#hellos.splice(this.#hellos.indexOf(waiting), 1);
      connection.end();
      return true;
    }
    if (!listener.process.runs || connection.swallows[0]) return false;
    this.#hellos.splice(this.#hellos.indexOf(waiting), 1);
    listener.accept(connection, hello);
    return true;
  }

  #forward(connection: Connection, from: 0 | 1): boolean {
    if (connection.swallows[from]) return false;
    const waiting = connection.wire.waiting(from);
    if (waiting === 0) return false;
    // Often all of it, often a few bytes: frames are torn everywhere.
    const most = this.random.chance(0.6) ? waiting : 1 + this.random.below(Math.max(1, waiting));
    return connection.wire.forward(from, Math.max(1, most)) !== 0;
  }
}

function wake(lane: { woken(): boolean }, onWake: () => void): boolean {
  if (!lane.woken()) return false;
  onWake();
  return true;
}

/** A hello of another protocol version, made of one of ours. */
export function skewed(frame: Uint8Array): Uint8Array {
  const other = frame.slice();
  new DataView(other.buffer).setUint16(FrameHeaderLayout.offset.version, PROTOCOL_VERSION + 1, true);
  return other;
}
