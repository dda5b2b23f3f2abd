import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type FlowClass, maxMinRates } from '../../src/cluster/simulation/max_min.js';
import { settings } from '../model/property_settings.js';

const TINY = 1e-9;

/** Up to six links and eight classes of flows, some with a cap, some without flows. */
const cases = fc.integer({ min: 1, max: 6 }).chain((links) =>
  fc.record({
    capacities: fc.array(fc.integer({ min: 1, max: 1_000 }), { minLength: links, maxLength: links }),
    classes: fc.array(
      fc.record({
        links: fc.uniqueArray(fc.integer({ min: 0, max: links - 1 }), { minLength: 1 }),
        count: fc.integer({ min: 0, max: 4 }),
        cap: fc.option(fc.integer({ min: 0, max: 500 }), { nil: undefined }),
      }),
      { minLength: 1, maxLength: 8 },
    ),
  }),
);

const flowsOf = (classes: readonly { links: number[]; count: number; cap: number | undefined }[]): FlowClass[] =>
  classes.map(({ cap, ...rest }) => (cap === undefined ? rest : { ...rest, cap }));

const loadOf = (link: number, classes: readonly FlowClass[], rates: readonly number[]) =>
  classes.reduce(
    (sum, { links, count }, index) => sum + (links.includes(link) ? count * (rates[index] as number) : 0),
    0,
  );

describe('max-min fair rates', () => {
  test('no link carries more than it can, and every flow has its cap or a full link on which nobody has more', () => {
    fc.assert(
      fc.property(cases, ({ capacities, classes }) => {
        const flows = flowsOf(classes);
        const rates = maxMinRates(capacities, flows);
        const loads = capacities.map((_, link) => loadOf(link, flows, rates));
        for (const [link, load] of loads.entries())
          expect(load).toBeLessThanOrEqual((capacities[link] as number) * (1 + TINY));
        for (const [index, { links, count, cap = Number.POSITIVE_INFINITY }] of flows.entries()) {
          if (count === 0) continue;
          const rate = rates[index] as number;
          expect(rate).toBeLessThanOrEqual(cap);
          const bottleneck = links.some((link) => {
            const full = (loads[link] as number) >= (capacities[link] as number) * (1 - TINY);
            const sharing = flows.flatMap((flow, at) =>
              flow.count > 0 && flow.links.includes(link) ? [rates[at] as number] : [],
            );
            return full && rate >= Math.max(...sharing) * (1 - TINY);
          });
          expect(rate === cap || bottleneck).toBe(true);
        }
      }),
      settings(500),
    );
  });

  test('agrees with rates that are raised together by bisection until nothing can rise', () => {
    fc.assert(
      fc.property(cases, ({ capacities, classes }) => {
        const flows = flowsOf(classes).filter(({ count }) => count > 0);
        const rates = maxMinRates(capacities, flows);
        for (const [index, rate] of byBisection(capacities, flows).entries()) {
          expect(Math.abs(rate - (rates[index] as number))).toBeLessThanOrEqual(1e-6 * Math.max(1, rate));
        }
      }),
      settings(150),
    );
  });

  test('a flow over two links leaves to others what it cannot use', () => {
    // Link 0 is shared by three flows, so the one that goes on over link 1 takes 10 there and leaves 80.
    const classes = [
      { links: [0], count: 2 },
      { links: [0, 1], count: 1 },
      { links: [1], count: 1 },
    ];
    expect(maxMinRates([30, 90], classes)).toEqual([10, 10, 80]);
    expect(maxMinRates([30, 90], [...classes, { links: [1], count: 2, cap: 5 }])).toEqual([10, 10, 70, 5]);
  });

  test('a class without flows takes nothing', () => {
    expect(
      maxMinRates(
        [12],
        [
          { links: [0], count: 0 },
          { links: [0], count: 3 },
        ],
      ),
    ).toEqual([12, 4]);
  });

  test.each([
    ['link 1 has a capacity of -1', [1, -1], [{ links: [0], count: 1 }]],
    ['class 0 has -2 flows', [1], [{ links: [0], count: -2 }]],
    ['class 0 has a cap of NaN', [1], [{ links: [0], count: 1, cap: Number.NaN }]],
    ['class 0: there is no link 3', [1], [{ links: [3], count: 1 }]],
    ['class 0 has a link twice', [1], [{ links: [0, 0], count: 1 }]],
    ['nothing limits class 0', [1], [{ links: [], count: 1 }]],
  ])('refuses: %s', (message, capacities, classes) => {
    expect(() => maxMinRates(capacities, classes)).toThrow(message);
  });
});

/** Another way to the same rates: the highest common level that fits is found by bisection, then who cannot rise alone stays. */
function byBisection(capacities: readonly number[], flows: readonly FlowClass[]): number[] {
  const frozen: (number | undefined)[] = flows.map(() => undefined);
  const fits = (rates: readonly number[]) =>
    capacities.every((capacity, link) => loadOf(link, flows, rates) <= capacity * (1 + 1e-12));
  const at = (level: number) =>
    flows.map(({ cap = Number.POSITIVE_INFINITY }, index) => frozen[index] ?? Math.min(level, cap));
  while (frozen.includes(undefined)) {
    let [low, high] = [0, 2_000];
    for (let step = 0; step < 80; step += 1) {
      const middle = (low + high) / 2;
      if (fits(at(middle))) low = middle;
      else high = middle;
    }
    const level = at(low);
    for (const [index, { cap = Number.POSITIVE_INFINITY }] of flows.entries()) {
      if (frozen[index] !== undefined) continue;
      const raised = level.map((rate, other) => (other === index ? rate + 1e-7 * Math.max(1, rate) : rate));
      if (level[index] === cap || !fits(raised)) frozen[index] = level[index];
    }
  }
  return frozen as number[];
}
