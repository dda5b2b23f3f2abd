import { readFileSync } from 'node:fs';
import { Command, Option } from 'commander';
import { systemClock } from '../common/clock.js';
import { localError, messageOf } from '../common/errors.js';
import { formatBytes, formatCount } from '../common/units.js';
import { type ChildDaemon, type LinkName, startChildDaemon } from '../kvss/child_daemon.js';
import { readConfigFile } from '../kvss/config.js';
import { connectorFor } from '../links/connect.js';
import type { StreamOptions } from '../links/stream_connection.js';
import { slotBytesOf } from '../proto/slots.js';
import { OPTIMUM, replayPolicy } from '../replay/policy_replay.js';
import { ReplayMeter, replayTraces } from '../replay/replay.js';
import { readTrace, type Trace, workingSetColumns } from '../replay/trace.js';
import { recordBytesOf } from '../swdriver/column_records.js';
import { DEFAULT_POLICY, POLICY_NAMES, policyNamed } from '../swdriver/eviction_policy.js';
import type { ModelGroup } from '../swdriver/model.js';
import { describeModel, groupsFrom } from '../swdriver/model_config.js';
import { SwDriver, type SwDriverOptions } from '../swdriver/sw_driver.js';
import { startChildWafer } from '../wafer/child_wafer.js';
import { RemoteWafer } from '../wafer/remote_wafer.js';
import { overTopology } from '../wafer/shaped_link.js';
import { StampingRuntime } from '../wafer/stamping_runtime.js';
import { Topology, type TopologyInput } from '../wafer/topology.js';
import { WaferRuntime } from '../wafer/wafer_runtime.js';
import { readJson } from './files.js';
import { addressesOption, groupOption, integerListOption, integerOption, positiveOption } from './options.js';
import { Progress } from './progress.js';
import { policyTable, reportTable } from './table.js';

interface ReplayFlags {
  connect?: string[];
  token?: string;
  striping: 'across' | 'within';
  capacityColumns?: number;
  bytesPerToken?: number[];
  group?: ModelGroup[];
  config?: string;
  draftConfig?: string;
  link: LinkName;
  daemons?: number;
  wioStreams: number;
  checksums?: boolean;
  /** true: one of its own. */
  wafer?: string | true;
  waferColumns?: number;
  topology?: string;
  box?: string;
  refuseSpine?: boolean;
  keyFile?: string;
  skip: number;
  deadlineMs: number;
  speed?: number;
  policy: string;
  policyOnly?: boolean;
  json?: boolean;
}

const COLUMN_TOKENS = 64;
/** Shares of the four domains of a box: unequal, as they are where layers do not divide evenly. */
const SHARES = [3, 4, 5, 4];
const COMFORTABLE_BYTES = 2 ** 30;
/** Longest that a daemon may take to answer, in milliseconds. */
const ANSWER_DEADLINE_MS = 5_000;
/** 100 MB a second: a tenth of what a slow machine does. */
const PREFAULT_BYTES_PER_MS = 100_000;
const LONGEST_DEADLINE_MS = 3_600_000;
const PLACE_BYTES = 2 ** 25;
/** Make no sense where there are no daemons. */
const FLAGS_FOR_DAEMONS = [
  'connect',
  'group',
  'config',
  'draftConfig',
  'keyFile',
  'skip',
  'striping',
  'bytesPerToken',
  'link',
  'daemons',
  'wioStreams',
  'wafer',
  'waferColumns',
  'topology',
  'box',
  'refuseSpine',
  'checksums',
  'deadlineMs',
  'speed',
];

export function replayCommand(): Command {
  return new Command('replay')
    .description('replay request traces through live daemons and verify every byte that comes back')
    .argument('<trace...>', 'trace files, in either of the two public formats')
    .addOption(
      new Option(
        '-c, --connect <address>',
        'use a daemon that runs already: path of its socket, unix:PATH or tcp://HOST:PORT; repeat it, or separate by commas',
      )
        .argParser(addressesOption)
        .conflicts(['link', 'daemons']),
    )
    .addOption(
      new Option('--token <secret>', 'what the daemons, and a wafer, want to see of who connects').env('KVSS_TOKEN'),
    )
    .addOption(
      new Option('--striping <where>', 'a column lies across all daemons, or within one of them')
        .choices(['across', 'within'])
        .default('across'),
    )
    .option(
      '--capacity-columns <count>',
      'columns to keep on all daemons together; as many as the traces need if left out',
      integerOption(1),
    )
    .option(
      '--bytes-per-token <list>',
      'bytes of one token on each shard, e.g. 24,32,40,32; of one daemon with --striping within',
      integerListOption,
    )
    .addOption(
      new Option(
        '--group <group>',
        'a group of layers with its bytes of one token on each shard: full=24,32,40,32 or, with a window, sliding@128=8,8,8,8; repeat it',
      )
        .argParser(groupOption)
        .conflicts(['bytesPerToken', 'config']),
    )
    .addOption(
      new Option(
        '--config <file>',
        'config.json of a model: its groups, spread over the shards, and scaled down where they would not fit',
      ).conflicts('bytesPerToken'),
    )
    .option('--draft-config <file>', 'config.json of its draft model')
    .addOption(
      new Option('--link <link>', 'how to reach the daemons that it starts')
        .choices(['shm', 'tcp', 'unix'])
        .default('shm'),
    )
    .option('--daemons <count>', 'daemons to start, of four shards each; 1 over shm, else 2', integerOption(1, 16))
    .option('--wio-streams <count>', 'streams for payload of each direction for each shard', integerOption(1, 16), 1)
    .addOption(
      new Option(
        '--wafer [address]',
        'a wafer in a process of its own has the memory and carries the payload: starts one, or uses the one there',
      ).env('KVSS_WAFER'),
    )
    .option(
      '--wafer-columns <count>',
      'columns that the memory of the wafer holds; as many as the longest request has if left out',
      integerOption(1),
    )
    .option('--topology <file>', 'YAML file with rails and a spine that the links run over; see docs/OPERATIONS.md')
    .option('--box <name>', 'box of the topology that the driver works for; its only one if left out')
    .option('--refuse-spine', 'end with an error where a link would cross the spine')
    .option('--checksums', 'streams carry a CRC-32C with each piece')
    .option(
      '--deadline-ms <ms>',
      'longest that one refill or evict waits for the daemons; an engine would wait for less',
      integerOption(1, LONGEST_DEADLINE_MS),
      10_000,
    )
    .option(
      '--key-file <file>',
      'key of the driver, at least 32 bytes: the daemons keep its columns when it dies, and it takes back what it finds there',
    )
    .option(
      '--skip <requests>',
      'begin after so many requests, e.g. those that a replay served which died',
      integerOption(0),
      0,
    )
    .option(
      '--speed <factor>',
      'keep the times of the traces, this much faster; no waiting if left out',
      positiveOption,
    )
    .addOption(
      new Option(
        '--policy <name>',
        'what goes first when room is needed; with --policy-only also the offline optimum: the best with foreknowledge',
      )
        .choices([...POLICY_NAMES, OPTIMUM])
        .default(DEFAULT_POLICY.name),
    )
    .addOption(
      new Option(
        '--policy-only',
        'no daemons and no bytes, only the decisions of the driver: what hit rate a policy comes to',
      ).conflicts(FLAGS_FOR_DAEMONS),
    )
    .option('--json', 'print one JSON object')
    .action(async (paths: string[], flags: ReplayFlags) => {
      await replay(paths, flags);
      // A daemon that was lost may still be being reached for, and nobody waits for that.
      process.exit();
    });
}

/** Where the shards are, and how columns lie on them. */
interface Layout {
  /** Shards of each daemon. */
  shards: readonly number[];
  /** Columns to keep, in each stripe. */
  capacityColumns: number;
  /** With the bytes of the shards of one stripe. */
  groups: readonly ModelGroup[];
}

/** Bytes of the slots of a column on each shard of a stripe, of all groups. */
function slotBytesOfShards(groups: readonly ModelGroup[]): number[] {
  const shards = groups[0]?.bytesPerToken.length ?? 0;
  return Array.from({ length: shards }, (_, shard) =>
    groups.reduce((sum, group) => sum + slotBytesOf((group.bytesPerToken[shard] as number) * COLUMN_TOKENS), 0),
  );
}

async function replay(paths: string[], flags: ReplayFlags): Promise<void> {
  const traces = paths.map((path, index) => readTrace(path, index));
  if (flags.policyOnly) return replayOnlyPolicy(traces, flags);
  if (flags.policy === OPTIMUM) {
    throw localError(
      'KVSS_BAD_INPUT',
      '--policy optimum: no driver can do that; add --policy-only to have it worked out',
    );
  }
  if (flags.connect !== undefined) {
    const shards = await Promise.all(flags.connect.map((address) => shardsOf(address, flags)));
    return run(traces, flags.connect, layoutOf(traces, shards, flags), flags);
  }
  const count = flags.daemons ?? (flags.link === 'shm' ? 1 : 2);
  const layout = layoutOf(traces, Array(count).fill(SHARES.length), flags);
  // A page more than the slots of each grant take: grants are whole pages.
  const records = flags.keyFile === undefined ? 0 : recordBytesOf(COLUMN_TOKENS, layout.groups.length + 1);
  const budgets = slotBytesOfShards(layout.groups).map(
    (bytes) => layout.capacityColumns * (bytes + records) + (layout.groups.length + 1) * 2 ** 21,
  );
  const daemons: ChildDaemon[] = [];
  try {
    for (let index = 0; index < count; index += 1) {
      const first = flags.striping === 'within' ? 0 : index * SHARES.length;
      daemons.push(await startChildDaemon(budgets.slice(first, first + SHARES.length), { link: flags.link }));
    }
    const addresses = daemons.map((daemon) => daemon.streams ?? daemon.socket);
    await run(traces, addresses, layout, flags);
  } finally {
    await Promise.all(daemons.map((daemon) => daemon[Symbol.asyncDispose]()));
  }
}

async function replayOnlyPolicy(traces: readonly Trace[], flags: ReplayFlags): Promise<void> {
  const capacityColumns = flags.capacityColumns ?? Math.max(1, workingSetColumns(traces, COLUMN_TOKENS));
  const total = traces.reduce((sum, trace) => sum + trace.requests.length, 0);
  let meter = { requests: 0 };
  const progress = new Progress(() => `${formatCount(meter.requests)} of ${formatCount(total)} requests`);
  try {
    const policy = flags.policy === OPTIMUM ? OPTIMUM : policyNamed(flags.policy);
    const report = await replayPolicy(traces, policy, capacityColumns, (running) => {
      meter = running;
    });
    console.log(flags.json ? JSON.stringify(report) : policyTable(report));
  } finally {
    progress.stop();
  }
}

function layoutOf(traces: readonly Trace[], shards: readonly number[], flags: ReplayFlags): Layout {
  const within = flags.striping === 'within';
  if (within && new Set(shards).size > 1) {
    throw localError(
      'KVSS_BAD_INPUT',
      `--striping within: the daemons have to have equally many shards, and have ${shards.join(', ')}`,
    );
  }
  const width = within ? (shards[0] as number) : shards.reduce((sum, count) => sum + count, 0);
  const columns = flags.capacityColumns ?? Math.max(1, workingSetColumns(traces, COLUMN_TOKENS));
  const groups = chooseGroups(flags, columns, width);
  for (const { name, bytesPerToken } of groups) {
    if (bytesPerToken.length === width) continue;
    const flag = flags.group ? `--group ${name}` : '--bytes-per-token';
    const where = within ? ' of each daemon' : '';
    throw localError('KVSS_BAD_INPUT', `${flag}: ${bytesPerToken.length} numbers for ${width} shards${where}`);
  }
  return { shards, capacityColumns: within ? Math.ceil(columns / shards.length) : columns, groups };
}

async function run(traces: Trace[], daemons: string[], layout: Layout, flags: ReplayFlags): Promise<void> {
  const { groups } = layout;
  await using wafer = await openWafer(traces, layout, flags);
  const start = flags.keyFile === undefined ? SwDriver.connect : SwDriver.resume;
  await using driver = await start({
    daemons,
    ...(flags.keyFile === undefined ? {} : { resume: { key: readKey(flags.keyFile) } }),
    ...streamOptions(flags),
    ...(wafer ? { carrier: wafer.remote.carrier } : {}),
    ...topologyOptions(flags, wafer?.remote),
    model: {
      id: 'replay',
      revision: '1',
      dtype: 'stamp',
      layout: 'line64',
      groups,
      columnTokens: COLUMN_TOKENS,
    },
    striping: flags.striping,
    policy: flags.policy,
    capacityColumns: layout.capacityColumns,
    deadlineMs: flags.deadlineMs,
    connectDeadlineMs: connectDeadlineMs(layout),
  });
  const which = (stripe: number) => (flags.striping === 'within' ? daemons[stripe] : 'daemons');
  driver.on('down', (stripe, reason) => console.error(`kvss: ${which(stripe)} lost: ${reason}`));
  driver.on('up', (stripe) => console.error(`kvss: ${which(stripe)} back`));
  const { columns: found, doubtful } = driver.resumed;
  if (found > 0) console.error(`kvss: ${formatCount(found)} columns of an earlier replay found`);
  if (doubtful > 0) console.error(`kvss: ${formatCount(doubtful)} columns of an earlier replay not believed in`);
  const columnBytes = driver.pieceBytes.reduce((sum, bytes) => sum + bytes, 0);
  if (!flags.json) {
    const each = flags.striping === 'within' && daemons.length > 1 ? `, on each of ${daemons.length} daemons` : '';
    console.log(
      `${formatCount(driver.capacityColumns)} columns of ${formatBytes(columnBytes)} over ${driver.pieceBytes.length} shards${each}`,
    );
    if (groups.length > 1) console.log(`groups: ${groups.map(describeGroup).join(', ')}`);
    if (wafer) console.log(`a wafer with memory for ${formatCount(wafer.remote.places)} columns carries the payload`);
  }
  const total = traces.reduce((sum, trace) => sum + trace.requests.length, 0);
  const runtime = wafer
    ? new WaferRuntime(wafer.remote, COLUMN_TOKENS, columnBytes)
    : new StampingRuntime(COLUMN_TOKENS);
  const meter = new ReplayMeter(driver, runtime);
  const progress = new Progress(() => `${formatCount(meter.requests)} of ${formatCount(total)} requests`);
  try {
    await replayTraces(traces, meter, {
      ...(flags.speed === undefined ? {} : { speed: flags.speed }),
      skip: flags.skip,
    });
  } finally {
    progress.stop();
  }
  const report = meter.report();
  console.log(flags.json ? JSON.stringify(report) : reportTable(report));
  if (report.mismatches > 0) process.exitCode = 1;
}

interface OpenWafer extends AsyncDisposable {
  remote: RemoteWafer;
}

/** The wafer that is asked for, started where there is none. */
async function openWafer(traces: readonly Trace[], layout: Layout, flags: ReplayFlags): Promise<OpenWafer | undefined> {
  if (flags.wafer === undefined) return undefined;
  if (flags.link === 'shm' && flags.connect === undefined) {
    throw localError('KVSS_BAD_INPUT', '--wafer: a wafer reaches shards over streams; add --link tcp or --link unix');
  }
  const [group, ...more] = layout.groups;
  if (!group || more.length > 0) {
    throw localError('KVSS_BAD_INPUT', '--wafer: a wafer has pieces of one group, the model has several');
  }
  const bytesPerToken = [...group.bytesPerToken];
  const longest = Math.max(1, ...traces.flatMap(({ requests }) => requests.map(({ inputTokens }) => inputTokens)));
  const child =
    flags.wafer === true
      ? await startChildWafer({
          bytesPerToken,
          columnTokens: COLUMN_TOKENS,
          memoryColumns: flags.waferColumns ?? Math.ceil(longest / COLUMN_TOKENS),
          link: flags.link === 'unix' ? 'unix' : 'tcp',
        })
      : undefined;
  try {
    const remote = await RemoteWafer.connect(child?.address ?? (flags.wafer as string), {
      deadlineMs: connectDeadlineMs(layout),
      ...(flags.token === undefined ? {} : { token: flags.token }),
    });
    return {
      remote,
      async [Symbol.asyncDispose]() {
        await remote.close();
        await child?.[Symbol.asyncDispose]();
      },
    };
  } catch (thrown) {
    await child?.[Symbol.asyncDispose]();
    throw thrown;
  }
}

/** Links over emulated rails and a spine, where a topology says so. */
function topologyOptions(flags: ReplayFlags, remote: RemoteWafer | undefined): Partial<SwDriverOptions> {
  if (flags.topology === undefined) {
    if (flags.refuseSpine) throw localError('KVSS_BAD_INPUT', '--refuse-spine: there is a spine only with --topology');
    return {};
  }
  const config = readConfigFile(flags.topology) as unknown as TopologyInput;
  const spineUse = flags.refuseSpine ? { spineUse: 'refuse' as const } : {};
  const topology = new Topology({ ...config, ...spineUse }, systemClock, (message) =>
    console.error(`kvss: ${message}`),
  );
  const box = flags.box ?? Object.keys(config.boxes ?? {})[0] ?? '';
  const connector = connectorFor({ ...streamOptions(flags), ...(remote ? { carrier: remote.carrier } : {}) });
  return { connector: overTopology(connector, topology, box) };
}

/** Unequal sizes, as large as fits comfortably: hit rates do not depend on them, bytes moved do. */
function chooseBytesPerToken(capacityColumns: number, shards: number): number[] {
  const shares = Array.from({ length: shards }, (_, index) => SHARES[index % SHARES.length] as number);
  const sum = shares.reduce((total, share) => total + share, 0);
  const unit = [8, 4, 2].find((size) => size * sum * COLUMN_TOKENS * capacityColumns <= COMFORTABLE_BYTES) ?? 1;
  return shares.map((share) => share * unit);
}

/** Groups of the model that is replayed, with bytes for so many shards. */
function chooseGroups(flags: ReplayFlags, columns: number, shards: number): readonly ModelGroup[] {
  if (flags.group) return flags.group;
  if (flags.config === undefined) {
    if (flags.draftConfig !== undefined) {
      throw localError('KVSS_BAD_INPUT', '--draft-config: a draft needs the model that it drafts for: --config');
    }
    const bytesPerToken = flags.bytesPerToken ?? chooseBytesPerToken(columns, shards);
    return [{ name: 'full', bytesPerToken }];
  }
  const description = describeModel(readJson(flags.config), {
    dtype: 'bf16',
    ...(flags.draftConfig === undefined ? {} : { draft: readJson(flags.draftConfig) }),
  });
  const shares = Array.from({ length: shards }, (_, index) => SHARES[index % SHARES.length] as number);
  const groups = groupsFrom(description, { shares });
  const scale = Math.min(1, COMFORTABLE_BYTES / (description.bytesPerToken * COLUMN_TOKENS * columns));
  // Hit rates do not depend on it; a shard that holds a layer goes on holding something.
  const scaled = (bytes: number) => (bytes === 0 ? 0 : Math.max(1, Math.round(bytes * scale)));
  return groups.map((group) => ({ ...group, bytesPerToken: group.bytesPerToken.map(scaled) }));
}

function describeGroup({ name, windowTokens, bytesPerToken }: ModelGroup): string {
  const window = windowTokens === undefined ? '' : ` with a window of ${windowTokens} tokens`;
  return `${name} of ${bytesPerToken.join(' + ')} bytes a token${window}`;
}

function readKey(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw localError('KVSS_BAD_INPUT', `cannot read ${path}: ${messageOf(cause)}`, cause);
  }
}

function streamOptions({ wioStreams, checksums = false, token }: ReplayFlags): StreamOptions {
  return { wioStreams, checksums, placeBytes: PLACE_BYTES, ...(token === undefined ? {} : { token }) };
}

/** Prefaulting large grants takes the kernel a while: time for them on top of what an answer may take. */
function connectDeadlineMs({ groups, capacityColumns }: Layout): number {
  const bytes = slotBytesOfShards(groups).reduce((sum, each) => sum + each, 0) * capacityColumns;
  return ANSWER_DEADLINE_MS + Math.ceil(bytes / PREFAULT_BYTES_PER_MS);
}

/** How many shards the daemon at an address has. */
async function shardsOf(address: string, flags: ReplayFlags): Promise<number> {
  const connection = await connectorFor(streamOptions(flags))(address, ANSWER_DEADLINE_MS);
  await connection.close();
  return connection.shards.length;
}
