import { hashText } from '../common/hash_text.js';
import type { SlotTable } from '../links/link.js';
import { type ColumnRecord, ColumnRecords, type RecordedPart } from './column_records.js';
import type { DriverCore } from './driver_core.js';
import { NONE, type Node } from './prefix_map.js';
import type { Stripe } from './stripe.js';
import type { Tenant } from './tenant.js';

/** A stripe that has come back with what an earlier driver left there. */
export interface ReturnedStripe {
  readonly stripe: Stripe;
  /** Its epoch then. */
  readonly epoch: number;
  /** What the slots of each group hold, shard by shard. */
  readonly slots: readonly (readonly SlotTable[])[];
}

/** Who a record belongs to. */
export interface Owner {
  readonly tenant: Tenant;
  /** Root of the namespace. */
  readonly root: Node;
  /** What the fingerprints of the namespace differ in from others; see Fingerprint.chain. */
  readonly extra: number;
}

/**
 * Enters what is left of an earlier driver in the map: columns with a record that is sound and that agrees with what the
 * shards say of their slots, in every group that every column needs, and that continue another such column, on whichever
 * stripe. What has gone down meanwhile counts for nothing. `place`: who a record belongs to.
 */
export async function recoverColumns(
  core: DriverCore,
  returned: readonly ReturnedStripe[],
  place: (record: ColumnRecord) => Owner | undefined,
): Promise<{ columns: number; doubtful: number }> {
  const { map } = core;
  const all = await Promise.all(
    returned.map(async (from) => ({ from, ...(await readRecords(core, from.stripe, from.slots[core.recordGroup])) })),
  );
  // Slots of a stripe that has fallen since are somebody else's by now.
  const found = all.filter(({ from }) => from.stripe.epoch === from.epoch);
  const held = found.reduce((sum, each) => sum + each.held, 0);
  const records = found.flatMap(({ from, records: some }) => some.map((each) => ({ ...each, from })));
  // What a column continues was stored before it.
  records.sort((a, b) => a.record.generation - b.record.generation);
  const nodes = new Map<number, Node>();
  const kept = new Map(found.map(({ from }) => [from, from.stripe.groups.map(() => new Set<number>())]));
  let columns = 0;
  for (const { record, slot, from } of records) {
    const { generation, parentGeneration, index, tokens, spelling } = record;
    const taken = kept.get(from) as Set<number>[];
    const owner = place(record);
    const parent = parentGeneration === 0 ? owner?.root : nodes.get(parentGeneration);
    if (!owner || parent === undefined || (parentGeneration === 0) !== (index === 0)) continue;
    if (!map.isRoot(parent) && core.ledger.root(parent) !== owner.root) continue;
    const parts = soundParts(record, from.slots, owner.tenant.tag, taken);
    if (!parts || !coversWhole(core, parts)) continue;
    const existing = map.child(parent, tokens, 0, map.contents.find(spelling));
    if (existing !== NONE) {
      // Stored twice, and both are whole: what continues either continues the one that is there.
      nodes.set(generation, existing);
      continue;
    }
    if (map.size >= map.capacity) break;
    const each = [...parts, { group: core.recordGroup, slot }];
    const first = each.find(({ group }) => group === 0) as RecordedPart;
    const node = map.insert(parent, tokens, 0, from.stripe.index, first.slot, generation, spelling);
    for (const part of each) {
      if (part.group !== 0) map.addPart(node, part.group, part.slot, generation);
      taken[part.group]?.add(part.slot);
    }
    enterRecovered(core, node, parent, owner, record);
    nodes.set(generation, node);
    columns += 1;
  }
  for (const [{ stripe, slots }, taken] of kept) {
    for (const [group, used] of taken.entries()) stripe.groups[group]?.keep(used);
    strikeOthers(core, stripe, slots[core.recordGroup], taken[core.recordGroup] as Set<number>);
  }
  for (const table of returned.flatMap(({ slots }) => slots.flat()))
    for (const each of table.generations) core.usedGeneration(each);
  return { columns, doubtful: held - columns };
}

/** Strikes out, in place, the records that are not kept: slots that they name are free, and will be written over. */
function strikeOthers(
  core: DriverCore,
  stripe: Stripe,
  [table]: readonly SlotTable[] = [],
  kept: ReadonlySet<number>,
): void {
  const group = stripe.groups[core.recordGroup];
  for (let slot = 0; slot < (table?.holds.length ?? 0); slot += 1) {
    if (table?.holds[slot] !== 1 || kept.has(slot)) continue;
    const record = group?.slotInPlace(slot);
    if (record) ColumnRecords.strike(record);
  }
}

function enterRecovered(
  core: DriverCore,
  node: Node,
  parent: Node,
  { root, extra }: Owner,
  { tokens, spelling, storedAtMs }: ColumnRecord,
): void {
  const { map, ledger, accounting, settings } = core;
  const [low, high] = map.isRoot(parent) ? [0, 0] : [ledger.low(parent), ledger.high(parent)];
  const halves = new Uint32Array(2);
  accounting.fingerprint.chain(low, high, tokens, 0, tokens.length, extra ^ hashText(spelling), halves);
  core.entered(node, root, halves[0] as number, halves[1] as number);
  // A clock that was set back must not make a column younger than it is.
  const ageMs = Math.max(0, settings.wallNow() - storedAtMs);
  ledger.backdate(node, core.clock.now() - ageMs);
  for (const group of core.windowGroups) {
    if (!map.hasPart(node, group)) continue;
    map.confirmPart(node, group);
    core.windowOf(node, group).add(node, true);
  }
  map.publish(node);
  core.published(node, false);
}

/** Whether parts are there of all groups that every column needs, but for the record itself. */
function coversWhole(core: DriverCore, parts: readonly RecordedPart[]): boolean {
  return core.settings.groups.every(
    ({ keepsAll, internal }, group) => !keepsAll || internal || parts.some((part) => part.group === group),
  );
}

/** All records that can be read. `held`: slots that hold something. */
async function readRecords(
  core: DriverCore,
  stripe: Stripe,
  [table]: readonly SlotTable[] = [],
): Promise<{ records: { record: ColumnRecord; slot: number }[]; held: number }> {
  const records: { record: ColumnRecord; slot: number }[] = [];
  const group = stripe.groups[core.recordGroup];
  const codec = core.settings.records;
  let held = 0;
  if (!table || !group || !codec) return { records, held };
  const byTag = new Map<bigint, number[]>();
  for (let slot = 0; slot < table.holds.length; slot += 1) {
    if (table.holds[slot] !== 1) continue;
    held += 1;
    const tag = table.tenantTags[slot] as bigint;
    const list = byTag.get(tag);
    if (list) list.push(slot);
    else byTag.set(tag, [slot]);
  }
  for (const [tag, slots] of byTag) {
    await group.readSlots(slots, table.generations, tag, core.settings.deadlineMs, (slot, [piece]) => {
      const record = piece && codec.read(piece, stripe.index, slot, table.generations[slot] as number);
      if (record) records.push({ record, slot });
    });
  }
  return { records, held };
}

/**
 * Parts of a recorded column of which the shards say that they hold them: of this generation and this tenant, and nobody
 * else's. Undefined where two records claim one slot.
 */
function soundParts(
  { parts, generation }: ColumnRecord,
  slots: readonly (readonly SlotTable[])[],
  tag: bigint,
  taken: readonly ReadonlySet<number>[],
): RecordedPart[] | undefined {
  const sound: RecordedPart[] = [];
  for (const part of parts) {
    const tables = slots[part.group];
    if (!tables || taken[part.group]?.has(part.slot)) return undefined;
    const holds = tables.every(
      (table) =>
        table.holds[part.slot] === 1 &&
        table.generations[part.slot] === generation &&
        table.tenantTags[part.slot] === tag,
    );
    if (holds) sound.push(part);
  }
  return sound;
}
