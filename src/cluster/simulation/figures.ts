import { mean, quantile } from '../../common/statistics.js';
import type { Figure } from './scenario.js';
import type { ServedPrompt } from './simulation.js';

export type Speed = 'generation' | 'total';

/** Tokens a second of a prompt: of its output while that is generated, or of prompt and output from begin to end. */
export function speedOf({ promptTokens, outputTokens, startMs, decodeMs, endMs }: ServedPrompt, speed: Speed): number {
  return speed === 'generation'
    ? (1000 * outputTokens) / (endMs - decodeMs)
    : (1000 * (promptTokens + outputTokens)) / (endMs - startMs);
}

/** Figures of so many speeds, NaN where there are none. The deviation is that of a population. */
export function figuresOf(speeds: readonly number[]): Record<Figure, number> {
  const sorted = speeds.toSorted((a, b) => a - b);
  const avg = mean(sorted);
  return {
    avg,
    std: Math.sqrt(mean(sorted.map((each) => (each - avg) ** 2))),
    min: quantile(sorted, 0),
    p1: quantile(sorted, 0.01),
    p5: quantile(sorted, 0.05),
    p50: quantile(sorted, 0.5),
    p99: quantile(sorted, 0.99),
    max: quantile(sorted, 1),
  };
}

/** Tokens a second of a prompt over time: for each bin its middle in seconds, and the mean over the prompts in flight. */
export type Series = readonly (readonly [seconds: number, tokensPerSecond: number])[];

/**
 * The speed of prompts over time, in bins of so many seconds. A prompt's tokens lie evenly over its time; a bin in which no
 * prompt was in flight is left out.
 */
export function seriesOf(prompts: readonly ServedPrompt[], speed: Speed, durationS: number, binS: number): Series {
  const bins = Math.ceil(durationS / binS);
  const tokens = new Float64Array(bins);
  const milliseconds = new Float64Array(bins);
  const binMs = 1000 * binS;
  for (const prompt of prompts) {
    const from = speed === 'generation' ? prompt.decodeMs : prompt.startMs;
    const perMs = speedOf(prompt, speed) / 1000;
    for (let bin = Math.floor(from / binMs); bin < bins && bin * binMs < prompt.endMs; bin += 1) {
      const inBin = Math.min(prompt.endMs, (bin + 1) * binMs) - Math.max(from, bin * binMs);
      tokens[bin] = (tokens[bin] as number) + inBin * perMs;
      milliseconds[bin] = (milliseconds[bin] as number) + inBin;
    }
  }
  return [...tokens.keys()].flatMap((bin) => {
    const inFlight = milliseconds[bin] as number;
    return inFlight > 0 ? [[(bin + 0.5) * binS, (1000 * (tokens[bin] as number)) / inFlight] as const] : [];
  });
}
