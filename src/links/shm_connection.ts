import { type DescriptorBundle, native, nativeError } from '../binding/native.js';
import { KvssError, localError } from '../common/errors.js';
import type { DriverReport, PayloadOf } from '../proto/frames.js';
import { Status } from '../proto/generated.js';
import { slotBytesOf } from '../proto/slots.js';
import { ControlClient } from './control_client.js';
import type { CloseOptions, Connector, DaemonConnection, LinkRequest, ResumedLink } from './link.js';
import { parkOf, readSlotTable, resumeOf, sayGoodbye, unlessNothingParked } from './parking.js';
import { PolicyFeed } from './policy_feed.js';
import { ReportSender } from './report_sender.js';
import { ShmLink } from './shm_link.js';

/** Descriptors of an `attached` frame that are of rings; what is behind them is resumed memory. */
const RING_DESCRIPTORS = 4;

/** A daemon in the same host, reached through its Unix socket. */
class ShmConnection implements DaemonConnection {
  onDraining: () => void = () => {};
  onEnd: (reason: string) => void = () => {};
  readonly policies: PolicyFeed;
  readonly #reports: ReportSender;
  readonly #links: ShmLink[] = [];
  #nextGrant = 1;
  /** Whether the daemon keeps memory of this connection where it is lost. */
  #parks = false;
  #closed = false;

  constructor(
    private readonly client: ControlClient,
    private readonly welcome: PayloadOf<'welcome'>,
  ) {
    this.policies = new PolicyFeed(client, welcome);
    this.#reports = new ReportSender(client, welcome);
    client.onDraining = () => this.onDraining();
    client.onEnd = (reason) => {
      this.#closeLinks();
      if (!this.#closed) this.onEnd(reason);
    };
  }

  get shards(): PayloadOf<'welcome'>['shards'] {
    return this.welcome.shards;
  }

  get ended(): boolean {
    return this.#closed || this.client.ended;
  }

  report(report: DriverReport): void {
    this.#reports.send(report);
  }

  slotBytes(pieceBytes: number): number {
    return slotBytesOf(pieceBytes);
  }

  async openLink(request: LinkRequest): Promise<ShmLink> {
    const { shard, slots, pieceBytes } = request;
    const grantId = this.#nextGrant++;
    const park = parkOf(request);
    const attached = await this.client.request('attach', { shard, ringEntries: request.ringEntries }, 'attached');
    try {
      const granted = await this.client.request('grant', { shard, grantId, slots, pieceBytes, ...park }, 'granted');
      this.#parks ||= request.park !== undefined;
      const { slotBytes } = granted.payload;
      return await this.#open(attached, granted.descriptors, { grantId, slotBytes }, slots, pieceBytes);
    } catch (thrown) {
      attached.descriptors?.close();
      throw nativeError(thrown);
    }
  }

  async resumeLink(request: LinkRequest & { secret: Uint8Array }): Promise<ResumedLink | undefined> {
    const { shard, ringEntries, pieceBytes } = request;
    const grantId = this.#nextGrant++;
    const resume = resumeOf(grantId, request);
    const attached = await unlessNothingParked(
      this.client.request('attach', { shard, ringEntries, resume }, 'attached'),
    );
    if (!attached) return undefined;
    this.#parks ||= request.park !== undefined;
    try {
      const { resumed } = attached.payload;
      if (!resumed) throw KvssError.ofStatus(Status.badFrame, 'the daemon knows of no parked memory');
      const { slots, slotBytes } = resumed;
      // Before the rings are there: nothing of this session can be in flight.
      const table = await readSlotTable(this.client, shard, grantId, slots);
      const memory = attached.descriptors && native.splitBundle(attached.descriptors, RING_DESCRIPTORS);
      const link = await this.#open(attached, memory, { grantId, slotBytes }, slots, pieceBytes);
      return { link, slots: table };
    } catch (thrown) {
      attached.descriptors?.close();
      throw nativeError(thrown);
    }
  }

  /** Takes the descriptors of the memory; those of the rings only where it succeeds. */
  async #open(
    attached: { payload: PayloadOf<'attached'>; descriptors: DescriptorBundle | null },
    memory: DescriptorBundle | null,
    { grantId, slotBytes }: { grantId: number; slotBytes: number },
    slots: number,
    pieceBytes: number,
  ): Promise<ShmLink> {
    if (!attached.descriptors || !memory || slotBytes < pieceBytes) {
      memory?.close();
      throw KvssError.ofStatus(Status.badFrame, 'the daemon granted no usable memory');
    }
    const link = await ShmLink.open(
      { descriptors: attached.descriptors, ringEntries: attached.payload.ringEntries },
      { descriptors: memory, grantId, slotBytes },
      slots,
      pieceBytes,
    );
    if (this.ended) {
      link.close();
      throw localError('KVSS_UNREACHABLE', 'the daemon has gone');
    }
    this.#links.push(link);
    return link;
  }

  async close({ park = false }: CloseOptions = {}): Promise<void> {
    this.#closed = true;
    this.#closeLinks();
    if (this.#parks && !park) await sayGoodbye(this.client);
    this.client.close();
  }

  #closeLinks(): void {
    for (const link of this.#links.splice(0)) link.close();
  }
}

/** Connects over shared memory; the address is the path of the daemon's socket. */
export const connectShm: Connector = async (address, deadlineMs) => {
  const { client, welcome } = await ControlClient.connect(address, deadlineMs, { policies: true });
  return new ShmConnection(client, welcome);
};
