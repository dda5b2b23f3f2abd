import { createHash } from 'node:crypto';
import type { Clock } from '../../src/common/clock.js';
import { KvssError, localError } from '../../src/common/errors.js';
import type {
  CloseOptions,
  CompletionHandler,
  Connector,
  DaemonConnection,
  LinkRequest,
  OperationBatch,
  ResumedLink,
  ShardLink,
} from '../../src/links/link.js';
import { NO_POLICIES } from '../../src/links/policy_feed.js';
import type { ShardState } from '../../src/proto/frames.js';
import { DescriptorFlag, Opcode, Status } from '../../src/proto/generated.js';
import { sameBytes } from './stamp.js';

/** What memory holds once the daemon has taken it back. */
const TAKEN_BACK = 0xdb;
const SLOT_ALIGNMENT = 8;
/** Records of columns are larger than any piece of a test that does not move them, and are struck out by their head. */
const LEAST_RECORD_BYTES = 512;
const RECORD_HEAD_BYTES = 64;

/** One descriptor as a shard sees it. */
export interface Operation {
  readonly opcode: Opcode;
  readonly flags: number;
  readonly batchId: number;
  readonly item: number;
  readonly slot: number;
  readonly place: number;
  readonly generation: number;
  readonly tenantTag: bigint;
  readonly after: number;
  /** Position in its queue, from 1. */
  readonly sequence: number;
  readonly deadline: number;
  state: 'waiting' | 'running' | 'finished';
  /** The slot's bytes, from when they must stay what they are: an evict's submission, a refill's start. */
  bytes: Uint8Array;
}

interface Slot {
  generation: number;
  tenantTag: bigint;
  state: 'empty' | 'writing' | 'stored';
}

/** What is left of a session. */
interface ParkedMemory {
  readonly memory: Uint8Array;
  readonly table: readonly Slot[];
  readonly store: ReadonlyMap<number, Uint8Array>;
}

/** Something that a shard could do next. */
export interface Move {
  readonly link: SimulatedLink;
  readonly operation: Operation;
  readonly what: 'start' | 'finish';
}

/**
 * One shard in memory. It does nothing until a test lets it; then it keeps the rules of a real shard, written down here
 * a second time and as plainly as possible: an evict starts once `after` commands and every earlier evict into its
 * slot have finished and nobody reads the slot; commands start in order, each once `after` evicts have finished; a
 * refill needs exactly the stored generation and tenant.
 */
export class SimulatedLink implements ShardLink {
  readonly inPlace: boolean;
  onReady: () => void = () => {};
  /** All operations of this session, in order of submission. */
  readonly evicts: Operation[] = [];
  readonly commands: Operation[] = [];
  readonly memory: Uint8Array;
  readonly #table: Slot[];
  readonly #slotBytes: number;
  readonly #completed: Operation[] = [];
  readonly #statuses: Status[] = [];
  #armed = false;
  #takenBack = false;
  /** What the slots hold, where bytes travel and the test has them carried. */
  readonly #store = new Map<number, Uint8Array>();

  constructor(
    private readonly daemon: SimulatedDaemon,
    readonly shard: number,
    readonly slots: number,
    readonly pieceBytes: number,
    private readonly ringEntries: number,
    /** How the memory is parked when the session ends, if it is. */
    readonly parkAs?: string,
    parked?: ParkedMemory,
  ) {
    this.inPlace = daemon.inPlace;
    this.#slotBytes = slotBytesOf(pieceBytes);
    this.memory = new Uint8Array(slots * this.#slotBytes);
    this.#table = Array.from({ length: slots }, () => ({ generation: 0, tenantTag: 0n, state: 'empty' }));
    if (!parked) return;
    this.memory.set(parked.memory);
    for (const [slot, entry] of parked.table.entries()) this.#table[slot] = { ...entry };
    for (const [slot, bytes] of parked.store) this.#store.set(slot, bytes);
  }

  /** What an owner who comes back finds: nothing that was on its way. */
  park(): ParkedMemory {
    const table = this.#table.map((slot) => ({ ...slot }));
    for (const { state, slot, generation } of this.evicts) {
      const entry = table[slot] as Slot;
      if (state === 'finished' || entry.generation > generation) continue;
      table[slot] = { ...entry, generation, state: 'empty' };
    }
    for (const { opcode, state, slot, generation } of this.commands) {
      const entry = table[slot] as Slot;
      if (opcode === Opcode.delete && state !== 'finished' && entry.generation === generation) entry.state = 'empty';
    }
    return { memory: this.memory.slice(), table, store: new Map(this.#store) };
  }

  /** What the slots hold, as their owner is told. */
  slotTable(): ResumedLink['slots'] {
    return {
      generations: Float64Array.from(this.#table, ({ generation }) => generation),
      tenantTags: BigUint64Array.from(this.#table, ({ tenantTag }) => tenantTag),
      holds: Uint8Array.from(this.#table, ({ state }) => (state === 'stored' ? 1 : 0)),
    };
  }

  get places(): number {
    return this.daemon.places ?? this.slots;
  }

  piece(slot: number): Uint8Array {
    if (!(slot >= 0 && slot < this.slots)) throw new Error(`slot ${slot} of ${this.slots}`);
    const at = slot * this.#slotBytes;
    return this.memory.subarray(at, at + this.pieceBytes);
  }

  payloadBytes(): number {
    return 0;
  }

  intact(): boolean {
    return !this.#takenBack;
  }

  submit(batch: OperationBatch, from: number): number {
    if (this.#takenBack) return 0;
    const queue = this.#queueOf(batch.opcode);
    const room = this.ringEntries - queue.filter((operation) => operation.state !== 'finished').length;
    const count = Math.min(batch.length - from, Math.max(0, room));
    for (let item = from; item < from + count; item += 1) {
      const slot = batch.slots[item] as number;
      queue.push({
        opcode: batch.opcode,
        flags: batch.flags,
        batchId: batch.id,
        item,
        slot,
        place: batch.places[item] ?? slot,
        generation: batch.generations[item] as number,
        tenantTag: batch.tenantTag,
        after: batch.after,
        sequence: queue.length + 1,
        deadline: this.daemon.clock.now() + batch.timeoutUs / 1000,
        state: 'waiting',
        bytes: this.piece(this.daemon.carries ? (batch.places[item] ?? slot) : slot).slice(),
      });
    }
    if (this.daemon.immediate) this.finishAll();
    return count;
  }

  poll(handler: CompletionHandler): number {
    const completed = this.#completed.splice(0);
    const statuses = this.#statuses.splice(0);
    for (const [index, { batchId, item }] of completed.entries()) handler(batchId, item, statuses[index] as Status);
    return completed.length;
  }

  arm(): boolean {
    if (this.#completed.length > 0) return false;
    this.#armed = true;
    return true;
  }

  /** What this shard could do next, in order of submission. */
  moves(): Move[] {
    if (this.#takenBack) return [];
    const moves: Move[] = [];
    for (const operation of [...this.evicts, ...this.commands]) {
      if (operation.state === 'waiting' && this.#mayStart(operation)) {
        moves.push({ link: this, operation, what: 'start' });
      } else if (operation.state === 'running' && this.#mayFinish(operation)) {
        moves.push({ link: this, operation, what: 'finish' });
      }
    }
    return moves;
  }

  start(operation: Operation): void {
    const slot = this.#table[operation.slot] as Slot;
    const refusal = this.#refusalOf(operation, slot);
    if (refusal !== undefined) {
      this.#complete(operation, refusal);
      return;
    }
    operation.state = 'running';
    if (operation.opcode === Opcode.evict) {
      slot.generation = operation.generation;
      slot.tenantTag = operation.tenantTag;
      slot.state = 'writing';
    } else if (operation.opcode === Opcode.delete) {
      slot.state = 'empty';
    } else {
      operation.bytes = this.piece(operation.slot).slice();
    }
  }

  /** Ends a running operation; with another status than ok its bytes did not get where they should. */
  finish(operation: Operation, status: Status = Status.ok): void {
    const slot = this.#table[operation.slot] as Slot;
    if (operation.opcode === Opcode.delete) {
      if ((operation.flags & DescriptorFlag.scrub) !== 0 && status === Status.ok) this.piece(operation.slot).fill(0);
    } else {
      if (this.daemon.carries) {
        if (operation.opcode === Opcode.evict) this.#store.set(operation.slot, operation.bytes);
        else this.piece(operation.place).set(this.#store.get(operation.slot) ?? []);
      } else if (!sameBytes(operation.bytes, this.piece(operation.slot)) && !this.#isStruck(operation)) {
        const what = operation.opcode === Opcode.evict ? 'an evict' : 'a refill';
        this.daemon.box.complain(`slot ${operation.slot} was written to while ${what} was under way`);
      }
      if (operation.opcode === Opcode.evict) slot.state = status === Status.ok ? 'stored' : 'empty';
    }
    this.#complete(operation, status);
  }

  /** Ends what waits and has run out of time, as a shard does that looks at its clock. */
  expireWaiting(): void {
    for (const operation of [...this.evicts, ...this.commands]) {
      if (operation.state !== 'waiting' || operation.deadline > this.daemon.clock.now()) continue;
      if (operation.opcode === Opcode.evict) {
        // The client has written the slot already, so what was there before is gone.
        const slot = this.#table[operation.slot] as Slot;
        if (slot.generation < operation.generation) slot.state = 'empty';
      }
      this.#complete(operation, Status.deadline);
    }
  }

  /** Lets everything happen that can, in order. */
  finishAll(): void {
    for (let moves = this.moves(); moves.length > 0; moves = this.moves()) {
      for (const { operation, what } of moves) {
        if (what === 'start' && operation.state === 'waiting' && this.#mayStart(operation)) this.start(operation);
        if (operation.state === 'running' && this.#mayFinish(operation)) this.finish(operation);
      }
    }
  }

  /** Loses what a slot holds: the store promises no durability. Answers whether there was something. */
  lose(slot: number): boolean {
    const entry = this.#table[slot % this.slots] as Slot;
    if (entry.state !== 'stored') return false;
    entry.state = 'empty';
    return true;
  }

  /** Reports an operation that has not finished, as no shard may. */
  report(operation: Operation): void {
    this.#completed.push(operation);
    this.#statuses.push(Status.ok);
    this.#wake();
  }

  /** The session is over: nothing is heard of it any more, and the daemon uses its memory for something else. */
  takeBack(): void {
    this.#takenBack = true;
    this.#completed.length = 0;
    this.#statuses.length = 0;
    this.memory.fill(TAKEN_BACK);
  }

  /** Operations that have not finished. */
  get unfinished(): number {
    return [...this.evicts, ...this.commands].filter((operation) => operation.state !== 'finished').length;
  }

  #queueOf(opcode: Opcode): Operation[] {
    return opcode === Opcode.evict ? this.evicts : this.commands;
  }

  /** Why an operation that may start does nothing. */
  #refusalOf(operation: Operation, slot: Slot): Status | undefined {
    if (operation.opcode === Opcode.evict) {
      return operation.generation > slot.generation ? undefined : Status.badGeneration;
    }
    if (slot.generation === 0) return Status.missEmpty;
    if (slot.generation !== operation.generation) return Status.missOverwritten;
    if (slot.state !== 'stored') return Status.missEmpty;
    if (operation.opcode === Opcode.delete || slot.tenantTag === operation.tenantTag) return undefined;
    this.daemon.box.complain(`a refill named another tenant than that of slot ${operation.slot}`);
    return Status.missTenant;
  }

  #mayStart(operation: Operation): boolean {
    if (operation.opcode === Opcode.evict) {
      return (
        finishedInOrder(this.commands) >= operation.after &&
        this.evicts.every(
          (other) => other.slot !== operation.slot || !isBefore(other, operation) || isFinished(other),
        ) &&
        this.commands.every((other) => other.slot !== operation.slot || other.state !== 'running')
      );
    }
    return (
      finishedInOrder(this.evicts) >= operation.after &&
      this.commands.every((other) => !isBefore(other, operation) || other.state !== 'waiting')
    );
  }

  #mayFinish(operation: Operation): boolean {
    // A delete takes effect at once, but scrubs only when nobody reads the slot any more.
    return (
      operation.opcode !== Opcode.delete ||
      this.commands.every((other) => !isBefore(other, operation) || other.slot !== operation.slot || isFinished(other))
    );
  }

  #complete(operation: Operation, status: Status): void {
    operation.state = 'finished';
    this.#completed.push(operation);
    this.#statuses.push(status);
    this.#wake();
  }

  /** A driver strikes out its record of a column that goes at once, also while that is on its way. */
  #isStruck({ slot, bytes }: Operation): boolean {
    if (this.pieceBytes < LEAST_RECORD_BYTES) return false;
    const now = this.piece(slot);
    return (
      now.subarray(0, RECORD_HEAD_BYTES).every((byte) => byte === 0) &&
      sameBytes(now.subarray(RECORD_HEAD_BYTES), bytes.subarray(RECORD_HEAD_BYTES))
    );
  }

  #wake(): void {
    if (!this.#armed) return;
    this.#armed = false;
    // Never from inside a call of the driver, as with a real shard.
    queueMicrotask(() => {
      if (!this.#takenBack) this.onReady();
    });
  }
}

class SimulatedConnection implements DaemonConnection {
  onDraining: () => void = () => {};
  onEnd: (reason: string) => void = () => {};
  readonly policies = NO_POLICIES;
  readonly links: SimulatedLink[] = [];
  readonly shards: readonly ShardState[];
  #over: 'closed' | 'ended' | undefined;

  constructor(private readonly daemon: SimulatedDaemon) {
    this.shards = daemon.budgets.map((budgetBytes, index) => ({
      index,
      domain: 0,
      budgetBytes,
      freeBytes: budgetBytes,
      hugePages: false,
    }));
  }

  get ended(): boolean {
    return this.#over === 'ended';
  }

  get isOver(): boolean {
    return this.#over !== undefined;
  }

  report(): void {}

  slotBytes(pieceBytes: number): number {
    return slotBytesOf(pieceBytes);
  }

  async openLink(request: LinkRequest): Promise<SimulatedLink> {
    await this.daemon.answering;
    if (this.#over) throw localError('KVSS_UNREACHABLE', 'the daemon has gone');
    const { shard, slots, pieceBytes } = request;
    const budget = this.daemon.budgets[shard] as number;
    if (this.daemon.refusesMemory || slots * slotBytesOf(pieceBytes) > budget) {
      throw KvssError.ofStatus(Status.noMemory, `shard ${shard} has no ${slots} slots`);
    }
    return this.#adopt(request, slots);
  }

  async resumeLink(request: LinkRequest & { secret: Uint8Array }): Promise<ResumedLink | undefined> {
    await this.daemon.answering;
    if (this.#over) throw localError('KVSS_UNREACHABLE', 'the daemon has gone');
    const owner = createHash('sha256').update(request.secret).digest();
    const name = parkedName(request, owner);
    const parked = this.daemon.parked.get(name);
    if (!parked) return undefined;
    this.daemon.parked.delete(name);
    const link = this.#adopt(request, parked.table.length, parked);
    return { link, slots: link.slotTable() };
  }

  async close({ park = false }: CloseOptions = {}): Promise<void> {
    this.#finish('closed', park);
    await this.daemon.lettingGo;
  }

  #adopt(request: LinkRequest, slots: number, parked?: ParkedMemory): SimulatedLink {
    const { shard, pieceBytes, ringEntries, park } = request;
    const name = park && parkedName(request, park.owner);
    const link = new SimulatedLink(this.daemon, shard, slots, pieceBytes, ringEntries, name, parked);
    this.links.push(link);
    return link;
  }

  end(reason: string): void {
    if (this.#over) return;
    this.#finish('ended', true);
    this.onEnd(reason);
  }

  #finish(how: 'closed' | 'ended', park: boolean): void {
    if (this.#over) return;
    this.#over = how;
    for (const link of this.links)
      if (park && link.parkAs !== undefined && link.intact()) this.daemon.parked.set(link.parkAs, link.park());
    for (const link of this.links) link.takeBack();
    this.daemon.connections.delete(this);
  }
}

/** One daemon. Tests say what it does and when. */
export class SimulatedDaemon {
  /** Whether somebody listens. */
  reachable = true;
  refusesMemory = false;
  /** Finishes every operation as it comes, like a shard on a fast core of its own. */
  immediate = false;
  /** Whether a slot is memory of the runtime's process. No bytes travel in here; they only take their time. */
  inPlace = true;
  /** Places for bytes that travel, where there are fewer than slots. */
  places: number | undefined;
  /** Answers to requests wait for this. */
  answering: Promise<void> = Promise.resolve();
  /** Until this, what was on its way when a connection was closed may still be written to the runtime's memory. */
  lettingGo: Promise<void> = Promise.resolve();
  /** Where bytes travel: whether they do in here, too. */
  carries = false;
  /** Memory of drivers that are gone, which they have asked to be kept. */
  readonly parked = new Map<string, ParkedMemory>();
  readonly connections = new Set<SimulatedConnection>();

  constructor(
    readonly box: SimulatedBox,
    readonly address: string,
    readonly budgets: readonly number[],
  ) {}

  get clock(): Clock {
    return this.box.clock;
  }

  get links(): SimulatedLink[] {
    return [...this.connections].flatMap((connection) => connection.links);
  }

  /** The shard's link of the only session. */
  link(shard = 0): SimulatedLink {
    const link = this.links[shard];
    if (!link) throw new Error(`${this.address} has no session on shard ${shard}`);
    return link;
  }

  /** Announces the end: nothing new is taken. */
  drain(): void {
    for (const connection of this.connections) connection.onDraining();
  }

  /** Ends every session as seen from the daemon. The driver hears of it later, from end(). */
  takeBack(): void {
    for (const link of this.links) link.takeBack();
  }

  /** Ends every session, as when the daemon is killed. It can be reached again if `reachable` is left true. */
  end(reason = 'the daemon has gone'): void {
    for (const connection of [...this.connections]) connection.end(reason);
  }
}

/** Daemons that a driver can reach, and all that happens between them and it. */
export class SimulatedBox {
  /** What the shards saw the driver do that it must not do. */
  readonly complaints: string[] = [];
  readonly daemons: SimulatedDaemon[];

  /** `budgets` has the bytes of each shard, by daemon. */
  constructor(
    readonly clock: Clock,
    budgets: readonly (readonly number[])[],
  ) {
    this.daemons = budgets.map((shards, index) => new SimulatedDaemon(this, `daemon-${index}`, shards));
  }

  readonly connector: Connector = async (address) => {
    const daemon = this.daemons.find((candidate) => candidate.address === address);
    await daemon?.answering;
    if (!daemon?.reachable) throw localError('KVSS_UNREACHABLE', `nobody listens at ${address}`);
    const connection = new SimulatedConnection(daemon);
    daemon.connections.add(connection);
    return connection;
  };

  get addresses(): string[] {
    return this.daemons.map((daemon) => daemon.address);
  }

  daemon(index = 0): SimulatedDaemon {
    const daemon = this.daemons[index % this.daemons.length];
    if (!daemon) throw new Error(`no daemon ${index}`);
    return daemon;
  }

  get links(): SimulatedLink[] {
    return this.daemons.flatMap((daemon) => daemon.links);
  }

  moves(): Move[] {
    return this.links.flatMap((link) => link.moves());
  }

  /** Lets all shards finish what they can. */
  finishAll(): void {
    for (const link of this.links) link.finishAll();
  }

  /** What would be left if all drivers were killed now. The answer has it found by those that come next, as often as it is called. */
  wouldLeave(): () => void {
    const left = this.daemons.map(
      ({ links }) =>
        new Map(
          links.flatMap((link) =>
            link.parkAs === undefined || !link.intact() ? [] : [[link.parkAs, link.park()] as const],
          ),
        ),
    );
    return () => {
      for (const [index, daemon] of this.daemons.entries()) {
        daemon.end('the driver was killed');
        daemon.parked.clear();
        for (const [name, memory] of left[index] ?? []) daemon.parked.set(name, memory);
      }
    };
  }

  complain(what: string): void {
    this.complaints.push(what);
  }
}

function parkedName({ shard, label, pieceBytes }: LinkRequest, owner: Uint8Array): string {
  return JSON.stringify([shard, label, pieceBytes, Buffer.from(owner).toString('hex')]);
}

export function slotBytesOf(pieceBytes: number): number {
  return Math.ceil(pieceBytes / SLOT_ALIGNMENT) * SLOT_ALIGNMENT;
}

/** Operations of a queue that have finished without a gap from the first. */
function finishedInOrder(queue: readonly Operation[]): number {
  const gap = queue.findIndex((operation) => operation.state !== 'finished');
  return gap < 0 ? queue.length : gap;
}

function isBefore(left: Operation, right: Operation): boolean {
  return left.sequence < right.sequence;
}

function isFinished(operation: Operation): boolean {
  return operation.state === 'finished';
}
