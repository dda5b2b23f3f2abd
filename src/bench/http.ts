import { localError } from '../common/errors.js';
import { startChildDaemon } from '../kvss/child_daemon.js';
import { type Bench, type BenchContext, sized } from './context.js';
import { Traffic } from './traffic.js';

/** What of autocannon is used here. */
interface Load {
  requests: { average: number; total: number };
  latency: { p50: number; p99: number };
  non2xx: number;
  errors: number;
}
type Autocannon = (options: { url: string; connections: number; duration: number }) => Promise<Load>;

/** The admin endpoints under load while evicts run, and evicts with and without that load. */
export const httpBench: Bench = {
  name: 'http',
  summary: 'the admin endpoints under load while evicts run',
  live: false,
  async *run(context) {
    const autocannon = await loadAutocannon();
    if (!autocannon) {
      yield { bench: 'http', what: 'admin endpoints', note: 'autocannon is not installed: npm install autocannon' };
      return;
    }
    for (const path of ['/healthz', '/metrics']) yield* await measure(context, autocannon, path);
  },
};

async function loadAutocannon(): Promise<Autocannon | undefined> {
  try {
    // Not a dependency of the package: only those who measure need it.
    const name = 'autocannon';
    return ((await import(name)) as { default: Autocannon }).default;
  } catch {
    return undefined;
  }
}

async function measure(context: BenchContext, autocannon: Autocannon, path: string) {
  const pieceBytes = 2 ** 16;
  const columns = sized(context, 4_096, 64);
  await using daemon = await startChildDaemon([columns * pieceBytes + 2 ** 21], { http: true });
  await using traffic = await Traffic.open(
    { ...context, daemon: daemon.socket },
    {
      link: 'shm',
      pieceBytes,
      promptColumns: 16,
      capacityColumns: columns,
      concurrency: 2,
      memoryBytes: sized(context, 2 ** 27, 2 ** 20),
    },
  );
  const duration = sized(context, 3, 1);
  const undisturbed = await evictFor(traffic, duration * 1000);
  const [load, evicts] = await Promise.all([
    autocannon({ url: `${daemon.adminUrl}${path}`, connections: 4, duration }),
    evictFor(traffic, duration * 1000),
  ]);
  if (load.non2xx > 0 || load.errors > 0 || load.requests.total === 0) {
    throw localError('KVSS_UNREACHABLE', `${path}: ${load.non2xx} answers were not 2xx, ${load.errors} errors`);
  }
  return [
    {
      bench: 'http',
      what: `GET ${path} while evicts run, 4 connections`,
      ops: load.requests.total,
      opsPerSec: load.requests.average,
      p50us: load.latency.p50 * 1000,
      p99us: load.latency.p99 * 1000,
    },
    {
      bench: 'http',
      what: `evicts while ${path} is under load`,
      link: 'shm' as const,
      pieceBytes,
      gbps: evicts,
      baseline: 'evicts alone',
      baselineGbps: undisturbed,
      ratio: evicts / undisturbed,
    },
  ];
}

/** 10^9 bytes a second. */
async function evictFor(traffic: Traffic, ms: number): Promise<number> {
  const from = performance.now();
  let bytes = 0;
  while (performance.now() - from < ms) {
    bytes += (await traffic.evict(8)).bytes;
    // Whatever else this process does, such as making requests, has its turn.
    await new Promise((resolve) => setImmediate(resolve));
  }
  return bytes / ((performance.now() - from) * 1e6);
}
