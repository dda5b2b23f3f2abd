import { type DescriptorBundle, type NativeChannel, native, nativeError } from '../binding/native.js';
import { type Clock, systemClock } from '../common/clock.js';
import { KvssError, localError, messageOf } from '../common/errors.js';
import { VERSION } from '../common/version.js';
import { decodeFrame, encodeFrame, FrameType, type PayloadOf, parsePayload } from '../proto/frames.js';
import { frameTypeName, Status } from '../proto/generated.js';

/** What is asked, and what answers it. */
interface Answers {
  hello: 'welcome';
  attach: 'attached';
  attachStream: 'streamAttached';
  ticket: 'ticketIssued';
  grant: 'granted';
  release: 'released';
  slotTable: 'slotPage';
  goodbye: 'farewell';
  stats: 'statsReply';
  carrierHello: 'carrierWelcome';
  carry: 'carrying';
  drop: 'dropped';
  compute: 'computed';
  check: 'checked';
  policies: 'policiesPage';
  report: 'reported';
}
type RequestName = keyof Answers;
type AnswerName = Answers[RequestName];

interface Pending {
  resolve(answer: { payload: unknown; descriptors: DescriptorBundle | null }): void;
  reject(error: KvssError): void;
  expects: AnswerName;
}

/** The client's end of a control connection: requests and their answers. */
export class ControlClient {
  onDraining: () => void = () => {};
  onEnd: (reason: string) => void = () => {};
  #onPoliciesChanged: (() => void) | undefined;
  #policiesChanged = false;
  readonly #pending = new Map<number, Pending>();
  #nextRequest = 1;
  #ended = false;
  #endReason = 'the connection was closed';

  private constructor(
    private readonly channel: NativeChannel,
    private readonly deadlineMs: number,
    private readonly clock: Clock,
  ) {
    channel.start(
      (bytes, descriptors) => this.#receive(bytes, descriptors),
      () => this.#end('the other side has gone'),
    );
  }

  /** Connects over shared memory's socket and says hello. Rejects with KVSS_UNREACHABLE where nobody listens. */
  static async connect(
    path: string,
    deadlineMs: number,
    introduction: { policies?: boolean } = {},
  ): Promise<{ client: ControlClient; welcome: PayloadOf<'welcome'> }> {
    let channel: NativeChannel;
    try {
      channel = native.ControlChannel.connect(path);
    } catch (cause) {
      throw localError('KVSS_UNREACHABLE', messageOf(cause), cause);
    }
    return ControlClient.greet(channel, deadlineMs, 'hello', 'welcome', introduction);
  }

  /** Introduces itself over a channel that is there. */
  static async greet<Opening extends 'hello' | 'carrierHello'>(
    channel: NativeChannel,
    deadlineMs: number,
    opening: Opening,
    expects: Answers[Opening],
    introduction: { token?: string; owner?: string; policies?: boolean } = {},
    clock: Clock = systemClock,
  ): Promise<{ client: ControlClient; welcome: PayloadOf<Answers[Opening]> }> {
    const client = new ControlClient(channel, deadlineMs, clock);
    try {
      const { payload } = await client.request(opening, { client: `kvss-node/${VERSION}`, ...introduction }, expects);
      return { client, welcome: payload };
    } catch (thrown) {
      client.close();
      throw thrown;
    }
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Has `listener` called when the daemon says that policies have changed; at once where it has said so already. */
  listenForPolicies(listener: () => void): void {
    this.#onPoliciesChanged = listener;
    if (this.#policiesChanged) listener();
    this.#policiesChanged = false;
  }

  /** Asks the daemon. Rejects with its error, at the deadline, or when the connection ends. */
  async request<Name extends RequestName, Answer extends Answers[Name]>(
    name: Name,
    payload: object,
    expects: Answer,
    deadlineMs = this.deadlineMs,
  ): Promise<{ payload: PayloadOf<Answer>; descriptors: DescriptorBundle | null }> {
    if (this.#ended) throw localError('KVSS_UNREACHABLE', this.#endReason);
    const requestId = this.#nextRequest++;
    let cancel = () => {};
    try {
      const answer = await new Promise<{ payload: unknown; descriptors: DescriptorBundle | null }>(
        (resolve, reject) => {
          this.#pending.set(requestId, { resolve, reject, expects });
          cancel = this.clock.schedule(deadlineMs, () => {
            reject(localError('KVSS_TIMEOUT', `no answer to ${name} within ${deadlineMs} ms`));
          });
          const frame = encodeFrame({ type: FrameType[name], requestId, payload });
          try {
            this.channel.send(frame);
          } catch {
            // It has gone, and its end is about to be heard of, behind what it may have said last; or it does not read, and
            // the deadline ends that.
          }
        },
      );
      return { payload: parsePayload(expects, answer.payload), descriptors: answer.descriptors };
    } catch (thrown) {
      throw nativeError(thrown);
    } finally {
      cancel();
      this.#pending.delete(requestId);
    }
  }

  close(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.channel.close();
    this.#failPending(this.#endReason);
  }

  #receive(bytes: Uint8Array, descriptors: DescriptorBundle | null): void {
    try {
      const frame = decodeFrame(bytes);
      const pending = this.#pending.get(frame.requestId);
      if (frame.type === FrameType.error) {
        descriptors?.close();
        const { status, message } = parsePayload('error', frame.payload);
        const error = KvssError.ofStatus(status, message);
        if (frame.requestId === 0) {
          for (const request of this.#pending.values()) request.reject(error);
          this.#end(message);
        } else {
          pending?.reject(error);
        }
      } else if (frame.type === FrameType.draining) {
        this.#endReason = 'the daemon is shutting down';
        this.onDraining();
      } else if (frame.type === FrameType.policiesChanged) {
        // It may come before anybody listens: right behind the welcome.
        if (this.#onPoliciesChanged) this.#onPoliciesChanged();
        else this.#policiesChanged = true;
      } else if (pending && FrameType[pending.expects] === frame.type) {
        pending.resolve({ payload: frame.payload, descriptors });
      } else {
        // Nobody waits for it any more: what came with it is closed, not leaked.
        descriptors?.close();
        if (pending) {
          const what = frameTypeName(frame.type);
          pending.reject(KvssError.ofStatus(Status.badFrame, `expected ${pending.expects}, got ${what}`));
        }
      }
    } catch (thrown) {
      descriptors?.close();
      const error = nativeError(thrown);
      for (const request of this.#pending.values()) request.reject(error);
      this.#end(error.message);
    }
  }

  #end(reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#endReason = reason;
    this.channel.close();
    this.#failPending(reason);
    this.onEnd(reason);
  }

  #failPending(reason: string): void {
    for (const request of this.#pending.values()) request.reject(localError('KVSS_UNREACHABLE', reason));
    this.#pending.clear();
  }
}
