import { z } from 'zod';
import { type KvssError, localError, messageOf } from '../common/errors.js';
import { describeIssue, size } from '../common/schema.js';
import { describeModel } from '../swdriver/model_config.js';
import { allocationShape, type ShardTable, shardTable } from './allocation.js';
import { emptyPlan, type Job, type MemoryPlan } from './memory_plan.js';

const MAX_NODES = 1024;
/** 1 PiB: counts of bytes stay exact. */
const MAX_NODE_BYTES = 2 ** 50;

const memory = size.refine((bytes) => bytes <= MAX_NODE_BYTES, 'more than 1 PiB');
const { boxes, ...spread } = allocationShape;

const modelSchema = z.strictObject({
  config: z.string().min(1),
  draftConfig: z.string().min(1).optional(),
  dtype: z.string().optional(),
  ...spread,
});

const jobSchema = z.strictObject({
  name: z.string().min(1).max(64),
  boxes: z.number().int().min(1),
  /** Bytes of a token on each of its shards. */
  bytesPerToken: z.array(z.number().int().min(1)).min(1).max(4096).optional(),
  /** In place of that, a model and how it lies on the boxes. */
  model: modelSchema.optional(),
  /** Name of the node of each shard. If left out the shards of a box are on one node, box after box and node after node. */
  nodes: z.array(z.string()).optional(),
});
type JobInput = z.output<typeof jobSchema>;

const fileSchema = z.strictObject({
  /** Boxes of the cluster. */
  boxes: z.number().int().min(1),
  nodes: z
    .array(z.strictObject({ name: z.string().min(1), memory }))
    .min(1)
    .max(MAX_NODES),
  /** Grants are multiples of this. */
  increment: memory.default(2 ** 30),
  /** Least grant of a shard; one increment if left out. */
  floor: z.union([z.literal(0), memory]).optional(),
  /** Part of its fair share that a new job gets at first. */
  firstGrant: z.number().min(0).max(1).default(0.5),
  jobs: z.array(jobSchema).min(1).max(256),
});

/** What a file of a memory plan says: nodes, and jobs in the order in which they come. */
export interface MemoryFile {
  readonly empty: MemoryPlan;
  readonly jobs: readonly Job[];
}

/**
 * Checks what a file says and fills in defaults. `readConfig` reads the config.json of a model by the path in the file. Throws
 * KVSS_BAD_INPUT with a message that names the file and the key.
 */
export function parseMemoryFile(input: unknown, source: string, readConfig: (path: string) => unknown): MemoryFile {
  const parsed = fileSchema.safeParse(input);
  const wrong: Wrong = (key, what) => localError('KVSS_BAD_INPUT', `${source}: '${key}': ${what}`);
  if (!parsed.success) throw localError('KVSS_BAD_INPUT', `${source}: ${describeIssue(parsed.error)}`);
  const { nodes, increment, floor = increment, firstGrant, jobs, ...cluster } = parsed.data;
  const rules = { boxes: cluster.boxes, incrementBytes: increment, floorBytes: floor, firstGrantShare: firstGrant };
  const names = nodes.map(({ name }) => name);
  const twice = names.findIndex((name, index) => names.indexOf(name) !== index);
  if (twice >= 0) throw wrong(`nodes.${twice}.name`, `'${names[twice]}' is there twice`);
  let boxesBefore = 0;
  return {
    empty: emptyPlan(
      nodes.map(({ name, memory: memoryBytes }) => ({ name, memoryBytes })),
      rules,
    ),
    jobs: jobs.map((job, index): Job => {
      const wrongJob: Wrong = (key, what) => wrong(`jobs.${index}.${key}`, what);
      const bytesPerToken = bytesOfShards(job, readConfig, wrongJob);
      const places = nodesOfShards(job, bytesPerToken.length, names, boxesBefore, wrongJob);
      boxesBefore += job.boxes;
      const shards = bytesPerToken.map((bytes, shard) => ({ node: places[shard] as number, bytesPerToken: bytes }));
      return { name: job.name, boxes: job.boxes, shards };
    }),
  };
}

type Wrong = (key: string, what: string) => KvssError;

/** Nodes by index: those that are named, or else the one of each box. */
function nodesOfShards(
  { nodes, boxes: boxCount }: JobInput,
  shards: number,
  names: readonly string[],
  boxesBefore: number,
  wrong: Wrong,
): number[] {
  if (nodes === undefined) {
    const perBox = shards / boxCount;
    if (Number.isInteger(perBox)) {
      return Array.from({ length: shards }, (_, shard) => (boxesBefore + Math.floor(shard / perBox)) % names.length);
    }
    throw wrong('nodes', `missing: ${shards} shards are not as many on each of ${boxCount} boxes`);
  }
  if (nodes.length !== shards) throw wrong('nodes', `${nodes.length} nodes for ${shards} shards`);
  return nodes.map((name, shard) => {
    const node = names.indexOf(name);
    if (node < 0) throw wrong(`nodes.${shard}`, `there is no node '${name}'`);
    return node;
  });
}

function bytesOfShards(
  { bytesPerToken, model, boxes: boxCount }: JobInput,
  readConfig: (path: string) => unknown,
  wrong: Wrong,
): readonly number[] {
  if ((bytesPerToken === undefined) === (model === undefined)) {
    throw wrong('bytesPerToken', "a job has either this or 'model'");
  }
  if (model === undefined) return bytesPerToken as number[];
  const { shards } = tableOf(model, boxCount, readConfig, wrong);
  const empty = shards.find((shard) => shard.bytesPerToken === 0);
  if (empty === undefined) return shards.map((shard) => shard.bytesPerToken);
  const where = `domain ${empty.domain} of box ${empty.box}`;
  throw wrong('model', `nothing lies on ${where}; try fewer boxes or 'unit: number'`);
}

function tableOf(
  { config, draftConfig, dtype, ...allocation }: NonNullable<JobInput['model']>,
  boxCount: number,
  readConfig: (path: string) => unknown,
  wrong: Wrong,
): ShardTable {
  try {
    const model = describeModel(readConfig(config), {
      ...(dtype === undefined ? {} : { dtype }),
      ...(draftConfig === undefined ? {} : { draft: readConfig(draftConfig) }),
    });
    return shardTable(model, { ...allocation, boxes: boxCount });
  } catch (thrown) {
    // Which of the jobs it is.
    throw wrong('model', messageOf(thrown));
  }
}
