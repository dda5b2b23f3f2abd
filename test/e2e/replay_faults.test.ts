import { type ChildProcess, spawn } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { SecondDaemon } from './bad_network.js';
import { type Finished, finish, MAIN, pause, Scratch, TestDaemon } from './support.js';

/** Longer than where nothing is said, so that it shows in the slowest call. */
const DEADLINE_MS = 1_500;
/** Of one call, on a busy machine. The promise is the deadline. */
const LONGEST_CALL_MS = DEADLINE_MS + 4_000;

/** Boxes of four unequal shards, each with room for a session that is being cleared away and the next one. */
const BOX = { shards: 4, budget: '32MiB,44MiB,52MiB,44MiB' };
const BYTES_PER_TOKEN = { across: '24,32,40,32,32,40,24,32', within: '24,32,40,32' };

const SESSIONS = 8;
const REQUESTS_PER_SECOND = 25;

/**
 * A trace in the agents' format, this many seconds long: sessions take turns, grow by a column or two each time, and end
 * at 64 columns; another one takes the place of one that has ended. Sessions begin with the same columns.
 */
function agentTrace(seconds: number): { text: string; requests: number; columnRefs: number } {
  const lanes = Array.from({ length: SESSIONS }, (_, lane) => ({ session: lane, columns: 12 + 6 * lane }));
  const requests = Array.from({ length: seconds * REQUESTS_PER_SECOND }, (_, index) => {
    const lane = lanes[index % SESSIONS] as (typeof lanes)[number];
    lane.columns += 1 + (index % 2);
    if (lane.columns > 64) {
      lane.session += SESSIONS;
      lane.columns = 12;
    }
    const blocks = Array.from({ length: lane.columns }, (_, at) => (at < 8 ? at : 1_000 * (lane.session + 1) + at));
    // The last block is never full.
    return { t: index / REQUESTS_PER_SECOND, in: blocks.length * 64 - 10, hash_ids: blocks };
  });
  const columnRefs = requests.reduce((sum, request) => sum + request.hash_ids.length - 1, 0);
  return { text: JSON.stringify({ block_size: 64, requests }), requests: requests.length, columnRefs };
}

/** `kvss replay` at work. */
class Replay implements AsyncDisposable {
  #stderr = '';
  #ended = false;

  private constructor(
    readonly child: ChildProcess,
    readonly finished: Promise<Finished>,
  ) {
    child.stderr?.on('data', (chunk) => {
      this.#stderr += chunk;
    });
    child.once('close', () => {
      this.#ended = true;
    });
  }

  static start(...args: string[]): Replay {
    const child = spawn(process.execPath, [MAIN, 'replay', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    return new Replay(child, finish(child));
  }

  /** Waits until something is true, and throws where the replay ends before it is. */
  async until(condition: () => boolean | Promise<boolean>): Promise<void> {
    while (!(await condition())) {
      if (this.#ended) throw new Error(`the replay has ended before that: ${this.#stderr}`);
      await pause(10);
    }
  }

  /** Waits until it has said this. */
  async says(text: string): Promise<void> {
    await this.until(() => this.#stderr.includes(text));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL');
    await this.finished;
  }
}

/** What a test has in hand while the replay goes on. */
interface Scene {
  replay: Replay;
  first: TestDaemon;
  second: SecondDaemon;
  /** The second daemon is lost; looks at what the first one does without it, for this long at least. */
  outage(ms: number): Promise<void>;
  /** Waits until the replay has lost its daemon, got it back, and refilled from it. */
  comesBack(refillsBefore: number): Promise<void>;
}

const refillsOf = (daemon: TestDaemon) => daemon.metric('kvss_refills_total');

describe.each([
  ['is killed and started again', 12, killed],
  ['is stopped for ten seconds', 20, stopped],
  ['is behind a network that becomes a black hole for a while', 14, blackHole],
  ['is behind a network that becomes a black hole for good', 11, lastingBlackHole],
])('kvss replay, while one of two daemons %s,', (_fault, seconds, hurt) => {
  test.concurrent.each(['across', 'within'] as const)(
    'finishes with every request served and every byte right, striped %s',
    async (striping) => {
      using scratch = new Scratch();
      const starting = TestDaemon.start(scratch.file('a'), { ...BOX, flags: ['--tcp-port', '0'] });
      await using second = await SecondDaemon.start(scratch.file('b'), BOX);
      await using first = await starting;
      const { text, requests, columnRefs } = agentTrace(seconds);
      await using replay = Replay.start(
        scratch.file('trace.json', text),
        ...['--connect', `tcp://127.0.0.1:${first.streamPorts[0]}`, '--connect', second.proxy.address],
        ...['--striping', striping, '--bytes-per-token', BYTES_PER_TOKEN[striping]],
        ...['--capacity-columns', '2000', '--deadline-ms', String(DEADLINE_MS), '--speed', '1', '--json'],
      );
      const scene: Scene = {
        replay,
        first,
        second,
        async outage(ms) {
          // Counters are published when an engine has a moment.
          await pause(ms / 2);
          const refills = await refillsOf(first);
          await pause(ms / 2);
          if (striping === 'within') await replay.until(async () => (await refillsOf(first)) > refills + 500);
          else expect(await refillsOf(first)).toBe(refills);
        },
        async comesBack(refillsBefore) {
          await replay.says('back');
          await replay.until(async () => (await refillsOf(second.daemon)) > refillsBefore + 1_000);
        },
      };
      // In the middle of its work: columns come back from both.
      await replay.until(async () => (await refillsOf(first)) > 2_000 && (await refillsOf(second.daemon)) > 2_000);
      await hurt(scene);
      const { code, stdout, stderr } = await replay.finished;
      expect({ code, stderr }).toEqual({
        code: 0,
        stderr: expect.stringMatching(/^kvss: .* lost: .*\n(kvss: .* back\n)?$/),
      });
      const report = JSON.parse(stdout);
      expect(report).toMatchObject({ requests, calls: 2 * requests, columnRefs, mismatches: 0 });
      expect(report.bytesVerified).toBeGreaterThan(0);
      expect(report.slowestCallMs).toBeLessThan(LONGEST_CALL_MS);
      // Where nobody says that the daemon has gone, a call finds out by waiting as long as it may.
      if (hurt !== killed) expect(report.slowestCallMs).toBeGreaterThan(DEADLINE_MS * 0.9);
    },
  );
});

async function killed({ replay, second, outage, comesBack }: Scene): Promise<void> {
  await second.kill();
  await replay.says('lost');
  await outage(1_000);
  await second.startAgain();
  await comesBack(0);
}

async function stopped({ replay, second, outage, comesBack }: Scene): Promise<void> {
  const stoppedAt = performance.now();
  const refills = await refillsOf(second.daemon);
  await second.daemon.freeze();
  await replay.says('lost');
  await outage(1_000);
  await pause(10_000 - (performance.now() - stoppedAt));
  second.daemon.kill('SIGCONT');
  await comesBack(refills);
}

async function blackHole({ replay, second, outage, comesBack }: Scene): Promise<void> {
  const refills = await refillsOf(second.daemon);
  second.proxy.swallow({ out: true, back: true });
  await replay.says('lost');
  // Long enough for an attempt to connect that ends nowhere.
  await outage(1_000);
  second.proxy.heal();
  await comesBack(refills);
}

async function lastingBlackHole({ replay, second, outage }: Scene): Promise<void> {
  second.proxy.swallow({ out: true, back: true });
  await replay.says('lost');
  await outage(1_000);
}
