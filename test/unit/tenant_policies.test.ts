import { describe, expect, test } from 'vitest';
import { KvssError, localError } from '../../src/common/errors.js';
import { type TenantPolicy, tenantDigest } from '../../src/common/tenant_policy.js';
import { PolicyStore } from '../../src/kvss/policy_store.js';
import {
  type DaemonPolicies,
  NO_POLICIES,
  PolicyFeed,
  type PolicyListener,
  type PolicyState,
} from '../../src/links/policy_feed.js';
import { type PayloadOf, parsePayload } from '../../src/proto/frames.js';
import { TenantPolicies } from '../../src/swdriver/tenant_policies.js';
import { ManualClock } from '../model/manual_clock.js';

const INFINITE = Number.POSITIVE_INFINITY;
const UNLIMITED = {
  lastUseSeconds: INFINITE,
  firstUseSeconds: INFINITE,
  noStore: false,
  pending: false,
  storeUpTo: INFINITE,
  quotaBytes: INFINITE,
  tenantClass: undefined,
};
const CLOSED = { ...UNLIMITED, noStore: true, pending: true };

/** Policies of a daemon that a test writes down. */
class Daemon implements DaemonPolicies {
  version = 1;
  readonly listeners = new Set<PolicyListener>();
  readonly policies = new Map<string, TenantPolicy>();

  constructor(
    public state: PolicyState,
    policies: Record<string, TenantPolicy> = {},
    public byDefault: TenantPolicy = {},
  ) {
    for (const [isolationId, policy] of Object.entries(policies)) this.policies.set(digestOf(isolationId), policy);
  }

  get expected(): boolean {
    return this.state !== 'none';
  }

  policyOf(digest: string): TenantPolicy {
    return this.policies.get(digest) ?? this.byDefault;
  }

  onChange(listener: PolicyListener): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  tell(changed: ReadonlySet<string> | 'all'): void {
    for (const listener of this.listeners) listener(changed);
  }
}

const digestOf = (isolationId: string) => tenantDigest(isolationId).toString('hex');

describe('the policies that a driver follows', () => {
  test('restrict nothing where there are none', () => {
    const policies = new TenantPolicies();
    policies.follow('a', NO_POLICIES);
    expect(policies.policyOf('acme')).toEqual(UNLIMITED);
    expect([policies.known, policies.isEmpty]).toEqual([true, true]);
  });

  test("are the tenant's own, or else the default, and never both", () => {
    const policies = new TenantPolicies();
    policies.follow('a', new Daemon('known', { acme: { quotaBytes: 5 } }, { noStore: true, storeUpTo: 7 }));
    expect(policies.policyOf('acme')).toEqual({ ...UNLIMITED, quotaBytes: 5 });
    expect(policies.policyOf('other')).toEqual({ ...UNLIMITED, noStore: true, storeUpTo: 7 });
  });

  test('are the strictest of each field over all sources, both modes of TTL among them', () => {
    const policies = new TenantPolicies();
    policies.follow(
      'a',
      new Daemon('known', { acme: { ttl: { mode: 'last-use', seconds: 9 }, quotaBytes: 100, noStore: false } }),
    );
    policies.follow(
      'b',
      new Daemon('known', { acme: { ttl: { mode: 'first-use', seconds: 60 }, storeUpTo: 64, tenantClass: 'gold' } }),
    );
    policies.follow(
      'c',
      new Daemon('known', { acme: { ttl: { mode: 'last-use', seconds: 5 }, storeUpTo: 128, quotaBytes: 99 } }),
    );
    policies.set('acme', { quotaBytes: 1_000, ttl: { mode: 'first-use', seconds: 70 } });
    expect(policies.policyOf('acme')).toEqual({
      lastUseSeconds: 5,
      firstUseSeconds: 60,
      noStore: false,
      pending: false,
      storeUpTo: 64,
      quotaBytes: 99,
      tenantClass: 'gold',
    });
    policies.follow('d', new Daemon('known', {}, { noStore: true }));
    expect(policies.policyOf('acme')).toMatchObject({ noStore: true, pending: false });
    policies.forget('d');
    expect(policies.policyOf('acme').noStore).toBe(false);
  });

  test('are the strictest whatever the order of the sources', () => {
    const strict: TenantPolicy = { noStore: true, quotaBytes: 5, storeUpTo: 5, ttl: { mode: 'last-use', seconds: 5 } };
    const lax: TenantPolicy = { noStore: false, quotaBytes: 9, storeUpTo: 9, ttl: { mode: 'last-use', seconds: 9 } };
    for (const both of [
      [strict, lax],
      [lax, strict],
      [strict, {}],
    ]) {
      const policies = new TenantPolicies();
      for (const [at, policy] of both.entries()) policies.follow(`${at}`, new Daemon('known', { acme: policy }));
      expect(policies.policyOf('acme')).toEqual({
        ...UNLIMITED,
        noStore: true,
        quotaBytes: 5,
        storeUpTo: 5,
        lastUseSeconds: 5,
      });
    }
  });

  test.each(['awaited', 'unreadable'] as const)('store nothing while those of any daemon are %s', (state) => {
    const policies = new TenantPolicies();
    policies.follow('a', new Daemon('known', { banned: { noStore: true } }));
    const late = new Daemon(state);
    policies.follow('b', late);
    expect(policies.known).toBe(false);
    expect(policies.policyOf('acme')).toEqual(CLOSED);
    // Not for want of knowledge.
    expect(policies.policyOf('banned')).toMatchObject({ noStore: true, pending: false });
    late.state = 'known';
    late.tell('all');
    expect(policies.policyOf('acme')).toEqual(UNLIMITED);
  });

  test('of a daemon that has gone hold until it is back with others', () => {
    const policies = new TenantPolicies();
    const before = new Daemon('known', { acme: { noStore: true } });
    policies.follow('a', before);
    policies.follow('a', new Daemon('known', { acme: { storeUpTo: 1 } }));
    expect(policies.policyOf('acme')).toEqual({ ...UNLIMITED, storeUpTo: 1 });
    expect(before.listeners.size).toBe(0);
  });

  test('say whose has changed', () => {
    const policies = new TenantPolicies();
    const daemon = new Daemon('known');
    policies.follow('a', daemon);
    const heard: boolean[][] = [];
    const stop = policies.onChange((change) => heard.push(['acme', 'other'].map((tenant) => change.concerns(tenant))));
    expect(policies.policyOf('acme').noStore).toBe(false);
    daemon.policies.set(digestOf('acme'), { noStore: true });
    daemon.tell(new Set([digestOf('acme')]));
    expect(policies.policyOf('acme').noStore).toBe(true);
    policies.set('other', { storeUpTo: 1 });
    policies.delete('nobody');
    policies.setDefault({});
    policies.replace({ policies: [['acme', { storeUpTo: 2 }]] });
    expect(heard).toEqual([
      [true, false],
      [false, true],
      [true, true],
      [true, true],
    ]);
    expect(policies.policyOf('other')).toEqual(UNLIMITED);
    stop();
    policies.close();
    expect(daemon.listeners.size).toBe(0);
  });

  test('from code are checked, and a bad list changes nothing', () => {
    const policies = new TenantPolicies();
    policies.set('acme', { noStore: true });
    expect(() => policies.set('acme', { x: 1 } as never)).toThrow("unknown key 'x'");
    expect(() =>
      policies.replace({
        policies: [
          ['acme', {}],
          ['', {}],
        ],
      }),
    ).toThrow('non-empty');
    expect(policies.policyOf('acme').noStore).toBe(true);
  });

  test('do not grow with tenants that somebody makes up', () => {
    const policies = new TenantPolicies();
    policies.follow('a', new Daemon('known', { acme: { noStore: true } }));
    for (let index = 0; index < 40_000; index += 1) expect(policies.policyOf(`made up ${index}`).noStore).toBe(false);
    expect(policies.policyOf('acme').noStore).toBe(true);
  });
});

/** The daemon's end of a control connection. */
class Client {
  ended = false;
  asked = 0;
  changed = () => {};
  constructor(public answer: (request: PayloadOf<'policies'>) => unknown) {}

  listenForPolicies(listener: () => void): void {
    this.changed = listener;
  }

  readonly request = async (_name: string, payload: object) => {
    this.asked += 1;
    await Promise.resolve();
    return { payload: parsePayload('policiesPage', this.answer(payload as PayloadOf<'policies'>)), descriptors: null };
  };
}

const WELCOME = { daemon: 'd', epoch: 'e', sessionId: 1, pid: 1, shards: [] };
const PAGE = { version: 1, basis: 1, reset: true, more: false, default: {}, entries: [] };

function feedOf(client: Client, policies: number | undefined, clock = new ManualClock()) {
  const welcome = policies === undefined ? WELCOME : { ...WELCOME, policies };
  return { clock, feed: new PolicyFeed(client as never, welcome, clock) };
}
const settled = () => new Promise((resolve) => setImmediate(resolve));

describe('the policies of one daemon', () => {
  test('are not asked for where it has none', async () => {
    const client = new Client(() => PAGE);
    const { feed } = feedOf(client, undefined);
    await settled();
    expect([feed.state, feed.expected, client.asked]).toEqual(['none', false, 0]);
  });

  test('come page by page, and are in force once they are whole', async () => {
    const store = PolicyStore.open();
    await store.replace({
      default: { storeUpTo: 9 },
      policies: Array.from({ length: 1_000 }, (_, index) => ({ isolationId: `t${index}`, policy: { noStore: true } })),
    });
    const client = new Client((request) => store.pageSince(request));
    const { feed } = feedOf(client, store.version);
    const heard: [PolicyState, unknown][] = [];
    feed.onChange((changed) => heard.push([feed.state, changed]));
    expect([feed.state, feed.version]).toEqual(['awaited', 0]);
    await settled();
    expect([feed.state, feed.version, client.asked]).toEqual(['known', store.version, 4]);
    expect(feed.policyOf(digestOf('t999'))).toEqual({ noStore: true });
    expect(feed.policyOf(digestOf('x'))).toEqual({ storeUpTo: 9 });
    await store.set('t3', { quotaBytes: 3 });
    await store.delete('t4');
    client.changed();
    client.changed();
    await settled();
    expect(feed.policyOf(digestOf('t3'))).toEqual({ quotaBytes: 3 });
    expect(feed.policyOf(digestOf('t4'))).toEqual({ storeUpTo: 9 });
    expect(heard).toEqual([
      ['known', 'all'],
      ['known', new Set([digestOf('t3'), digestOf('t4')])],
    ]);
  });

  test('are awaited from the word that there are the first ones', async () => {
    const client = new Client(() => ({ ...PAGE, default: { noStore: true } }));
    const { feed } = feedOf(client, undefined);
    const states: PolicyState[] = [];
    feed.onChange(() => states.push(feed.state));
    client.changed();
    expect(feed.state).toBe('awaited');
    await settled();
    expect(states).toEqual(['awaited', 'known']);
    expect(feed.policyOf('any')).toEqual({ noStore: true });
  });

  test.each([
    ['an unknown key, which may be a restriction', { ...PAGE, default: { noTrain: true } }],
    [
      'an unknown mode',
      { ...PAGE, entries: [{ digest: new Uint8Array(32), policy: { ttl: { mode: 'x', seconds: 1 } } }] },
    ],
    ['a digest of another length', { ...PAGE, entries: [{ digest: new Uint8Array(20) }] }],
    ['no default', { ...PAGE, default: undefined }],
    ['pages without end', { ...PAGE, more: true }],
    ['nonsense', 7],
  ])('with %s are unreadable, until they are understood', async (_what, page) => {
    let answer: unknown = page;
    const client = new Client(() => answer);
    const { feed, clock } = feedOf(client, 1);
    await settled();
    expect([feed.state, feed.expected]).toEqual(['unreadable', true]);
    expect(client.asked).toBe(1);
    answer = PAGE;
    await clock.advance(1_000);
    await settled();
    expect(feed.state).toBe('known');
  });

  test('that stop coming are awaited again, also where some were known', async () => {
    let fails = false;
    const client = new Client(() => {
      if (fails) throw localError('KVSS_TIMEOUT', 'no answer');
      return PAGE;
    });
    const { feed, clock } = feedOf(client, 1);
    await settled();
    expect(feed.state).toBe('known');
    fails = true;
    client.changed();
    await settled();
    expect(feed.state).toBe('awaited');
    fails = false;
    await clock.advance(1_000);
    await settled();
    expect(feed.state).toBe('known');
  });

  test('of a daemon that has gone stay as they were', async () => {
    const client = new Client(() => {
      if (client.ended) throw new KvssError('KVSS_UNREACHABLE', 'gone');
      return { ...PAGE, default: { noStore: true } };
    });
    const { feed } = feedOf(client, 1);
    await settled();
    client.ended = true;
    client.changed();
    await settled();
    expect([feed.state, feed.policyOf('any')]).toEqual(['known', { noStore: true }]);
  });
});
