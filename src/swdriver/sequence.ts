import { localError } from '../common/errors.js';
import { copyPiece } from '../links/copy_piece.js';
import { Opcode, Status } from '../proto/generated.js';
import type { DriverCore } from './driver_core.js';
import type { Hit } from './hit.js';
import type { Group } from './model.js';
import { NONE, type Node } from './prefix_map.js';
import { type ColumnRef, checkLength, checkPlace, type PieceSource } from './runtime.js';
import type { Stripe } from './stripe.js';
import { type BatchOutcome, StripeGroup } from './stripe_group.js';

/** How an evict ended. */
export interface EvictResult {
  /** Columns that were stored now, on every shard. */
  stored: number;
  /** Columns that the cache had already, or that another sequence is storing now. */
  present: number;
  /** Full columns that are not in the cache: no room, the runtime had them no more, or a shard failed. */
  dropped: number;
}

// Columns that are written before they are sent, so that shards work while the runtime writes the next ones.
const COLUMNS_PER_BATCH = 128;
const NO_TOKENS = new Uint32Array(0);
const NO_PLACE = -1;
const NOTHING_SENT: Promise<BatchOutcome> = Promise.resolve(new Uint16Array(0));

function partOf(parts: readonly ClaimedPart[], group: number): ClaimedPart | undefined {
  for (let index = 0; index < parts.length; index += 1) {
    if (parts[index]?.group === group) return parts[index];
  }
  return undefined;
}

/** A place for the part of one group of a column. The slot is ours until letGo. */
interface ClaimedPart {
  readonly group: number;
  readonly slot: number;
  /** Where the runtime writes the bytes. */
  readonly place: number;
  /** Whether a prompt ends so near that it needs the part. */
  readonly needed: boolean;
}

/** Places for parts of one column: entered in the map, not visible to matches. */
interface Claim {
  readonly stripe: Stripe;
  readonly epoch: number;
  readonly node: Node;
  readonly serial: number;
  /** Whether the column was in the cache already, and lacked these parts. */
  readonly mending: boolean;
  readonly index: number;
  readonly generation: number;
  /** Those that the runtime has not got are taken out. */
  parts: ClaimedPart[];
}

/**
 * One conversation of one tenant, as a growing list of verified tokens. Match a prompt, refill what is cached, let the
 * runtime compute the rest, evict the full columns, append what was decoded, evict again.
 *
 * Only give it tokens that the target model has confirmed: whatever is full becomes visible to later requests of the
 * tenant.
 */
export class Sequence {
  #tokens: Uint32Array = NO_TOKENS;
  #length = 0;
  /** Where the part that is known to be stored ends; its serial tells whether it still is. */
  #tip: Node;
  #tipSerial: number;
  #tipColumns = 0;
  /** Columns of the prompt that were stored when it was matched: where others part from it, and later ones may end. */
  #branchColumns = 0;
  #work: Promise<unknown> = Promise.resolve();
  #evicting = 0;
  #closed = false;

  /** @internal */
  constructor(
    private readonly core: DriverCore,
    private readonly namespace: string,
    private readonly tenantTag: bigint,
  ) {
    this.#tip = core.map.root(namespace);
    this.#tipSerial = 0;
  }

  /** Verified tokens so far. */
  get length(): number {
    return this.#length;
  }

  /** Full columns of these tokens. */
  get fullColumns(): number {
    return Math.floor(this.#length / this.core.map.columnTokens);
  }

  /**
   * Begins a prompt: finds and pins its longest cached prefix. Takes no round trip and waits for nothing. The tokens
   * are copied.
   */
  match(prompt: Uint32Array): Hit {
    this.#checkOpen();
    if (this.#evicting > 0) throw localError('KVSS_BAD_INPUT', 'match: wait for the evict of this sequence first');
    this.#tokens = prompt.slice();
    this.#length = prompt.length;
    const hit = this.core.match(this.namespace, this.tenantTag, prompt);
    this.#setTip(hit.lastNode ?? this.core.map.root(this.namespace), hit.columns);
    this.#branchColumns = hit.wholeColumns;
    return hit;
  }

  /** Adds verified tokens behind the others. */
  append(tokens: Uint32Array): void {
    this.#checkOpen();
    const length = this.#length + tokens.length;
    if (length > this.#tokens.length) {
      const larger = new Uint32Array(Math.max(length, this.#tokens.length * 2));
      larger.set(this.#tokens.subarray(0, this.#length));
      this.#tokens = larger;
    }
    this.#tokens.set(tokens, this.#length);
    this.#length = length;
  }

  /**
   * Stores every full column that the cache has not got, from the first missing one. Resolves when they are visible to
   * others, or have failed. Calls wait for each other. Throws only what the source throws; what was written before that
   * is kept.
   */
  evict(source: PieceSource, options: { deadlineMs?: number } = {}): Promise<EvictResult> {
    this.#checkOpen();
    this.core.checkEnds(source);
    this.#evicting += 1;
    const deadlineMs = options.deadlineMs ?? this.core.settings.deadlineMs;
    const result = this.#work
      .then(() => this.#evict(source, deadlineMs))
      .finally(() => {
        this.#evicting -= 1;
      });
    this.#work = result.catch(() => undefined);
    return result;
  }

  /** Ends the sequence. What it has stored stays in the cache. */
  close(): void {
    this.#closed = true;
    this.#tokens = NO_TOKENS;
    this.#length = 0;
  }

  async #evict(source: PieceSource, deadlineMs: number): Promise<EvictResult> {
    const { map, stats, clock } = this.core;
    const full = this.fullColumns;
    // close() drops the tokens, and what has begun has to go on with those that it began with.
    const tokens = this.#tokens;
    const from = this.#findTip();
    // Held until the end: the column that the new ones continue must not make room for them.
    const { tip, serial } = { tip: this.#tip, serial: this.#tipSerial };
    map.pin(tip);
    const running: Promise<number>[] = [];
    let present = from;
    // Of all batches together. The source's own time does not count.
    let left = deadlineMs;
    let stored = 0;
    try {
      for (let column = from; column < full; ) {
        const batch = await this.#storeBatch(source, tokens, column, full, (stripe, claims, last) =>
          running.push(this.#send(stripe, claims, left, last)),
        );
        present += batch.known;
        if (batch.full) {
          // What is on its way makes room when it has arrived; where nothing arrives, nothing more is sent.
          if (!batch.full.usable) break;
          const asked = clock.now();
          await batch.full.placeFreed(left);
          left -= clock.now() - asked;
          if (left <= 0) break;
        } else if (!batch.complete) {
          break;
        }
        column = batch.next;
      }
    } finally {
      for (const count of await Promise.all(running)) stored += count;
      map.unpin(tip, serial);
      stats.columnsEvicted += stored;
      this.#findTip();
    }
    const dropped = Math.max(0, full - present - stored);
    stats.columnsDropped += dropped;
    return { stored, present, dropped };
  }

  /** Claims, writes and sends up to a batch of columns, beginning with `column`, which continues the tip. */
  async #storeBatch(
    source: PieceSource,
    tokens: Uint32Array,
    column: number,
    last: number,
    send: (stripe: Stripe, claims: Claim[], last: boolean) => void,
  ): Promise<{ next: number; known: number; complete: boolean; full: StripeGroup | undefined }> {
    const { map } = this.core;
    const batches = new Map<Stripe, Claim[]>();
    const end = Math.min(last, column + COLUMNS_PER_BATCH);
    let known = 0;
    let cursor = column;
    let full: StripeGroup | undefined;
    try {
      for (; cursor < end; cursor += 1) {
        // While the runtime wrote, a shard may have died and taken the columns before this one along.
        if (!map.isCurrent(this.#tip, this.#tipSerial)) break;
        const existing = map.child(this.#tip, tokens, cursor * map.columnTokens);
        const claim =
          existing === NONE
            ? this.#claim(source, tokens, cursor, last)
            : this.#claimMissing(source, existing, cursor, last);
        if (claim instanceof StripeGroup) {
          full = claim;
          break;
        }
        if (existing !== NONE) {
          known += 1;
          this.#setTip(existing, cursor + 1);
        }
        if (!claim) {
          if (existing !== NONE) continue;
          break;
        }
        let written = false;
        try {
          const outcome = this.#write(source, claim);
          written = typeof outcome === 'boolean' ? outcome : await outcome;
        } finally {
          if (!written) this.#abandon(claim);
        }
        if (!written) {
          if (claim.mending) continue;
          break;
        }
        const batch = batches.get(claim.stripe);
        if (batch) batch.push(claim);
        else batches.set(claim.stripe, [claim]);
        if (!this.#holds(claim)) break;
        if (!claim.mending) this.#setTip(claim.node, cursor + 1);
      }
    } finally {
      // Also where the source threw: what was written before that is good and must not stay half-way.
      for (const [stripe, claims] of batches) send(stripe, claims, cursor === last);
    }
    return { next: cursor, known, complete: cursor === end, full };
  }

  /**
   * Finds room for the column that continues the tip and enters it in the map, invisible as yet. Answers with the group
   * of which all places for bytes on their way are taken, with nothing where there is no room or the runtime has the column
   * no more.
   */
  #claim(source: PieceSource, tokens: Uint32Array, column: number, last: number): Claim | StripeGroup | undefined {
    const { core } = this;
    const { map } = core;
    // The tip may be a leaf, and must not be what makes the room.
    map.pin(this.#tip);
    const room = core.claimRoom();
    map.unpin(this.#tip, this.#tipSerial);
    if (!room) return undefined;
    const { stripe, slots } = room;
    const generation = core.nextGeneration();
    const parts: ClaimedPart[] = [];
    for (let group = 0; group < slots.length; group += 1) {
      const slot = slots[group] as number;
      const place = this.#placeFor(source, stripe, group, slot, column, generation, parts);
      if (typeof place !== 'number') {
        for (const part of parts) this.#giveUp(stripe, part);
        for (let other = group + 1; other < slots.length; other += 1) {
          this.#giveUp(stripe, { group: other, slot: slots[other] as number, place: NO_PLACE, needed: true });
        }
        return place;
      }
      parts.push({ group, slot, place, needed: true });
    }
    const first = parts[0] as ClaimedPart;
    const node = map.insert(this.#tip, tokens, column * map.columnTokens, stripe.index, first.slot, generation);
    for (const { group, slot } of parts.slice(1)) map.addPart(node, group, slot, generation);
    const claim: Claim = {
      stripe,
      epoch: stripe.epoch,
      node,
      serial: map.serial(node),
      mending: false,
      index: column,
      generation,
      parts,
    };
    return this.#claimWindows(source, claim, last) ?? claim;
  }

  /** Finds room for what a stored column lacks of windows and optional groups. Answers nothing where it lacks nothing. */
  #claimMissing(source: PieceSource, node: Node, column: number, last: number): Claim | StripeGroup | undefined {
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
      index: column,
      generation: core.nextGeneration(),
      parts: [],
    };
    const busy = this.#claimWindows(source, claim, last);
    return busy ?? (claim.parts.length > 0 ? claim : undefined);
  }

  /**
   * Adds places for parts of windows and optional groups that the column lacks, as far as there is room for them. Where all
   * places for bytes on their way are taken that a needed part would have, the claim is given up, and the answer is the group.
   */
  #claimWindows(source: PieceSource, claim: Claim, last: number): StripeGroup | undefined {
    const { core } = this;
    const { map } = core;
    const { stripe, node, generation, index, parts } = claim;
    for (const group of core.windowGroups) {
      if (map.hasPart(node, group)) continue;
      const needed = this.#isNeeded(group, index, last);
      const slot = core.claimWindowSlot(stripe, group, needed);
      if (slot === undefined) continue;
      const place = this.#placeFor(source, stripe, group, slot, index, generation, []);
      if (typeof place === 'number') {
        map.addPart(node, group, slot, generation);
        parts.push({ group, slot, place, needed });
      } else if (place && needed) {
        this.#abandon(claim);
        return place;
      }
    }
    return undefined;
  }

  /**
   * Whether a prompt ends so near behind a column that it needs its part of a group: this one does at its end, and others
   * where they part from it.
   */
  #isNeeded(group: number, column: number, last: number): boolean {
    const { windowColumns } = this.core.settings.groups[group] as Group;
    const branch = this.#branchColumns;
    return column >= last - windowColumns || (column < branch && column >= branch - windowColumns);
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
    others: readonly ClaimedPart[],
  ): number | StripeGroup | undefined {
    const owner = stripe.groups[group] as StripeGroup;
    const byRuntime = owner.placedByRuntime && 'place' in source;
    let place: number | undefined;
    try {
      place = byRuntime ? this.#askPlace(source, this.#refOf(column, group, generation), group) : owner.takePlace(slot);
    } catch (thrown) {
      this.#giveUp(stripe, { group, slot, place: NO_PLACE, needed: true });
      for (const part of others) this.#giveUp(stripe, part);
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
    return { index, group: name, tenantTag: this.tenantTag, generation };
  }

  /** Whether the claimed places are still this column's: a shard that dies takes them away. */
  #holds(claim: Claim): boolean {
    return claim.stripe.epoch === claim.epoch && this.core.map.isCurrent(claim.node, claim.serial);
  }

  /** Gives a claim up. Only now may its slots go to another column: until now the runtime was writing there. */
  #abandon(claim: Claim): void {
    const { stripe, epoch, node } = claim;
    if (this.#holds(claim)) {
      if (!claim.mending) this.core.remove(node);
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

  /** Whoever writes a part writes no more: from now on only what is in flight keeps its slot. */
  #letGo({ stripe, epoch }: Claim, { group, slot, place }: ClaimedPart): void {
    const owner = stripe.groups[group] as StripeGroup;
    owner.letGo(slot, epoch);
    owner.givePlace(place, epoch);
  }

  /**
   * Has the runtime write all parts of a column. Answers whether it had those that every column needs; others that it had
   * not are taken out of the claim.
   */
  #write(source: PieceSource, claim: Claim): boolean | Promise<boolean> {
    for (let index = 0; index < claim.parts.length; index += 1) {
      const written = this.#writePart(source, claim, claim.parts[index] as ClaimedPart);
      if (typeof written !== 'boolean') return this.#writeRest(source, claim, index, written);
      if (written) continue;
      if (!this.#canLack(claim, index)) return false;
      index -= 1;
    }
    return claim.parts.length > 0;
  }

  /** Goes on with a part that the source takes its time for. */
  async #writeRest(source: PieceSource, claim: Claim, from: number, first: Promise<boolean>): Promise<boolean> {
    let written: boolean | Promise<boolean> = first;
    for (let index = from; ; ) {
      if (await written) index += 1;
      else if (!this.#canLack(claim, index)) return false;
      if (index >= claim.parts.length) return claim.parts.length > 0;
      written = this.#writePart(source, claim, claim.parts[index] as ClaimedPart);
    }
  }

  /** Takes a part out of a claim that the column can do without. Answers false where it cannot. */
  #canLack(claim: Claim, index: number): boolean {
    const part = claim.parts[index] as ClaimedPart;
    if (this.core.settings.groups[part.group]?.keepsAll) return false;
    // Removed meanwhile: the whole claim is given up, which sees to what has been written.
    if (!this.#holds(claim)) return false;
    claim.parts.splice(index, 1);
    this.core.dropPart(claim.node, part.group);
    this.#letGo(claim, part);
    return true;
  }

  /** Answers whether the runtime had the part. */
  #writePart(source: PieceSource, claim: Claim, { group, place }: ClaimedPart): boolean | Promise<boolean> {
    const owner = claim.stripe.groups[group] as StripeGroup;
    // It lies where it is sent from.
    if (owner.placedByRuntime) return true;
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

  /** Sends written columns and publishes those that every shard has stored. Answers how many. */
  async #send(stripe: Stripe, written: readonly Claim[], deadlineMs: number, last: boolean): Promise<number> {
    const claims = written.filter((claim) => {
      const holds = this.#holds(claim);
      if (!holds) this.#abandon(claim);
      return holds;
    });
    if (claims.length === 0) return 0;
    const { groups } = stripe;
    // All groups are on their way before any is waited for.
    const finished: Promise<BatchOutcome>[] = [];
    for (let group = 0; group < groups.length; group += 1) {
      finished.push(this.#sendGroup(groups[group] as StripeGroup, group, claims, deadlineMs, last));
    }
    // In flight now, which keeps the slots as well.
    for (const claim of claims) for (const part of claim.parts) this.#letGo(claim, part);
    const outcomes =
      finished.length === 1 ? [await (finished[0] as Promise<BatchOutcome>)] : await Promise.all(finished);
    return this.#settle(claims, outcomes);
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
      const { parts, generation } = claims[item] as Claim;
      const part = partOf(parts, group);
      if (!part) continue;
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
      tenantTag: this.tenantTag,
      deadlineMs,
      // Looking for one keeps the others from being sent.
      awaited: last && group === this.core.settings.groups.length - 1,
    });
  }

  /** Makes visible what has been stored in every group that needs it, and takes back the rest. Answers how many columns. */
  #settle(claims: readonly Claim[], outcomes: readonly BatchOutcome[]): number {
    const { core } = this;
    const { map } = core;
    const next = outcomes.map(() => 0);
    let stored = 0;
    for (const claim of claims) {
      const { node, serial, parts, mending } = claim;
      let whole = true;
      const failed: number[] = [];
      for (let index = 0; index < parts.length; index += 1) {
        const { group } = parts[index] as ClaimedPart;
        const item = next[group] as number;
        next[group] = item + 1;
        if (outcomes[group]?.[item] === Status.ok) continue;
        if (core.settings.groups[group]?.keepsAll) whole = false;
        else failed.push(group);
      }
      if (!map.isCurrent(node, serial)) continue;
      if (!whole) {
        core.remove(node);
        continue;
      }
      for (const group of failed) core.dropPart(node, group);
      for (let index = 0; index < parts.length; index += 1) {
        const { group, needed } = parts[index] as ClaimedPart;
        if (core.settings.groups[group]?.keepsAll || failed.includes(group)) continue;
        map.confirmPart(node, group);
        core.countEvicted(group, 1);
        core.windowOf(node, group).add(node, needed);
      }
      if (mending) continue;
      map.publish(node);
      stored += 1;
    }
    for (let group = 0; core.settings.groups[group]?.keepsAll; group += 1) core.countEvicted(group, stored);
    return stored;
  }

  /** Makes the tip the last column of this sequence that is in the map, and answers how many columns that is. */
  #findTip(): number {
    const { map } = this.core;
    if (!map.isCurrent(this.#tip, this.#tipSerial) || !map.isStored(this.#tip)) {
      const path: Node[] = [];
      const root = map.root(this.namespace);
      const columns = map.walk(root, this.#tokens.subarray(0, this.#length), 0, this.#tipColumns, path);
      this.#setTip(path.at(-1) ?? root, columns);
    }
    return this.#tipColumns;
  }

  #setTip(node: Node, columns: number): void {
    this.#tip = node;
    this.#tipSerial = this.core.map.serial(node);
    this.#tipColumns = columns;
  }

  #checkOpen(): void {
    if (this.#closed) throw localError('KVSS_CLOSED', 'the sequence is closed');
  }
}
