import { localError } from '../common/errors.js';
import { copyPiece } from '../links/copy_piece.js';
import { Opcode, Status } from '../proto/generated.js';
import type { DriverCore } from './driver_core.js';
import type { Hit } from './hit.js';
import { NONE, type Node } from './prefix_map.js';
import { type ColumnRef, checkLength, checkPlace, type PieceSource } from './runtime.js';
import { Stripe } from './stripe.js';

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

/** A place for one column: entered in the map, not visible to matches. The slot is ours until letGo. */
interface Claim {
  stripe: Stripe;
  epoch: number;
  slot: number;
  /** Where the runtime writes the bytes. */
  place: number;
  node: Node;
  serial: number;
  ref: ColumnRef;
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
  ): Promise<{ next: number; known: number; complete: boolean; full: Stripe | undefined }> {
    const { map } = this.core;
    const batches = new Map<Stripe, Claim[]>();
    const end = Math.min(last, column + COLUMNS_PER_BATCH);
    let known = 0;
    let cursor = column;
    let full: Stripe | undefined;
    try {
      for (; cursor < end; cursor += 1) {
        // While the runtime wrote, a shard may have died and taken the columns before this one along.
        if (!map.isCurrent(this.#tip, this.#tipSerial)) break;
        const existing = map.child(this.#tip, tokens, cursor * map.columnTokens);
        if (existing !== NONE) {
          known += 1;
          this.#setTip(existing, cursor + 1);
          continue;
        }
        const claim = this.#claim(source, tokens, cursor);
        if (!claim) break;
        if (claim instanceof Stripe) {
          full = claim;
          break;
        }
        let written = false;
        try {
          const outcome = this.#write(source, claim);
          written = typeof outcome === 'boolean' ? outcome : await outcome;
        } finally {
          if (!written) this.#abandon(claim);
        }
        if (!written) break;
        const batch = batches.get(claim.stripe);
        if (batch) batch.push(claim);
        else batches.set(claim.stripe, [claim]);
        if (!this.#holds(claim)) break;
        this.#setTip(claim.node, cursor + 1);
      }
    } finally {
      // Also where the source threw: what was written before that is good and must not stay half-way.
      for (const [stripe, claims] of batches) send(stripe, claims, cursor === last);
    }
    return { next: cursor, known, complete: cursor === end, full };
  }

  /**
   * Finds room for the column that continues the tip and enters it in the map, invisible as yet. Answers with the stripe
   * where all places for bytes on their way are taken, with nothing where there is no room or the runtime has the column
   * no more.
   */
  #claim(source: PieceSource, tokens: Uint32Array, column: number): Claim | Stripe | undefined {
    const { core } = this;
    const { map } = core;
    // The tip may be a leaf, and must not be what makes the room.
    map.pin(this.#tip);
    const room = core.claimSlot();
    map.unpin(this.#tip, this.#tipSerial);
    if (!room) return undefined;
    const { stripe, slot } = room;
    const generation = core.nextGeneration();
    const ref: ColumnRef = { index: column, tenantTag: this.tenantTag, generation };
    const byRuntime = stripe.placedByRuntime && 'place' in source;
    const place = byRuntime ? this.#askPlace(source, ref, stripe, slot) : stripe.takePlace(slot);
    if (place === undefined) {
      stripe.letGo(slot, stripe.epoch);
      stripe.giveSlot(slot);
      return byRuntime ? undefined : stripe;
    }
    const node = map.insert(this.#tip, tokens, column * map.columnTokens, stripe.index, slot, generation);
    return { stripe, epoch: stripe.epoch, slot, place, node, serial: map.serial(node), ref };
  }

  /** Asks the runtime where a column lies. */
  #askPlace(
    source: { place(column: ColumnRef): number | undefined },
    ref: ColumnRef,
    stripe: Stripe,
    slot: number,
  ): number | undefined {
    try {
      const place = source.place(ref);
      return place === undefined ? undefined : checkPlace(place, this.core.settings.places);
    } catch (thrown) {
      stripe.letGo(slot, stripe.epoch);
      stripe.giveSlot(slot);
      throw thrown;
    }
  }

  /** Whether the claimed place is still this column's: a shard that dies takes it away. */
  #holds(claim: Claim): boolean {
    return claim.stripe.epoch === claim.epoch && this.core.map.isCurrent(claim.node, claim.serial);
  }

  /** Gives a claim up. Only now may its slot go to another column: until now the runtime was writing there. */
  #abandon(claim: Claim): void {
    const { stripe, epoch, slot } = claim;
    if (this.#holds(claim)) {
      this.core.remove(claim.node);
    } else if (stripe.epoch === epoch) {
      // Removed while it was being written, perhaps because its tenant was forgotten: nothing of it may stay. What lies
      // in the runtime's memory is the runtime's.
      if (!stripe.placedByRuntime) for (const piece of stripe.pieces(claim.place)) piece.fill(0);
    }
    stripe.letGo(slot, epoch);
    stripe.givePlace(claim.place, epoch);
  }

  /** Answers whether the runtime had the column. */
  #write(source: PieceSource, claim: Claim): boolean | Promise<boolean> {
    // It lies where it is sent from.
    if (claim.stripe.placedByRuntime) return true;
    const pieces = claim.stripe.pieces(claim.place);
    if ('write' in source) return source.write(claim.ref, pieces);
    if ('place' in source) {
      const place = source.place(claim.ref);
      if (place === undefined) return false;
      const bytes = claim.stripe.runtimePieces(checkPlace(place, this.core.settings.places));
      for (const [shard, piece] of pieces.entries()) copyPiece(piece, bytes[shard] as Uint8Array);
      return true;
    }
    for (const [shard, piece] of pieces.entries()) {
      const bytes = source.locate(claim.ref, shard);
      if (!bytes) return false;
      checkLength(bytes, piece, shard);
      copyPiece(piece, bytes);
    }
    return true;
  }

  /** Sends written columns and publishes those that every shard has stored. Answers how many. */
  async #send(stripe: Stripe, written: readonly Claim[], deadlineMs: number, last: boolean): Promise<number> {
    const { map } = this.core;
    const claims = written.filter((claim) => {
      const holds = this.#holds(claim);
      if (!holds) this.#abandon(claim);
      return holds;
    });
    if (claims.length === 0) return 0;
    const slots = new Uint32Array(claims.length);
    const places = new Uint32Array(claims.length);
    const generations = new Float64Array(claims.length);
    for (let item = 0; item < claims.length; item += 1) {
      const claim = claims[item] as Claim;
      slots[item] = claim.slot;
      places[item] = claim.place;
      generations[item] = claim.ref.generation;
    }
    const finished = stripe.run({
      opcode: Opcode.evict,
      flags: 0,
      slots,
      places,
      generations,
      tenantTag: this.tenantTag,
      deadlineMs,
      awaited: last,
    });
    // In flight now, which keeps the slots as well.
    for (const { slot, place, epoch } of claims) {
      stripe.letGo(slot, epoch);
      stripe.givePlace(place, epoch);
    }
    const outcome = await finished;
    let stored = 0;
    for (const [item, { node, serial }] of claims.entries()) {
      if (!map.isCurrent(node, serial)) continue;
      if (outcome[item] === Status.ok) {
        map.publish(node);
        stored += 1;
      } else {
        this.core.remove(node);
      }
    }
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
