import { type DescriptorBundle, type NativeChannel, native, nativeError } from '../binding/native.js';
import { KvssError, messageOf } from '../common/errors.js';
import {
  decodeFrame,
  encodeFrame,
  type Frame,
  FrameType,
  Payload,
  type PayloadOf,
  parsePayload,
} from '../proto/frames.js';
import { frameTypeName, MAX_SHARDS, Status } from '../proto/generated.js';
import type { LaneHelloInfo } from '../proto/lanes.js';
import type { Shard } from './shard.js';
import { sameSecret, Tickets } from './tickets.js';

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

type Answer = { type: FrameType; payload: unknown; descriptors?: DescriptorBundle };

// A peer that asks faster than it is answered is broken or hostile.
const MAX_PENDING_REQUESTS = 4 * MAX_SHARDS;

// A connection that says nothing must not keep others out.
const HELLO_TIMEOUT_MS = 5_000;

/**
 * One control connection of the daemon: says hello, attaches shards, hands out grants, and gives everything back
 * when the peer goes, however it goes.
 */
export class Session {
  readonly #attached = new Set<number>();
  readonly #tickets = new Tickets();
  readonly #impatience: NodeJS.Timeout;
  #greeted = false;
  #pending = 0;
  #ended = false;
  #work: Promise<void> = Promise.resolve();

  constructor(
    readonly id: number,
    private readonly channel: NativeChannel,
    private readonly host: SessionHost,
    /** Shared secret that hello has to carry; none where the transport says who the peer is. */
    private readonly token?: string,
  ) {
    this.#impatience = setTimeout(() => {
      this.refuse(KvssError.ofStatus(Status.deadline, 'the peer did not say hello'));
    }, HELLO_TIMEOUT_MS);
    this.#impatience.unref();
    channel.start(
      (bytes, descriptors) => this.#receive(bytes, descriptors),
      () => this.end('the driver has gone'),
    );
  }

  /** Only a process in the same host can be handed memory; the kernel says who that is. */
  get #passesDescriptors(): boolean {
    return this.channel.peerPid > 0;
  }

  /** Whether the peer has introduced itself as a client. */
  get greeted(): boolean {
    return this.#greeted;
  }

  /** Takes a lane that named this session. Throws a KvssError where its ticket does not open it. */
  async addLane(lane: LaneHelloInfo, stream: DescriptorBundle): Promise<void> {
    if (this.#ended || !this.#tickets.opens(lane.ticket, lane.shard)) {
      throw KvssError.ofStatus(Status.notAllowed, 'the ticket does not open a lane of this session');
    }
    await this.#shardFor(lane.shard).native.addLane(this.id, lane.kind, lane.stream, stream);
  }

  /** Tells the peer that the daemon is going away. */
  announceDraining(): void {
    this.#send({ type: FrameType.draining, payload: {} }, 0);
  }

  /** Ends the session with a fault that the peer is told about first. */
  refuse(error: KvssError): void {
    this.host.log('warn', { session: this.id, code: error.code }, error.message);
    this.#sendError(error, 0);
    this.end(error.message);
  }

  /** Closes the connection; shards let go of the memory. Resolves when it is free. */
  end(reason: string): Promise<void> {
    if (this.#ended) return this.#work;
    this.#ended = true;
    clearTimeout(this.#impatience);
    this.channel.close();
    this.host.log('info', { session: this.id, pid: this.channel.peerPid, reason }, 'session ended');
    // After the request that is being served, so that nothing is handed out behind the back of the clean-up.
    this.#work = this.#work.then(async () => {
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
    });
    return this.#work;
  }

  #receive(bytes: Uint8Array, descriptors: DescriptorBundle | null): void {
    // Clients have nothing to send: what they hand over is closed unseen.
    descriptors?.close();
    let frame: Frame;
    try {
      frame = decodeFrame(bytes);
    } catch (thrown) {
      this.refuse(nativeError(thrown));
      return;
    }
    if (++this.#pending > MAX_PENDING_REQUESTS) {
      this.refuse(KvssError.ofStatus(Status.limitExceeded, 'too many requests at once'));
      return;
    }
    this.#work = this.#work.then(async () => {
      try {
        if (!this.#ended) await this.#serve(frame);
      } finally {
        this.#pending -= 1;
      }
    });
  }

  async #serve(frame: Frame): Promise<void> {
    try {
      const answer = await this.#answer(frame);
      if (this.#ended) answer.descriptors?.close();
      else this.#send(answer, frame.requestId);
    } catch (thrown) {
      const error = nativeError(thrown);
      // A peer that does not even speak properly is not worth keeping; one that asked for too much is.
      const hopeless = error.status === Status.badFrame || error.status === Status.badVersion || !this.#greeted;
      if (hopeless) this.refuse(error);
      else this.#sendError(error, frame.requestId);
    }
  }

  async #answer(frame: Frame): Promise<Answer> {
    if (!this.#greeted && frame.type !== FrameType.hello) {
      throw KvssError.ofStatus(Status.badFrame, `expected hello, got ${frameTypeName(frame.type)}`);
    }
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
    if (this.#greeted) throw KvssError.ofStatus(Status.badFrame, 'hello was said already');
    clearTimeout(this.#impatience);
    if (this.token !== undefined && !sameSecret(this.token, request.token ?? '')) {
      throw KvssError.ofStatus(Status.notAllowed, 'hello does not carry the token of this listener');
    }
    this.#greeted = true;
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

  #sendError(error: KvssError, requestId: number): void {
    const payload: PayloadOf<'error'> = { status: error.status, message: error.message.slice(0, 4096) };
    this.#send({ type: FrameType.error, payload: Payload.error.parse(payload) }, requestId);
  }

  #send(answer: Answer, requestId: number): void {
    if (this.#ended) return;
    try {
      this.channel.send(
        encodeFrame({ type: answer.type, requestId, payload: answer.payload }),
        answer.descriptors ?? null,
      );
    } catch (thrown) {
      // The peer is gone or does not read its answers; either way there is nobody to tell.
      this.end(`cannot send: ${messageOf(thrown)}`);
    }
  }
}
