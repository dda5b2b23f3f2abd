import { admit, freeBytes, grantsOf, grow, type Job, type MemoryPlan, rebalance, tokensOf } from './memory_plan.js';
import { effectiveTokens, equalGrants, wasteBytes } from './split.js';

/** A shard in both splits. */
export interface ComparedShard {
  readonly node: string;
  readonly bytesPerToken: number;
  readonly equalBytes: number;
  readonly equalWasteBytes: number;
  readonly fairBytes: number;
  readonly fairWasteBytes: number;
}

/** A job in both splits. All counts of tokens are effective: the shard that is full first decides. */
export interface ComparedJob {
  readonly name: string;
  readonly boxes: number;
  /** Where every shard on a node gets as much of it. */
  readonly equalTokens: number;
  /** Right after it was admitted, with what those who came later left it. */
  readonly firstTokens: number;
  /** With its fair share, in proportion. */
  readonly fairTokens: number;
  /** With what is free besides, handed out in the order of the jobs. */
  readonly lentTokens: number;
  readonly shards: readonly ComparedShard[];
}

export interface SplitComparison {
  readonly jobs: readonly ComparedJob[];
  readonly nodes: readonly { readonly name: string; readonly memoryBytes: number; readonly fairFreeBytes: number }[];
  /** Bytes of columns that all jobs together can keep. */
  readonly equalEffectiveBytes: number;
  readonly fairEffectiveBytes: number;
  readonly lentEffectiveBytes: number;
}

/**
 * Jobs come in this order and get fair shares in proportion; beside it, the naive split of every node. Throws as `admit`
 * does where a job cannot come.
 */
export function compareSplits(empty: MemoryPlan, jobs: readonly Job[]): SplitComparison {
  const first = jobs.reduce(admit, empty);
  const fair = rebalance(first);
  const lent = jobs.reduce((plan, { name }) => grow(plan, name, Number.POSITIVE_INFINITY), fair);
  const shardsOnNode = empty.nodes.map(
    (_, node) => jobs.flatMap(({ shards }) => shards).filter((shard) => shard.node === node).length,
  );
  const equalOnNode = empty.nodes.map(
    ({ memoryBytes }, node) => equalGrants(memoryBytes, shardsOnNode[node] as number, empty.rules)[0] ?? 0,
  );
  const compared = jobs.map(({ name, boxes, shards }): ComparedJob => {
    const bytesPerToken = shards.map((shard) => shard.bytesPerToken);
    const equal = shards.map(({ node }) => equalOnNode[node] as number);
    const grants = grantsOf(fair, name);
    const [equalWaste, fairWaste] = [equal, grants].map((each) => wasteBytes(each, bytesPerToken));
    return {
      name,
      boxes,
      equalTokens: effectiveTokens(equal, bytesPerToken),
      firstTokens: tokensOf(first, name),
      fairTokens: tokensOf(fair, name),
      lentTokens: tokensOf(lent, name),
      shards: shards.map((shard, index) => ({
        node: empty.nodes[shard.node]?.name as string,
        bytesPerToken: shard.bytesPerToken,
        equalBytes: equal[index] as number,
        equalWasteBytes: equalWaste?.[index] as number,
        fairBytes: grants[index] as number,
        fairWasteBytes: fairWaste?.[index] as number,
      })),
    };
  });
  const free = freeBytes(fair);
  const effective = (tokens: (job: ComparedJob) => number) =>
    compared.reduce(
      (sum, job) => sum + tokens(job) * job.shards.reduce((bytes, shard) => bytes + shard.bytesPerToken, 0),
      0,
    );
  return {
    jobs: compared,
    nodes: empty.nodes.map((node, index) => ({ ...node, fairFreeBytes: free[index] as number })),
    equalEffectiveBytes: effective((job) => job.equalTokens),
    fairEffectiveBytes: effective((job) => job.fairTokens),
    lentEffectiveBytes: effective((job) => job.lentTokens),
  };
}
