import {
  CompletionLayout,
  type Descriptor,
  DescriptorFlag,
  DescriptorLayout,
  decodeCompletion,
  encodeDescriptor,
  Opcode,
  type Status,
} from '../../src/proto/generated.js';
import type { Answer, CoreEvent, CoreState } from './shard_core.js';
import { ShardCore } from './shard_core.js';
import { type Queue, ShardOracle } from './shard_oracle.js';

export const PIECE_BYTES = 100;

/** What an operation asks for; the rest of its descriptor is filled in. */
export type Request = Pick<Descriptor, 'opcode' | 'grantId' | 'slot'> & Partial<Descriptor>;

/** A shard core and the oracle that watches it, driven together with a clock of their own. */
export class ShardDriver {
  readonly core: ShardCore;
  readonly oracle: ShardOracle;
  nowNs = 1_000;
  #userData = 0n;

  /** `tamper` falsifies events on their way to the oracle: how the test shows that the oracle can see. */
  constructor(
    window: number,
    private readonly tamper: (event: CoreEvent) => CoreEvent = (event) => event,
  ) {
    this.core = new ShardCore(window);
    this.oracle = new ShardOracle(window);
  }

  addGrant(grantId: number, slots: number): void {
    this.oracle.addGrant(grantId, slots, PIECE_BYTES);
    const status = this.core.addGrant(grantId, slots, PIECE_BYTES);
    if (status !== 0) throw new Error(`addGrant answers ${status}`);
  }

  removeGrant(grantId: number): Status {
    const wanted = this.oracle.removeGrant(grantId);
    const status = this.core.removeGrant(grantId);
    if (status !== wanted) throw new Error(`removeGrant answers ${status} and not ${wanted}`);
    this.#observe();
    return wanted;
  }

  answer(answer: Answer): void {
    this.core.setAnswer(answer);
  }

  submit(queue: Queue, request: Request): void {
    this.#userData += 1n;
    const descriptor: Descriptor = {
      flags: 0,
      pieceBytes: PIECE_BYTES,
      generation: 1n,
      tenantTag: 1n,
      after: 0n,
      timeoutUs: 0,
      reserved0: 0,
      reserved1: 0n,
      ...request,
      userData: this.#userData,
    };
    const bytes = new Uint8Array(DescriptorLayout.bytes);
    encodeDescriptor(new DataView(bytes.buffer), 0, descriptor);
    this.oracle.accept(queue, descriptor, this.nowNs);
    if (queue === 'evict') this.core.acceptEvict(bytes, this.nowNs);
    else this.core.acceptCommand(bytes, this.nowNs);
    this.#observe();
  }

  evict(slot: number, generation: number, more: Partial<Descriptor> = {}): void {
    this.submit('evict', { opcode: Opcode.evict, grantId: 1, slot, generation: BigInt(generation), ...more });
  }
  refill(slot: number, generation: number, more: Partial<Descriptor> = {}): void {
    this.submit('command', { opcode: Opcode.refill, grantId: 1, slot, generation: BigInt(generation), ...more });
  }
  scrub(slot: number, generation: number, more: Partial<Descriptor> = {}): void {
    const flags = DescriptorFlag.scrub;
    this.submit('command', { opcode: Opcode.delete, flags, grantId: 1, slot, generation: BigInt(generation), ...more });
  }

  /** Ends one of the running transfers; answers false where none runs. */
  finish(pick: number, succeeded: boolean): boolean {
    const running = this.oracle.running();
    const operation = running[pick % running.length];
    if (operation?.kind === undefined) return false;
    this.oracle.finish(this.nowNs);
    this.core.finish(operation.kind, operation.sequence, succeeded, this.nowNs);
    this.#observe();
    return true;
  }

  pass(micros: number): void {
    this.nowNs += micros * 1000;
    this.oracle.expire(this.nowNs);
    this.core.expire(this.nowNs);
    this.#observe();
  }

  close(): void {
    this.oracle.close(this.nowNs);
    this.core.close(this.nowNs);
    this.#observe();
  }

  state(): CoreState {
    return this.core.state();
  }

  #observe(): void {
    for (const real of this.core.takeEvents()) {
      const event = this.tamper(real);
      if (event instanceof Uint8Array) {
        if (event.byteLength !== CompletionLayout.bytes) throw new Error('a completion of the wrong size');
        this.oracle.onCompletion(decodeCompletion(new DataView(event.buffer, event.byteOffset), 0));
      } else if (event.type === 'begin') {
        this.oracle.onBegin(event);
      } else if (event.type === 'end') {
        this.oracle.onEnd(event);
      } else {
        this.oracle.onCancel(event);
      }
    }
    this.oracle.settle(this.core.state());
  }
}
