import { type DescriptorBundle, native, nativeError } from '../binding/native.js';
import { localError, messageOf } from '../common/errors.js';
import type { PayloadOf } from '../proto/frames.js';
import { LaneKind, Status } from '../proto/generated.js';
import { controlHello, encodeLane } from '../proto/lanes.js';
import { slotBytesOf } from '../proto/slots.js';
import { ControlClient } from './control_client.js';
import type { DaemonConnection, LinkRequest } from './link.js';
import type { StreamAddress } from './stream_address.js';
import { StreamLink } from './stream_link.js';

export interface StreamOptions {
  /** WIO lanes of each direction for each shard. */
  wioStreams: number;
  /** Memory that pieces on their way take, for each shard. */
  placeBytes: number;
  /** Whether payload carries a CRC-32C, both ways. */
  checksums: boolean;
  /** Secret of the daemon's listener. */
  token?: string;
}

/** A daemon that is reached over TCP, or over a Unix socket without shared memory. */
export class StreamConnection implements DaemonConnection {
  onDraining: () => void = () => {};
  onEnd: (reason: string) => void = () => {};
  readonly #links: StreamLink[] = [];
  #nextGrant = 1;
  #ended = false;

  private constructor(
    private readonly address: StreamAddress,
    private readonly client: ControlClient,
    private readonly welcome: PayloadOf<'welcome'>,
    private readonly deadlineMs: number,
    private readonly options: StreamOptions,
  ) {
    client.onDraining = () => this.onDraining();
    client.onEnd = (reason) => this.#end(reason);
  }

  static async connect(address: StreamAddress, deadlineMs: number, options: StreamOptions): Promise<StreamConnection> {
    const stream = await openLane(address, controlHello(), deadlineMs);
    const { client, welcome } = await ControlClient.greet(
      native.ControlChannel.adopt(stream),
      deadlineMs,
      options.token,
    );
    return new StreamConnection(address, client, welcome, deadlineMs, options);
  }

  get shards(): PayloadOf<'welcome'>['shards'] {
    return this.welcome.shards;
  }

  get ended(): boolean {
    return this.#ended || this.client.ended;
  }

  slotBytes(pieceBytes: number): number {
    return slotBytesOf(pieceBytes);
  }

  async openLink(request: LinkRequest): Promise<StreamLink> {
    const { shard, slots, pieceBytes } = request;
    const grantId = this.#nextGrant++;
    const { checksums } = this.options;
    const attached = await this.client.request(
      'attachStream',
      { shard, window: request.ringEntries, checksums },
      'streamAttached',
    );
    await this.client.request('grant', { shard, grantId, slots, pieceBytes }, 'granted');
    const { ticket, window } = attached.payload;
    const lane = (kind: LaneKind, stream: number) =>
      openLane(
        this.address,
        encodeLane({ kind, shard, stream, sessionId: this.welcome.sessionId, ticket }),
        this.deadlineMs,
      );
    const { wioStreams } = this.options;
    const numbers = Array.from({ length: wioStreams }, (_, stream) => stream);
    const opened = await Promise.allSettled([
      lane(LaneKind.hio, 0),
      ...numbers.map((stream) => lane(LaneKind.wioEvict, stream)),
      ...numbers.map((stream) => lane(LaneKind.wioRefill, stream)),
    ]);
    const streams = opened.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
    const failed = opened.find((outcome) => outcome.status === 'rejected');
    if (failed || this.ended) {
      for (const stream of streams) stream.close();
      throw failed ? nativeError(failed.reason) : localError('KVSS_UNREACHABLE', 'the daemon has gone');
    }
    const places = Math.min(slots, Math.max(2, Math.floor(this.options.placeBytes / slotBytesOf(pieceBytes))));
    const link = new StreamLink(
      { streams: native.joinBundles(...streams), evictLanes: wioStreams, refillLanes: wioStreams, window, checksums },
      grantId,
      slots,
      pieceBytes,
      places,
    );
    link.onBroken = () => this.#end('a lane has ended');
    this.#links.push(link);
    return link;
  }

  close(): void {
    this.#ended = true;
    for (const link of this.#links.splice(0)) link.close();
    this.client.close();
  }

  #end(reason: string): void {
    if (this.#ended) return;
    this.close();
    this.onEnd(reason);
  }
}

async function openLane(address: StreamAddress, hello: Uint8Array, deadlineMs: number): Promise<DescriptorBundle> {
  try {
    return await native.connectLane(address.hostOrPath, address.port, hello, deadlineMs);
  } catch (thrown) {
    const error = nativeError(thrown);
    // A daemon that said no has its own reason; anything else is that there is no daemon to be reached.
    if (error.status === Status.badVersion || error.status === Status.draining) throw error;
    throw localError('KVSS_UNREACHABLE', messageOf(thrown), thrown);
  }
}
