import { Command } from 'commander';
import type { Bench, BenchContext } from '../bench/context.js';
import type { BenchRow } from '../bench/row.js';
import { baselineCell, MEASURED_COLUMNS, type RowColumn } from '../bench/row_columns.js';
import { machineFacts, SUITE } from '../bench/suite.js';
import { Progress } from './progress.js';
import { alignRows } from './table.js';

interface SuiteFlags {
  connect?: string;
  token?: string;
  tiny?: boolean;
  json?: boolean;
}

/** `kvss bench all`, and a command for each bench of the suite. */
export function suiteCommands(): Command[] {
  const all = suiteCommand('all', 'every bench of the suite, one after the other', SUITE);
  return [all, ...SUITE.map((bench) => suiteCommand(bench.name, bench.summary, [bench]))];
}

function suiteCommand(name: string, summary: string, benches: readonly Bench[]): Command {
  const command = new Command(name)
    .description(summary)
    .option('--tiny', 'only show that it works: small sizes, one round; the figures mean nothing')
    .option('--json', 'print one JSON object a line')
    .action((flags: SuiteFlags) => run(benches, flags));
  if (benches.length === 1 && benches[0]?.live) {
    command
      .option(
        '-c, --connect <address>',
        'measure a daemon that runs already: path of its socket, unix:PATH or tcp://HOST:PORT',
      )
      .option('--token <secret>', 'what the daemon wants to see of who connects');
  }
  return command;
}

async function run(benches: readonly Bench[], flags: SuiteFlags): Promise<void> {
  const context: BenchContext = {
    scale: flags.tiny ? 'tiny' : 'full',
    daemon: flags.connect,
    token: flags.token ?? process.env.KVSS_TOKEN,
  };
  const facts = machineFacts();
  if (flags.json) console.log(JSON.stringify({ bench: 'machine', ...facts }));
  else
    console.log(`${facts.cores} cores, ${facts.cpu}, ${facts.memoryGiB} GiB, Node ${facts.node}, kvss ${facts.kvss}`);
  for (const bench of benches) {
    const rows: BenchRow[] = [];
    const progress = new Progress(() => `${bench.name}: ${rows.length} measured`);
    try {
      for await (const row of bench.run(context)) {
        rows.push(row);
        if (flags.json) console.log(JSON.stringify(row));
      }
    } finally {
      progress.stop();
    }
    if (!flags.json) console.log(`\n${bench.name}: ${bench.summary}\n${rowTable(rows)}`);
  }
}

const COLUMNS: readonly RowColumn[] = [
  ['', ({ what }) => what],
  ...MEASURED_COLUMNS,
  ['GB/s', baselineCell],
  ['ratio', ({ ratio }) => ratio?.toFixed(3)],
  ['of rounds', ({ ratioRange }) => ratioRange?.map((ratio) => ratio.toFixed(2)).join('..')],
  ['target', ({ target }) => target],
  ['value', ({ value }) => value?.toPrecision(4)],
];

/** Rows as a table for people, without the columns that are empty in all of them. */
function rowTable(rows: readonly BenchRow[]): string {
  const columns = COLUMNS.filter(([, cell]) => rows.some((row) => cell(row)));
  const notes = rows.filter(({ note }) => note).map(({ what, note }) => `${what}: ${note}`);
  const table = [columns.map(([title]) => title), ...rows.map((row) => columns.map(([, cell]) => cell(row) || ''))];
  return [alignRows(table), ...notes].join('\n');
}
