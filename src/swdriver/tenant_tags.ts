import { createHmac, randomBytes } from 'node:crypto';
import { localError } from '../common/errors.js';

/**
 * Gives every tenant a 64-bit tag, which is all that a shard learns of it. Tags are keyed, so that they tell nothing
 * outside this driver, never zero, and never shared: a collision is refused and not overlooked.
 */
export class TenantTags {
  readonly #key: Buffer;
  readonly #tags = new Map<string, bigint>();
  readonly #owners = new Map<bigint, string>();

  constructor(key: Buffer = randomBytes(32)) {
    this.#key = key;
  }

  tagOf(isolationId: string): bigint {
    const known = this.#tags.get(isolationId);
    if (known !== undefined) return known;
    const tag = createHmac('sha256', this.#key).update(isolationId, 'utf8').digest().readBigUInt64LE(0) || 1n;
    if (this.#owners.has(tag)) {
      throw localError('KVSS_BAD_INPUT', 'two tenants have the same tag under this key; choose another key');
    }
    this.#tags.set(isolationId, tag);
    this.#owners.set(tag, isolationId);
    return tag;
  }
}
