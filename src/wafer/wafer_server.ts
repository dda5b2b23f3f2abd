import { randomBytes } from 'node:crypto';
import { type Logger, pino } from 'pino';
import {
  type DescriptorBundle,
  type NativeCarrierLane,
  type NativeStreamListener,
  native,
  nativeError,
} from '../binding/native.js';
import { type Clock, systemClock } from '../common/clock.js';
import { KvssError, messageOf } from '../common/errors.js';
import { VERSION } from '../common/version.js';
import { type Answer, ControlPeer } from '../links/control_peer.js';
import { listenForStreams } from '../links/listen.js';
import { openLane } from '../links/open_lane.js';
import { parseStreamAddress, type StreamAddress } from '../links/stream_address.js';
import { Tickets } from '../links/tickets.js';
import { type Frame, FrameType, type PayloadOf, parsePayload } from '../proto/frames.js';
import { frameTypeName, LaneKind, Status } from '../proto/generated.js';
import { decodeLane, encodeLane, type LaneHelloInfo } from '../proto/lanes.js';
import { unpackColumns } from './packed_columns.js';
import { Wafer } from './wafer.js';
import type { WaferConfig } from './wafer_config.js';

/** Longest that a shard may take to open one lane, and a driver to come with its order lane. */
const OPEN_DEADLINE_MS = 10_000;
const MAX_LINKS_PER_SESSION = 4096;

interface CarriedShard {
  request: PayloadOf<'carry'>;
  /** WIO lanes that wait for the driver's order lane. */
  lanes: DescriptorBundle | undefined;
  carrier: NativeCarrierLane | undefined;
}

/** What a server has moved since it started. */
export interface CarrierTotals {
  bytesSent: number;
  bytesReceived: number;
}

/** A wafer in a process of its own: takes drivers over streams, and carries their payload between its memory and shards. */
export class WaferServer implements AsyncDisposable {
  readonly wafer: Wafer;
  #owner: { name: string; epoch: string } | undefined;
  readonly #sessions = new Map<number, WaferSession>();
  #listeners: NativeStreamListener[] = [];
  #nextSession = 1;
  readonly totals: CarrierTotals = { bytesSent: 0, bytesReceived: 0 };

  private constructor(
    readonly config: WaferConfig,
    readonly logger: Logger,
    readonly clock: Clock,
  ) {
    this.wafer = new Wafer(config, clock);
  }

  /** Takes the memory and listens. Throws a KvssError that names the cause. */
  static start(
    config: WaferConfig,
    logger: Logger = pino({ level: 'silent' }),
    clock: Clock = systemClock,
  ): WaferServer {
    const server = new WaferServer(config, logger, clock);
    server.#listeners = listenForStreams(config.listen, 'listen', (hello, stream, token) =>
      server.#accept(hello, stream, token),
    );
    return server;
  }

  /** Ports of the listeners, 0 for Unix sockets, in the order of the configuration. */
  get ports(): readonly number[] {
    return this.#listeners.map((listener) => listener.port);
  }

  async stop(): Promise<void> {
    for (const listener of this.#listeners) listener.close();
    await Promise.all([...this.#sessions.values()].map((session) => session.end('the wafer is shutting down')));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /**
   * @internal The memory is for one driver at a time, which may come back on another connection. Nothing of its connection
   * before touches the memory afterwards. Answers the epoch; throws a KvssError where another driver is here.
   */
  claim(owner: string, sessionId: number): string {
    const others = [...this.#sessions.values()].filter((session) => session.id !== sessionId && session.introduced);
    if (this.#owner?.name !== owner) {
      if (others.length > 0) throw KvssError.ofStatus(Status.limitExceeded, 'the wafer works for another driver');
      this.#owner = { name: owner, epoch: randomBytes(16).toString('hex') };
    }
    for (const session of others) session.end('its driver has come back on another connection');
    return this.#owner.epoch;
  }

  /** @internal */
  sessionEnded(id: number): void {
    this.#sessions.delete(id);
  }

  #accept(hello: Uint8Array, stream: DescriptorBundle, token: string | undefined): void {
    try {
      const lane = decodeLane(hello);
      if (lane.kind === LaneKind.control) {
        native.answerLane(stream, Status.ok);
        const id = this.#nextSession++;
        this.#sessions.set(id, new WaferSession(id, native.ControlChannel.adopt(stream), this, token));
        return;
      }
      const session = this.#sessions.get(lane.sessionId);
      if (lane.kind !== LaneKind.order || !session) {
        throw KvssError.ofStatus(Status.notAllowed, 'a lane names a session that does not exist');
      }
      session.takeOrders(lane, stream);
    } catch (thrown) {
      const error = nativeError(thrown);
      this.logger.warn({ code: error.code }, `lane refused: ${error.message}`);
      native.answerLane(stream, error.status);
      stream.close();
    }
  }
}

/** One driver. */
class WaferSession {
  readonly #peer: ControlPeer;
  readonly #tickets = new Tickets();
  readonly #links = new Map<number, CarriedShard>();
  #nextLink = 1;

  constructor(
    readonly id: number,
    channel: ConstructorParameters<typeof ControlPeer>[0],
    private readonly server: WaferServer,
    token: string | undefined,
  ) {
    const { logger } = server;
    this.#peer = new ControlPeer(channel, {
      opening: FrameType.carrierHello,
      // A drop must not wait until a long prefill is done.
      inOrder: false,
      ...(token === undefined ? {} : { token }),
      answer: (frame) => this.#answer(frame),
      ended: async () => {
        for (const link of [...this.#links.keys()]) this.#drop(link);
        server.sessionEnded(id);
      },
      refusing: (error) => logger.warn({ session: id, code: error.code }, error.message),
      ending: (reason) => logger.info({ session: id, reason }, 'session ended'),
    });
  }

  /** Whether a driver has been let in. */
  get introduced(): boolean {
    return this.#peer.introduced;
  }

  /** Closes everything that is carried, at once. Resolves when the connection has ended. */
  end(reason: string): Promise<void> {
    for (const link of [...this.#links.keys()]) this.#drop(link);
    return this.#peer.end(reason);
  }

  /** Takes the order lane of a shard that is carried, and begins. Throws a KvssError where its ticket does not open it. */
  takeOrders(hello: LaneHelloInfo, stream: DescriptorBundle): void {
    const link = this.#links.get(hello.shard);
    if (this.#peer.ended || !link?.lanes || !this.#tickets.opens(hello.ticket, hello.shard)) {
      throw KvssError.ofStatus(Status.notAllowed, 'the ticket does not open an order lane of this session');
    }
    const { lanes, request } = link;
    link.lanes = undefined;
    const { memory, pieceBytes } = this.server.wafer;
    const region = memory.regions[request.domain] as (typeof memory.regions)[number];
    native.answerLane(stream, Status.ok);
    link.carrier = new native.CarrierLane(
      native.joinBundles(stream, lanes),
      request.streams,
      request.window,
      request.checksums,
      region.memory,
      memory.places,
      region.strideBytes,
      pieceBytes[request.domain] as number,
      () => this.#drop(hello.shard),
    );
  }

  async #answer(frame: Frame): Promise<Answer> {
    const { wafer } = this.server;
    switch (frame.type) {
      case FrameType.carrierHello: {
        const request = parsePayload('carrierHello', frame.payload);
        this.#peer.introduce(request.token);
        const epoch = this.server.claim(request.owner, this.id);
        this.server.logger.info({ session: this.id, client: request.client }, 'session opened');
        const payload: PayloadOf<'carrierWelcome'> = {
          carrier: `kvss-wafer/${VERSION}`,
          epoch,
          sessionId: this.id,
          places: wafer.places,
          pieceBytes: [...wafer.pieceBytes],
        };
        return { type: FrameType.carrierWelcome, payload };
      }
      case FrameType.carry:
        return { type: FrameType.carrying, payload: await this.#carry(parsePayload('carry', frame.payload)) };
      case FrameType.drop:
        this.#drop(parsePayload('drop', frame.payload).link);
        return { type: FrameType.dropped, payload: {} };
      case FrameType.compute: {
        const { phase, columns } = parsePayload('compute', frame.payload);
        await wafer.compute(phase, unpackColumns(columns));
        return { type: FrameType.computed, payload: {} };
      }
      case FrameType.check: {
        const { columns } = parsePayload('check', frame.payload);
        return { type: FrameType.checked, payload: await wafer.check(unpackColumns(columns)) };
      }
      default:
        throw KvssError.ofStatus(Status.badFrame, `a driver does not send ${frameTypeName(frame.type)} to a wafer`);
    }
  }

  /** Opens the WIO lanes of a session on a shard. */
  async #carry(request: PayloadOf<'carry'>): Promise<PayloadOf<'carrying'>> {
    const { wafer, config } = this.server;
    const refuse = (why: string) => KvssError.ofStatus(Status.limitExceeded, why);
    const address = streamAddressOf(request.daemon);
    if (!address) throw refuse(`'${request.daemon}' is no address of streams`);
    if (request.domain >= wafer.pieceBytes.length) {
      throw refuse(`the wafer has ${wafer.pieceBytes.length} domains, there is no domain ${request.domain}`);
    }
    if (request.streams > config.streamsPerDomain) {
      throw refuse(`a domain of the wafer has ${config.streamsPerDomain} streams, ${request.streams} are asked for`);
    }
    if ((request.window & (request.window - 1)) !== 0) throw refuse('the window must be a power of two');
    if (this.#links.size >= MAX_LINKS_PER_SESSION) throw refuse('too many shards are carried in one session');
    const { shard, sessionId, ticket, streams } = request;
    const opening = [LaneKind.wioEvict, LaneKind.wioRefill].flatMap((kind) =>
      Array.from({ length: streams }, (_, stream) =>
        openLane(address, encodeLane({ kind, shard, stream, sessionId, ticket }), OPEN_DEADLINE_MS),
      ),
    );
    const outcomes = await Promise.allSettled(opening);
    const bundles = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed || this.#peer.ended) {
      for (const bundle of bundles) bundle.close();
      throw refuse(`the wafer cannot open its lanes to ${request.daemon}: ${messageOf(failed?.reason)}`);
    }
    const link = this.#nextLink++;
    const carried: CarriedShard = { request, lanes: native.joinBundles(...bundles), carrier: undefined };
    this.#links.set(link, carried);
    // A driver that has lost patience meanwhile does not come, and does not know what to drop.
    this.server.clock.schedule(OPEN_DEADLINE_MS, () => {
      if (carried.lanes) this.#drop(link);
    });
    return { link, ticket: this.#tickets.issue(link, OPEN_DEADLINE_MS) };
  }

  /** Closes what is carried for a shard: nothing of it touches the memory afterwards. */
  #drop(link: number): void {
    const carried = this.#links.get(link);
    if (!carried) return;
    this.#links.delete(link);
    carried.lanes?.close();
    if (!carried.carrier) return;
    carried.carrier.close();
    this.server.totals.bytesSent += carried.carrier.bytesSent();
    this.server.totals.bytesReceived += carried.carrier.bytesReceived();
  }
}

/** The address that a driver has named; undefined where it is none of streams. */
function streamAddressOf(text: string): StreamAddress | undefined {
  try {
    return parseStreamAddress(text);
  } catch {
    return undefined;
  }
}
