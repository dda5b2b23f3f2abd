import type { ScoreVector } from './score.js';

/** AX nodes in the same state: what is free of each. */
export interface Bin {
  /** How many there are. */
  readonly count: number;
  readonly leafSet: number;
  readonly cores: number;
  readonly memory: number;
  /** Of all NICs together. */
  readonly nics: number;
  readonly shards: number;
  readonly hasDriver: boolean;
  /** Something runs there. */
  readonly inUse: boolean;
}

/** Pods of one shape that have no AX node yet. */
export interface Demand {
  readonly count: number;
  readonly cores: number;
  readonly memory: number;
  /** Of all streams together. */
  readonly bandwidth: number;
  readonly driver: boolean;
  readonly shard: boolean;
  /** Least that crosses the spine for one of them, and the next more. */
  readonly leastSpine: number;
  readonly nextSpine: number;
  /** Sets of leaves where it is the least; undefined: all. */
  readonly leastSpineOn: ReadonlySet<number> | undefined;
}

/** What is there already. */
export interface Standing {
  readonly spine: number;
  readonly uplink: number;
  readonly fragmentation: number;
  readonly shardsPerNode: number;
}

/** Where there is none. */
export const IMPOSSIBLE: ScoreVector = [Number.POSITIVE_INFINITY, 0, 0, 0];

/**
 * A score that no placement of the demands beats. Each number is what the one resource needs that it is short of; that they
 * are needed together is left out. Numbers after the first hold on the condition that those before them are reached,
 * which is all that an order of levels asks for. IMPOSSIBLE where something has no room.
 */
export function lowerBound(
  demands: readonly Demand[],
  bins: readonly Bin[],
  standing: Standing,
  exclusion: boolean,
): ScoreVector {
  let spine = standing.spine;
  let allLeast = true;
  for (const demand of demands) {
    spine += demand.count * demand.leastSpine;
    const excess = demand.count - roomFor(demand, bins, exclusion);
    if (excess <= 0) continue;
    allLeast = false;
    spine += excess * (demand.nextSpine - demand.leastSpine);
  }
  const whole = opensFor(demands, bins, exclusion);
  let parts = allLeast ? partsOf(demands).map((part) => ({ ...part, bins: binsOn(part.leafSets, bins) })) : [];
  let opens = parts.map((part) => opensFor(part.demands, part.bins, exclusion));
  if (opens.includes(Number.POSITIVE_INFINITY)) {
    // Not all of them have room where least crosses the spine: one at least goes elsewhere.
    spine += Math.min(...demands.map(({ leastSpine, nextSpine }) => nextSpine - leastSpine));
    parts = [];
    opens = [];
  }
  if (whole === Number.POSITIVE_INFINITY || spine === Number.POSITIVE_INFINITY) return IMPOSSIBLE;
  const sum = opens.reduce((total, each) => total + each, 0);
  const opened = Math.max(whole, sum);
  let shards = Math.max(standing.shardsPerNode, shardsFor(demands, bins, opened));
  for (const [index, part] of parts.entries()) {
    shards = Math.max(shards, shardsFor(part.demands, part.bins, opened - sum + (opens[index] as number)));
  }
  return [spine, standing.uplink, standing.fragmentation + opened, shards];
}

/** How many of one shape, and nothing else, have room where least crosses the spine. */
function roomFor(demand: Demand, bins: readonly Bin[], exclusion: boolean): number {
  let room = 0;
  for (const bin of bins) {
    if (demand.leastSpineOn && !demand.leastSpineOn.has(bin.leafSet)) continue;
    room += bin.count * mostOf(demand, bin, exclusion);
    if (room >= demand.count) return room;
  }
  return room;
}

function mostOf(demand: Demand, bin: Bin, exclusion: boolean): number {
  const most = Math.min(
    pieces(bin.cores, demand.cores),
    pieces(bin.memory, demand.memory),
    pieces(bin.nics, demand.bandwidth),
  );
  return exclusion && demand.driver ? Math.min(most, bin.hasDriver ? 0 : 1) : most;
}

function pieces(free: number, each: number): number {
  return each === 0 ? Number.POSITIVE_INFINITY : Math.floor(free / each);
}

/** Demands that compete for the same AX nodes where all of them cross the spine least. Other demands can run anywhere. */
function partsOf(demands: readonly Demand[]): { demands: Demand[]; leafSets: Set<number> }[] {
  const parts: { demands: Demand[]; leafSets: Set<number> }[] = [];
  for (const demand of demands) {
    if (!demand.leastSpineOn) continue;
    const part = { demands: [demand], leafSets: new Set(demand.leastSpineOn) };
    for (let index = parts.length - 1; index >= 0; index -= 1) {
      const other = parts[index] as (typeof parts)[number];
      if (![...other.leafSets].some((leafSet) => part.leafSets.has(leafSet))) continue;
      part.demands.push(...other.demands);
      for (const leafSet of other.leafSets) part.leafSets.add(leafSet);
      parts.splice(index, 1);
    }
    parts.push(part);
  }
  return parts;
}

function binsOn(leafSets: ReadonlySet<number>, bins: readonly Bin[]): Bin[] {
  return bins.filter(({ leafSet }) => leafSets.has(leafSet));
}

/** How many AX nodes where nothing runs are needed at least. Infinity where all are too few. */
function opensFor(demands: readonly Demand[], bins: readonly Bin[], exclusion: boolean): number {
  if (demands.length === 0) return 0;
  let [count, cores, memory, bandwidth] = [0, 0, 0, 0];
  let least = {
    cores: Number.POSITIVE_INFINITY,
    memory: Number.POSITIVE_INFINITY,
    bandwidth: Number.POSITIVE_INFINITY,
  };
  const drivers: Demand[] = [];
  for (const demand of demands) {
    count += demand.count;
    cores += demand.count * demand.cores;
    memory += demand.count * demand.memory;
    bandwidth += demand.count * demand.bandwidth;
    least = {
      cores: Math.min(least.cores, demand.cores),
      memory: Math.min(least.memory, demand.memory),
      bandwidth: Math.min(least.bandwidth, demand.bandwidth),
    };
    if (demand.driver && demand.count > 0) drivers.push(demand);
  }
  if (count === 0) return 0;
  const podsIn = (bin: Bin) =>
    Math.min(pieces(bin.cores, least.cores), pieces(bin.memory, least.memory), pieces(bin.nics, least.bandwidth));
  const opens = Math.max(
    opensUntil(cores, bins, ({ cores: free }) => free),
    opensUntil(memory, bins, ({ memory: free }) => free),
    opensUntil(bandwidth, bins, ({ nics }) => nics),
    opensUntil(count, bins, podsIn),
  );
  if (!exclusion || drivers.length === 0) return opens;
  const takesDriver = (bin: Bin) => Number(drivers.some((driver) => mostOf(driver, bin, true) > 0));
  const wanted = drivers.reduce((sum, driver) => sum + driver.count, 0);
  return Math.max(opens, opensUntil(wanted, bins, takesDriver));
}

/** How many AX nodes where nothing runs are needed, the ones with the most first, until there is as much as is wanted. */
function opensUntil(wanted: number, bins: readonly Bin[], amount: (bin: Bin) => number): number {
  let missing = wanted;
  for (const bin of bins) {
    if (!bin.inUse) continue;
    missing -= bin.count * amount(bin);
    if (missing <= 0) return 0;
  }
  if (missing <= 0) return 0;
  const empty = bins.filter(({ inUse }) => !inUse).map((bin) => ({ count: bin.count, each: amount(bin) }));
  let opens = 0;
  for (const { count, each } of empty.sort((a, b) => b.each - a.each)) {
    if (each <= 0) break;
    const needed = Math.max(1, Math.ceil(missing / each));
    if (needed <= count) return opens + needed;
    opens += count;
    missing -= count * each;
  }
  return Number.POSITIVE_INFINITY;
}

/** The most shards that some AX node has at least, where no more than so many are opened. */
function shardsFor(demands: readonly Demand[], bins: readonly Bin[], opened: number): number {
  const shards = demands.filter(({ shard, count }) => shard && count > 0);
  const wanted = shards.reduce((sum, { count }) => sum + count, 0);
  if (wanted === 0) return 0;
  const least: Demand = {
    ...(shards[0] as Demand),
    cores: Math.min(...shards.map(({ cores }) => cores)),
    memory: Math.min(...shards.map(({ memory }) => memory)),
    bandwidth: Math.min(...shards.map(({ bandwidth }) => bandwidth)),
  };
  const inUse: { count: number; most: number; shards: number }[] = [];
  const empty: { count: number; most: number }[] = [];
  let mostNow = 0;
  for (const bin of bins) {
    const most = mostOf(least, bin, false);
    if (most === 0) continue;
    mostNow = Math.max(mostNow, bin.shards);
    if (bin.inUse) inUse.push({ count: bin.count, most, shards: bin.shards });
    else if (opened > 0) empty.push({ count: bin.count, most });
  }
  empty.sort((a, b) => b.most - a.most);
  const roomUpTo = (limit: number) => {
    let room = 0;
    for (const bin of inUse) room += bin.count * Math.max(0, Math.min(bin.most, limit - bin.shards));
    let left = opened;
    for (const bin of empty) {
      const taken = Math.min(left, bin.count);
      room += taken * Math.min(bin.most, limit);
      left -= taken;
      if (left === 0) break;
    }
    return room;
  };
  let [below, limit] = [0, mostNow + wanted];
  while (limit - below > 1) {
    const middle = (below + limit) >> 1;
    if (roomUpTo(middle) >= wanted) limit = middle;
    else below = middle;
  }
  return limit;
}
