import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { localError, messageOf } from '../common/errors.js';
import { nativeBench, type PeerPlan } from './native.js';
import { findProgram, type PeerBox } from './peer_processes.js';
import { PEERS, type PeerLink, type PeerName, type PeerServer } from './peer_servers.js';
import type { Round } from './rounds.js';

export type PeerOperation = 'set' | 'get';

/** A way to drive a peer: with the suite's own client or with the load generator that comes with the peer. */
export interface PeerClient {
  by: 'own client' | 'its tool';
  connections: number;
  /** Requests of a connection that are unanswered at most. */
  depth: number;
  /** More than one thread. */
  threads: boolean;
}

/** What is stored: the same keys and the same number of bytes, whoever asks for them. */
export interface PeerLoad {
  pieceBytes: number;
  keys: number;
  /** Two places for each key: where values come from, and where they go to. */
  memory: ArrayBuffer;
}

const PATIENCE_MS = 10_000;
const TOOL_MS = 60_000;
/** Tools count in milliseconds: less than this takes them none. */
const TOOL_BYTES = 2 ** 24;

const OWN_CLIENTS: readonly PeerClient[] = [
  { by: 'own client', connections: 1, depth: 4, threads: false },
  { by: 'own client', connections: 1, depth: 16, threads: false },
  { by: 'own client', connections: 4, depth: 4, threads: true },
  { by: 'own client', connections: 4, depth: 4, threads: false },
];
/** Not with --threads: then redis-benchmark looks at the clock only four times a second. */
const REDIS_TOOLS: readonly PeerClient[] = [
  { by: 'its tool', connections: 1, depth: 1, threads: false },
  { by: 'its tool', connections: 1, depth: 4, threads: false },
  { by: 'its tool', connections: 4, depth: 1, threads: false },
  { by: 'its tool', connections: 4, depth: 4, threads: false },
];
const MEMCACHED_TOOLS: readonly PeerClient[] = [
  { by: 'its tool', connections: 1, depth: 1, threads: false },
  { by: 'its tool', connections: 4, depth: 1, threads: true },
];
/** memcaslap has at least so many keys for each connection. */
const MEMCASLAP_KEYS = 1024;
/** What it may store: the peer's memory is meant to hold it all. */
const MEMCASLAP_BYTES = 2 ** 30;

/** The plainest client: it fills a store and reads it back. */
export const PLAIN_CLIENT = OWN_CLIENTS[0] as PeerClient;

/** All that a peer is driven with. */
export function clientsOf(name: PeerName, link: PeerLink, operation: PeerOperation, pieceBytes: number): PeerClient[] {
  if (!findProgram(PEERS[name].tool)) return [...OWN_CLIENTS];
  if (name === 'redis') return [...OWN_CLIENTS, ...REDIS_TOOLS];
  // It knows no Unix sockets, and can get only what it has just set, within the same figure.
  if (link === 'unix' || operation === 'get') return [...OWN_CLIENTS];
  const fits = ({ connections }: PeerClient) => connections * MEMCASLAP_KEYS * pieceBytes <= MEMCASLAP_BYTES;
  return [...OWN_CLIENTS, ...MEMCACHED_TOOLS.filter(fits)];
}

/** A client in a few words. */
export function describeClient(name: PeerName, { by, connections, depth, threads }: PeerClient): string {
  const who = by === 'own client' ? by : PEERS[name].tool;
  const ways = [
    connections === 1 ? '1 connection' : `${connections} connections`,
    ...(connections > 1 ? [threads ? 'with threads' : 'in one thread'] : []),
    ...(depth > 1 ? [`${depth} deep`] : []),
  ];
  return `${who}, ${ways.join(' ')}`;
}

/** One round of a client: `pieces` operations on one key after the other, or on random ones where a tool drives. */
export async function drivePeer(
  box: PeerBox,
  name: PeerName,
  { address }: Pick<PeerServer, 'address'>,
  client: PeerClient,
  operation: PeerOperation,
  load: PeerLoad,
  pieces: number = load.keys,
): Promise<Round> {
  const { pieceBytes, keys } = load;
  if (client.by === 'its tool') {
    const tool = name === 'redis' ? redisBenchmark : memcaslap;
    const ops = Math.max(pieces, TOOL_BYTES / pieceBytes);
    const perSecond = await tool(box, address, client, operation, pieceBytes, keys, ops);
    return { seconds: ops / perSecond, ops, bytes: ops * pieceBytes };
  }
  const { connections, depth, threads } = client;
  const plan: PeerPlan = {
    protocol: name,
    operation,
    address,
    connections,
    threads,
    depth,
    pieceBytes,
    pieces,
    keys,
    patienceMs: PATIENCE_MS,
  };
  try {
    const seconds = await nativeBench().peerTransfer(plan, load.memory);
    return { seconds, ops: pieces, bytes: pieces * pieceBytes };
  } catch (cause) {
    throw localError('KVSS_UNREACHABLE', `${name}: ${messageOf(cause)}`, cause);
  }
}

/** Operations a second, as redis-benchmark counts them. */
async function redisBenchmark(
  box: PeerBox,
  address: number | string,
  { connections, depth }: PeerClient,
  operation: PeerOperation,
  pieceBytes: number,
  keys: number,
  pieces: number,
): Promise<number> {
  const where = typeof address === 'number' ? ['-h', '127.0.0.1', '-p', String(address)] : ['-s', address];
  const numbers = { '-d': pieceBytes, '-c': connections, '-P': depth, '-n': pieces, '-r': keys };
  const flags = Object.entries(numbers).flatMap(([flag, value]) => [flag, String(value)]);
  const printed = await box.run(['redis-benchmark', ...where, ...flags, '-t', operation, '--csv'], TOOL_MS);
  // A heading and one line of figures. Anything else is a complaint.
  const line = /^"test","rps"[^\n]*\n"(?:SET|GET)","([\d.]+)"[^\n]*\n$/.exec(printed);
  return figureOf('redis-benchmark', line?.[1], printed);
}

/** Operations a second, as memcaslap counts them: SETs of keys of its own. */
async function memcaslap(
  box: PeerBox,
  address: number | string,
  { connections, threads }: PeerClient,
  _operation: PeerOperation,
  pieceBytes: number,
  _keys: number,
  pieces: number,
): Promise<number> {
  const file = join(box.directory, 'memcaslap.cfg');
  // Lengths from and to, and their share; command 0 is set.
  writeFileSync(file, `key\n16 16 1\nvalue\n${pieceBytes} ${pieceBytes} 1\ncmd\n0 1.0\n`);
  const flags = { '-s': `127.0.0.1:${address}`, '-T': threads ? 2 : 1, '-c': connections, '-x': pieces, '-F': file };
  const command = ['memcaslap', ...Object.entries(flags).flatMap(([flag, value]) => [flag, String(value)])];
  const printed = await box.run([...command, '-w', `${MEMCASLAP_KEYS / 1024}k`], TOOL_MS);
  return figureOf('memcaslap', /\bTPS: (\d+)\b/.exec(printed)?.[1], printed);
}

function figureOf(tool: string, figure: string | undefined, printed: string): number {
  const rate = Number(figure);
  if (rate > 0) return rate;
  throw localError('KVSS_UNREACHABLE', `${tool} gave no figure: ${printed.trim().slice(-200) || 'it said nothing'}`);
}
