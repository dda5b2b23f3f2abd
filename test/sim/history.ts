import type { NativeLane, NativeStreamLane } from '../../src/binding/native.js';
import {
  type Completion,
  CompletionLayout,
  type Descriptor,
  DescriptorLayout,
  decodeCompletion,
  decodeDescriptor,
  Opcode,
  Status,
} from '../../src/proto/generated.js';

interface Issued {
  readonly descriptor: Descriptor;
  readonly sequence: number;
  status: Status | undefined;
}

/** Ends of a lane that both kinds have. */
type Counting = Pick<NativeLane, 'descriptors' | 'completions' | 'poll' | 'evictCount' | 'commandCount'>;

/**
 * Watches what goes into a lane and what comes out of it, and checks the order that is promised: two queues, one story.
 * It knows nothing of how it is done.
 */
export class History {
  completions = 0;
  gatedCommands = 0;

  constructor(private readonly complain: (what: string) => void) {}

  watchRings(lane: NativeLane): void {
    const story = new Story(this, this.complain, true);
    for (const [method, evict] of [
      ['submitEvicts', true],
      ['submitCommands', false],
    ] as const) {
      const submit = lane[method].bind(lane);
      intercept(lane, method, (count: number) => {
        const taken = submit(count);
        for (let index = 0; index < taken; index += 1) story.issue(descriptorAt(lane, index), evict);
        return taken;
      });
    }
    story.watchPolls(lane);
  }

  watchStream(lane: NativeStreamLane): void {
    const story = new Story(this, this.complain, false);
    const submit = lane.submit.bind(lane);
    intercept(lane, 'submit', (count: number) => {
      const taken = submit(count);
      for (let index = 0; index < taken; index += 1) {
        const descriptor = descriptorAt(lane, index);
        story.issue(descriptor, descriptor.opcode === Opcode.evict);
      }
      return taken;
    });
    story.watchPolls(lane);
  }
}

/** Native methods cannot be assigned to. */
function intercept<T extends object>(lane: T, method: keyof T, by: unknown): void {
  Object.defineProperty(lane, method, { value: by });
}

function descriptorAt(lane: Counting, index: number): Descriptor {
  return decodeDescriptor(new DataView(lane.descriptors), index * DescriptorLayout.bytes);
}

/** One session on one shard. */
class Story {
  readonly #evicts: Issued[] = [];
  readonly #commands: Issued[] = [];
  #evictCount = 0;
  #commandCount = 0;

  constructor(
    private readonly history: History,
    private readonly complain: (what: string) => void,
    /** Counters are published after the completions that they count. */
    private readonly completionsFirst: boolean,
  ) {}

  issue(descriptor: Descriptor, evict: boolean): void {
    const queue = evict ? this.#evicts : this.#commands;
    queue.push({ descriptor, sequence: queue.length + 1, status: undefined });
  }

  watchPolls(lane: Counting): void {
    const poll = lane.poll.bind(lane);
    intercept(lane, 'poll', () => {
      const before = { evicts: lane.evictCount(), commands: lane.commandCount() };
      const count = poll();
      const view = new DataView(lane.completions);
      // A closed lane counts nothing.
      if (count > 0 || lane.evictCount() > 0) this.#count(lane.evictCount(), lane.commandCount());
      for (let index = 0; index < count; index += 1) {
        this.#complete(decodeCompletion(view, index * CompletionLayout.bytes));
      }
      if (this.completionsFirst && count > 0) {
        for (const [queue, end] of [
          [this.#evicts, before.evicts],
          [this.#commands, before.commands],
        ] as const) {
          const missing = queue.slice(0, end).find(({ status }) => status === undefined);
          if (missing) this.complain(`operation ${missing.sequence} was counted before its completion had come`);
        }
      }
      return count;
    });
  }

  #count(evicts: number, commands: number): void {
    if (evicts < this.#evictCount || commands < this.#commandCount) this.complain('a counter went back');
    if (evicts > this.#evicts.length || commands > this.#commands.length) {
      this.complain('a counter is ahead of what was submitted');
    }
    this.#evictCount = evicts;
    this.#commandCount = commands;
  }

  #complete(completion: Completion): void {
    this.history.completions += 1;
    const evict = completion.opcode === Opcode.evict;
    const queue = evict ? this.#evicts : this.#commands;
    const issued = queue[Number(completion.sequence) - 1];
    const what = `${evict ? 'evict' : 'command'} ${completion.sequence}`;
    if (!issued) {
      this.complain(`${what} has completed and was never submitted`);
      return;
    }
    if (issued.status !== undefined) {
      this.complain(`${what} has completed twice`);
      return;
    }
    issued.status = completion.status as Status;
    const { descriptor } = issued;
    if (descriptor.userData !== completion.userData) this.complain(`${what} has completed as another operation`);
    const ran = completion.status <= Status.missTenant;
    const after = Number(descriptor.after);
    if (!evict && ran) {
      if (after > 0) this.history.gatedCommands += 1;
      if (this.#evictCount < after) this.complain(`${what} ran before evict ${after} had finished`);
    }
    if (evict && ran && this.#commandCount < after) this.complain(`${what} ran before command ${after} had finished`);
    if (descriptor.opcode === Opcode.refill && completion.status === Status.ok) this.#checkRefill(what, descriptor);
  }

  /** A refill that was served must have met exactly the evict that it names, stored and not overwritten. */
  #checkRefill(what: string, { slot, generation, after }: Descriptor): void {
    const source = this.#evicts.findLast(
      (evict) => evict.descriptor.slot === slot && evict.descriptor.generation === generation,
    );
    if (!source) {
      this.complain(`${what} was served a generation that was never evicted into slot ${slot}`);
      return;
    }
    if (source.status !== undefined && source.status !== Status.ok) {
      this.complain(`${what} was served what evict ${source.sequence} had failed to store`);
    }
    const newer = this.#evicts.find(
      (evict) =>
        evict.sequence > source.sequence &&
        evict.sequence <= Number(after) &&
        evict.descriptor.slot === slot &&
        evict.status === Status.ok,
    );
    if (newer) this.complain(`${what} was served what evict ${newer.sequence} had overwritten`);
  }
}
