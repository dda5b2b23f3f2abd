import { localError } from '../common/errors.js';
import { hashText } from '../common/hash_text.js';
import { PromptFingerprints } from './accounting/prompt_fingerprints.js';
import { type Claim, ColumnWriter } from './column_writer.js';
import { type ContentSpan, SpanList } from './contents.js';
import type { DriverCore } from './driver_core.js';
import { checkKeys } from './driver_options.js';
import type { Hit } from './hit.js';
import type { Group } from './model.js';
import { NONE, type Node } from './prefix_map.js';
import type { PieceSource } from './runtime.js';
import type { Stripe } from './stripe.js';
import { StripeGroup } from './stripe_group.js';
import type { Tenant } from './tenant.js';

/** How an evict ended. */
export interface EvictResult {
  /** Columns that were stored now, on every shard. */
  stored: number;
  /** Columns that the cache had already, or that another sequence is storing now. */
  present: number;
  /** Full columns that are not in the cache: no room, the runtime had them no more, or a shard failed. */
  dropped: number;
  /** Columns with proposed tokens that are stored now and that nobody can find before a verdict accepts all of them. */
  ahead: number;
}

const NO_OPTIONS: MatchOptions = {};
const MATCH_OPTIONS: Readonly<Record<keyof MatchOptions, true>> = { spans: true, storeUpTo: true, protectTokens: true };

/** What a prompt is besides its tokens; see Sequence.match. */
export interface MatchOptions {
  /** Tokens of the prompt that stand for something else, such as an image. */
  spans?: readonly ContentSpan[];
  /** Tokens from the start of the prompt of which columns may be stored. All if left out. */
  storeUpTo?: number;
  /** Tokens from the start of the prompt of which columns go last when room is needed. 0 if left out. */
  protectTokens?: number;
}

// Columns that are written before they are sent, so that shards work while the runtime writes the next ones.
const COLUMNS_PER_BATCH = 128;
const NO_TOKENS = new Uint32Array(0);

/** A column that holds proposed tokens: written ahead, in the map only when a verdict has accepted all of them. */
interface AheadColumn {
  readonly claim: Claim;
  stored: boolean;
}

/** What a batch of an evict came to. */
interface BatchEnd {
  next: number;
  known: number;
  complete: boolean;
  full: StripeGroup | undefined;
}

/**
 * One conversation of one tenant, as a growing list of verified tokens. Match a prompt, refill what is cached, let the
 * runtime compute the rest, evict the full columns, append what was decoded, evict again.
 *
 * Only append tokens that the target model has confirmed: whatever is full becomes visible to later requests of the
 * tenant. Tokens of a draft that wait for their verdict are proposed: what is full of them may be written ahead, and
 * nobody finds it before they are verified.
 */
export class Sequence {
  #tokens: Uint32Array = NO_TOKENS;
  /** Verified tokens. */
  #length = 0;
  /** Verified and proposed tokens. */
  #proposedLength = 0;
  #spans: SpanList | undefined;
  readonly #root: Node;
  readonly #fingerprints: PromptFingerprints;
  /** Tokens of the prompt that may be stored, as the caller wants it. */
  #storeUpTo = Number.POSITIVE_INFINITY;
  /** Columns of the prompt that are to go last. */
  #protectColumns = 0;
  readonly #writer: ColumnWriter;
  /** Columns written ahead, in order, the first one that of the first proposed token. */
  #ahead: AheadColumn[] = [];
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
    private readonly tenant: Tenant,
    namespace: string,
    adapter: string,
  ) {
    this.#root = core.adopt(tenant, namespace, adapter);
    this.#writer = new ColumnWriter(core, tenant, this.#root);
    this.#fingerprints = new PromptFingerprints(hashText(adapter), (column) =>
      hashText(this.#spans?.spellingOf(column) ?? ''),
    );
    this.#tip = this.#root;
    this.#tipSerial = 0;
  }

  /** Verified tokens so far. */
  get length(): number {
    return this.#length;
  }

  /** Tokens that wait for a verdict. */
  get proposedTokens(): number {
    return this.#proposedLength - this.#length;
  }

  /** Full columns of verified tokens. */
  get fullColumns(): number {
    return Math.floor(this.#length / this.core.map.columnTokens);
  }

  /**
   * Begins a prompt: finds and pins its longest cached prefix. Takes no round trip and waits for nothing. The tokens
   * are copied. `spans`: tokens that stand for something else, such as an image; their digests are part of what has to be
   * the same. `storeUpTo`: tokens from the start of the prompt of which columns may be stored, such as the head that
   * prompts share; what the user typed then stays out. `protectTokens`: tokens from the start of the prompt of which columns
   * go only when nothing else can make room, such as a system prompt and its tools. Throws KVSS_BAD_INPUT for spans that are
   * not within the prompt, and while an evict of this sequence runs; KVSS_CLOSED after close().
   */
  match(prompt: Uint32Array, options: MatchOptions = NO_OPTIONS): Hit {
    this.#checkOpen();
    if (this.#evicting > 0) throw localError('KVSS_BAD_INPUT', 'match: wait for the evict of this sequence first');
    checkTokens(prompt, 'match');
    // A key that is misspelt may be a restriction.
    if (options !== NO_OPTIONS) checkKeys(options, MATCH_OPTIONS, 'match');
    const { storeUpTo = Number.POSITIVE_INFINITY, protectTokens = 0 } = options;
    if (!(storeUpTo >= 0)) throw localError('KVSS_BAD_INPUT', `storeUpTo: ${storeUpTo} is no number of tokens`);
    if (!(protectTokens >= 0))
      throw localError('KVSS_BAD_INPUT', `protectTokens: ${protectTokens} is no number of tokens`);
    const spans = this.#spansOf(options.spans, 0, prompt.length, undefined);
    this.#storeUpTo = storeUpTo;
    this.#protectColumns = Math.floor(protectTokens / this.core.map.columnTokens);
    this.#dropAhead();
    this.#spans = spans;
    this.#tokens = prompt.slice();
    this.#length = prompt.length;
    this.#proposedLength = prompt.length;
    const { map } = this.core;
    this.#fingerprints.cut(0);
    const hit = this.core.match({
      tenant: this.tenant,
      root: this.#root,
      tokens: prompt,
      contents: spans?.numbersIn(map.contents),
      fingerprints: this.#fingerprints,
      storeColumns: this.#storeColumns,
      protectColumns: this.#protectColumns,
    });
    this.#setTip(hit.lastNode ?? this.#root, hit.columns);
    this.#branchColumns = hit.wholeColumns;
    return hit;
  }

  /**
   * Adds verified tokens behind the others; `offset` of spans counts from the first of them. Throws KVSS_BAD_INPUT while
   * tokens wait for a verdict.
   */
  append(tokens: Uint32Array, options: { spans?: readonly ContentSpan[] } = {}): void {
    this.#checkOpen();
    if (this.proposedTokens > 0) throw localError('KVSS_BAD_INPUT', 'append: proposed tokens wait for their verdict');
    this.#spans = this.#spansOf(options.spans, this.#length, tokens.length, this.#spans);
    this.#put(tokens);
    this.#length = this.#proposedLength;
  }

  /**
   * Adds tokens that a draft proposes, behind the verified ones and those that it has proposed before. `evict` may write
   * columns of them ahead, and nobody finds those.
   */
  propose(tokens: Uint32Array): void {
    this.#checkOpen();
    this.#put(tokens);
  }

  /**
   * The verdict of the target on all proposed tokens: the first `accepted` are verified from now on, the others never were.
   * `correction`: verified tokens that the target puts in their place. Columns that were written ahead and hold only
   * accepted tokens become visible, in all groups, draft included; the slots of the others are free for the next ones. Takes
   * the same time whatever the length of the sequence. Throws KVSS_BAD_INPUT for more tokens than were proposed.
   */
  verify(accepted: number, correction: Uint32Array = NO_TOKENS): void {
    this.#checkOpen();
    if (!Number.isInteger(accepted) || accepted < 0 || accepted > this.proposedTokens) {
      throw localError('KVSS_BAD_INPUT', `verify: ${accepted} of ${this.proposedTokens} proposed tokens`);
    }
    this.#length += accepted;
    this.#proposedLength = this.#length;
    const { fullColumns } = this;
    const kept = this.#ahead.filter(({ claim }) => claim.index < fullColumns);
    for (const { claim } of this.#ahead) if (claim.index >= fullColumns) this.#writer.discard(claim);
    this.#ahead = kept;
    if (this.#evicting === 0) this.#publishAhead();
    this.#put(correction);
    this.#length = this.#proposedLength;
  }

  /**
   * Stores every full column that the cache has not got, from the first missing one, and writes columns with proposed
   * tokens ahead. Resolves when they are visible to others, or have failed. Calls wait for each other. `deadlineMs`: in place of
   * the driver's. Rejects only with what the source throws; what was written before that is kept. Throws KVSS_BAD_INPUT for
   * a source that does not fit the runtime's memory, and KVSS_CLOSED after close().
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

  /** Ends the sequence. What it has stored stays in the cache; what waits for a verdict goes. */
  close(): void {
    this.#closed = true;
    this.#dropAhead();
    this.#tokens = NO_TOKENS;
    this.#length = 0;
    this.#proposedLength = 0;
  }

  async #evict(source: PieceSource, deadlineMs: number): Promise<EvictResult> {
    const { map, stats, accounting } = this.core;
    const started = performance.now();
    const all = this.fullColumns;
    const full = Math.min(all, this.#storeColumns);
    // close() drops the tokens, and what has begun has to go on with those that it began with.
    const tokens = this.#tokens;
    const proposed = Math.min(Math.floor(this.#proposedLength / map.columnTokens), this.#storeColumns);
    this.#fingerprints.extend(accounting.fingerprint, tokens, map.columnTokens, all, all);
    const from = this.#findTip();
    // Held until the end: the column that the new ones continue must not make room for them.
    const { tip, serial } = { tip: this.#tip, serial: this.#tipSerial };
    map.pin(tip);
    const running: Promise<readonly Claim[]>[] = [];
    const budget = { leftMs: deadlineMs };
    let present = from;
    let stored = 0;
    try {
      const send = (stripe: Stripe, claims: readonly Claim[], last: boolean) =>
        running.push(this.#store(stripe, claims, budget.leftMs, last));
      present += await this.#inBatches(from, full, budget, (column) =>
        this.#storeBatch(source, tokens, column, full, send),
      );
    } finally {
      for (const claims of await Promise.all(running)) {
        for (const { mending } of claims) if (!mending) stored += 1;
      }
      map.unpin(tip, serial);
      stats.columnsEvicted += stored;
      this.#findTip();
      this.#publishAhead();
    }
    // What may not be stored counts as well: it will not be found.
    const dropped = Math.max(0, all - present - stored);
    stats.columnsDropped += dropped;
    if (dropped > 0) this.core.noteQuota(this.tenant, this.#root, this.#fingerprints, present + stored, full);
    const whole = present + stored === full && full === all;
    const ahead = whole ? await this.#writeAhead(source, full, proposed, budget) : 0;
    const result = { stored, present, dropped, ahead };
    accounting.evicted(this.tenant.account, result, performance.now() - started);
    return result;
  }

  /**
   * Goes through columns in batches, and waits where all places for bytes on their way are taken. Ends early where a batch
   * does. Answers how many columns were known already.
   */
  async #inBatches(
    from: number,
    to: number,
    budget: { leftMs: number },
    batchAt: (column: number) => Promise<BatchEnd>,
  ): Promise<number> {
    const { clock } = this.core;
    let known = 0;
    for (let column = from; column < to; ) {
      const batch = await batchAt(column);
      known += batch.known;
      if (batch.full) {
        // What is on its way makes room when it has arrived; where nothing arrives, nothing more is sent.
        if (!batch.full.usable) break;
        const asked = clock.now();
        // Of all batches together. The source's own time does not count.
        await batch.full.placeFreed(budget.leftMs);
        budget.leftMs -= clock.now() - asked;
        if (budget.leftMs <= 0) break;
      } else if (!batch.complete) {
        break;
      }
      column = batch.next;
    }
    return known;
  }

  /** Claims, writes and sends up to a batch of columns, beginning with `column`, which continues the tip. */
  async #storeBatch(
    source: PieceSource,
    tokens: Uint32Array,
    column: number,
    last: number,
    send: (stripe: Stripe, claims: readonly Claim[], last: boolean) => void,
  ): Promise<BatchEnd> {
    const { map } = this.core;
    const writer = this.#writer;
    const needed = this.#neededBefore(last);
    const batches = new Map<Stripe, Claim[]>();
    const end = Math.min(last, column + COLUMNS_PER_BATCH);
    let known = 0;
    let cursor = column;
    let full: StripeGroup | undefined;
    try {
      for (; cursor < end; cursor += 1) {
        // While the runtime wrote, a shard may have died and taken the columns before this one along, or a policy come.
        if (!map.isCurrent(this.#tip, this.#tipSerial) || cursor >= this.#storeColumns) break;
        const existing = this.#childOfTip(tokens, cursor);
        const claim =
          existing === NONE
            ? this.#claimNext(source, tokens, cursor, needed)
            : writer.claimMissing(source, existing, cursor, needed);
        if (claim instanceof StripeGroup) {
          full = claim;
          break;
        }
        if (existing !== NONE) {
          known += 1;
          this.#setTip(existing, cursor + 1);
          if (!claim) continue;
        }
        if (!claim) break;
        const outcome = this.#written(source, claim);
        if (!(typeof outcome === 'boolean' ? outcome : await outcome)) {
          if (claim.mending) continue;
          break;
        }
        const batch = batches.get(claim.stripe);
        if (batch) batch.push(claim);
        else batches.set(claim.stripe, [claim]);
        if (!writer.holds(claim)) break;
        if (!claim.mending) this.#setTip(claim.node, cursor + 1);
      }
    } finally {
      // Also where the source threw: what was written before that is good and must not stay half-way.
      for (const [stripe, claims] of batches) send(stripe, claims, cursor === last);
    }
    return { next: cursor, known, complete: cursor === end, full };
  }

  /** Room for the column that continues the tip, and enters it in the map. */
  #claimNext(
    source: PieceSource,
    tokens: Uint32Array,
    column: number,
    needed: (group: number, column: number) => boolean,
  ): Claim | StripeGroup | undefined {
    const claim = this.#claimBehindTip(source, column, needed);
    if (claim && !(claim instanceof StripeGroup)) {
      this.#enter(claim, tokens);
    }
    return claim;
  }

  #claimBehindTip(
    source: PieceSource,
    column: number,
    needed: (group: number, column: number) => boolean,
  ): Claim | StripeGroup | undefined {
    const { map } = this.core;
    const { tip, serial } = { tip: this.#tip, serial: this.#tipSerial };
    // The tip may be a leaf, and must not be what makes the room.
    map.pin(tip);
    try {
      return this.#writer.claim(source, column, needed);
    } finally {
      map.unpin(tip, serial);
    }
  }

  /** Has the runtime write a claimed column; gives the claim up where it has not got it. */
  #written(source: PieceSource, claim: Claim): boolean | Promise<boolean> {
    let done = false;
    try {
      const outcome = this.#writer.write(source, claim);
      if (typeof outcome !== 'boolean') {
        done = true;
        return this.#writtenLater(outcome, claim);
      }
      done = outcome;
      return outcome;
    } finally {
      if (!done) this.#writer.abandon(claim);
    }
  }

  async #writtenLater(outcome: Promise<boolean>, claim: Claim): Promise<boolean> {
    let written = false;
    try {
      written = await outcome;
    } finally {
      if (!written) this.#writer.abandon(claim);
    }
    return written;
  }

  /** Sends written columns and makes those visible that every shard has stored. */
  async #store(stripe: Stripe, claims: readonly Claim[], deadlineMs: number, last: boolean): Promise<readonly Claim[]> {
    const stored = await this.#writer.send(stripe, claims, deadlineMs, last);
    // Others have had their turns since the shards were heard: a column may have gone, and its number be another's.
    const kept = stored.filter((claim) => this.#writer.holds(claim));
    for (const claim of kept) this.#writer.publish(claim);
    return kept;
  }

  /** Writes columns with proposed tokens, as far as no verdict comes meanwhile. Answers how many are stored. */
  async #writeAhead(source: PieceSource, from: number, to: number, budget: { leftMs: number }): Promise<number> {
    const { map } = this.core;
    const writer = this.#writer;
    const first = from + this.#ahead.length;
    if (first >= to || this.#tipColumns !== from) return 0;
    const needed = this.#neededBefore(to);
    const { tip, serial } = { tip: this.#tip, serial: this.#tipSerial };
    // What will be continued must not make room.
    map.pin(tip);
    const running: Promise<readonly Claim[]>[] = [];
    let stored = 0;
    try {
      for (let column = first; column < to; column += 1) {
        // A verdict has come, or the sequence has ended.
        if (this.#proposedLength < (column + 1) * map.columnTokens || from + this.#ahead.length !== column) break;
        if (column >= this.#storeColumns) break;
        // What it would continue has gone meanwhile, and its number may be another column's.
        if (!map.isCurrent(this.#tip, this.#tipSerial)) break;
        const claim = this.#claimBehindTip(source, column, needed);
        if (!claim || claim instanceof StripeGroup) break;
        const ahead: AheadColumn = { claim, stored: false };
        this.#ahead.push(ahead);
        const outcome = this.#written(source, claim);
        if (!(typeof outcome === 'boolean' ? outcome : await outcome)) break;
        running.push(
          writer.send(claim.stripe, [claim], budget.leftMs, column === to - 1).then((claims) => {
            ahead.stored = claims.length > 0;
            return claims;
          }),
        );
      }
    } finally {
      for (const claims of await Promise.all(running)) stored += claims.length;
      map.unpin(tip, serial);
      // What could not be stored, and what should have followed it, will have to be evicted when it has been verified.
      const failed = this.#ahead.findIndex((ahead) => !ahead.stored);
      if (failed >= 0) for (const { claim } of this.#ahead.splice(failed)) writer.discard(claim);
      this.#publishAhead();
    }
    return stored;
  }

  /** Makes columns visible that were written ahead and have been verified. */
  #publishAhead(): void {
    const { stats } = this.core;
    for (let ahead = this.#ahead[0]; ahead; ahead = this.#ahead[0]) {
      const { claim, stored } = ahead;
      if (claim.index >= this.fullColumns || (!stored && this.#writer.holds(claim))) return;
      this.#ahead.shift();
      const allowed = claim.index < this.#storeColumns;
      const follows = allowed && this.#findTip() === claim.index && this.#writer.holds(claim);
      const existing = follows ? this.#childOfTip(this.#tokens, claim.index) : NONE;
      if (!follows || existing !== NONE) {
        // What it continues is gone, or another sequence was faster.
        this.#writer.discard(claim);
        if (existing !== NONE) this.#setTip(existing, claim.index + 1);
        continue;
      }
      this.#enter(claim, this.#tokens);
      this.#writer.publish(claim);
      void this.#writer.record(claim);
      stats.columnsEvicted += 1;
      this.#setTip(claim.node, claim.index + 1);
    }
    // What is written ahead counts for nobody before it is there.
    this.core.enforceQuota(this.tenant);
  }

  /** Enters a claimed column in the map behind the tip. */
  #enter(claim: Claim, tokens: Uint32Array): void {
    const { index } = claim;
    const { accounting, map } = this.core;
    const fingerprints = this.#fingerprints;
    fingerprints.extend(accounting.fingerprint, tokens, map.columnTokens, index + 1, index + 1);
    const spelling = this.#spans?.spellingOf(index) ?? '';
    this.#writer.enter(claim, this.#tip, tokens, spelling, fingerprints.low(index), fingerprints.high(index));
    if (index < this.#protectColumns) map.protect(claim.node);
  }

  /** Columns of the prompt that may be stored. */
  get #storeColumns(): number {
    const { policy } = this.tenant;
    if (policy.noStore) return 0;
    const tokens = Math.min(policy.storeUpTo, this.#storeUpTo);
    return tokens === Number.POSITIVE_INFINITY ? tokens : Math.floor(tokens / this.core.map.columnTokens);
  }

  /** Nothing that was written ahead will be verified any more. */
  #dropAhead(): void {
    for (const { claim } of this.#ahead.splice(0)) this.#writer.discard(claim);
  }

  /** The column that continues the tip with the tokens at a position; NONE where there is none. */
  #childOfTip(tokens: Uint32Array, column: number): Node {
    const { map } = this.core;
    const content = this.#spans === undefined ? 0 : map.contents.find(this.#spans.spellingOf(column));
    return map.child(this.#tip, tokens, column * map.columnTokens, content);
  }

  /**
   * Whether a prompt ends so near behind a column that it needs its part of a group: this one does at its end, and others
   * where they part from it.
   */
  #neededBefore(last: number): (group: number, column: number) => boolean {
    const { groups } = this.core.settings;
    const branch = this.#branchColumns;
    return (group, column) => {
      const { windowColumns } = groups[group] as Group;
      return column >= last - windowColumns || (column < branch && column >= branch - windowColumns);
    };
  }

  #spansOf(
    spans: readonly ContentSpan[] | undefined,
    from: number,
    length: number,
    before: SpanList | undefined,
  ): SpanList | undefined {
    if (spans === undefined || spans.length === 0) return before;
    const list = before ?? new SpanList(this.core.map.columnTokens);
    list.add(spans, from, length);
    return list;
  }

  /** Puts tokens behind all others. */
  #put(tokens: Uint32Array): void {
    checkTokens(tokens, 'tokens');
    const length = this.#proposedLength + tokens.length;
    if (length > this.#tokens.length) {
      const larger = new Uint32Array(Math.max(length, this.#tokens.length * 2));
      larger.set(this.#tokens.subarray(0, this.#proposedLength));
      this.#tokens = larger;
    }
    this.#tokens.set(tokens, this.#proposedLength);
    this.#proposedLength = length;
  }

  /** Makes the tip the last column of this sequence that is in the map, and answers how many columns that is. */
  #findTip(): number {
    const { map } = this.core;
    if (!map.isCurrent(this.#tip, this.#tipSerial) || !map.isStored(this.#tip)) {
      const path: Node[] = [];
      const root = this.#root;
      const tokens = this.#tokens.subarray(0, this.#length);
      const contents = this.#spans?.numbersIn(map.contents);
      const columns = map.walk(root, tokens, 0, this.#tipColumns, path, contents);
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

/** Throws KVSS_BAD_INPUT for what is no list of token numbers as they are stored. */
function checkTokens(tokens: unknown, what: string): void {
  if (!(tokens instanceof Uint32Array))
    throw localError('KVSS_BAD_INPUT', `${what}: a Uint32Array of tokens is needed`);
}
