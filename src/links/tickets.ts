import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { TICKET_BYTES } from '../proto/frames.js';

const digest = (secret: string | Uint8Array) => createHash('sha256').update(secret).digest();

/** Compares two secrets in a time that tells nothing about them. */
export function sameSecret(a: string | Uint8Array, b: string | Uint8Array): boolean {
  return timingSafeEqual(digest(a), digest(b));
}

/** Tickets of one session: whoever shows one may open lanes of the session on one shard. */
export class Tickets {
  readonly #issued: { ticket: Buffer; shard: number; expiresMs: number }[] = [];

  issue(shard: number, lifetimeMs: number): Uint8Array {
    const now = performance.now();
    // Expired ones go first, so that a session that asks often does not grow.
    for (let index = this.#issued.length - 1; index >= 0; index -= 1) {
      if ((this.#issued[index]?.expiresMs ?? 0) <= now) this.#issued.splice(index, 1);
    }
    const ticket = randomBytes(TICKET_BYTES);
    this.#issued.push({ ticket, shard, expiresMs: now + lifetimeMs });
    return ticket;
  }

  opens(ticket: Uint8Array, shard: number): boolean {
    const now = performance.now();
    return this.#issued.some((each) => each.shard === shard && each.expiresMs > now && sameSecret(each.ticket, ticket));
  }
}
