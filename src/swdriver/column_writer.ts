import { copyPiece } from '../links/copy_piece.js';
import { Opcode, Status } from '../proto/generated.js';
import type { DriverCore } from './driver_core.js';
import type { Group } from './model.js';
import { NONE, type Node } from './prefix_map.js';
import { type ColumnRef, checkLength, checkPlace, type PieceSource } from './runtime.js';
import type { Stripe } from './stripe.js';
import type { BatchOutcome, StripeGroup } from './stripe_group.js';
import type { Tenant } from './tenant.js';

const NO_PLACE = -1;
const UNENTERED = { dead: false, recorded: false, tokens: undefined, spelling: '' };
const NOTHING_SENT: Promise<BatchOutcome> = Promise.resolve(new Uint16Array(0));

/** A place for the part of one group of a column. The slot is ours until letGo. */
interface ClaimedPart {
  readonly group: number;
  readonly slot: number;
  /** Where the runtime writes the bytes. */
  readonly place: number;
  /** Whether a prompt ends so near that it needs the part. */
  readonly needed: boolean;
}

/** Places for parts of one column. */
export interface Claim {
  readonly stripe: Stripe;
  readonly epoch: number;
  /** The column in the map, which no match reaches; NONE while it has not been entered. */
  node: Node;
  serial: number;
  /** Whether the column was in the cache already, and lacked these parts. */
  readonly mending: boolean;
  readonly index: number;
  readonly generation: number;
  /** Those that the runtime has not got, or that could not be stored, are taken out. */
  parts: ClaimedPart[];
  /** Its slots have been given back without the column ever having been in the map. */
  dead: boolean;
  /** Whether the driver's record of the column is sent with it: not before the column is in the map. */
  recorded: boolean;
  /** Tokens of the column, and what it holds besides them; once it is in the map. */
  tokens: Uint32Array | undefined;
  spelling: string;
}

/** Whether a prompt ends so near behind a column that it needs the column's part of a group. */
export type IsNeeded = (group: number, column: number) => boolean;

/**
 * Takes columns of one tenant from the runtime to the shards: finds room, has the pieces written, sends them, and says what
 * has been stored. A column is stored in all groups that every column needs, or not at all.
 */
export class ColumnWriter {
  constructor(
    private readonly core: DriverCore,
    private readonly tenant: Tenant,
    /** Root of the namespace. */
    private readonly root: Node,
  ) {}

  /**
   * Finds room for a column that is not in the map. Answers with the group of which all places for bytes on their way are
   * taken, with nothing where there is no room or the runtime has the column no more.
   */
  claim(source: PieceSource, index: number, needed: IsNeeded): Claim | StripeGroup | undefined {
    const { core } = this;
    const room = core.claimRoom(this.tenant);
    if (!room) return undefined;
    const { stripe, slots } = room;
    const generation = core.nextGeneration();
    const parts: ClaimedPart[] = [];
    for (let group = 0; group < slots.length; group += 1) {
      const slot = slots[group] as number;
      let place: number | StripeGroup | undefined;
      try {
        place = this.#placeFor(source, stripe, group, slot, index, generation);
      } finally {
        // Also where the source threw.
        if (typeof place !== 'number') {
          for (const part of parts) this.#giveUp(stripe, part);
          for (let other = group + 1; other < slots.length; other += 1) {
            this.#giveUp(stripe, { group: other, slot: slots[other] as number, place: NO_PLACE, needed: true });
          }
        }
      }
      if (typeof place !== 'number') return place;
      parts.push({ group, slot, place, needed: true });
    }
    const { epoch } = stripe;
    const claim: Claim = {
      stripe,
      epoch,
      node: NONE,
      serial: 0,
      mending: false,
      index,
      generation,
      parts,
      ...UNENTERED,
    };
    return this.#claimWindows(source, claim, needed) ?? claim;
  }

  /** Finds room for what a stored column lacks of windows and optional groups. Answers nothing where it lacks nothing. */
  claimMissing(source: PieceSource, node: Node, index: number, needed: IsNeeded): Claim | StripeGroup | undefined {
    const { core } = this;
    const { map } = core;
    if (core.windowGroups.length === 0 || !map.isStored(node)) return undefined;
    if (core.windowGroups.every((group) => map.hasPart(node, group))) return undefined;
    const stripe = core.stripes[map.stripe(node)] as Stripe;
    const claim: Claim = {
      stripe,
      epoch: stripe.epoch,
      node,
      serial: map.serial(node),
      mending: true,
      index,
      generation: core.nextGeneration(),
      parts: [],
      ...UNENTERED,
    };
    // It must not make the room itself.
    map.pin(node);
    let busy: StripeGroup | undefined;
    try {
      busy = this.#claimWindows(source, claim, needed);
    } finally {
      map.unpin(node, claim.serial);
    }
    return busy ?? (claim.parts.length > 0 ? claim : undefined);
  }

  /**
   * Enters a claimed column in the map below `parent`, invisible as yet. The caller has seen that it is not there. `low` and
   * `high`: fingerprint of its prefix.
   */
  enter(claim: Claim, parent: Node, tokens: Uint32Array, spelling: string, low: number, high: number): void {
    const { core } = this;
    const { map } = core;
    const { stripe, index, generation, parts } = claim;
    const first = parts[0] as ClaimedPart;
    claim.node = map.insert(parent, tokens, index * map.columnTokens, stripe.index, first.slot, generation, spelling);
    claim.serial = map.serial(claim.node);
    for (const { group, slot } of parts.slice(1)) map.addPart(claim.node, group, slot, generation);
    core.entered(claim.node, this.root, low, high);
    if (core.recordGroup < 0) return;
    const from = index * map.columnTokens;
    claim.tokens = tokens.subarray(from, from + map.columnTokens);
    claim.spelling = spelling;
    claim.recorded = true;
  }

  /** Makes a record of a column that was written before it was in the map. Nobody waits for it. */
  async record(claim: Claim): Promise<void> {
    const { core } = this;
    const group = core.recordGroup;
    const part = partOf(claim.parts, group);
    if (!part) return;
    const owner = claim.stripe.groups[group] as StripeGroup;
    const { epoch } = owner;
    const place = owner.takePlace(part.slot);
    // Without a record the column is served all the same, and lost when the driver dies.
    if (place === undefined) return;
    this.#writeRecord(claim, { ...part, place });
    const finished = this.#sendGroup(
      owner,
      group,
      [{ ...claim, parts: [{ ...part, place }] }],
      core.settings.deadlineMs,
      false,
    );
    owner.givePlace(place, epoch);
    await finished;
  }

  /** Writes the record of a column to where it is sent from. */
  #writeRecord(claim: Claim, { group, place, slot }: ClaimedPart): void {
    const { core } = this;
    const [piece] = (claim.stripe.groups[group] as StripeGroup).pieces(place);
    if (piece && claim.tokens)
      core.writeRecord(piece, slot, claim.node, claim.index, claim.tokens, claim.spelling, claim.parts);
  }

  /** Whether the claimed places are still this column's: a shard that dies takes them away. */
  holds(claim: Claim): boolean {
    if (claim.dead || claim.stripe.epoch !== claim.epoch) return false;
    return claim.node === NONE || this.core.map.isCurrent(claim.node, claim.serial);
  }

  /** Gives a claim up. Only now may its slots go to another column: until now the runtime was writing there. */
  abandon(claim: Claim): void {
    const { stripe, epoch, node } = claim;
    if (this.holds(claim)) {
      if (node === NONE) this.discard(claim);
      else if (!claim.mending) this.core.remove(node);
      else for (const { group } of claim.parts) this.core.dropPart(node, group);
    } else if (stripe.epoch === epoch) {
      // Removed while it was being written, perhaps because its tenant was forgotten: nothing of it may stay. What lies
      // in the runtime's memory is the runtime's.
      for (const { group, place } of claim.parts) {
        const owner = stripe.groups[group] as StripeGroup;
        if (!owner.placedByRuntime) for (const piece of owner.pieces(place)) piece.fill(0);
      }
    }
    for (const part of claim.parts) this.#letGo(claim, part);
  }

  /** Gives the slots of a claim back that was never entered in the map, as soon as nothing touches them any more. */
  discard(claim: Claim): void {
    const { stripe, epoch, parts, dead } = claim;
    if (dead || stripe.epoch !== epoch) return;
    claim.dead = true;
    for (const { group, slot } of parts) (stripe.groups[group] as StripeGroup).giveSlot(slot);
  }

  /**
   * Has the runtime write all parts of a column. Answers whether it had those that every column needs; others that it had
   * not are taken out of the claim.
   */
  write(source: PieceSource, claim: Claim): boolean | Promise<boolean> {
    for (let index = 0; index < claim.parts.length; index += 1) {
      const written = this.#writePart(source, claim, claim.parts[index] as ClaimedPart);
      if (typeof written !== 'boolean') return this.#writeRest(source, claim, index, written);
      if (written) continue;
      if (!this.#canLack(claim, index)) return false;
      index -= 1;
    }
    return this.#isWritten(claim);
  }

  /** Sends written columns of one stripe. Resolves with those that every shard has stored; gives the others up. */
  async send(stripe: Stripe, written: readonly Claim[], deadlineMs: number, last: boolean): Promise<readonly Claim[]> {
    const claims = written.filter((claim) => {
      const holds = this.holds(claim);
      if (!holds) this.abandon(claim);
      return holds;
    });
    if (claims.length === 0) return claims;
    const { groups } = stripe;
    // All groups are on their way before any is waited for.
    const finished: Promise<BatchOutcome>[] = [];
    for (let group = 0; group < groups.length; group += 1) {
      finished.push(this.#sendGroup(groups[group] as StripeGroup, group, claims, deadlineMs, last));
    }
    // In flight now, which keeps the slots as well.
    for (const claim of claims) for (const part of claim.parts) this.#letGo(claim, part);
    const [only] = finished;
    const outcomes = only && finished.length === 1 ? [await only] : await Promise.all(finished);
    return this.#settle(claims, outcomes);
  }

  /** Makes a column visible that is in the map and has been stored. */
  publish(claim: Claim): void {
    const { core } = this;
    const { groups } = core.settings;
    for (let index = 0; index < claim.parts.length; index += 1) {
      const { group, needed } = claim.parts[index] as ClaimedPart;
      core.countEvicted(group, 1);
      if (groups[group]?.keepsAll) continue;
      core.map.confirmPart(claim.node, group);
      core.windowOf(claim.node, group).add(claim.node, needed);
    }
    if (claim.mending) return;
    core.map.publish(claim.node);
    core.published(claim.node);
  }

  /**
   * Adds places for parts of windows and optional groups that the column lacks, as far as there is room for them. Where all
   * places for bytes on their way are taken that a needed part would have, the claim is given up, and the answer is the group.
   */
  #claimWindows(source: PieceSource, claim: Claim, isNeeded: IsNeeded): StripeGroup | undefined {
    const { core } = this;
    const { map } = core;
    const { stripe, node, generation, index, parts } = claim;
    for (const group of core.windowGroups) {
      if (node !== NONE && map.hasPart(node, group)) continue;
      const needed = isNeeded(group, index);
      const slot = core.claimWindowSlot(this.tenant, stripe, group, needed, node === NONE ? parts : []);
      if (slot === undefined) continue;
      let place: number | StripeGroup | undefined;
      try {
        place = this.#placeFor(source, stripe, group, slot, index, generation);
      } catch (thrown) {
        this.abandon(claim);
        throw thrown;
      }
      if (typeof place === 'number') {
        if (node !== NONE) {
          map.addPart(node, group, slot, generation);
          core.partAdded(node, group);
        }
        parts.push({ group, slot, place, needed });
      } else if (place && needed) {
        this.abandon(claim);
        return place;
      }
    }
    return undefined;
  }

  /**
   * A place for the bytes of one part. Gives the slot back where there is none: answers with the group where all places
   * are taken, with nothing where the runtime has the part no more.
   */
  #placeFor(
    source: PieceSource,
    stripe: Stripe,
    group: number,
    slot: number,
    column: number,
    generation: number,
  ): number | StripeGroup | undefined {
    const owner = stripe.groups[group] as StripeGroup;
    const byRuntime = owner.placedByRuntime && 'place' in source;
    let place: number | undefined;
    try {
      place = byRuntime ? this.#askPlace(source, this.#refOf(column, group, generation), group) : owner.takePlace(slot);
    } catch (thrown) {
      this.#giveUp(stripe, { group, slot, place: NO_PLACE, needed: true });
      throw thrown;
    }
    if (place !== undefined) return place;
    this.#giveUp(stripe, { group, slot, place: NO_PLACE, needed: true });
    return byRuntime ? undefined : owner;
  }

  /** Gives a slot and a place back that nobody has heard of. */
  #giveUp(stripe: Stripe, { group, slot, place }: ClaimedPart): void {
    const owner = stripe.groups[group] as StripeGroup;
    owner.letGo(slot, owner.epoch);
    owner.giveSlot(slot);
    if (place !== NO_PLACE) owner.givePlace(place, owner.epoch);
  }

  /** Asks the runtime where the part of a column lies. */
  #askPlace(
    source: { place(column: ColumnRef): number | undefined },
    ref: ColumnRef,
    group: number,
  ): number | undefined {
    const place = source.place(ref);
    return place === undefined ? undefined : checkPlace(place, this.core.settings.places[group] as number);
  }

  #refOf(index: number, group: number, generation: number): ColumnRef {
    const { name } = this.core.settings.groups[group] as Group;
    return { index, group: name, tenantTag: this.tenant.tag, generation };
  }

  /** Whoever writes a part writes no more: from now on only what is in flight keeps its slot. */
  #letGo({ stripe, epoch }: Claim, { group, slot, place }: ClaimedPart): void {
    const owner = stripe.groups[group] as StripeGroup;
    owner.letGo(slot, epoch);
    owner.givePlace(place, epoch);
  }

  /** Goes on with a part that the source takes its time for. */
  async #writeRest(source: PieceSource, claim: Claim, from: number, first: Promise<boolean>): Promise<boolean> {
    let written: boolean | Promise<boolean> = first;
    for (let index = from; ; ) {
      if (await written) index += 1;
      else if (!this.#canLack(claim, index)) return false;
      if (index >= claim.parts.length) return this.#isWritten(claim);
      // Meanwhile the places of its other parts may have become another column's.
      if (!this.holds(claim)) return false;
      written = this.#writePart(source, claim, claim.parts[index] as ClaimedPart);
    }
  }

  /** The runtime has written all parts that it has: the record says which. */
  #isWritten(claim: Claim): boolean {
    const record = claim.recorded && this.holds(claim) ? partOf(claim.parts, this.core.recordGroup) : undefined;
    if (record) this.#writeRecord(claim, record);
    return claim.parts.length > 0;
  }

  /** Takes a part out of a claim that the column can do without. Answers false where it cannot. */
  #canLack(claim: Claim, index: number): boolean {
    const part = claim.parts[index] as ClaimedPart;
    if (this.core.settings.groups[part.group]?.keepsAll) return false;
    // Removed meanwhile: the whole claim is given up, which sees to what has been written.
    if (!this.holds(claim)) return false;
    this.#lack(claim, part);
    this.#letGo(claim, part);
    return true;
  }

  /** The column does without a part. */
  #lack(claim: Claim, part: ClaimedPart): void {
    claim.parts = claim.parts.filter((other) => other !== part);
    if (claim.node === NONE) (claim.stripe.groups[part.group] as StripeGroup).giveSlot(part.slot);
    else this.core.dropPart(claim.node, part.group);
  }

  /** Answers whether the runtime had the part. */
  #writePart(source: PieceSource, claim: Claim, { group, place }: ClaimedPart): boolean | Promise<boolean> {
    const owner = claim.stripe.groups[group] as StripeGroup;
    // It lies where it is sent from, or it is not the runtime's.
    if (owner.placedByRuntime || group === this.core.recordGroup) return true;
    const ref = this.#refOf(claim.index, group, claim.generation);
    const pieces = owner.pieces(place);
    if ('write' in source) return source.write(ref, pieces);
    if ('place' in source) {
      const at = source.place(ref);
      if (at === undefined) return false;
      const bytes = owner.runtimePieces(checkPlace(at, this.core.settings.places[group] as number));
      for (const [shard, piece] of pieces.entries()) {
        if (piece.length > 0) copyPiece(piece, bytes[shard] as Uint8Array);
      }
      return true;
    }
    for (const [shard, piece] of pieces.entries()) {
      // A shard without layers of the group.
      if (piece.length === 0) continue;
      const bytes = source.locate(ref, shard);
      if (!bytes) return false;
      checkLength(bytes, piece, shard);
      copyPiece(piece, bytes);
    }
    return true;
  }

  #sendGroup(
    owner: StripeGroup,
    group: number,
    claims: readonly Claim[],
    deadlineMs: number,
    last: boolean,
  ): Promise<BatchOutcome> {
    const slots = new Uint32Array(claims.length);
    const places = new Uint32Array(claims.length);
    const generations = new Float64Array(claims.length);
    let items = 0;
    for (let item = 0; item < claims.length; item += 1) {
      const { parts, generation, recorded } = claims[item] as Claim;
      const part = partOf(parts, group);
      if (!part || (group === this.core.recordGroup && !recorded)) continue;
      slots[items] = part.slot;
      places[items] = part.place;
      generations[items] = generation;
      items += 1;
    }
    if (items === 0) return NOTHING_SENT;
    const all = items === claims.length;
    return owner.run({
      opcode: Opcode.evict,
      flags: 0,
      slots: all ? slots : slots.slice(0, items),
      places: all ? places : places.slice(0, items),
      generations: all ? generations : generations.slice(0, items),
      tenantTag: this.tenant.tag,
      deadlineMs,
      // Looking for one keeps the others from being sent.
      awaited: last && group === this.core.settings.groups.length - 1,
    });
  }

  /** Takes back what has not been stored in every group that needs it. */
  #settle(claims: readonly Claim[], outcomes: readonly BatchOutcome[]): Claim[] {
    const { core } = this;
    const next = outcomes.map(() => 0);
    const stored: Claim[] = [];
    for (const claim of claims) {
      let whole = true;
      let failed: ClaimedPart[] | undefined;
      for (let index = 0; index < claim.parts.length; index += 1) {
        const part = claim.parts[index] as ClaimedPart;
        if (part.group === core.recordGroup && !claim.recorded) continue;
        const item = next[part.group] as number;
        next[part.group] = item + 1;
        if (outcomes[part.group]?.[item] === Status.ok) continue;
        if (core.settings.groups[part.group]?.keepsAll) whole = false;
        else if (failed) failed.push(part);
        else failed = [part];
      }
      if (!this.holds(claim)) continue;
      if (whole) {
        for (const part of failed ?? []) this.#lack(claim, part);
        stored.push(claim);
      } else if (claim.node === NONE) {
        this.discard(claim);
      } else {
        core.remove(claim.node);
      }
    }
    return stored;
  }
}

function partOf(parts: readonly ClaimedPart[], group: number): ClaimedPart | undefined {
  for (let index = 0; index < parts.length; index += 1) {
    if (parts[index]?.group === group) return parts[index];
  }
  return undefined;
}
