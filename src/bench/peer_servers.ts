import { connect } from 'node:net';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { localError } from '../common/errors.js';
import { findProgram, freePort, type PeerBox, type TiedProgram } from './peer_processes.js';

export type PeerName = 'redis' | 'memcached';
/** How a peer is reached. */
export type PeerLink = 'tcp' | 'unix';

/** A way to run a peer's server. */
export interface PeerSetting {
  /** In a few words, for people. */
  name: string;
  flags: readonly string[];
}

interface PeerKind {
  program: string;
  /** Its own load generator. */
  tool: string;
  /** Debian packages of the two. */
  packages: { program: string; tool: string };
  /** What may be best, on two cores. */
  settings: readonly PeerSetting[];
  /** What it is asked to see whether it is there, and how its answer begins. */
  ping: readonly [string, string];
  /** All that it is started with but the setting. */
  flags(address: number | string, directory: string): string[];
}

export const PEERS: Readonly<Record<PeerName, PeerKind>> = {
  redis: {
    program: 'redis-server',
    tool: 'redis-benchmark',
    packages: { program: 'redis-server', tool: 'redis-tools' },
    settings: [
      { name: 'io-threads 1', flags: ['--io-threads', '1'] },
      { name: 'io-threads 2', flags: ['--io-threads', '2', '--io-threads-do-reads', 'yes'] },
    ],
    ping: ['PING\r\n', '+PONG\r\n'],
    flags: (address, directory) => [
      ...(typeof address === 'number'
        ? ['--bind', '127.0.0.1', '--port', String(address)]
        : ['--port', '0', '--unixsocket', address]),
      // Nothing is written to a disk.
      ...['--save', '', '--appendonly', 'no', '--dir', directory, '--daemonize', 'no', '--loglevel', 'warning'],
    ],
  },
  memcached: {
    program: 'memcached',
    tool: 'memcaslap',
    packages: { program: 'memcached', tool: 'libmemcached-tools' },
    settings: [
      { name: '1 thread', flags: ['-t', '1'] },
      { name: '2 threads', flags: ['-t', '2'] },
    ],
    ping: ['version\r\n', 'VERSION '],
    flags: (address) => [
      ...(typeof address === 'number' ? ['-l', '127.0.0.1', '-p', String(address), '-U', '0'] : ['-s', address]),
      // Large items in chunks of 512 KiB, as it does by itself: with slab_chunk_max=2048 it has half the speed.
      ...['-I', '4m', '-m', '2048'],
      ...(process.getuid?.() === 0 ? ['-u', userInfo().username] : []),
    ],
  },
};

const START_MS = 20_000;
/** Somebody else may take a port before the peer does. */
const PORTS_TRIED = 3;

/** A peer's server in a process of its own. */
export interface PeerServer {
  readonly address: number | string;
  stop(): Promise<void>;
}

let sockets = 0;

/** Starts a server and waits until it answers. Rejects with what it printed where it does not. */
export async function startPeer(
  box: PeerBox,
  name: PeerName,
  setting: PeerSetting,
  link: PeerLink,
): Promise<PeerServer> {
  const kind = PEERS[name];
  const command = findProgram(kind.program) ?? kind.program;
  for (let tried = 1; ; tried += 1) {
    const address = link === 'tcp' ? await freePort() : join(box.directory, `${name}-${sockets++}.sock`);
    const program = box.start([command, ...kind.flags(address, box.directory), ...setting.flags]);
    if (await answers(address, program, kind.ping)) return { address, stop: () => program.stop() };
    await program.stop();
    if (link === 'unix' || tried === PORTS_TRIED) {
      throw localError('KVSS_UNREACHABLE', `${kind.program} (${setting.name}) did not start: ${program.complaint}`);
    }
  }
}

/** Waits until a server answers as it should. False where it ends before, or takes too long. */
async function answers(
  address: number | string,
  program: TiedProgram,
  [question, answer]: readonly [string, string],
): Promise<boolean> {
  const giveUp = performance.now() + START_MS;
  while (program.running && performance.now() < giveUp) {
    if ((await ask(address, question)).startsWith(answer)) return program.running;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return false;
}

function ask(address: number | string, question: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = typeof address === 'number' ? connect(address, '127.0.0.1') : connect(address);
    const end = (answer: string) => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(1_000, () => end(''));
    socket.once('connect', () => socket.write(question));
    socket.once('data', (bytes) => end(bytes.toString('latin1')));
    socket.once('error', () => end(''));
    socket.once('close', () => end(''));
  });
}
