import { type DescriptorBundle, type NativeChannel, nativeError } from '../binding/native.js';
import { type Clock, systemClock } from '../common/clock.js';
import { KvssError, messageOf } from '../common/errors.js';
import { decodeFrame, encodeFrame, type Frame, FrameType, Payload, type PayloadOf } from '../proto/frames.js';
import { frameTypeName, MAX_SHARDS, Status } from '../proto/generated.js';
import { sameSecret } from './tickets.js';

/** Answer to a request. The descriptors, if any, travel with it. */
export interface Answer {
  type: FrameType;
  payload: unknown;
  descriptors?: DescriptorBundle;
}

/** What is behind the served end of a control connection. */
export interface ControlService {
  /** The frame that a peer has to begin with. */
  readonly opening: FrameType;
  /** Secret that the opening has to carry; none where the transport says who the peer is. */
  readonly token?: string;
  /** Whether a request waits until the one before has been answered. */
  readonly inOrder: boolean;
  /** Answers a request. What it throws is told to the peer. */
  answer(frame: Frame): Answer | Promise<Answer>;
  /** Called once, when the connection has ended and no request is being answered any more. */
  ended(): Promise<void>;
  /** The peer has gone by itself, and the connection is about to end. */
  gone?(): void;
  /** The peer is about to be refused. */
  refusing(error: KvssError): void;
  /** The connection ends, for this reason. */
  ending(reason: string): void;
}

// A peer that asks faster than it is answered is broken or hostile.
const MAX_PENDING_REQUESTS = 4 * MAX_SHARDS;

// A connection that says nothing must not keep others out.
const OPENING_TIMEOUT_MS = 5_000;

/** The served end of a control connection: takes requests in order, answers them, and gives up on peers that misbehave. */
export class ControlPeer {
  readonly #calmDown: () => void;
  #introduced = false;
  #pending = 0;
  #ended = false;
  #work: Promise<void> = Promise.resolve();

  constructor(
    private readonly channel: NativeChannel,
    private readonly service: ControlService,
    clock: Clock = systemClock,
  ) {
    this.#calmDown = clock.schedule(OPENING_TIMEOUT_MS, () => {
      this.refuse(KvssError.ofStatus(Status.deadline, `the peer did not say ${frameTypeName(service.opening)}`));
    });
    channel.start(
      (bytes, descriptors) => this.#receive(bytes, descriptors),
      () => {
        this.service.gone?.();
        this.end('the driver has gone');
      },
    );
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Whether the peer has introduced itself. */
  get introduced(): boolean {
    return this.#introduced;
  }

  /** Takes the opening of the peer. Throws a KvssError where it comes twice or does not carry the token. */
  introduce(token: string | undefined): void {
    const { opening, token: wanted } = this.service;
    if (this.#introduced) {
      throw KvssError.ofStatus(Status.badFrame, `${frameTypeName(opening)} was said already`);
    }
    this.#calmDown();
    if (wanted !== undefined && !sameSecret(wanted, token ?? '')) {
      throw KvssError.ofStatus(
        Status.notAllowed,
        `${frameTypeName(opening)} does not carry the token of this listener`,
      );
    }
    this.#introduced = true;
  }

  /** Ends the connection with a fault that the peer is told about first. */
  refuse(error: KvssError): void {
    this.service.refusing(error);
    this.#sendError(error, 0);
    this.end(error.message);
  }

  /** Closes the connection. Resolves when what is behind it has ended. */
  end(reason: string): Promise<void> {
    if (this.#ended) return this.#work;
    this.#ended = true;
    this.#calmDown();
    this.channel.close();
    this.service.ending(reason);
    // After the request that is being served, so that nothing is handed out behind the back of the clean-up.
    this.#work = this.#work.then(() => this.service.ended());
    return this.#work;
  }

  /** Sends a frame. `requestId` is 0 where nothing was asked. */
  send(answer: Answer, requestId: number): void {
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
    const before = this.#work;
    const serve = async () => {
      if (this.service.inOrder) await before;
      try {
        if (!this.#ended) await this.#serve(frame);
      } finally {
        this.#pending -= 1;
      }
    };
    this.#work = Promise.all([before, serve()]).then(() => {});
  }

  async #serve(frame: Frame): Promise<void> {
    try {
      if (!this.#introduced && frame.type !== this.service.opening) {
        const expected = frameTypeName(this.service.opening);
        throw KvssError.ofStatus(Status.badFrame, `expected ${expected}, got ${frameTypeName(frame.type)}`);
      }
      const answer = await this.service.answer(frame);
      if (this.#ended) answer.descriptors?.close();
      else this.send(answer, frame.requestId);
    } catch (thrown) {
      const error = nativeError(thrown);
      // A peer that does not even speak properly is not worth keeping; one that asked for too much is.
      const hopeless = error.status === Status.badFrame || error.status === Status.badVersion || !this.#introduced;
      if (hopeless) this.refuse(error);
      else this.#sendError(error, frame.requestId);
    }
  }

  #sendError(error: KvssError, requestId: number): void {
    const payload: PayloadOf<'error'> = { status: error.status, message: error.message.slice(0, 4096) };
    this.send({ type: FrameType.error, payload: Payload.error.parse(payload) }, requestId);
  }
}
