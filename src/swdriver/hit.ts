import { Opcode, Status } from '../proto/generated.js';
import type { DriverCore } from './driver_core.js';
import type { Node } from './prefix_map.js';
import { type ColumnRef, checkLength, type PieceSink } from './runtime.js';
import type { Stripe } from './stripe.js';

/** How a refill ended. */
export interface RefillResult {
  /** Columns that the sink has got, from the first without a gap. */
  columns: number;
  /** Tokens of those columns: where the runtime has to go on computing. */
  tokens: number;
}

/**
 * The longest cached prefix of a prompt, pinned. Its columns stay readable until release(), until the pin deadline
 * passes, or until their shard dies. Release it in every case; `using` does so by itself.
 */
export class Hit implements Disposable {
  #held = true;
  #pinned = true;
  #refills = 0;
  readonly #epochs: readonly number[];

  /** @internal */
  constructor(
    private readonly core: DriverCore,
    private readonly tenantTag: bigint,
    private readonly path: readonly Node[],
    private readonly serials: readonly number[],
    /** Stripes that hold columns of the path. */
    private readonly stripes: readonly Stripe[],
    /** Tokens of the prefix, a whole number of columns. */
    readonly tokens: number,
    /** @internal Clock time at which the pin ends by itself. */
    readonly pinDeadline: number,
  ) {
    this.#epochs = stripes.map((stripe) => stripe.epoch);
  }

  /** Columns of the prefix. */
  get columns(): number {
    return this.path.length;
  }

  /** @internal The last column of the prefix. */
  get lastNode(): Node | undefined {
    return this.path.at(-1);
  }

  /** Whether the pin still holds. What was read in place before this was true is what had been stored. */
  get held(): boolean {
    const last = this.columns - 1;
    // The map is closed under prefixes: as long as the last column is in it, all are. Their tenant may be forgotten.
    return this.#held && (last < 0 || this.#current(last)) && this.#intact();
  }

  /**
   * Hands the pieces of the prefix to the runtime, in order. Ends early, without an error, where a column turns out to
   * be gone: its shard died, or the deadline passed. Throws only what the sink throws.
   */
  async refill(sink: PieceSink, options: { deadlineMs?: number } = {}): Promise<RefillResult> {
    const { core } = this;
    // The pin stays until the reading ends, also where the caller releases meanwhile.
    this.#refills += 1;
    try {
      const usable =
        this.#held && this.columns > 0 ? await this.#fetch(options.deadlineMs ?? core.settings.deadlineMs) : 0;
      let done = 0;
      while (done < usable && this.#current(done)) {
        const finished = this.#deliver(sink, done);
        if (finished !== undefined) await finished;
        // While the sink worked the shard may have taken its memory away, or the pin may have run out: then the sink
        // may have read anything.
        if (!this.#held || !this.#current(done) || !this.#intact()) break;
        done += 1;
      }
      core.stats.columnsRefilled += done;
      core.stats.refillMisses += this.columns - done;
      return { columns: done, tokens: done * core.map.columnTokens };
    } finally {
      this.#refills -= 1;
      if (!this.#held && this.#refills === 0) this.#unpin();
    }
  }

  /** Ends the pin. Answers whether it had held until now; if not, what was read in place since the last check is void. */
  release(): boolean {
    const { held } = this;
    this.#held = false;
    this.core.forgetHit(this);
    if (this.#refills === 0) this.#unpin();
    return held;
  }

  [Symbol.dispose](): void {
    this.release();
  }

  /** @internal The pin deadline has passed. */
  expire(): void {
    this.#held = false;
    this.#unpin();
  }

  #unpin(): void {
    if (!this.#pinned) return;
    this.#pinned = false;
    const last = this.path.length - 1;
    if (last >= 0) this.core.map.unpin(this.path[last] as Node, this.serials[last] as number);
  }

  /** Whether the shards have taken none of their memory back. */
  #intact(): boolean {
    return this.stripes.every((stripe, index) => stripe.epoch === this.#epochs[index] && stripe.intact());
  }

  #current(column: number): boolean {
    const { map } = this.core;
    const node = this.path[column] as Node;
    return map.isCurrent(node, this.serials[column] as number) && map.isStored(node);
  }

  /** Asks the shards for all columns and answers how many, from the first, may be read. */
  async #fetch(deadlineMs: number): Promise<number> {
    const { map } = this.core;
    const outcomes = new Uint16Array(this.columns).fill(Status.cancelled);
    await Promise.all(
      this.stripes.map(async (stripe) => {
        const columns: number[] = [];
        for (let column = 0; column < this.columns; column += 1) {
          if (this.#current(column) && map.stripe(this.path[column] as Node) === stripe.index) columns.push(column);
        }
        if (columns.length === 0) return;
        const outcome = await stripe.run({
          opcode: Opcode.refill,
          flags: 0,
          slots: Uint32Array.from(columns, (column) => map.slot(this.path[column] as Node)),
          generations: Float64Array.from(columns, (column) => map.generation(this.path[column] as Node)),
          tenantTag: this.tenantTag,
          deadlineMs,
        });
        for (const [item, column] of columns.entries()) outcomes[column] = outcome[item] as number;
      }),
    );
    const firstMiss = outcomes.findIndex((status) => status !== Status.ok);
    if (firstMiss < 0) return this.columns;
    const status = outcomes[firstMiss] as Status;
    // The shard has not got what the map promised: the map is wrong there, so it forgets.
    const lost = status === Status.missEmpty || status === Status.missOverwritten || status === Status.missTenant;
    if (lost && this.#current(firstMiss)) this.core.remove(this.path[firstMiss] as Node);
    return firstMiss;
  }

  #deliver(sink: PieceSink, column: number): void | Promise<void> {
    const { core } = this;
    const node = this.path[column] as Node;
    const ref: ColumnRef = { index: column, tenantTag: this.tenantTag, generation: core.map.generation(node) };
    const pieces = core.piecesOf(node);
    if ('read' in sink) return sink.read(ref, pieces);
    for (const [shard, piece] of pieces.entries()) {
      const target = sink.locate(ref, shard);
      checkLength(target, piece, shard);
      target.set(piece);
    }
  }
}
