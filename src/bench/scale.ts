import { median } from '../common/statistics.js';
import type { OperationBatch } from '../links/link.js';
import { Opcode } from '../proto/generated.js';
import { type Bench, type BenchContext, planFor, sized } from './context.js';
import { type RingSession, RingTraffic } from './ring_traffic.js';
import type { Round } from './rounds.js';
import type { BenchRow } from './row.js';
import { Traffic } from './traffic.js';

const PROMPT_COLUMNS = 64;
/** As small as pieces can be: a byte a token. */
const PIECE_BYTES = 64;

/** Whether an operation costs the same in a full store as in an empty one, and beside others as alone. */
export const scaleBench: Bench = {
  name: 'scale',
  summary: 'cost of an operation with a thousand and with a million columns, with one session and with sixty-four',
  live: false,
  async *run(context) {
    const rows: BenchRow[] = [];
    for await (const row of bySize(context)) rows.push(row);
    for await (const row of bySessions(context)) rows.push(row);
    const worst = rows.reduce((a, b) => ((a.ratio ?? 1) <= (b.ratio ?? 1) ? a : b));
    for (const row of rows) yield row === worst ? { ...row, target: 'scale', value: 1 / (worst.ratio as number) } : row;
  },
};

/** Costs of the same work at several sizes, measured in turns; every ratio is against the first size. */
async function compare(
  context: BenchContext,
  sizes: readonly { what: string; run: () => Round | Promise<Round> }[],
): Promise<BenchRow[]> {
  const plan = planFor(context);
  const costs = sizes.map(() => [] as number[]);
  const ops = sizes.map(() => 0);
  for (let round = -plan.warmup; round < plan.rounds; round += 1) {
    for (const [size, { run }] of sizes.entries()) {
      const { ops: done, seconds } = await run();
      if (round < 0) continue;
      costs[size]?.push(seconds / done);
      ops[size] = (ops[size] as number) + done;
    }
  }
  const first = costs[0] as number[];
  return sizes.map(({ what }, size) => {
    const mine = costs[size] as number[];
    const ratios = mine.map((cost, round) => (first[round] as number) / cost);
    return {
      bench: 'scale',
      what,
      link: 'shm',
      ops: ops[size] as number,
      opsPerSec: 1 / median(mine),
      rounds: plan.rounds,
      ...(size === 0
        ? {}
        : {
            baseline: sizes[0]?.what as string,
            ratio: median(ratios),
            ratioRange: [Math.min(...ratios), Math.max(...ratios)] as [number, number],
          }),
    };
  });
}

async function* bySize(context: BenchContext): AsyncGenerator<BenchRow> {
  const sizes = sized(context, [1_024, 10_240, 102_400, 1_024_000], [128, 512]);
  const traffics: Traffic[] = [];
  try {
    for (const columns of sizes) {
      const traffic = await Traffic.open(context, {
        link: 'shm',
        pieceBytes: PIECE_BYTES,
        promptColumns: PROMPT_COLUMNS,
        capacityColumns: columns,
        concurrency: 1,
        memoryBytes: PROMPT_COLUMNS * PIECE_BYTES,
        hioMode: 'adaptive',
        inPlace: true,
      });
      traffics.push(traffic);
      await traffic.evict(columns / PROMPT_COLUMNS);
    }
    const prompts = sized(context, 512, 4);
    const named = (what: string, run: (traffic: Traffic) => Promise<Round>) =>
      traffics.map((traffic, size) => ({
        what: `${what}, ${(sizes[size] as number).toLocaleString('en')} columns stored`,
        run: () => run(traffic),
      }));
    yield* await compare(
      context,
      named('match and refill of a column', (traffic) => traffic.refill(prompts)),
    );
    yield* await compare(
      context,
      named('evict of a column', (traffic) => traffic.evict(prompts)),
    );
  } finally {
    for (const traffic of traffics) await traffic[Symbol.asyncDispose]();
  }
}

async function* bySessions(context: BenchContext): AsyncGenerator<BenchRow> {
  const many = sized(context, 64, 3);
  const open = (sessions: number) =>
    RingTraffic.open(context, {
      sessions,
      pieceBytes: PIECE_BYTES,
      slots: 1024,
      ringEntries: 1024,
      hioMode: 'adaptive',
    });
  await using one = await open(1);
  await using all = await open(many);
  const total = sized(context, 500_000, 2_000);
  yield* await compare(context, [
    { what: 'evict descriptor, one session', run: () => busy(one, total) },
    { what: `evict descriptor, ${many} busy sessions`, run: () => busy(all, total) },
  ]);
  const singles = sized(context, 50_000, 100);
  yield* await compare(context, [
    { what: 'evict published and seen, one session', run: () => single(one.sessions[0] as RingSession, singles) },
    {
      what: `evict published and seen, ${many - 1} idle sessions beside it`,
      run: () => single(all.sessions[0] as RingSession, singles),
    },
  ]);
}

/** All sessions together have a window of 1,024 operations under way. */
function busy({ sessions }: RingTraffic, total: number): Round {
  const window = Math.max(1, Math.floor(1024 / sessions.length));
  const batches = sessions.map((session) => session.batch(Opcode.evict, 0, window));
  const from = performance.now();
  let given = 0;
  while (given < total) {
    for (const [index, session] of sessions.entries()) {
      session.poll();
      if (session.open > 0) continue;
      const batch = batches[index] as OperationBatch;
      session.stamp(batch);
      given += session.submit(batch);
    }
  }
  for (const session of sessions) session.drain();
  return { ops: given, bytes: 0, seconds: (performance.now() - from) / 1000 };
}

function single(session: RingSession, count: number): Round {
  const one = session.batch(Opcode.evict, 0, 1);
  const from = performance.now();
  for (let evict = 0; evict < count; evict += 1) {
    session.stamp(one);
    session.evictOne(one);
    session.poll();
  }
  return { ops: count, bytes: 0, seconds: (performance.now() - from) / 1000 };
}
