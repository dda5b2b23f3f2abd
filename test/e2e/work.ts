import type { SwDriver } from '../../src/index.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { pause, until } from './support.js';

/** A runtime that is at work all the time: several requests at once, of tenants that share prefixes. */
export class Work {
  readonly wafer = new StampingRuntime(64);
  readonly events: string[] = [];
  /** Whether the driver said that it can be used, in turn. */
  readonly usable: boolean[] = [];
  readonly longest = { match: 0, refill: 0, evict: 0 };
  /** Columns that came back. */
  hits = 0;
  readonly #running: Promise<void>[];
  #stopping = false;

  constructor(readonly driver: SwDriver) {
    driver.on('up', (stripe) => this.events.push(`up ${stripe}`));
    driver.on('down', (stripe) => this.events.push(`down ${stripe}`));
    driver.on('unavailable', () => this.usable.push(driver.usable));
    driver.on('available', () => this.usable.push(driver.usable));
    this.#running = Array.from({ length: 4 }, (_, lane) => this.#loop(lane + 1));
    // Looked at by stop(); a failure before that is none that nobody handles.
    for (const lane of this.#running) lane.catch(() => undefined);
  }

  /** Waits until that many columns more have come back. */
  async goesOn(columns = 60): Promise<void> {
    const from = this.hits;
    await until(() => this.hits >= from + columns);
  }

  /** Rethrows what any of the calls threw. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.#running);
  }

  async #loop(lane: number): Promise<void> {
    let state = lane * 7919;
    const random = (below: number) => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return (state >>> 8) % below;
    };
    while (!this.#stopping) {
      const tenant = `tenant ${random(3)}`;
      const tokens = promptOf(random(2), random(6), 1 + random(8));
      const sequence = this.driver.openSequence({ isolationId: tenant });
      const request = this.wafer.request(tenant, tokens);
      const hit = await this.#timed('match', () => sequence.match(tokens));
      const sink = random(3) === 0 ? slowly(request.sink) : request.sink;
      const { columns } = await this.#timed('refill', () => hit.refill(sink));
      request.accept(columns);
      hit.release();
      const { stored } = await this.#timed('evict', () => sequence.evict(request.source));
      sequence.close();
      this.hits += columns;
      // Without daemons nothing else waits.
      if (columns + stored === 0) await pause(2);
    }
  }

  async #timed<T>(name: keyof Work['longest'], call: () => T | Promise<T>): Promise<T> {
    const from = performance.now();
    try {
      return await call();
    } finally {
      this.longest[name] = Math.max(this.longest[name], performance.now() - from);
    }
  }
}

type Sink = ReturnType<StampingRuntime['request']>['sink'];

/** A sink that gives the event loop a turn in each column, so that things can go wrong meanwhile. */
function slowly(sink: Sink): Sink {
  if (!('read' in sink)) throw new Error('unexpected sink');
  return {
    async read(column, pieces) {
      await new Promise((resolve) => setImmediate(resolve));
      await sink.read(column, pieces);
    },
  };
}

/** Six columns that prompts share, and a rest of their own. */
export function promptOf(prefix: number, seed: number, rest: number): Uint32Array {
  return Uint32Array.from({ length: (6 + rest) * 64 + 5 }, (_, at) =>
    Math.imul(at + 1, at < 6 * 64 ? prefix + 77 : (prefix * 6 + seed + 1) * 2_654_435_761),
  );
}
