import type { DescriptorBundle } from '../binding/native.js';
import { type NativeChannel, native } from '../binding/native.js';
import { KvssError, messageOf } from '../common/errors.js';
import { type Answer, ControlPeer } from '../links/control_peer.js';
import { Tickets } from '../links/tickets.js';
import { type Frame, FrameType, type PayloadOf, parsePayload } from '../proto/frames.js';
import { frameTypeName, Status } from '../proto/generated.js';
import type { LaneHelloInfo } from '../proto/lanes.js';
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
  /** Called once, when everything that the session held is free again. */
  sessionEnded(session: Session): void;
  log(level: 'debug' | 'info' | 'warn', fields: object, message: string): void;
}

/**
 * One control connection of the daemon: says hello, attaches shards, hands out grants, and gives everything back
 * when the peer goes, however it goes.
 */
export class Session {
  readonly #attached = new Set<number>();
  readonly #tickets = new Tickets();
  readonly #peer: ControlPeer;

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
        return this.#stats();
      default:
        throw KvssError.ofStatus(Status.badFrame, `a client does not send ${frameTypeName(frame.type)}`);
    }
  }

  #hello(request: PayloadOf<'hello'>): Answer {
    this.#peer.introduce(request.token);
    this.host.log('info', { session: this.id, pid: this.channel.peerPid, client: request.client }, 'session opened');
    const payload: PayloadOf<'welcome'> = {
      daemon: this.host.version,
      epoch: this.host.epoch,
      sessionId: this.id,
      pid: process.pid,
      shards: this.host.shards.map((shard) => shard.state()),
    };
    return { type: FrameType.welcome, payload };
  }

  async #attach(request: PayloadOf<'attach'>): Promise<Answer> {
    if (!this.#passesDescriptors) {
      throw KvssError.ofStatus(Status.notAllowed, 'memory cannot be shared over a stream; use attachStream');
    }
    const shard = this.#shardFor(request.shard);
    const ringEntries = Math.min(request.ringEntries, this.host.ringEntries);
    const descriptors = await shard.native.openSession(this.id, ringEntries);
    this.#attached.add(shard.index);
    return { type: FrameType.attached, payload: { ringEntries } satisfies PayloadOf<'attached'>, descriptors };
  }

  async #attachStream(request: PayloadOf<'attachStream'>): Promise<Answer> {
    const shard = this.#shardFor(request.shard);
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

  #stats(): Answer {
    const { shards, sessionCount, uptimeSeconds } = this.host;
    const payload: PayloadOf<'statsReply'> = {
      shards: shards.map((shard) => shard.state()),
      sessions: sessionCount,
      uptimeSeconds,
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
