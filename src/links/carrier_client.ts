import { randomBytes } from 'node:crypto';
import { native } from '../binding/native.js';
import { localError } from '../common/errors.js';
import type { PayloadOf } from '../proto/frames.js';
import { LaneKind } from '../proto/generated.js';
import { controlHello, encodeLane } from '../proto/lanes.js';
import type { CarriedLink, Carrier } from './carrier.js';
import { ControlClient } from './control_client.js';
import { openLane } from './open_lane.js';
import { parseStreamAddress, type StreamAddress } from './stream_address.js';

/** How a carrier is reached. */
export interface CarrierOptions {
  /** Longest that connecting, or one answer, may take, in milliseconds. */
  deadlineMs: number;
  /** Secret of the carrier's listener. */
  token?: string;
}

type Asks = ControlClient['request'];

/**
 * The driver's end of a carrier in another process. Connects again where a connection was lost; a carrier that was started
 * anew has lost its memory and is refused.
 */
export class CarrierClient implements Carrier, AsyncDisposable {
  #reconnecting: Promise<void> | undefined;
  #closed = false;

  private constructor(
    private readonly address: StreamAddress,
    private readonly owner: string,
    private readonly options: CarrierOptions,
    private control: ControlClient,
    private welcome: PayloadOf<'carrierWelcome'>,
  ) {}

  /** Connects to `tcp://HOST:PORT` or `unix:PATH`. Rejects with KVSS_UNREACHABLE, or with what the carrier answered. */
  static async connect(address: string, options: CarrierOptions): Promise<CarrierClient> {
    const stream = parseStreamAddress(address);
    if (!stream) {
      throw localError('KVSS_BAD_INPUT', `'${address}' is no address of a carrier; write unix:PATH or tcp://HOST:PORT`);
    }
    const owner = randomBytes(16).toString('hex');
    const { client, welcome } = await greet(stream, owner, options);
    return new CarrierClient(stream, owner, options, client, welcome);
  }

  /** Columns that the carrier's memory holds. */
  get places(): number {
    return this.welcome.places;
  }

  /** Bytes of the piece of each member of a stripe. */
  get pieceBytes(): readonly number[] {
    return this.welcome.pieceBytes;
  }

  /** Asks the carrier, on a new connection where the last one was lost. Rejects as ControlClient.request does. */
  readonly request: Asks = async (name, payload, expects, deadlineMs) => {
    if (this.control.ended || this.#reconnecting) await this.#reconnect();
    return this.control.request(name, payload, expects, deadlineMs);
  };

  async carry(request: PayloadOf<'carry'>): Promise<CarriedLink> {
    const { payload } = await this.request('carry', request, 'carrying');
    // Of this session: a later one does not know the link.
    const { control, welcome, options } = this;
    const { link, ticket } = payload;
    const drop = async () => {
      try {
        await control.request('drop', { link }, 'dropped');
      } catch {
        // Greeting it again ends all lanes of this session. One that cannot be greeted has gone, and so has its memory.
        if (this.control === control) await this.#reconnect().catch(() => {});
      }
    };
    try {
      const hello = encodeLane({ kind: LaneKind.order, shard: link, stream: 0, sessionId: welcome.sessionId, ticket });
      return { order: await openLane(this.address, hello, options.deadlineMs), drop };
    } catch (thrown) {
      await drop();
      throw thrown;
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.control.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #reconnect(): Promise<void> {
    this.#reconnecting ??= this.#greetAgain().finally(() => {
      this.#reconnecting = undefined;
    });
    return this.#reconnecting;
  }

  async #greetAgain(): Promise<void> {
    if (this.#closed) throw localError('KVSS_CLOSED', 'the connection to the carrier was closed');
    const { client, welcome } = await greet(this.address, this.owner, this.options);
    if (this.#closed || welcome.epoch !== this.welcome.epoch) {
      client.close();
      throw localError('KVSS_UNREACHABLE', 'the carrier was started anew, and its memory is gone');
    }
    this.control.close();
    this.control = client;
    this.welcome = welcome;
  }
}

async function greet(
  address: StreamAddress,
  owner: string,
  { deadlineMs, token }: CarrierOptions,
): Promise<{ client: ControlClient; welcome: PayloadOf<'carrierWelcome'> }> {
  const lane = await openLane(address, controlHello(), deadlineMs);
  const introduction = { owner, ...(token === undefined ? {} : { token }) };
  const channel = native.ControlChannel.adopt(lane);
  return ControlClient.greet(channel, deadlineMs, 'carrierHello', 'carrierWelcome', introduction);
}
