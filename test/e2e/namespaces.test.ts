import { spawnSync } from 'node:child_process';
import { describe, expect, onTestFinished, test } from 'vitest';
import { SwDriver } from '../../src/index.js';
import { Scratch, TestDaemon, until } from './support.js';
import { promptOf, Work } from './work.js';

const DEADLINE_MS = 500;
/** Of one call, on a busy machine. The promise is the deadline. */
const LONGEST_CALL_MS = DEADLINE_MS + 4_000;
const PORT = 9411;
const TOKEN = 'a secret between two hosts';

/** The name of the far end of the wire; each host has one of that name. */
const FAR = 'wire';

function ip(...args: string[]): void {
  const { error, status, stderr } = spawnSync('ip', args, { encoding: 'utf8' });
  if (error || status !== 0) throw new Error(`ip ${args.join(' ')}: ${error?.message ?? stderr.trim()}`);
}

/** Another host, as far as the network goes: a network namespace with a wire to the test's own. */
class Host {
  readonly name: string;
  readonly address: string;
  readonly #near: string;

  constructor(index: number) {
    // Of this process only, and no longer than names of interfaces may be. Addresses are of a range that is set aside
    // for tests of networks.
    this.name = `kvss-${process.pid}-${index}`;
    this.#near = `kv${process.pid}-${index}`;
    const net = `198.18.${process.pid % 256}`;
    this.address = `${net}.${4 * index + 2}`;
    try {
      ip('netns', 'add', this.name);
      ip('link', 'add', this.#near, 'type', 'veth', 'peer', 'name', FAR, 'netns', this.name);
      ip('address', 'add', `${net}.${4 * index + 1}/30`, 'dev', this.#near);
      ip('-n', this.name, 'address', 'add', `${this.address}/30`, 'dev', FAR);
      ip('link', 'set', this.#near, 'up');
      ip('-n', this.name, 'link', 'set', 'lo', 'up');
      this.plug();
    } catch (thrown) {
      this.remove();
      throw thrown;
    }
  }

  /** What runs a command on this host. */
  get through(): string[] {
    return ['ip', 'netns', 'exec', this.name];
  }

  plug(): void {
    ip('-n', this.name, 'link', 'set', FAR, 'up');
  }

  unplug(): void {
    ip('-n', this.name, 'link', 'set', FAR, 'down');
  }

  /** Takes away what there is of it. The namespace goes when the last process in it has gone. */
  remove(): void {
    spawnSync('ip', ['link', 'delete', this.#near]);
    spawnSync('ip', ['netns', 'delete', this.name]);
  }
}

/** Why there can be no other hosts here, found out by making one. */
function whyNot(): string | undefined {
  if (process.getuid?.() !== 0) return 'only root can make network namespaces';
  if (spawnSync('ip', ['-V']).error) return 'there is no ip command; iproute2 has it';
  try {
    new Host(0).remove();
    return undefined;
  } catch (thrown) {
    return `the kernel makes no network namespace: ${(thrown as Error).message}`;
  }
}

const obstacle = whyNot();
if (obstacle !== undefined) console.log(`SKIPPED, several hosts: ${obstacle}`);

const STRIPINGS = {
  across: { striping: 'across', bytesPerToken: [16, 32, 24, 8] },
  within: { striping: 'within', bytesPerToken: [16, 32] },
} as const;

describe.skipIf(obstacle !== undefined)('a driver and two daemons, each on a host of its own,', () => {
  function host(index: number): Host {
    const made = new Host(index);
    // Also where a test runs out of its time and never comes to its end.
    onTestFinished(() => made.remove());
    return made;
  }

  async function daemonOn(host: Host, scratch: Scratch): Promise<TestDaemon> {
    const streams = `streams: [{ host: ${host.address}, port: ${PORT}, token: ${TOKEN} }]`;
    const config = scratch.file(`${host.name}.yaml`, streams);
    return TestDaemon.start(scratch.file(host.name), { flags: ['--config', config], through: host.through });
  }

  test.each(Object.entries(STRIPINGS))(
    'go on when a wire is pulled and plugged in again, striped %s',
    async (_name, { striping, bytesPerToken }) => {
      const within = striping === 'within';
      using scratch = new Scratch();
      const near = host(1);
      const far = host(2);
      await using _first = await daemonOn(near, scratch);
      await using _second = await daemonOn(far, scratch);
      const options = {
        daemons: [near, far].map(({ address }) => `tcp://${address}:${PORT}`),
        model: { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: [...bytesPerToken] },
        striping,
        capacityColumns: within ? 24 : 48,
        deadlineMs: DEADLINE_MS,
        connectDeadlineMs: 1_000,
      };
      await expect(SwDriver.connect(options)).rejects.toMatchObject({ code: 'KVSS_NOT_ALLOWED' });
      await using driver = await SwDriver.connect({ ...options, token: TOKEN });
      const work = new Work(driver);
      await work.goesOn(200);

      const down = new Promise((resolve) => driver.once('down', resolve));
      const up = new Promise((resolve) => driver.once('up', resolve));
      far.unplug();
      await down;
      expect(driver.usable).toBe(within);
      expect(driver.capacityColumns).toBe(within ? 24 : 0);
      if (within) {
        await work.goesOn();
      } else {
        const sequence = driver.openSequence({ isolationId: 'another' });
        const tokens = promptOf(1, 1, 1);
        expect(sequence.match(tokens).columns).toBe(0);
        const { source } = work.wafer.request('another', tokens);
        expect(await sequence.evict(source)).toMatchObject({ stored: 0, present: 0, dropped: 7 });
      }
      far.plug();
      await up;
      await until(() => driver.capacityColumns === 48);
      await work.goesOn(200);
      await work.stop();

      expect(work.wafer.stats.mismatches).toBe(0);
      expect(work.wafer.stats.bytesVerified).toBeGreaterThan(0);
      for (const ms of Object.values(work.longest)) expect(ms).toBeLessThan(LONGEST_CALL_MS);
      // Somebody had to wait: nothing says that a wire has been pulled.
      expect(Math.max(...Object.values(work.longest))).toBeGreaterThan(DEADLINE_MS * 0.9);
      const hurt = within ? 1 : 0;
      expect(work.events).toEqual([`down ${hurt}`, `up ${hurt}`]);
      expect(work.usable).toEqual(within ? [] : [false, true]);
    },
  );
});
