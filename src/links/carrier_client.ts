import { native } from '../binding/native.js';
import { localError } from '../common/errors.js';
import type { PayloadOf } from '../proto/frames.js';
import { LaneKind } from '../proto/generated.js';
import { controlHello, encodeLane } from '../proto/lanes.js';
import type { CarriedLink, Carrier } from './carrier.js';
import { ControlClient } from './control_client.js';
import { openLane } from './open_lane.js';
import { parseStreamAddress, type StreamAddress } from './stream_address.js';

export interface CarrierOptions {
  /** Longest that connecting, or one answer, may take, in milliseconds. */
  deadlineMs: number;
  /** Secret of the carrier's listener. */
  token?: string;
}

/** The driver's end of a carrier in another process. It does not come back when the carrier has gone: its memory has. */
export class CarrierClient implements Carrier, AsyncDisposable {
  private constructor(
    private readonly address: StreamAddress,
    /** @internal For what a carrier can do besides. */
    readonly control: ControlClient,
    private readonly welcome: PayloadOf<'carrierWelcome'>,
    private readonly options: CarrierOptions,
  ) {}

  /** Connects to `tcp://HOST:PORT` or `unix:PATH`. Rejects with KVSS_UNREACHABLE, or with what the carrier answered. */
  static async connect(address: string, options: CarrierOptions): Promise<CarrierClient> {
    const stream = parseStreamAddress(address);
    if (!stream) {
      throw localError('KVSS_BAD_INPUT', `'${address}' is no address of a carrier; write unix:PATH or tcp://HOST:PORT`);
    }
    const lane = await openLane(stream, controlHello(), options.deadlineMs);
    const { client, welcome } = await ControlClient.greet(
      native.ControlChannel.adopt(lane),
      options.deadlineMs,
      'carrierHello',
      'carrierWelcome',
      options.token,
    );
    return new CarrierClient(stream, client, welcome, options);
  }

  get places(): number {
    return this.welcome.places;
  }

  get pieceBytes(): readonly number[] {
    return this.welcome.pieceBytes;
  }

  async carry(request: PayloadOf<'carry'>): Promise<CarriedLink> {
    const { control, welcome, options } = this;
    const { payload } = await control.request('carry', request, 'carrying');
    const { link, ticket } = payload;
    const drop = async () => {
      // A carrier that does not answer has gone, and so has its memory.
      await control.request('drop', { link }, 'dropped').catch(() => {});
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
    this.control.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
