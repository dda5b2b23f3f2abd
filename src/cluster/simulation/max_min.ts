import { localError } from '../../common/errors.js';

/** Flows that are alike: each runs over the same links. */
export interface FlowClass {
  /** Numbers of the links it runs over, each once. */
  readonly links: readonly number[];
  /** How many flows there are. */
  readonly count: number;
  /** Most that one of them takes; without limit if left out. */
  readonly cap?: number;
}

/**
 * Max-min fair rates: of one flow of each class, in the unit of the capacities (one for each link). Nobody's rate can rise
 * without that of a flow falling which has no more. A class without flows gets what the first flow of it would be offered at
 * most: the least capacity of its links, or its cap.
 *
 * Progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2): the rates of all flows rise together; where a link is
 * full, or a flow has its cap, those flows stay where they are. Exact: the level of a link is what its frozen flows leave of
 * it over how many are left, and is worked out anew in each round, so that nothing adds up but the rates themselves.
 *
 * Throws KVSS_BAD_INPUT for a capacity, count or cap that is negative or no number, for a link that does not exist or is
 * there twice, and for a flow that nothing limits.
 */
export function maxMinRates(capacities: readonly number[], classes: readonly FlowClass[]): number[] {
  check(capacities, classes);
  const rates = classes.map(({ links, count, cap = Number.POSITIVE_INFINITY }) =>
    count > 0 ? Number.NaN : Math.min(cap, ...links.map((link) => capacities[link] as number)),
  );
  const rising = new Set(classes.keys());
  for (const [index, { count }] of classes.entries()) if (count === 0) rising.delete(index);
  while (rising.size > 0) {
    const level = lowestLevel(capacities, classes, rising, rates);
    for (const index of level.full) {
      rates[index] = level.rate;
      rising.delete(index);
    }
  }
  return rates;
}

/** The rate at which the next flows stop rising, and the classes of those flows. */
function lowestLevel(
  capacities: readonly number[],
  classes: readonly FlowClass[],
  rising: ReadonlySet<number>,
  rates: readonly number[],
): { rate: number; full: readonly number[] } {
  const left = [...capacities];
  const flows = new Array<number>(capacities.length).fill(0);
  for (const [index, { links, count }] of classes.entries()) {
    for (const link of links) {
      if (rising.has(index)) flows[link] = (flows[link] as number) + count;
      else if (count > 0) left[link] = (left[link] as number) - count * (rates[index] as number);
    }
  }
  // What frozen flows took may have been rounded up.
  const levels = left.map((each, link) =>
    flows[link] === 0 ? Number.POSITIVE_INFINITY : Math.max(0, each) / (flows[link] as number),
  );
  const limits = [...rising].map((index) => {
    const { links, cap = Number.POSITIVE_INFINITY } = classes[index] as FlowClass;
    return [index, Math.min(cap, ...links.map((link) => levels[link] as number))] as const;
  });
  const rate = Math.min(...limits.map(([, limit]) => limit));
  return { rate, full: limits.filter(([, limit]) => limit === rate).map(([index]) => index) };
}

function check(capacities: readonly number[], classes: readonly FlowClass[]): void {
  const bad = (what: string) => localError('KVSS_BAD_INPUT', `flows: ${what}`);
  for (const [link, capacity] of capacities.entries()) {
    if (!(capacity >= 0)) throw bad(`link ${link} has a capacity of ${capacity}`);
  }
  for (const [index, { links, count, cap = Number.POSITIVE_INFINITY }] of classes.entries()) {
    if (!(count >= 0) || !Number.isFinite(count)) throw bad(`class ${index} has ${count} flows`);
    if (!(cap >= 0)) throw bad(`class ${index} has a cap of ${cap}`);
    if (links.length > 1 && new Set(links).size < links.length) throw bad(`class ${index} has a link twice`);
    const missing = links.find((link) => capacities[link] === undefined);
    if (missing !== undefined) throw bad(`class ${index}: there is no link ${missing}`);
    if (links.every((link) => capacities[link] === Number.POSITIVE_INFINITY) && cap === Number.POSITIVE_INFINITY) {
      throw bad(`nothing limits class ${index}`);
    }
  }
}
