import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { LATENCY_BOUNDS_SECONDS, LatencyHistogram } from '../../src/swdriver/accounting/latency_histogram.js';
import { LogScale } from '../../src/swdriver/accounting/log_scale.js';
import { settings } from '../model/property_settings.js';

// From an eighth of a microsecond to a quarter of an hour, evenly in the logarithm.
const times = fc.double({ min: -3, max: 29.7, noNaN: true }).map((exponent) => 2 ** exponent / 1000);

test('every value lies in its bucket, and buckets follow each other without a gap', () => {
  const scale = new LogScale(-3, 30, 4);
  for (let bucket = 1; bucket < scale.buckets; bucket += 1) {
    expect(scale.lowerBound(bucket)).toBe(scale.upperBound(bucket - 1));
    expect(scale.bucketOf(scale.lowerBound(bucket))).toBe(bucket);
  }
  fc.assert(
    fc.property(fc.double({ min: 0, max: 2 ** 40, noNaN: true }), (value) => {
      const bucket = scale.bucketOf(value);
      expect(scale.lowerBound(bucket)).toBeLessThanOrEqual(value);
      expect(scale.upperBound(bucket)).toBeGreaterThan(value);
    }),
    settings(500),
  );
  for (const odd of [0, -1, Number.NaN, Number.NEGATIVE_INFINITY]) expect(scale.bucketOf(odd)).toBe(0);
  expect(scale.bucketOf(Number.POSITIVE_INFINITY)).toBe(scale.buckets - 1);
});

test('quantiles are within 3.2 % of those of the sorted times', () => {
  fc.assert(
    fc.property(
      fc.array(times, { minLength: 1, maxLength: 300 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (all, q) => {
        const histogram = new LatencyHistogram();
        for (const ms of all) histogram.record(ms);
        const sorted = all.toSorted((a, b) => a - b);
        const exact = sorted[Math.max(0, Math.ceil(q * all.length) - 1)] as number;
        expect(Math.abs(histogram.quantile(q) - exact)).toBeLessThanOrEqual(exact * 0.032);
        expect(histogram.quantile(1)).toBe(sorted.at(-1));
        expect(histogram.count).toBe(all.length);
        expect(histogram.sum).toBeCloseTo(
          all.reduce((sum, ms) => sum + ms, 0),
          6,
        );
      },
    ),
    settings(300),
  );
});

test('merged histograms are what one of all times would be', () => {
  fc.assert(
    fc.property(fc.array(times), fc.array(times), (left, right) => {
      const [one, other, both] = [new LatencyHistogram(), new LatencyHistogram(), new LatencyHistogram()];
      for (const ms of left) one.record(ms);
      for (const ms of right) other.record(ms);
      for (const ms of [...left, ...right]) both.record(ms);
      one.merge(other);
      const { sumMs, ...figures } = one.toJSON();
      const { sumMs: expectedSum, ...expected } = both.toJSON();
      expect(figures).toEqual(expected);
      expect(sumMs).toBeCloseTo(expectedSum, 6);
      expect(one.prometheusCounts()).toEqual(both.prometheusCounts());
    }),
    settings(100),
  );
});

test("Prometheus' buckets count exactly what lies below their bounds", () => {
  fc.assert(
    fc.property(fc.array(times, { maxLength: 200 }), (all) => {
      const histogram = new LatencyHistogram();
      for (const ms of all) histogram.record(ms);
      expect(histogram.prometheusCounts()).toEqual(
        LATENCY_BOUNDS_SECONDS.map((bound) => all.filter((ms) => ms * 1000 < bound * 1e6).length),
      );
    }),
    settings(100),
  );
});

test('a clock that went back, or none, is counted and breaks nothing', () => {
  const histogram = new LatencyHistogram();
  expect(histogram.toJSON()).toEqual({
    count: 0,
    sumMs: 0,
    minMs: 0,
    p50Ms: 0,
    p90Ms: 0,
    p99Ms: 0,
    p999Ms: 0,
    maxMs: 0,
  });
  for (const ms of [-1, Number.NaN, 0]) histogram.record(ms);
  expect(histogram.toJSON()).toMatchObject({ count: 3, sumMs: 0, p50Ms: 0, maxMs: 0 });
  histogram.record(1e9);
  expect(histogram.quantile(1)).toBe(1e9);
  expect(histogram.prometheusCounts().at(-1)).toBe(3);
});
