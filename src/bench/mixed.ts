import { median } from '../common/statistics.js';
import { Opcode } from '../proto/generated.js';
import { type Bench, planFor, sized } from './context.js';
import { type RingSession, RingTraffic } from './ring_traffic.js';
import { type BenchRow, latencies } from './row.js';

/** Refills that are always waiting at the shard. */
const REFILLS = 1024;

/** Evicts while refills run as fast as they can, beside evicts alone. */
export const mixedBench: Bench = {
  name: 'mixed',
  summary: 'latency of evicts while the refill queue is never empty, beside evicts alone',
  live: true,
  async *run(context) {
    await using traffic = await RingTraffic.open(context, {
      sessions: 1,
      pieceBytes: 4096,
      slots: 2 * REFILLS,
      ringEntries: REFILLS,
      hioMode: 'latency',
    });
    const [session] = traffic.sessions;
    if (!session) return;
    const stored = session.batch(Opcode.evict, 0, REFILLS);
    session.stamp(stored);
    for (let at = 0; at < REFILLS; ) at += session.submit(stored, at);
    session.drain();
    const refills = { ...session.batch(Opcode.refill, 0, REFILLS), generations: stored.generations.slice() };
    const evicts = sized(context, 100_000, 200);
    const plan = planFor(context);
    const p99s = { alone: [] as number[], mixed: [] as number[] };
    const rows: BenchRow[] = [];
    for (let round = -plan.warmup; round < plan.rounds; round += 1) {
      for (const what of ['alone', 'mixed'] as const) {
        const measured = measure(session, evicts, what === 'mixed' ? refills : undefined);
        if (round < 0) continue;
        p99s[what].push(measured.p99us as number);
        rows.push(measured);
      }
    }
    const ratios = p99s.mixed.map((p99, round) => p99 / (p99s.alone[round] as number));
    const value = median(ratios);
    const last = rows.at(-1) as BenchRow;
    yield { ...(rows.at(-2) as BenchRow), rounds: plan.rounds, p99us: median(p99s.alone) };
    yield {
      ...last,
      rounds: plan.rounds,
      p99us: median(p99s.mixed),
      baseline: 'p99 of evicts alone',
      ratio: 1 / value,
      ratioRange: [1 / Math.max(...ratios), 1 / Math.min(...ratios)],
      target: 'mixed-p99',
      value,
    };
  },
};

function measure(
  session: RingSession,
  evicts: number,
  refills: ReturnType<RingSession['batch']> | undefined,
): BenchRow {
  const micros = new Float64Array(evicts);
  const one = session.batch(Opcode.evict, REFILLS, 1);
  let next = 0;
  let refilled = 0;
  const from = performance.now();
  for (let evict = 0; evict < evicts; evict += 1) {
    if (refills) {
      // As many as there is room for: the queue is full whenever an evict comes.
      const taken = session.submit(refills, next);
      refilled += taken;
      next = (next + taken) % REFILLS;
    }
    session.stamp(one);
    const asked = performance.now();
    session.evictOne(one);
    micros[evict] = (performance.now() - asked) * 1000;
    session.poll();
  }
  session.drain();
  const seconds = (performance.now() - from) / 1000;
  const rate = refills ? `, ${(refilled / seconds / 1e6).toFixed(1)} M refills a second beside them` : '';
  return {
    bench: 'mixed',
    what: refills ? 'evicts while refills wait' : 'evicts alone',
    link: 'shm',
    ops: evicts,
    seconds,
    ...latencies(micros),
    ...(rate ? { note: `evicts${rate}` } : {}),
  };
}
