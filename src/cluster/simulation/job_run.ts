import { DOMAINS_PER_BOX } from '../../common/box.js';
import type { Clock } from '../../common/clock.js';
import type { PlacedPod } from '../snapshot.js';
import type { Calibration, ModelSpeed } from './calibration.js';
import { drawCompileMs, drawPrompt, type Load, type PromptDraw, wholeColumns } from './load.js';
import type { Direction, Network } from './network.js';
import { podsByNode } from './place.js';
import { sleepingStepMs, spinningStepMs, type Threads } from './processor.js';
import { SharedService } from './shared_service.js';
import type { LoadedJob, ServedPrompt } from './simulation.js';

/** What a job runs in. */
export interface JobSurroundings {
  readonly clock: Clock;
  readonly network: Network;
  readonly calibration: Calibration;
  readonly seed: number;
  readonly durationS: number;
  /** Something has begun or ended: rates have to be worked out anew. */
  readonly changed: () => void;
}

/** One way of bytes of the job: those of one stream of a KVSS pod, in one direction. */
export interface Path {
  readonly links: readonly number[];
  /** Share of the bytes of a token that take it. */
  readonly share: number;
  /** The number of the link that stands for the engine of the pod, which both directions use. */
  readonly engine: number;
  readonly node: string;
  readonly service: SharedService<() => void>;
}

interface Prompt {
  readonly number: number;
  readonly draw: PromptDraw;
  readonly startMs: number;
  decodeMs: number;
}

interface Compilation {
  done: boolean;
  readonly waiting: (() => void)[];
}

/** A job while it is simulated: its prompts on their way, and the threads of its pods. */
export class JobRun {
  readonly name: string;
  readonly served: ServedPrompt[] = [];
  /** Flows of refills and evicts. Those without bytes count none. */
  readonly paths: readonly Path[];
  readonly #load: Load;
  readonly #podsByNode: ReadonlyMap<string, readonly PlacedPod[]>;
  readonly #driverNode: string;
  readonly #boxes: number;
  readonly #model: ModelSpeed;
  /** Each by what comes next. */
  readonly #compiles: SharedService<() => void>;
  readonly #prefills: SharedService<() => void>;
  readonly #decodes: SharedService<() => void>;
  readonly #refillPaths: readonly Path[];
  readonly #evictPaths: readonly Path[];
  readonly #compilations = new Map<number, Compilation>();
  /** Pods are there, and threads of them spin. */
  #present = false;
  #begun = 0;
  #inFlight = 0;

  constructor(
    { placed, load }: LoadedJob,
    private readonly around: JobSurroundings,
  ) {
    this.name = placed.job.name;
    this.#load = load;
    this.#podsByNode = podsByNode(placed.pods);
    this.#driverNode = placed.pods.find(({ pod }) => pod.spec.kind === 'swdriver')?.node as string;
    this.#boxes = placed.boxes.length;
    this.#model = around.calibration.models[load.model];
    const service = () => new SharedService<() => void>(around.clock, (next) => next());
    this.#compiles = service();
    this.#prefills = service();
    this.#decodes = service();
    this.#refillPaths = this.#pathsOf(placed.pods, 'toBox');
    this.#evictPaths = this.#pathsOf(placed.pods, 'toNode');
    this.paths = [...this.#refillPaths, ...this.#evictPaths];
    around.clock.schedule(load.launchS * 1000, () => this.#launch());
  }

  /** All that threadsOn hangs on: as long as it is the same, so are the threads. */
  get threadState(): string {
    return `${this.#present} ${this.#compiles.count} ${this.#maskMs() > 0 ? this.#decodes.count : 0}`;
  }

  /** The threads that pods of the job have on a node now. */
  threadsOn(node: string): Threads[] {
    if (!this.#present) return [];
    return this.#podsByNode.get(node)?.flatMap((placed) => this.#threadsOf(placed)) ?? [];
  }

  /** Sets what hangs on the shares of a core that spinning threads have on each node: rates, and capacities of engines. */
  setShares(shares: ReadonlyMap<string, number>, capacities: number[]): void {
    const { swDriver, kvss } = this.around.calibration;
    for (const { engine, node } of this.paths) {
      capacities[engine] = kvss.spinningThreads * kvss.bytesPerSecond * (shares.get(node) as number);
    }
    const share = shares.get(this.#driverNode) as number;
    this.#compiles.setRate(share);
    const stretched = Math.max(1, this.#maskDemand() / share);
    const stepMs = Math.max(
      this.#hostStepMs(this.#model.stepMs, share) + this.#maskMs() * stretched,
      this.#wafersStepMs(),
    );
    this.#decodes.setRate(1 / stepMs);
    const chunkMs = (1000 * swDriver.prefillChunkTokens) / (this.#model.prefillTokensPerSecond * this.#boxes);
    const chunksPerMs = 1 / this.#hostStepMs(chunkMs, share);
    this.#prefills.setRate((chunksPerMs * swDriver.prefillChunkTokens) / Math.max(1, this.#prefills.count));
  }

  #launch(): void {
    this.#present = true;
    for (let slot = 0; slot < this.#load.concurrency; slot += 1) this.#begin();
    this.around.changed();
  }

  /** Begins the next prompt, if there is one; a job whose last prompt has ended goes. */
  #begin(): void {
    const { clock, calibration, seed, durationS } = this.around;
    const { launchS, runS = durationS, prompts = Number.POSITIVE_INFINITY } = this.#load;
    if (clock.now() >= 1000 * (launchS + runS) || this.#begun >= prompts) {
      if (this.#inFlight === 0) this.#present = false;
      return;
    }
    const number = this.#begun;
    this.#begun += 1;
    this.#inFlight += 1;
    const draw = drawPrompt(seed, this.name, number, this.#load, calibration);
    const prompt: Prompt = { number, draw, startMs: clock.now(), decodeMs: 0 };
    this.#compile(draw.schema, () => this.#refill(prompt));
  }

  /** A schema is compiled when it is first used; who else wants it meanwhile waits. */
  #compile(schema: number | undefined, next: () => void): void {
    if (schema === undefined) {
      next();
      return;
    }
    const known = this.#compilations.get(schema);
    if (known?.done) next();
    else if (known) known.waiting.push(next);
    else {
      const compilation: Compilation = { done: false, waiting: [next] };
      this.#compilations.set(schema, compilation);
      const { calibration, seed, changed } = this.around;
      const coreMs = drawCompileMs(seed, this.name, schema, calibration);
      this.#compiles.add(coreMs / calibration.grammar.compileThreads, () => {
        compilation.done = true;
        for (const each of compilation.waiting.splice(0)) each();
        changed();
      });
      changed();
    }
  }

  #refill(prompt: Prompt): void {
    this.#move(prompt.draw.cachedTokens, this.#refillPaths, () => {
      this.#prefills.add(prompt.draw.promptTokens - prompt.draw.cachedTokens, () => this.#decode(prompt));
      this.around.changed();
    });
  }

  /** Decodes, and evicts what is new at the same time: a prompt has ended when both are done. */
  #decode(prompt: Prompt): void {
    const { promptTokens, cachedTokens, steps } = prompt.draw;
    prompt.decodeMs = this.around.clock.now();
    let left = 2;
    const part = () => {
      left -= 1;
      if (left === 0) this.#end(prompt);
      this.around.changed();
    };
    this.#decodes.add(steps, part);
    const newTokens = this.#load.evicts ? wholeColumns(promptTokens - cachedTokens + this.#load.outputTokens) : 0;
    this.#move(newTokens, this.#evictPaths, part);
    this.around.changed();
  }

  #end({ number, draw, startMs, decodeMs }: Prompt): void {
    const { outputTokens } = this.#load;
    const endMs = this.around.clock.now();
    this.served.push({ number, startMs, decodeMs, endMs, promptTokens: draw.promptTokens, outputTokens });
    this.#inFlight -= 1;
    this.#begin();
  }

  /** Moves the state of so many tokens over all paths at once; goes on when the last byte has arrived. */
  #move(tokens: number, paths: readonly Path[], next: () => void): void {
    if (tokens === 0) {
      next();
      return;
    }
    let left = paths.length;
    for (const { share, service } of paths) {
      service.add(tokens * this.#model.bytesPerToken * share, () => {
        left -= 1;
        if (left === 0) next();
        this.around.changed();
      });
    }
    this.around.changed();
  }

  #threadsOf({ pod }: PlacedPod): Threads[] {
    const { grammar, kvss } = this.around.calibration;
    switch (pod.spec.kind) {
      case 'swdriver':
        return [
          { count: this.#spinningLanes(), demand: 1 },
          { count: this.#compiles.count * grammar.compileThreads, demand: 1 },
          { count: this.#decodes.count, demand: this.#maskDemand() },
        ];
      case 'kvss':
        return [{ count: kvss.spinningThreads, demand: 1 }];
      default: {
        // Nothing is known of them but what they ask for.
        const cores = pod.spec.cores / 1000;
        const count = Math.ceil(cores);
        return [{ count, demand: count === 0 ? 0 : cores / count }];
      }
    }
  }

  #lanes(): number {
    return this.around.calibration.swDriver.lanesPerDomain * DOMAINS_PER_BOX * this.#boxes;
  }

  #spinningLanes(): number {
    return this.#load.hio === 'latency' ? this.#lanes() : 0;
  }

  #hostStepMs(busyMs: number, share: number): number {
    const { scheduler } = this.around.calibration;
    return this.#load.hio === 'latency'
      ? spinningStepMs(busyMs, this.#lanes(), share, scheduler)
      : sleepingStepMs(busyMs, this.#lanes(), scheduler);
  }

  #maskMs(): number {
    return this.#load.schemas === undefined ? 0 : this.around.calibration.grammar.maskMs;
  }

  /** Milliseconds of a step where the wafers are the limit: they take the prompts in flight in turn. */
  #wafersStepMs(): number {
    return (1000 * this.#decodes.count) / (this.#model.stepsPerSecond * this.#boxes);
  }

  /** Share of a core that the masks of one prompt take while nothing is in their way. */
  #maskDemand(): number {
    const maskMs = this.#maskMs();
    return maskMs / Math.max(this.#model.stepMs + maskMs, this.#wafersStepMs());
  }

  /** The bytes of a token lie evenly over the domains of all boxes, and within one over the streams of its KVSS pods. */
  #pathsOf(pods: readonly PlacedPod[], direction: Direction): Path[] {
    const { network, clock, calibration } = this.around;
    const streams = pods.flatMap(({ pod, node }) =>
      pod.spec.kind === 'kvss' ? pod.streams.map((stream, number) => ({ pod, node, stream, number })) : [],
    );
    return streams.map(({ pod, node, stream, number }) => {
      const alike = streams.filter(({ stream: { box, domain } }) => box === stream.box && domain === stream.domain);
      const engine = network.link(`engine of ${pod.name}`, calibration.kvss.bytesPerSecond);
      const own = network.link(`stream ${number} of ${pod.name} ${direction}`, stream.bandwidth);
      return {
        links: [own, ...network.path(stream, node, direction), engine],
        share: 1 / (alike.length * DOMAINS_PER_BOX * this.#boxes),
        engine,
        node,
        service: new SharedService<() => void>(clock, (next) => next()),
      };
    });
  }
}
