import { availableParallelism } from 'node:os';
import { Command, Option } from 'commander';
import type { TtftRow } from '../bench/ttft.js';
import { drawTtft, ttftTable } from '../bench/ttft_report.js';
import { localError } from '../common/errors.js';
import type { LinkName } from '../kvss/child_daemon.js';
import type { DemoModelOptions } from '../runtimes/demo_model/options.js';
import { DEMO_SIZE_NAMES } from '../runtimes/demo_model/options.js';
import { checkWritable, writeText } from './files.js';
import { integerListOption, integerOption } from './options.js';
import { Progress } from './progress.js';
import { alignRows } from './table.js';

interface TtftFlags {
  lengths: number[];
  rounds: number;
  model?: string;
  size: NonNullable<DemoModelOptions['size']>;
  attention: NonNullable<DemoModelOptions['attention']>;
  dtype: NonNullable<DemoModelOptions['dtype']>;
  chunk: number;
  threads: number;
  link: LinkName;
  svg?: string;
  json?: boolean;
}

/** `kvss bench ttft`: time to first token in ONNX Runtime, computed and cached. */
export function ttftCommand(): Command {
  return new Command('ttft')
    .description('time to first token of a decoder in ONNX Runtime, computed and from the store')
    .option('--lengths <list>', 'tokens of the prompts', integerListOption, [256, 512, 1024, 2048, 4096, 8192])
    .option('--rounds <count>', 'prompts of each length', integerOption(1, 1000), 5)
    .option('--model <file>', 'an ONNX decoder with past keys and values; a demo model with random weights if left out')
    .addOption(new Option('--size <size>', 'parameters of the demo model').choices(DEMO_SIZE_NAMES).default('25M'))
    .addOption(
      new Option('--attention <form>', 'how the demo model is written')
        .choices(['fused', 'decomposed'])
        .default('fused'),
    )
    .addOption(new Option('--dtype <type>', 'numbers of the demo model').choices(['fp32', 'fp16']).default('fp32'))
    .option('--chunk <tokens>', 'tokens that a prefill computes in one run', integerOption(64, 65_536), 512)
    .option('--threads <count>', 'threads of ONNX Runtime', integerOption(1, 1024), availableParallelism())
    .addOption(new Option('--link <name>', 'how the store is reached').choices(['shm', 'tcp', 'unix']).default('shm'))
    .option('--svg <file>', 'draw a plot')
    .option('--json', 'print one JSON object a length')
    .action(run);
}

async function run(flags: TtftFlags): Promise<void> {
  if (flags.svg !== undefined) checkWritable(flags.svg);
  const { measureTtft } = await loadBench();
  const { lengths, rounds, size, attention, dtype, chunk, threads, link } = flags;
  const rows: TtftRow[] = [];
  const progress = new Progress(() => `${rows.length} of ${lengths.length} lengths measured`);
  try {
    const options = {
      ...{ lengths, rounds, threads, link, prefillChunkTokens: chunk },
      model: flags.model ?? { size, attention, dtype, logitsToKeep: true, maxPositions: Math.max(8192, ...lengths) },
    };
    for await (const row of measureTtft(options)) {
      rows.push(row);
      if (flags.json) console.log(JSON.stringify(row));
    }
  } finally {
    progress.stop();
  }
  if (flags.svg !== undefined) writeText(flags.svg, drawTtft(rows));
  if (!flags.json) console.log(`${rows[0]?.setting}\n${alignRows(ttftTable(rows))}`);
}

/** ONNX Runtime is there only where somebody has installed it. */
async function loadBench(): Promise<typeof import('../bench/ttft.js')> {
  // It would write to the home of whoever measures, and tell others.
  process.env.ORT_DISABLE_TELEMETRY ??= '1';
  try {
    return await import('../bench/ttft.js');
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw thrown;
    throw localError('KVSS_BAD_INPUT', 'this bench needs ONNX Runtime: npm install onnxruntime-node', thrown);
  }
}
