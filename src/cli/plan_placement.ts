import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Command, InvalidArgumentError } from 'commander';
import { readCluster } from '../cluster/cluster.js';
import { describeCrossing } from '../cluster/crossings.js';
import { DEFAULT_BUDGET, type Decision, PlacementEngine, type Statement } from '../cluster/engine.js';
import { type Alternative, describeLevel, type Explanation, explain } from '../cluster/explain.js';
import { readJobs } from '../cluster/jobs.js';
import { Ledger, type Rules } from '../cluster/ledger.js';
import { manifestsOf } from '../cluster/manifests.js';
import { drawCluster } from '../cluster/picture.js';
import { LEVELS, scoreOf } from '../cluster/score.js';
import { emptySnapshot, hashSnapshot, type Snapshot } from '../cluster/snapshot.js';
import { readState, writeState } from '../cluster/state_file.js';
import { localError, messageOf } from '../common/errors.js';
import { formatBandwidth, formatBytes, formatCount } from '../common/units.js';
import { writeText } from './files.js';
import { integerOption } from './options.js';
import { alignRows } from './table.js';

interface PlacementFlags {
  cluster: string;
  jobs?: string;
  state?: string;
  exclusion: boolean;
  rejectSpine?: boolean;
  remove?: string[];
  undrain?: string[];
  resize?: [job: string, boxes: number][];
  drain?: string[];
  replace?: string[];
  whatIf?: boolean;
  explain?: boolean;
  budget: number;
  svg?: string;
  manifests?: string;
  json?: boolean;
}

/** Names that a line for people has room for. */
const MAX_NAMES = 6;

/** `kvss plan placement`: which boxes and AX nodes jobs get, and why. */
export function planPlacementCommand(): Command {
  return new Command('placement')
    .description(
      'place jobs on the boxes and AX nodes of a cluster: no two SwDrivers together, on rails, off the spine',
    )
    .requiredOption('--cluster <file>', 'YAML file of the cluster; kvss plan cluster makes one')
    .option('--jobs <file>', 'YAML file of jobs; those that the state has already stay as they are')
    .option('--state <file>', 'what runs where: read if it is there, and replaced when all has gone well')
    .option('--no-exclusion', 'let SwDrivers share AX nodes')
    .option('--reject-spine', 'end with an error that names the streams where some would cross the spine')
    .option('--remove <job>', 'take a job away; may be given again', namesOption)
    .option('--undrain <node>', 'let pods come to an AX node again', namesOption)
    .option('--resize <job=boxes>', 'grow or shrink the session of a job to so many boxes', resizeOption)
    .option('--drain <node>', 'take all pods off an AX node, without stopping a job', namesOption)
    .option('--replace <job>', 'place the pods of a job anew where that is better', namesOption)
    .option('--what-if', 'only say what would be: no state and no manifests are written')
    .option('--explain', 'say for each pod why it is where it is, and what every other AX node would come to')
    .option(
      '--budget <candidates>',
      'how long to look for something better, for each decision',
      integerOption(1),
      DEFAULT_BUDGET,
    )
    .option('--svg <file>', 'draw the cluster with what runs where')
    .option('--manifests <directory>', 'write Kubernetes manifests that say the same, one file for each job')
    .option('--json', 'print one JSON object')
    .action(plan);
}

function namesOption(text: string, before: readonly string[] = []): string[] {
  return [...before, ...text.split(',')];
}

function resizeOption(text: string, before: readonly [string, number][] = []): [string, number][] {
  const [, job, boxes] = /^([^=]+)=([0-9]+)$/.exec(text) ?? [];
  if (job === undefined) throw new InvalidArgumentError(`'${text}' is not JOB=BOXES.`);
  return [...before, [job, Number(boxes)]];
}

function plan(flags: PlacementFlags): void {
  if (flags.jobs === undefined && flags.state === undefined) {
    throw localError('KVSS_BAD_INPUT', 'nothing to place: give --jobs, or --state with what runs already');
  }
  const cluster = readCluster(flags.cluster);
  const start = flags.state === undefined ? emptySnapshot(cluster) : readState(flags.state, cluster);
  const rules = { exclusion: flags.exclusion, rejectSpine: flags.rejectSpine ?? false };
  const engine = new PlacementEngine(start, { ...rules, budget: flags.budget });
  const statement = engine.begin();
  const startedMs = performance.now();
  const timesMs = run(statement, flags, startedMs);
  const token = statement.token;
  const snapshot = flags.whatIf ? statement.snapshot : engine.commit(statement, token);
  if (!flags.whatIf && flags.state !== undefined) writeState(flags.state, start, snapshot);
  if (flags.svg !== undefined) writeText(flags.svg, drawCluster(snapshot));
  if (flags.manifests !== undefined && !flags.whatIf) writeManifests(flags.manifests, snapshot, rules);
  const explanations = flags.explain ? statement.journal.map((decision) => explain(decision, rules)) : [];
  if (flags.json) {
    console.log(JSON.stringify(report(statement, snapshot, token, timesMs, explanations, flags), null, 2));
  } else {
    console.log(describe(statement, snapshot, timesMs, explanations, flags));
  }
  for (const { crossings } of statement.journal) {
    for (const crossing of crossings) console.error(`kvss: warning: ${describeCrossing(crossing)}`);
  }
  for (const warning of oversubscribed(snapshot)) console.error(`kvss: warning: ${warning}`);
}

/** Uplinks and a spine that streams may ask more of than they carry. */
function oversubscribed(snapshot: Snapshot): string[] {
  const ledger = new Ledger(snapshot);
  const { leaves, spine } = snapshot.cluster;
  const over = (what: string, load: number, bandwidth: number) =>
    load > bandwidth
      ? [`${what} carries ${formatBandwidth(bandwidth)}, streams may ask for ${formatBandwidth(load)}`]
      : [];
  return [
    ...over('the spine', ledger.spine, spine.bandwidth),
    ...leaves.flatMap(({ name, uplink }, leaf) =>
      over(`the uplink of ${name}`, ledger.uplinkLoad[leaf] as number, uplink),
    ),
  ];
}

/** Everything that is asked for, in one statement; answers the milliseconds of each decision. */
function run(statement: Statement, flags: PlacementFlags, startedMs: number): number[] {
  const timesMs: number[] = [];
  let lastMs = startedMs;
  const timed = (decide: () => Decision) => {
    decide();
    const nowMs = performance.now();
    timesMs.push(nowMs - lastMs);
    lastMs = nowMs;
  };
  for (const job of flags.remove ?? []) timed(() => statement.remove(job));
  for (const node of flags.undrain ?? []) timed(() => statement.undrain(node));
  const there = new Set(statement.snapshot.jobs.map(({ job }) => job.name));
  const jobs = flags.jobs === undefined ? [] : readJobs(flags.jobs, statement.base.cluster);
  lastMs = performance.now();
  for (const job of jobs) if (!there.has(job.name)) timed(() => statement.place(job));
  for (const [job, boxes] of flags.resize ?? []) timed(() => statement.resize(job, boxes));
  for (const node of flags.drain ?? []) timed(() => statement.drain(node));
  for (const job of flags.replace ?? []) timed(() => statement.replace(job));
  return timesMs;
}

function writeManifests(directory: string, snapshot: Snapshot, rules: Rules): void {
  try {
    mkdirSync(directory, { recursive: true });
  } catch (cause) {
    throw localError('KVSS_BAD_INPUT', `--manifests: ${messageOf(cause)}`, cause);
  }
  for (const { name, text } of manifestsOf(snapshot, rules)) writeText(join(directory, name), text);
}

function report(
  { journal }: Statement,
  snapshot: Snapshot,
  token: string,
  timesMs: readonly number[],
  explanations: readonly Explanation[],
  flags: PlacementFlags,
): object {
  return {
    version: snapshot.version,
    hash: hashSnapshot(snapshot),
    whatIf: flags.whatIf ?? false,
    token,
    decisions: journal.map((decision, index) => {
      const { operation, subject, boxes, missingBoxes, score, bound, provenLevels, looked, complete } = decision;
      return {
        operation,
        subject,
        boxes,
        missingBoxes,
        placed: decision.placed.map(({ pod, node }) => ({ pod: pod.name, node })),
        moves: decision.moves,
        ...(score ? { score: scoreOf(score) } : {}),
        ...(bound ? { bound: scoreOf(bound) } : {}),
        provenLevels: LEVELS.slice(0, provenLevels),
        candidates: looked,
        complete,
        crossings: decision.crossings,
        ms: Number((timesMs[index] as number).toFixed(2)),
        ...(explanations[index] ? { explanation: explanations[index] } : {}),
      };
    }),
    jobs: snapshot.jobs.map(({ job, boxes, pods }) => ({
      name: job.name,
      boxes,
      pods: pods.map(({ pod, node }) => ({
        name: pod.name,
        kind: pod.spec.kind,
        ...(pod.box === undefined ? {} : { box: pod.box }),
        ...(pod.domain === undefined ? {} : { domain: pod.domain }),
        node,
      })),
    })),
    drained: snapshot.drained,
  };
}

function describe(
  { journal }: Statement,
  snapshot: Snapshot,
  timesMs: readonly number[],
  explanations: readonly Explanation[],
  flags: PlacementFlags,
): string {
  const { cluster } = snapshot;
  const lines = [
    `${formatCount(cluster.boxes.length)} boxes, ${formatCount(cluster.nodes.length)} AX nodes, ${formatCount(cluster.leaves.length)} leaves`,
    '',
  ];
  if (journal.length > 0) {
    const head = ['decision', 'boxes', 'pods', 'moved', 'spine', 'uplink', 'fragmentation', 'shards', 'optimal'];
    lines.push(
      alignRows([[...head, 'candidates', 'time'], ...journal.map((each, at) => decisionRow(each, timesMs[at]))]),
      '',
    );
  }
  const notes = journal.flatMap(notesOn);
  if (notes.length > 0) lines.push(...notes, '');
  for (const [index, explanation] of explanations.entries()) {
    lines.push(...describeExplanation(journal[index] as Decision, explanation));
  }
  lines.push(nodeTable(snapshot), '');
  const what = flags.whatIf ? 'what if: nothing is written' : `version ${snapshot.version}`;
  lines.push(`${what}, ${hashSnapshot(snapshot).slice(0, 16)}`);
  return lines.join('\n');
}

function decisionRow(decision: Decision, ms: number | undefined): string[] {
  const { operation, subject, boxes, placed, moves, score, provenLevels, looked } = decision;
  const levels = score ? LEVELS.map((_, level) => describeLevel(level, score)) : LEVELS.map(() => '');
  const proven = !score ? '' : provenLevels === LEVELS.length ? 'proven' : `${provenLevels} of ${LEVELS.length} levels`;
  const counts = [boxes, placed, moves].map(({ length }) => formatCount(length));
  return [`${operation} ${subject}`, ...counts, ...levels, proven, formatCount(looked), `${ms?.toFixed(1)} ms`];
}

/** What a reader must know besides the numbers. */
function notesOn({ operation, subject, boxes, missingBoxes, moves, score, bound, complete }: Decision): string[] {
  const lines: string[] = [];
  if (boxes.length > 0) lines.push(`${operation} ${subject}: ${boxes.join(', ')}`);
  if (missingBoxes > 0)
    lines.push(
      `${operation} ${subject}: ${missingBoxes} ${missingBoxes === 1 ? 'box' : 'boxes'} fewer than the session wants`,
    );
  for (const { pod, from, to } of moves) lines.push(`${pod}: ${from} -> ${to}`);
  const level = score ? score.findIndex((value, index) => value !== bound?.[index]) : -1;
  if (!complete && level === -1)
    lines.push(`${operation} ${subject}: the budget ended the search for a larger session`);
  if (!complete && score && bound && level !== -1) {
    const [at, best] = [describeLevel(level, score), describeLevel(level, bound)];
    lines.push(
      `${operation} ${subject}: the budget ended the search; ${LEVELS[level]} is ${at}, no placement has less than ${best}`,
    );
  }
  return lines;
}

function describeExplanation({ operation, subject }: Decision, { boxes, pods }: Explanation): string[] {
  const lines = [`why ${operation} ${subject}`];
  if (boxes.length > 0) lines.push('  boxes', ...describeAlternatives(boxes));
  for (const { pod, alternatives } of pods) lines.push(`  ${pod}`, ...describeAlternatives(alternatives));
  return [...lines, ''];
}

/** One line for all that have the same said of them. */
function describeAlternatives(alternatives: readonly Alternative[]): string[] {
  const named = new Map<string, string[]>();
  for (const { names, verdict, reason } of alternatives) {
    const compared = verdict === 'worse' || verdict === 'better';
    const what = verdict === 'chosen' ? verdict : compared ? `${verdict}: ${reason}` : reason;
    named.set(what, [...(named.get(what) ?? []), ...names]);
  }
  return [...named].map(([what, names]) => `    ${someOf(names)}: ${what}`);
}

function someOf(names: readonly string[]): string {
  const shown = names.slice(0, MAX_NAMES).join(', ');
  return names.length > MAX_NAMES ? `${shown} and ${names.length - MAX_NAMES} more` : shown;
}

/** AX nodes where something runs, or may not run. */
function nodeTable(snapshot: Snapshot): string {
  const ledger = new Ledger(snapshot);
  const podsOn = new Map<string, string[]>();
  for (const { job, pods } of snapshot.jobs) {
    for (const { pod, node } of pods) {
      podsOn.set(node, [...(podsOn.get(node) ?? []), `${job.name} ${pod.spec.kind}`]);
    }
  }
  const rows = snapshot.cluster.nodes.flatMap((node, number) => {
    const drained = snapshot.drained.includes(node.name);
    const pods = podsOn.get(node.name) ?? [];
    if (pods.length === 0 && !drained) return [];
    const capacity = ledger.fabric.nicsOfNode[number]?.reduce((sum, each) => sum + each, 0) ?? 0;
    const free = ledger.nicsFree[number]?.reduce((sum, each) => sum + each, 0) ?? 0;
    const memory = node.memory - (ledger.memoryFree[number] as number);
    return [
      [
        node.name,
        `${(node.cores - (ledger.coresFree[number] as number)) / 1000} of ${node.cores / 1000}`,
        `${memory === 0 ? '0' : formatBytes(memory)} of ${formatBytes(node.memory)}`,
        `${capacity === free ? '0' : formatBandwidth(capacity - free)} of ${formatBandwidth(capacity)}`,
        drained ? 'drained' : counted(pods),
      ],
    ];
  });
  const all = [['AX node', 'cores', 'memory', 'NICs', 'pods'], ...rows];
  // Names of pods read better from the left.
  const numbers = alignRows(all.map((row) => row.slice(0, -1))).split('\n');
  return all.map((row, index) => `${numbers[index]}  ${row.at(-1)}`).join('\n');
}

/** `3 chat kvss, chat swdriver` */
function counted(names: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => (count > 1 ? `${count} ${name}` : name)).join(', ');
}
