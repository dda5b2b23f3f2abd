import { Command, Option } from 'commander';
import { localError } from '../common/errors.js';
import { formatBytes, formatCount } from '../common/units.js';
import type { DemoModelFiles } from '../runtimes/demo_model/generate.js';
import { huggingFaceConfig } from '../runtimes/demo_model/model_configs.js';
import { type AttentionForm, DEMO_SIZE_NAMES, type DemoSize, type ModelType } from '../runtimes/demo_model/options.js';
import { describeModel } from '../swdriver/model_config.js';
import { integerOption } from './options.js';
import { alignRows } from './table.js';

interface DemoModelFlags {
  size: DemoSize;
  dtype: ModelType;
  attention: AttentionForm;
  slidingWindow?: number;
  slidingPattern?: number;
  tied?: boolean;
  vocab?: number;
  draft?: boolean;
  seed: number;
  json?: boolean;
}

/** Layers slide in turns with full ones where nobody says otherwise. */
const SLIDING_PATTERN = 2;

export function demoModelCommand(): Command {
  return new Command('demo-model')
    .description('make a small language model with random weights as ONNX files, to test and show with')
    .argument('<directory>', 'where to; appears when all is written')
    .addOption(new Option('--size <parameters>', 'about how many parameters').choices(DEMO_SIZE_NAMES).default('25M'))
    .addOption(new Option('--dtype <type>', 'of weights, cache and logits').choices(['fp32', 'fp16']).default('fp32'))
    .addOption(
      new Option('--attention <form>', 'plain ONNX operators, or one operator of ONNX Runtime for each layer')
        .choices(['decomposed', 'fused'])
        .default('decomposed'),
    )
    .option('--sliding-window <tokens>', 'some layers see only so many of the newest tokens', integerOption(1))
    .option(
      '--sliding-pattern <layers>',
      `with --sliding-window: each so manieth layer sees all; ${SLIDING_PATTERN} if left out`,
      integerOption(2),
    )
    .option('--tied', 'the head is the embedding')
    .option('--vocab <tokens>', 'size of the vocabulary, where it is to be that of a tokenizer', integerOption(1))
    .option('--draft', 'a draft model besides, in DIRECTORY/draft, and a model that it agrees with often')
    .option('--seed <number>', 'the same seed gives the same bytes', integerOption(0), 1)
    .option('--json', 'print one JSON object')
    .action(demoModel);
}

async function demoModel(directory: string, flags: DemoModelFlags): Promise<void> {
  const { size, dtype, attention, seed, tied = false, draft = false } = flags;
  if (flags.slidingPattern !== undefined && flags.slidingWindow === undefined) {
    throw localError('KVSS_BAD_INPUT', '--sliding-pattern: layers slide only with --sliding-window');
  }
  // What writes ONNX files takes a while to load, and no other command needs it.
  const { generateDemoModel } = await import('../runtimes/demo_model/generate.js');
  const pattern = flags.slidingPattern ?? SLIDING_PATTERN;
  const files = await generateDemoModel(directory, {
    ...{ size, dtype, attention, seed, tied, draft },
    ...(flags.vocab === undefined ? {} : { vocabularySize: flags.vocab }),
    ...(flags.slidingWindow === undefined ? {} : { slidingWindow: { tokens: flags.slidingWindow, pattern } }),
  });
  console.log(flags.json ? JSON.stringify(files) : filesTable(files));
}

function filesTable(files: DemoModelFiles): string {
  const cacheOf = ({ settings }: DemoModelFiles) => describeModel(huggingFaceConfig(settings)).bytesPerToken;
  const rows = (label: string, each: DemoModelFiles) => [
    [label, each.directory],
    ['parameters', formatCount(each.parameters)],
    ['layers', formatCount(each.settings.layers)],
    ['cache of a token', formatBytes(cacheOf(each))],
  ];
  return alignRows([...rows('model', files), ...(files.draft ? rows('draft', files.draft) : [])]);
}
