import { expect, test } from 'vitest';
import { greedy, type SamplingOptions, sampler } from '../../src/runtimes/onnx/sampling.js';
import { refusalOf } from '../refusal.js';

const LOGITS = Float32Array.of(1, 3, -1, 2, 0, Number.NEGATIVE_INFINITY);
const DRAWS = 20_000;

function frequencies(options: Parameters<typeof sampler>[0], logits = LOGITS): number[] {
  const sample = sampler(options);
  const counts = new Array<number>(logits.length).fill(0);
  for (let draw = 0; draw < DRAWS; draw += 1) {
    const token = sample(logits);
    counts[token] = (counts[token] ?? 0) + 1;
  }
  return counts.map((count) => count / DRAWS);
}

function softmax(temperature: number, held: (token: number) => boolean = () => true): number[] {
  const weights = [...LOGITS].map((logit, token) => (held(token) ? Math.exp(logit / temperature) : 0));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** Chi-square over tokens that can come; 5 degrees of freedom exceed 25.7 once in ten thousand, and the seed is fixed. */
function distance(seen: readonly number[], expected: readonly number[]): number {
  return expected.reduce((sum, share, token) => {
    if (share === 0) return sum + ((seen[token] ?? 0) === 0 ? 0 : Number.POSITIVE_INFINITY);
    return sum + (DRAWS * ((seen[token] ?? 0) - share) ** 2) / share;
  }, 0);
}

test.each([0.5, 1, 3])('draws as softmax says at temperature %f', (temperature) => {
  expect(distance(frequencies({ temperature, seed: 7 }), softmax(temperature))).toBeLessThan(25.7);
  // And the measure tells temperatures apart.
  expect(distance(frequencies({ temperature, seed: 7 }), softmax(1.2 * temperature))).toBeGreaterThan(50);
});

test('topP keeps the fewest tokens that make up the share', () => {
  // Shares of softmax: 0.64, 0.24, 0.09, 0.03, 0.01.
  const two = frequencies({ topP: 0.8, seed: 3 });
  expect(
    distance(
      two,
      softmax(1, (token) => token === 1 || token === 3),
    ),
  ).toBeLessThan(25.7);
  expect(frequencies({ topP: 0.6, seed: 3 })[1]).toBe(1);
  expect(frequencies({ topP: 1e-9, seed: 3 })[1]).toBe(1);
});

test('a token that cannot come never comes', () => {
  const impossible = new Float32Array(50).fill(Number.NEGATIVE_INFINITY);
  impossible[49] = 5;
  expect(frequencies({ seed: 1 }, impossible)[49]).toBe(1);
});

test('equal seeds draw equal tokens, others do not', () => {
  const drawn = (seed: number) => {
    const sample = sampler({ seed });
    return Array.from({ length: 50 }, () => sample(LOGITS));
  };
  expect(drawn(5)).toEqual(drawn(5));
  expect(drawn(5)).not.toEqual(drawn(6));
  expect(drawn(0)).toEqual(
    Array.from(
      { length: 50 },
      (
        (sample) => () =>
          sample(LOGITS)
      )(sampler({})),
    ),
  );
});

test('temperature 0 takes the likeliest, the first of several', () => {
  expect(sampler({ temperature: 0, topP: 0.5 })(LOGITS)).toBe(1);
  expect(greedy(Float32Array.of(2, 5, 5))).toBe(1);
  expect(greedy(Float32Array.of(7))).toBe(0);
});

test.each([
  [{ temperature: -1 }, /temperature: -1/],
  [{ temperature: Number.NaN }, /temperature: NaN/],
  [{ temperature: 101 }, /temperature: 101/],
  [{ topP: 0 }, /topP: 0/],
  [{ topP: 1.1 }, /topP: 1\.1/],
  [{ seed: Number.NaN }, /seed: NaN/],
  [{ top_p: 0.5 }, /there is no 'top_p'/],
])('%j is refused', async (options, message) => {
  expect(await refusalOf(() => sampler(options as SamplingOptions))).toMatch(message);
});
