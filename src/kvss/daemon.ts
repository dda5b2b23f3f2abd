import { randomBytes } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { type Logger, pino } from 'pino';
import {
  type DescriptorBundle,
  type NativeChannel,
  type NativeListener,
  type NativeStreamListener,
  native,
  nativeError,
  type SessionFault,
} from '../binding/native.js';
import { KvssError, messageOf } from '../common/errors.js';
import { VERSION } from '../common/version.js';
import { listenForStreams } from '../links/listen.js';
import type { ReportedDriver } from '../proto/frames.js';
import { LaneKind, Status } from '../proto/generated.js';
import { decodeLane } from '../proto/lanes.js';
import { type DaemonConfig, type DaemonConfigInput, parseConfig, socketDirectory } from './config.js';
import { addDriverMetrics } from './driver_metrics.js';
import { type AdminServer, startAdminServer } from './http.js';
import { checkMemoryAvailable } from './memory_check.js';
import { createMetrics } from './metrics.js';
import { ParkedGrants } from './parked.js';
import { PolicyStore } from './policy_store.js';
import { Session, type SessionHost } from './session.js';
import { Shard } from './shard.js';

/** A box daemon: shards, the sessions of drivers, and an admin endpoint. */
export class KvssDaemon implements SessionHost, AsyncDisposable {
  /** Version of the package. */
  readonly version = VERSION;
  /** Another one for every start, in hexadecimal. */
  readonly epoch = randomBytes(16).toString('hex');
  /** @internal Memory of drivers that have died, as long as it waits for them. */
  readonly parked: ParkedGrants;
  readonly #startedMs = performance.now();
  readonly #sessions = new Map<number, Session>();
  #shards: readonly Shard[] = [];
  #listener: NativeListener | undefined;
  #streams: NativeStreamListener[] = [];
  #admin: AdminServer | undefined;
  #nextSession = 1;
  #stopping: Promise<void> | undefined;

  private constructor(
    /** What it was started with, defaults filled in. */
    readonly config: DaemonConfig,
    private readonly logger: Logger,
    /** What drivers may keep of which tenant. Changes are pushed to them at once. */
    readonly policies: PolicyStore,
  ) {
    policies.onChange(() => this.#announcePolicies());
    const { maxParkMs: maxMs, maxParkedGrants: maxGrants, maxParkedBytes: maxBytes = Infinity } = config;
    this.parked = new ParkedGrants({ maxMs, maxGrants, maxBytes }, (level, fields, message) =>
      this.log(level, fields, message),
    );
  }

  /**
   * Takes the memory, starts the engines and listens. Throws a KvssError that names the cause, and leaves nothing
   * behind, where any of it fails.
   */
  static async start(input: DaemonConfigInput = {}): Promise<KvssDaemon> {
    const config = parseConfig(input);
    const logger = pino({ name: 'kvss', level: config.logLevel, base: { pid: process.pid } }, pino.destination(2));
    const daemon = new KvssDaemon(config, logger, PolicyStore.open(config.policyFile));
    try {
      await daemon.#start();
      return daemon;
    } catch (thrown) {
      await daemon.stop();
      throw nativeError(thrown);
    }
  }

  async #start(): Promise<void> {
    const { config } = this;
    // Listening comes first: it is cheap, and a second daemon must not take memory before it is refused.
    mkdirSync(socketDirectory(config), { recursive: true, mode: 0o700 });
    const early: NativeChannel[] = [];
    let ready = false;
    this.#listener = new native.ControlListener(config.socket, (channel) => {
      if (ready) this.#welcome(channel);
      else early.push(channel);
    });
    checkMemoryAvailable(config.shards.reduce((sum, shard) => sum + shard.budget, 0));
    const started = await Promise.allSettled(
      config.shards.map((shard, index) =>
        Shard.start(
          {
            index,
            domain: shard.domain ?? index % 4,
            budgetBytes: shard.budget,
            hugePages: config.hugePages,
            hioMode: config.hio.mode,
            spinUs: config.hio.spinUs,
          },
          (sessionId, fault) => this.#endFaulty(sessionId, fault),
        ),
      ),
    );
    // Also where one failed: stop() closes those that did start.
    this.#shards = started.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
    const failed = started.find((outcome) => outcome.status === 'rejected');
    if (failed) throw failed.reason;
    this.#streams = listenForStreams(config.streams, 'streams', (hello, stream, token) =>
      this.#acceptStream(hello, stream, token),
    );
    if (config.http) {
      const metrics = createMetrics(this);
      addDriverMetrics(metrics, () => this.reportedDrivers(0));
      this.#admin = await startAdminServer(config.http, metrics, () => !this.draining, {
        policies: this.policies,
        ...(config.adminToken === undefined ? {} : { token: config.adminToken }),
      });
    }
    ready = true;
    for (const channel of early) this.#welcome(channel);
    this.log(
      'info',
      { socket: config.socket, http: this.#admin?.url ?? null, shards: this.#shards.map((shard) => shard.state()) },
      'listening',
    );
  }

  /** @internal */
  get shards(): readonly Shard[] {
    return this.#shards;
  }

  /** Largest submission ring that a driver gets, in descriptors. */
  get ringEntries(): number {
    return this.config.ringEntries;
  }

  /** Whether it is being stopped. */
  get draining(): boolean {
    return this.#stopping !== undefined;
  }

  /** Sessions of drivers and onlookers now. */
  get sessionCount(): number {
    return this.#sessions.size;
  }

  /** Seconds since it was started. */
  get uptimeSeconds(): number {
    return (performance.now() - this.#startedMs) / 1000;
  }

  /** Where /metrics, /healthz and /readyz are; undefined where they are switched off. */
  get adminUrl(): string | undefined {
    return this.#admin?.url;
  }

  /**
   * Shuts down in order: no new sessions, submitted operations finish (at most drainTimeoutMs), sessions end, memory
   * goes back.
   */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(): Promise<void> {
    this.#listener?.close();
    for (const listener of this.#streams) listener.close();
    for (const session of this.#sessions.values()) session.announceDraining();
    const drained = await Promise.all(this.#shards.map((shard) => shard.native.drain(this.config.drainTimeoutMs)));
    if (drained.includes(false)) this.log('warn', {}, 'drain timed out: unfinished operations become misses');
    await Promise.all([...this.#sessions.values()].map((session) => session.end('the daemon is shutting down')));
    await this.parked.clear('the daemon is shutting down');
    await this.#admin?.close();
    await Promise.all(this.#shards.map((shard) => shard.native.close()));
    this.log('info', {}, 'stopped');
  }

  #welcome(channel: NativeChannel): void {
    const { config } = this;
    const session = this.#open(channel);
    const uids = [process.getuid?.() ?? 0, 0, ...config.allowUids];
    if (!uids.includes(channel.peerUid)) {
      session.refuse(KvssError.ofStatus(Status.notAllowed, `user ${channel.peerUid} may not use this daemon`));
    }
  }

  #open(channel: NativeChannel, token?: string): Session {
    const session = new Session(this.#nextSession++, channel, this, token);
    this.#sessions.set(session.id, session);
    const { maxSessions } = this.config;
    if (this.#sessions.size > maxSessions) {
      session.refuse(KvssError.ofStatus(Status.limitExceeded, `the daemon serves ${maxSessions} sessions at once`));
    }
    return session;
  }

  /** Ports of the stream listeners, 0 for Unix sockets, in the order of the configuration. */
  get streamPorts(): readonly number[] {
    return this.#streams.map((listener) => listener.port);
  }

  #acceptStream(hello: Uint8Array, stream: DescriptorBundle, token: string | undefined): void {
    const refuse = (thrown: unknown) => {
      const error = nativeError(thrown);
      this.log('warn', { code: error.code }, `lane refused: ${error.message}`);
      native.answerLane(stream, error.status);
      stream.close();
    };
    try {
      const lane = decodeLane(hello);
      if (lane.kind === LaneKind.control) {
        if (this.draining) throw KvssError.ofStatus(Status.draining, 'the daemon is shutting down');
        native.answerLane(stream, Status.ok);
        this.#open(native.ControlChannel.adopt(stream), token);
        return;
      }
      const session = this.#sessions.get(lane.sessionId);
      if (!session) throw KvssError.ofStatus(Status.notAllowed, 'a lane names a session that does not exist');
      session.addLane(lane, stream).catch(refuse);
    } catch (thrown) {
      refuse(thrown);
    }
  }

  #endFaulty(sessionId: number, fault: SessionFault): void {
    const session = this.#sessions.get(sessionId);
    if (fault === 'ring') {
      session?.refuse(KvssError.ofStatus(Status.ringCorrupt, 'the client wrote impossible positions into its rings'));
    } else if (fault === 'protocol') {
      session?.refuse(KvssError.ofStatus(Status.badFrame, 'a frame on a lane does not fit what was asked'));
    } else {
      session?.laneEnded();
    }
  }

  /** @internal */
  get servesUnaware(): boolean {
    return this.config.unawareDrivers === 'serve';
  }

  /** The last reports of drivers whose sessions have numbers above `after`, in the order of the numbers. */
  *reportedDrivers(after: number): Iterable<ReportedDriver> {
    // Sessions are in the order of their numbers: they are added as they come.
    for (const session of this.#sessions.values()) {
      if (session.id > after && session.report) yield session.report;
    }
  }

  #announcePolicies(): void {
    const { policies } = this;
    this.log('info', { version: policies.version, policies: policies.size }, 'tenant policies changed');
    for (const session of [...this.#sessions.values()]) session.announcePolicies();
  }

  /** @internal */
  sessionEnded(session: Session): void {
    this.#sessions.delete(session.id);
  }

  /** @internal */
  log(level: 'debug' | 'info' | 'warn', fields: object, message: string): void {
    try {
      this.logger[level](fields, message);
    } catch (thrown) {
      // A full disk or a closed pipe must not stop a store that loses nothing by it.
      void messageOf(thrown);
    }
  }
}
