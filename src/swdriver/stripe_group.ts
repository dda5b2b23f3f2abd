import type { Clock } from '../common/clock.js';
import { localError } from '../common/errors.js';
import { NumberPool } from '../common/number_pool.js';
import type {
  CompletionHandler,
  DaemonConnection,
  LinkRequest,
  OperationBatch,
  Park,
  PlaceMemory,
  ShardLink,
  SlotTable,
} from '../links/link.js';
import { MAX_OPERATION_TIMEOUT_US, Opcode, Status } from '../proto/generated.js';

export interface StripeGroupSettings {
  /** Name of the group in its model. */
  readonly name: string;
  /** Bytes of the piece of each shard; 0 where a shard holds none of the group's layers. */
  readonly pieceBytes: readonly number[];
  readonly ringEntries: number;
  /** Who says where the bytes of a column are outside the store: the stripe, or the runtime with memory of its own. */
  readonly placedBy: 'stripe' | 'runtime';
  /** The runtime's memory for each member, where it is in this process. */
  readonly regions?: readonly PlaceMemory[];
  /** Silence that ends a stream which owes an answer; it begins when a call has run out of its time. */
  readonly silenceMs: number;
  /** Longest that a call looks for its completions before it lets the event loop wait for them; see SwDriverOptions. */
  readonly spinUs: number;
  /** Has the daemons keep the memory where the driver dies, under a name that is the group's alone. */
  readonly park?: Park & { readonly label: string };
}

/** How a batch ended: the status of each item, the worst of all shards. */
export type BatchOutcome = Uint16Array;

/** What is wanted of all shards of a stripe, one item a column. */
export interface BatchRequest {
  readonly opcode: Opcode;
  readonly flags: number;
  readonly slots: Uint32Array;
  readonly places: Uint32Array;
  readonly generations: Float64Array;
  readonly tenantTag: bigint;
  /** Longest to wait for the shards. */
  readonly deadlineMs: number;
  /** The caller has nothing else to do until it ends. */
  readonly awaited?: boolean;
  /** To be told that nothing touches the places any more, which may be later than the end. */
  readonly onQuiet?: (() => void) | undefined;
}

/** A request under way. Written out, field by field: there is one for every call. */
class RunningBatch implements OperationBatch {
  readonly length: number;
  readonly opcode: Opcode;
  readonly flags: number;
  readonly slots: Uint32Array;
  readonly places: Uint32Array;
  readonly generations: Float64Array;
  readonly tenantTag: bigint;
  readonly timeoutUs: number;
  readonly onQuiet: (() => void) | undefined;
  /** Shards that have not finished an item yet, by item. */
  readonly unfinished: Uint16Array;
  readonly outcome: BatchOutcome;
  /** Items that have not finished, by shard. */
  readonly openAt: Uint32Array;
  /** 1 where a shard has finished an item; shard after shard. */
  readonly finished: Uint8Array;
  /** Operations of all items on all shards that have not finished. */
  open: number;
  settle: ((outcome: BatchOutcome) => void) | undefined = undefined;
  cancelDeadline: (() => void) | undefined = undefined;

  constructor(
    readonly id: number,
    request: BatchRequest,
    readonly after: number,
    readonly issuedAt: number,
    shards: number,
  ) {
    const { length } = request.slots;
    this.length = length;
    this.opcode = request.opcode;
    this.flags = request.flags;
    this.slots = request.slots;
    this.places = request.places;
    this.generations = request.generations;
    this.tenantTag = request.tenantTag;
    this.timeoutUs = Math.min(Math.max(1, Math.ceil(request.deadlineMs * 1000)), MAX_OPERATION_TIMEOUT_US);
    this.onQuiet = request.onQuiet;
    this.unfinished = new Uint16Array(length).fill(shards);
    this.outcome = new Uint16Array(length);
    this.openAt = new Uint32Array(shards).fill(length);
    this.finished = new Uint8Array(shards * length);
    this.open = length * shards;
  }
}

/** Items of a batch that wait for room in the queue of one shard. */
interface Backlog {
  batch: RunningBatch;
  next: number;
}

/** What waits for one shard. Apart, so that evicts never stand behind refills. */
interface Queues {
  evicts: Backlog[];
  commands: Backlog[];
}

/** How much longer shards that finish other things may do nothing about a batch than those that are silent. */
const LATENESS = 8;
/** Calls look for their completions at least this long: an engine that is awake takes no longer. */
const LEAST_SPIN_US = 5;
const NO_BYTES = new Uint8Array(0);
/** Slots that readSlots asks for together. */
const MOST_READ_AT_ONCE = 1024;

/** Sessions with the daemons of a stripe, in their order, and one shard of all of them after the other. */
export interface Reached {
  readonly connections: DaemonConnection[];
  readonly shards: readonly {
    readonly connection: DaemonConnection;
    readonly index: number;
    readonly freeBytes: number;
  }[];
}

/** What a group needs of its stripe. */
export interface StripeGroupHost {
  /** A shard has gone, or does not answer any more: no column of the stripe is whole any longer. */
  fall(reason: string): void;
}

/**
 * What one group of layers has on the shards of a stripe: grants, slots and queues of its own. A column takes the same
 * slot number on each of them, so one free list and one number a column are enough. Knows nothing of prefixes.
 */
export class StripeGroup {
  #links: ShardLink[] = [];
  #connections: DaemonConnection[] = [];
  #capacity = 0;
  #epoch = 0;
  #draining = false;
  /** Held by whoever writes a slot, and by every batch in flight that names it. */
  #slots = new NumberPool(0);
  /** Where bytes are on this side while they travel; unused where slots are in place. */
  #places = new NumberPool(0);
  #inPlace = true;
  #handsOutPlaces = false;
  /** Of links that have ended. */
  #payloadBytesBefore = 0;
  /** Those that wait for a place. */
  readonly #waiters = new Set<() => void>();
  /** Shards that a call has waited for in vain: nothing new is tried until they finish something. */
  readonly #silent = new Set<number>();
  /** When each shard has last finished something. */
  #heardAt: number[] = [];
  /** Whether the shard that is being listened to has finished something that it was asked for. */
  #progress = false;
  #handlers: CompletionHandler[] = [];
  #evictsIssued = 0;
  #nextBatch = 1;
  readonly #batches = new Map<number, RunningBatch>();
  #backlogs: Queues[] = [];
  /** How long the next call looks for its completions: less after each look that was in vain. */
  #spinUs: number;
  /** Shards that hold any of the group, by the number of the link. */
  readonly #members: readonly number[];

  constructor(
    private readonly settings: StripeGroupSettings,
    private readonly clock: Clock,
    private readonly host: StripeGroupHost,
  ) {
    this.#spinUs = settings.spinUs;
    this.#members = [...settings.pieceBytes.keys()].filter((shard) => settings.pieceBytes[shard] !== 0);
  }

  get name(): string {
    return this.settings.name;
  }

  /** Bytes of the piece of each shard; 0 where a shard holds none of the group. */
  get pieceBytes(): readonly number[] {
    return this.settings.pieceBytes;
  }

  /** Whether columns can be stored and refilled. */
  get usable(): boolean {
    return this.#links.length > 0 && !this.#draining && this.#silent.size === 0;
  }

  /** Slots, of which a column takes one; 0 while the stripe is down. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Rises whenever the stripe goes down: what was true of a slot before says nothing about it now. */
  get epoch(): number {
    return this.#epoch;
  }

  get freeSlots(): number {
    return this.#slots.free;
  }

  /** Gets memory for so many columns. Rejects with the reason where a shard has none; connections stay the caller's. */
  async attach({ connections, shards }: Reached, slots: number): Promise<void> {
    const links = await Promise.all(
      this.#members.map((member) => {
        const { connection, index } = shards[member] as Reached['shards'][number];
        return connection.openLink(this.#requestFor(member, index, slots));
      }),
    );
    this.#adoptAll(connections, links);
  }

  /**
   * Takes the memory back that a driver with the same key left behind. Answers what the slots hold, for each shard that holds
   * any of the group; undefined where not all of it is there, and then connections have to be closed.
   */
  async resume({ connections, shards }: Reached, secret: Uint8Array): Promise<SlotTable[] | undefined> {
    const links: ShardLink[] = [];
    const tables: SlotTable[] = [];
    for (const member of this.#members) {
      const { connection, index } = shards[member] as Reached['shards'][number];
      const resumed = await connection.resumeLink?.({ ...this.#requestFor(member, index, 0), secret });
      if (!resumed) return undefined;
      links.push(resumed.link);
      tables.push(resumed.slots);
    }
    if (links.some(({ slots }) => slots !== links[0]?.slots)) return undefined;
    this.#adoptAll(connections, links);
    return tables;
  }

  /**
   * Shows what slots hold that a tenant's evicts wrote, as far as it comes by the deadline. Nothing else may be going on. The
   * bytes are void after `show` has returned.
   */
  async readSlots(
    slots: readonly number[],
    generations: Float64Array,
    tenantTag: bigint,
    deadlineMs: number,
    show: (slot: number, pieces: readonly Uint8Array[]) => void,
  ): Promise<void> {
    if (this.#inPlace) {
      for (const slot of slots) show(slot, this.pieces(slot));
      return;
    }
    for (let from = 0; from < slots.length; ) {
      const places: number[] = [];
      while (from + places.length < slots.length && places.length < MOST_READ_AT_ONCE) {
        const place = this.#places.take();
        if (place === undefined) break;
        places.push(place);
      }
      if (places.length === 0) return;
      const some = slots.slice(from, from + places.length);
      const { epoch } = this;
      const outcome = await this.run({
        opcode: Opcode.refill,
        flags: 0,
        slots: Uint32Array.from(some),
        places: Uint32Array.from(places),
        generations: Float64Array.from(some, (slot) => generations[slot] as number),
        tenantTag,
        deadlineMs,
      });
      if (epoch !== this.epoch) return;
      for (const [item, slot] of some.entries()) {
        if (outcome[item] === Status.ok) show(slot, this.pieces(places[item] as number));
      }
      for (const place of places) this.givePlace(place, epoch);
      from += places.length;
    }
  }

  /** Slots that hold columns already. */
  keep(slots: ReadonlySet<number>): void {
    this.#slots.remove(slots);
  }

  /** The memory of a slot on the first shard that holds any of the group, where it is in this process. */
  slotInPlace(slot: number): Uint8Array | undefined {
    return this.#inPlace ? this.#links[0]?.piece(slot) : undefined;
  }

  #requestFor(member: number, shard: number, slots: number): LinkRequest {
    const { pieceBytes, ringEntries, regions, park } = this.settings;
    return {
      shard,
      member,
      slots,
      pieceBytes: pieceBytes[member] as number,
      ringEntries,
      ...(regions ? { memory: regions[member] as PlaceMemory } : {}),
      ...(park ? { park, label: park.label } : {}),
    };
  }

  #adoptAll(connections: DaemonConnection[], links: ShardLink[]): void {
    if (links.some((link) => link.inPlace !== links[0]?.inPlace)) {
      throw localError('KVSS_BAD_INPUT', 'a column cannot lie across shards in place and shards over streams');
    }
    this.#adopt(connections, links);
  }

  /**
   * Leaves the shards: everything on them is lost. The answer is to be called when nobody can find it any more; it ends
   * everything in flight as a miss.
   */
  stop(park = false): () => void {
    this.#payloadBytesBefore = this.payloadBytes;
    this.#links = [];
    this.#backlogs = [];
    this.#capacity = 0;
    this.#slots = new NumberPool(0);
    this.#places = new NumberPool(0);
    this.#epoch += 1;
    const closed = Promise.all(this.#connections.splice(0).map((connection) => connection.close({ park })));
    const lost = [...this.#batches.values()];
    this.#batches.clear();
    return () => {
      this.#wake();
      for (const batch of lost) {
        this.#settle(batch, Status.cancelled);
        if (batch.onQuiet) closed.then(batch.onQuiet);
      }
    };
  }

  /** Whether everything that was read in place until now was what had been stored. */
  intact(): boolean {
    return this.#links.length > 0 && this.#links.every((link) => link.intact());
  }

  /**
   * A slot that nothing touches, to be written to; undefined where there is none. Whatever becomes of its column, it
   * does not come back to the free list before letGo().
   */
  takeSlot(): number | undefined {
    return this.#slots.take();
  }

  /** The taker of a slot writes to it no more. Harmless where the stripe has gone down since `epoch`. */
  letGo(slot: number, epoch: number): void {
    if (epoch === this.#epoch) this.#slots.release(slot);
  }

  /** Gives a slot back, as soon as no batch in flight touches it and its taker has let it go. */
  giveSlot(slot: number): void {
    if (this.#links.length > 0) this.#slots.give(slot);
  }

  /** Whether the runtime says where bytes lie: it has memory for bytes that travel. */
  get placedByRuntime(): boolean {
    return !this.#inPlace && this.settings.placedBy === 'runtime';
  }

  /** Memory for the bytes of a slot on this side: the slot itself, or a place for bytes that travel. */
  takePlace(slot: number): number | undefined {
    return this.#inPlace ? slot : this.#places.take();
  }

  /** Gives a place back; it is used again when nothing in flight touches it. */
  givePlace(place: number, epoch: number): void {
    if (!this.#handsOutPlaces || epoch !== this.#epoch) return;
    this.#places.give(place);
    this.#places.release(place);
  }

  /** Columns that may be on their way at once. */
  get placeCount(): number {
    return this.#handsOutPlaces ? this.#places.size : Number.POSITIVE_INFINITY;
  }

  /** Resolves when a place may have become free, the stripe has gone down, or `deadlineMs` has passed. */
  placeFreed(deadlineMs: number): Promise<void> {
    if (!this.#handsOutPlaces || this.#places.free > 0 || this.#links.length === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const waiter = () => {
        cancel();
        this.#waiters.delete(waiter);
        resolve();
      };
      const cancel = this.clock.schedule(deadlineMs, waiter);
      this.#waiters.add(waiter);
    });
  }

  /** The runtime's own memory of a place on every shard, in order; empty where a shard holds none of the group. */
  runtimePieces(place: number): Uint8Array[] {
    const { regions, pieceBytes } = this.settings;
    if (!regions) throw localError('KVSS_BAD_INPUT', 'place: the memory of a carrier cannot be copied by the driver');
    return regions.map(({ memory, strideBytes }, shard) => {
      const bytes = pieceBytes[shard] as number;
      // The memory for a shard without layers of the group may be empty.
      return bytes === 0 ? NO_BYTES : new Uint8Array(memory, place * strideBytes, bytes);
    });
  }

  /** Bytes of pieces that this process has sent and received for the stripe since it was up. */
  get payloadBytes(): number {
    return this.#links.reduce((sum, link) => sum + link.payloadBytes(), this.#payloadBytesBefore);
  }

  /** The memory of a place on every shard, in order; empty where a shard holds none of the group. */
  pieces(place: number): Uint8Array[] {
    const { pieceBytes } = this.settings;
    if (this.#links.length === pieceBytes.length) return this.#links.map((link) => link.piece(place));
    const pieces: Uint8Array[] = pieceBytes.map(() => NO_BYTES);
    for (const [index, link] of this.#links.entries()) pieces[this.#members[index] as number] = link.piece(place);
    return pieces;
  }

  /**
   * Sends one operation an item to every shard and resolves with how each item ended: when all have finished, at the
   * deadline (unfinished items count as `deadline`), or when the stripe goes down (`cancelled`). Never rejects. Slots
   * of unfinished items stay out of the free list until the shards have finished with them.
   */
  run(request: BatchRequest): Promise<BatchOutcome> {
    const { length } = request.slots;
    if (!this.usable) {
      request.onQuiet?.();
      return Promise.resolve(new Uint16Array(length).fill(Status.cancelled));
    }
    const evict = request.opcode === Opcode.evict;
    // A command comes after every evict issued before it. An evict has no command to wait for: its slots came from the
    // free list, where nothing is that a command in flight still touches.
    const after = evict ? 0 : this.#evictsIssued;
    const batch = new RunningBatch(this.#nextBatch, request, after, this.clock.now(), this.#members.length);
    this.#nextBatch = (this.#nextBatch % 0xffffffff) + 1;
    if (evict) this.#evictsIssued += length;
    for (const slot of batch.slots) this.#slots.hold(slot);
    if (this.#handsOutPlaces) for (const place of batch.places) this.#places.hold(place);
    this.#batches.set(batch.id, batch);
    for (const queues of this.#backlogs) (evict ? queues.evicts : queues.commands).push({ batch, next: 0 });
    return new Promise((resolve) => {
      batch.settle = resolve;
      this.#move();
      if (request.awaited) this.#spin(batch);
      this.#arm();
      // Most batches have finished by now and need no timer.
      if (this.#batches.has(batch.id))
        batch.cancelDeadline = this.clock.schedule(request.deadlineMs, () => this.#expire(batch));
    });
  }

  #adopt(connections: DaemonConnection[], links: ShardLink[]): void {
    const slots = Math.min(...links.map((link) => link.slots));
    this.#connections = connections;
    this.#links = links;
    this.#capacity = slots;
    this.#draining = false;
    this.#slots = new NumberPool(slots);
    this.#inPlace = links.every((link) => link.inPlace);
    this.#handsOutPlaces = !this.#inPlace && this.settings.placedBy === 'stripe';
    const places = this.#handsOutPlaces ? Math.min(...links.map((link) => link.places)) : 0;
    this.#places = new NumberPool(places, () => this.#wake());
    this.#silent.clear();
    this.#heardAt = links.map(() => Number.NEGATIVE_INFINITY);
    this.#handlers = links.map((_, shard) => (batchId, item, status) => this.#complete(shard, batchId, item, status));
    this.#evictsIssued = 0;
    this.#backlogs = links.map(() => ({ evicts: [], commands: [] }));
    for (const connection of connections) {
      connection.onEnd = (reason) => this.host.fall(reason);
      connection.onDraining = () => {
        this.#draining = true;
      };
    }
    for (const link of links) link.onReady = () => this.#pump();
  }

  /** Sends what waits, hears what has finished, and sees to it that the rest is heard of. */
  #pump(): void {
    this.#move();
    this.#arm();
  }

  /** Sends what waits, as far as there is room, and hears what has finished. */
  #move(): void {
    for (let again = true; again; ) {
      again = false;
      for (const [shard, link] of this.#links.entries()) {
        const queues = this.#backlogs[shard] as Queues;
        this.#send(queues.evicts, link);
        this.#send(queues.commands, link);
        this.#progress = false;
        again = link.poll(this.#handlers[shard] as CompletionHandler) > 0 || again;
        if (this.#progress) this.#heardAt[shard] = this.clock.now();
      }
    }
  }

  /**
   * Looks for the end of a batch for a moment: an engine that is awake answers sooner than an event loop can be woken. One
   * that sleeps does not, and is not waited for as long the next time.
   */
  #spin(batch: RunningBatch): void {
    const { spinUs } = this.settings;
    if (spinUs === 0 || !this.#inPlace) return;
    let until = 0;
    while (batch.open > 0 && this.#links.length > 0) {
      this.#move();
      const now = performance.now();
      if (until === 0) until = now + this.#spinUs / 1000;
      if (now > until) {
        this.#spinUs = Math.max(this.#spinUs / 2, Math.min(LEAST_SPIN_US, spinUs));
        return;
      }
    }
    this.#spinUs = spinUs;
  }

  #arm(): void {
    if (this.#batches.size === 0) return;
    // A completion may have come between the last poll and arming.
    if (this.#links.some((link) => !link.arm())) queueMicrotask(() => this.#pump());
  }

  #send(backlog: Backlog[], link: ShardLink): void {
    for (let head = backlog[0]; head; head = backlog[0]) {
      head.next += link.submit(head.batch, head.next);
      if (head.next < head.batch.length) return;
      backlog.shift();
    }
  }

  #complete(shard: number, batchId: number, item: number, status: Status): void {
    const batch = this.#batches.get(batchId);
    // A shard that reports what was never asked, or twice, is broken; nothing of it may reach a slot.
    const at = batch ? shard * batch.length + item : 0;
    if (!batch || !(item < batch.length) || batch.finished[at] === 1) return;
    batch.finished[at] = 1;
    batch.unfinished[item] = (batch.unfinished[item] as number) - 1;
    if (status !== Status.ok) batch.outcome[item] = Math.max(batch.outcome[item] as number, status);
    batch.open -= 1;
    batch.openAt[shard] = (batch.openAt[shard] as number) - 1;
    this.#progress = true;
    this.#silent.delete(shard);
    if (batch.unfinished[item] === 0) {
      this.#slots.release(batch.slots[item] as number);
      if (this.#handsOutPlaces && batch.places.length > 0) this.#places.release(batch.places[item] as number);
    }
    if (batch.open > 0) return;
    this.#batches.delete(batchId);
    this.#settle(batch, Status.ok);
    batch.onQuiet?.();
  }

  #wake(): void {
    for (const waiter of [...this.#waiters]) waiter();
  }

  #expire(batch: RunningBatch): void {
    batch.cancelDeadline = undefined;
    // The runtime may have kept the event loop busy past the deadline, with the answers there and nobody to hear them.
    this.#move();
    if (!batch.settle) return;
    this.#settle(batch, Status.deadline);
    // The next calls are misses at once and do not wait for a shard that does not answer. One that is only slow goes on
    // finishing things.
    for (const [shard, open] of batch.openAt.entries()) {
      if (open > 0 && (this.#heardAt[shard] as number) < batch.issuedAt) this.#silent.add(shard);
    }
    if (this.#inPlace) return;
    const expiredAt = this.clock.now();
    // Not after the time of a call in a hurry: its answer may just be on its way.
    const patienceMs = Math.max(batch.timeoutUs / 1000, this.settings.silenceMs);
    // A connection that stays silent is dead, whatever the kernel says: it may have become a black hole.
    this.clock.schedule(patienceMs, () => this.#giveUp(batch, (shard) => (this.#heardAt[shard] as number) < expiredAt));
    this.#watch(batch, LATENESS * patienceMs);
  }

  /** One lane may be a black hole while the others go on, and slots and places wait for what it has swallowed. */
  #watch(batch: RunningBatch, patienceMs: number): void {
    const before = batch.openAt.slice();
    this.clock.schedule(patienceMs, () => {
      this.#giveUp(batch, (shard) => batch.openAt[shard] === before[shard]);
      if (this.#batches.has(batch.id)) this.#watch(batch, patienceMs);
    });
  }

  /** The stripe falls where a shard has not finished a batch and is not to be waited for any longer. */
  #giveUp(batch: RunningBatch, on: (shard: number) => boolean): void {
    // As at the deadline: what has come must have been heard before anybody is given up.
    this.#move();
    if (!this.#batches.has(batch.id)) return;
    const shards = [...batch.openAt.keys()].filter((shard) => (batch.openAt[shard] as number) > 0 && on(shard));
    if (shards.length > 0)
      this.host.fall(`shard ${shards.map((shard) => this.#members[shard]).join(', ')} does not answer`);
  }

  /** Tells the asker how the batch ended; items that have not finished get `unfinished`. */
  #settle(batch: RunningBatch, unfinished: Status): void {
    batch.cancelDeadline?.();
    const { settle } = batch;
    if (!settle) return;
    batch.settle = undefined;
    // Nothing changes it any more where everything has finished.
    const outcome = batch.open === 0 ? batch.outcome : batch.outcome.slice();
    for (let item = 0; batch.open > 0 && item < batch.length; item += 1) {
      if (batch.unfinished[item] !== 0) outcome[item] = Math.max(outcome[item] as number, unfinished);
    }
    settle(outcome);
  }
}
