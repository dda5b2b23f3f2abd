import { formatBandwidth } from '../common/units.js';
import { type Decision, scoreOfPods } from './engine.js';
import { Ledger, type Obstacle, type Rules } from './ledger.js';
import { compareScores, type ScoreVector } from './score.js';
import { search } from './search.js';
import type { PlacedPod, Snapshot } from './snapshot.js';

/** Candidates that are looked at for each group of boxes that was not taken. */
const BUDGET_PER_GROUP = 5_000;
const MAX_GROUPS = 16;

/** What would have become of a decision elsewhere. */
export interface Alternative {
  /** AX nodes, or boxes, that come to the same. */
  readonly names: readonly string[];
  /** `better` only where the budget ended the search. */
  readonly verdict: 'chosen' | 'better' | 'equal' | 'worse' | 'impossible';
  /** Why not, in words; empty for what was chosen. */
  readonly reason: string;
  /** Not there where it is impossible. */
  readonly score?: ScoreVector;
}

export interface PodExplanation {
  readonly pod: string;
  readonly node: string;
  /** All AX nodes, the other pods staying where they are. What was chosen is the first. */
  readonly alternatives: readonly Alternative[];
}

export interface Explanation {
  /** Groups of equally cabled boxes that the job could have had all of its boxes from. */
  readonly boxes: readonly Alternative[];
  readonly pods: readonly PodExplanation[];
}

/** Why a decision is as it is: each candidate with its score, and the first level at which it loses. */
export function explain(decision: Decision, rules: Rules): Explanation {
  const { after, placed, score } = decision;
  if (!score) return { boxes: [], pods: [] };
  const names = new Set(placed.map(({ pod }) => pod.name));
  const jobs = after.jobs.map((job) => ({ ...job, pods: job.pods.filter(({ pod }) => !names.has(pod.name)) }));
  const ledger = new Ledger({ ...after, jobs });
  return {
    boxes: explainBoxes(decision, score, rules),
    pods: placed.map((each) => explainPod(after, ledger, placed, each, score, rules)),
  };
}

function explainPod(
  { cluster }: Snapshot,
  ledger: Ledger,
  placed: readonly PlacedPod[],
  { pod, node: chosen }: PlacedPod,
  score: ScoreVector,
  rules: Rules,
): PodExplanation {
  const others = placed.filter((other) => other.pod !== pod);
  const shape = ledger.shapeOf(pod);
  const scores = new Map<string, ScoreVector>();
  const obstacles = new Map<string, Obstacle>();
  for (const { pod: other, node } of others) ledger.add(ledger.shapeOf(other), ledger.nodeNumber(node));
  for (const [number, { name }] of cluster.nodes.entries()) {
    const obstacle = ledger.obstacle(shape, number, rules);
    if (obstacle) obstacles.set(name, obstacle);
  }
  for (const { pod: other, node } of others) ledger.remove(ledger.shapeOf(other), ledger.nodeNumber(node));
  // AX nodes in the same state come to the same: one score for all of them.
  const ofState = new Map<string, ScoreVector>();
  const busy = new Set(placed.map(({ node }) => node));
  for (const [number, { name }] of cluster.nodes.entries()) {
    if (obstacles.has(name) || name === chosen) continue;
    const state = busy.has(name)
      ? name
      : `${ledger.fabric.leafSetOfNode[number]} ${ledger.pods[number] === 0} ${ledger.shards[number]}`;
    const there = ofState.get(state) ?? scoreOfPods(ledger, [...others, { pod, node: name }]);
    ofState.set(state, there);
    scores.set(name, there);
  }
  const groups = new Map<string, Alternative & { names: string[] }>();
  for (const { name } of cluster.nodes) {
    if (name === chosen) continue;
    const obstacle = obstacles.get(name);
    const alternative = obstacle ? impossible(WORDS[obstacle]) : compared(scores.get(name) as ScoreVector, score);
    const key = `${alternative.verdict} ${alternative.reason} ${alternative.score}`;
    const group = groups.get(key);
    if (group) group.names.push(name);
    else groups.set(key, { ...alternative, names: [name] });
  }
  const first: Alternative = { names: [chosen], verdict: 'chosen', reason: '', score };
  return { pod: pod.name, node: chosen, alternatives: [first, ...[...groups.values()].sort(bestFirst)] };
}

function explainBoxes(decision: Decision, score: ScoreVector, rules: Rules): Alternative[] {
  const { before, operation, subject, boxes, after } = decision;
  const job = after.jobs.find((placed) => placed.job.name === subject)?.job;
  if (!job || (operation !== 'place' && operation !== 'grow')) return [];
  const ledger = new Ledger(before);
  const { fabric } = ledger;
  const taken = new Set(boxes.map((box) => fabric.cablingOfBox[fabric.boxNumber.get(box) as number]));
  const chosen: Alternative = { names: boxes, verdict: 'chosen', reason: '', score };
  const others: Alternative[] = [];
  for (const [cabling, group] of fabric.cablings.entries()) {
    if (taken.size === 1 && taken.has(cabling)) continue;
    const free = group.boxes.filter((box) => ledger.boxTaken[box] === 0);
    const names = free.map((box) => before.cluster.boxes[box]?.name as string);
    if (names.length === 0) continue;
    if (free.length < boxes.length) {
      others.push({ ...impossible(`only ${free.length} of ${boxes.length} boxes are free`), names });
      continue;
    }
    if (others.length === MAX_GROUPS) break;
    const wanted = { boxes: { job, count: boxes.length, first: operation === 'place', cabling }, pods: [] };
    const { found, complete } = search(ledger, wanted, rules, BUDGET_PER_GROUP);
    if (found) others.push({ ...compared(found.score, score), names });
    else others.push({ ...impossible(complete ? 'the pods have no room' : 'no room was found for the pods'), names });
  }
  return [chosen, ...others.sort(bestFirst)];
}

const WORDS: Readonly<Record<Obstacle, string>> = {
  drained: 'drained',
  exclusion: 'has a SwDriver already',
  cores: 'too few free cores',
  memory: 'too little free memory',
  'no NIC': 'no NIC',
  'NIC bandwidth': 'too little free NIC bandwidth',
  spine: 'only across the spine, which is refused',
};

function impossible(reason: string): Alternative {
  return { names: [], verdict: 'impossible', reason };
}

function compared(there: ScoreVector, chosen: ScoreVector): Alternative {
  const level = there.findIndex((value, index) => value !== chosen[index]);
  if (level === -1) return { names: [], verdict: 'equal', reason: 'as good', score: there };
  const verdict = compareScores(there, chosen) > 0 ? 'worse' : 'better';
  const [from, to] = [describeLevel(level, chosen), describeLevel(level, there)];
  return { names: [], verdict, reason: `${LEVEL_NAMES[level]} ${to} instead of ${from}`, score: there };
}

const LEVEL_NAMES = ['spine', 'most loaded uplink', 'fragmentation', 'shards on one AX node'];

/** One level of a score for people. */
export function describeLevel(level: number, score: ScoreVector): string {
  const value = score[level] as number;
  if (level === 0) return value === 0 ? '0' : formatBandwidth(value);
  if (level === 1) return `${(100 * value).toFixed(1)} %`;
  return String(value);
}

function bestFirst(a: Alternative, b: Alternative): number {
  if (a.score && b.score) return compareScores(a.score, b.score);
  return Number(b.score !== undefined) - Number(a.score !== undefined);
}
