import { z } from 'zod';
import type { Clock } from '../common/clock.js';
import { localError } from '../common/errors.js';
import { seededRandom } from '../common/random.js';
import { describeIssue, size } from '../common/schema.js';

/** Room for what passes between two turns of an event loop, so that the path decides and not the timers. */
const DEFAULT_WINDOW_MS = 20;
const MAX_RAILS = 256;

const microseconds = z.number().min(0).max(60_000_000);
const leaf = z
  .number()
  .int()
  .min(0)
  .max(MAX_RAILS - 1);

const pathSchema = z.strictObject({
  /** Bytes a second, each way. */
  bandwidth: size,
  /** What every operation takes besides its bytes, there and back. */
  latencyUs: microseconds.default(0),
  /** Most that is added to the latency, at random. */
  jitterUs: microseconds.default(0),
  /** Bytes that pass at once after a pause. */
  burst: z.union([z.literal(0), size]).default(0),
  /** Most bytes of one WIO stream on their way at once, each way. Enough to keep the path busy if left out. */
  window: size.optional(),
});

const topologySchema = z
  .strictObject({
    /** What runs through one leaf switch, by the number of the leaf. Streams that use the same leaf share it. */
    rails: z.array(pathSchema).min(1).max(MAX_RAILS),
    /** What joins the leaves. All jobs share it. */
    spine: pathSchema,
    /** Of each box, by name: at which leaves the WIO streams of its domains leave. */
    boxes: z.record(z.string().min(1), z.array(z.array(leaf).min(1)).min(1)),
    /** Of each daemon, by address: at which leaf each of its shards is attached. */
    daemons: z.record(z.string().min(1), z.array(leaf).min(1)),
    /** What happens to a link that crosses the spine. */
    spineUse: z.enum(['allow', 'warn', 'refuse']).default('warn'),
    /** Of the jitter: the same calls at the same times take the same for the same seed. */
    seed: z.number().int().default(1),
  })
  .superRefine(({ rails, boxes, daemons }, context) => {
    const check = (number: number, path: (string | number)[]) => {
      if (number < rails.length) return;
      context.addIssue({
        code: 'custom',
        path,
        message: `there is no rail ${number}, the last one is ${rails.length - 1}`,
      });
    };
    for (const [box, domains] of Object.entries(boxes)) {
      for (const [domain, streams] of domains.entries()) {
        for (const [stream, number] of streams.entries()) check(number, ['boxes', box, domain, stream]);
      }
    }
    for (const [daemon, shards] of Object.entries(daemons)) {
      for (const [shard, number] of shards.entries()) check(number, ['daemons', daemon, shard]);
    }
  });

export type PathInput = z.input<typeof pathSchema>;
export type PathSettings = z.output<typeof pathSchema>;
/** Rails, spine, boxes and daemons, as people write them. What is left out has a default. */
export type TopologyInput = z.input<typeof topologySchema>;

/** Checks the settings of a path. Throws KVSS_BAD_CONFIG with a message that names the key. */
export function checkPath(input: unknown): void {
  const parsed = pathSchema.safeParse(input);
  if (!parsed.success) throw localError('KVSS_BAD_CONFIG', describeIssue(parsed.error));
}

/**
 * One way of a path: a fluid FIFO behind a token bucket. Everything that is sent passes in order, at the bandwidth of
 * the path, except that a bucket of `burst` bytes fills up again while nothing passes.
 */
export class Direction {
  /** What has been sent so far. */
  bytes = 0;
  transfers = 0;
  readonly #bytesPerMs: number;
  readonly #burst: number;
  /** Bytes that were sent and have not passed; below 0 what may pass at once. */
  #debt: number;
  #debtAt: number;
  #lastArrival = Number.NEGATIVE_INFINITY;

  constructor(
    settings: PathSettings,
    private readonly clock: Clock,
    private readonly delayMs: () => number,
  ) {
    this.#bytesPerMs = settings.bandwidth / 1000;
    this.#burst = settings.burst;
    this.#debt = -settings.burst;
    this.#debtAt = clock.now();
  }

  /** Sends so many bytes and answers the time of the clock at which the last one has arrived. */
  transfer(bytes: number): number {
    const now = this.clock.now();
    const left = this.#debt - (now - this.#debtAt) * this.#bytesPerMs;
    this.#debt = Math.max(-this.#burst, left) + bytes;
    this.#debtAt = now;
    this.bytes += bytes;
    this.transfers += 1;
    const passed = now + Math.max(0, this.#debt) / this.#bytesPerMs;
    // Jitter delays; it does not let one overtake another.
    this.#lastArrival = Math.max(this.#lastArrival, passed + this.delayMs());
    return this.#lastArrival;
  }
}

/**
 * One emulated network path, a rail's or the spine: full duplex, shared by all links that run over it. The same calls
 * at the same times of the clock give the same answers for the same seed.
 */
export class Path {
  readonly toStore: Direction;
  readonly toWafer: Direction;
  /** Most bytes of one stream on their way at once, each way. */
  readonly windowBytes: number;
  readonly #delayMs: () => number;

  constructor(
    settings: PathSettings,
    private readonly clock: Clock,
    seed: number,
  ) {
    const random = seededRandom(seed);
    this.#delayMs = () => (settings.latencyUs + random() * settings.jitterUs) / 1000;
    this.toStore = new Direction(settings, clock, this.#delayMs);
    this.toWafer = new Direction(settings, clock, this.#delayMs);
    const roundMs = DEFAULT_WINDOW_MS + (settings.latencyUs + settings.jitterUs) / 1000;
    this.windowBytes = settings.window ?? settings.burst + Math.ceil((settings.bandwidth / 1000) * roundMs);
  }

  /** The time of the clock at which an answer without payload arrives: it waits behind nothing. */
  answer(): number {
    return this.clock.now() + this.#delayMs();
  }
}

/** How the WIO streams of one link run. */
export interface Route {
  /** The path of each stream. */
  readonly paths: readonly Path[];
  /** What crosses the spine, for people; undefined where nothing does. */
  readonly overSpine: string | undefined;
}

/**
 * Boxes and daemons at leaf switches, with a rail through each leaf and one spine between them. A stream that leaves
 * its box at the leaf where the shard is attached takes that leaf's rail; every other one crosses the spine.
 */
export class Topology {
  /** The paths through the leaf switches, by their number. */
  readonly rails: readonly Path[];
  /** The path between the leaf switches. */
  readonly spine: Path;
  /** Links that were opened and cross the spine with at least one stream. */
  spineLinks = 0;
  readonly #settings: z.output<typeof topologySchema>;

  /**
   * `warn` gets one line for each link that crosses the spine, where that is to be warned of. Throws KVSS_BAD_CONFIG
   * with a message that names the key.
   */
  constructor(
    input: TopologyInput,
    /** Time by which bytes pass. */
    readonly clock: Clock,
    private readonly warn: (message: string) => void,
  ) {
    const parsed = topologySchema.safeParse(input);
    if (!parsed.success) throw localError('KVSS_BAD_CONFIG', `topology: ${describeIssue(parsed.error)}`);
    this.#settings = parsed.data;
    const { rails, spine, seed } = parsed.data;
    this.rails = rails.map((rail, number) => new Path(rail, clock, seed + 1 + number));
    this.spine = new Path(spine, clock, seed);
  }

  /**
   * How a shard is reached from a box. Throws KVSS_BAD_CONFIG for what the topology does not know, and
   * KVSS_SPINE_REFUSED where a stream would cross the spine and must not.
   */
  route(box: string, daemon: string, shard: { readonly index: number; readonly domain: number }): Route {
    const { boxes, daemons, spineUse } = this.#settings;
    const unknown = (what: string) => localError('KVSS_BAD_CONFIG', `topology: ${what}`);
    const domains = ownValue(boxes, box);
    if (!domains) throw unknown(`'boxes' has no '${box}'`);
    const leaves = domains[shard.domain];
    if (!leaves)
      throw unknown(`'boxes.${box}' has no domain ${shard.domain}, which shard ${shard.index} of ${daemon} serves`);
    const attached = ownValue(daemons, daemon)?.[shard.index];
    if (attached === undefined)
      throw unknown(`'daemons' does not say where shard ${shard.index} of ${daemon} is attached`);
    const crossing = leaves.filter((number) => number !== attached);
    const paths = leaves.map((number) => (number === attached ? (this.rails[number] as Path) : this.spine));
    if (crossing.length === 0) return { paths, overSpine: undefined };
    const overSpine =
      `domain ${shard.domain} of box '${box}' reaches shard ${shard.index} of ${daemon} over the spine: ` +
      `its streams leave at leaf ${crossing.join(', ')}, the shard is at leaf ${attached}`;
    if (spineUse === 'refuse') throw localError('KVSS_SPINE_REFUSED', `refused: ${overSpine}`);
    return { paths, overSpine };
  }

  /** A link has been opened on a route: use of the spine is counted, and warned of. */
  opened(route: Route): void {
    if (route.overSpine === undefined) return;
    this.spineLinks += 1;
    if (this.#settings.spineUse === 'warn') this.warn(route.overSpine);
  }
}

/** Names come from outside: `constructor` is one that every object seems to have. */
function ownValue<Value>(record: Readonly<Record<string, Value>>, name: string): Value | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}
