import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import { tenantDigest } from '../../src/common/tenant_policy.js';
import { PolicyStore } from '../../src/kvss/policy_store.js';
import type { PayloadOf } from '../../src/proto/frames.js';
import { MAX_POLICIES, MAX_POLICIES_PER_FRAME } from '../../src/proto/generated.js';
import { Scratch } from '../e2e/support.js';

/** A driver that has asked until there was no more. */
class Follower {
  readonly policies = new Map<string, unknown>();
  pages = 0;
  resets = 0;
  page: Pick<PayloadOf<'policiesPage'>, 'version' | 'basis'> = { version: 0, basis: 0 };

  constructor(private readonly store: PolicyStore) {}

  catchUp(): this {
    for (let more = true; more; ) {
      const page = this.store.pageSince({ since: this.page.version, basis: this.page.basis });
      if (page.reset) this.policies.clear();
      this.resets += page.reset ? 1 : 0;
      for (const { digest, policy } of page.entries) {
        const key = Buffer.from(digest).toString('hex');
        if (policy) this.policies.set(key, policy);
        else this.policies.delete(key);
      }
      ({ more } = page);
      this.page = page;
      this.pages += 1;
    }
    return this;
  }
}

const asSeen = (store: PolicyStore) =>
  new Map(store.list().policies.map(({ isolationId, policy }) => [tenantDigest(isolationId).toString('hex'), policy]));

describe('a policy store in memory', () => {
  test('has what it was given, and a version that rises with each change', async () => {
    const store = PolicyStore.open();
    expect([store.isEmpty, store.version]).toEqual([true, 0]);
    let told = 0;
    const stop = store.onChange(() => {
      told += 1;
    });
    expect(await store.set('acme', { noStore: true })).toBe(1);
    expect(await store.set('acme', { quotaBytes: '1KiB' })).toBe(2);
    expect(store.get('acme')).toEqual({ quotaBytes: 1024 });
    expect(await store.setDefault({ storeUpTo: 64 })).toBe(3);
    expect(await store.delete('acme')).toBe(true);
    expect(await store.delete('acme')).toBe(false);
    expect([store.get('acme'), store.version, store.size, store.isEmpty]).toEqual([undefined, 4, 0, false]);
    expect(told).toBe(4);
    stop();
    await store.set('acme', {});
    expect(told).toBe(4);
  });

  test('refuses what is no policy or no tenant, and changes nothing', async () => {
    const store = PolicyStore.open();
    const bad = { code: 'KVSS_BAD_INPUT' };
    await expect(store.set('acme', { noStore: 1 as never })).rejects.toMatchObject(bad);
    await expect(store.set('', {})).rejects.toMatchObject(bad);
    await expect(store.delete('a\nb')).rejects.toMatchObject(bad);
    await expect(store.setDefault({ x: 1 } as never)).rejects.toMatchObject(bad);
    await expect(
      store.replace({
        policies: [
          { isolationId: 'a', policy: {} },
          { isolationId: 'a', policy: {} },
        ],
      }),
    ).rejects.toThrow("'policies.1.isolationId': the tenant comes twice");
    await expect(store.replace({ policies: { acme: {} } })).rejects.toThrow("'policies'");
    expect(store.version).toBe(0);
  });

  test('keeps names that mean something to JavaScript apart', async () => {
    const store = PolicyStore.open();
    for (const name of ['__proto__', 'constructor', '1', '0']) await store.set(name, { tenantClass: 'odd' });
    expect(store.list().policies.map(({ isolationId }) => isolationId)).toEqual(['__proto__', 'constructor', '1', '0']);
    expect(store.get('toString')).toBeUndefined();
  });

  test('tells drivers what has changed, and only that', async () => {
    const store = PolicyStore.open();
    const follower = new Follower(store);
    await store.set('a', { noStore: true });
    await store.set('b', { storeUpTo: 1 });
    expect(follower.catchUp().policies).toEqual(asSeen(store));
    await store.delete('a');
    await store.set('c', {});
    const page = store.pageSince({ since: follower.page.version, basis: follower.page.basis });
    expect(page).toMatchObject({ reset: false, more: false, version: 4 });
    expect(page.entries).toHaveLength(2);
    expect(follower.catchUp().policies).toEqual(asSeen(store));
    await store.replace({ policies: [{ isolationId: 'z', policy: { noStore: true } }] });
    expect(follower.catchUp().policies).toEqual(asSeen(store));
    expect(follower.resets).toBe(2);
  });

  test('takes as many policies as the limit says, and tells them page by page', async () => {
    const store = PolicyStore.open();
    const policies = Array.from({ length: MAX_POLICIES }, (_, index) => ({ isolationId: `t${index}`, policy: {} }));
    await store.replace({ policies });
    await expect(store.set('one more', {})).rejects.toMatchObject({ code: 'KVSS_LIMIT_EXCEEDED' });
    await expect(store.replace({ policies: [...policies, { isolationId: 'x', policy: {} }] })).rejects.toThrow(
      "'policies'",
    );
    await store.set('t0', { noStore: true });
    const follower = new Follower(store).catchUp();
    expect(follower.policies).toEqual(asSeen(store));
    expect(follower.pages).toBe(Math.ceil(MAX_POLICIES / MAX_POLICIES_PER_FRAME));
  });

  test('stays bounded and right where tenants come and go, also for a driver in the middle of its pages', async () => {
    const store = PolicyStore.open();
    await Promise.all(Array.from({ length: 600 }, (_, index) => store.set(`stays ${index}`, { storeUpTo: index })));
    const early = new Follower(store).catchUp();
    const half = new Follower(store);
    const page = store.pageSince({ since: 0, basis: 0 });
    for (const { digest, policy } of page.entries) half.policies.set(Buffer.from(digest).toString('hex'), policy);
    half.page = page;
    await store.delete('stays 3');
    for (let round = 0; round < 3; round += 1) {
      const names = Array.from({ length: 5_000 }, (_, index) => `goes ${round} ${index}`);
      await Promise.all(names.map((name) => store.set(name, { noStore: true })));
      await Promise.all(names.map((name) => store.delete(name)));
    }
    expect(store.size).toBe(599);
    for (const follower of [early, half, new Follower(store)]) {
      expect(follower.catchUp().policies).toEqual(asSeen(store));
      expect(follower.pages).toBeLessThan(100);
    }
  });
});

describe('a policy file', () => {
  test('keeps policies over a restart, readable by its owner alone', async () => {
    using scratch = new Scratch();
    const path = scratch.file('policies.json', '{}');
    chmodSync(path, 0o644);
    const store = PolicyStore.open(path);
    expect([store.isEmpty, store.version]).toEqual([true, 0]);
    await store.set('ünïcode\u2028"\\', { ttl: { mode: 'last-use', seconds: 60.5 }, quotaBytes: 7 });
    await store.set('gone', { noStore: true });
    await store.delete('gone');
    await store.setDefault({ noStore: true });
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(scratch.path)).toEqual(['policies.json']);
    const again = PolicyStore.open(path);
    expect(again.list()).toEqual(store.list());
    await again.set('acme', {});
    expect(again.version).toBeGreaterThan(store.version);
  });

  test('may be YAML, may have no version, and may be reached by a link that stays one', async () => {
    using scratch = new Scratch();
    const target = scratch.file(
      'real.yaml',
      `# ours
default: { storeUpTo: 4096 }
policies:
  - isolationId: acme
    policy: { noStore: true, quotaBytes: 2GiB }
`,
    );
    const link = scratch.file('link');
    symlinkSync(target, link);
    const store = PolicyStore.open(link);
    expect(store.get('acme')).toEqual({ noStore: true, quotaBytes: 2 ** 31 });
    expect(store.version).toBeGreaterThan(0);
    expect(new Follower(store).catchUp().policies.size).toBe(1);
    await store.delete('acme');
    expect(readFileSync(target, 'utf8')).toContain('"policies": []');
    expect(PolicyStore.open(link).size).toBe(0);
  });

  test.each([
    ['that is empty', '', 'the file is empty'],
    ['of blanks', '\n\n', 'the file is empty'],
    ['that was cut off', '{"version":1,"default":{},"policies":[{"isolationId":"a"', 'policies.json: '],
    ['that is a list', '[]', "'(top level)'"],
    ['with an unknown key', '{"policy": []}', "unknown key 'policy'"],
    ['with a key twice', '{"default": {}, "default": {"noStore": true}}', 'unique'],
    ['with a tenant twice', 'policies: [{isolationId: a, policy: {}}, {isolationId: a, policy: {}}]', 'comes twice'],
    ['with a tenant that is a number', 'policies: [{isolationId: 7, policy: {}}]', "'policies.0.isolationId'"],
    [
      'with a policy that is none',
      'policies: [{isolationId: a, policy: {noStore: 1}}]',
      "'policies.0.policy': 'noStore'",
    ],
    ['without a policy', 'policies: [{isolationId: a}]', "'policies.0.policy'"],
    ['with a default that is none', 'default: { ttl: 5 }', "default: 'ttl'"],
    ['with a bad version', '{"version": -1}', "'version'"],
  ])('%s is refused, and named', (_what, content, complaint) => {
    using scratch = new Scratch();
    const path = scratch.file('policies.json', content);
    const open = () => PolicyStore.open(path);
    expect(open).toThrow(expect.objectContaining({ code: 'KVSS_BAD_CONFIG' }));
    expect(open).toThrow(`'policyFile': ${path}: `);
    expect(open).toThrow(complaint);
  });

  test('that is not there, or cannot be read, is refused, and named', () => {
    using scratch = new Scratch();
    expect(() => PolicyStore.open(scratch.file('none'))).toThrow('there is no such file; write {} into it');
    mkdirSync(scratch.file('directory'));
    expect(() => PolicyStore.open(scratch.file('directory'))).toThrow('cannot read it');
  });

  test('that cannot be written refuses the change: old policies stay in force and on disk', async () => {
    using scratch = new Scratch();
    mkdirSync(scratch.file('d'));
    const path = scratch.file('d/policies.json', '{}');
    const store = PolicyStore.open(path);
    await store.set('acme', { noStore: true });
    let told = 0;
    store.onChange(() => {
      told += 1;
    });
    const saved = readFileSync(path, 'utf8');
    // Not by permissions: root has all of them.
    rmSync(scratch.file('d'), { recursive: true });
    for (const change of [store.set('acme', {}), store.delete('acme'), store.setDefault({ noStore: true })]) {
      const thrown = await change.catch((error: KvssError) => error);
      expect(thrown).toBeInstanceOf(KvssError);
      expect(thrown).toMatchObject({ code: 'KVSS_INTERNAL', message: expect.stringContaining(path) });
    }
    expect([store.get('acme'), store.default, store.version, told]).toEqual([{ noStore: true }, {}, 1, 0]);
    mkdirSync(scratch.file('d'));
    writeFileSync(path, saved);
    expect(await store.set('acme', { storeUpTo: 5 })).toBe(2);
    expect(PolicyStore.open(path).get('acme')).toEqual({ storeUpTo: 5 });
  });

  test('has every one of many changes at once, in order, and a bad one among them fails alone', async () => {
    using scratch = new Scratch();
    const path = scratch.file('policies.json', '{}');
    const store = PolicyStore.open(path);
    const changes = Array.from({ length: 300 }, (_, index) => store.set(`t${index % 7}`, { storeUpTo: index }));
    const bad = store.set('bad', { storeUpTo: -1 });
    await expect(bad).rejects.toMatchObject({ code: 'KVSS_BAD_INPUT' });
    expect(await Promise.all(changes)).toEqual(changes.map((_, index) => index + 1));
    expect(PolicyStore.open(path).list()).toEqual(store.list());
    expect(store.get('t5')).toEqual({ storeUpTo: 299 });
  });
});
