import { localError } from '../common/errors.js';
import type { Cluster } from './cluster.js';
import { type Crossing, crossingsOf, describeCrossing } from './crossings.js';
import { fabricOf } from './fabric.js';
import { type Job, type Pod, podsOfBox, podsOfJob } from './jobs.js';
import { Ledger, type Obstacle, type Rules, type Shape } from './ledger.js';
import { compareScores, type ScoreVector } from './score.js';
import { type Found, type SearchResult, search, type Wanted } from './search.js';
import { emptySnapshot, freeze, hashSnapshot, type PlacedJob, type PlacedPod, type Snapshot } from './snapshot.js';
import { Islands } from './symmetry.js';

/** Candidates that one search looks at before it answers with the best so far. */
export const DEFAULT_BUDGET = 50_000;

/** Snapshots before the current one that an engine can go back to. */
const MAX_HISTORY = 256;
/** Streams that an error names; it counts the others. */
const MAX_NAMED = 8;

export interface PlacementOptions extends Partial<Rules> {
  /** Candidates that one search looks at before it answers with the best so far; DEFAULT_BUDGET if left out. */
  readonly budget?: number;
}

export type Operation = 'place' | 'grow' | 'shrink' | 'drain' | 'undrain' | 'replace' | 'remove';

/** A pod that has another AX node than before. */
export interface Move {
  readonly pod: string;
  readonly from: string;
  readonly to: string;
}

/** One entry of a journal: what was done, and why it is the best. */
export interface Decision {
  readonly operation: Operation;
  /** The job, or the AX node of a drain. */
  readonly subject: string;
  /** As it was before. */
  readonly before: Snapshot;
  readonly after: Snapshot;
  /** Boxes that the job got, or gave back. */
  readonly boxes: readonly string[];
  /** Pods that the search placed. */
  readonly placed: readonly PlacedPod[];
  /** Of those the ones that ran elsewhere before. A KVSS shard that moves begins empty. */
  readonly moves: readonly Move[];
  /** Not there where nothing was searched for. */
  readonly score?: ScoreVector;
  /** No placement is better than this; equal to the score where it is proven to be optimal. */
  readonly bound?: ScoreVector;
  /** How many levels of the score, from the first, are proven to be optimal. */
  readonly provenLevels: number;
  /** What the search looked at: pairs of a pod or box and where it could go. */
  readonly looked: number;
  /** The budget did not end the search. */
  readonly complete: boolean;
  /** Streams of these pods that cross the spine. */
  readonly crossings: readonly Crossing[];
  /** Boxes that a session wanted and did not get. */
  readonly missingBoxes: number;
}

/**
 * Says what runs where in a cluster. What is there is one immutable snapshot; changes are tried in statements, which see
 * nothing of each other, and become the next snapshot by a commit. Nothing here does any I/O.
 */
export class PlacementEngine {
  #snapshot: Snapshot;
  readonly #history: Snapshot[] = [];
  readonly #options: Rules & { readonly budget: number };

  constructor(start: Cluster | Snapshot, options: PlacementOptions = {}) {
    this.#snapshot = 'version' in start ? freeze(start) : emptySnapshot(start);
    // What follows from the cables is worked out once, and not by the first placement.
    fabricOf(this.#snapshot.cluster);
    const { exclusion = true, rejectSpine = false, budget = DEFAULT_BUDGET } = options;
    this.#options = { exclusion, rejectSpine, budget };
  }

  get snapshot(): Snapshot {
    return this.#snapshot;
  }

  /** A statement against what is there now. Leaving it alone costs nothing: that is a what-if. */
  begin(): Statement {
    return new Statement(this.#snapshot, this.#options);
  }

  /**
   * Makes what a statement has come to the snapshot. `token` is the statement's, taken when its outcome was looked at.
   * Throws KVSS_STALE where the snapshot that the statement began with is no longer the current one, or where the
   * statement has changed since.
   */
  commit(statement: Statement, token: string): Snapshot {
    if (statement.base !== this.#snapshot) {
      const { version } = statement.base;
      throw localError(
        'KVSS_STALE',
        `the statement began with version ${version}, and now there is version ${this.#snapshot.version}: begin another`,
      );
    }
    if (token !== statement.token) {
      throw localError('KVSS_STALE', 'the token is of another state of the statement: look at it again');
    }
    this.#history.push(this.#snapshot);
    if (this.#history.length > MAX_HISTORY) this.#history.shift();
    this.#snapshot = freeze({ ...statement.snapshot, version: this.#snapshot.version + 1 });
    return this.#snapshot;
  }

  /**
   * Goes back to the snapshot of an earlier version: exactly that one. Throws KVSS_BAD_INPUT where it is not known any
   * more.
   */
  rollback(version: number): Snapshot {
    const index = this.#history.findIndex((snapshot) => snapshot.version === version);
    const found = this.#history[index];
    if (!found) throw localError('KVSS_BAD_INPUT', `there is no version ${version} to go back to`);
    this.#history.length = index;
    this.#snapshot = found;
    return found;
  }
}

/** Changes of a snapshot that are tried one after another, with a journal of what was decided. */
export class Statement {
  readonly #journal: Decision[] = [];

  constructor(
    /** What it began with. */
    readonly base: Snapshot,
    private readonly options: Rules & { readonly budget: number },
  ) {}

  /** What it has come to. */
  get snapshot(): Snapshot {
    return this.#journal.at(-1)?.after ?? this.base;
  }

  get journal(): readonly Decision[] {
    return this.#journal;
  }

  /** Names what it began with and what it has come to. */
  get token(): string {
    return `${this.base.version}.${hashSnapshot(this.base)}.${hashSnapshot(this.snapshot)}`;
  }

  /** Takes back the decisions from this number of the journal on; all if it is left out. */
  rollback(entries = 0): Snapshot {
    this.#journal.length = Math.min(entries, this.#journal.length);
    return this.snapshot;
  }

  /**
   * Places a job: as many boxes as it wants or, where there is no room for them, the most of `minimum` plus increments.
   * Throws KVSS_NO_PLACEMENT that says what there is no room for, KVSS_SPINE_REFUSED that names the streams where it
   * could run only across the spine and must not, and KVSS_BAD_INPUT for a name that is taken.
   */
  place(job: Job): Decision {
    const before = this.snapshot;
    if (before.jobs.some((placed) => placed.job.name === job.name)) {
      throw localError('KVSS_BAD_INPUT', `job '${job.name}' is placed already`);
    }
    const { boxes: wanted, minimum, increment } = job.session;
    const ledger = new Ledger(before);
    const free = ledger.boxTaken.filter((taken) => taken === 0).length;
    const most = wanted <= free ? wanted : minimum + Math.floor((free - minimum) / increment) * increment;
    let looked = 0;
    let complete = true;
    for (let count = most; count >= minimum; count -= increment) {
      const result = search(
        ledger,
        { boxes: { job, count, first: true }, pods: [] },
        this.options,
        this.options.budget,
      );
      looked += result.looked;
      complete &&= result.complete;
      if (!result.found) continue;
      const placedPods = this.#placedPods(result.found);
      const boxes = this.#boxNames(result.found);
      const jobs = [...before.jobs, { job, boxes, pods: placedPods }];
      return this.#decided('place', job.name, { ...before, jobs }, placedPods, {
        ...result,
        looked,
        complete,
        boxes,
        missingBoxes: wanted - count,
      });
    }
    throw this.#refusal(ledger, { boxes: { job, count: minimum, first: true }, pods: [] }, job.name, complete);
  }

  /**
   * Grows or shrinks a session to so many boxes. Pods that run go on running where they are; a session that shrinks
   * gives back the boxes that use the spine most, then the newest, and never its first. Throws KVSS_BAD_INPUT for a
   * number of boxes that is no whole number of increments away or below the minimum, and what place throws.
   */
  resize(name: string, boxes: number): Decision {
    const placed = this.#job(name);
    const { minimum, increment } = placed.job.session;
    const more = boxes - placed.boxes.length;
    const bad = (what: string) => localError('KVSS_BAD_INPUT', `job '${name}': ${what}`);
    if (!Number.isInteger(boxes) || boxes < minimum) {
      throw bad(`${boxes} boxes are fewer than the minimum of its session, ${minimum}`);
    }
    if (more % increment !== 0) {
      throw bad(`from ${placed.boxes.length} to ${boxes} boxes is no multiple of the increment, ${increment}`);
    }
    return more < 0 ? this.#shrink(placed, -more) : this.#grow(placed, more);
  }

  #grow(placed: PlacedJob, count: number): Decision {
    const before = this.snapshot;
    const { job } = placed;
    const ledger = new Ledger(before);
    const wanted = { boxes: { job, count, first: false }, pods: [] };
    const result = search(ledger, wanted, this.options, this.options.budget);
    if (!result.found) throw this.#refusal(ledger, wanted, job.name, result.complete);
    const pods = this.#placedPods(result.found);
    const boxes = this.#boxNames(result.found);
    const after = { job, boxes: [...placed.boxes, ...boxes], pods: [...placed.pods, ...pods] };
    return this.#decided('grow', job.name, withJob(before, after), pods, { ...result, boxes });
  }

  #shrink(placed: PlacedJob, count: number): Decision {
    const before = this.snapshot;
    const { job } = placed;
    const spine = new Map(placed.boxes.map((box) => [box, 0]));
    for (const { box, bandwidth } of crossingsOf(before.cluster, placed.pods)) {
      spine.set(box, (spine.get(box) as number) + bandwidth);
    }
    const age = new Map(placed.boxes.map((box, index) => [box, index]));
    const given = placed.boxes
      .slice(1)
      .sort(
        (a, b) =>
          (spine.get(b) as number) - (spine.get(a) as number) || (age.get(b) as number) - (age.get(a) as number),
      )
      .slice(0, count);
    const after = {
      job,
      boxes: placed.boxes.filter((box) => !given.includes(box)),
      pods: placed.pods.filter(({ pod }) => pod.box === undefined || !given.includes(pod.box)),
    };
    return this.#decided('shrink', job.name, withJob(before, after), [], { boxes: given });
  }

  /**
   * Takes every pod off an AX node and lets none come back; the jobs and all their other pods go on. Throws
   * KVSS_NO_PLACEMENT or KVSS_SPINE_REFUSED where the pods have no other place, and then nothing is changed.
   */
  drain(node: string): Decision {
    const before = this.snapshot;
    this.#node(node);
    if (before.drained.includes(node)) throw localError('KVSS_BAD_INPUT', `'${node}' is drained already`);
    const pods = before.jobs.flatMap((job) => job.pods.filter((placed) => placed.node === node));
    const drained = [...before.drained, node];
    return this.#rehouse('drain', node, { ...before, drained }, pods);
  }

  /** Lets pods come to an AX node again. Those that left it stay where they are; see replace. */
  undrain(node: string): Decision {
    const before = this.snapshot;
    if (!before.drained.includes(node)) throw localError('KVSS_BAD_INPUT', `'${node}' is not drained`);
    const drained = before.drained.filter((name) => name !== node);
    return this.#decided('undrain', node, { ...before, drained }, [], {});
  }

  /** Places the pods of a job anew, its boxes kept; nothing moves where that makes nothing better. */
  replace(name: string): Decision {
    const placed = this.#job(name);
    return this.#rehouse('replace', name, this.snapshot, placed.pods);
  }

  /** Takes a job away. */
  remove(name: string): Decision {
    const before = this.snapshot;
    const { boxes } = this.#job(name);
    const jobs = before.jobs.filter(({ job }) => job.name !== name);
    return this.#decided('remove', name, { ...before, jobs }, [], { boxes });
  }

  /** Other AX nodes for pods that run: all of these together. */
  #rehouse(operation: 'drain' | 'replace', subject: string, cleared: Snapshot, placed: readonly PlacedPod[]): Decision {
    const leaving = new Set(placed.map(({ pod }) => pod.name));
    const jobs = cleared.jobs.map((job) => ({ ...job, pods: job.pods.filter(({ pod }) => !leaving.has(pod.name)) }));
    const ledger = new Ledger({ ...cleared, jobs });
    const wanted = { pods: placed.map(({ pod }) => pod) };
    const result = search(ledger, wanted, this.options, this.options.budget);
    if (operation === 'replace') {
      const now = scoreOfPods(ledger, placed);
      const better = result.found && compareScores(result.found.score, now) < 0;
      if (!better) {
        const bound = result.found?.bound ?? now;
        return this.#decided(operation, subject, cleared, [], {
          ...result,
          found: { boxes: [], placed: [], score: now, bound, provenLevels: result.found?.provenLevels ?? 0 },
        });
      }
    }
    if (!result.found) throw this.#refusal(ledger, wanted, subject, result.complete);
    const alike = this.#keptInPlace(ledger, result.found, placed);
    const settled = withoutNeedlessMoves(ledger, placed, alike, this.options);
    const homes = new Map(settled.map((each) => [each.pod.name, each]));
    const after = {
      ...cleared,
      jobs: cleared.jobs.map((job) => ({ ...job, pods: job.pods.map((each) => homes.get(each.pod.name) ?? each) })),
    };
    const moves = placed.flatMap(({ pod, node }) => {
      const to = homes.get(pod.name)?.node as string;
      return to === node ? [] : [{ pod: pod.name, from: node, to }];
    });
    return this.#decided(operation, subject, after, [...homes.values()], { ...result, moves });
  }

  /**
   * The same placement with fewer moves: AX nodes that are alike without these pods can change places, and so can pods of
   * the same shape. Those whose place is still taken by one of them stay there. A shard that moves begins empty.
   */
  #keptInPlace(cleared: Ledger, { placed }: Found, before: readonly PlacedPod[]): PlacedPod[] {
    const was = shapesByNode(
      cleared,
      before.map(({ pod, node }) => ({ pod, node: cleared.nodeNumber(node) })),
    );
    const will = shapesByNode(cleared, placed);
    const islands = new Islands(cleared, [], this.options.exclusion);
    const places = [...was.keys(), ...will.keys()].filter((node) => cleared.drained[node] === 0);
    const states = new Map(places.map((node) => [node, islands.stateOf(node)]));
    const pairs = [...will].flatMap(([from, shapes]) =>
      [...states].flatMap(([to, state]) =>
        state === states.get(from) ? [{ from, to, kept: inCommon(shapes, was.get(to) ?? []) }] : [],
      ),
    );
    const renamed = new Map<number, number>();
    const taken = new Set<number>();
    // The most that stays first; an AX node that nothing speaks for keeps its name where it can.
    for (const { from, to } of pairs.sort(
      (a, b) => b.kept - a.kept || Number(b.from === b.to) - Number(a.from === a.to) || a.from - b.from || a.to - b.to,
    )) {
      if (renamed.has(from) || taken.has(to)) continue;
      renamed.set(from, to);
      taken.add(to);
    }
    const free = new Map<string, string[]>();
    for (const { pod, node } of placed) {
      const { key } = cleared.shapeOf(pod);
      const name = this.base.cluster.nodes[renamed.get(node) as number]?.name as string;
      free.set(key, [...(free.get(key) ?? []), name]);
    }
    const nodes = new Map<string, string>();
    for (const { pod, node } of before) {
      const left = free.get(cleared.shapeOf(pod).key) as string[];
      const index = left.indexOf(node);
      if (index !== -1) nodes.set(pod.name, left.splice(index, 1)[0] as string);
    }
    return before.map(({ pod }) => {
      const node = nodes.get(pod.name) ?? (free.get(cleared.shapeOf(pod).key)?.shift() as string);
      return { pod, node };
    });
  }

  #decided(
    operation: Operation,
    subject: string,
    after: Snapshot,
    placed: readonly PlacedPod[],
    more: Partial<SearchResult> & {
      boxes?: readonly string[];
      moves?: readonly Move[];
      missingBoxes?: number;
    },
  ): Decision {
    const { found, boxes = [], moves = [], missingBoxes = 0, looked = 0, complete = true } = more;
    const decision = freeze({
      operation,
      subject,
      before: this.snapshot,
      after,
      boxes,
      placed,
      moves,
      ...(found ? { score: found.score, bound: found.bound } : {}),
      provenLevels: found?.provenLevels ?? 0,
      looked,
      complete,
      crossings: crossingsOf(after.cluster, placed),
      missingBoxes,
    });
    this.#journal.push(decision);
    return decision;
  }

  #placedPods({ placed }: Found): PlacedPod[] {
    const { nodes } = this.base.cluster;
    return placed.map(({ pod, node }) => ({ pod, node: nodes[node]?.name as string }));
  }

  #boxNames({ boxes }: Found): string[] {
    return boxes.map((box) => this.base.cluster.boxes[box]?.name as string);
  }

  #job(name: string): PlacedJob {
    const placed = this.snapshot.jobs.find(({ job }) => job.name === name);
    if (!placed) throw localError('KVSS_BAD_INPUT', `there is no job '${name}'`);
    return placed;
  }

  #node(name: string): void {
    if (!this.base.cluster.nodes.some((node) => node.name === name)) {
      throw localError('KVSS_BAD_INPUT', `there is no AX node '${name}'`);
    }
  }

  /** Why there is no placement, in words. */
  #refusal(ledger: Ledger, wanted: Wanted, subject: string, complete: boolean): Error {
    const none = (what: string) => localError('KVSS_NO_PLACEMENT', `no placement for '${subject}': ${what}`);
    const across = this.options.rejectSpine
      ? search(ledger, wanted, { ...this.options, rejectSpine: false }, this.options.budget).found
      : undefined;
    if (across) {
      const crossings = crossingsOf(this.base.cluster, this.#placedPods(across)).map(describeCrossing);
      const more = crossings.length > MAX_NAMED ? [`and ${crossings.length - MAX_NAMED} more like these`] : [];
      const named = [...crossings.slice(0, MAX_NAMED), ...more].join('; ');
      return localError('KVSS_SPINE_REFUSED', `'${subject}' would cross the spine, which is refused: ${named}`);
    }
    const free = ledger.boxTaken.filter((taken) => taken === 0).length;
    if (wanted.boxes && wanted.boxes.count > free) {
      return none(`boxes that it needs at least: ${wanted.boxes.count}, free ones: ${free}`);
    }
    for (const pod of this.#examples(ledger, wanted)) {
      const reasons = obstaclesOf(ledger, pod, this.options);
      if (reasons) return none(`${pod.name} has no place: ${reasons}`);
    }
    if (!complete) {
      return none(`none was found among ${this.options.budget} candidates; a larger budget may find one`);
    }
    return none('each pod has a place, all of them together have none');
  }

  /** Pods as they would be with the first free box. */
  #examples(ledger: Ledger, { boxes, pods }: Wanted): Pod[] {
    const box = this.base.cluster.boxes.find((_, number) => ledger.boxTaken[number] === 0);
    if (!boxes || !box) return [...pods];
    return [...pods, ...(boxes.first ? podsOfJob(boxes.job, box) : []), ...podsOfBox(boxes.job, box)];
  }
}

const OBSTACLES: Readonly<Record<Obstacle, string>> = {
  drained: 'drained',
  exclusion: 'with a SwDriver already',
  cores: 'with too few free cores',
  memory: 'with too little free memory',
  'no NIC': 'without a NIC',
  'NIC bandwidth': 'with too little free NIC bandwidth',
  spine: 'only across the spine',
};

/** What keeps a pod from every AX node: undefined if it has a place. */
function obstaclesOf(ledger: Ledger, pod: Pod, rules: Rules): string | undefined {
  const shape = ledger.shapeOf(pod);
  const counts = new Map<Obstacle, number>();
  for (let node = 0; node < ledger.pods.length; node += 1) {
    const obstacle = ledger.obstacle(shape, node, rules);
    if (obstacle === undefined) return undefined;
    counts.set(obstacle, (counts.get(obstacle) ?? 0) + 1);
  }
  const parts = [...counts].map(([obstacle, count]) => `${count} ${OBSTACLES[obstacle]}`);
  return `of ${ledger.pods.length} AX nodes ${parts.join(', ')}`;
}

/** The score of pods on AX nodes, in a ledger that does not have them yet. */
export function scoreOfPods(ledger: Ledger, placed: readonly PlacedPod[]): ScoreVector {
  const homes = homesOf(ledger, placed);
  for (const { shape, node } of homes) ledger.add(shape, node);
  const score = scoreNow(ledger, homes);
  for (const { shape, node } of homes) ledger.remove(shape, node);
  return score;
}

/** A pod as what it asks for, and the number of its AX node. */
interface Home {
  readonly shape: Shape;
  node: number;
}

function homesOf(ledger: Ledger, placed: readonly PlacedPod[]): Home[] {
  return placed.map(({ pod, node }) => ({ shape: ledger.shapeOf(pod), node: ledger.nodeNumber(node) }));
}

/** The score of pods that the ledger has. */
function scoreNow(ledger: Ledger, homes: readonly Home[]): ScoreVector {
  let shards = 0;
  for (const { shape, node } of homes) if (shape.shard) shards = Math.max(shards, ledger.shards[node] as number);
  return [ledger.spine, ledger.mostLoadedUplink(), ledger.nodesInUse + ledger.cablingsInUse, shards];
}

/** A placement as good as `after` where pods stay that need not move, one by one. The ledger has none of these pods. */
function withoutNeedlessMoves(
  ledger: Ledger,
  before: readonly PlacedPod[],
  after: readonly PlacedPod[],
  rules: Rules,
): PlacedPod[] {
  const homes = homesOf(ledger, after);
  for (const { shape, node } of homes) ledger.add(shape, node);
  const score = scoreNow(ledger, homes);
  const kept = after.map((placed, index) => {
    const home = homes[index] as Home;
    const old = before[index] as PlacedPod;
    const [from, to] = [ledger.nodeNumber(old.node), home.node];
    if (from === to) return placed;
    ledger.remove(home.shape, to);
    home.node = from;
    const fits = ledger.obstacle(home.shape, from, rules) === undefined;
    if (fits) {
      ledger.add(home.shape, from);
      if (compareScores(scoreNow(ledger, homes), score) === 0) return old;
      ledger.remove(home.shape, from);
    }
    home.node = to;
    ledger.add(home.shape, to);
    return placed;
  });
  for (const { shape, node } of homes) ledger.remove(shape, node);
  return kept;
}

/** Keys of the shapes on each AX node, by its number. */
function shapesByNode(ledger: Ledger, placed: Found['placed']): Map<number, string[]> {
  const shapes = new Map<number, string[]>();
  for (const { pod, node } of placed) shapes.set(node, [...(shapes.get(node) ?? []), ledger.shapeOf(pod).key]);
  return shapes;
}

/** How many of some things are among others, each as often as it is there. */
function inCommon(some: readonly string[], others: readonly string[]): number {
  const left = [...others];
  return some.filter((each) => {
    const index = left.indexOf(each);
    if (index !== -1) left.splice(index, 1);
    return index !== -1;
  }).length;
}

function withJob(snapshot: Snapshot, changed: PlacedJob): Snapshot {
  return {
    ...snapshot,
    jobs: snapshot.jobs.map((placed) => (placed.job.name === changed.job.name ? changed : placed)),
  };
}
