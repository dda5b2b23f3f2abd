import { Command } from 'commander';
import { formatBytes, formatCount } from '../common/units.js';
import { startChildDaemon } from '../kvss/child_daemon.js';
import { agentSessions } from '../replay/agent_sessions.js';
import { ReplayMeter, type ReplayReport } from '../replay/replay.js';
import { SwDriver } from '../swdriver/sw_driver.js';
import { StampingRuntime } from '../wafer/stamping_runtime.js';
import { reportTable } from './table.js';

interface DemoFlags {
  once?: boolean;
  json?: boolean;
}

/** Bytes of one token on each of the four domains: an average of 34,560 bytes would do for real; a demo is smaller. */
const BYTES_PER_TOKEN = [192, 256, 320, 256];
const BUDGETS = BYTES_PER_TOKEN.map((bytes) => bytes * 2 ** 18);

export function demoCommand(): Command {
  return new Command('demo')
    .description('start a box, send real text to it as attention state, and watch it come back byte for byte')
    .option('--once', 'exit after the table')
    .option('--json', 'print the table as one JSON object, and nothing else')
    .action(demo);
}

async function demo(flags: DemoFlags): Promise<void> {
  const say = (text: string) => {
    if (!flags.json) console.log(text);
  };
  await using daemon = await startChildDaemon(BUDGETS, { http: true });
  say(`box: daemon ${daemon.pid}, four shards of ${BUDGETS.map(formatBytes).join(', ')}`);
  await using driver = await SwDriver.connect({
    daemons: [daemon.socket],
    model: { id: 'demo', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: BYTES_PER_TOKEN },
  });
  say(
    `driver: room for ${formatCount(driver.capacityColumns)} columns of 64 tokens, pieces of ${driver.pieceBytes.map(formatBytes).join(', ')}`,
  );
  say('agents of two tenants read the sources of this package; every line of every piece is stamped and checked\n');

  const report = await converse(driver, say);
  if (flags.json) console.log(JSON.stringify(report));
  else say(`\n${reportTable(report)}`);
  if (report.mismatches > 0) process.exitCode = 1;
  if (flags.once) return;
  say(`\nThe box stays up. Look at it from another terminal:\n  npx kvss stat --socket ${daemon.socket}`);
  say(`  curl ${daemon.adminUrl}/metrics\nCtrl-C ends it.`);
  await new Promise<void>((resolve) => {
    process.once('SIGINT', () => resolve());
    process.once('SIGTERM', () => resolve());
    daemon.ended.then(resolve);
  });
}

async function converse(driver: SwDriver, say: (text: string) => void): Promise<ReplayReport> {
  const meter = new ReplayMeter(driver, new StampingRuntime(driver.columnTokens));
  for (const { isolationId, session, turn, about, tokens } of agentSessions()) {
    const { hitTokens, stored } = await meter.serve(isolationId, tokens);
    const share = tokens.length === 0 ? 0 : (100 * hitTokens) / tokens.length;
    say(
      `${isolationId.padEnd(6)} session ${session} turn ${turn}: ${formatCount(tokens.length).padStart(6)} tokens, ` +
        `${share.toFixed(0).padStart(3)} % cached, ${String(stored).padStart(3)} new columns  (${about})`,
    );
  }
  return meter.report();
}
