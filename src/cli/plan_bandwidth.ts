import { Command, Option } from 'commander';
import { localError } from '../common/errors.js';
import { formatBitRate, formatByteRate, formatCount } from '../common/units.js';
import { GENERATIONS, type Generation, upperBoundBytesPerSecond } from '../plan/bandwidth.js';
import { bytesOption, positiveOption } from './options.js';
import { generationOption, speedupOption } from './plan_model.js';
import { alignRows } from './table.js';

interface BandwidthFlags {
  bytesPerToken?: number;
  recomputeTokensPerSecond?: number;
  recomputeBandwidth?: number;
  headFactor: number;
  speedup: number;
  generation: Generation;
  json?: boolean;
}

/** `kvss plan bandwidth`: the equation alone, for figures that were measured or said. */
export function planBandwidthCommand(): Command {
  return new Command('bandwidth')
    .description(
      'the bandwidth equation for a known size of a token, or a known bandwidth of recomputing, without a model',
    )
    .option('--bytes-per-token <size>', 'what a token takes, of a box, a shard or a mean of them', bytesOption)
    .option('--recompute-tokens-per-second <rate>', 'tokens that a CS-3 computes anew, of all users', positiveOption)
    .addOption(
      new Option('--recompute-bandwidth <size>', 'the product of both, a second, where only that is known')
        .argParser(bytesOption)
        .conflicts(['bytesPerToken', 'recomputeTokensPerSecond']),
    )
    .option(
      '--head-factor <factor>',
      'attention heads for each key/value head, for a model without GQA',
      positiveOption,
      1,
    )
    .addOption(speedupOption())
    .addOption(generationOption())
    .option('--json', 'print one JSON object')
    .action(bandwidth);
}

function bandwidth(flags: BandwidthFlags): void {
  const { headFactor, speedup, generation } = flags;
  const recomputeBytesPerSecond = flags.recomputeBandwidth ?? recomputeOf(flags);
  // A rate of one token that takes all the bytes: the same product.
  const throughput = { recomputeTokensPerSecond: 1, speedup, generation };
  const bytesPerSecond = upperBoundBytesPerSecond(recomputeBytesPerSecond * headFactor, throughput);
  if (flags.json) {
    const factors = { recomputeBytesPerSecond, headFactor, speedup, generation };
    console.log(JSON.stringify({ ...factors, upperBoundBytesPerSecond: bytesPerSecond }));
    return;
  }
  const { bytesPerToken, recomputeTokensPerSecond } = flags;
  console.log(
    alignRows([
      ...(bytesPerToken === undefined || recomputeTokensPerSecond === undefined
        ? []
        : [
            ['recompute', `${formatCount(recomputeTokensPerSecond)} tokens/s`],
            ['bytes a token', formatCount(bytesPerToken)],
          ]),
      ['computed state', formatByteRate(recomputeBytesPerSecond)],
      ['heads without GQA', `x ${headFactor}`],
      ['speed-up of a cached token', `x ${speedup}`],
      [generation, `x ${GENERATIONS[generation]}`],
      ['upper bound', formatByteRate(bytesPerSecond)],
      ['', formatBitRate(bytesPerSecond)],
    ]),
  );
}

function recomputeOf({ bytesPerToken, recomputeTokensPerSecond }: BandwidthFlags): number {
  if (bytesPerToken === undefined || recomputeTokensPerSecond === undefined) {
    const what = '--bytes-per-token and --recompute-tokens-per-second, or --recompute-bandwidth';
    throw localError('KVSS_BAD_INPUT', `plan bandwidth: say ${what}`);
  }
  return bytesPerToken * recomputeTokensPerSecond;
}
