import { MissTally } from './miss_cause.js';

/** Most tenant classes that are counted by themselves. */
export const MAX_TENANT_CLASSES = 32;
/** Where every further class is counted. */
export const OTHER_CLASS = 'other';

/** What a driver has counted for the tenants of one class since it started. */
export class Account {
  lookups = 0;
  /** Tokens of the prompts. Hits and misses of all causes together are as many. */
  promptTokens = 0;
  hitTokens = 0;
  /** Tokens that were missed, by cause. */
  readonly missTokens = new MissTally();
  /** Columns stored. */
  columnsEvicted = 0;
  columnsRefilled = 0;
  /** Columns that made room for others or were forgotten on request. */
  columnsDeleted = 0;
  /** Columns whose time to live had passed. */
  columnsExpired = 0;

  constructor(readonly tenantClass: string) {}

  /** Counts all of another account too. */
  merge(other: Account): void {
    this.lookups += other.lookups;
    this.promptTokens += other.promptTokens;
    this.hitTokens += other.hitTokens;
    this.missTokens.merge(other.missTokens);
    this.columnsEvicted += other.columnsEvicted;
    this.columnsRefilled += other.columnsRefilled;
    this.columnsDeleted += other.columnsDeleted;
    this.columnsExpired += other.columnsExpired;
  }
}

/**
 * The accounts of a driver, one a tenant class: a name that the embedder gives tenants of a kind, such as a plan or a
 * tier, and never the tenant's own. The first 32 classes have one each, all later ones share `other`, so that neither
 * memory nor labels of metrics grow with what callers pass.
 */
export class Accounts implements Iterable<Account> {
  readonly #byClass = new Map<string, Account>();
  readonly #limit: number;
  #other: Account | undefined;

  constructor(limit: number = MAX_TENANT_CLASSES) {
    this.#limit = limit;
  }

  /** The account of a class. Keep it: it stays the same. */
  of(tenantClass: string): Account {
    const known = this.#byClass.get(tenantClass);
    if (known) return known;
    if (tenantClass !== OTHER_CLASS && this.#byClass.size < this.#limit) {
      const account = new Account(tenantClass);
      this.#byClass.set(tenantClass, account);
      return account;
    }
    this.#other ??= new Account(OTHER_CLASS);
    return this.#other;
  }

  /** All classes together. */
  total(): Account {
    const sum = new Account('');
    for (const account of this) sum.merge(account);
    return sum;
  }

  *[Symbol.iterator](): IterableIterator<Account> {
    yield* this.#byClass.values();
    if (this.#other) yield this.#other;
  }
}
