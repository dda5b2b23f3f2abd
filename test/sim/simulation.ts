import { native } from '../../src/binding/native.js';
import { type Clock, systemClock } from '../../src/common/clock.js';
import type { KvssError } from '../../src/common/errors.js';
import { KvssDaemon } from '../../src/kvss/daemon.js';
import { FrameType } from '../../src/proto/frames.js';
import { LaneKind } from '../../src/proto/generated.js';
import type { Hit } from '../../src/swdriver/hit.js';
import type { Model } from '../../src/swdriver/model.js';
import { SwDriver } from '../../src/swdriver/sw_driver.js';
import type { EmulatedRuntime } from '../../src/wafer/emulated_runtime.js';
import { RemoteWafer } from '../../src/wafer/remote_wafer.js';
import { StampingRuntime } from '../../src/wafer/stamping_runtime.js';
import { Wafer } from '../../src/wafer/wafer.js';
import { parseWaferConfig, type WaferConfigInput } from '../../src/wafer/wafer_config.js';
import { WaferRuntime } from '../../src/wafer/wafer_runtime.js';
import { WaferServer } from '../../src/wafer/wafer_server.js';
import { hashSeeds } from './chance.js';
import { History } from './history.js';
import { type Connection, Kernel, Process, skewed } from './kernel.js';
import { PatientRequest, PatientRuntime } from './patient_runtime.js';
import { Random } from './random.js';
import { SimClock } from './sim_clock.js';

/** What simulations have seen, so that nobody takes an empty one for a good one. */
export interface Totals {
  seeds: number;
  steps: number;
  calls: number;
  columnsStored: number;
  columnsVerified: number;
  linesVerified: number;
  /** Parts of drafts and windows that runtimes got back. */
  groupParts: number;
  misses: number;
  /** Columns that were spoilt while a runtime was reading them, for a reason: they must not count. */
  columnsVoid: number;
  /** Hits that were released while a runtime was reading them. */
  earlyReleases: number;
  /** Columns that lookups met in their bucket and that were others. */
  collisions: number;
  completions: number;
  gatedCommands: number;
  faults: Record<string, number>;
}

export function noTotals(): Totals {
  return {
    seeds: 0,
    steps: 0,
    calls: 0,
    columnsStored: 0,
    columnsVerified: 0,
    linesVerified: 0,
    groupParts: 0,
    misses: 0,
    columnsVoid: 0,
    earlyReleases: 0,
    collisions: 0,
    completions: 0,
    gatedCommands: 0,
    faults: {},
  };
}

/** A promise was broken. The message has the seed and the last turns. */
export class Violation extends Error {}

const COLUMN_TOKENS = 4;
const BYTES_PER_TOKEN = [16, 32, 48, 16, 16, 32, 16, 16];
const TENANTS = ['acme', 'globex'];
const DEADLINE_MS = 40;
const CONNECT_DEADLINE_MS = 100;
const STEPS = 800;
/** Most that a patient runtime pauses; now and then beyond the deadline of calls and of pins. */
const PAUSES_MS = [0.05, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.5, 0.5, 1, 1, 2, 2, 5, 50, 250];
const TRACE_TURNS = 60;
/** Turns until a liveness phase must have come to rest. */
const MOST_TURNS_TO_REST = 400_000;
/** More than anything waits for: retries, deadlines and silences together. */
const LONGEST_REST_MS = 120_000;

/** Groups besides the first; the memory of emulated wafers has pieces of one group. */
const GROUPS = [[], [], ['draft'], ['sliding'], ['draft', 'sliding']] as const;

/** How a seed's world is built. */
export interface Shape {
  link: 'shm' | 'stream';
  /** Where the runtime's memory is. */
  memory: 'none' | 'local' | 'wafer';
  striping: 'across' | 'within';
  daemons: number;
  shardsPerDaemon: number;
  drivers: number;
  /** Columns that shards have room for. */
  roomColumns: number;
  wioStreams: number;
  checksums: boolean;
  placeBytes: number;
  faults: 'none' | 'few' | 'many';
  /** Bits of the hash of a column; few make collisions. */
  hashBits: number;
  /** Whether runtimes without memory of their own take their time to read and write slots. */
  patient: boolean;
  /** What the model has besides the layers that see all tokens. */
  groups: readonly ('draft' | 'sliding')[];
}

function shapeOf(random: Random, seed: number): Shape {
  const link = random.pick(['shm', 'stream', 'stream'] as const);
  const memory =
    link === 'shm' ? random.pick(['none', 'none', 'local'] as const) : random.pick(['none', 'local', 'wafer'] as const);
  // A wafer's boxes have four domains each.
  const shards = memory === 'none' ? random.between(1, 4) : 4;
  const daemons = random.between(1, 2);
  const striping = random.pick(['across', 'within'] as const);
  const shardsPerDaemon = striping === 'across' ? Math.max(1, Math.floor(shards / daemons)) : shards;
  return {
    link,
    memory,
    striping,
    daemons,
    shardsPerDaemon,
    drivers: random.between(1, 2),
    roomColumns: random.between(3, 14),
    wioStreams: random.between(1, 2),
    checksums: random.chance(0.5),
    placeBytes: random.between(1, 8) * 64,
    faults: random.pick(['none', 'few', 'many', 'many'] as const),
    ...later(new Random(seed ^ 0x5bd1e995), memory),
    groups: memory === 'none' ? new Random(seed ^ 0x27d4eb2f).pick(GROUPS) : [],
  };
}

/** What came to shapes later, of chance of its own: worlds that were known before stay what they were. */
function later(random: Random, memory: Shape['memory']): Pick<Shape, 'hashBits' | 'patient'> {
  return { hashBits: random.pick([32, 8, 2]), patient: memory === 'none' && random.chance(0.7) };
}

interface SimDriver {
  process: Process;
  driver: SwDriver;
  runtime: EmulatedRuntime;
  /** How often a stripe has gone down. */
  downs: number;
  /** How often each tenant was forgotten. */
  forgotten: Map<string, number>;
  wafer: RemoteWafer | undefined;
  carrier: { process: Process; server: WaferServer } | undefined;
}

interface SimDaemon {
  address: string;
  process: Process;
  daemon: KvssDaemon | undefined;
  starting: boolean;
  stopping: boolean;
}

/** One seed: a machine room with everything in it that the product ships, and a world that goes wrong. */
export class Simulation {
  readonly #random: Random;
  readonly #clock = new SimClock();
  readonly #history = new History((what) => this.#violate(`order: ${what}`));
  readonly #kernel: Kernel;
  readonly #shape: Shape;
  readonly #processes = new Map<string, Process>();
  readonly #daemons: SimDaemon[] = [];
  readonly #drivers: SimDriver[] = [];
  readonly #wafers: Process[] = [];
  /** Drivers whose wafer has gone. */
  readonly #widows: SimDriver[] = [];
  readonly #prompts: Uint32Array[] = [];
  readonly #trace: string[] = [];
  readonly #pending = new Map<Promise<void>, string>();
  #violation: string | undefined;
  #nextName = 1;
  #turns = 0;

  constructor(
    readonly seed: number,
    private readonly totals: Totals,
    shape: Partial<Shape> = {},
  ) {
    this.#random = new Random(seed);
    this.#shape = { ...shapeOf(this.#random, seed), ...shape };
    hashSeeds.random = new Random(seed);
    this.#kernel = new Kernel(this.#clock, this.#random, this.#history, (name) => this.#process(name));
  }

  /** Runs the seed to its end. Throws a Violation. */
  async run(): Promise<void> {
    const restore = install(this.#kernel, this.#clock);
    const escaped = (thrown: unknown) =>
      this.#violate(`nobody caught: ${thrown instanceof Error ? thrown.stack : thrown}`);
    process.on('unhandledRejection', escaped);
    try {
      await this.#build();
      await this.#live();
      await this.#rest();
      await this.#close();
    } catch (thrown) {
      if (this.#violation === undefined) throw thrown;
    } finally {
      process.off('unhandledRejection', escaped);
      restore();
      this.#tearDown();
      this.#addTotals();
    }
    if (this.#violation !== undefined) {
      const shape = JSON.stringify(this.#shape);
      throw new Violation(`seed ${this.seed}: ${this.#violation}\n${shape}\nlast turns:\n${this.#trace.join('\n')}`);
    }
  }

  // ---- building ------------------------------------------------------------------------------------------------

  #process(name: string): Process {
    const known = this.#processes.get(name);
    if (known) return known;
    const made = new Process(name);
    this.#processes.set(name, made);
    return made;
  }

  async #build(): Promise<void> {
    const { daemons } = this.#shape;
    for (let index = 0; index < daemons; index += 1) {
      const daemon: SimDaemon = {
        address: `/kvss-sim/d${index}`,
        process: this.#process(`daemon${index}`),
        daemon: undefined,
        starting: false,
        stopping: false,
      };
      this.#daemons.push(daemon);
      await this.#until(this.#start(daemon));
    }
    for (let index = 0; index < this.#shape.drivers; index += 1) await this.#until(this.#startDriver());
  }

  #bytesPerToken(): number[] {
    const { striping, daemons, shardsPerDaemon } = this.#shape;
    return BYTES_PER_TOKEN.slice(0, striping === 'across' ? daemons * shardsPerDaemon : shardsPerDaemon);
  }

  /** Layers of the model, and the bytes that they take: a draft is not on every shard. */
  #layers(): Pick<Model, 'bytesPerToken' | 'groups'> {
    const bytesPerToken = this.#bytesPerToken();
    const { groups } = this.#shape;
    if (groups.length === 0) return { bytesPerToken };
    const draft = { name: 'draft', bytesPerToken: bytesPerToken.map((_, shard) => (shard % 2 === 0 ? 16 : 0)) };
    const sliding = {
      ...{ name: 'sliding', bytesPerToken: bytesPerToken.map(() => 32) },
      ...{ windowTokens: COLUMN_TOKENS + 1, capacityShare: 0.5 },
    };
    const others = groups.map((name) => (name === 'draft' ? draft : sliding));
    return { groups: [{ name: 'full', bytesPerToken }, ...others] };
  }

  async #start(daemon: SimDaemon): Promise<void> {
    const { shardsPerDaemon } = this.#shape;
    daemon.starting = true;
    daemon.process = new Process(daemon.process.name);
    this.#kernel.current = daemon.process;
    // Grants are whole pages: enough for all drivers and for the sessions that dead ones have left.
    const shards = Array.from({ length: shardsPerDaemon }, () => ({
      // Several groups leave room for pages that may be huge ones.
      budget: this.#shape.groups.length > 0 ? 2 ** 26 : 4096 * 16,
    }));
    const started = KvssDaemon.start({
      socket: `${SOCKETS}${daemon.address}`,
      shards,
      streams: [{ path: `${SOCKETS}${daemon.address}.streams` }],
      http: false,
      logLevel: 'silent',
      ringEntries: 8,
      drainTimeoutMs: 50,
    });
    const { process: owner } = daemon;
    daemon.daemon = await started;
    daemon.starting = false;
    if (!owner.alive) daemon.daemon = undefined;
  }

  /** A wafer for one driver. */
  #startWafer(address: string): { process: Process; server: WaferServer } {
    const process = new Process(`wafer of ${address}`);
    this.#kernel.current = process;
    const server = WaferServer.start(parseWaferConfig({ ...this.#waferConfig(), listen: [{ path: address }] }));
    this.#wafers.push(process);
    return { process, server };
  }

  #waferConfig(): WaferConfigInput {
    return {
      boxes: [{ bytesPerToken: this.#bytesPerToken() }],
      memoryColumns: this.#random.between(20, 60),
      columnTokens: COLUMN_TOKENS,
      ...(this.#random.chance(0.3) ? { prefillTokensPerSecond: 10_000 } : {}),
    };
  }

  async #startDriver(): Promise<void> {
    const shape = this.#shape;
    const name = `driver${this.#nextName++}`;
    const process = this.#process(name);
    const suffix = shape.link === 'shm' ? '' : '.streams';
    const daemons = this.#daemons.map(
      ({ address }) => `${shape.link === 'shm' ? '' : 'unix:'}${SOCKETS}${address}${suffix}@${name}`,
    );
    const bytesPerToken = this.#bytesPerToken();
    const columnBytes = bytesPerToken.reduce((sum, bytes) => sum + bytes * COLUMN_TOKENS, 0);
    let wafer: RemoteWafer | undefined;
    const address = `${SOCKETS}/kvss-sim/${name}.wafer`;
    const carrier = shape.memory === 'wafer' ? this.#startWafer(address) : undefined;
    try {
      if (carrier) wafer = await RemoteWafer.connect(`unix:${address}@${name}`, { deadlineMs: CONNECT_DEADLINE_MS });
    } catch {
      // The network had it so: this driver never comes to life.
      return;
    }
    const local = shape.memory === 'local' ? new Wafer(parseWaferConfig(this.#waferConfig())) : undefined;
    const driver = await SwDriver.connect({
      daemons,
      lazy: true,
      clock: clockOf(process, this.#clock),
      striping: shape.striping,
      capacityColumns: shape.roomColumns,
      deadlineMs: DEADLINE_MS,
      pinDeadlineMs: 200,
      connectDeadlineMs: CONNECT_DEADLINE_MS,
      ringEntries: 8,
      tagKey: new Uint8Array(16).fill(7),
      wioStreams: shape.wioStreams,
      placeBytes: shape.placeBytes,
      checksums: shape.checksums,
      hashBits: shape.hashBits,
      ...(wafer ? { carrier: wafer.carrier } : {}),
      ...(local ? { memory: local.memory } : {}),
      model: {
        id: 'sim',
        revision: '1',
        dtype: 'stamp',
        layout: 'line64',
        ...this.#layers(),
        columnTokens: COLUMN_TOKENS,
      },
    });
    const port = wafer ?? local;
    const runtime = port ? new WaferRuntime(port, COLUMN_TOKENS, columnBytes) : this.#runtimeInSlots(process);
    const made: SimDriver = { process, driver, runtime, wafer, carrier, downs: 0, forgotten: new Map() };
    driver.on('down', () => {
      made.downs += 1;
    });
    this.#drivers.push(made);
  }

  /** A runtime that has no memory of its own. */
  #runtimeInSlots(process: Process): EmulatedRuntime {
    if (!this.#shape.patient) return new StampingRuntime(COLUMN_TOKENS);
    const pause = async () => {
      await this.#sleep(this.#random.unit() * this.#random.pick(PAUSES_MS));
      if (!process.alive) await new Promise(() => {});
    };
    return new PatientRuntime(COLUMN_TOKENS, { pause, now: () => this.#clock.now() - this.#clock.jumpedMs });
  }

  // ---- living --------------------------------------------------------------------------------------------------

  async #live(): Promise<void> {
    const rate = { none: 0, few: 0.004, many: 0.02 }[this.#shape.faults];
    this.#kernel.failureChance = rate * 5;
    // Who takes his time leaves room for others, and gets less done.
    const [most, steps] = this.#shape.patient ? [8, 2 * STEPS] : [4, STEPS];
    for (let step = 0; step < steps; step += 1) {
      if (this.#random.chance(rate)) this.#breakSomething();
      else if (this.#pending.size < most && this.#random.chance(0.1)) this.#begin();
      else await this.#turn(0.06);
      this.#check();
    }
  }

  /** One conversation of one driver, as a promise that the simulation does not wait for. */
  #begin(): void {
    const driver = this.#random.pick(this.#drivers);
    if (!driver) return;
    const name = `call of ${driver.process.name} from ${this.#clock.now().toFixed(1)} ms`;
    const call: Promise<void> = this.#converse(driver).then(
      () => {
        this.#pending.delete(call);
      },
      (thrown: unknown) => {
        this.#pending.delete(call);
        // A wafer that cannot be reached is an accelerator that has gone; nothing else may throw.
        const lost = driver.carrier && ['KVSS_UNREACHABLE', 'KVSS_TIMEOUT'].includes((thrown as KvssError).code);
        if (driver.process.alive && !lost) this.#violate(`a call threw: ${(thrown as Error).stack}`);
      },
    );
    this.#pending.set(call, name);
    driver.process.onDeath.push(() => this.#pending.delete(call));
  }

  async #converse(host: SimDriver): Promise<void> {
    const { driver, runtime, process } = host;
    // Where one pauses, others have to meet him.
    const isolationId = this.#random.pick(this.#shape.patient ? [...TENANTS, 'acme', 'acme'] : TENANTS);
    if (this.#random.chance(0.04)) {
      host.forgotten.set(isolationId, (host.forgotten.get(isolationId) ?? 0) + 1);
      await this.#inTime('forget', () => driver.forget({ isolationId }), process);
      return;
    }
    const tokens = this.#prompt();
    const later = this.#random.chance(0.3) ? this.#random.between(1, 10) : 0;
    const sequence = driver.openSequence({ isolationId });
    const now = tokens.subarray(0, tokens.length - later);
    const hit = sequence.match(now);
    const mayBeVoid = this.#reasonsSince(host, hit, isolationId);
    const request = runtime.request(isolationId, tokens);
    const patient = request instanceof PatientRequest ? request : undefined;
    if (patient) patient.onSpoilt = (column) => this.#spoilt(host, hit, column, mayBeVoid);
    const busyMs = () => patient?.busyMs ?? 0;
    try {
      if (this.#random.chance(0.2)) await this.#sleep(this.#random.between(1, 80));
      const refilling = this.#inTime('refill', () => hit.refill(request.sink), process, busyMs);
      const early = patient !== undefined && hit.columns > 0 && this.#random.chance(0.4);
      if (early) {
        await this.#sleep(this.#random.unit());
        hit.release();
        this.totals.earlyReleases += 1;
      }
      const { columns, quiet } = await refilling;
      await request.accept(columns, quiet);
      this.totals.columnsVerified += columns;
      if (columns < hit.columns) this.totals.misses += 1;
      if (this.#random.chance(0.2)) await this.#sleep(this.#random.between(1, 80));
      if (!early) this.#checkHeld(host, hit, patient, mayBeVoid);
      hit.release();
      await request.compute();
      const first = await this.#inTime('evict', () => sequence.evict(request.source), process, busyMs);
      sequence.append(tokens.subarray(tokens.length - later));
      const second = await this.#inTime('evict', () => sequence.evict(request.source), process, busyMs);
      this.totals.columnsStored += first.stored + second.stored;
    } finally {
      request.end();
      sequence.close();
    }
  }

  /** Says whether something has happened since now that may end a hit. */
  #reasonsSince(host: SimDriver, hit: Hit, isolationId: string): () => boolean {
    const events = () => host.downs + (host.forgotten.get(isolationId) ?? 0) + this.#kernel.revokedLanes(host.process);
    // Not held from the beginning: its memory had been taken away, and the driver has yet to hear of it.
    const before = hit.held ? events() : undefined;
    return () => !host.process.alive || this.#clock.now() >= hit.pinDeadline || events() !== before;
  }

  /** P1, P4: what a runtime is reading in place stays what it is, also where the hit has been released meanwhile. */
  #spoilt({ process }: SimDriver, hit: Hit, column: number, mayBeVoid: () => boolean): void {
    if (hit.held) this.#violate(`${process.name} read a wrong column ${column} of a hit that is held`);
    else if (!mayBeVoid()) this.#violate(`column ${column} was spoilt while ${process.name} read it`);
    this.totals.columnsVoid += 1;
  }

  /** P4: a hit is held until something ends it, and as long as it is, its columns are what they were. */
  #checkHeld({ process }: SimDriver, hit: Hit, request: PatientRequest | undefined, mayBeVoid: () => boolean): void {
    // What came over streams lay in places that others have by now.
    const spoilt = this.#shape.link === 'shm' && request?.stillRight() === false;
    if (hit.held && spoilt) this.#violate(`a hit that ${process.name} holds has changed`);
    if (!hit.held && !mayBeVoid()) this.#violate(`a hit of ${process.name} ended without a reason`);
  }

  /** A prompt from a small tree, so that prefixes meet. */
  #prompt(): Uint32Array {
    // Most of what is asked was asked before.
    if (this.#prompts.length > 0 && this.#random.chance(this.#shape.patient ? 0.8 : 0.6))
      return this.#random.pick(this.#prompts);
    const tokens: number[] = [];
    const columns = this.#random.between(1, 6);
    let node = 1;
    for (let column = 0; column < columns; column += 1) {
      node = node * 3 + Number(this.#random.chance(0.25));
      for (let at = 0; at < COLUMN_TOKENS; at += 1) tokens.push(node * COLUMN_TOKENS + at);
    }
    const prompt = Uint32Array.from(tokens.slice(0, tokens.length - this.#random.below(2)));
    this.#prompts.push(prompt);
    return prompt;
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.#clock.schedule(ms, resolve);
    });
  }

  /** P3: a call ends by its deadline, whatever happens. Time that jumped gave it no chance. */
  async #inTime<T>(what: string, call: () => Promise<T>, process: Process, busyMs = () => 0): Promise<T> {
    this.totals.calls += 1;
    // What the runtime itself takes does not count.
    const now = () => this.#clock.now() - this.#clock.jumpedMs - busyMs();
    const from = now();
    const answer = await call();
    const took = now() - from;
    if (process.alive && took > DEADLINE_MS + 1) {
      this.#violate(`${what} took ${took.toFixed(1)} ms, its deadline is ${DEADLINE_MS} ms`);
    }
    return answer;
  }

  /** One turn of whoever is next, and everything that follows from it at once. `idleMs`: most that time moves on. */
  async #turn(idleMs: number): Promise<boolean> {
    this.#turns += 1;
    const actors = [...this.#kernel.actors()];
    let worked = false;
    // The one that is next has to find something to do; most have nothing.
    for (let tries = actors.length; tries > 0 && !worked; tries -= 1) {
      const index = this.#random.below(tries);
      const actor = actors[index] as (typeof actors)[number];
      actors[index] = actors[tries - 1] as (typeof actors)[number];
      worked = actor.turn();
      if (worked) this.#note(actor.name);
    }
    await drained();
    if (idleMs > 0) this.#clock.moveTo(this.#clock.now() + this.#random.unit() * idleMs);
    while (this.#clock.runDue()) {
      worked = true;
      this.#note('timer');
      await drained();
    }
    if (this.#turns % 50 === 0) this.#kernel.tidy();
    return worked;
  }

  // ---- faults --------------------------------------------------------------------------------------------------

  #breakSomething(): void {
    const random = this.#random;
    const faults: Record<string, () => boolean> = {
      reset: () => this.#withConnection((connection) => connection.end()),
      blackHole: () => this.#withConnection((connection) => connection.swallow(random.pick([0, 1] as const), true)),
      heal: () => this.#withConnection((connection) => this.#heal(connection)),
      flip: () => this.#flip(),
      killDaemon: () => this.#killDaemon(),
      stopDaemonGently: () => this.#stopDaemonGently(),
      startDaemon: () => this.#startDead(),
      freeze: () => this.#freeze(random.pick(this.#daemons).process),
      thaw: () => this.#thaw(),
      freezeWafer: () => this.#wafers.length > 0 && this.#freeze(random.pick(this.#wafers)),
      killWafer: () => this.#killWafer(),
      killDriver: () => this.#killDriver(),
      startDriver: () => this.#startAnother(),
      jump: () => this.#jump(),
      skew: () => this.#skew(),
    };
    const name = random.pick(Object.keys(faults));
    if (!faults[name]?.()) return;
    this.totals.faults[name] = (this.totals.faults[name] ?? 0) + 1;
    this.#note(`FAULT ${name}`);
  }

  #withConnection(task: (connection: Connection) => void): boolean {
    const open = this.#kernel.connections.filter(({ over }) => !over);
    if (open.length === 0) return false;
    task(this.#random.pick(open));
    return true;
  }

  #heal(connection: Connection): void {
    for (const end of [0, 1] as const) connection.swallow(end, false);
  }

  /** Payload with checksums may be damaged; the network's own checksums are not trusted then. */
  #flip(): boolean {
    if (!this.#shape.checksums) return false;
    const payload = this.#kernel.connections.filter(
      ({ over, hasWire, kind }) => !over && hasWire && (kind === LaneKind.wioEvict || kind === LaneKind.wioRefill),
    );
    if (payload.length === 0) return false;
    const connection = this.#random.pick(payload);
    const from = connection.kind === LaneKind.wioEvict ? 0 : 1;
    const waiting = connection.wire.waiting(from);
    if (waiting <= 0) return false;
    connection.wire.flip(from, this.#random.below(waiting * 8));
    return true;
  }

  #killDaemon(): boolean {
    const daemon = this.#random.pick(this.#daemons);
    if (!daemon.process.alive || daemon.starting) return false;
    this.#kernel.kill(daemon.process);
    daemon.daemon = undefined;
    return true;
  }

  #stopDaemonGently(): boolean {
    const daemon = this.#random.pick(this.#daemons);
    if (!daemon.process.runs || !daemon.daemon) return false;
    const { daemon: stopping, process } = daemon;
    daemon.daemon = undefined;
    daemon.stopping = true;
    process.onDeath.push(() => {
      daemon.stopping = false;
    });
    stopping.stop().then(() => {
      if (process.alive) this.#kernel.kill(process);
    });
    return true;
  }

  #startDead(): boolean {
    const daemon = this.#random.pick(this.#daemons);
    // One at a time: what a process asks for later in its start would be put down to the one that began last.
    if (daemon.process.alive || this.#daemons.some(({ starting }) => starting)) return false;
    this.#start(daemon).catch((thrown) => this.#violate(`a daemon did not start: ${(thrown as Error).stack}`));
    return true;
  }

  #freeze(process: Process): boolean {
    if (!process.runs) return false;
    process.stopped = true;
    return true;
  }

  #thaw(): boolean {
    const frozen = [...this.#daemons.map(({ process }) => process), ...this.#wafers].filter(({ stopped }) => stopped);
    if (frozen.length === 0) return false;
    this.#random.pick(frozen).stopped = false;
    return true;
  }

  #killDriver(): boolean {
    if (this.#drivers.length < 2) return false;
    const [victim] = this.#drivers.splice(this.#random.below(this.#drivers.length), 1) as [SimDriver];
    this.#kernel.kill(victim.process);
    return true;
  }

  /** Its driver is of no use afterwards, and is replaced. */
  #killWafer(): boolean {
    const victims = this.#drivers.filter(({ carrier }) => carrier);
    if (victims.length < 2) return false;
    const victim = this.#random.pick(victims);
    this.#drivers.splice(this.#drivers.indexOf(victim), 1);
    this.#kernel.kill((victim.carrier as { process: Process }).process);
    this.#widows.push(victim);
    return true;
  }

  #startAnother(): boolean {
    if (this.#drivers.length >= 3) return false;
    this.#startDriver().catch((thrown) => this.#violate(`a driver did not start: ${(thrown as Error).stack}`));
    return true;
  }

  #jump(): boolean {
    this.#clock.jump(this.#random.between(1, 500));
    return true;
  }

  /** The next hello that is on its way comes from another release. */
  #skew(): boolean {
    for (const { ends, over } of this.#kernel.connections) {
      const packet = ends[1].inbox[0];
      if (
        over ||
        !packet ||
        new DataView(packet.bytes.buffer, packet.bytes.byteOffset).getUint16(6, true) !== FrameType.hello
      )
        continue;
      packet.bytes = skewed(packet.bytes);
      return true;
    }
    return false;
  }

  // ---- ending --------------------------------------------------------------------------------------------------

  /** Faults end, and everything must come to rest and work again. */
  async #rest(): Promise<void> {
    this.#kernel.failureChance = 0;
    for (const { process } of this.#daemons) process.stopped = false;
    for (const process of this.#wafers) process.stopped = false;
    // A runtime without its accelerator does not stay.
    for (const { process } of this.#widows.splice(0)) this.#kernel.kill(process);
    for (const connection of this.#kernel.connections) this.#heal(connection);
    await this.#settle(() => this.#daemons.every(({ starting, stopping }) => !starting && !stopping));
    for (const daemon of this.#daemons) {
      if (!daemon.process.alive) await this.#until(this.#start(daemon));
    }
    await this.#settle(() => this.#pending.size === 0);
    if (this.#drivers.length === 0) await this.#until(this.#startDriver());
    await this.#settle(() => this.#drivers.every(({ driver }) => driver.usable));
    for (const driver of this.#drivers) await this.#until(this.#proveAlive(driver));
  }

  /** After the faults: what is evicted now is there, all of it. */
  async #proveAlive({ driver, runtime, process }: SimDriver): Promise<void> {
    const tokens = Uint32Array.from({ length: 2 * COLUMN_TOKENS }, (_, at) => 1_000_000 + at);
    for (let round = 0; ; round += 1) {
      const sequence = driver.openSequence({ isolationId: 'last' });
      const request = runtime.request('last', tokens);
      const hit = sequence.match(tokens);
      const { columns, quiet } = await hit.refill(request.sink);
      await request.accept(columns, quiet);
      hit.release();
      await request.compute();
      await sequence.evict(request.source);
      request.end();
      if (columns === 2) return;
      // Connections that had died are noticed one call after the other.
      if (round === 40)
        return this.#violate(`${process.name} does not get its columns back after all faults have ended`);
      await this.#sleep(500);
    }
  }

  async #close(): Promise<void> {
    for (const { driver, wafer, runtime, carrier } of this.#drivers.splice(0)) {
      this.totals.linesVerified += runtime.stats.linesVerified;
      this.totals.collisions += driver.collisions;
      for (const { partsRefilled } of driver.groupStats.slice(1)) this.totals.groupParts += partsRefilled;
      await driver.close();
      await wafer?.close();
      if (carrier?.process.alive) await this.#until(carrier.server.stop());
    }
    const free = () =>
      this.#kernel.shards.every(
        (shard) => shard.core.freeBytes() === shard.memory().budgetBytes && shard.sessions.size === 0,
      );
    await this.#settle(free);
    if (!free()) this.#violate('memory of sessions that have ended is not free');
    for (const shard of this.#kernel.shards) {
      if (shard.core.tenantAlarms() > 0) this.#violate('a column was asked for under another tenant');
    }
    await this.#until(Promise.all(this.#daemons.map(({ daemon }) => daemon?.stop())).then(() => {}));
  }

  /** Gives turns until `promise` has been kept. */
  async #until(promise: Promise<void>): Promise<void> {
    let done = false;
    promise.then(
      () => {
        done = true;
      },
      (thrown: unknown) => {
        done = true;
        this.#violate(`failed: ${(thrown as Error).stack}`);
      },
    );
    await this.#settle(() => done);
    if (!done)
      this.#violate(`nothing happens any more, and ${[...this.#pending.values()].join(', ') || 'a step'} waits`);
    this.#check();
  }

  /** Gives turns, and moves time on where nobody has anything to do, until something is true. */
  async #settle(condition: () => boolean): Promise<void> {
    const until = this.#clock.now() + LONGEST_REST_MS;
    await drained();
    for (let turn = 0; turn < MOST_TURNS_TO_REST && !condition(); turn += 1) {
      this.#check();
      if (await this.#turn(0)) continue;
      if (this.#clock.nextDue === Number.POSITIVE_INFINITY || this.#clock.nextDue > until) break;
      this.#clock.moveTo(this.#clock.nextDue);
    }
    if (!condition()) {
      const waiting = [...this.#pending.values()].join(', ');
      this.#violate(`no rest: ${condition.toString()} ${waiting}\n${this.#state()}`);
    }
    this.#check();
  }

  /** What a shard still has, for people. */
  #state(): string {
    return this.#kernel.shards
      .map(
        ({ core, sessions, process }, index) =>
          `shard ${index} of ${process.name}: ${core.freeBytes()} bytes free, sessions ${[...sessions]}`,
      )
      .join('\n');
  }

  #check(): void {
    for (const { runtime, process } of this.#drivers) {
      if (runtime.stats.mismatches > 0) this.#violate(`${process.name} was given wrong bytes`);
    }
    if (this.#violation !== undefined) throw new Violation(this.#violation);
  }

  #violate(what: string): void {
    this.#violation ??= what;
  }

  #note(what: string): void {
    this.#trace.push(`${this.#clock.now().toFixed(2)} ms  ${what}`);
    if (this.#trace.length > TRACE_TURNS) this.#trace.shift();
  }

  #tearDown(): void {
    for (const process of this.#processes.values()) if (process.alive) this.#kernel.kill(process);
    for (const { process } of this.#daemons) if (process.alive) this.#kernel.kill(process);
    for (const process of this.#wafers) if (process.alive) this.#kernel.kill(process);
    this.#kernel.shutDown();
  }

  #addTotals(): void {
    this.totals.seeds += 1;
    this.totals.steps += this.#turns;
    this.totals.completions += this.#history.completions;
    this.totals.gatedCommands += this.#history.gatedCommands;
  }
}

/** Sockets of the simulated machine are names; the daemon makes this directory all the same. */
const SOCKETS = '/tmp';

/** Everything that can follow from what has happened has happened. */
function drained(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

/** A dead process hears no timers. */
function clockOf(process: Process, clock: SimClock): Clock {
  return {
    now: () => clock.now(),
    schedule: (ms, task) =>
      clock.schedule(ms, () => {
        if (process.alive) task();
      }),
  };
}

/** Puts the simulated machine in the place of the real one. */
function install(kernel: Kernel, clock: SimClock): () => void {
  const binding = kernel.binding();
  const before = Object.fromEntries(Object.keys(binding).map((key) => [key, native[key as keyof typeof native]]));
  const { now, schedule } = systemClock;
  Object.assign(native, binding);
  Object.assign(systemClock, {
    now: () => clock.now(),
    schedule: (ms: number, task: () => void) => clock.schedule(ms, task),
  });
  return () => {
    Object.assign(native, before);
    Object.assign(systemClock, { now, schedule });
  };
}
