import {
  type Completion,
  type Descriptor,
  DescriptorFlag,
  Opcode,
  Status,
  statusName,
} from '../../src/proto/generated.js';
import {
  type BeginEvent,
  type CancelEvent,
  type CoreState,
  type EndEvent,
  type Tally,
  TransferKind,
} from './shard_core.js';

export const SLOT_ALIGNMENT = 64;
const LATENCY_BUCKETS = 24;
const MAX_TIMEOUT_US = 600_000_000;

export type Queue = 'evict' | 'command';

/** One operation as the rules of DESIGN section 5 see it. */
interface Operation {
  readonly queue: Queue;
  readonly sequence: number;
  readonly descriptor: Descriptor;
  readonly acceptedNs: number;
  readonly deadlineNs: number;
  /** `takenEffect`: a scrubbing delete that waits for the readers of its slot. */
  state: 'waiting' | 'takenEffect' | 'running' | 'ended' | 'finished';
  kind: TransferKind | undefined;
  cancelAsked: boolean;
  end: EndEvent | undefined;
  status: Status | undefined;
}

interface Slot {
  generation: number;
  tenant: bigint;
  state: 'empty' | 'writing' | 'stored';
  /** The stamp that the evict of this generation brings. */
  stamp: number;
}

interface Grant {
  readonly slotCount: number;
  readonly pieceBytes: number;
  readonly slots: Slot[];
}

function emptyTally(): Tally {
  return {
    evicts: 0,
    evictFaults: 0,
    evictBytes: 0,
    refills: 0,
    refillMisses: 0,
    refillFaults: 0,
    refillBytes: 0,
    deletes: 0,
    deleteMisses: 0,
    tenantAlarms: 0,
    deadlines: 0,
    gatedEvicts: 0,
    gatedCommands: 0,
    scrubbedBytes: 0,
    storedSlots: 0,
    evictLatency: new Array<number>(LATENCY_BUCKETS).fill(0),
    refillLatency: new Array<number>(LATENCY_BUCKETS).fill(0),
  };
}

function addLatency(buckets: number[], nanos: number): void {
  // Bucket i counts less than 2^(i+7) ns, the last one everything longer.
  let bucket = 0;
  while (bucket < LATENCY_BUCKETS - 1 && nanos >= 2 ** (bucket + 7)) bucket += 1;
  buckets[bucket] = (buckets[bucket] ?? 0) + 1;
}

function nameOf(operation: Operation): string {
  return `${operation.queue} ${operation.sequence}`;
}

function expect(condition: boolean, what: () => string): asserts condition {
  if (!condition) throw new Error(what());
}

/**
 * Watches a shard core and knows what it must do next. It does not run the rules: it is told each event in order, asks
 * whether the rules allow it there and with that outcome, and after each call whether everything that the rules demand
 * by then has happened. Operations are plain lists that are searched from the start, so that it shares no cleverness
 * with the code that it judges.
 */
export class ShardOracle {
  readonly operations: Operation[] = [];
  readonly #grants = new Map<number, Grant>();
  readonly #tally = emptyTally();
  readonly #counts = { evict: 0, command: 0 };
  readonly #accepted = { evict: 0, command: 0 };
  #closed = false;
  #nowNs = 0;
  /** The call that is going on: some outcomes may only come out of some calls. */
  #call: 'accept' | 'finish' | 'expire' | 'close' | 'other' = 'other';

  constructor(private readonly window: number) {}

  get evictCount(): number {
    return this.#counts.evict;
  }
  get commandCount(): number {
    return this.#counts.command;
  }
  issued(queue: Queue): number {
    return this.#accepted[queue];
  }
  room(queue: Queue): number {
    return this.window - (this.#accepted[queue] - this.#counts[queue]);
  }
  running(): Operation[] {
    return this.operations.filter((operation) => operation.state === 'running');
  }
  unfinished(): Operation[] {
    return this.operations.filter((operation) => operation.state !== 'finished');
  }
  generationOf(grantId: number, slot: number): number {
    return this.#grants.get(grantId)?.slots[slot]?.generation ?? 0;
  }
  tenantOf(grantId: number, slot: number): bigint {
    return this.#grants.get(grantId)?.slots[slot]?.tenant ?? 0n;
  }
  statusOf(operation: Operation): string {
    return statusName(operation.status ?? -1) ?? 'none';
  }

  // What the test does to the core

  addGrant(grantId: number, slotCount: number, pieceBytes: number): void {
    const slots = Array.from(
      { length: slotCount },
      (): Slot => ({ generation: 0, tenant: 0n, state: 'empty', stamp: 0 }),
    );
    this.#grants.set(grantId, { slotCount, pieceBytes, slots });
  }

  /** The status that removing this grant must have. */
  removeGrant(grantId: number): Status {
    const grant = this.#grants.get(grantId);
    if (!grant) return Status.badGrant;
    if (this.unfinished().length > 0) return Status.notAllowed;
    this.#tally.storedSlots -= grant.slots.filter((slot) => slot.state === 'stored').length;
    this.#grants.delete(grantId);
    return Status.ok;
  }

  accept(queue: Queue, descriptor: Descriptor, nowNs: number): void {
    this.#begin('accept', nowNs);
    this.#accepted[queue] += 1;
    const timeoutUs = descriptor.timeoutUs === 0 ? MAX_TIMEOUT_US : Math.min(descriptor.timeoutUs, MAX_TIMEOUT_US);
    this.operations.push({
      queue,
      sequence: this.#accepted[queue],
      descriptor,
      acceptedNs: nowNs,
      deadlineNs: nowNs + timeoutUs * 1000,
      state: 'waiting',
      kind: undefined,
      cancelAsked: false,
      end: undefined,
      status: undefined,
    });
  }

  finish(nowNs: number): void {
    this.#begin('finish', nowNs);
  }
  expire(nowNs: number): void {
    this.#begin('expire', nowNs);
  }
  close(nowNs: number): void {
    this.#begin('close', nowNs);
    this.#closed = true;
    for (const { slots } of this.#grants.values()) {
      for (const slot of slots) if (slot.state === 'stored') this.#setState(slot, 'empty');
    }
  }
  #begin(call: 'accept' | 'finish' | 'expire' | 'close', nowNs: number): void {
    this.#call = call;
    this.#nowNs = nowNs;
  }

  // What the core does

  onBegin(event: BeginEvent): void {
    const operation = this.#find(event.kind === TransferKind.receive ? 'evict' : 'command', event.sequence);
    const { descriptor } = operation;
    const name = nameOf(operation);
    const { grant, slot } = this.#place(operation);
    expect(!this.#closed, () => `${name} began after the session was closed`);
    expect(
      event.grantId === descriptor.grantId &&
        event.slot === descriptor.slot &&
        event.bytes === grant.pieceBytes &&
        event.offset === event.slot * Math.ceil(grant.pieceBytes / SLOT_ALIGNMENT) * SLOT_ALIGNMENT &&
        BigInt(event.generation) === descriptor.generation &&
        BigInt(event.userData) === descriptor.userData,
      () => `the transfer of ${name} is not the one that was asked for`,
    );
    const others = this.#touching(descriptor).filter((other) => other !== operation);
    if (event.kind === TransferKind.receive) {
      this.#checkStart(operation);
      expect(this.#refusal(operation) === undefined, () => `${name} began although it has to be refused`);
      expect(others.length === 0, () => `${name} writes a slot that ${others.map(nameOf)} touches`);
      this.#setState(slot, 'writing');
      slot.generation = Number(descriptor.generation);
      slot.tenant = descriptor.tenantTag;
      slot.stamp = event.userData;
    } else if (event.kind === TransferKind.send) {
      this.#checkStart(operation);
      expect(this.#commandOutcome(operation) === 'transfer', () => `${name} began although it has to miss`);
      expect(
        others.every((other) => other.kind === TransferKind.send),
        () => `${name} reads a slot that ${others.map(nameOf)} changes`,
      );
    } else {
      if (operation.state === 'waiting') this.#takeEffect(operation);
      expect(operation.state === 'takenEffect', () => `${name} scrubbed twice`);
      expect(others.length === 0, () => `${name} scrubs a slot that ${others.map(nameOf)} touches`);
    }
    operation.state = 'running';
    operation.kind = event.kind;
  }

  onEnd(event: EndEvent): void {
    const operation = this.#find(event.kind === TransferKind.receive ? 'evict' : 'command', event.sequence);
    expect(operation.state === 'running', () => `${nameOf(operation)} ended a transfer that did not run`);
    operation.state = 'ended';
    operation.end = event;
  }

  onCancel(event: CancelEvent): void {
    const operation = this.#find(event.kind === TransferKind.receive ? 'evict' : 'command', event.sequence);
    const name = nameOf(operation);
    expect(operation.state === 'running', () => `${name} was asked to stop but does not run`);
    expect(operation.kind === event.kind, () => `${name} was asked to stop another kind of transfer`);
    expect(!operation.cancelAsked, () => `${name} was asked to stop twice`);
    const due = this.#call === 'close' || (this.#call === 'expire' && operation.deadlineNs <= this.#nowNs);
    expect(due, () => `${name} was asked to stop before its time`);
    operation.cancelAsked = true;
  }

  onCompletion(completion: Completion): void {
    const operation = this.operations.find(({ descriptor }) => descriptor.userData === completion.userData);
    expect(operation !== undefined, () => `a completion names nothing that was asked: ${completion.userData}`);
    const { descriptor } = operation;
    const name = nameOf(operation);
    const status = completion.status as Status;
    expect(operation.state !== 'finished', () => `${name} completed twice`);
    expect(
      completion.sequence === BigInt(operation.sequence) &&
        completion.opcode === descriptor.opcode &&
        completion.slot === descriptor.slot,
      () => `the completion of ${name} names another operation`,
    );
    const allowed =
      operation.state === 'ended' ? this.#endOfTransfer(operation) : this.#endWithoutTransfer(operation, status);
    expect(status === allowed, () => `${name} ended with ${statusName(status)} and not with ${statusName(allowed)}`);
    this.#count(operation, status);
    operation.state = 'finished';
    operation.status = status;
    const generation = this.#grants.get(descriptor.grantId)?.slots[descriptor.slot]?.generation ?? 0;
    expect(
      completion.generation === BigInt(generation),
      () => `the completion of ${name} says generation ${completion.generation} and not ${generation}`,
    );
    const { queue } = operation;
    while (this.#isFinished(queue, this.#counts[queue] + 1)) this.#counts[queue] += 1;
  }

  /** After a call: whatever the rules demand has happened, and the figures agree. */
  settle(core: CoreState): void {
    let head = this.#headCommand();
    while (head && this.#gateOpen(head) && this.#awaitsReaders(head)) {
      this.#takeEffect(head);
      head = this.#headCommand();
    }
    const last = this.operations.at(-1);
    if (this.#call === 'accept' && last?.state === 'waiting') {
      if (last.queue === 'evict') this.#tally.gatedEvicts += 1;
      else this.#tally.gatedCommands += 1;
    }
    for (const operation of this.operations) this.#checkNothingLeft(operation);
    expect(!head || this.#closed || !this.#gateOpen(head), () => `${head && nameOf(head)} could start but waits`);
    this.#call = 'other';

    expect(core.evictCount === this.#counts.evict, () => `evictCount ${core.evictCount}, not ${this.#counts.evict}`);
    expect(
      core.commandCount === this.#counts.command,
      () => `commandCount ${core.commandCount}, not ${this.#counts.command}`,
    );
    expect(core.evictRoom === this.room('evict'), () => `room for ${core.evictRoom} evicts`);
    expect(core.commandRoom === this.room('command'), () => `room for ${core.commandRoom} commands`);
    expect(core.idle === (this.unfinished().length === 0), () => `idle is ${core.idle}`);
    expect(core.quiescent === (this.running().length === 0), () => `quiescent is ${core.quiescent}`);
    const deadlines = this.unfinished()
      .filter((operation) => operation.state !== 'takenEffect' && !operation.cancelAsked)
      .map((operation) => operation.deadlineNs);
    expect(
      this.#closed || core.nextDeadlineNs <= Math.min(Number.POSITIVE_INFINITY, ...deadlines),
      () => `would sleep until ${core.nextDeadlineNs} over a deadline at ${Math.min(...deadlines)}`,
    );
    for (const key of Object.keys(this.#tally) as (keyof Tally)[]) {
      const mine = JSON.stringify(this.#tally[key]);
      const its = JSON.stringify(core.tally[key]);
      expect(mine === its, () => `counter ${key} is ${its} and not ${mine}`);
    }
  }

  // The rules

  /** An operation that starts, or is refused or misses instead: everything before it has happened. */
  #checkStart(operation: Operation): void {
    const name = nameOf(operation);
    expect(operation.state === 'waiting', () => `${name} started twice`);
    expect(this.#gateOpen(operation), () => `${name} started before its gate`);
    if (operation.queue === 'evict') {
      const earlier = this.#earlierEvict(operation);
      expect(!earlier, () => `${name} overtook ${earlier && nameOf(earlier)} in its slot`);
      const readers = this.#touching(operation.descriptor);
      expect(readers.length === 0, () => `${name} started while ${readers.map(nameOf)} touched its slot`);
      return;
    }
    for (const earlier of this.operations) {
      if (earlier.queue !== 'command' || earlier.sequence >= operation.sequence || earlier.state !== 'waiting')
        continue;
      expect(this.#gateOpen(earlier) && this.#awaitsReaders(earlier), () => `${name} overtook ${nameOf(earlier)}`);
      this.#takeEffect(earlier);
    }
  }

  #gateOpen(operation: Operation): boolean {
    const other = operation.queue === 'evict' ? this.#counts.command : this.#counts.evict;
    return operation.descriptor.after <= BigInt(other);
  }

  #earlierEvict(operation: Operation): Operation | undefined {
    return this.operations.find(
      (other) =>
        other.queue === 'evict' &&
        other.sequence < operation.sequence &&
        other.state !== 'finished' &&
        other.descriptor.grantId === operation.descriptor.grantId &&
        other.descriptor.slot === operation.descriptor.slot,
    );
  }

  /** The operations whose transfers touch this slot now. */
  #touching(descriptor: Descriptor): Operation[] {
    return this.operations.filter(
      (other) =>
        (other.state === 'running' || other.state === 'ended') &&
        other.descriptor.grantId === descriptor.grantId &&
        other.descriptor.slot === descriptor.slot,
    );
  }

  /** What is wrong with a descriptor before anything is known of its slot. */
  #malformed(operation: Operation): Status | undefined {
    const { descriptor, queue } = operation;
    const opcodes: readonly number[] = queue === 'evict' ? [Opcode.evict] : [Opcode.refill, Opcode.delete];
    const flags = descriptor.opcode === Opcode.delete ? [0, DescriptorFlag.scrub] : [0];
    if (!opcodes.includes(descriptor.opcode) || !flags.includes(descriptor.flags)) return Status.badOpcode;
    if (descriptor.reserved0 !== 0 || descriptor.reserved1 !== 0n) return Status.badOpcode;
    const grant = this.#grants.get(descriptor.grantId);
    if (!grant) return Status.badGrant;
    if (descriptor.slot >= grant.slotCount) return Status.badSlot;
    if (descriptor.pieceBytes !== grant.pieceBytes) return Status.badLength;
    return undefined;
  }

  /** Why an evict that has come to its turn is refused. */
  #refusal(operation: Operation): Status | undefined {
    const { slot } = this.#place(operation);
    return operation.descriptor.generation <= BigInt(slot.generation) ? Status.badGeneration : undefined;
  }

  /** What becomes of a command that has come to its turn: a status at once, or a transfer. */
  #commandOutcome(operation: Operation): Status | 'transfer' {
    const malformed = this.#malformed(operation);
    if (malformed !== undefined) return malformed;
    const { descriptor } = operation;
    const { slot } = this.#place(operation);
    if (descriptor.generation !== BigInt(slot.generation)) {
      return slot.generation === 0 ? Status.missEmpty : Status.missOverwritten;
    }
    if (slot.state !== 'stored') return Status.missEmpty;
    if (descriptor.opcode === Opcode.delete) {
      return (descriptor.flags & DescriptorFlag.scrub) !== 0 ? 'transfer' : Status.ok;
    }
    return descriptor.tenantTag === slot.tenant ? 'transfer' : Status.missTenant;
  }

  #awaitsReaders(operation: Operation): boolean {
    return (
      operation.descriptor.opcode === Opcode.delete &&
      this.#commandOutcome(operation) === 'transfer' &&
      this.#touching(operation.descriptor).length > 0
    );
  }

  /** A scrubbing delete: the piece is gone before its bytes are. */
  #takeEffect(operation: Operation): void {
    this.#checkStart(operation);
    expect(
      operation.descriptor.opcode === Opcode.delete && this.#commandOutcome(operation) === 'transfer',
      () => `${nameOf(operation)} scrubs although it has nothing to delete`,
    );
    operation.state = 'takenEffect';
    this.#setState(this.#place(operation).slot, 'empty');
  }

  #endOfTransfer(operation: Operation): Status {
    const { end, descriptor } = operation;
    const { slot } = this.#place(operation);
    const name = nameOf(operation);
    expect(end !== undefined, () => `${name} has no transfer`);
    const [leftAtBegin, rightAtBegin, left, right] = end.halves;
    if (operation.kind === TransferKind.receive)
      this.#setState(slot, end.succeeded && !this.#closed ? 'stored' : 'empty');
    if (!end.succeeded) {
      if (this.#closed) return Status.cancelled;
      return operation.cancelAsked ? Status.deadline : Status.transferFailed;
    }
    if (operation.kind === TransferKind.send) {
      const evict = this.operations.findLast(
        (other) =>
          other.queue === 'evict' &&
          other.status === Status.ok &&
          other.descriptor.grantId === descriptor.grantId &&
          other.descriptor.slot === descriptor.slot &&
          other.descriptor.generation === descriptor.generation &&
          other.descriptor.tenantTag === descriptor.tenantTag,
      );
      const wanted = Number(evict?.descriptor.userData);
      const seen = [leftAtBegin, rightAtBegin, left, right];
      expect(
        seen.every((half) => half === wanted),
        () => `${name} saw ${seen} and not ${wanted}`,
      );
    }
    if (operation.kind === TransferKind.scrub)
      expect(left === 0 && right === 0, () => `${name} left ${left} and ${right}`);
    return Status.ok;
  }

  #endWithoutTransfer(operation: Operation, status: Status): Status {
    const name = nameOf(operation);
    if (status === Status.cancelled) {
      expect(this.#call === 'close', () => `${name} was cancelled although the session goes on`);
      return status;
    }
    expect(operation.state === 'waiting', () => `${name} ended while it was ${operation.state}`);
    if (status === Status.deadline) {
      expect(this.#call === 'expire' && operation.deadlineNs <= this.#nowNs, () => `${name} ended before its time`);
      if (operation.queue === 'evict') this.#forgetOverwritten(operation);
      return status;
    }
    if (operation.queue === 'command') {
      this.#checkStart(operation);
      const outcome = this.#commandOutcome(operation);
      expect(outcome !== 'transfer', () => `${name} ended with ${statusName(status)} instead of a transfer`);
      if (outcome === Status.ok) this.#setState(this.#place(operation).slot, 'empty');
      return outcome;
    }
    const malformed = this.#malformed(operation);
    if (malformed !== undefined) {
      expect(this.#call === 'accept', () => `${name} was refused late`);
      return malformed;
    }
    this.#checkStart(operation);
    const refusal = this.#refusal(operation);
    expect(refusal !== undefined, () => `${name} ended with ${statusName(status)} instead of a transfer`);
    return refusal;
  }

  /** The runtime may have written the slot before the evict could run, so the old piece is not to be trusted. */
  #forgetOverwritten(operation: Operation): void {
    const { slot } = this.#place(operation);
    if (slot.state === 'stored' && BigInt(slot.generation) < operation.descriptor.generation)
      this.#setState(slot, 'empty');
  }

  /** What must not be so between two calls. */
  #checkNothingLeft(operation: Operation): void {
    const name = nameOf(operation);
    expect(operation.state !== 'ended', () => `${name} has no completion although its transfer has ended`);
    if (operation.state === 'finished') return;
    if (operation.state === 'takenEffect') {
      expect(this.#touching(operation.descriptor).length > 0, () => `${name} waits for readers that are gone`);
      expect(!this.#closed, () => `${name} was not cancelled`);
      return;
    }
    if (this.#call === 'expire' && operation.deadlineNs <= this.#nowNs) {
      expect(operation.state === 'running' && operation.cancelAsked, () => `${name} outlived its deadline`);
    }
    if (operation.state === 'running') {
      expect(!this.#closed || operation.cancelAsked, () => `${name} was not asked to stop`);
      return;
    }
    expect(!this.#closed, () => `${name} was not cancelled`);
    if (operation.queue === 'evict') {
      const mayStart =
        this.#gateOpen(operation) &&
        !this.#earlierEvict(operation) &&
        this.#touching(operation.descriptor).length === 0;
      expect(!mayStart, () => `${name} could start but waits`);
    }
  }

  // Bookkeeping

  /** The first command that has not started; those behind it wait for it. */
  #headCommand(): Operation | undefined {
    return this.operations.find((operation) => operation.queue === 'command' && operation.state === 'waiting');
  }

  #find(queue: Queue, sequence: number): Operation {
    const found = this.operations.find((operation) => operation.queue === queue && operation.sequence === sequence);
    expect(found !== undefined, () => `nobody asked for ${queue} ${sequence}`);
    return found;
  }

  #isFinished(queue: Queue, sequence: number): boolean {
    return this.operations.some(
      (operation) => operation.queue === queue && operation.sequence === sequence && operation.state === 'finished',
    );
  }

  #place(operation: Operation): { grant: Grant; slot: Slot } {
    const grant = this.#grants.get(operation.descriptor.grantId);
    const slot = grant?.slots[operation.descriptor.slot];
    expect(grant !== undefined && slot !== undefined, () => `${nameOf(operation)} got past the check of its slot`);
    return { grant, slot };
  }

  #setState(slot: Slot, state: Slot['state']): void {
    this.#tally.storedSlots += Number(state === 'stored') - Number(slot.state === 'stored');
    slot.state = state;
  }

  #count(operation: Operation, status: Status): void {
    const tally = this.#tally;
    const { pieceBytes, opcode } = operation.descriptor;
    const miss = status === Status.missEmpty || status === Status.missOverwritten || status === Status.missTenant;
    const nanos = this.#nowNs - operation.acceptedNs;
    if (status === Status.deadline) tally.deadlines += 1;
    if (status === Status.missTenant) tally.tenantAlarms += 1;
    if (operation.queue === 'evict') {
      if (status !== Status.ok) {
        tally.evictFaults += 1;
        return;
      }
      tally.evicts += 1;
      tally.evictBytes += pieceBytes;
      addLatency(tally.evictLatency, nanos);
    } else if (opcode === Opcode.refill) {
      if (miss) tally.refillMisses += 1;
      else if (status !== Status.ok) tally.refillFaults += 1;
      else {
        tally.refills += 1;
        tally.refillBytes += pieceBytes;
        addLatency(tally.refillLatency, nanos);
      }
    } else {
      if (miss) tally.deleteMisses += 1;
      else if (status === Status.ok) tally.deletes += 1;
      if (operation.kind === TransferKind.scrub && operation.end?.succeeded) tally.scrubbedBytes += pieceBytes;
    }
  }
}
