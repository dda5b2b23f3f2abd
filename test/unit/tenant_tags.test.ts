import { expect, test, vi } from 'vitest';
import { TenantTags } from '../../src/swdriver/tenant_tags.js';

// What the next digests are, where a test says so: collisions do not come by themselves.
const digests = vi.hoisted(() => [] as Buffer[]);
vi.mock('node:crypto', async (original) => {
  const crypto = await original<typeof import('node:crypto')>();
  return {
    ...crypto,
    createHmac: (...how: Parameters<typeof crypto.createHmac>) => {
      const hmac = crypto.createHmac(...how);
      const digest = hmac.digest.bind(hmac) as () => Buffer;
      return Object.assign(hmac, { digest: () => digests.shift() ?? digest() });
    },
  };
});

const key = Buffer.alloc(32, 7);

test('a tenant has one tag, and no two tenants have the same', () => {
  const tags = new TenantTags(key);
  const names = ['a', 'b', '1:a', 'a ', 'A', '\u00e9', 'e\u0301', 'x'.repeat(10_000)];
  const all = names.map((name) => tags.tagOf(name));
  expect(new Set(all).size).toBe(names.length);
  expect(names.map((name) => tags.tagOf(name))).toEqual(all);
  for (const tag of all) expect(tag > 0n && tag < 2n ** 64n).toBe(true);
});

test('tags depend on the key, which is random if none is given', () => {
  expect(new TenantTags(key).tagOf('a')).toBe(new TenantTags(Buffer.from(key)).tagOf('a'));
  expect(new TenantTags(key).tagOf('a')).not.toBe(new TenantTags(Buffer.alloc(32, 8)).tagOf('a'));
  expect(new TenantTags().tagOf('a')).not.toBe(new TenantTags().tagOf('a'));
});

test('a tag is never zero', () => {
  digests.push(Buffer.alloc(32));
  expect(new TenantTags(key).tagOf('a')).toBe(1n);
});

test('two tenants that would have the same tag are refused, and the first one keeps it', () => {
  const tags = new TenantTags(key);
  digests.push(Buffer.alloc(32, 3), Buffer.alloc(32, 3));
  const first = tags.tagOf('a');
  expect(() => tags.tagOf('b')).toThrow('two tenants have the same tag under this key; choose another key');
  expect(tags.tagOf('a')).toBe(first);
  expect(tags.tagOf('b')).not.toBe(first);
});

test('names that are the same in UTF-8 are refused and not mixed up', () => {
  const tags = new TenantTags(key);
  tags.tagOf('\ud800');
  expect(() => tags.tagOf('\ud801')).toThrow('two tenants have the same tag');
});
