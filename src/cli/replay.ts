import { Command, Option } from 'commander';
import { localError } from '../common/errors.js';
import { formatBytes, formatCount } from '../common/units.js';
import { type ChildDaemon, type LinkName, startChildDaemon } from '../kvss/child_daemon.js';
import { ControlClient } from '../links/control_client.js';
import { slotBytesOf } from '../proto/slots.js';
import { ReplayMeter, replayTraces } from '../replay/replay.js';
import { readTrace, type Trace, workingSetColumns } from '../replay/trace.js';
import { SwDriver } from '../swdriver/sw_driver.js';
import { EmulatedWafer } from '../wafer/emulated_wafer.js';
import { integerListOption, integerOption } from './options.js';
import { Progress } from './progress.js';
import { reportTable } from './table.js';

interface ReplayFlags {
  socket?: string;
  capacityColumns?: number;
  bytesPerToken?: number[];
  link: LinkName;
  daemons?: number;
  wioStreams: number;
  json?: boolean;
}

const COLUMN_TOKENS = 64;
/** Shares of the four domains of a box: unequal, as they are where layers do not divide evenly. */
const SHARES = [3, 4, 5, 4];
const COMFORTABLE_BYTES = 2 ** 30;

export function replayCommand(): Command {
  return new Command('replay')
    .description('replay request traces through a live daemon and verify every byte that comes back')
    .argument('<trace...>', 'trace files, in either of the two public formats')
    .option('-s, --socket <path>', 'use the daemon that listens there instead of starting one with four shards')
    .option('--capacity-columns <count>', 'columns to keep; as many as the traces need if left out', integerOption(1))
    .option('--bytes-per-token <list>', 'bytes of one token on each shard, e.g. 24,32,40,32', integerListOption)
    .addOption(
      new Option('--link <link>', 'how to reach the daemons that it starts')
        .choices(['shm', 'tcp', 'unix'])
        .default('shm'),
    )
    .option('--daemons <count>', 'daemons to start, of four shards each; 1 over shm, else 2', integerOption(1, 16))
    .option('--wio-streams <count>', 'streams for payload of each direction for each shard', integerOption(1, 16), 1)
    .option('--json', 'print one JSON object')
    .action(replay);
}

async function replay(paths: string[], flags: ReplayFlags): Promise<void> {
  const traces = paths.map((path, index) => readTrace(path, index));
  const capacity = flags.capacityColumns ?? Math.max(1, workingSetColumns(traces, COLUMN_TOKENS));
  const daemonCount = flags.daemons ?? (flags.link === 'shm' ? 1 : 2);
  const shards = flags.socket === undefined ? SHARES.length * daemonCount : await shardCount(flags.socket);
  const bytesPerToken = flags.bytesPerToken ?? chooseBytesPerToken(capacity, shards);
  if (bytesPerToken.length !== shards) {
    throw localError('KVSS_BAD_INPUT', `--bytes-per-token: ${bytesPerToken.length} numbers for ${shards} shards`);
  }
  if (flags.socket !== undefined) return run(traces, [flags.socket], capacity, bytesPerToken, flags);
  // One page more than the slots take: grants are whole pages.
  const budgets = bytesPerToken.map((bytes) => capacity * slotBytesOf(bytes * COLUMN_TOKENS) + 2 ** 21);
  const daemons: ChildDaemon[] = [];
  try {
    for (let first = 0; first < shards; first += SHARES.length) {
      daemons.push(await startChildDaemon(budgets.slice(first, first + SHARES.length), { link: flags.link }));
    }
    const addresses = daemons.map((daemon) => daemon.streams ?? daemon.socket);
    await run(traces, addresses, capacity, bytesPerToken, flags);
  } finally {
    await Promise.all(daemons.map((daemon) => daemon[Symbol.asyncDispose]()));
  }
}

async function run(
  traces: Trace[],
  daemons: string[],
  capacityColumns: number,
  bytesPerToken: number[],
  flags: ReplayFlags,
): Promise<void> {
  await using driver = await SwDriver.connect({
    daemons,
    wioStreams: flags.wioStreams,
    model: {
      id: 'replay',
      revision: '1',
      dtype: 'stamp',
      layout: 'line64',
      bytesPerToken,
      columnTokens: COLUMN_TOKENS,
    },
    capacityColumns,
    // Prefaulting a large grant takes the kernel a while.
    connectDeadlineMs: 120_000,
  });
  driver.on('down', (_stripe, reason) => console.error(`kvss: daemons lost: ${reason}`));
  driver.on('up', () => console.error('kvss: daemons are back'));
  if (!flags.json) {
    const column = bytesPerToken.reduce((sum, bytes) => sum + bytes * COLUMN_TOKENS, 0);
    console.log(
      `${formatCount(driver.capacityColumns)} columns of ${formatBytes(column)} over ${bytesPerToken.length} shards`,
    );
  }
  const total = traces.reduce((sum, trace) => sum + trace.requests.length, 0);
  const meter = new ReplayMeter(driver, new EmulatedWafer(COLUMN_TOKENS));
  const progress = new Progress(() => `${formatCount(meter.requests)} of ${formatCount(total)} requests`);
  try {
    await replayTraces(traces, meter);
  } finally {
    progress.stop();
  }
  const report = meter.report();
  console.log(flags.json ? JSON.stringify(report) : reportTable(report));
  if (report.mismatches > 0) process.exitCode = 1;
}

/** Unequal sizes, as large as fits comfortably: hit rates do not depend on them, bytes moved do. */
function chooseBytesPerToken(capacityColumns: number, shards: number): number[] {
  const shares = Array.from({ length: shards }, (_, index) => SHARES[index % SHARES.length] as number);
  const sum = shares.reduce((total, share) => total + share, 0);
  const unit = [8, 4, 2].find((size) => size * sum * COLUMN_TOKENS * capacityColumns <= COMFORTABLE_BYTES) ?? 1;
  return shares.map((share) => share * unit);
}

async function shardCount(socket: string): Promise<number> {
  const { client, welcome } = await ControlClient.connect(socket, 5_000);
  client.close();
  return welcome.shards.length;
}
