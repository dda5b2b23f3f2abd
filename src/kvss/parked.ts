import { createHash, timingSafeEqual } from 'node:crypto';
import { nativeError } from '../binding/native.js';
import { type Clock, systemClock } from '../common/clock.js';
import { messageOf } from '../common/errors.js';
import type { Shard } from './shard.js';

/** How a session moves pieces. Memory that a client could map is never given to a session whose engine maps it. */
export type SessionKind = 'rings' | 'lanes';

/** A grant that its session wants kept when it ends without a goodbye. */
export interface ParkableGrant {
  grantId: number;
  /** SHA-256 of the secret that brings it back. */
  owner: Uint8Array;
  label: string;
  ms: number;
  kind: SessionKind;
  /** User of the process that the memory was handed to. */
  uid: number;
  slots: number;
  pieceBytes: number;
  /** Bytes that it takes from the budget. */
  bytes: number;
}

/** A grant whose session has ended and whose owner may come back. */
export interface ParkedGrant extends ParkableGrant {
  shard: Shard;
  sessionId: number;
}

/** What somebody who comes back says of what is parked. */
export interface Claim {
  shard: Shard;
  secret: Uint8Array;
  label: string;
  kind: SessionKind;
  uid: number;
  pieceBytes: number;
}

export interface ParkingLimits {
  /** Longest that anything is kept; 0 for nothing at all. */
  maxMs: number;
  maxGrants: number;
  maxBytes: number;
}

/** Grants take whole pages. */
const PAGE_BYTES = 4096;
const HUGE_PAGE_BYTES = 2 ** 21;

type Log = (level: 'debug' | 'info' | 'warn', fields: object, message: string) => void;

/**
 * Memory of drivers that have gone and may come back. Whoever has the secret gets it, once. Nothing of it is worth more
 * than a driver that is there: it makes room for one, the oldest first.
 */
export class ParkedGrants {
  /** The oldest first. */
  readonly #parked: { grant: ParkedGrant; cancel: () => void }[] = [];
  readonly #underWay = new Set<Promise<unknown>>();

  constructor(
    private readonly limits: ParkingLimits,
    private readonly log: Log,
    private readonly clock: Clock = systemClock,
  ) {}

  /** What is parked, of one shard or of all. */
  of(shard?: Shard): ParkedGrant[] {
    return this.#parked.map(({ grant }) => grant).filter((grant) => !shard || grant.shard === shard);
  }

  bytes(shard?: Shard): number {
    return this.of(shard).reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Whether this would be kept at all. */
  takes(grant: ParkableGrant): boolean {
    const { maxMs, maxGrants, maxBytes } = this.limits;
    return maxMs > 0 && maxGrants > 0 && grant.bytes <= maxBytes;
  }

  /** Ends a session on a shard and keeps these of its grants. Rejects where the shard cannot. */
  park(shard: Shard, sessionId: number, grants: readonly ParkableGrant[]): Promise<void> {
    return this.#track(this.#park(shard, sessionId, grants));
  }

  /**
   * Takes what is parked out of the care of this, for the owner. Undefined where nothing is parked that the claim fits, which
   * says nothing about whether there is such an owner.
   */
  async claim({ shard, secret, label, kind, uid, pieceBytes }: Claim): Promise<ParkedGrant | undefined> {
    // Its session may just be about to end.
    await Promise.allSettled(this.#underWay);
    const owner = createHash('sha256').update(secret).digest();
    let found: ParkedGrant | undefined;
    // All are compared, so that the time that it takes tells nothing.
    for (const grant of this.of()) {
      const theirs = timingSafeEqual(owner, grant.owner);
      const fits = grant.shard === shard && grant.label === label && grant.kind === kind && grant.uid === uid;
      if (theirs && fits) found = grant;
    }
    if (!found) return undefined;
    if (found.pieceBytes === pieceBytes) {
      this.#forget(found);
      return found;
    }
    // The owner has another model by now and can do nothing with it.
    await this.drop(found, 'its owner wants other pieces');
    return undefined;
  }

  /** Drops the oldest on a shard, where that leads to `bytes` being free. Answers false where it does not. */
  async makeRoom(shard: Shard, bytes: number): Promise<boolean> {
    const waited = this.#underWay.size > 0;
    await Promise.allSettled(this.#underWay);
    const { freeBytes, hugePages } = shard.native.memory();
    const page = hugePages ? HUGE_PAGE_BYTES : PAGE_BYTES;
    const wanted = Math.ceil(bytes / page) * page;
    if (waited && wanted <= freeBytes) return true;
    const [oldest] = this.of(shard);
    if (!oldest || wanted > freeBytes + this.bytes(shard)) return false;
    await this.drop(oldest, 'a driver needs the memory');
    return true;
  }

  /** Scrubs what is parked. Never rejects. */
  drop(grant: ParkedGrant, reason: string): Promise<void> {
    this.#forget(grant);
    return this.#track(this.#drop(grant, reason));
  }

  async clear(reason: string): Promise<void> {
    await Promise.allSettled(this.#underWay);
    await Promise.all(this.of().map((grant) => this.drop(grant, reason)));
  }

  async #park(shard: Shard, sessionId: number, grants: readonly ParkableGrant[]): Promise<void> {
    const kept = await shard.native.parkSession(
      sessionId,
      grants.map(({ grantId }) => grantId),
    );
    for (const wanted of grants) {
      if (!kept.includes(wanted.grantId)) continue;
      const grant: ParkedGrant = { ...wanted, shard, sessionId };
      const ms = Math.min(wanted.ms, this.limits.maxMs);
      // A driver that dies again and again keeps one copy.
      const before = this.of(shard).find((other) => sameName(other, grant));
      const cancel = this.clock.schedule(ms, () => void this.drop(grant, 'its owner has not come back'));
      this.#parked.push({ grant, cancel });
      this.log('info', { ...fieldsOf(grant), ms }, 'parked');
      if (before) void this.drop(before, 'its owner has parked another one');
    }
    while (this.#parked.length > this.limits.maxGrants || this.bytes() > this.limits.maxBytes) {
      void this.drop((this.#parked[0] as { grant: ParkedGrant }).grant, 'more is parked than may be');
    }
  }

  async #drop(grant: ParkedGrant, reason: string): Promise<void> {
    try {
      await grant.shard.native.dropParked(grant.sessionId, grant.grantId);
      this.log('info', { ...fieldsOf(grant), reason }, 'parked memory scrubbed');
    } catch (thrown) {
      this.log('warn', { ...fieldsOf(grant), error: messageOf(nativeError(thrown)) }, 'cannot scrub parked memory');
    }
  }

  #forget(grant: ParkedGrant): void {
    const at = this.#parked.findIndex((entry) => entry.grant === grant);
    if (at >= 0) for (const { cancel } of this.#parked.splice(at, 1)) cancel();
  }

  #track<T>(work: Promise<T>): Promise<T> {
    this.#underWay.add(work);
    const done = () => this.#underWay.delete(work);
    work.then(done, done);
    return work;
  }
}

function sameName(a: ParkableGrant, b: ParkableGrant): boolean {
  return a.kind === b.kind && a.uid === b.uid && a.label === b.label && timingSafeEqual(a.owner, b.owner);
}

/** What a log may say of it: neither owner nor label. */
function fieldsOf({ shard, sessionId, grantId, bytes }: ParkedGrant): object {
  return { session: sessionId, shard: shard.index, grant: grantId, bytes };
}
