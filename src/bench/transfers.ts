import type { LinkName } from '../kvss/child_daemon.js';
import { type Bench, type BenchContext, linkOf, planFor, sized } from './context.js';
import { nativeBench } from './native.js';
import { sideBySide } from './rounds.js';
import type { BenchRow, TargetId } from './row.js';
import { Traffic } from './traffic.js';

export const PIECE_SIZES: readonly number[] = [2 ** 16, 2 ** 18, 2 ** 20, 2 ** 21];
/** Targets are about pieces of this size and above. */
const TARGET_FROM = 2 ** 18;
/** Bare sockets have as many pieces unacknowledged as a driver has under way at most. */
const WINDOW = 1024;

type Direction = 'evict' | 'refill';

/** Evict or refill of whole prompts through the driver, beside what the machine does without a store. */
function transferBench(name: Direction, summary: string): Bench {
  return {
    name,
    summary,
    live: true,
    async *run(context) {
      const links = context.daemon === undefined ? (['shm', 'tcp', 'unix'] as const) : [linkOf(context.daemon)];
      for (const link of links) {
        const rows: BenchRow[] = [];
        for (const pieceBytes of sized(context, PIECE_SIZES, [2 ** 12]))
          rows.push(await measure(context, name, link, pieceBytes));
        const target = targetOf(name, link);
        // The target is the worst of its sizes.
        const worst = rows
          .filter(({ pieceBytes = 0 }) => pieceBytes >= sized(context, TARGET_FROM, 0))
          .reduce((a, b) => ((a.ratio ?? 0) <= (b.ratio ?? 0) ? a : b));
        for (const row of rows) {
          yield row === worst && target && worst.ratio !== undefined ? { ...row, target, value: worst.ratio } : row;
        }
      }
    },
  };
}

function targetOf(direction: Direction, link: LinkName): TargetId | undefined {
  if (link === 'shm') return direction === 'evict' ? 'shm-copy' : undefined;
  return link === 'tcp' ? `tcp-${direction}` : undefined;
}

async function measure(
  context: BenchContext,
  direction: Direction,
  link: LinkName,
  pieceBytes: number,
): Promise<BenchRow> {
  const promptColumns = sized(context, Math.max(16, Math.min(256, 2 ** 25 / pieceBytes)), 4);
  const memoryBytes = sized(context, 2 ** 29, 2 ** 16);
  const columns = sized(context, Math.max(8 * promptColumns, memoryBytes / pieceBytes), 16);
  await using traffic = await Traffic.open(context, {
    link,
    pieceBytes,
    promptColumns,
    capacityColumns: columns,
    concurrency: sized(context, 4, 2),
    memoryBytes,
  });
  const prompts = sized(context, Math.ceil(2 ** 30 / (promptColumns * traffic.columnBytes)), 3);
  // Refills need something to find, and evicts are measured with a full store.
  await traffic.evict(Math.max(prompts, Math.ceil(columns / promptColumns)));
  const pieces = (prompts * promptColumns * traffic.columnBytes) / pieceBytes;
  const bare = nativeBench();
  const baseline = () => {
    const seconds =
      link === 'shm'
        ? bare.copyPieces(traffic.source, pieceBytes, pieces)
        : bare.socketLoop(link === 'unix', 1, WINDOW, pieceBytes, pieces);
    return { seconds, bytes: pieces * pieceBytes, ops: pieces };
  };
  const figures = await sideBySide(planFor(context), () => traffic[direction](prompts), baseline);
  return {
    bench: direction,
    what: link === 'shm' ? 'one copy' : 'straight from and to the runtime',
    link,
    pieceBytes,
    ...figures,
    baseline: link === 'shm' ? 'memcpy' : 'bare socket loop',
    checksum: await traffic.checksum(),
  };
}

export const evictBench = transferBench('evict', 'prompts go into the store, beside memcpy and bare sockets');
export const refillBench = transferBench('refill', 'prompts come back from the store, beside memcpy and bare sockets');
