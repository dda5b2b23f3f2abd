import type { Account } from './accounting/accounts.js';
import type { Node } from './prefix_map.js';
import type { EffectivePolicy } from './tenant_policies.js';

/** A tenant as the driver serves it. */
export class Tenant {
  /** Roots of its namespaces. */
  readonly roots: Node[] = [];
  /** Bytes of its columns, stored and on their way. */
  storedBytes = 0;

  constructor(
    readonly isolationId: string,
    /** Its tag, as the shards know it. */
    readonly tag: bigint,
    public policy: EffectivePolicy,
    public account: Account,
  ) {}

  /** Whether its columns expire. */
  get expires(): boolean {
    const { lastUseSeconds, firstUseSeconds } = this.policy;
    return lastUseSeconds !== Number.POSITIVE_INFINITY || firstUseSeconds !== Number.POSITIVE_INFINITY;
  }

  /** When a column expires, in milliseconds of the clock that the times are of. */
  expiryOf(storedAt: number, usedAt: number): number {
    const { lastUseSeconds, firstUseSeconds } = this.policy;
    return Math.min(usedAt + lastUseSeconds * 1000, storedAt + firstUseSeconds * 1000);
  }
}
