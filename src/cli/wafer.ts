import { Command, Option } from 'commander';
import { pino } from 'pino';
import { DOMAINS_PER_BOX } from '../common/box.js';
import { runUntilStopped } from '../common/child_command.js';
import { localError } from '../common/errors.js';
import { formatBytes, formatCount } from '../common/units.js';
import { readConfigFile } from '../kvss/config.js';
import { parseStreamAddress } from '../links/stream_address.js';
import { parseWaferConfig, type WaferConfig } from '../wafer/wafer_config.js';
import { WaferServer } from '../wafer/wafer_server.js';
import { addressesOption, integerListOption, integerOption, positiveOption } from './options.js';

interface WaferFlags {
  config?: string;
  listen?: string[];
  bytesPerToken?: number[];
  memoryColumns?: number;
  columnTokens?: number;
  streamsPerDomain?: number;
  prefillRate?: number;
  decodeRate?: number;
  logLevel: string;
}

export function waferCommand(): Command {
  return new Command('wafer')
    .description(
      'run an emulated wafer that carries the payload between its memory and the shards, until SIGTERM or SIGINT',
    )
    .option('-c, --config <file>', 'YAML file; flags override it')
    .option(
      '-l, --listen <address>',
      'where drivers connect: tcp://127.0.0.1:PORT, with port 0 for a free one, or unix:PATH; repeat it, or separate by commas',
      addressesOption,
    )
    .option('--bytes-per-token <list>', 'bytes of one token in each domain, four domains a box', integerListOption)
    .option('--memory-columns <count>', 'columns that its memory holds', integerOption(1))
    .option('--column-tokens <count>', 'tokens of a column', integerOption(1, 65_536))
    .option('--streams-per-domain <count>', 'WIO streams of a domain each way, at most', integerOption(1, 16))
    .option('--prefill-rate <tokens>', 'tokens a second while a prompt is computed', positiveOption)
    .option('--decode-rate <tokens>', 'tokens a second while tokens are generated', positiveOption)
    .addOption(
      new Option('--log-level <level>', 'least severe message')
        .choices(['debug', 'info', 'warn', 'error', 'silent'])
        .default('info'),
    )
    .action(wafer);
}

async function wafer(flags: WaferFlags): Promise<void> {
  const config = configOf(flags);
  if (config.listen.length === 0) throw localError('KVSS_BAD_CONFIG', '--listen: where is the wafer to listen?');
  const logger = pino({ level: flags.logLevel });
  const server = WaferServer.start(config, logger);
  const column = server.wafer.pieceBytes.reduce((sum, bytes) => sum + bytes, 0);
  logger.info(
    { ports: server.ports, boxes: config.boxes.length, columnBytes: column },
    `memory for ${formatCount(config.memoryColumns)} columns of ${formatBytes(column)}`,
  );
  runUntilStopped({ ports: server.ports }, () => server.stop());
}

/** The configuration file, overridden and completed by flags. */
function configOf(flags: WaferFlags): WaferConfig {
  const config = flags.config === undefined ? {} : readConfigFile(flags.config);
  if (flags.listen) {
    config.listen = flags.listen.map((text) => {
      const address = parseStreamAddress(text);
      if (!address) throw localError('KVSS_BAD_CONFIG', `--listen: '${text}' is neither tcp://HOST:PORT nor unix:PATH`);
      return address.port === null ? { path: address.hostOrPath } : { host: address.hostOrPath, port: address.port };
    });
  }
  if (flags.bytesPerToken) config.boxes = boxesOf(flags.bytesPerToken);
  const given = {
    memoryColumns: flags.memoryColumns,
    columnTokens: flags.columnTokens,
    streamsPerDomain: flags.streamsPerDomain,
    prefillTokensPerSecond: flags.prefillRate,
    decodeTokensPerSecond: flags.decodeRate,
  };
  for (const [key, value] of Object.entries(given)) if (value !== undefined) config[key] = value;
  return parseWaferConfig(config, flags.config === undefined ? 'flags' : `${flags.config} and flags`);
}

/** Boxes of four domains each, from one list. */
export function boxesOf(bytesPerToken: readonly number[]): { bytesPerToken: number[] }[] {
  if (bytesPerToken.length % DOMAINS_PER_BOX !== 0) {
    throw localError(
      'KVSS_BAD_CONFIG',
      `--bytes-per-token: ${bytesPerToken.length} numbers, and a box has ${DOMAINS_PER_BOX} domains`,
    );
  }
  return Array.from({ length: bytesPerToken.length / DOMAINS_PER_BOX }, (_, box) => ({
    bytesPerToken: bytesPerToken.slice(box * DOMAINS_PER_BOX, (box + 1) * DOMAINS_PER_BOX),
  }));
}
