import { type DescriptorBundle, native, nativeError } from '../binding/native.js';
import { KvssError, localError } from '../common/errors.js';
import type { DriverReport, PayloadOf } from '../proto/frames.js';
import { LaneKind, Status } from '../proto/generated.js';
import { controlHello, encodeLane } from '../proto/lanes.js';
import { slotBytesOf } from '../proto/slots.js';
import type { CarriedLink, Carrier } from './carrier.js';
import { ControlClient } from './control_client.js';
import type { CloseOptions, DaemonConnection, LinkRequest, PlaceMemory, ResumedLink } from './link.js';
import { openLane } from './open_lane.js';
import { parkOf, readSlotTable, resumeOf, sayGoodbye, unlessNothingParked } from './parking.js';
import { PolicyFeed } from './policy_feed.js';
import { ReportSender } from './report_sender.js';
import { formatStreamAddress, type StreamAddress } from './stream_address.js';
import { StreamLink } from './stream_link.js';

/** Longest that a carrier has to open its lanes. */
const TICKET_LIFETIME_MS = 60_000;

export interface StreamOptions {
  /** WIO lanes of each direction for each shard. */
  wioStreams: number;
  /** Memory that pieces on their way take, for each shard, where the runtime has none of its own. */
  placeBytes: number;
  /** Whether payload carries a CRC-32C, both ways. */
  checksums: boolean;
  /** Secret of the daemon's listener. */
  token?: string;
  /** Another process that moves the payload. */
  carrier?: Carrier;
}

/** A daemon that is reached over TCP, or over a Unix socket without shared memory. */
export class StreamConnection implements DaemonConnection {
  onDraining: () => void = () => {};
  onEnd: (reason: string) => void = () => {};
  readonly policies: PolicyFeed;
  readonly #reports: ReportSender;
  readonly #links: StreamLink[] = [];
  readonly #carried: CarriedLink[] = [];
  readonly #dropped: Promise<void>[] = [];
  #nextGrant = 1;
  /** Whether the daemon keeps memory of this connection where it is lost. */
  #parks = false;
  #ended = false;

  private constructor(
    private readonly address: StreamAddress,
    private readonly client: ControlClient,
    private readonly welcome: PayloadOf<'welcome'>,
    private readonly deadlineMs: number,
    private readonly options: StreamOptions,
  ) {
    this.policies = new PolicyFeed(client, welcome);
    this.#reports = new ReportSender(client, welcome);
    client.onDraining = () => this.onDraining();
    client.onEnd = (reason) => this.#end(reason);
  }

  static async connect(address: StreamAddress, deadlineMs: number, options: StreamOptions): Promise<StreamConnection> {
    const stream = await openLane(address, controlHello(), deadlineMs);
    const { client, welcome } = await ControlClient.greet(
      native.ControlChannel.adopt(stream),
      deadlineMs,
      'hello',
      'welcome',
      { policies: true, ...(options.token === undefined ? {} : { token: options.token }) },
    );
    return new StreamConnection(address, client, welcome, deadlineMs, options);
  }

  get shards(): PayloadOf<'welcome'>['shards'] {
    return this.welcome.shards;
  }

  get ended(): boolean {
    return this.#ended || this.client.ended;
  }

  report(report: DriverReport): void {
    this.#reports.send(report);
  }

  slotBytes(pieceBytes: number): number {
    return slotBytesOf(pieceBytes);
  }

  async openLink(request: LinkRequest): Promise<StreamLink> {
    const { shard, slots, pieceBytes } = request;
    if (request.park) this.#refuseCarrier('park');
    const grantId = this.#nextGrant++;
    const { checksums } = this.options;
    const park = parkOf(request);
    const attached = await this.client.request(
      'attachStream',
      { shard, window: request.ringEntries, checksums },
      'streamAttached',
    );
    await this.client.request('grant', { shard, grantId, slots, pieceBytes, ...park }, 'granted');
    this.#parks ||= request.park !== undefined;
    return this.#openLanes(request, grantId, slots, attached.payload);
  }

  async resumeLink(request: LinkRequest & { secret: Uint8Array }): Promise<ResumedLink | undefined> {
    const { shard } = request;
    this.#refuseCarrier('resume');
    const grantId = this.#nextGrant++;
    const resume = resumeOf(grantId, request);
    const attached = await unlessNothingParked(
      this.client.request(
        'attachStream',
        { shard, window: request.ringEntries, checksums: this.options.checksums, resume },
        'streamAttached',
      ),
    );
    if (!attached) return undefined;
    this.#parks ||= request.park !== undefined;
    const { resumed } = attached.payload;
    if (!resumed) throw KvssError.ofStatus(Status.badFrame, 'the daemon knows of no parked memory');
    const table = await readSlotTable(this.client, shard, grantId, resumed.slots);
    return { link: await this.#openLanes(request, grantId, resumed.slots, attached.payload), slots: table };
  }

  #refuseCarrier(what: string): void {
    if (!this.options.carrier) return;
    throw localError('KVSS_BAD_INPUT', `${what}: what a carrier moves cannot be resumed`);
  }

  async #openLanes(
    request: LinkRequest,
    grantId: number,
    slots: number,
    { ticket, window }: PayloadOf<'streamAttached'>,
  ): Promise<StreamLink> {
    const { shard, pieceBytes } = request;
    const { checksums, wioStreams, carrier } = this.options;
    const lanes = carrier ? 0 : wioStreams;
    const numbers = Array.from({ length: lanes }, (_, stream) => stream);
    const lane = (kind: LaneKind, stream: number) =>
      openLane(
        this.address,
        encodeLane({ kind, shard, stream, sessionId: this.welcome.sessionId, ticket }),
        this.deadlineMs,
      );
    const streams = await allOrNone([
      lane(LaneKind.hio, 0),
      ...(carrier ? [this.#carry(carrier, request, window)] : []),
      ...numbers.map((stream) => lane(LaneKind.wioEvict, stream)),
      ...numbers.map((stream) => lane(LaneKind.wioRefill, stream)),
    ]);
    if (this.ended) {
      streams.close();
      throw localError('KVSS_UNREACHABLE', 'the daemon has gone');
    }
    let link: StreamLink;
    try {
      link = new StreamLink(
        (onWake) => new native.StreamLane(streams, lanes, lanes, window, onWake, checksums),
        window,
        grantId,
        slots,
        pieceBytes,
        carrier ?? request.memory ?? this.#ownMemory(slots, pieceBytes),
      );
    } catch (thrown) {
      throw nativeError(thrown);
    }
    link.onBroken = () => this.#end('a lane has ended');
    this.#links.push(link);
    return link;
  }

  async close({ park = false }: CloseOptions = {}): Promise<void> {
    this.#ended = true;
    // While the lanes are there: their end would look like that of a driver that has died.
    if (this.#parks && !park) await sayGoodbye(this.client);
    return this.#drop();
  }

  #drop(): Promise<void> {
    this.#ended = true;
    for (const link of this.#links.splice(0)) link.close();
    this.client.close();
    for (const carried of this.#carried.splice(0)) this.#dropped.push(carried.drop());
    return Promise.all(this.#dropped).then(() => {});
  }

  /** Has the carrier open WIO lanes of this session, and answers the lane for its orders. */
  async #carry(carrier: Carrier, request: LinkRequest, window: number): Promise<DescriptorBundle> {
    const { shard, member } = request;
    const lifetimeMs = Math.min(TICKET_LIFETIME_MS, Math.ceil(this.deadlineMs));
    const { payload } = await this.client.request('ticket', { shard, lifetimeMs }, 'ticketIssued');
    const carried = await carrier.carry({
      daemon: formatStreamAddress(this.address),
      shard,
      sessionId: this.welcome.sessionId,
      ticket: payload.ticket,
      domain: member,
      window,
      streams: this.options.wioStreams,
      checksums: this.options.checksums,
    });
    this.#carried.push(carried);
    // Closed meanwhile: nobody else would drop it.
    if (this.ended) await this.#drop();
    return carried.order;
  }

  #ownMemory(slots: number, pieceBytes: number): PlaceMemory {
    // Places lie as slots do.
    const strideBytes = slotBytesOf(pieceBytes);
    const places = Math.min(slots, Math.max(2, Math.floor(this.options.placeBytes / strideBytes)));
    return { memory: new ArrayBuffer(places * strideBytes), strideBytes, places };
  }

  #end(reason: string): void {
    if (this.#ended) return;
    this.#drop();
    this.onEnd(reason);
  }
}

/** The descriptors of all bundles in one, or the first error, and then none of them stays open. */
async function allOrNone(opening: Promise<DescriptorBundle>[]): Promise<DescriptorBundle> {
  const outcomes = await Promise.allSettled(opening);
  const bundles = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
  const failed = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failed) {
    for (const bundle of bundles) bundle.close();
    throw nativeError(failed.reason);
  }
  return native.joinBundles(...bundles);
}
