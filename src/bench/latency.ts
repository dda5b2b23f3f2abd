import { Opcode } from '../proto/generated.js';
import { type Bench, type BenchContext, planFor, sized } from './context.js';
import { nativeBench } from './native.js';
import { RingTraffic } from './ring_traffic.js';
import { alone } from './rounds.js';
import { type BenchRow, latencies } from './row.js';
import { Traffic } from './traffic.js';

/** Times of single calls in the same host, with an engine that spins. */
export const latencyBench: Bench = {
  name: 'latency',
  summary: 'single operations in the same host, from JavaScript, with engines that spin',
  live: true,
  async *run(context) {
    yield* rings(context);
    const rows: BenchRow[] = [];
    for (const pieceBytes of sized(context, [2 ** 16, 2 ** 18, 2 ** 21], [2 ** 12])) {
      for (const columns of sized(context, [1, 16], [1])) rows.push(await refillInPlace(context, pieceBytes, columns));
    }
    const single = rows.filter(({ what }) => what.includes('1 column'));
    const worst = single.reduce((a, b) => ((a.p50us ?? 0) >= (b.p50us ?? 0) ? a : b));
    for (const row of rows) {
      yield row === worst && row.p50us !== undefined ? { ...row, target: 'shm-refill-p50', value: row.p50us } : row;
    }
    const modes = context.daemon === undefined ? (['latency', 'adaptive'] as const) : [undefined];
    for (const mode of modes) yield await evictAwaited(context, mode);
  },
};

async function* rings(context: BenchContext): AsyncGenerator<BenchRow> {
  const count = sized(context, 200_000, 200);
  await using traffic = await RingTraffic.open(context, {
    sessions: 1,
    pieceBytes: 4096,
    slots: 4096,
    ringEntries: 4096,
    hioMode: 'latency',
  });
  const [session] = traffic.sessions;
  if (!session) return;
  const micros = new Float64Array(count);
  const bare = new Float64Array(count);
  const one = session.batch(Opcode.evict, 0, 1);
  const publish = () => {
    for (let round = 0; round < count; round += 1) {
      session.stamp(one);
      const from = performance.now();
      session.evictOne(one);
      micros[round] = (performance.now() - from) * 1000;
      session.poll();
    }
  };
  publish();
  publish();
  nativeBench().ringLoop(bare);
  const baseline = latencies(bare.map((ns) => ns / 1000));
  const figures = latencies(micros);
  yield {
    bench: 'latency',
    what: 'evict published, evictCount seen to move',
    link: 'shm',
    ops: count,
    ...figures,
    baseline: `bare ring round trip ${baseline.p50us?.toFixed(2)} us`,
    ratio: (baseline.p50us as number) / (figures.p50us as number),
    target: 'shm-publish-p50',
    value: figures.p50us as number,
  };
  const batch = session.batch(Opcode.evict, 0, 512);
  const many = sized(context, 4_000_000, 2_000);
  const throughput = await alone(planFor(context), () => {
    const from = performance.now();
    for (let given = 0; given < many; ) {
      session.stamp(batch);
      for (let at = 0; at < batch.length; ) {
        at += session.submit(batch, at);
        session.poll();
      }
      given += batch.length;
    }
    session.drain();
    return { ops: many, bytes: 0, seconds: (performance.now() - from) / 1000 };
  });
  yield {
    bench: 'latency',
    what: 'descriptors from one thread, batches of 512',
    link: 'shm',
    ...throughput,
    target: 'shm-descriptors',
    value: throughput.opsPerSec,
  };
}

const NOTHING_WRITTEN = { write: () => true };

/** Match, gate and a view of every piece: what lies between a prompt and its bytes. */
async function refillInPlace(context: BenchContext, pieceBytes: number, columns: number): Promise<BenchRow> {
  await using traffic = await Traffic.open(context, {
    link: 'shm',
    pieceBytes,
    promptColumns: columns,
    capacityColumns: sized(context, 64, 8) * columns,
    concurrency: 1,
    memoryBytes: columns * pieceBytes,
    hioMode: 'latency',
  });
  const prompts = sized(context, 48, 4);
  await traffic.evict(prompts);
  const rounds = sized(context, 20_000, 50);
  const micros = new Float64Array(rounds);
  let seen = 0;
  const sink = {
    read: (_: unknown, pieces: readonly Uint8Array[]) => {
      seen += (pieces[0] as Uint8Array)[0] as number;
    },
  };
  for (let round = -rounds; round < rounds; round += 1) {
    const tokens = traffic.tokensOf((round + rounds) % prompts);
    const sequence = traffic.driver.openSequence({ isolationId: 'bench' });
    const from = performance.now();
    const hit = sequence.match(tokens);
    const result = await hit.refill(sink);
    if (round >= 0) micros[round] = (performance.now() - from) * 1000;
    hit.release();
    if (result.columns !== columns) throw new Error(`refill: ${result.columns} of ${columns} columns`);
  }
  return {
    bench: 'latency',
    what: `match, gate and view of ${columns === 1 ? '1 column' : `${columns} columns`}`,
    link: 'shm',
    pieceBytes,
    ops: rounds,
    ...latencies(micros),
    checksum: String(seen % 65_536),
  };
}

/** One column, from the call until it can be found, with pauses as between two tokens. */
async function evictAwaited(context: BenchContext, hioMode: 'latency' | 'adaptive' | undefined): Promise<BenchRow> {
  await using traffic = await Traffic.open(context, {
    link: 'shm',
    pieceBytes: 4096,
    promptColumns: 1,
    capacityColumns: 1024,
    concurrency: 1,
    memoryBytes: 4096,
    ...(hioMode ? { hioMode } : {}),
  });
  const rounds = sized(context, 10_000, 50);
  const micros = new Float64Array(rounds);
  for (let round = 0; round < rounds; round += 1) {
    const sequence = traffic.driver.openSequence({ isolationId: 'bench' });
    sequence.match(traffic.tokensOf(round)).release();
    const from = performance.now();
    await sequence.evict(NOTHING_WRITTEN);
    micros[round] = (performance.now() - from) * 1000;
    await new Promise((resolve) => setImmediate(resolve));
  }
  return {
    bench: 'latency',
    what: `evict of one column awaited${hioMode ? `, engine ${hioMode}` : ''}`,
    link: 'shm',
    pieceBytes: 4096,
    ops: rounds,
    ...latencies(micros),
  };
}
