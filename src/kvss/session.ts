import type { DescriptorBundle, NativeGrant } from '../binding/native.js';
import { type NativeChannel, native, nativeError } from '../binding/native.js';
import { KvssError, messageOf } from '../common/errors.js';
import { type Answer, ControlPeer } from '../links/control_peer.js';
import { Tickets } from '../links/tickets.js';
import {
  type DriverReport,
  type Frame,
  FrameType,
  type PayloadOf,
  parsePayload,
  payloadLength,
  type ReportedDriver,
  type ShardState,
} from '../proto/frames.js';
import { frameTypeName, MAX_FRAME_BYTES, Status } from '../proto/generated.js';
import type { LaneHelloInfo } from '../proto/lanes.js';
import { slotBytesOf } from '../proto/slots.js';
import type { ParkableGrant, ParkedGrant, ParkedGrants, SessionKind } from './parked.js';
import type { PolicyStore } from './policy_store.js';
import type { Shard } from './shard.js';

/** What a session needs of its daemon. */
export interface SessionHost {
  readonly version: string;
  readonly epoch: string;
  readonly shards: readonly Shard[];
  readonly ringEntries: number;
  readonly draining: boolean;
  readonly sessionCount: number;
  readonly uptimeSeconds: number;
  readonly policies: PolicyStore;
  /** Whether clients that do not follow policies get memory although there are some. */
  readonly servesUnaware: boolean;
  /** Drivers of sessions after this one that have reported, by session. */
  reportedDrivers(after: number): Iterable<ReportedDriver>;
  readonly parked: ParkedGrants;
  /** Called once, when everything that the session held is free again. */
  sessionEnded(session: Session): void;
  log(level: 'debug' | 'info' | 'warn', fields: object, message: string): void;
}

/** Between two reports of a driver; one that comes sooner is refused. */
const REPORT_INTERVAL_MS = 100;

/** Left for the rest of a statsReply: 64 shards and the header. */
const DRIVERS_BYTES = MAX_FRAME_BYTES - 16_384;

/**
 * One control connection of the daemon: says hello, attaches shards, hands out grants, and gives everything back
 * when the peer goes, however it goes.
 */
export class Session {
  readonly #attached = new Map<number, SessionKind>();
  /** What is to be kept of each shard where the session ends without a goodbye. */
  readonly #parkable = new Map<number, Map<number, ParkableGrant>>();
  /** Whether the session ends in a way that leaves its memory as it was. */
  #parks = false;
  #leaving = false;
  #refusedClaims = 0;
  readonly #tickets = new Tickets();
  readonly #peer: ControlPeer;
  #followsPolicies = false;
  /** Whether the peer knows that there are changes, and has not asked for them yet. */
  #toldOfPolicies = false;
  #report: { report: DriverReport; atMs: number } | undefined;

  constructor(
    readonly id: number,
    private readonly channel: NativeChannel,
    private readonly host: SessionHost,
    /** Shared secret that hello has to carry; none where the transport says who the peer is. */
    token?: string,
  ) {
    this.#peer = new ControlPeer(channel, {
      opening: FrameType.hello,
      inOrder: true,
      ...(token === undefined ? {} : { token }),
      answer: (frame) => this.#answer(frame),
      ended: () => this.#giveBack(),
      gone: () => {
        this.#parks = true;
      },
      refusing: (error) => host.log('warn', { session: id, code: error.code }, error.message),
      ending: (reason) => host.log('info', { session: id, pid: channel.peerPid, reason }, 'session ended'),
    });
  }

  /** Only a process in the same host can be handed memory; the kernel says who that is. */
  get #passesDescriptors(): boolean {
    return this.channel.peerPid > 0;
  }

  /** Whether the peer has introduced itself as a client. */
  get greeted(): boolean {
    return this.#peer.introduced;
  }

  /** The last report, and how long ago it came. */
  get report(): ReportedDriver | undefined {
    if (!this.#report) return undefined;
    const { report, atMs } = this.#report;
    return { sessionId: this.id, ageSeconds: (performance.now() - atMs) / 1000, report };
  }

  /** Takes a lane that named this session. Throws a KvssError where its ticket does not open it. */
  async addLane(lane: LaneHelloInfo, stream: DescriptorBundle): Promise<void> {
    if (this.#peer.ended || !this.#tickets.opens(lane.ticket, lane.shard)) {
      throw KvssError.ofStatus(Status.notAllowed, 'the ticket does not open a lane of this session');
    }
    await this.#shardFor(lane.shard).native.addLane(this.id, lane.kind, lane.stream, stream);
  }

  /** Tells the peer that the daemon is going away. */
  announceDraining(): void {
    this.#peer.send({ type: FrameType.draining, payload: {} }, 0);
  }

  /** Tells the peer that policies have changed, or ends the session where it would store as if there were none. */
  announcePolicies(): void {
    if (!this.#peer.introduced) return;
    if (this.#followsPolicies) {
      if (!this.#toldOfPolicies) this.#peer.send({ type: FrameType.policiesChanged, payload: {} }, 0);
      this.#toldOfPolicies = true;
    } else if (this.#attached.size > 0 && this.#mustFollow) {
      this.refuse(this.#unaware());
    }
  }

  get #mustFollow(): boolean {
    return !this.#followsPolicies && !this.host.servesUnaware && !this.host.policies.isEmpty;
  }

  #unaware(): KvssError {
    return KvssError.ofStatus(
      Status.notAllowed,
      'this daemon has tenant policies, and the client did not say in hello that it follows them',
    );
  }

  /** Ends the session with a fault that the peer is told about first. */
  refuse(error: KvssError): void {
    this.#peer.refuse(error);
  }

  /** Closes the connection; shards let go of the memory. Resolves when it is free. */
  end(reason: string): Promise<void> {
    return this.#peer.end(reason);
  }

  /** A lane over which pieces go has ended. No process has the memory of such a session, so what is whole is kept. */
  laneEnded(): void {
    this.#parks = ![...this.#attached.values()].includes('rings');
    this.end('a lane has ended');
  }

  async #giveBack(): Promise<void> {
    await Promise.all(
      [...this.#attached.keys()].map(async (index) => {
        try {
          if (await this.#park(index)) return;
          await this.host.shards[index]?.native.closeSession(this.id);
        } catch (thrown) {
          this.host.log('warn', { session: this.id, shard: index, error: messageOf(thrown) }, 'cannot close session');
        }
      }),
    );
    this.host.sessionEnded(this);
  }

  /** Ends the session on a shard and keeps what it wanted kept, where it ended in a way that allows that. */
  async #park(index: number): Promise<boolean> {
    const { draining, parked, shards } = this.host;
    const grants = [...(this.#parkable.get(index)?.values() ?? [])].filter((grant) => parked.takes(grant));
    const shard = shards[index];
    if (!this.#parks || this.#leaving || draining || !shard || grants.length === 0) return false;
    await parked.park(shard, this.id, grants);
    return true;
  }

  async #answer(frame: Frame): Promise<Answer> {
    switch (frame.type) {
      case FrameType.hello:
        return this.#hello(parsePayload('hello', frame.payload));
      case FrameType.attach:
        return this.#attach(parsePayload('attach', frame.payload));
      case FrameType.attachStream:
        return this.#attachStream(parsePayload('attachStream', frame.payload));
      case FrameType.ticket:
        return this.#issueTicket(parsePayload('ticket', frame.payload));
      case FrameType.grant:
        return this.#grant(parsePayload('grant', frame.payload));
      case FrameType.release:
        return this.#release(parsePayload('release', frame.payload));
      case FrameType.slotTable:
        return this.#slotTable(parsePayload('slotTable', frame.payload));
      case FrameType.stats:
        return this.#stats(parsePayload('stats', frame.payload).driversAfter ?? 0);
      case FrameType.policies:
        return this.#policies(parsePayload('policies', frame.payload));
      case FrameType.report:
        return this.#takeReport(parsePayload('report', frame.payload));
      case FrameType.goodbye:
        this.#leaving = true;
        return { type: FrameType.farewell, payload: {} };
      default:
        throw KvssError.ofStatus(Status.badFrame, `a client does not send ${frameTypeName(frame.type)}`);
    }
  }

  #hello(request: PayloadOf<'hello'>): Answer {
    this.#peer.introduce(request.token);
    this.#followsPolicies = request.policies === true;
    const { policies } = this.host;
    this.host.log('info', { session: this.id, pid: this.channel.peerPid, client: request.client }, 'session opened');
    const payload: PayloadOf<'welcome'> = {
      daemon: this.host.version,
      epoch: this.host.epoch,
      sessionId: this.id,
      pid: process.pid,
      shards: this.#shardStates(),
      ...(policies.isEmpty ? {} : { policies: policies.version }),
      reports: true,
    };
    return { type: FrameType.welcome, payload };
  }

  async #attach(request: PayloadOf<'attach'>): Promise<Answer> {
    if (!this.#passesDescriptors) {
      throw KvssError.ofStatus(Status.notAllowed, 'memory cannot be shared over a stream; use attachStream');
    }
    const shard = this.#shardFor(request.shard);
    if (this.#mustFollow) throw this.#unaware();
    const ringEntries = Math.min(request.ringEntries, this.host.ringEntries);
    const attach = () => shard.native.openSession(this.id, ringEntries);
    const { attached, resumed, memory } = await this.#attachTo(shard, 'rings', attach, request.resume);
    const payload: PayloadOf<'attached'> = { ringEntries, ...(resumed ? { resumed } : {}) };
    return {
      type: FrameType.attached,
      payload,
      descriptors: memory ? native.joinBundles(attached, memory) : attached,
    };
  }

  async #attachStream(request: PayloadOf<'attachStream'>): Promise<Answer> {
    const shard = this.#shardFor(request.shard);
    if (this.#mustFollow) throw this.#unaware();
    const window = Math.min(request.window, this.host.ringEntries);
    const attach = () => shard.native.openStreamSession(this.id, window, request.checksums === true);
    const { resumed, memory } = await this.#attachTo(shard, 'lanes', attach, request.resume);
    memory?.close();
    const ticket = this.#tickets.issue(shard.index, Number.POSITIVE_INFINITY);
    const payload: PayloadOf<'streamAttached'> = { window, ticket, ...(resumed ? { resumed } : {}) };
    return { type: FrameType.streamAttached, payload };
  }

  /** Attaches a shard, with what the client resumes there if it does. A claim that is refused attaches nothing. */
  async #attachTo<T>(
    shard: Shard,
    kind: SessionKind,
    attach: () => Promise<T>,
    resume: PayloadOf<'attach'>['resume'],
  ): Promise<{ attached: T; resumed?: PayloadOf<'attached'>['resumed']; memory?: DescriptorBundle }> {
    const parked = resume && (await this.#claim(shard, kind, resume));
    try {
      const attached = await attach();
      this.#attached.set(shard.index, kind);
      if (!parked || !resume) return { attached };
      const { slots, sessionId, grantId } = parked;
      const granted = await shard.native.resumeGrant(this.id, resume.grantId, sessionId, grantId);
      this.#remember(shard, { ...parked, grantId: resume.grantId, ...granted }, resume.park);
      this.host.log('info', { session: this.id, shard: shard.index, from: sessionId, bytes: granted.bytes }, 'resumed');
      const { slotBytes, bytes, hugePages } = granted;
      return { attached, resumed: { slots, slotBytes, bytes, hugePages }, memory: granted.descriptors };
    } catch (thrown) {
      if (parked) await this.host.parked.drop(parked, 'it could not be resumed');
      throw thrown;
    }
  }

  async #claim(
    shard: Shard,
    kind: SessionKind,
    { secret, label, pieceBytes }: NonNullable<PayloadOf<'attach'>['resume']>,
  ): Promise<ParkedGrant> {
    // Before anything is taken from the owner.
    if (this.#attached.has(shard.index)) {
      throw KvssError.ofStatus(Status.notAllowed, 'the session is attached to this shard already');
    }
    const uid = this.channel.peerUid;
    const parked = await this.host.parked.claim({ shard, secret, label, kind, uid, pieceBytes });
    if (parked) return parked;
    const error = KvssError.ofStatus(Status.nothingParked, 'nothing is parked that this claim would bring back');
    this.#refusedClaims += 1;
    // One for each shard is a driver that comes too late. More are guesses.
    if (this.#refusedClaims > this.host.shards.length) this.refuse(error);
    throw error;
  }

  #issueTicket(request: PayloadOf<'ticket'>): Answer {
    const shard = this.#shardFor(request.shard);
    if (!this.#attached.has(shard.index)) {
      throw KvssError.ofStatus(Status.notAllowed, 'the session is not attached to this shard');
    }
    const ticket = this.#tickets.issue(shard.index, request.lifetimeMs);
    return { type: FrameType.ticketIssued, payload: { ticket } satisfies PayloadOf<'ticketIssued'> };
  }

  async #grant(request: PayloadOf<'grant'>): Promise<Answer> {
    const shard = this.#shardFor(request.shard);
    const granted = await this.#addGrant(shard, request);
    const { descriptors, slotBytes, bytes, hugePages } = granted;
    const { grantId, slots, pieceBytes } = request;
    const kind = this.#attached.get(shard.index) ?? 'rings';
    const uid = this.channel.peerUid;
    this.#remember(shard, { grantId, slots, pieceBytes, bytes, kind, uid }, request.park);
    this.host.log(
      'debug',
      { session: this.id, shard: shard.index, grant: request.grantId, slots: request.slots, bytes },
      'granted',
    );
    const payload: PayloadOf<'granted'> = { slotBytes, bytes, hugePages };
    // The engine maps the memory of lanes: a client with a descriptor could take the pages away beneath it.
    if (kind === 'lanes') {
      descriptors.close();
      return { type: FrameType.granted, payload };
    }
    return { type: FrameType.granted, payload, descriptors };
  }

  /** Parked memory makes room for what a driver needs now. */
  async #addGrant(shard: Shard, { grantId, slots, pieceBytes }: PayloadOf<'grant'>): Promise<NativeGrant> {
    for (;;) {
      try {
        return await shard.native.addGrant(this.id, grantId, slots, pieceBytes);
      } catch (thrown) {
        const full = nativeError(thrown).status === Status.noMemory;
        if (!full || !(await this.host.parked.makeRoom(shard, slots * slotBytesOf(pieceBytes)))) throw thrown;
      }
    }
  }

  /** Keeps in mind what becomes of a grant where the session ends without a goodbye. */
  #remember(
    shard: Shard,
    { grantId, slots, pieceBytes, bytes, kind, uid }: Omit<ParkableGrant, 'owner' | 'label' | 'ms'>,
    park: PayloadOf<'grant'>['park'],
  ): void {
    if (!park) return;
    const grants = this.#parkable.get(shard.index) ?? new Map<number, ParkableGrant>();
    this.#parkable.set(shard.index, grants.set(grantId, { grantId, slots, pieceBytes, bytes, kind, uid, ...park }));
  }

  async #slotTable({ shard, grantId, from, count }: PayloadOf<'slotTable'>): Promise<Answer> {
    const slots = await this.#shardFor(shard).native.readSlots(this.id, grantId, from, count);
    return { type: FrameType.slotPage, payload: { slots } satisfies PayloadOf<'slotPage'> };
  }

  async #release(request: PayloadOf<'release'>): Promise<Answer> {
    await this.#shardFor(request.shard).native.removeGrant(this.id, request.grantId);
    this.#parkable.get(request.shard)?.delete(request.grantId);
    return { type: FrameType.released, payload: {} };
  }

  #policies(request: PayloadOf<'policies'>): Answer {
    this.#toldOfPolicies = false;
    return { type: FrameType.policiesPage, payload: this.host.policies.pageSince(request) };
  }

  #takeReport(report: DriverReport): Answer {
    const atMs = performance.now();
    if (this.#report && atMs - this.#report.atMs < REPORT_INTERVAL_MS) {
      throw KvssError.ofStatus(Status.limitExceeded, `reports come at most every ${REPORT_INTERVAL_MS} ms`);
    }
    this.#report = { report, atMs };
    return { type: FrameType.reported, payload: {} };
  }

  /** As many reports as fit into a frame. */
  #driversAfter(after: number): Pick<PayloadOf<'statsReply'>, 'drivers' | 'moreDrivers'> {
    const drivers: ReportedDriver[] = [];
    let length = 0;
    for (const driver of this.host.reportedDrivers(after)) {
      length += payloadLength(driver);
      if (length > DRIVERS_BYTES) return { drivers, moreDrivers: true };
      drivers.push(driver);
    }
    return { drivers };
  }

  #stats(driversAfter: number): Answer {
    const { shards, sessionCount, uptimeSeconds } = this.host;
    const payload: PayloadOf<'statsReply'> = {
      shards: this.#shardStates(),
      sessions: sessionCount,
      uptimeSeconds,
      ...this.#driversAfter(driversAfter),
    };
    if (!this.#passesDescriptors) return { type: FrameType.statsReply, payload };
    const descriptors = native.joinBundles(...shards.map((shard) => shard.native.countersDescriptor()));
    return { type: FrameType.statsReply, payload, descriptors };
  }

  #shardStates(): ShardState[] {
    const { shards, parked } = this.host;
    return shards.map((shard) => ({ ...shard.state(), parkedBytes: parked.bytes(shard) }));
  }

  #shardFor(index: number): Shard {
    if (this.host.draining) throw KvssError.ofStatus(Status.draining, 'the daemon is shutting down');
    const shard = this.host.shards[index];
    if (!shard) throw KvssError.ofStatus(Status.unknownShard, `there is no shard ${index}`);
    return shard;
  }
}
