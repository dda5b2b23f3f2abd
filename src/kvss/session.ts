import type { DescriptorBundle } from '../binding/native.js';
import { type NativeChannel, native } from '../binding/native.js';
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
} from '../proto/frames.js';
import { frameTypeName, MAX_FRAME_BYTES, Status } from '../proto/generated.js';
import type { LaneHelloInfo } from '../proto/lanes.js';
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
  readonly #attached = new Set<number>();
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

  async #giveBack(): Promise<void> {
    await Promise.all(
      [...this.#attached].map(async (index) => {
        try {
          await this.host.shards[index]?.native.closeSession(this.id);
        } catch (thrown) {
          this.host.log('warn', { session: this.id, shard: index, error: messageOf(thrown) }, 'cannot close session');
        }
      }),
    );
    this.host.sessionEnded(this);
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
      case FrameType.stats:
        return this.#stats(parsePayload('stats', frame.payload).driversAfter ?? 0);
      case FrameType.policies:
        return this.#policies(parsePayload('policies', frame.payload));
      case FrameType.report:
        return this.#takeReport(parsePayload('report', frame.payload));
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
      shards: this.host.shards.map((shard) => shard.state()),
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
    const descriptors = await shard.native.openSession(this.id, ringEntries);
    this.#attached.add(shard.index);
    return { type: FrameType.attached, payload: { ringEntries } satisfies PayloadOf<'attached'>, descriptors };
  }

  async #attachStream(request: PayloadOf<'attachStream'>): Promise<Answer> {
    const shard = this.#shardFor(request.shard);
    if (this.#mustFollow) throw this.#unaware();
    const window = Math.min(request.window, this.host.ringEntries);
    await shard.native.openStreamSession(this.id, window, request.checksums === true);
    this.#attached.add(shard.index);
    const ticket = this.#tickets.issue(shard.index, Number.POSITIVE_INFINITY);
    return { type: FrameType.streamAttached, payload: { window, ticket } satisfies PayloadOf<'streamAttached'> };
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
    const { descriptors, slotBytes, bytes, hugePages } = await shard.native.addGrant(
      this.id,
      request.grantId,
      request.slots,
      request.pieceBytes,
    );
    this.host.log(
      'debug',
      { session: this.id, shard: shard.index, grant: request.grantId, slots: request.slots, bytes },
      'granted',
    );
    const payload: PayloadOf<'granted'> = { slotBytes, bytes, hugePages };
    if (!this.#passesDescriptors) {
      descriptors.close();
      return { type: FrameType.granted, payload };
    }
    return { type: FrameType.granted, payload, descriptors };
  }

  async #release(request: PayloadOf<'release'>): Promise<Answer> {
    await this.#shardFor(request.shard).native.removeGrant(this.id, request.grantId);
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
      shards: shards.map((shard) => shard.state()),
      sessions: sessionCount,
      uptimeSeconds,
      ...this.#driversAfter(driversAfter),
    };
    if (!this.#passesDescriptors) return { type: FrameType.statsReply, payload };
    const descriptors = native.joinBundles(...shards.map((shard) => shard.native.countersDescriptor()));
    return { type: FrameType.statsReply, payload, descriptors };
  }

  #shardFor(index: number): Shard {
    if (this.host.draining) throw KvssError.ofStatus(Status.draining, 'the daemon is shutting down');
    const shard = this.host.shards[index];
    if (!shard) throw KvssError.ofStatus(Status.unknownShard, `there is no shard ${index}`);
    return shard;
  }
}
