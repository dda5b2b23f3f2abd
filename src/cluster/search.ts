import { type Bin, type Demand, IMPOSSIBLE, lowerBound } from './bound.js';
import type { AxNode, Box } from './cluster.js';
import type { Cabling, Fabric } from './fabric.js';
import { type Job, type Pod, podsOfBox, podsOfJob } from './jobs.js';
import type { Ledger, Rules, Shape } from './ledger.js';
import { compareScores, equalLevels, type ScoreVector } from './score.js';
import { type Island, Islands, type NodeClass } from './symmetry.js';

/** What is to be placed. */
export interface Wanted {
  /** Boxes that are to be chosen, and their pods with them. */
  readonly boxes?: {
    readonly job: Job;
    readonly count: number;
    /** The job has none yet: the pods of the whole job go with the first one. */
    readonly first: boolean;
    /** Only boxes of this cabling. */
    readonly cabling?: number;
  };
  /** Pods whose boxes are known. */
  readonly pods: readonly Pod[];
}

/** What a search has come to. */
export interface Found {
  /** Numbers of the boxes, in the order of the session. */
  readonly boxes: readonly number[];
  readonly placed: readonly { readonly pod: Pod; readonly node: number }[];
  readonly score: ScoreVector;
  /** No placement has a better one. Equal to the score where it is proven to be optimal. */
  readonly bound: ScoreVector;
  /** How many levels of the score, from the first, are proven to be optimal. */
  readonly provenLevels: number;
}

export interface SearchResult {
  /** Undefined where there is none, or none was found. */
  readonly found: Found | undefined;
  /** Pairs of a pod or a box and where it could go that were looked at. */
  readonly looked: number;
  /** The budget did not end the search. */
  readonly complete: boolean;
}

/** Greedy placements of so many choices of boxes before the exact search begins. */
const FIRST_CHOICES = 12;

/** A bound takes about as long for each kind of AX node as looking at so many candidates. */
const WORK_PER_BIN = 2;

/** So many pods of one shape. */
interface Batch {
  readonly shape: Shape;
  count: number;
}

/** What choosing a box comes to. */
interface BoxChoice {
  readonly pods: readonly Pod[];
  readonly batches: readonly Batch[];
  /** Its ports carry the streams of these pods. */
  readonly fits: boolean;
  /** Bandwidth across the spine, wherever the pods go. */
  readonly leastSpine: number;
}

/** A place for a pod. */
interface Candidate {
  readonly node: number;
  /** Of which nothing was used yet; undefined for an AX node that this search has put something on. */
  readonly untouched: NodeClass | undefined;
  readonly spine: number;
  readonly uplink: number;
  /** 1 where nothing ran there. */
  readonly opens: number;
  /** KVSS shards there afterwards; 0 for a pod that is none. */
  readonly shards: number;
  /** Part of the AX node that is then in use. */
  readonly filled: number;
}

/** The best placement so far. */
interface Best {
  readonly score: ScoreVector;
  readonly cablings: readonly number[];
  /** AX nodes of the pods of each shape. */
  readonly nodes: ReadonlyMap<string, readonly number[]>;
}

/** What crosses the spine for one pod of a shape, wherever it goes. */
interface Ways {
  /** Everything it has: on all sets of leaves that are not in `near`. */
  readonly bandwidth: number;
  /** On the sets of leaves of the islands that its streams come from. */
  readonly near: ReadonlyMap<number, number>;
  readonly least: number;
  readonly next: number;
  readonly leastOn: ReadonlySet<number> | undefined;
}

/**
 * Looks for the placement with the best score: first greedily for a few choices of boxes, then exactly, by branch and
 * bound over classes of AX nodes, boxes and islands that are alike, until nothing better can exist or so many
 * candidates have been looked at. The ledger is left as it was.
 */
export function search(ledger: Ledger, wanted: Wanted, rules: Rules, budget: number): SearchResult {
  return new Search(ledger, wanted, rules, budget).run();
}

class Search {
  readonly #fabric: Fabric;
  readonly #islands: Islands;
  readonly #ways = new Map<string, Ways>();
  readonly #choices = new Map<number, BoxChoice>();
  readonly #leastSpineOfPods: number;
  /** Sets of leaves of each island. */
  readonly #leafSetsOf: number[][];
  readonly #startUplink: number;
  #looked = 0;
  /** What bounds have taken, in candidates that could have been looked at instead. */
  #boundWork = 0;
  #exhausted = false;
  /** Cablings of the boxes that are chosen, in order. */
  readonly #chosen: number[] = [];
  /** AX nodes of the pods that are placed, by shape. */
  readonly #placed = new Map<string, number[]>();
  #best: Best | undefined;
  #root: ScoreVector = [0, 0, 0, 0];
  /** Opened AX nodes that the root bound counts on. */
  #rootOpens = 0;

  constructor(
    private readonly ledger: Ledger,
    private readonly wanted: Wanted,
    private readonly rules: Rules,
    private readonly budget: number,
  ) {
    this.#fabric = ledger.fabric;
    const fixedLeaves = wanted.pods.flatMap((pod) => ledger.shapeOf(pod).streams.map(({ leaf }) => leaf));
    const only = wanted.boxes?.cabling;
    // An island that is asked for is none of many that are alike.
    const onlyLeaves = only === undefined ? [] : (this.#fabric.cablings[only]?.domains[0] ?? []);
    this.#islands = new Islands(ledger, [...fixedLeaves, ...onlyLeaves], rules.exclusion);
    this.#leafSetsOf = this.#islands.all.map((island) => [...new Set(island.classes.map(({ leafSet }) => leafSet))]);
    this.#startUplink = ledger.mostLoadedUplink();
    this.#leastSpineOfPods = wanted.pods.reduce((sum, pod) => sum + this.#waysOf(ledger.shapeOf(pod)).least, 0);
  }

  run(): SearchResult {
    this.#root = this.#boundOfAll();
    if (this.#root !== IMPOSSIBLE) {
      this.#greedily();
      if (!this.#isOptimal()) this.#chooseBoxes(new Set());
    }
    const complete = !this.#exhausted;
    return { found: this.#best && this.#found(complete), looked: this.#looked, complete };
  }

  #isOptimal(): boolean {
    return this.#best !== undefined && compareScores(this.#best.score, this.#root) <= 0;
  }

  #found(complete: boolean): Found {
    const { score, cablings, nodes } = this.#best as Best;
    const free = new Map<number, number[]>();
    const boxes = cablings.map((cabling) => {
      if (!free.has(cabling)) free.set(cabling, this.#islands.freeBoxes(cabling));
      return (free.get(cabling) as number[]).shift() as number;
    });
    const left = new Map([...nodes].map(([key, numbers]) => [key, [...numbers]]));
    const placed = this.#podsOf(boxes).map((pod) => {
      return { pod, node: left.get(this.ledger.shapeOf(pod).key)?.shift() as number };
    });
    const bound = complete ? score : this.#root;
    return { boxes, placed, score, bound, provenLevels: equalLevels(score, bound) };
  }

  #podsOf(boxes: readonly number[]): Pod[] {
    const { boxes: choice, pods } = this.wanted;
    if (!choice) return [...pods];
    const chosen = boxes.map((box) => this.#fabric.cluster.boxes[box] as Box);
    const [first] = chosen;
    return [
      ...pods,
      ...(choice.first && first ? podsOfJob(choice.job, first) : []),
      ...chosen.flatMap((box) => podsOfBox(choice.job, box)),
    ];
  }

  #spent(): number {
    return this.#looked + this.#boundWork;
  }

  // Boxes

  /** Greedy placements for the most promising choices of boxes. */
  #greedily(): void {
    const choices = this.#likelyChoices()
      .map((cablings) => {
        this.#take(cablings);
        const batches = this.#batches();
        const bound = this.#bound(batches);
        this.#untake(cablings);
        return { cablings, bound };
      })
      .filter(({ bound }) => bound !== IMPOSSIBLE)
      .sort((a, b) => compareScores(a.bound, b.bound));
    for (const { cablings, bound } of choices.slice(0, FIRST_CHOICES)) {
      if (this.#best && compareScores(bound, this.#best.score) >= 0) return;
      this.#take(cablings);
      this.#dive(this.#batches(), bound);
      this.#untake(cablings);
    }
  }

  /** Boxes that are cabled alike, where there are enough, the fewest that suffice first; else all of the largest groups of an island. */
  #likelyChoices(): number[][] {
    const { boxes: choice } = this.wanted;
    if (!choice) return [[]];
    const alike: { free: number; cablings: number[] }[] = [];
    const mixed: number[][] = [];
    for (const island of this.#islands.distinct()) {
      const free = island.cablings
        .map(({ cabling, free: boxes }) => ({ cabling, free: boxes }))
        .filter(({ cabling, free: boxes }) => boxes > 0 && this.#fits(cabling, choice.first))
        .sort((a, b) => b.free - a.free);
      for (const each of free) {
        if (each.free >= choice.count)
          alike.push({ free: each.free, cablings: Array(choice.count).fill(each.cabling) });
      }
      const together = free.flatMap((each) => Array<number>(each.free).fill(each.cabling));
      if (together.length >= choice.count) mixed.push(together.slice(0, choice.count));
    }
    if (alike.length + mixed.length === 0) {
      // No island has enough of them.
      const everywhere = this.#islands.all
        .flatMap(({ cablings }) => cablings)
        .filter(({ cabling, free }) => free > 0 && this.#fits(cabling, choice.first))
        .sort((a, b) => b.free - a.free)
        .flatMap(({ cabling, free }) => Array<number>(free).fill(cabling));
      if (everywhere.length >= choice.count) mixed.push(everywhere.slice(0, choice.count));
    }
    return [...alike.sort((a, b) => a.free - b.free).map(({ cablings }) => cablings), ...mixed];
  }

  /** The ports of such a box carry the streams of the pods that it would have. */
  #fits(cabling: number, first: boolean): boolean {
    const only = this.wanted.boxes?.cabling ?? cabling;
    return cabling === only && this.#choiceOf(cabling, first).fits;
  }

  /** What choosing a box of a cabling comes to; `first`: with the pods of the whole job. */
  #choiceOf(cabling: number, first: boolean): BoxChoice {
    const known = this.#choices.get(first ? -1 - cabling : cabling);
    if (known) return known;
    const { job } = this.wanted.boxes as NonNullable<Wanted['boxes']>;
    const { boxes, portBandwidth } = this.#fabric.cablings[cabling] as Cabling;
    const box = this.#fabric.cluster.boxes[boxes[0] as number] as Box;
    const pods = [...(first ? podsOfJob(job, box) : []), ...podsOfBox(job, box)];
    const batches = this.#batchesOfPods(pods);
    const load = new Map<string, number>();
    for (const { domain, port, bandwidth } of pods.flatMap(({ streams }) => streams)) {
      load.set(`${domain}/${port}`, (load.get(`${domain}/${port}`) ?? 0) + bandwidth);
    }
    const choice = {
      pods,
      batches,
      fits: Math.max(0, ...load.values()) <= portBandwidth,
      leastSpine: batches.reduce((sum, { shape, count }) => sum + count * this.#waysOf(shape).least, 0),
    };
    this.#choices.set(first ? -1 - cabling : cabling, choice);
    return choice;
  }

  #take(cablings: readonly number[]): void {
    for (const cabling of cablings) {
      this.#islands.takeBox(cabling);
      this.#chosen.push(cabling);
    }
  }

  #untake(cablings: readonly number[]): void {
    for (const cabling of [...cablings].reverse()) {
      this.#chosen.pop();
      this.#islands.giveBox(cabling);
    }
  }

  /**
   * Every choice of boxes, once of those that come to the same. `banned` has the cablings that later boxes must not
   * have: what they lead to has been looked at.
   */
  #chooseBoxes(banned: Set<number>): void {
    const { boxes: choice } = this.wanted;
    if (!choice || this.#chosen.length === choice.count) {
      const batches = this.#batches();
      const bound = this.#bound(batches);
      if (bound === IMPOSSIBLE || (this.#best && compareScores(bound, this.#best.score) >= 0)) return;
      this.#dive(batches, bound);
      if (this.#best && compareScores(bound, this.#best.score) >= 0) return;
      this.#placePods(itemsOf(batches), 0, new Bans(), this.#startUplink, 0);
      return;
    }
    // The first box is another thing than the others: the pods of the whole job go with it.
    const first = this.#chosen.length === 0 && choice.first;
    const added: number[] = [];
    for (const cabling of this.#boxCandidates(first, banned)) {
      this.#looked += 1;
      if (this.#spent() > this.budget) {
        this.#exhausted = true;
        break;
      }
      this.#take([cabling]);
      if (!this.#best || compareScores(this.#boundOfChosen(), this.#best.score) < 0) {
        this.#chooseBoxes(first ? new Set() : banned);
      }
      this.#untake([cabling]);
      if (this.#exhausted || this.#isOptimal()) break;
      if (first) continue;
      for (const alike of this.#islands.alikeCablings(cabling)) {
        if (banned.has(alike)) continue;
        banned.add(alike);
        added.push(alike);
      }
    }
    for (const cabling of added) banned.delete(cabling);
  }

  #boxCandidates(first: boolean, banned: ReadonlySet<number>): number[] {
    const last = this.#chosen.at(-1);
    const candidates = this.#islands
      .distinct()
      .flatMap(({ cablings }) => cablings)
      .filter(({ cabling, free }) => free > 0 && !banned.has(cabling) && this.#fits(cabling, first));
    const islandOf = (cabling: number) => this.#fabric.cablings[cabling]?.island;
    const distance = (cabling: number) => {
      if (last === undefined || cabling === last) return 0;
      return islandOf(cabling) === islandOf(last) ? 1 : 2;
    };
    const opens = (cabling: number) => Number(this.ledger.cablingTaken[cabling] === 0);
    return candidates
      .sort(
        (a, b) =>
          distance(a.cabling) - distance(b.cabling) ||
          opens(a.cabling) - opens(b.cabling) ||
          a.free - b.free ||
          a.cabling - b.cabling,
      )
      .map(({ cabling }) => cabling);
  }

  #batchesOfPods(pods: readonly Pod[]): Batch[] {
    return collect(pods.map((pod) => ({ shape: this.ledger.shapeOf(pod), count: 1 })));
  }

  /** All pods that go with the boxes that are chosen. */
  #batches(): Batch[] {
    const { boxes: choice, pods } = this.wanted;
    const chosen = this.#chosen.flatMap((cabling, at) => this.#choiceOf(cabling, at === 0 && !!choice?.first).batches);
    return collect([...this.#batchesOfPods(pods), ...chosen]);
  }

  // Bounds

  #waysOf(shape: Shape): Ways {
    const known = this.#ways.get(shape.key);
    if (known) return known;
    const bandwidth = shape.streams.reduce((sum, stream) => sum + stream.bandwidth, 0);
    const near = new Map<number, number>();
    for (const island of new Set(shape.streams.map(({ leaf }) => this.#fabric.islandOfLeaf[leaf] as number))) {
      for (const leafSet of this.#leafSetsOf[island] as number[]) {
        const footprint = this.ledger.footprint(shape, leafSet);
        if (footprint) near.set(leafSet, footprint.spine);
      }
    }
    const far = this.#islands.all.some(
      (island) =>
        !shape.streams.some(({ leaf }) => this.#fabric.islandOfLeaf[leaf] === island.number) && island.hasNics,
    );
    const amounts = new Set(near.values());
    if (far || shape.streams.length === 0) amounts.add(bandwidth);
    const sorted = [...amounts].sort((a, b) => a - b).filter((spine) => spine === 0 || !this.rules.rejectSpine);
    const [least = Number.POSITIVE_INFINITY, next = Number.POSITIVE_INFINITY] = sorted;
    const anywhere = least === bandwidth && (far || shape.streams.length === 0);
    const leastOn = new Set([...near].filter(([, spine]) => spine === least).map(([leafSet]) => leafSet));
    const ways = { bandwidth, near, least, next, leastOn: anywhere ? undefined : leastOn };
    this.#ways.set(shape.key, ways);
    return ways;
  }

  #demandOf({ shape, count }: Batch): Demand {
    const { bandwidth, least, next, leastOn } = this.#waysOf(shape);
    const { cores, memory, driver, shard } = shape;
    return {
      count,
      cores,
      memory,
      bandwidth,
      driver,
      shard,
      leastSpine: least,
      nextSpine: next,
      leastSpineOn: leastOn,
    };
  }

  #bins(): Bin[] {
    const { ledger } = this;
    const bins: Bin[] = [];
    const add = (node: number, count: number) => {
      bins.push({
        count,
        leafSet: this.#fabric.leafSetOfNode[node] as number,
        cores: ledger.coresFree[node] as number,
        memory: ledger.memoryFree[node] as number,
        nics: (ledger.nicsFree[node] as Float64Array).reduce((sum, free) => sum + free, 0),
        shards: ledger.shards[node] as number,
        hasDriver: (ledger.drivers[node] as number) > 0,
        inUse: (ledger.pods[node] as number) > 0,
      });
    };
    for (const node of this.#islands.touchedNodes) add(node, 1);
    for (const island of this.#islands.all) {
      for (const { members, used } of island.classes) {
        if (used < members.length) add(members[used] as number, members.length - used);
      }
    }
    return bins;
  }

  #standing(uplink: number, shardsPerNode: number) {
    const fragmentation = this.ledger.nodesInUse + this.ledger.cablingsInUse;
    return { spine: this.ledger.spine, uplink, fragmentation, shardsPerNode };
  }

  #bound(batches: readonly Batch[], uplink = this.#startUplink, shards = 0): ScoreVector {
    const demands = batches.map((batch) => this.#demandOf(batch));
    const bins = this.#bins();
    this.#boundWork += WORK_PER_BIN * bins.length;
    return lowerBound(demands, bins, this.#standing(uplink, shards), this.rules.exclusion);
  }

  /**
   * Of all choices of boxes: each pod of a box counts with the least that it needs for any box. Infinity where the boxes
   * do not suffice.
   */
  #boundOfAll(): ScoreVector {
    const { boxes: choice } = this.wanted;
    if (!choice) return this.#bound(this.#batches());
    // Of islands that are alike one stands for all: what fits there fits in the others.
    const cablings = this.#islands
      .distinct()
      .flatMap((island) => island.cablings)
      .filter(({ free }) => free > 0);
    const forOthers = cablings.filter(({ cabling }) => this.#fits(cabling, false));
    const forFirst = choice.first ? cablings.filter(({ cabling }) => this.#fits(cabling, true)) : forOthers;
    const groups = forOthers.flatMap(({ cabling, free }) =>
      this.#islands.alikeCablings(cabling).map(() => ({ cabling, free })),
    );
    const free = groups.reduce((sum, group) => sum + group.free, 0);
    if (free < choice.count || forFirst.length === 0) return IMPOSSIBLE;
    const demands = this.#batchesOfPods(this.wanted.pods).map((batch) => this.#demandOf(batch));
    if (choice.first) demands.push(...this.#demandsOfAny(forFirst, true, 1));
    const others = choice.count - Number(choice.first);
    if (others > 0) demands.push(...this.#demandsOfAny(forOthers, false, others));
    const { spine, uplink, fragmentation, shardsPerNode } = this.#standing(this.#startUplink, 0);
    const opens = this.#opensOfBoxes(choice.count, groups);
    const standing = { spine, uplink, fragmentation: fragmentation + opens, shardsPerNode };
    const bound = lowerBound(demands, this.#bins(), standing, this.rules.exclusion);
    this.#rootOpens = bound[2] - standing.fragmentation;
    return bound;
  }

  /** What pods ask for that go with boxes of whichever cabling: one by one, as the job has them. */
  #demandsOfAny(cablings: readonly { readonly cabling: number }[], first: boolean, count: number): Demand[] {
    const merged: Demand[][] = [];
    for (const { cabling } of cablings) {
      for (const [index, pod] of this.#choiceOf(cabling, first).pods.entries()) {
        const demand = this.#asAlike(this.#demandOf({ shape: this.ledger.shapeOf(pod), count }), cabling);
        if (merged[index]) merged[index].push(demand);
        else merged.push([demand]);
      }
    }
    return merged.map(easiest);
  }

  /** With the leaves of all islands that are like the one of a cabling. */
  #asAlike(demand: Demand, cabling: number): Demand {
    const { leastSpineOn } = demand;
    if (!leastSpineOn) return demand;
    const island = this.#islands.all[this.#fabric.cablings[cabling]?.island as number] as Island;
    const classes = island.classes.filter(({ leafSet }) => leastSpineOn.has(leafSet));
    const alike = classes.flatMap((each) => this.#islands.alikeClasses(each)).map(({ leafSet }) => leafSet);
    return { ...demand, leastSpineOn: new Set(alike) };
  }

  /** How many groups of boxes have to be broken into for so many more. */
  #opensOfBoxes(count: number, cablings: readonly { readonly cabling: number; readonly free: number }[]): number {
    let missing = count;
    const whole: number[] = [];
    for (const { cabling, free } of cablings) {
      if (this.ledger.cablingTaken[cabling] === 0) whole.push(free);
      else missing -= free;
    }
    let opens = 0;
    for (const free of whole.sort((a, b) => b - a)) {
      if (missing <= 0) break;
      missing -= free;
      opens += 1;
    }
    return opens;
  }

  /** Of all choices that begin with the boxes that are chosen. */
  #boundOfChosen(): ScoreVector {
    const { first } = this.wanted.boxes as NonNullable<Wanted['boxes']>;
    let spine = this.ledger.spine + this.#leastSpineOfPods;
    for (const [at, cabling] of this.#chosen.entries()) {
      spine += this.#choiceOf(cabling, at === 0 && first).leastSpine;
    }
    const [rootSpine, uplink, rootFragmentation, rootShards] = this.#root;
    if (spine > rootSpine) return [spine, uplink, 0, 0];
    const fragmentation = this.ledger.nodesInUse + this.ledger.cablingsInUse + this.#rootOpens;
    if (fragmentation > rootFragmentation) return [rootSpine, uplink, fragmentation, 0];
    return [rootSpine, uplink, rootFragmentation, rootShards];
  }

  // Pods

  /** Greedy placements, with fewer and then more shards on an AX node, until one is as good as any can be. */
  #dive(batches: readonly Batch[], bound: ScoreVector): void {
    const items = itemsOf(batches);
    const driversLast = [...items.filter(({ driver }) => !driver), ...items.filter(({ driver }) => driver)];
    for (let limit = Math.max(1, bound[3]); ; limit += 1) {
      let heldBack = false;
      for (const order of [items, driversLast]) {
        if (this.#diveOnce(order, limit)) heldBack = true;
        if (this.#best && compareScores(this.#best.score, bound) <= 0) return;
      }
      if (!heldBack || (this.#best && this.#spent() > this.budget / 2)) return;
    }
  }

  /** Answers whether the limit kept a pod from a place. */
  #diveOnce(items: readonly Shape[], limit: number): boolean {
    const bans = new Bans();
    const done: { shape: Shape; node: number; untouched: NodeClass | undefined }[] = [];
    let [uplink, shards, heldBack] = [this.#startUplink, 0, false];
    for (const shape of items) {
      let best: Candidate | undefined;
      for (const candidate of this.#candidates(shape, uplink, bans, false)) {
        if (candidate.shards > limit) heldBack = true;
        else if (!best || compareCandidates(candidate, best) < 0) best = candidate;
      }
      if (!best) break;
      this.#put(shape, best);
      done.push({ shape, node: best.node, untouched: best.untouched });
      uplink = best.uplink;
      shards = Math.max(shards, best.shards);
    }
    if (done.length === items.length) this.#record(uplink, shards);
    for (const { shape, node, untouched } of done.reverse()) this.#unput(shape, node, untouched);
    return heldBack;
  }

  #record(uplink: number, shards: number): void {
    const { spine, fragmentation } = this.#standing(uplink, shards);
    const score: ScoreVector = [spine, uplink, fragmentation, shards];
    if (this.#best && compareScores(score, this.#best.score) >= 0) return;
    const nodes = new Map([...this.#placed].map(([key, numbers]) => [key, [...numbers]]));
    this.#best = { score, cablings: [...this.#chosen], nodes };
  }

  /** Every placement of the pods from `index` on that can be better than the best. `bans` are of pods of the same shape. */
  #placePods(items: readonly Shape[], index: number, bans: Bans, uplink: number, shards: number): void {
    const shape = items[index];
    if (!shape) {
      this.#record(uplink, shards);
      return;
    }
    const bound = this.#bound(batchesFrom(items, index), uplink, shards);
    if (bound === IMPOSSIBLE || (this.#best && compareScores(bound, this.#best.score) >= 0)) return;
    const candidates = this.#candidates(shape, uplink, bans, true).sort(compareCandidates);
    const mark = bans.mark();
    for (const candidate of candidates) {
      if (this.#spent() > this.budget) {
        this.#exhausted = true;
        break;
      }
      const alike = this.#alike(candidate);
      this.#put(shape, candidate);
      const next = items[index + 1] === shape ? bans : new Bans();
      this.#placePods(items, index + 1, next, candidate.uplink, Math.max(shards, candidate.shards));
      this.#unput(shape, candidate.node, candidate.untouched);
      if (this.#exhausted || this.#isOptimal()) break;
      bans.add(alike);
    }
    bans.backTo(mark);
  }

  #put(shape: Shape, { node, untouched }: Candidate): void {
    this.#islands.place(shape, node, untouched);
    const nodes = this.#placed.get(shape.key);
    if (nodes) nodes.push(node);
    else this.#placed.set(shape.key, [node]);
  }

  #unput(shape: Shape, node: number, untouched: NodeClass | undefined): void {
    this.#placed.get(shape.key)?.pop();
    this.#islands.take(shape, node, untouched);
  }

  /** Where a pod can go: AX nodes that this search has put something on, and one of each class of the others. */
  #candidates(shape: Shape, uplink: number, bans: Bans, exact: boolean): Candidate[] {
    const candidates: Candidate[] = [];
    const ways = this.#waysOf(shape);
    const mostSpine = this.#best ? this.#best.score[0] : Number.POSITIVE_INFINITY;
    const states = new Set<string>();
    for (const node of this.#islands.touchedNodes) {
      if (bans.nodes.has(node)) continue;
      if (exact) {
        const state = this.#islands.stateOf(node);
        if (states.has(state)) continue;
        states.add(state);
      }
      this.#consider(shape, node, undefined, uplink, candidates);
    }
    for (const island of this.#islands.distinct()) {
      for (const nodeClass of island.classes) {
        if (nodeClass.used === nodeClass.members.length || bans.classes.has(nodeClass)) continue;
        const spine = ways.near.get(nodeClass.leafSet) ?? ways.bandwidth;
        if (this.ledger.spine + spine > mostSpine) continue;
        this.#consider(shape, nodeClass.members[nodeClass.used] as number, nodeClass, uplink, candidates);
      }
    }
    return candidates;
  }

  #consider(shape: Shape, node: number, untouched: NodeClass | undefined, uplink: number, into: Candidate[]): void {
    const { ledger } = this;
    this.#looked += 1;
    if (ledger.obstacle(shape, node, this.rules) !== undefined) return;
    const footprint = ledger.footprintOn(shape, node);
    let most = uplink;
    for (const [leaf, bandwidth] of footprint?.uplinks ?? []) {
      const capacity = this.#fabric.cluster.leaves[leaf]?.uplink as number;
      most = Math.max(most, ((ledger.uplinkLoad[leaf] as number) + bandwidth) / capacity);
    }
    const { cores, memory } = this.#fabric.cluster.nodes[node] as AxNode;
    into.push({
      node,
      untouched,
      spine: footprint?.spine ?? 0,
      uplink: most,
      opens: Number(ledger.pods[node] === 0),
      shards: shape.shard ? (ledger.shards[node] as number) + 1 : 0,
      filled:
        1 -
        Math.min(
          ((ledger.coresFree[node] as number) - shape.cores) / cores,
          ((ledger.memoryFree[node] as number) - shape.memory) / memory,
        ),
    });
  }

  /** All places that come to the same as this one. */
  #alike({ node, untouched }: Candidate): { nodes: number[]; classes: NodeClass[] } {
    if (untouched) return { nodes: [], classes: this.#islands.alikeClasses(untouched) };
    const state = this.#islands.stateOf(node);
    const nodes = this.#islands.touchedNodes.filter((other) => this.#islands.stateOf(other) === state);
    return { nodes, classes: [] };
  }
}

/** Places that pods of the shape at hand must not take any more: what they lead to has been looked at. */
class Bans {
  readonly nodes = new Set<number>();
  readonly classes = new Set<NodeClass>();
  readonly #order: (number | NodeClass)[] = [];

  add({ nodes, classes }: { nodes: readonly number[]; classes: readonly NodeClass[] }): void {
    for (const node of nodes) {
      if (this.nodes.has(node)) continue;
      this.nodes.add(node);
      this.#order.push(node);
    }
    for (const each of classes) {
      if (this.classes.has(each)) continue;
      this.classes.add(each);
      this.#order.push(each);
    }
  }

  mark(): number {
    return this.#order.length;
  }

  backTo(mark: number): void {
    while (this.#order.length > mark) {
      const last = this.#order.pop();
      if (typeof last === 'number') this.nodes.delete(last);
      else if (last) this.classes.delete(last);
    }
  }
}

function compareCandidates(a: Candidate, b: Candidate): number {
  return (
    a.spine - b.spine ||
    a.uplink - b.uplink ||
    a.opens - b.opens ||
    a.shards - b.shards ||
    b.filled - a.filled ||
    a.node - b.node
  );
}

/** The least of what some pods ask for, in everything. They play the same part, so they are of one kind. */
function easiest(demands: readonly Demand[]): Demand {
  const least = Math.min(...demands.map(({ leastSpine }) => leastSpine));
  const cheapest = demands.filter(({ leastSpine }) => leastSpine === least);
  const more = demands.flatMap(({ leastSpine, nextSpine }) => [leastSpine, nextSpine]).filter((spine) => spine > least);
  const anywhere = cheapest.some(({ leastSpineOn }) => leastSpineOn === undefined);
  return {
    ...(demands[0] as Demand),
    leastSpine: least,
    nextSpine: Math.min(Number.POSITIVE_INFINITY, ...more),
    leastSpineOn: anywhere ? undefined : new Set(cheapest.flatMap(({ leastSpineOn }) => [...(leastSpineOn ?? [])])),
  };
}

/** One batch for each shape, the most demanding first: SwDrivers, which exclude each other, then by what they take. */
function collect(batches: readonly Batch[]): Batch[] {
  const byShape = new Map<string, Batch>();
  for (const { shape, count } of batches) {
    const batch = byShape.get(shape.key);
    if (batch) batch.count += count;
    else byShape.set(shape.key, { shape, count });
  }
  const bandwidth = ({ streams }: Shape) => streams.reduce((sum, stream) => sum + stream.bandwidth, 0);
  return [...byShape.values()].sort(
    ({ shape: a }, { shape: b }) =>
      Number(b.driver) - Number(a.driver) ||
      Number(b.streams.length > 0) - Number(a.streams.length > 0) ||
      b.memory - a.memory ||
      b.cores - a.cores ||
      bandwidth(b) - bandwidth(a) ||
      (a.key < b.key ? -1 : 1),
  );
}

function itemsOf(batches: readonly Batch[]): Shape[] {
  return batches.flatMap(({ shape, count }) => Array<Shape>(count).fill(shape));
}

function batchesFrom(items: readonly Shape[], index: number): Batch[] {
  const batches: Batch[] = [];
  for (let at = index; at < items.length; at += 1) {
    const shape = items[at] as Shape;
    const last = batches.at(-1);
    if (last?.shape === shape) last.count += 1;
    else batches.push({ shape, count: 1 });
  }
  return batches;
}
