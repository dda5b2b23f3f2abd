import type { Clock } from '../common/clock.js';
import { KvssError, localError } from '../common/errors.js';
import type { Connector, DaemonConnection, SlotTable } from '../links/link.js';
import { MAX_SLOTS_PER_GRANT, Status } from '../proto/generated.js';
import { type Reached, StripeGroup, type StripeGroupSettings } from './stripe_group.js';

/** Which shards make a stripe: together they hold whole columns, each its own piece. */
export interface StripeAddress {
  /** Daemons in the order of their shards; all shards of each. */
  readonly daemons: readonly string[];
}

export interface GroupSettings extends StripeGroupSettings {
  /** Slots that are wanted where there is memory for so many columns; rises with them. */
  slotsFor(columns: number): number;
  /** Whether every column takes a slot of the group. */
  readonly keepsAll: boolean;
}

export interface StripeSettings {
  readonly address: StripeAddress;
  /** Every shard holds a part of at least one of them. */
  readonly groups: readonly GroupSettings[];
  /** Most columns to ask memory for; less where the shards have less. */
  readonly capacityColumns: number;
  readonly connectDeadlineMs: number;
}

export interface StripeEvents {
  /** The stripe holds whole columns again; its slots are empty. */
  up(stripe: Stripe): void;
  /** Everything on the stripe is lost, and everything in flight ends as a miss. */
  down(stripe: Stripe, reason: string): void;
  /** A session with a daemon has been opened, and nothing has been stored over it as yet. */
  connected?(address: string, connection: DaemonConnection): void;
}

const FIRST_RETRY_MS = 50;
const LAST_RETRY_MS = 2_000;
/** What a grant may take more than its slots: it is whole pages, which may be huge ones. */
const LARGEST_PAGE_BYTES = 2 ** 21;

/**
 * Shards that together hold whole columns, in one or more groups. When one shard goes, no column on the stripe is
 * whole any more: the stripe goes down with all its groups, and comes back empty once all its shards can be reached
 * again.
 */
export class Stripe {
  readonly groups: readonly StripeGroup[];
  /** Groups of which every column takes a slot. */
  readonly #whole: readonly StripeGroup[];
  #up = false;
  #closed = false;
  #retryMs = FIRST_RETRY_MS;
  #cancelRetry: (() => void) | undefined;

  constructor(
    readonly index: number,
    private readonly settings: StripeSettings,
    private readonly connect: Connector,
    private readonly clock: Clock,
    private readonly events: StripeEvents,
  ) {
    this.groups = settings.groups.map(
      (group) => new StripeGroup(group, clock, { fall: (reason) => this.#fall(reason) }),
    );
    this.#whole = this.groups.filter((_, index) => settings.groups[index]?.keepsAll);
  }

  /** Whether columns can be stored and refilled. */
  get usable(): boolean {
    for (let index = 0; index < this.groups.length; index += 1) {
      if (!(this.groups[index] as StripeGroup).usable) return false;
    }
    return true;
  }

  /** Columns that fit; 0 while the stripe is down. */
  get capacity(): number {
    return Math.min(...this.#whole.map((group) => group.capacity));
  }

  /** Columns that there is room for without anything making room. */
  get freeSlots(): number {
    let free = Number.POSITIVE_INFINITY;
    for (let index = 0; index < this.#whole.length; index += 1) {
      free = Math.min(free, (this.#whole[index] as StripeGroup).freeSlots);
    }
    return free;
  }

  /** Rises whenever the stripe goes down: what was true of a slot before says nothing about it now. */
  get epoch(): number {
    return (this.groups[0] as StripeGroup).epoch;
  }

  /** Bytes of pieces that this process has sent and received for the stripe. */
  get payloadBytes(): number {
    return this.groups.reduce((sum, group) => sum + group.payloadBytes, 0);
  }

  /** Whether everything that was read in place until now was what had been stored. */
  intact(): boolean {
    for (let index = 0; index < this.groups.length; index += 1) {
      if (!(this.groups[index] as StripeGroup).intact()) return false;
    }
    return true;
  }

  /**
   * Connects to all shards with the memory that a driver left behind. Answers what the slots of each group hold, shard by
   * shard; undefined where not all of it is there: what there was is scrubbed then, and open() is the way.
   */
  async resume(secret: Uint8Array): Promise<SlotTable[][] | undefined> {
    const tables: SlotTable[][] = [];
    const reached: Reached[] = [];
    let complete = false;
    try {
      await this.#reachAll(reached);
      // All of them before any memory is asked for: parked memory makes room for whoever asks.
      for (const [index, group] of this.groups.entries()) {
        const slots = await group.resume(reached[index] as Reached, secret);
        if (!slots) return undefined;
        tables.push(slots);
      }
      complete = !this.#closed && !endedMeanwhile(reached);
    } finally {
      if (!complete) {
        for (const group of this.groups) group.stop()();
        await Promise.all(reached.flatMap(({ connections }) => connections.map((connection) => connection.close())));
      }
    }
    if (!complete) return undefined;
    this.#up = true;
    this.events.up(this);
    return tables;
  }

  /** Connects to all shards and gets memory. Rejects with the reason where one of them cannot. */
  async open(): Promise<void> {
    const reached: Reached[] = [];
    try {
      await this.#reachAll(reached);
      const slots = this.#share(reached);
      for (const [index, group] of this.groups.entries()) {
        await group.attach(reached[index] as Reached, slots[index] as number);
      }
      if (this.#closed) throw localError('KVSS_CLOSED', 'the driver was closed');
      if (endedMeanwhile(reached)) {
        throw localError('KVSS_UNREACHABLE', 'a daemon went while the others were being connected');
      }
      this.#up = true;
      this.#retryMs = FIRST_RETRY_MS;
    } catch (thrown) {
      for (const group of this.groups) group.stop()();
      await Promise.all(reached.flatMap(({ connections }) => connections.map((connection) => connection.close())));
      throw thrown;
    }
    this.events.up(this);
  }

  /** Tries again and again until the stripe is up or closed. */
  reopen(): void {
    if (this.#closed || this.#cancelRetry || this.#up) return;
    this.#cancelRetry = this.clock.schedule(this.#retryMs, () => {
      this.#cancelRetry = undefined;
      this.#retryMs = Math.min(this.#retryMs * 2, LAST_RETRY_MS);
      this.open().catch((thrown: unknown) => {
        // Up all the same: it was a listener that threw.
        if (this.#up) throw thrown;
        this.reopen();
      });
    });
  }

  /** Leaves the shards. `park`: what they hold is to be kept for a while; see SwDriver.resume. */
  close(park = false): void {
    this.#closed = true;
    this.#cancelRetry?.();
    this.#fall('the driver was closed', park);
  }

  /** A session of its own with every daemon for each group: grants, queues and counters that are the group's alone. */
  async #reachAll(reached: Reached[]): Promise<void> {
    for (const _ of this.groups) reached.push(await this.#reach());
    for (const [index, connection] of (reached[0] as Reached).connections.entries()) {
      this.events.connected?.(this.settings.address.daemons[index] as string, connection);
    }
  }

  async #reach(): Promise<Reached> {
    const connections: DaemonConnection[] = [];
    try {
      for (const daemon of this.settings.address.daemons) {
        connections.push(await this.connect(daemon, this.settings.connectDeadlineMs));
      }
      const shards = connections.flatMap((connection) =>
        connection.shards.map(({ index, freeBytes, parkedBytes = 0 }) => ({
          connection,
          index,
          // Parked memory makes room for whoever asks.
          freeBytes: freeBytes + parkedBytes,
        })),
      );
      const described = this.settings.groups[0]?.pieceBytes.length ?? 0;
      if (shards.length !== described) {
        throw localError(
          'KVSS_BAD_INPUT',
          `the model has bytes per token for ${described} shards, the daemons have ${shards.length} shards`,
        );
      }
      return { connections, shards };
    } catch (thrown) {
      await Promise.all(connections.map((connection) => connection.close()));
      throw thrown;
    }
  }

  /** Slots for each group: as many columns as every shard has room for, with their parts of all groups. */
  #share(reached: readonly Reached[]): number[] {
    const { groups } = this.settings;
    const { shards } = reached[0] as Reached;
    const slack = groups.length > 1 ? LARGEST_PAGE_BYTES : 0;
    const fits = (columns: number) =>
      shards.every(({ connection, freeBytes }, shard) => {
        let bytes = 0;
        for (const group of groups) {
          const pieceBytes = group.pieceBytes[shard] as number;
          if (pieceBytes === 0) continue;
          bytes += group.slotsFor(columns) * connection.slotBytes(pieceBytes) + slack;
        }
        return bytes <= freeBytes;
      });
    // The most that fits, between what fits and what does not.
    let least = 0;
    let most = Math.min(this.settings.capacityColumns, MAX_SLOTS_PER_GRANT);
    while (least < most) {
      const middle = Math.ceil((least + most) / 2);
      if (fits(middle)) least = middle;
      else most = middle - 1;
    }
    if (least < 1) throw KvssError.ofStatus(Status.noMemory, 'the shards have no memory left for a single column');
    return groups.map((group) => group.slotsFor(least));
  }

  #fall(reason: string, park = false): void {
    if (!this.#up) return;
    this.#up = false;
    const settle = this.groups.map((group) => group.stop(park));
    try {
      // The map forgets first: what is told about the batches must find it so.
      this.events.down(this, reason);
    } finally {
      // Also where a listener throws: nobody may wait for ever.
      for (const each of settle) each();
      this.reopen();
    }
  }
}

const endedMeanwhile = (reached: readonly Reached[]): boolean =>
  reached.some(({ connections }) => connections.some((connection) => connection.ended));
