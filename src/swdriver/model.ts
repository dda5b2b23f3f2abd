import { localError } from '../common/errors.js';

/** Identity of the KV state: two models that differ in any field never share a column. */
export interface ModelIdentity {
  /** Name of the model, e.g. `meta-llama/Llama-3.1-8B`. */
  id: string;
  /** Revision of the weights. */
  revision: string;
  /** Type of the stored numbers, e.g. `bf16` or `fp8`. */
  dtype: string;
  /** Name of the memory layout of a piece; whoever writes and whoever reads has to agree on it. */
  layout: string;
}

/** Layers that are cached alike: full attention, a sliding window, a draft model. */
export interface ModelGroup {
  /** Unique in the model, e.g. `full`, `sliding`, `draft`. What `ColumnRef.group` says. */
  name: string;
  /** Bytes of KV state that one token takes on each shard of a stripe, in their order; 0 where a shard has none of the layers. */
  bytesPerToken: readonly number[];
  /** Tokens that a sliding window sees. A hit needs only the columns that overlap the last ones. All tokens if left out. */
  windowTokens?: number;
  /**
   * Whether a prefix can be used only where this group has what it needs. True if left out. Where an optional group lacks
   * something, a hit says how far it goes; see Hit.tokensOf.
   */
  required?: boolean;
  /**
   * Columns of a window, or of an optional group, to keep memory for, as a share of the columns of the model, above 0 and
   * up to 1. A quarter for windows and 1 for other groups if left out. Groups that keep whole prefixes have all.
   */
  capacityShare?: number;
}

/** What the driver has to know of a model: `bytesPerToken` for a single group of full attention, or its groups. */
export interface Model extends ModelIdentity {
  /** Bytes of KV state that one token takes on each shard of a stripe, in the order of the shards. Need not be equal. */
  bytesPerToken?: readonly number[];
  /** Groups of layers, in place of `bytesPerToken`; 1 to 16. groupsFrom makes them from a config.json. */
  groups?: readonly ModelGroup[];
  /** Tokens of a column; 64 if left out. */
  columnTokens?: number;
}

/** A group of a model as the driver works with it. */
export interface Group {
  readonly name: string;
  readonly bytesPerToken: readonly number[];
  /** Bytes of the piece of each shard; 0 where a shard has none of the group. */
  readonly pieceBytes: readonly number[];
  /** Last columns of a prefix that a hit needs; infinite without a window. */
  readonly windowColumns: number;
  readonly required: boolean;
  /** Whether every column takes a slot of the group, so that its prefixes are always whole. */
  readonly keepsAll: boolean;
  /** Whether it is the driver's own, and runtimes do not hear of it. */
  readonly internal: boolean;
  /** Slots where there is memory for so many columns. */
  slotsFor(columns: number): number;
}

export const DEFAULT_COLUMN_TOKENS = 64;
const MAX_GROUPS = 16;
const WINDOW_SHARE = 0.25;

/** The groups of a model, those that keep whole prefixes first. Throws KVSS_BAD_INPUT for what makes no sense, with the name of the key. */
export function groupsOf(model: Model): Group[] {
  const columnTokens = model.columnTokens ?? DEFAULT_COLUMN_TOKENS;
  const bad = (message: string) => localError('KVSS_BAD_INPUT', `model.${message}`);
  if (model.groups !== undefined && model.bytesPerToken !== undefined) {
    throw bad('bytesPerToken: the groups have their own; give one of the two');
  }
  const described = model.groups ?? [{ name: 'full', bytesPerToken: model.bytesPerToken ?? [] }];
  const key = (index: number) => (model.groups ? `groups[${index}].` : '');
  if (described.length === 0 || described.length > MAX_GROUPS) {
    throw bad(`groups: ${described.length} groups, 1 to ${MAX_GROUPS} are possible`);
  }
  const shards = described[0]?.bytesPerToken.length ?? 0;
  for (const [index, group] of described.entries()) {
    const { name, bytesPerToken, windowTokens, capacityShare } = group;
    const at = key(index);
    if (name === RECORDS) throw bad(`${at}name: '${name}' is the driver's own`);
    if (name === '' || described.findIndex((other) => other.name === name) !== index) {
      throw bad(`${at}name: '${name}' is empty or there twice`);
    }
    if (bytesPerToken.length === 0) throw bad(`${at}bytesPerToken: at least one shard is needed`);
    if (bytesPerToken.length !== shards) {
      throw bad(`${at}bytesPerToken: ${bytesPerToken.length} shards, the groups before have ${shards}`);
    }
    if (bytesPerToken.every((bytes) => bytes === 0)) throw bad(`${at}bytesPerToken: no shard holds anything of it`);
    for (const [shard, bytes] of bytesPerToken.entries()) {
      // A model of one group that leaves a shard empty is a mistake; with several groups some have fewer layers than shards.
      if (bytes === 0 && described.length > 1) continue;
      const piece = bytes * columnTokens;
      if (!Number.isSafeInteger(piece) || piece < 1) {
        throw bad(`${at}bytesPerToken[${shard}]: ${bytes} x ${columnTokens} tokens is no piece size`);
      }
    }
    if (windowTokens !== undefined && !(Number.isInteger(windowTokens) && windowTokens > 0)) {
      throw bad(`${at}windowTokens: ${windowTokens} is no number of tokens`);
    }
    if (capacityShare !== undefined && !(capacityShare > 0 && capacityShare <= 1)) {
      throw bad(`${at}capacityShare: ${capacityShare} is outside of 0 to 1`);
    }
  }
  for (let shard = 0; shard < shards; shard += 1) {
    if (described.every(({ bytesPerToken }) => bytesPerToken[shard] === 0)) {
      throw bad(`groups: shard ${shard} holds nothing of any group`);
    }
  }
  const anchor = anchorOf(described);
  if (anchor === undefined) throw bad('groups: at least one has to be required');
  const groups = described.map((group) => {
    const { name, bytesPerToken, windowTokens = Number.POSITIVE_INFINITY, required = true } = group;
    const windowColumns = Math.ceil(windowTokens / columnTokens);
    const keepsAll = group === anchor || (required && group.windowTokens === undefined);
    const share = group.capacityShare ?? (group.windowTokens === undefined ? 1 : WINDOW_SHARE);
    // At least one window, or nothing longer than that could ever be a hit.
    const least = group.windowTokens === undefined ? 1 : windowColumns;
    return {
      name,
      bytesPerToken,
      pieceBytes: bytesPerToken.map((bytes) => bytes * columnTokens),
      windowColumns,
      required,
      keepsAll,
      internal: false,
      slotsFor: (columns: number) =>
        keepsAll ? columns : Math.min(columns, Math.max(least, Math.ceil(columns * share))),
    };
  });
  // What every column has comes first.
  return [...groups.filter(({ keepsAll }) => keepsAll), ...groups.filter(({ keepsAll }) => !keepsAll)];
}

/** The name of no group that a model may have. */
const RECORDS = '#records';

/** Groups with one more, in which the driver keeps a record of each column on the first shard. */
export function withRecords(groups: readonly Group[], recordBytes: number): Group[] {
  const shards = groups[0]?.pieceBytes.length ?? 0;
  const bytes = Array.from({ length: shards }, (_, shard) => (shard === 0 ? recordBytes : 0));
  const records: Group = {
    name: RECORDS,
    bytesPerToken: bytes,
    pieceBytes: bytes,
    windowColumns: Number.POSITIVE_INFINITY,
    required: true,
    keepsAll: true,
    internal: true,
    slotsFor: (columns) => columns,
  };
  const whole = groups.filter(({ keepsAll }) => keepsAll).length;
  return [...groups.slice(0, whole), records, ...groups.slice(whole)];
}

/**
 * The group that holds the prefixes together: of it every column is kept. The first required one that sees all tokens, or
 * in a model that has only windows the widest of them.
 */
function anchorOf(groups: readonly ModelGroup[]): ModelGroup | undefined {
  const required = groups.filter((group) => group.required !== false);
  const full = required.find((group) => group.windowTokens === undefined);
  if (full) return full;
  const widest = Math.max(...required.map(({ windowTokens = 0 }) => windowTokens));
  return required.find(({ windowTokens }) => windowTokens === widest);
}

/**
 * The name under which prefixes are kept: everything that two prefixes must have in common besides their tokens. Every
 * part carries its length, so that no two different lists of parts spell the same name. `modelPart`: see modelPartOf.
 */
export function namespaceOf(modelPart: string, isolationId: string, adapter: string): string {
  return `${tenantPartOf(isolationId)}${modelPart}${spell(adapter)}`;
}

/** How the namespaces of a tenant begin, and those of no other. */
export const tenantPartOf = (isolationId: string): string => spell(isolationId);

/** The part of a namespace that is the same for all tenants and adapters. */
export function modelPartOf(model: ModelIdentity, groups: readonly Pick<Group, 'name' | 'bytesPerToken'>[]): string {
  const sizes = groups.flatMap(({ name, bytesPerToken }) => [name, bytesPerToken.join(',')]);
  return [model.id, model.revision, model.dtype, model.layout, ...sizes].map(spell).join('');
}

function spell(part: string): string {
  return `${part.length}:${part}`;
}
