import { z } from 'zod';
import { localError } from '../common/errors.js';
import { describeIssue, size } from '../common/schema.js';
import { describeModel } from '../swdriver/model_config.js';
import { allocationShape, shardTable } from './allocation.js';
import { emptyPlan, type Job, type MemoryPlan } from './memory_plan.js';

const MAX_NODES = 1024;
/** 1 PiB: counts of bytes stay exact. */
const MAX_NODE_BYTES = 2 ** 50;

const memory = size.refine((bytes) => bytes <= MAX_NODE_BYTES, 'more than 1 PiB');
const { boxes, ...spread } = allocationShape;

const jobSchema = z.strictObject({
  name: z.string().min(1).max(64),
  boxes: z.number().int().min(1),
  /** Bytes of a token on each of its shards. */
  bytesPerToken: z.array(z.number().int().min(1)).min(1).max(4096).optional(),
  /** In place of that, a model and how it lies on the boxes. */
  model: z
    .strictObject({
      config: z.string().min(1),
      draftConfig: z.string().min(1).optional(),
      dtype: z.string().optional(),
      ...spread,
    })
    .optional(),
  /** Name of the node of each shard. If left out the shards of a box are on one node, box after box and node after node. */
  nodes: z.array(z.string()).optional(),
});

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
  const wrong = (key: string, what: string) => localError('KVSS_BAD_INPUT', `${source}: '${key}': ${what}`);
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
      const key = `jobs.${index}`;
      const bytesPerToken = bytesOfShards(job, key);
      const places = job.nodes?.map((name, shard) => {
        const node = names.indexOf(name);
        if (node < 0) throw wrong(`${key}.nodes.${shard}`, `there is no node '${name}'`);
        return node;
      });
      if (places !== undefined && places.length !== bytesPerToken.length) {
        throw wrong(`${key}.nodes`, `${places.length} nodes for ${bytesPerToken.length} shards`);
      }
      if (places === undefined && bytesPerToken.length % job.boxes !== 0) {
        throw wrong(
          `${key}.nodes`,
          `missing: ${bytesPerToken.length} shards are not as many on each of ${job.boxes} boxes`,
        );
      }
      const perBox = bytesPerToken.length / job.boxes;
      const first = boxesBefore;
      boxesBefore += job.boxes;
      const shards = bytesPerToken.map((bytes, shard) => ({
        node: places?.[shard] ?? (first + Math.floor(shard / perBox)) % nodes.length,
        bytesPerToken: bytes,
      }));
      return { name: job.name, boxes: job.boxes, shards };
    }),
  };

  function bytesOfShards(job: z.output<typeof jobSchema>, key: string): readonly number[] {
    if ((job.bytesPerToken === undefined) === (job.model === undefined)) {
      throw wrong(`${key}.bytesPerToken`, "a job has either this or 'model'");
    }
    if (job.bytesPerToken) return job.bytesPerToken;
    const { config, draftConfig, dtype, ...allocation } = job.model as NonNullable<typeof job.model>;
    const described = describeModel(readConfig(config), {
      ...(dtype === undefined ? {} : { dtype }),
      ...(draftConfig === undefined ? {} : { draft: readConfig(draftConfig) }),
    });
    const table = shardTable(described, { ...withoutUndefined(allocation), boxes: job.boxes });
    const empty = table.shards.find(({ bytesPerToken }) => bytesPerToken === 0);
    if (empty === undefined) return table.shards.map(({ bytesPerToken }) => bytesPerToken);
    throw wrong(
      `${key}.model`,
      `nothing lies on domain ${empty.domain} of box ${empty.box}; try fewer boxes or 'unit: number'`,
    );
  }
}

function withoutUndefined<Value extends object>(value: Value): Value {
  return Object.fromEntries(Object.entries(value).filter(([, each]) => each !== undefined)) as Value;
}
