import type { Clock } from '../common/clock.js';
import { localError } from '../common/errors.js';
import type {
  CloseOptions,
  CompletionHandler,
  Connector,
  DaemonConnection,
  LinkRequest,
  OperationBatch,
  ResumedLink,
  ShardLink,
} from '../links/link.js';
import type { DaemonPolicies } from '../links/policy_feed.js';
import type { DriverReport, ShardState } from '../proto/frames.js';
import { Opcode, Status } from '../proto/generated.js';
import type { Direction, Path, Route, Topology } from './topology.js';

/** One way of one WIO stream. */
interface Lane {
  readonly direction: Direction;
  readonly windowBytes: number;
  /** Bytes of pieces that were taken and whose completion has not been heard. */
  underWay: number;
}

/** An operation that the inner link has and has not finished. */
interface Sent {
  readonly opcode: Opcode;
  /** Where its piece travels; undefined where nothing does. */
  readonly lane: Lane | undefined;
  /** Evicts: when the last byte is at the shard. */
  readonly arrival: number;
}

/** A completion that is still on its way. */
interface Held {
  readonly at: number;
  readonly batchId: number;
  readonly item: number;
  readonly status: Status;
  readonly lane: Lane | undefined;
}

/**
 * A link whose bytes take the time of emulated paths, one for each WIO stream. It hands every operation on at once and
 * holds its completion back: an evict's until its piece, sent when it was submitted, has passed; a refill's until its
 * piece, sent when the shard had it, has passed; anything without payload for the latency alone. So whatever the
 * other link promises holds here too, only later.
 *
 * Each stream takes as many bytes as its window has room for; room comes back with completions, as in a ring. Evicts
 * and refills do not share windows, and do not wait for each other.
 *
 * Times are as fine as the clock's timers, about a millisecond with the system's. That delays what is heard, not what
 * a path carries: arrivals follow from the path alone.
 */
export class ShapedLink implements ShardLink {
  onReady: () => void = () => {};
  readonly #evicts: LaneRing;
  readonly #refills: LaneRing;
  /** By batch and item. */
  readonly #sent = new Map<number, Map<number, Sent>>();
  /** By time of arrival. */
  readonly #held: Held[] = [];
  #armed = false;
  #cancelTimer: (() => void) | undefined;

  /** `paths` has the path of each stream, one at least. */
  constructor(
    private readonly inner: ShardLink,
    private readonly paths: readonly Path[],
    private readonly clock: Clock,
  ) {
    this.#evicts = new LaneRing(
      paths.map(({ toStore, windowBytes }) => ({ direction: toStore, windowBytes, underWay: 0 })),
    );
    this.#refills = new LaneRing(
      paths.map(({ toWafer, windowBytes }) => ({ direction: toWafer, windowBytes, underWay: 0 })),
    );
    inner.onReady = () => this.#wakeIfDue();
  }

  get slots(): number {
    return this.inner.slots;
  }

  get pieceBytes(): number {
    return this.inner.pieceBytes;
  }

  get inPlace(): boolean {
    return this.inner.inPlace;
  }

  get places(): number {
    return this.inner.places;
  }

  piece(place: number): Uint8Array {
    return this.inner.piece(place);
  }

  payloadBytes(): number {
    return this.inner.payloadBytes();
  }

  intact(): boolean {
    return this.inner.intact();
  }

  submit(batch: OperationBatch, from: number): number {
    const { opcode } = batch;
    if (opcode === Opcode.delete) {
      const count = this.inner.submit(batch, from);
      for (let item = from; item < from + count; item += 1)
        this.#note(batch.id, item, { opcode, lane: undefined, arrival: 0 });
      return count;
    }
    const ring = opcode === Opcode.evict ? this.#evicts : this.#refills;
    const lanes = ring.claim(batch.length - from, this.pieceBytes);
    if (lanes.length === 0) return 0;
    const end = from + lanes.length;
    const count = this.inner.submit(end === batch.length ? batch : { ...batch, length: end }, from);
    ring.giveBack(lanes.splice(count), this.pieceBytes);
    for (const [index, lane] of lanes.entries()) {
      const arrival = opcode === Opcode.evict ? lane.direction.transfer(this.pieceBytes) : 0;
      this.#note(batch.id, from + index, { opcode, lane, arrival });
    }
    return count;
  }

  poll(handler: CompletionHandler): number {
    this.#takeFinished();
    const now = this.clock.now();
    let count = 0;
    for (let first = this.#held[0]; first && first.at <= now; first = this.#held[0]) {
      this.#held.shift();
      if (first.lane) first.lane.underWay -= this.pieceBytes;
      count += 1;
      handler(first.batchId, first.item, first.status);
    }
    return count;
  }

  arm(): boolean {
    this.#armed = this.#watch();
    return this.#armed;
  }

  /** The connection is over: nothing is heard any more, and no timer stays behind. */
  close(): void {
    this.#armed = false;
    this.#cancelTimer?.();
    this.#held.length = 0;
    this.#sent.clear();
  }

  /** Has somebody wake this link when a completion may have arrived. Answers false where one has. */
  #watch(): boolean {
    // What has finished on the other side may still be on its way, and is then no reason not to wait.
    if (!this.inner.arm()) {
      this.#takeFinished();
      if (!this.inner.arm()) return false;
    }
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    const first = this.#held[0];
    if (!first) return true;
    const delayMs = first.at - this.clock.now();
    if (delayMs <= 0) return false;
    this.#cancelTimer = this.clock.schedule(delayMs, () => this.#wakeIfDue());
    return true;
  }

  #wakeIfDue(): void {
    // A timer may come early by a fraction of a millisecond.
    if (!this.#armed || this.#watch()) return;
    this.#armed = false;
    this.onReady();
  }

  #note(batchId: number, item: number, sent: Sent): void {
    const items = this.#sent.get(batchId);
    if (items) items.set(item, sent);
    else this.#sent.set(batchId, new Map([[item, sent]]));
  }

  /** Takes over what the inner link has finished. */
  #takeFinished(): void {
    this.inner.poll((batchId, item, status) => {
      const items = this.#sent.get(batchId);
      const sent = items?.get(item);
      this.#hold({ at: this.#arrivalOf(sent, status), batchId, item, status, lane: sent?.lane });
      items?.delete(item);
      if (items?.size === 0) this.#sent.delete(batchId);
    });
  }

  #arrivalOf(sent: Sent | undefined, status: Status): number {
    if (sent?.opcode === Opcode.evict) return sent.arrival;
    if (sent?.lane && status === Status.ok) return sent.lane.direction.transfer(this.pieceBytes);
    return (this.paths[0] as Path).answer();
  }

  #hold(held: Held): void {
    let at = this.#held.length;
    while (at > 0 && (this.#held[at - 1] as Held).at > held.at) at -= 1;
    this.#held.splice(at, 0, held);
  }
}

/** The lanes of one direction, which take turns. */
class LaneRing {
  #next = 0;

  constructor(private readonly lanes: readonly Lane[]) {}

  /** Room for up to `count` pieces, in turn; ends where the lane whose turn it is has none. */
  claim(count: number, pieceBytes: number): Lane[] {
    const claimed: Lane[] = [];
    while (claimed.length < count) {
      const lane = this.lanes[this.#next] as Lane;
      // A piece that is larger than the window travels alone.
      if (lane.underWay > 0 && lane.underWay + pieceBytes > lane.windowBytes) break;
      lane.underWay += pieceBytes;
      claimed.push(lane);
      this.#next = (this.#next + 1) % this.lanes.length;
    }
    return claimed;
  }

  /** The last ones that were claimed are not needed. */
  giveBack(unused: readonly Lane[], pieceBytes: number): void {
    for (const lane of unused) lane.underWay -= pieceBytes;
    this.#next = (this.#next + this.lanes.length - (unused.length % this.lanes.length)) % this.lanes.length;
  }
}

/** A connection of one box whose links run over the paths of a topology. */
class ShapedConnection implements DaemonConnection {
  onDraining: () => void = () => {};
  onEnd: (reason: string) => void = () => {};
  readonly #links: ShapedLink[] = [];

  constructor(
    private readonly inner: DaemonConnection,
    private readonly topology: Topology,
    private readonly box: string,
    private readonly daemon: string,
    private readonly clock: Clock,
  ) {
    inner.onDraining = () => this.onDraining();
    inner.onEnd = (reason) => {
      this.#closeLinks();
      this.onEnd(reason);
    };
  }

  get shards(): readonly ShardState[] {
    return this.inner.shards;
  }

  get ended(): boolean {
    return this.inner.ended;
  }

  get policies(): DaemonPolicies {
    return this.inner.policies;
  }

  report(report: DriverReport): void {
    this.inner.report(report);
  }

  slotBytes(pieceBytes: number): number {
    return this.inner.slotBytes(pieceBytes);
  }

  async openLink(request: LinkRequest): Promise<ShardLink> {
    const route = this.#routeTo(request.shard);
    return this.#shape(route, await this.inner.openLink(request));
  }

  async resumeLink(request: LinkRequest & { secret: Uint8Array }): Promise<ResumedLink | undefined> {
    const route = this.#routeTo(request.shard);
    const resumed = await this.inner.resumeLink?.(request);
    return resumed && { ...resumed, link: this.#shape(route, resumed.link) };
  }

  close(options?: CloseOptions): Promise<void> {
    this.#closeLinks();
    return this.inner.close(options);
  }

  #routeTo(index: number): Route {
    const shard = this.inner.shards.find((each) => each.index === index);
    if (!shard) throw localError('KVSS_BAD_INPUT', `${this.daemon} has no shard ${index}`);
    return this.topology.route(this.box, this.daemon, shard);
  }

  #shape(route: Route, inner: ShardLink): ShardLink {
    const link = new ShapedLink(inner, route.paths, this.clock);
    this.topology.opened(route);
    this.#links.push(link);
    return link;
  }

  #closeLinks(): void {
    for (const link of this.#links.splice(0)) link.close();
  }
}

/**
 * Reaches daemons as `connector` does, over the paths that a topology has between them and one box. Give it to SwDriver
 * as `connector`. openLink rejects with KVSS_SPINE_REFUSED, or with KVSS_BAD_CONFIG for what the topology does not know.
 */
export function overTopology(connector: Connector, topology: Topology, box: string): Connector {
  return async (address, deadlineMs) =>
    new ShapedConnection(await connector(address, deadlineMs), topology, box, address, topology.clock);
}
