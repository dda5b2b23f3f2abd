import { localError } from '../../common/errors.js';
import type { ModelGroup } from '../../swdriver/model.js';
import type { LayerGroup } from '../../swdriver/model_config.js';
import type { DecoderGraph } from './decoder_graph.js';
import type { KvState } from './kv_state.js';

/** One head of one plane: what of a column is in one run of bytes, in the store as in the tensors. */
interface HeadRun {
  readonly plane: number;
  readonly head: number;
  readonly rowBytes: number;
}

/** Layers of a decoder that are cached alike, by number. */
export type DecoderLayers = Pick<LayerGroup, 'name' | 'layers' | 'windowTokens'>;

/**
 * Where the keys and values of one group of layers lie in the pieces of a column. The piece of a shard holds heads of planes, one
 * behind the other, each as [columnTokens, dim]: what a token takes is the same in all columns, and each head is moved as one
 * run of bytes. Heads are dealt out to the shards in order, in proportion to the shards' shares.
 */
export class PieceLayout {
  readonly name: string;
  readonly windowTokens: number | undefined;
  /** Bytes of one token on each shard. */
  readonly bytesPerToken: readonly number[];
  readonly #runsOfShard: readonly (readonly HeadRun[])[];
  readonly #planes: readonly number[];

  constructor(
    { planes }: Pick<DecoderGraph, 'planes'>,
    { name, layers, windowTokens }: DecoderLayers,
    shares: readonly number[],
    private readonly columnTokens: number,
  ) {
    this.name = name;
    this.windowTokens = windowTokens;
    const held = new Set(layers);
    this.#planes = [...planes.keys()].filter((plane) => held.has(planes[plane]?.layer ?? -1));
    const runs = this.#planes.flatMap((plane) => {
      const { heads, rowBytes } = planes[plane] as (typeof planes)[number];
      return Array.from({ length: heads }, (_, head) => ({ plane, head, rowBytes }));
    });
    this.#runsOfShard = dealtOut(runs, shares);
    this.bytesPerToken = this.#runsOfShard.map((held) => held.reduce((sum, { rowBytes }) => sum + rowBytes, 0));
  }

  /** The group as a driver wants to know it. */
  get group(): ModelGroup {
    const { name, bytesPerToken, windowTokens } = this;
    return { name, bytesPerToken, ...(windowTokens === undefined ? {} : { windowTokens }) };
  }

  /** Copies a column of the state into its slots. */
  gather(state: KvState, column: number, pieces: readonly Uint8Array[]): void {
    const from = column * this.columnTokens;
    const to = from + this.columnTokens;
    for (const [shard, runs] of this.#runsOfShard.entries()) {
      const piece = pieces[shard] as Uint8Array;
      let at = 0;
      for (const { plane, head, rowBytes } of runs) {
        piece.set(state.rows(plane, head, from, to), at);
        at += this.columnTokens * rowBytes;
      }
    }
  }

  /** Copies a column from its slots into the state, as far as the state reaches. */
  scatter(state: KvState, column: number, pieces: readonly Uint8Array[]): void {
    const from = column * this.columnTokens;
    const to = Math.min(from + this.columnTokens, state.length);
    if (to <= from) return;
    for (const [shard, runs] of this.#runsOfShard.entries()) {
      const piece = pieces[shard] as Uint8Array;
      let at = 0;
      for (const { plane, head, rowBytes } of runs) {
        state.rows(plane, head, from, to).set(piece.subarray(at, at + (to - from) * rowBytes));
        at += this.columnTokens * rowBytes;
      }
    }
  }

  /**
   * Writes zeros for the tokens before a window: their layers do not look at them, but a number that is none would spoil what
   * it is multiplied with, weight 0 or not.
   */
  clear(state: KvState, tokens: number): void {
    for (const runs of this.#runsOfShard) {
      for (const { plane, head } of runs) state.rows(plane, head, 0, tokens).fill(0);
    }
  }
}

/** Runs in order, so many for each share that their bytes are in proportion to the shares, to the nearest run. */
function dealtOut(runs: readonly HeadRun[], shares: readonly number[]): HeadRun[][] {
  const total = shares.reduce((sum, share) => sum + share, 0);
  const bytes = runs.reduce((sum, { rowBytes }) => sum + rowBytes, 0);
  const dealt: HeadRun[][] = shares.map(() => []);
  let shard = 0;
  let before = 0;
  // Bytes at which the runs of the current shard end.
  let bound = ((shares[0] ?? 0) / total) * bytes;
  for (const run of runs) {
    while (shard < shares.length - 1 && before + run.rowBytes / 2 > bound) {
      shard += 1;
      bound += ((shares[shard] ?? 0) / total) * bytes;
    }
    dealt[shard]?.push(run);
    before += run.rowBytes;
  }
  return dealt;
}

/** Throws KVSS_BAD_INPUT where a shard would hold nothing. `groups`: the layouts of all groups. */
export function checkShards(groups: readonly PieceLayout[], shards: number): void {
  for (let shard = 0; shard < shards; shard += 1) {
    if (groups.some(({ bytesPerToken }) => (bytesPerToken[shard] ?? 0) > 0)) continue;
    throw localError(
      'KVSS_BAD_INPUT',
      `shares: shard ${shard} of ${shards} would hold nothing: the model has too few heads, or the share is too small`,
    );
  }
}
