import { median } from '../common/statistics.js';
import { startChildDaemon } from '../kvss/child_daemon.js';
import { slotBytesOf } from '../proto/slots.js';
import { agentSessions } from '../replay/agent_sessions.js';
import { ReplayMeter } from '../replay/replay.js';
import { SwDriver } from '../swdriver/sw_driver.js';
import { StampingRuntime } from '../wafer/stamping_runtime.js';
import { type Bench, planFor, sized } from './context.js';
import { measureHioModes } from './hio_modes.js';
import { Traffic } from './traffic.js';

/** What a runtime takes to compute a column, in microseconds. */
const COLUMN_US = 1_000;

/** What it costs to have a store that is never of use. */
export const overheadBench: Bench = {
  name: 'overhead',
  summary: 'CPU time of the driver when nothing is ever reused, as a share of a runtime that takes 1 ms a column',
  live: false,
  async *run(context) {
    for (const promptColumns of sized(context, [4, 64], [4])) {
      await using traffic = await Traffic.open(context, {
        link: 'shm',
        pieceBytes: 4096,
        promptColumns,
        capacityColumns: 4096,
        concurrency: 1,
        memoryBytes: 2 ** 20,
        inPlace: true,
      });
      const prompts = Math.ceil(sized(context, 16_384, 64) / promptColumns);
      const plan = planFor(context);
      const shares: number[] = [];
      for (let round = -plan.warmup; round < plan.rounds; round += 1) {
        const before = process.cpuUsage();
        await traffic.evict(prompts);
        const { user, system } = process.cpuUsage(before);
        if (round >= 0) shares.push((user + system) / (prompts * promptColumns * COLUMN_US));
      }
      const value = median(shares);
      yield {
        bench: 'overhead',
        what: `match and evict of new prompts of ${promptColumns} columns, in place`,
        link: 'shm',
        ops: plan.rounds * prompts * promptColumns,
        rounds: plan.rounds,
        // Short prompts wait for the store more often: the worse of the two.
        ...(promptColumns === 4 ? { target: 'no-reuse' as const, value } : { note: `${(100 * value).toFixed(2)} %` }),
      };
    }
  },
};

/** What sixteen shards cost while nobody needs them. */
export const idleBench: Bench = {
  name: 'idle',
  summary: 'share of a core that sixteen idle shards take, with a driver connected',
  live: false,
  async *run(context) {
    const phaseMs = sized(context, 3_000, 100);
    for await (const figures of measureHioModes({ modes: ['adaptive'], shardCounts: [16], phaseMs })) {
      yield {
        bench: 'idle',
        what: '16 shards, adaptive',
        link: 'shm',
        seconds: phaseMs / 1000,
        p50us: figures.evictP50Us,
        p99us: figures.evictP99Us,
        target: 'idle',
        value: figures.idleCores,
        note: 'latencies are those of evicts of one column after the idle phase',
      };
    }
  },
};

/** Sessions of agents that read the sources of this package, every byte checked. */
export const replayBench: Bench = {
  name: 'replay',
  summary: 'whole requests of coding agents: match, refill, evict, every byte written and checked',
  live: false,
  async *run(context) {
    const bytesPerToken = sized(context, [768, 1_024, 1_280, 1_024], [16, 16]);
    const columns = 8_192;
    const budgets = bytesPerToken.map((bytes) => columns * slotBytesOf(bytes * 64) + 2 ** 21);
    await using daemon = await startChildDaemon(budgets);
    await using driver = await SwDriver.connect({
      daemons: [daemon.socket],
      model: { id: 'bench', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken },
      deadlineMs: 60_000,
      connectDeadlineMs: 60_000,
    });
    const meter = new ReplayMeter(driver, new StampingRuntime(driver.columnTokens));
    let tokens = 0;
    const from = performance.now();
    for (const turn of agentSessions()) {
      await meter.serve(turn.isolationId, turn.tokens);
      tokens += turn.tokens.length;
    }
    const report = meter.report();
    if (report.mismatches > 0) throw new Error(`replay: ${report.mismatches} lines were not what had been stored`);
    yield {
      bench: 'replay',
      what: `${report.requests} requests, ${(100 * report.tokenHitRate).toFixed(1)} % of tokens cached`,
      link: 'shm',
      ops: report.columnsRefilled + report.columnsEvicted,
      seconds: (performance.now() - from) / 1000,
      opsPerSec: ((report.columnsRefilled + report.columnsEvicted) * 1000) / (performance.now() - from),
      gbps: report.bytesVerified / report.seconds / 1e9,
      checksum: `${report.columnsEvicted}-${report.columnsRefilled}-${tokens}`,
    };
  },
};
