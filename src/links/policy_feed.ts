import { type Clock, systemClock } from '../common/clock.js';
import { KvssError } from '../common/errors.js';
import type { TenantPolicy } from '../common/tenant_policy.js';
import type { PayloadOf } from '../proto/frames.js';
import { MAX_POLICIES, Status } from '../proto/generated.js';
import type { ControlClient } from './control_client.js';

/**
 * What is known of the policies of a daemon: there are none; they are being fetched, and nothing may be stored meanwhile;
 * they are known; or what came was not understood, and nothing may be stored until something is.
 */
export type PolicyState = 'none' | 'awaited' | 'known' | 'unreadable';

/** Hears which tenants have other policies now, by their digests in hex; `all` where it may be any. */
export type PolicyListener = (changed: ReadonlySet<string> | 'all') => void;

/** The tenant policies of one daemon, as far as they have come. */
export interface DaemonPolicies {
  readonly state: PolicyState;
  /** Whether the daemon has said that there are policies: without them nothing may be stored. */
  readonly expected: boolean;
  /** Version that is known in full; 0 where there is none. */
  readonly version: number;
  /** The tenant's own policy, or the default, by its digest in hex. Says nothing where the policies are not known. */
  policyOf(digest: string): TenantPolicy;
  /** Has `listener` called after each change of state or policies. Answers what ends that. */
  onChange(listener: PolicyListener): () => void;
}

/** Policies of a daemon that has none. */
export const NO_POLICIES: DaemonPolicies = {
  state: 'none',
  expected: false,
  version: 0,
  policyOf: () => ({}),
  onChange: () => () => {},
};

/** Between two attempts to get policies that did not come. */
const RETRY_MS = 1_000;

/**
 * Keeps the policies of one daemon up to date over a control connection: asks for them where the daemon says that there are
 * some, and for what has changed whenever it says so. One page is asked for at a time, so that no number of policies fills
 * the queue of a connection.
 */
export class PolicyFeed implements DaemonPolicies {
  #state: PolicyState;
  #version = 0;
  #basis = 0;
  #default: TenantPolicy = {};
  #policies = new Map<string, TenantPolicy>();
  readonly #listeners = new Set<PolicyListener>();
  #fetching = false;
  #fetchAgain = false;
  #cancelRetry: () => void = () => {};

  constructor(
    private readonly client: Pick<ControlClient, 'request' | 'listenForPolicies' | 'ended'>,
    welcome: PayloadOf<'welcome'>,
    private readonly clock: Clock = systemClock,
  ) {
    this.#state = welcome.policies === undefined ? 'none' : 'awaited';
    client.listenForPolicies(() => {
      // The first ones ever: what was allowed a moment ago may be so no more.
      if (this.#state === 'none') this.#settle('awaited', 'all');
      this.#fetch();
    });
    if (this.expected) this.#fetch();
  }

  get state(): PolicyState {
    return this.#state;
  }

  get expected(): boolean {
    return this.#state !== 'none';
  }

  get version(): number {
    return this.#version;
  }

  policyOf(digest: string): TenantPolicy {
    return this.#policies.get(digest) ?? this.#default;
  }

  onChange(listener: PolicyListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #fetch(): void {
    this.#fetchAgain = true;
    this.#cancelRetry();
    if (!this.#fetching) void this.#fetchAll();
  }

  async #fetchAll(): Promise<void> {
    this.#fetching = true;
    try {
      while (this.#fetchAgain && !this.client.ended) {
        this.#fetchAgain = false;
        await this.#fetchChanges();
      }
    } catch (thrown) {
      if (this.client.ended) return;
      // There is something that is not known here. It may be that nothing must be stored.
      const understood = !(thrown instanceof KvssError) || thrown.status !== Status.badFrame;
      this.#version = 0;
      this.#basis = 0;
      this.#settle(understood ? 'awaited' : 'unreadable', 'all');
      this.#cancelRetry();
      this.#cancelRetry = this.clock.schedule(RETRY_MS, () => this.#fetch());
    } finally {
      this.#fetching = false;
    }
  }

  /** Fetches what has changed, and puts all of it in force at once. */
  async #fetchChanges(): Promise<void> {
    let version = this.#version;
    let basis = this.#basis;
    let changed: Set<string> | 'all' = new Set();
    let policies = this.#policies;
    let more = true;
    while (more) {
      const { payload: page } = await this.client.request('policies', { since: version, basis }, 'policiesPage');
      if (page.reset) {
        policies = new Map();
        changed = 'all';
      } else if (policies === this.#policies) {
        policies = new Map(policies);
      }
      checkProgress(page, version);
      for (const { digest, policy } of page.entries) {
        const key = Buffer.from(digest.buffer, digest.byteOffset, digest.byteLength).toString('hex');
        if (policy) policies.set(key, policy);
        else policies.delete(key);
        if (changed !== 'all') changed.add(key);
      }
      if (policies.size > MAX_POLICIES) throw KvssError.ofStatus(Status.badFrame, `more than ${MAX_POLICIES} policies`);
      ({ version, basis, more } = page);
      if (!more) {
        if (JSON.stringify(page.default) !== JSON.stringify(this.#default)) changed = 'all';
        this.#default = page.default;
      }
    }
    this.#policies = policies;
    this.#version = version;
    this.#basis = basis;
    this.#settle('known', changed);
  }

  #settle(state: PolicyState, changed: ReadonlySet<string> | 'all'): void {
    const isNews = this.#state !== state;
    this.#state = state;
    if (!isNews && changed !== 'all' && changed.size === 0) return;
    for (const listener of this.#listeners) {
      try {
        listener(isNews ? 'all' : changed);
      } catch (thrown) {
        // Not the daemon's fault: nobody here may take it for a page that was not understood.
        queueMicrotask(() => {
          throw thrown;
        });
      }
    }
  }
}

/** A daemon that sends pages without end must not keep the driver at it for ever. */
function checkProgress(page: PayloadOf<'policiesPage'>, since: number): void {
  if (page.more && (page.entries.length === 0 || (!page.reset && page.version <= since))) {
    throw KvssError.ofStatus(Status.badFrame, 'a page of policies brings nothing and says that there is more');
  }
}
