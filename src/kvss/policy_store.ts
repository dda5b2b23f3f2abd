import { KvssError } from '../common/errors.js';
import {
  checkIsolationId,
  parseTenantPolicy,
  type TenantPolicy,
  type TenantPolicyInput,
  tenantDigest,
} from '../common/tenant_policy.js';
import type { PayloadOf } from '../proto/frames.js';
import { MAX_POLICIES, MAX_POLICIES_PER_FRAME, Status } from '../proto/generated.js';
import { PolicyFile, type PolicyList, parsePolicyList } from './policy_file.js';

/** What is known of one tenant. Without a policy: it had one, and drivers have to hear that it has none. */
interface Entry {
  readonly digest: Uint8Array;
  readonly policy: TenantPolicy | undefined;
  /** Of the change that made it; no two entries have the same. */
  readonly version: number;
}

/** Deletions that are remembered. Once there are more they are all forgotten, and drivers get everything anew. */
const MAX_DELETIONS = MAX_POLICIES;

/** Policies between two changes. A change makes a copy, which takes over once it has been written. */
class PolicyTable {
  version = 0;
  default: TenantPolicy = {};
  /** In the order of their changes. */
  readonly entries: Map<string, Entry>;
  /** Another one means that changes do not tell everything since: some entries are gone without a word. */
  basis = 1;
  live = 0;

  constructor(before?: PolicyTable) {
    this.entries = new Map(before?.entries);
    if (!before) return;
    this.version = before.version;
    this.default = before.default;
    this.basis = before.basis;
    this.live = before.live;
  }

  set(isolationId: string, policy: TenantPolicy | undefined): void {
    const before = this.entries.get(isolationId);
    const known = before?.policy === undefined ? 0 : 1;
    if (policy && known === 0 && this.live === MAX_POLICIES) {
      throw KvssError.ofStatus(Status.limitExceeded, `there are ${MAX_POLICIES} policies, which is the limit`);
    }
    // Out and in again, so that it is the last.
    this.entries.delete(isolationId);
    this.version += 1;
    this.entries.set(isolationId, {
      digest: before?.digest ?? tenantDigest(isolationId),
      policy,
      version: this.version,
    });
    this.live += (policy ? 1 : 0) - known;
    if (this.entries.size - this.live > MAX_DELETIONS) this.#forgetDeletions();
  }

  replace(list: PolicyList): void {
    this.entries.clear();
    this.live = 0;
    this.default = list.default;
    this.version += 1;
    for (const { isolationId, policy } of list.policies) this.set(isolationId, policy);
    this.version = Math.max(this.version, list.version);
    this.basis += 1;
  }

  #forgetDeletions(): void {
    for (const [isolationId, { policy }] of this.entries) if (!policy) this.entries.delete(isolationId);
    this.basis += 1;
  }
}

type Change<Result> = (table: PolicyTable) => Result;

interface Waiting {
  change: Change<unknown>;
  resolve(result: never): void;
  reject(thrown: unknown): void;
}

/**
 * The tenant policies of a daemon. A change is checked, written to the file where there is one, and only then in force
 * and told; where it cannot be written it is refused. Changes that come while one is being written go with the next write.
 */
export class PolicyStore {
  readonly #file: PolicyFile | undefined;
  readonly #listeners = new Set<() => void>();
  readonly #waiting: Waiting[] = [];
  #table: PolicyTable;
  #working = false;

  private constructor(file: PolicyFile | undefined, table: PolicyTable) {
    this.#file = file;
    this.#table = table;
  }

  /** Policies of a file, or none, in memory only. Throws KVSS_BAD_CONFIG that names file and key. */
  static open(path?: string): PolicyStore {
    const table = new PolicyTable();
    if (path === undefined) return new PolicyStore(undefined, table);
    const { file, list } = PolicyFile.open(path);
    const { version, default: byDefault, policies } = list;
    if (version > 0 || policies.length > 0 || Object.keys(byDefault).length > 0) table.replace(list);
    return new PolicyStore(file, table);
  }

  /** Rises with every change; 0 where there has never been a policy. */
  get version(): number {
    return this.#table.version;
  }

  /** Tenants with a policy of their own. */
  get size(): number {
    return this.#table.live;
  }

  /** Whether no tenant has any restriction. */
  get isEmpty(): boolean {
    return this.size === 0 && Object.keys(this.default).length === 0;
  }

  /** The policy of tenants that have none of their own. Empty, which restricts nothing, until it is set. */
  get default(): TenantPolicy {
    return this.#table.default;
  }

  /** The tenant's own policy. */
  get(isolationId: string): TenantPolicy | undefined {
    return this.#table.entries.get(isolationId)?.policy;
  }

  /** All policies, as the API and the file have them. */
  list(): PolicyList {
    return listOf(this.#table);
  }

  /**
   * Gives a tenant a policy of its own, in place of the default as a whole. Resolves with the version once it is written
   * and in force. Rejects with KVSS_BAD_INPUT that names the key, KVSS_LIMIT_EXCEEDED, or KVSS_INTERNAL where the file
   * cannot be written; nothing has changed then.
   */
  async set(isolationId: string, policy: TenantPolicyInput): Promise<number> {
    checkIsolationId(isolationId);
    const checked = parseTenantPolicy(policy);
    return this.#change((table) => {
      table.set(isolationId, checked);
      return table.version;
    });
  }

  /** The tenant falls back to the default. Resolves with whether it had a policy of its own; rejects as set does. */
  async delete(isolationId: string): Promise<boolean> {
    checkIsolationId(isolationId);
    return this.#change((table) => {
      if (table.entries.get(isolationId)?.policy === undefined) return false;
      table.set(isolationId, undefined);
      return true;
    });
  }

  /** Replaces the default. Resolves with the version; rejects as set does. */
  async setDefault(policy: TenantPolicyInput): Promise<number> {
    const checked = parseTenantPolicy(policy, 'default');
    return this.#change((table) => {
      table.default = checked;
      table.version += 1;
      return table.version;
    });
  }

  /** Replaces everything at once, as `{ default, policies: [{ isolationId, policy }] }`. Resolves with the version; rejects as set does. */
  async replace(input: unknown): Promise<number> {
    const list = { ...parsePolicyList(input), version: 0 };
    return this.#change((table) => {
      table.replace(list);
      return table.version;
    });
  }

  /** Has `listener` called after each change. Answers what ends that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** What a driver is told next that has all changes of `basis` up to version `since`. */
  pageSince({ since, basis }: PayloadOf<'policies'>): PayloadOf<'policiesPage'> {
    const table = this.#table;
    const reset = basis !== table.basis;
    const after = reset ? 0 : since;
    const page: PayloadOf<'policiesPage'> = {
      version: table.version,
      basis: table.basis,
      reset,
      more: false,
      default: table.default,
      entries: [],
    };
    let last = after;
    for (const { digest, policy, version } of table.entries.values()) {
      if (version <= after || (reset && !policy)) continue;
      if (page.entries.length === MAX_POLICIES_PER_FRAME) return { ...page, version: last, more: true };
      page.entries.push(policy ? { digest, policy } : { digest });
      last = version;
    }
    return page;
  }

  #change<Result>(change: Change<Result>): Promise<Result> {
    return new Promise<Result>((resolve, reject) => {
      this.#waiting.push({ change, resolve, reject });
      if (!this.#working) this.#work();
    });
  }

  async #work(): Promise<void> {
    this.#working = true;
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.splice(0);
      const table = new PolicyTable(this.#table);
      const done: { waiting: Waiting; result: unknown }[] = [];
      for (const waiting of batch) {
        try {
          done.push({ waiting, result: waiting.change(table) });
        } catch (thrown) {
          waiting.reject(thrown);
        }
      }
      try {
        if (table.version !== this.#table.version) {
          await this.#file?.write(listOf(table));
          this.#table = table;
          this.#tell();
        }
        for (const { waiting, result } of done) waiting.resolve(result as never);
      } catch (thrown) {
        for (const { waiting } of done) waiting.reject(thrown);
      }
    }
    this.#working = false;
  }

  #tell(): void {
    for (const listener of this.#listeners) {
      try {
        listener();
      } catch {
        // The change is in force whatever one listener makes of it.
      }
    }
  }
}

function listOf(table: PolicyTable): PolicyList {
  const policies: PolicyList['policies'] = [];
  for (const [isolationId, { policy }] of table.entries) if (policy) policies.push({ isolationId, policy });
  return { version: table.version, default: table.default, policies };
}
