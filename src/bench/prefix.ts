import { seededRandom } from '../common/random.js';
import { lru } from '../swdriver/eviction_policy.js';
import { type Node, PrefixMap } from '../swdriver/prefix_map.js';
import { type Bench, type BenchContext, planFor, sized } from './context.js';
import { sideBySide } from './rounds.js';
import { type BenchRow, Checksum, latencies } from './row.js';

const COLUMN_TOKENS = 64;

/** The PrefixMap by itself: no shard, no bytes. */
export const prefixBench: Bench = {
  name: 'prefix',
  summary: 'the PrefixMap alone: match, insert, and memory a column',
  live: false,
  async *run(context) {
    const promptTokens = sized(context, 131_072, 1_024);
    const prompts = makePrompts(sized(context, 16, 2), promptTokens);
    const columns = promptTokens / COLUMN_TOKENS;
    yield await insert(context, prompts, columns);
    const map = filled(prompts, columns);
    yield await match(context, map, prompts, columns);
    yield memory(context);
  },
};

function makePrompts(count: number, tokens: number): Uint32Array[] {
  const random = seededRandom(1);
  return Array.from({ length: count }, () => Uint32Array.from({ length: tokens }, () => random() * 128_000));
}

function insertAll(map: PrefixMap, tokens: Uint32Array, columns: number, firstSlot: number): void {
  let parent = map.root('bench');
  for (let column = 0; column < columns; column += 1) {
    const slot = firstSlot + column;
    parent = map.insert(parent, tokens, column * COLUMN_TOKENS, 0, slot, slot + 1);
    map.publish(parent);
  }
}

function filled(prompts: readonly Uint32Array[], columns: number): PrefixMap {
  const map = emptyMap(prompts.length * columns);
  for (const [index, tokens] of prompts.entries()) insertAll(map, tokens, columns, index * columns);
  return map;
}

const emptyMap = (capacity: number) =>
  new PrefixMap({ capacity, columnTokens: COLUMN_TOKENS, policy: lru, hashSeed: 1 });

async function insert(context: BenchContext, prompts: readonly Uint32Array[], columns: number): Promise<BenchRow> {
  const total = prompts.length * columns;
  const copies = new Uint32Array(total * COLUMN_TOKENS);
  // Pages that nobody has touched would be measured otherwise, in both.
  const map = filled(prompts, columns);
  const subject = () => {
    for (const root of map.children(map.root('bench'))) map.remove(root, () => {});
    const from = performance.now();
    for (const [index, tokens] of prompts.entries()) insertAll(map, tokens, columns, index * columns);
    return { ops: total, bytes: 0, seconds: (performance.now() - from) / 1000 };
  };
  const baseline = () => {
    const from = performance.now();
    for (const [index, tokens] of prompts.entries()) copies.set(tokens, index * tokens.length);
    return { ops: total, bytes: 0, seconds: (performance.now() - from) / 1000 };
  };
  const { gbps: _, baselineGbps: __, ...figures } = await sideBySide(planFor(context, 9), subject, baseline);
  return {
    bench: 'prefix',
    what: 'insert of a column, and its publication',
    ...figures,
    baseline: 'copy of the tokens alone',
    target: 'prefix-insert',
    value: figures.opsPerSec,
  };
}

async function match(
  context: BenchContext,
  map: PrefixMap,
  prompts: readonly Uint32Array[],
  columns: number,
): Promise<BenchRow> {
  const plan = planFor(context, 9);
  const rounds = sized(context, 40, 2);
  const micros: number[] = [];
  const checksum = new Checksum();
  const path: Node[] = [];
  const root = map.root('bench');
  const subject = () => {
    const started = performance.now();
    for (let round = 0; round < rounds; round += 1) {
      const tokens = prompts[round % prompts.length] as Uint32Array;
      const from = performance.now();
      const matched = map.walk(root, tokens, 0, columns, path);
      micros.push((performance.now() - from) * 1000);
      if (matched !== columns) throw new Error(`matched ${matched} of ${columns} columns`);
    }
    return { ops: rounds, bytes: 0, seconds: (performance.now() - started) / 1000 };
  };
  const stored = prompts.map((tokens) => Buffer.from(tokens.slice().buffer));
  const asked = prompts.map((tokens) => Buffer.from(tokens.buffer));
  const baseline = () => {
    const from = performance.now();
    for (let round = 0; round < rounds; round += 1) {
      const index = round % prompts.length;
      if (!(stored[index] as Buffer).equals(asked[index] as Buffer)) throw new Error('prompts differ');
    }
    return { ops: rounds, bytes: 0, seconds: (performance.now() - from) / 1000 };
  };
  const { gbps: _, baselineGbps: __, ...figures } = await sideBySide(plan, subject, baseline);
  const times = latencies(Float64Array.from(micros.slice(plan.warmup * rounds)));
  checksum.add(map.stored, path.length, map.slot(path.at(-1) as Node));
  return {
    bench: 'prefix',
    what: `match of ${columns * COLUMN_TOKENS} cached tokens, exact`,
    ...figures,
    ...times,
    baseline: 'memcmp of the tokens alone',
    checksum: checksum.text,
    target: 'prefix-match',
    value: times.p50us as number,
  };
}

/** What the process takes for a full map, by its own account. */
function memory(context: BenchContext): BenchRow {
  const columns = sized(context, 2 ** 17, 2 ** 10);
  const before = process.memoryUsage();
  const map = emptyMap(columns);
  const tokens = new Uint32Array(COLUMN_TOKENS);
  let parent = map.root('bench');
  for (let column = 0; column < columns; column += 1) {
    tokens[0] = column;
    const node = map.insert(parent, tokens, 0, 0, column, column + 1);
    map.publish(node);
    if (column % 1024 !== 1023) parent = node;
    else parent = map.root('bench');
  }
  const after = process.memoryUsage();
  // Garbage of others may go between the two looks, so the map's own account is the least that it can be.
  const value = Math.max(map.bytesPerColumn, (after.arrayBuffers - before.arrayBuffers) / columns);
  return {
    bench: 'prefix',
    what: 'bytes a column, tokens included',
    ops: map.stored,
    target: 'prefix-bytes',
    value,
  };
}
