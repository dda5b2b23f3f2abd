import type { LinkName } from '../kvss/child_daemon.js';
import { type Bench, type BenchContext, planFor, sized } from './context.js';
import {
  clientsOf,
  describeClient,
  drivePeer,
  type PeerClient,
  type PeerLoad,
  type PeerOperation,
  PLAIN_CLIENT,
} from './peer_clients.js';
import { findProgram, PeerBox } from './peer_processes.js';
import { PYTHON_PEERS, PythonRunner, whyNot } from './peer_python.js';
import { PEERS, type PeerLink, type PeerName, type PeerServer, type PeerSetting, startPeer } from './peer_servers.js';
import { compared, inTurns, type Round, type Runner, sideBySide, totals } from './rounds.js';
import { type BenchRow, Checksum, type TargetId } from './row.js';
import { Traffic } from './traffic.js';
import { PIECE_SIZES } from './transfers.js';

/** Targets are about pieces of these sizes. */
const TARGET_SIZES: readonly number[] = [2 ** 18, 2 ** 20];
const LINKS: readonly PeerLink[] = ['tcp', 'unix'];
const DIRECTIONS = ['evict', 'refill'] as const;
type Direction = (typeof DIRECTIONS)[number];
const OPERATION: Readonly<Record<Direction, PeerOperation>> = { evict: 'set', refill: 'get' };

/** A setting of a peer's server, and a client. */
interface Variant {
  setting: PeerSetting;
  client: PeerClient;
}

/** Something that takes part in the rounds. */
interface Party {
  row: Pick<BenchRow, 'bench' | 'what' | 'link' | 'pieceBytes' | 'checksum'>;
  run: Runner;
}

/**
 * Redis and memcached, each at its best, and KVSS beside them: the same pieces over the same kind of socket in the same
 * rounds. Variants of a peer are tried in short, and the fastest of each peer takes part in the rounds.
 */
export const peersBench: Bench = {
  name: 'peers',
  summary: 'Redis, memcached, and what else is installed, beside the same work in the store',
  live: false,
  async *run(context) {
    const present: PeerName[] = [];
    for (const name of Object.keys(PEERS) as PeerName[]) {
      const { program, tool, packages } = PEERS[name];
      const missing = (what: string, which: string) => `${what} is not installed (Debian package ${which})`;
      if (!findProgram(program)) {
        yield { bench: 'peers', what: name, note: `${missing(program, packages.program)}: no figures, no targets` };
        continue;
      }
      present.push(name);
      if (!findProgram(tool)) {
        yield { bench: 'peers', what: name, note: `${missing(tool, packages.tool)}: only our own client drives it` };
      }
    }
    for (const link of present.length > 0 ? LINKS : []) {
      const rows: BenchRow[] = [];
      for (const pieceBytes of sized(context, PIECE_SIZES, [2 ** 14])) {
        rows.push(...(await measure(context, present, link, pieceBytes)));
      }
      yield* present.length === Object.keys(PEERS).length ? withTargets(context, rows) : rows;
    }
    for (const peer of PYTHON_PEERS) yield* measurePython(context, peer);
  },
};

/** A target is the worst of the rows that count for it: all of them are of one link, or beside it. */
function* withTargets(context: BenchContext, rows: readonly BenchRow[]): Generator<BenchRow> {
  const worst = new Map<TargetId, BenchRow>();
  for (const row of rows) {
    const target = targetOf(context, row);
    const before = target && worst.get(target);
    if (target && (row.ratio ?? 0) <= (before?.ratio ?? Number.POSITIVE_INFINITY)) worst.set(target, row);
  }
  for (const row of rows) {
    const target = targetOf(context, row);
    yield target && worst.get(target) === row && row.ratio !== undefined ? { ...row, target, value: row.ratio } : row;
  }
}

function targetOf(context: BenchContext, { what, link, pieceBytes = 0, ratio }: BenchRow): TargetId | undefined {
  if (ratio === undefined || !sized(context, TARGET_SIZES, [pieceBytes]).includes(pieceBytes)) return undefined;
  if (link === 'shm') return 'shm-peers';
  if (link !== 'tcp') return undefined;
  return what === subjectOf('evict', link) ? 'tcp-evict-peers' : 'tcp-refill-peers';
}

function subjectOf(direction: Direction, link: LinkName): string {
  return `KVSS ${direction}, ${link === 'shm' ? 'one copy' : '1 connection each way'}`;
}

/** All that goes over one kind of socket with one size of pieces, and shared memory beside Unix sockets. */
async function measure(
  context: BenchContext,
  present: readonly PeerName[],
  link: PeerLink,
  pieceBytes: number,
): Promise<BenchRow[]> {
  await using box = new PeerBox();
  await using kvss = await openTraffic(context, link, pieceBytes);
  await using shm = link === 'unix' ? await openTraffic(context, 'shm', pieceBytes) : undefined;
  const subjects = shm ? [kvss, shm] : [kvss];
  const memory = kvss.traffic.source;
  const load = { pieceBytes, keys: memory.byteLength / 2 / pieceBytes, memory };
  const best = new Map<PeerName, Record<PeerOperation, Variant>>();
  for (const name of present) best.set(name, await findBest(context, box, name, link, load));
  const servers = new Map<string, PeerServer>();
  const rows: BenchRow[] = [];
  for (const direction of DIRECTIONS) {
    const operation = OPERATION[direction];
    const peers: (Party & { name: PeerName; server: PeerServer })[] = [];
    for (const name of present) {
      const { setting, client } = (best.get(name) as Record<PeerOperation, Variant>)[operation];
      const server = servers.get(name + setting.name) ?? (await startPeer(box, name, setting, link));
      servers.set(name + setting.name, server);
      // Gets need something to find, and sets are measured with a full store.
      await drivePeer(box, name, server, PLAIN_CLIENT, 'set', load);
      const what = `${name} ${operation.toUpperCase()}, ${describeClient(name, client)}, ${setting.name}`;
      const run = () => drivePeer(box, name, server, client, operation, load);
      peers.push({ row: { bench: 'peers', what, link, pieceBytes }, run, name, server });
    }
    const own = subjects.map(
      ({ traffic, prompts, link }): Party => ({
        row: { bench: 'peers', what: subjectOf(direction, link), link, pieceBytes },
        run: () => traffic[direction](prompts),
      }),
    );
    const parties = [...own, ...peers];
    const results = await inTurns(
      planFor(context, TARGET_SIZES.includes(pieceBytes) ? 5 : 3),
      parties.map(({ run }) => run),
    );
    for (const { row, name, server } of peers) row.checksum = await checksumOf(box, name, server, load, kvss.columns);
    for (const [at, { traffic }] of subjects.entries()) (own[at] as Party).row.checksum = await traffic.checksum();
    rows.push(...rowsOf(own, peers, results));
  }
  return rows;
}

/** Rows of the peers, and of KVSS beside the better one of them. */
function rowsOf(own: readonly Party[], peers: readonly Party[], results: readonly Round[][]): BenchRow[] {
  const peerRows = peers.map(({ row }, at) => ({ ...row, ...totals(results[own.length + at] as Round[]) }));
  const better = peerRows.reduce((a, b) => (a.gbps >= b.gbps ? a : b));
  const baselines = results[own.length + peerRows.indexOf(better)] as Round[];
  const ownRows = own.map(({ row }, at) => ({
    ...row,
    ...compared(results[at] as Round[], baselines),
    baseline: better.what,
  }));
  return [...peerRows, ...ownRows];
}

interface OpenTraffic extends AsyncDisposable {
  traffic: Traffic;
  link: LinkName;
  /** Of a prompt. */
  columns: number;
  /** Of a round. */
  prompts: number;
}

/** A full store, of the same size and with prompts of the same length as those of the evict and refill benches. */
async function openTraffic(context: BenchContext, link: LinkName, pieceBytes: number): Promise<OpenTraffic> {
  const columns = sized(context, Math.max(16, Math.min(256, 2 ** 25 / pieceBytes)), 4);
  const memoryBytes = sized(context, 2 ** 29, 2 ** 18);
  const capacityColumns = Math.max(4 * columns, memoryBytes / pieceBytes);
  const prompts = capacityColumns / columns;
  const traffic = await Traffic.open(context, {
    link,
    pieceBytes,
    promptColumns: columns,
    capacityColumns,
    concurrency: sized(context, 4, 2),
    memoryBytes,
  });
  try {
    await traffic.evict(prompts);
  } catch (thrown) {
    await traffic[Symbol.asyncDispose]();
    throw thrown;
  }
  return { traffic, link, columns, prompts, [Symbol.asyncDispose]: () => traffic[Symbol.asyncDispose]() };
}

/** Tries every way to run and drive a peer, and answers the fastest for each operation. */
async function findBest(
  context: BenchContext,
  box: PeerBox,
  name: PeerName,
  link: PeerLink,
  load: PeerLoad,
): Promise<Record<PeerOperation, Variant>> {
  const pieces = Math.ceil(load.keys / sized(context, 8, 1));
  const found: Record<PeerOperation, (Variant & { rate: number })[]> = { set: [], get: [] };
  for (const setting of sized(context, PEERS[name].settings, PEERS[name].settings.slice(0, 1))) {
    const server = await startPeer(box, name, setting, link);
    await drivePeer(box, name, server, PLAIN_CLIENT, 'set', load);
    // Gets first: what a tool sets is not what our own client expects to get.
    for (const operation of ['get', 'set'] as const) {
      const rateOf = async (client: PeerClient) => {
        const { bytes, seconds } = await drivePeer(box, name, server, client, operation, load, pieces);
        return bytes / seconds;
      };
      const clients = clientsOf(name, link, operation, load.pieceBytes);
      // A tiny run shows that each kind of client works.
      const kinds = clients.filter(({ by }, at) => at === clients.findIndex((other) => other.by === by));
      const tried: (Variant & { rate: number })[] = [];
      for (const client of sized(context, clients, kinds)) {
        tried.push({ setting, client, rate: await rateOf(client) });
      }
      const fastest = tried.sort((a, b) => b.rate - a.rate).slice(0, 2);
      // One good moment does not make a variant the best.
      if (context.scale === 'full') {
        for (const variant of fastest) variant.rate = (variant.rate + (await rateOf(variant.client))) / 2;
      }
      found[operation].push(...fastest);
    }
    await server.stop();
  }
  const best = (operation: PeerOperation) => found[operation].reduce((a, b) => (a.rate >= b.rate ? a : b));
  return { set: best('set'), get: best('get') };
}

/** Stores all values, reads them back, and answers with a checksum of as many as a prompt has pieces. */
async function checksumOf(
  box: PeerBox,
  name: PeerName,
  server: PeerServer,
  load: PeerLoad,
  values: number,
): Promise<string> {
  for (const operation of ['set', 'get'] as const) await drivePeer(box, name, server, PLAIN_CLIENT, operation, load);
  const checksum = new Checksum();
  for (let key = 0; key < values; key += 1) {
    checksum.add(new Uint8Array(load.memory, (load.keys + key) * load.pieceBytes, load.pieceBytes));
  }
  return checksum.text;
}

/** A peer that is driven from Python, in rounds with KVSS over TCP. It may be missing, and it may fail. */
async function* measurePython(context: BenchContext, peer: (typeof PYTHON_PEERS)[number]): AsyncGenerator<BenchRow> {
  const note = await whyNot(peer);
  if (note !== undefined) {
    yield { bench: 'peers', what: peer.name, note };
    return;
  }
  for (const pieceBytes of sized(context, TARGET_SIZES, [2 ** 14])) {
    const what = (direction: Direction) => `${peer.name} ${OPERATION[direction]}, TCP, from Python`;
    try {
      await using kvss = await openTraffic(context, 'tcp', pieceBytes);
      await using runner = await PythonRunner.start(peer, pieceBytes, (kvss.prompts * kvss.columns) / 4);
      for (const direction of DIRECTIONS) {
        const figures = await sideBySide(
          planFor(context, 3),
          () => runner.round(OPERATION[direction]),
          () => kvss.traffic[direction](kvss.prompts),
        );
        const baseline = subjectOf(direction, 'tcp');
        yield { bench: 'peers', what: what(direction), link: 'tcp', pieceBytes, ...figures, baseline };
      }
    } catch (thrown) {
      yield { bench: 'peers', what: peer.name, pieceBytes, note: `not measured: ${(thrown as Error).message}` };
      return;
    }
  }
}
