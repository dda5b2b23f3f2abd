import { expect } from 'vitest';
import type { MissCause } from '../../src/swdriver/accounting/miss_cause.js';
import type { Hit } from '../../src/swdriver/hit.js';
import type { ModelGroup } from '../../src/swdriver/model.js';
import type { ColumnRef, PieceSink, PieceSource } from '../../src/swdriver/runtime.js';
import type { EvictResult, Sequence } from '../../src/swdriver/sequence.js';
import { SwDriver, type SwDriverOptions } from '../../src/swdriver/sw_driver.js';
import { ManualClock } from './manual_clock.js';
import { SimulatedBox } from './simulated_link.js';
import { sameBytes, stampOf } from './stamp.js';

export const COLUMN_TOKENS = 4;

export interface RigOptions {
  /** One group of full attention if left out, of `COLUMN_BYTES` a column. */
  groups?: readonly ModelGroup[];
  capacityColumns?: number;
  /** Daemons with a stripe each; one if left out. */
  stripes?: number;
  more?: Partial<SwDriverOptions>;
  /** Changes what the driver reaches. */
  connector?: (box: SimulatedBox) => SwDriverOptions['connector'];
  box?: SimulatedBox;
  clock?: ManualClock;
  start?: (options: SwDriverOptions) => Promise<SwDriver>;
}

const GROUPS: readonly ModelGroup[] = [{ name: 'full', bytesPerToken: [2, 4] }];
/** Bytes of a column of the one group, on both shards. */
export const COLUMN_BYTES = (2 + 4) * COLUMN_TOKENS;

/** What the tokens of a prompt were missed for; causes that are not named are 0. */
export type Missed = Partial<Record<MissCause, number>>;

/** A driver over shards that finish everything as it comes, on a clock that a test moves. All bytes are checked. */
export class Rig {
  private constructor(
    readonly clock: ManualClock,
    readonly box: SimulatedBox,
    readonly driver: SwDriver,
  ) {}

  static async create(options: RigOptions = {}): Promise<Rig> {
    const { groups = GROUPS, stripes = 1, clock = new ManualClock() } = options;
    const shards = groups[0]?.bytesPerToken.length ?? 0;
    const box =
      options.box ??
      new SimulatedBox(
        clock,
        Array.from({ length: stripes }, () => Array<number>(shards).fill(2 ** 26)),
      );
    for (const daemon of box.daemons) daemon.immediate = true;
    const driver = await (options.start ?? SwDriver.connect)({
      daemons: box.addresses,
      model: { id: 'model', revision: 'r1', dtype: 'bf16', layout: 'plain', groups, columnTokens: COLUMN_TOKENS },
      striping: 'within',
      capacityColumns: options.capacityColumns ?? 100,
      connector: options.connector?.(box) ?? box.connector,
      clock,
      reportMs: 0,
      ...options.more,
    });
    return new Rig(clock, box, driver);
  }

  /** Matches a prompt and stores its full columns. */
  async store(tenant: string, tokens: readonly number[], adapter = ''): Promise<EvictResult> {
    const sequence = this.driver.openSequence({ isolationId: tenant, adapter });
    sequence.match(Uint32Array.from(tokens)).release();
    return sequence.evict(this.source(tenant, tokens, adapter));
  }

  /** How many columns of a prompt are found, which counts as a use. What is found and missed has to make up the prompt. */
  find(tenant: string, tokens: readonly number[], adapter = ''): number {
    return this.lookUp(tenant, tokens, adapter).columns;
  }

  /** Why the rest of a prompt is missed, in tokens, by cause. */
  missed(tenant: string, tokens: readonly number[], options: { adapter?: string; storeUpTo?: number } = {}): Missed {
    const { adapter = '', storeUpTo } = options;
    return this.lookUp(tenant, tokens, adapter, storeUpTo === undefined ? {} : { storeUpTo }).missed;
  }

  lookUp(
    tenant: string,
    tokens: readonly number[],
    adapter = '',
    options: Parameters<Sequence['match']>[1] = {},
  ): { columns: number; missed: Missed } {
    const sequence = this.driver.openSequence({ isolationId: tenant, adapter });
    using hit = sequence.match(Uint32Array.from(tokens), options);
    const missed = Object.fromEntries(Object.entries(hit.missed).filter(([, count]) => count !== 0));
    const sum = Object.values(missed).reduce((all, count) => all + count, 0);
    expect(sum + hit.tokens).toBe(tokens.length);
    sequence.close();
    return { columns: hit.columns, missed };
  }

  /** Finds a prompt and refills it: columns that came back, all of them right. */
  async read(tenant: string, tokens: readonly number[], adapter = ''): Promise<number> {
    using hit = this.hit(tenant, tokens, adapter);
    return (await hit.refill(this.sink(tenant, tokens, adapter))).columns;
  }

  /** A pinned hit. */
  hit(tenant: string, tokens: readonly number[], adapter = ''): Hit {
    return this.driver.openSequence({ isolationId: tenant, adapter }).match(Uint32Array.from(tokens));
  }

  source(tenant: string, tokens: readonly number[], adapter = ''): PieceSource {
    return {
      write: (ref, pieces) => {
        for (const [shard, piece] of pieces.entries()) piece.set(expected(tenant, adapter, tokens, ref, shard, piece));
        return true;
      },
    };
  }

  /** `meanwhile` comes while a column is being read. */
  sink(
    tenant: string,
    tokens: readonly number[],
    adapter = '',
    meanwhile: (ref: ColumnRef) => Promise<void> | undefined = () => undefined,
  ): PieceSink {
    return {
      read: (ref, pieces) => {
        for (const [shard, piece] of pieces.entries()) {
          const right = sameBytes(piece, expected(tenant, adapter, tokens, ref, shard, piece));
          if (!right) throw new Error(`column ${ref.index} of ${ref.group} has wrong bytes on shard ${shard}`);
        }
        return meanwhile(ref);
      },
    };
  }

  /** Bytes in the slots of all shards that are not zero. */
  get nonZeroBytes(): number {
    return this.box.links.reduce((sum, { memory }) => sum + memory.filter((byte) => byte !== 0).length, 0);
  }

  /** Ends the driver; what it did to the shards must have been in order. */
  async end(): Promise<void> {
    expect(this.box.complaints).toEqual([]);
    await this.driver.close();
  }
}

function expected(
  tenant: string,
  adapter: string,
  tokens: readonly number[],
  { index, group, generation }: ColumnRef,
  shard: number,
  { length }: Uint8Array,
): Uint8Array {
  const prefix = tokens.slice(0, (index + 1) * COLUMN_TOKENS);
  const bytes = stampOf({ tenant, adapter: `${adapter}/${group}`, prefix, shard, generation }, length);
  // None is zero: what has been scrubbed is.
  return bytes.map((byte) => byte | 1);
}

/** Tokens of so many columns that nobody else has. */
export function prompt(columns: number, seed = 1): number[] {
  return Array.from({ length: columns * COLUMN_TOKENS }, (_, at) => seed * 10_000 + at);
}
