import { KvssError, localError } from '../common/errors.js';
import { formatBytes } from '../common/units.js';
import { Status } from '../proto/generated.js';
import { effectiveTokens, type GrantRules, grantsFor, largestWhere } from './split.js';

/** A machine with memory for shards. */
export interface MemoryNode {
  readonly name: string;
  readonly memoryBytes: number;
}

/** A shard of a job: on which node its memory is, by index, and the bytes that a token takes there. */
export interface JobShard {
  readonly node: number;
  readonly bytesPerToken: number;
}

export interface Job {
  /** Unique in a plan. */
  readonly name: string;
  /** Boxes that it uses: what its fair share goes by. */
  readonly boxes: number;
  readonly shards: readonly JobShard[];
}

export interface PlanRules extends GrantRules {
  /** Boxes of the cluster. */
  readonly boxes: number;
  /** What a new job gets at first, as a part of its fair share, 0..1. */
  readonly firstGrantShare: number;
}

interface Holding {
  readonly job: Job;
  /** What its grants hold. They are the least ones that do, so this number says how large each of them is. */
  readonly tokens: number;
}

/**
 * Who has how much memory. Never changes: every operation answers another plan. In every plan the grants on a node take no more
 * than its memory, each is a multiple of the increment and no less than the floor, and those of a job are in proportion to the
 * bytes that a token takes on each shard.
 */
export interface MemoryPlan {
  readonly nodes: readonly MemoryNode[];
  readonly rules: PlanRules;
  /** By name, in the order in which they were admitted. */
  readonly jobs: ReadonlyMap<string, Holding>;
}

/** A plan without jobs. Throws KVSS_BAD_INPUT, naming the key, for figures that make no sense. */
export function emptyPlan(nodes: readonly MemoryNode[], rules: PlanRules): MemoryPlan {
  const check = (holds: boolean, key: string, what: string) => {
    if (!holds) throw localError('KVSS_BAD_INPUT', `memory plan: '${key}': ${what}`);
  };
  const { boxes, incrementBytes, floorBytes, firstGrantShare } = rules;
  check(nodes.length > 0, 'nodes', 'there is none');
  for (const { name, memoryBytes } of nodes) {
    check(Number.isSafeInteger(memoryBytes) && memoryBytes > 0, `nodes.${name}`, `${memoryBytes} bytes of memory`);
  }
  check(Number.isSafeInteger(boxes) && boxes > 0, 'boxes', `${boxes} is no number of boxes`);
  check(Number.isSafeInteger(incrementBytes) && incrementBytes > 0, 'increment', `${incrementBytes} bytes`);
  check(Number.isSafeInteger(floorBytes) && floorBytes >= 0, 'floor', `${floorBytes} bytes`);
  check(floorBytes % incrementBytes === 0, 'floor', `${floorBytes} bytes are no multiple of ${incrementBytes}`);
  check(firstGrantShare >= 0 && firstGrantShare <= 1, 'firstGrant', `${firstGrantShare} is not in 0..1`);
  return { nodes, rules, jobs: new Map() };
}

/** Bytes of the grant of each shard of a job, in its order. */
export function grantsOf(plan: MemoryPlan, name: string): number[] {
  const { job, tokens } = holdingOf(plan, name);
  return jobGrants(job, tokens, plan.rules);
}

/** Tokens that a job has room for: `min over its shards of floor(grant / bytesPerToken)`. */
export function tokensOf(plan: MemoryPlan, name: string): number {
  return holdingOf(plan, name).tokens;
}

/** Bytes of each node that nobody has. */
export function freeBytes(plan: MemoryPlan): number[] {
  const free = plan.nodes.map(({ memoryBytes }) => memoryBytes);
  for (const { job, tokens } of plan.jobs.values()) {
    for (const [node, bytes] of bytesOnNodes(plan, job, tokens)) free[node] = (free[node] as number) - bytes;
  }
  return free;
}

/**
 * Tokens of a job's fair share. On every node the floors of all jobs come off first. Of the rest a job gets a part in proportion
 * to its boxes, spread over nodes as its bytes of a token are. Boxes of the cluster that no job uses keep their part, so
 * that nobody has to know which jobs will come. The node that gives least decides.
 */
export function fairTokens(plan: MemoryPlan, name: string): number {
  return fairTokensBeside(nodeLoads(plan), plan, holdingOf(plan, name).job);
}

function fairTokensBeside(loads: readonly NodeLoad[], plan: MemoryPlan, job: Job): number {
  const shares = fairShares(loads, plan, job);
  const fits = (tokens: number) =>
    [...bytesOnNodes(plan, job, tokens)].every(([node, bytes]) => bytes <= (shares.get(node) as number));
  return largestWhere(floorTokens(job, plan.rules), mostTokens(plan, job), fits);
}

/**
 * A new job gets a part of its fair share, and never less than its floors. Who has more than his fair share gives back what is
 * needed for that. Throws KVSS_BAD_INPUT, naming the job and the key, for a job that makes no sense or has more boxes than
 * are free, and KVSS_NO_MEMORY where the floors of all jobs do not fit.
 */
export function admit(plan: MemoryPlan, job: Job): MemoryPlan {
  checkJob(plan, job);
  const joined = withTokens(plan, { job, tokens: 0 });
  checkFloors(joined, job);
  const first = Math.floor(fairTokens(joined, job.name) * plan.rules.firstGrantShare);
  return makeRoom(joined, job.name, first);
}

/**
 * Room for so many tokens, as near as it comes. Up to its fair share a job always gets it, and who has more than his gives back what is
 * needed; beyond that it borrows what is free. A job that has more already keeps it. Throws KVSS_BAD_INPUT for a job that is
 * not there.
 */
export function grow(plan: MemoryPlan, name: string, tokens: number): MemoryPlan {
  const { job, tokens: now } = holdingOf(plan, name);
  const asked = Math.floor(tokens);
  const owed = Math.min(asked, fairTokens(plan, name));
  const roomy = owed > now ? makeRoom(plan, name, owed) : plan;
  const least = tokensOf(roomy, name);
  const wanted = Math.min(asked, mostTokens(plan, job));
  return withTokens(roomy, { job, tokens: largestWhere(least, wanted, (each) => fitsAt(roomy, job, each)) });
}

/** Gives back what a job has beyond so many tokens; its floors stay. Throws KVSS_BAD_INPUT for a job that is not there. */
export function shrink(plan: MemoryPlan, name: string, tokens: number): MemoryPlan {
  const { job, tokens: now } = holdingOf(plan, name);
  return withTokens(plan, { job, tokens: Math.min(now, Math.max(0, Math.floor(tokens))) });
}

/** A job ends and gives everything back. Throws KVSS_BAD_INPUT for a job that is not there. */
export function remove(plan: MemoryPlan, name: string): MemoryPlan {
  holdingOf(plan, name);
  return { ...plan, jobs: new Map([...plan.jobs].filter(([each]) => each !== name)) };
}

/** Every job gets its fair share: the same whatever the order in which they came. */
export function rebalance(plan: MemoryPlan): MemoryPlan {
  const loads = nodeLoads(plan);
  const fair = ({ job }: Holding): Holding => ({ job, tokens: fairTokensBeside(loads, plan, job) });
  return { ...plan, jobs: new Map([...plan.jobs].map(([name, holding]) => [name, fair(holding)])) };
}

/** A grant that is another one in a later plan. */
export interface GrantChange {
  readonly job: string;
  readonly shard: number;
  readonly node: number;
  readonly bytesBefore: number;
  readonly bytesAfter: number;
}

/** What has to be done to get from one plan to another: first what gives memory back, then what takes it. */
export function changesBetween(before: MemoryPlan, after: MemoryPlan): GrantChange[] {
  const names = [...new Set([...before.jobs.keys(), ...after.jobs.keys()])];
  const changes = names.flatMap((name) => {
    const job = (after.jobs.get(name) ?? before.jobs.get(name))?.job as Job;
    const [had, has] = [before, after].map((plan) => (plan.jobs.has(name) ? grantsOf(plan, name) : []));
    return job.shards.map(({ node }, shard): GrantChange => {
      return { job: name, shard, node, bytesBefore: had?.[shard] ?? 0, bytesAfter: has?.[shard] ?? 0 };
    });
  });
  const changed = changes.filter(({ bytesBefore, bytesAfter }) => bytesBefore !== bytesAfter);
  const less = ({ bytesBefore, bytesAfter }: GrantChange) => bytesAfter < bytesBefore;
  return [...changed.filter(less), ...changed.filter((change) => !less(change))];
}

/** Weights are counted in these parts of a box, so that shares are exact and never add up to more than there is. */
const WEIGHT_PARTS = 2 ** 20;

/** What the jobs of a plan want of a node, however much they have. */
interface NodeLoad {
  floorBytes: number;
  weight: number;
}

function nodeLoads(plan: MemoryPlan): NodeLoad[] {
  const loads = plan.nodes.map((): NodeLoad => ({ floorBytes: 0, weight: 0 }));
  for (const { job } of plan.jobs.values()) {
    for (const [node, bytes] of bytesOnNodes(plan, job, 0)) (loads[node] as NodeLoad).floorBytes += bytes;
    for (const [node, weight] of weightsOf(job)) (loads[node] as NodeLoad).weight += weight;
  }
  return loads;
}

/** Bytes of the fair share of a job on each node where it has shards. */
function fairShares(loads: readonly NodeLoad[], plan: MemoryPlan, job: Job): Map<number, number> {
  const { nodes, rules } = plan;
  const clusterBytes = nodes.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  const own = bytesOnNodes(plan, job, 0);
  return new Map(
    [...weightsOf(job)].map(([node, weight]) => {
      const { memoryBytes } = nodes[node] as MemoryNode;
      const load = loads[node] as NodeLoad;
      // What all boxes of the cluster would weigh here if every node had as many as its memory is worth.
      const all = Math.round((WEIGHT_PARTS * rules.boxes * memoryBytes) / clusterBytes);
      const of = Math.max(all, load.weight);
      const spare = memoryBytes - load.floorBytes;
      return [node, (own.get(node) as number) + Number((BigInt(spare) * BigInt(weight)) / BigInt(of))];
    }),
  );
}

/** Boxes of a job, spread over the nodes as its bytes of a token are. */
function weightsOf({ boxes, shards }: Job): Map<number, number> {
  const total = shards.reduce((sum, { bytesPerToken }) => sum + bytesPerToken, 0);
  const bytes = new Map<number, number>();
  for (const { node, bytesPerToken } of shards) bytes.set(node, (bytes.get(node) ?? 0) + bytesPerToken);
  return new Map([...bytes].map(([node, here]) => [node, Math.round((WEIGHT_PARTS * boxes * here) / total)]));
}

/** Sets a job to as many tokens as it is owed; who has more than his fair share gives back until they fit. */
function makeRoom(plan: MemoryPlan, name: string, tokens: number): MemoryPlan {
  const { job } = holdingOf(plan, name);
  const loads = nodeLoads(plan);
  const lenders = [...plan.jobs.values()]
    .filter((each) => each.job.name !== name)
    .map(({ job: lender, tokens: now }) => ({ lender, now, fair: fairTokensBeside(loads, plan, lender) }))
    .filter(({ now, fair }) => now > fair);
  const surplus = ({ lender, now, fair }: (typeof lenders)[number]) => (now - fair) * bytesPerTokenOf(lender);
  // By name where they have equally much too much: the order in which jobs came decides nothing.
  lenders.sort((a, b) => surplus(b) - surplus(a) || (a.lender.name < b.lender.name ? -1 : 1));
  let roomy = plan;
  for (const { lender, now, fair } of lenders) {
    const left = (kept: number) => withTokens(roomy, { job: lender, tokens: kept });
    // Where there is room on all of its nodes a lender helps nobody by giving back.
    const enough = (kept: number) => {
      const free = freeBytes(withTokens(left(kept), { job, tokens }));
      return lender.shards.every(({ node }) => (free[node] as number) >= 0);
    };
    roomy = left(largestWhere(fair, now, enough));
  }
  return withTokens(roomy, { job, tokens });
}

/** Whether so many tokens of a job fit beside what the others have. */
function fitsAt(plan: MemoryPlan, job: Job, tokens: number): boolean {
  return freeBytes(withTokens(plan, { job, tokens })).every((bytes) => bytes >= 0);
}

/** No more than the smallest of its nodes could hold if it were alone there. */
function mostTokens(plan: MemoryPlan, job: Job): number {
  const memoryOf = (node: number) => (plan.nodes[node] as MemoryNode).memoryBytes;
  return Math.min(...job.shards.map(({ node, bytesPerToken }) => Math.floor(memoryOf(node) / bytesPerToken)));
}

/** Tokens that the floors hold. */
function floorTokens(job: Job, rules: PlanRules): number {
  return effectiveTokens(jobGrants(job, 0, rules), bytesPerTokenOfShards(job));
}

function bytesOnNodes({ rules }: MemoryPlan, job: Job, tokens: number): Map<number, number> {
  const onNodes = new Map<number, number>();
  for (const [shard, bytes] of jobGrants(job, tokens, rules).entries()) {
    const { node } = job.shards[shard] as JobShard;
    onNodes.set(node, (onNodes.get(node) ?? 0) + bytes);
  }
  return onNodes;
}

function jobGrants(job: Job, tokens: number, rules: PlanRules): number[] {
  return grantsFor(tokens, bytesPerTokenOfShards(job), rules);
}

const bytesPerTokenOfShards = (job: Job) => job.shards.map(({ bytesPerToken }) => bytesPerToken);
const bytesPerTokenOf = (job: Job) => bytesPerTokenOfShards(job).reduce((sum, bytes) => sum + bytes, 0);

/** The plan with what one job has: all the tokens that the grants for these hold, which floors and increments may make more. */
function withTokens(plan: MemoryPlan, { job, tokens }: Holding): MemoryPlan {
  const held = effectiveTokens(jobGrants(job, tokens, plan.rules), bytesPerTokenOfShards(job));
  return { ...plan, jobs: new Map(plan.jobs).set(job.name, { job, tokens: held }) };
}

function holdingOf(plan: MemoryPlan, name: string): Holding {
  const holding = plan.jobs.get(name);
  if (!holding) throw localError('KVSS_BAD_INPUT', `memory plan: there is no job '${name}'`);
  return holding;
}

function checkJob(plan: MemoryPlan, { name, boxes, shards }: Job): void {
  const wrong = (key: string, what: string) => localError('KVSS_BAD_INPUT', `job '${name}': '${key}': ${what}`);
  if (plan.jobs.has(name)) throw wrong('name', 'there is one of that name already');
  if (!Number.isSafeInteger(boxes) || boxes < 1) throw wrong('boxes', `${boxes} is no number of boxes`);
  const used = [...plan.jobs.values()].reduce((sum, { job }) => sum + job.boxes, 0);
  if (used + boxes > plan.rules.boxes) {
    throw wrong('boxes', `${boxes}, and ${plan.rules.boxes - used} of the ${plan.rules.boxes} of the cluster are free`);
  }
  if (shards.length === 0) throw wrong('bytesPerToken', 'a job has at least one shard');
  for (const { node, bytesPerToken } of shards) {
    if (plan.nodes[node] === undefined) throw wrong('nodes', `there is no node ${node}`);
    if (Number.isSafeInteger(bytesPerToken) && bytesPerToken > 0) continue;
    throw wrong('bytesPerToken', `${bytesPerToken} is no number of bytes`);
  }
}

function checkFloors(plan: MemoryPlan, job: Job): void {
  const floors = [...plan.jobs.values()].map((each) => bytesOnNodes(plan, each.job, 0));
  for (const [node, { name, memoryBytes }] of plan.nodes.entries()) {
    const bytes = floors.reduce((sum, onNodes) => sum + (onNodes.get(node) ?? 0), 0);
    if (bytes <= memoryBytes) continue;
    const what = `the floors of all jobs take ${formatBytes(bytes)} on node '${name}', which has ${formatBytes(memoryBytes)}`;
    throw KvssError.ofStatus(Status.noMemory, `job '${job.name}': ${what}`);
  }
}
