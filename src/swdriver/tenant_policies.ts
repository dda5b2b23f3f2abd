import {
  checkIsolationId,
  parseTenantPolicy,
  type TenantPolicy,
  type TenantPolicyInput,
  tenantDigest,
} from '../common/tenant_policy.js';
import type { DaemonPolicies } from '../links/policy_feed.js';

/** What holds for a tenant, all sources taken together. Limits that do not exist are infinite. */
export interface EffectivePolicy {
  /** Seconds since a column was used last after which it has expired. */
  readonly lastUseSeconds: number;
  /** Seconds since it was first stored after which it has expired. */
  readonly firstUseSeconds: number;
  /** Nothing new is stored. */
  readonly noStore: boolean;
  /**
   * Whether that is only because some policies are not known as yet: what is stored already may stay then, while `noStore`
   * otherwise means that it has to go.
   */
  readonly pending: boolean;
  /** Tokens from the start of a prompt: columns that end beyond are not stored. */
  readonly storeUpTo: number;
  /** Bytes of columns that may be stored at once, all shards of a stripe together. */
  readonly quotaBytes: number;
  /** Label for metrics; `default` where there is none. */
  readonly tenantClass: string | undefined;
}

/** Hears whose policy is another one now; `all` where it may be anybody's. Ask policyOf for what it is. */
export type PolicyChangeListener = (changed: PolicyChange) => void;

export interface PolicyChange {
  /** Whether the policy of this tenant may have changed. */
  concerns(isolationId: string): boolean;
}

/** Tenants whose policy is remembered, so that a lookup of one costs no hash. */
const MAX_REMEMBERED = 16_384;

const UNLIMITED: EffectivePolicy = {
  lastUseSeconds: Number.POSITIVE_INFINITY,
  firstUseSeconds: Number.POSITIVE_INFINITY,
  noStore: false,
  pending: false,
  storeUpTo: Number.POSITIVE_INFINITY,
  quotaBytes: Number.POSITIVE_INFINITY,
  tenantClass: undefined,
};

/**
 * The tenant policies that a driver follows: its own, set from code, and those of its daemons.
 *
 * Each source has a policy for the tenant, its own or its default. Of each field the strictest holds: `noStore` if any
 * says so, the smallest storeUpTo and quota, and the shortest time of each TTL mode, so that both modes may limit at
 * once. A tenantClass is that of the driver's own policy, else that of the first daemon that has one.
 *
 * It fails closed. Where a daemon has said that it has policies, and they have not come or cannot be understood, every
 * tenant is `noStore` (and `pending`). A daemon that has gone keeps its say, because its rules were about the tenants
 * and not about its memory, until it is back with others or `forget` is called.
 */
export class TenantPolicies {
  readonly #daemons = new Map<string, { policies: DaemonPolicies; unsubscribe: () => void }>();
  readonly #own = new Map<string, TenantPolicy>();
  #ownDefault: TenantPolicy = {};
  readonly #listeners = new Set<PolicyChangeListener>();
  readonly #digests = new Map<string, string>();
  readonly #merged = new Map<string, EffectivePolicy>();

  /** What holds for a tenant now. Costs a lookup in a map. Never throws, whatever the tenant is called. */
  policyOf(isolationId: string): EffectivePolicy {
    const known = this.#merged.get(isolationId);
    if (known) return known;
    const merged = this.#merge(isolationId);
    // Names come from outside: whoever makes up many of them must not fill the memory.
    if (this.#merged.size >= MAX_REMEMBERED) this.#merged.clear();
    this.#merged.set(isolationId, merged);
    return merged;
  }

  /** Whether the policies of all daemons that have some are known. Until then every tenant is `noStore`. */
  get known(): boolean {
    for (const { policies } of this.#daemons.values()) {
      if (policies.state === 'awaited' || policies.state === 'unreadable') return false;
    }
    return true;
  }

  /** Whether any policy of any source could restrict a tenant. */
  get isEmpty(): boolean {
    if (this.#own.size > 0 || Object.keys(this.#ownDefault).length > 0) return false;
    for (const { policies } of this.#daemons.values()) if (policies.expected) return false;
    return true;
  }

  /** Sets the driver's own policy of a tenant. Throws KVSS_BAD_INPUT that names the key. */
  set(isolationId: string, policy: TenantPolicyInput): void {
    checkIsolationId(isolationId);
    this.#own.set(isolationId, parseTenantPolicy(policy));
    this.#changed(new Set([this.#digestOf(isolationId)]));
  }

  /** Takes the driver's own policy of a tenant away. Answers whether there was one. */
  delete(isolationId: string): boolean {
    const deleted = this.#own.delete(isolationId);
    if (deleted) this.#changed(new Set([this.#digestOf(isolationId)]));
    return deleted;
  }

  /** Sets the driver's own policy of tenants that it has no other for. Throws KVSS_BAD_INPUT that names the key. */
  setDefault(policy: TenantPolicyInput): void {
    this.#ownDefault = parseTenantPolicy(policy, 'default');
    this.#changed('all');
  }

  /** Replaces all of the driver's own policies. Throws KVSS_BAD_INPUT that names the key, and changes nothing then. */
  replace(own: { default?: TenantPolicyInput; policies?: Iterable<readonly [string, TenantPolicyInput]> }): void {
    const byDefault = parseTenantPolicy(own.default ?? {}, 'default');
    const policies = [...(own.policies ?? [])].map(
      ([isolationId, policy]) => [checkIsolationId(isolationId), parseTenantPolicy(policy)] as const,
    );
    this.#ownDefault = byDefault;
    this.#own.clear();
    for (const [isolationId, policy] of policies) this.#own.set(isolationId, policy);
    this.#changed('all');
  }

  /**
   * Follows the policies of a daemon, from now on and in place of those that came before from the same `address`. Call it
   * with each new connection, before anything is stored over it.
   */
  follow(address: string, policies: DaemonPolicies): void {
    this.#daemons.get(address)?.unsubscribe();
    this.#daemons.set(address, { policies, unsubscribe: policies.onChange((changed) => this.#changed(changed)) });
    this.#changed('all');
  }

  /** The daemon has no say any more. */
  forget(address: string): void {
    this.#daemons.get(address)?.unsubscribe();
    if (this.#daemons.delete(address)) this.#changed('all');
  }

  /** Has `listener` called after each change. Answers what ends that. */
  onChange(listener: PolicyChangeListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Follows nobody any more and tells nobody. */
  close(): void {
    this.#listeners.clear();
    for (const { unsubscribe } of this.#daemons.values()) unsubscribe();
    this.#daemons.clear();
    this.#merged.clear();
  }

  #merge(isolationId: string): EffectivePolicy {
    let merged = stricter(UNLIMITED, this.#own.get(isolationId) ?? this.#ownDefault);
    if (this.#daemons.size === 0) return merged;
    const digest = this.#digestOf(isolationId);
    for (const { policies } of this.#daemons.values()) {
      if (policies.state === 'known') merged = stricter(merged, policies.policyOf(digest));
    }
    return this.known || merged.noStore ? merged : { ...merged, noStore: true, pending: true };
  }

  #digestOf(isolationId: string): string {
    let digest = this.#digests.get(isolationId);
    if (digest === undefined) {
      digest = tenantDigest(isolationId).toString('hex');
      if (this.#digests.size >= MAX_REMEMBERED) this.#digests.clear();
      this.#digests.set(isolationId, digest);
    }
    return digest;
  }

  #changed(digests: ReadonlySet<string> | 'all'): void {
    this.#merged.clear();
    const change: PolicyChange = {
      concerns: (isolationId) => digests === 'all' || digests.has(this.#digestOf(isolationId)),
    };
    for (const listener of this.#listeners) listener(change);
  }
}

/** Both in one: of each field the one that allows less. */
function stricter(a: EffectivePolicy, b: TenantPolicy): EffectivePolicy {
  const seconds = (mode: 'last-use' | 'first-use') => (b.ttl?.mode === mode ? b.ttl.seconds : Number.POSITIVE_INFINITY);
  return {
    lastUseSeconds: Math.min(a.lastUseSeconds, seconds('last-use')),
    firstUseSeconds: Math.min(a.firstUseSeconds, seconds('first-use')),
    noStore: a.noStore || b.noStore === true,
    pending: a.pending,
    storeUpTo: Math.min(a.storeUpTo, b.storeUpTo ?? Number.POSITIVE_INFINITY),
    quotaBytes: Math.min(a.quotaBytes, b.quotaBytes ?? Number.POSITIVE_INFINITY),
    tenantClass: a.tenantClass ?? b.tenantClass,
  };
}
