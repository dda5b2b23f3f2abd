import { nativeError } from '../binding/native.js';
import { KvssError, localError } from '../common/errors.js';
import type { DriverReport, PayloadOf } from '../proto/frames.js';
import { Status } from '../proto/generated.js';
import { slotBytesOf } from '../proto/slots.js';
import { ControlClient } from './control_client.js';
import type { Connector, DaemonConnection, LinkRequest } from './link.js';
import { PolicyFeed } from './policy_feed.js';
import { ReportSender } from './report_sender.js';
import { ShmLink } from './shm_link.js';

/** A daemon in the same host, reached through its Unix socket. */
class ShmConnection implements DaemonConnection {
  onDraining: () => void = () => {};
  onEnd: (reason: string) => void = () => {};
  readonly policies: PolicyFeed;
  readonly #reports: ReportSender;
  readonly #links: ShmLink[] = [];
  #nextGrant = 1;

  constructor(
    private readonly client: ControlClient,
    private readonly welcome: PayloadOf<'welcome'>,
  ) {
    this.policies = new PolicyFeed(client, welcome);
    this.#reports = new ReportSender(client, welcome);
    client.onDraining = () => this.onDraining();
    client.onEnd = (reason) => {
      this.#closeLinks();
      this.onEnd(reason);
    };
  }

  get shards(): PayloadOf<'welcome'>['shards'] {
    return this.welcome.shards;
  }

  get ended(): boolean {
    return this.client.ended;
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
    const attached = await this.client.request('attach', { shard, ringEntries: request.ringEntries }, 'attached');
    try {
      const granted = await this.client.request('grant', { shard, grantId, slots, pieceBytes }, 'granted');
      if (!attached.descriptors || !granted.descriptors || granted.payload.slotBytes < pieceBytes) {
        granted.descriptors?.close();
        throw KvssError.ofStatus(Status.badFrame, 'the daemon granted no usable memory');
      }
      const link = await ShmLink.open(
        { descriptors: attached.descriptors, ringEntries: attached.payload.ringEntries },
        { descriptors: granted.descriptors, grantId, slotBytes: granted.payload.slotBytes },
        slots,
        pieceBytes,
      );
      if (this.client.ended) {
        link.close();
        throw localError('KVSS_UNREACHABLE', 'the daemon has gone');
      }
      this.#links.push(link);
      return link;
    } catch (thrown) {
      attached.descriptors?.close();
      throw nativeError(thrown);
    }
  }

  async close(): Promise<void> {
    this.#closeLinks();
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
