import { Command, Option } from 'commander';
import { runUntilStopped } from '../common/child_command.js';
import { localError } from '../common/errors.js';
import { parseConfig, readConfigFile } from '../kvss/config.js';
import { KvssDaemon } from '../kvss/daemon.js';
import { bytesListOption, integerOption } from './options.js';

interface ServeFlags {
  config?: string;
  socket?: string;
  shards?: number;
  budget?: number[];
  httpPort?: number;
  tcpPort?: number;
  streamSocket?: string;
  http: boolean;
  hugePages: boolean;
  hioMode?: string;
  maxParkMs?: number;
  logLevel?: string;
  policyFile?: string;
}

export function serveCommand(): Command {
  return new Command('serve')
    .description('run the shards of a box until SIGTERM or SIGINT')
    .option('-c, --config <file>', 'YAML file; flags override it')
    .option('-s, --socket <path>', 'Unix socket to listen at')
    .option('-n, --shards <count>', 'number of shards', integerOption(1, 64))
    .option(
      '-b, --budget <size>',
      'memory of each shard, e.g. 256MiB, or a list with one size a shard',
      bytesListOption,
    )
    .option(
      '--http-port <port>',
      'port of /metrics, /healthz and /readyz on 127.0.0.1; 0 takes a free one',
      integerOption(0, 65535),
    )
    .option(
      '--tcp-port <port>',
      'also take streams on this port of 127.0.0.1; 0 takes a free one',
      integerOption(0, 65535),
    )
    .option('--stream-socket <path>', 'also take streams at this Unix socket')
    .option('--policy-file <file>', 'where tenant policies are kept; the file has to exist, {} is none')
    .option('--no-http', 'serve no HTTP')
    .option('--no-huge-pages', 'use ordinary pages even where there are huge ones')
    .addOption(
      new Option('--hio-mode <mode>', 'how engines wait for work').choices(['latency', 'buffered', 'adaptive']),
    )
    .option(
      '--max-park-ms <ms>',
      'longest that memory of a driver that has died waits for it to come back; 0 scrubs it at once',
      integerOption(0, 86_400_000),
    )
    .addOption(
      new Option('--log-level <level>', 'least severe message').choices(['debug', 'info', 'warn', 'error', 'silent']),
    )
    .action(serve);
}

async function serve(flags: ServeFlags): Promise<void> {
  const daemon = await KvssDaemon.start(configOf(flags));
  runUntilStopped({ adminUrl: daemon.adminUrl ?? null, streamPorts: daemon.streamPorts }, () => daemon.stop());
}

/** The configuration file, overridden by flags, as parseConfig wants it. */
function configOf(flags: ServeFlags): ReturnType<typeof parseConfig> {
  const config = flags.config === undefined ? {} : readConfigFile(flags.config);
  if (flags.config !== undefined) parseConfig(config, flags.config);
  if (flags.socket !== undefined) config.socket = flags.socket;
  if (flags.shards !== undefined || flags.budget !== undefined) {
    const listed = Array.isArray(config.shards) ? config.shards : [];
    const budgets = flags.budget ?? [];
    const count = flags.shards ?? (budgets.length > 1 ? budgets.length : listed.length || 4);
    if (budgets.length > 1 && budgets.length !== count) {
      throw localError('KVSS_BAD_CONFIG', `--budget: ${budgets.length} sizes for ${count} shards`);
    }
    config.shards = Array.from({ length: count }, (_, index) => {
      const budget = budgets[index] ?? budgets[0] ?? listed[index]?.budget ?? '256MiB';
      return { ...(listed[index] ?? { domain: index % 4 }), budget };
    });
  }
  if (!flags.http) config.http = false;
  else if (flags.httpPort !== undefined) config.http = { ...((config.http || {}) as object), port: flags.httpPort };
  const streams = [
    ...(flags.tcpPort === undefined ? [] : [{ port: flags.tcpPort }]),
    ...(flags.streamSocket === undefined ? [] : [{ path: flags.streamSocket }]),
  ];
  if (streams.length > 0) config.streams = streams;
  if (!flags.hugePages) config.hugePages = false;
  if (flags.hioMode !== undefined) config.hio = { ...((config.hio ?? {}) as object), mode: flags.hioMode };
  if (flags.policyFile !== undefined) config.policyFile = flags.policyFile;
  // No flag: arguments of a process can be seen by everybody on the machine.
  const adminToken = process.env.KVSS_ADMIN_TOKEN;
  if (adminToken !== undefined) {
    parseConfig({ adminToken }, 'KVSS_ADMIN_TOKEN');
    config.adminToken = adminToken;
  }
  if (flags.maxParkMs !== undefined) config.maxParkMs = flags.maxParkMs;
  if (flags.logLevel !== undefined) config.logLevel = flags.logLevel;
  return parseConfig(config, 'flags');
}
