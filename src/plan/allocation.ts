import { z } from 'zod';
import { apportion } from '../common/apportion.js';
import { DOMAINS_PER_BOX } from '../common/box.js';
import { localError } from '../common/errors.js';
import { describeIssue, size } from '../common/schema.js';
import { roundUpTo } from '../common/units.js';
import { MAX_WIO_STREAMS } from '../proto/generated.js';
import { type LayerGroup, type ModelDescription, splitGroup } from '../swdriver/model_config.js';

const MAX_BOXES = 1024;

/**
 * The least that a WIO stream carries whole. `layer`: all heads of a layer leave over one stream. `head`: keys and values of
 * one head in one layer; a latent (MLA) has one. `number`: a head or a latent may be cut anywhere.
 */
export const UNITS = ['layer', 'head', 'number'] as const;
export type Unit = (typeof UNITS)[number];

/** Keys of an allocation, for files that have one among other things. */
export const allocationShape = {
  /** Boxes that the layers are spread over, in the order of the layers. */
  boxes: z.number().int().min(1).max(MAX_BOXES).default(1),
  /** Layers of the model on each box; as evenly as they go if left out. A draft's layers always go evenly. */
  layersPerBox: z.array(z.number().int().min(1)).min(1).max(MAX_BOXES).optional(),
  /** WIO streams of the four domains of a box, alike on all boxes, or of all domains, box by box. One each if left out. */
  streams: z.array(z.number().int().min(1).max(MAX_WIO_STREAMS)).min(1).optional(),
  unit: z.enum(UNITS).default('head'),
  /** Every stream of a box carries as many bytes of a token as its fullest one: what is missing is padding. */
  padStreams: z.boolean().default(false),
  /** Bytes of a token on a shard are rounded up to a multiple of this, in each group of layers. */
  granule: size.optional(),
};
const allocationSchema = z.strictObject(allocationShape);

/** Where the layers and heads of a model lie. Whatever is left out has a default. */
export type AllocationInput = z.input<typeof allocationSchema>;
export type Allocation = z.output<typeof allocationSchema>;

/** What a box holds of a group of layers. */
export interface BoxPart {
  readonly group: LayerGroup;
  /** Numbers of the layers, rising; empty where the box has none of the group. */
  readonly layers: readonly number[];
}

/** What one domain holds of what its box holds of a group. */
export interface DomainPart {
  readonly group: string;
  /** Tokens that its layers see; not there where they see all. */
  readonly windowTokens?: number;
  /** First and last of the layers of which something lies here; not there where nothing does. */
  readonly layers?: readonly [first: number, last: number];
  /** Bytes that one token takes here, padding included. */
  readonly bytesPerToken: number;
  readonly paddingBytesPerToken: number;
}

/** One row of the table: a shard serves one domain of a box. */
export interface ShardRow {
  readonly box: number;
  readonly domain: number;
  /** WIO streams of the domain. */
  readonly streams: number;
  /** One for each group of the model, in its order. */
  readonly parts: readonly DomainPart[];
  /** Bytes that one token takes on this shard in all groups, padding included. */
  readonly bytesPerToken: number;
  readonly paddingBytesPerToken: number;
}

/** The LMR table: the bytes that a token takes on each shard. */
export interface ShardTable {
  /** Domain by domain, box by box. */
  readonly shards: readonly ShardRow[];
  /** Bytes that one token takes on all shards, padding included. */
  readonly bytesPerToken: number;
  readonly paddingBytesPerToken: number;
  /** Of the shards. */
  readonly meanBytesPerToken: number;
  readonly maxBytesPerToken: number;
}

/** Checks an allocation and fills in defaults. Throws KVSS_BAD_INPUT with a message that names the key. */
export function parseAllocation(input: AllocationInput): Allocation {
  const parsed = allocationSchema.safeParse(input);
  if (!parsed.success) throw localError('KVSS_BAD_INPUT', `allocation: ${describeIssue(parsed.error)}`);
  return parsed.data;
}

/**
 * The bytes that a token takes on every shard: layers go to boxes in order, what a box holds goes to its domains in
 * proportion to their WIO streams, in whole units by largest remainder, or equally to all streams where they are padded.
 * Throws KVSS_BAD_INPUT with a message that names the key for an allocation that does not fit the model.
 */
export function shardTable(description: ModelDescription, input: AllocationInput = {}): ShardTable {
  const allocation = parseAllocation(input);
  const streams = streamsOfBoxes(allocation);
  const shards = boxParts(description, allocation).flatMap((parts, box) => {
    const ofGroups = domainParts(parts, streams[box] as number[], allocation);
    return (streams[box] as number[]).map((count, domain): ShardRow => {
      const held = ofGroups.map((domains) => domains[domain] as DomainPart);
      return { box, domain, streams: count, parts: held, ...bytesOf(held) };
    });
  });
  const total = bytesOf(shards);
  return {
    shards,
    ...total,
    meanBytesPerToken: total.bytesPerToken / shards.length,
    maxBytesPerToken: Math.max(...shards.map((shard) => shard.bytesPerToken)),
  };
}

/** Which layers of which group each box holds: for each box one part of each group. Throws as shardTable does. */
export function boxParts(
  description: ModelDescription,
  { boxes, layersPerBox }: Pick<Allocation, 'boxes' | 'layersPerBox'>,
): BoxPart[][] {
  const layerCount = (draft: boolean) =>
    sum(description.groups.filter(({ kind }) => (kind === 'draft') === draft).map(({ layers }) => layers.length));
  const layers = layerCount(false);
  if (layersPerBox !== undefined && layersPerBox.length !== boxes) {
    throw wrong('layersPerBox', `${layersPerBox.length} numbers for ${boxes} boxes`);
  }
  if (layersPerBox !== undefined && sum(layersPerBox) !== layers) {
    throw wrong('layersPerBox', `the boxes hold ${sum(layersPerBox)} layers, the model has ${layers}`);
  }
  if (boxes > layers) throw wrong('boxes', `${boxes} boxes for ${layers} layers: some would hold none`);
  const evenly = (count: number) => runs(apportion(count, Array(boxes).fill(1)));
  const layersOfBox = layersPerBox === undefined ? evenly(layers) : runs(layersPerBox);
  const draftLayersOfBox = evenly(layerCount(true));
  const parts = description.groups.map((group) => {
    const layersOfShard = group.kind === 'draft' ? draftLayersOfBox : layersOfBox;
    return splitGroup(group, { layersOfShard }).map((held): BoxPart => ({ group, layers: held.layers }));
  });
  return Array.from({ length: boxes }, (_, box) => parts.map((ofGroup) => ofGroup[box] as BoxPart));
}

/**
 * What each domain of a box holds, for so many WIO streams of each domain: a list of domains for each part of the box. Units that do not
 * divide evenly go where the parts before have left most room.
 */
export function domainParts(
  parts: readonly BoxPart[],
  streams: readonly number[],
  { unit, padStreams, granule = 1 }: Pick<Allocation, 'unit' | 'padStreams' | 'granule'>,
): DomainPart[][] {
  const allStreams = sum(streams);
  const taken = streams.map(() => 0);
  let bytesSoFar = 0;
  return parts.map(({ group, layers }) => {
    const unitsPerLayer = unitsPerLayerOf(group, unit);
    const unitBytes = group.bytesPerTokenPerLayer / unitsPerLayer;
    const units = layers.length * unitsPerLayer;
    bytesSoFar += units * unitBytes;
    const lacking = streams.map((count, domain) =>
      Math.max(0, (bytesSoFar * count) / allStreams - (taken[domain] as number)),
    );
    const reserved = padStreams
      ? streams.map((count) => count * Math.ceil(units / allStreams))
      : apportion(units, units === 0 ? streams : lacking);
    for (const [domain, room] of reserved.entries()) taken[domain] = (taken[domain] as number) + room * unitBytes;
    const window = group.windowTokens === undefined ? {} : { windowTokens: group.windowTokens };
    let first = 0;
    return reserved.map((room): DomainPart => {
      // Streams are filled in order: where they are padded the last ones may hold nothing.
      const end = Math.min(first + room, units);
      const layerAt = (index: number) => layers[Math.floor(index / unitsPerLayer)] as number;
      const held = end > first ? { layers: [layerAt(first), layerAt(end - 1)] as const } : {};
      const stateBytes = (end - first) * unitBytes;
      const bytesPerToken = roundUpTo(room * unitBytes, granule);
      first = end;
      return { group: group.name, ...window, ...held, bytesPerToken, paddingBytesPerToken: bytesPerToken - stateBytes };
    });
  });
}

function unitsPerLayerOf(group: LayerGroup, unit: Unit): number {
  if (unit === 'layer') return 1;
  return unit === 'head' ? group.headsPerLayer : group.bytesPerTokenPerLayer / group.bytesPerNumber;
}

/** WIO streams of the domains of each box. */
function streamsOfBoxes({ boxes, streams = Array(DOMAINS_PER_BOX).fill(1) }: Allocation): number[][] {
  const alike = streams.length === DOMAINS_PER_BOX;
  if (!alike && streams.length !== boxes * DOMAINS_PER_BOX) {
    const all = boxes === 1 ? '' : `, or ${boxes * DOMAINS_PER_BOX} of all ${boxes} boxes`;
    throw wrong('streams', `${streams.length} numbers; there are ${DOMAINS_PER_BOX} domains of a box${all}`);
  }
  return Array.from({ length: boxes }, (_, box) =>
    alike ? [...streams] : streams.slice(box * DOMAINS_PER_BOX, (box + 1) * DOMAINS_PER_BOX),
  );
}

/** Runs of so many layers each, from layer 0 on. */
function runs(counts: readonly number[]): number[][] {
  let start = 0;
  return counts.map((count) => {
    const run = Array.from({ length: count }, (_, index) => start + index);
    start += count;
    return run;
  });
}

function bytesOf(rows: readonly { bytesPerToken: number; paddingBytesPerToken: number }[]) {
  return {
    bytesPerToken: sum(rows.map((row) => row.bytesPerToken)),
    paddingBytesPerToken: sum(rows.map((row) => row.paddingBytesPerToken)),
  };
}

function wrong(key: string, what: string) {
  return localError('KVSS_BAD_INPUT', `allocation: '${key}': ${what}`);
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, each) => total + each, 0);
}
