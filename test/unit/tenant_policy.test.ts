import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { KvssError } from '../../src/common/errors.js';
import {
  checkIsolationId,
  MAX_ISOLATION_ID_LENGTH,
  parseTenantPolicy,
  tenantDigest,
  tenantPolicy,
} from '../../src/common/tenant_policy.js';
import { encodeFrame, FrameType, payloadLength } from '../../src/proto/frames.js';
import { FrameHeaderLayout, MAX_FRAME_BYTES, MAX_POLICIES_PER_FRAME } from '../../src/proto/generated.js';
import { settings } from '../model/property_settings.js';

const FULL = {
  ttl: { mode: 'first-use', seconds: 0.123456789 },
  noStore: false,
  storeUpTo: 2 ** 32 - 1,
  quotaBytes: Number.MAX_SAFE_INTEGER,
  tenantClass: 'x'.repeat(32),
} as const;

describe('a tenant policy', () => {
  test.each([
    [{}, {}],
    [FULL, FULL],
    [{ quotaBytes: '64GiB' }, { quotaBytes: 64 * 2 ** 30 }],
    [
      { quotaBytes: 0, storeUpTo: 0 },
      { quotaBytes: 0, storeUpTo: 0 },
    ],
    [{ noStore: undefined }, {}],
    [{ ttl: { mode: 'last-use', seconds: 0.001 } }, { ttl: { mode: 'last-use', seconds: 0.001 } }],
  ])('%j is understood', (written, policy) => {
    expect(parseTenantPolicy(written)).toEqual(policy);
    expect(Object.keys(parseTenantPolicy(written)).sort()).toEqual(Object.keys(policy).sort());
  });

  test.each([
    [null, "policy: '(top level)'"],
    [[], "policy: '(top level)'"],
    ['noStore', "policy: '(top level)'"],
    [{ nostore: true }, "unknown key 'nostore'"],
    [{ noStore: 'yes' }, "'noStore'"],
    [{ noStore: null }, "'noStore'"],
    [{ ttl: 60 }, "'ttl'"],
    [{ ttl: { seconds: 60 } }, "'ttl.mode'"],
    [{ ttl: { mode: 'last-use' } }, "'ttl.seconds'"],
    [{ ttl: { mode: 'idle', seconds: 60 } }, "'ttl.mode'"],
    [{ ttl: { mode: 'last-use', seconds: 0 } }, "'ttl.seconds'"],
    [{ ttl: { mode: 'last-use', seconds: -1 } }, "'ttl.seconds'"],
    [{ ttl: { mode: 'last-use', seconds: Number.NaN } }, "'ttl.seconds'"],
    [{ ttl: { mode: 'last-use', seconds: 1e9 } }, "'ttl.seconds'"],
    [{ ttl: { mode: 'last-use', seconds: '60' } }, "'ttl.seconds'"],
    [{ ttl: { mode: 'last-use', seconds: 60, grace: 1 } }, "unknown key 'ttl.grace'"],
    [{ storeUpTo: -1 }, "'storeUpTo'"],
    [{ storeUpTo: 1.5 }, "'storeUpTo'"],
    [{ storeUpTo: 2 ** 32 }, "'storeUpTo'"],
    [{ quotaBytes: -1 }, "'quotaBytes'"],
    [{ quotaBytes: 1.5 }, "'quotaBytes'"],
    [{ quotaBytes: 2 ** 53 }, "'quotaBytes'"],
    [{ quotaBytes: '64 giraffes' }, "'quotaBytes'"],
    [{ tenantClass: '' }, "'tenantClass'"],
    [{ tenantClass: 'Gold' }, "'tenantClass'"],
    [{ tenantClass: 'x'.repeat(33) }, "'tenantClass'"],
    [{ tenantClass: 'a"} 1\nevil' }, "'tenantClass'"],
  ])('%j is refused with an error that names the key', (written, complaint) => {
    const parse = () => parseTenantPolicy(written);
    expect(parse).toThrow(expect.objectContaining({ code: 'KVSS_BAD_INPUT' }));
    expect(parse).toThrow(complaint);
  });

  test('is what anything at all is understood as, or there is one clear error', () => {
    const keys = fc.constantFrom(...Object.keys(FULL), 'mode', 'seconds', '__proto__', 'constructor', 'x');
    const leaf = fc.oneof(
      fc.double(),
      fc.integer(),
      fc.boolean(),
      fc.string(),
      fc.constantFrom(null, '1MiB', undefined),
    );
    const ttl = fc.record({
      mode: fc.constantFrom('last-use', 'first-use', 'x'),
      seconds: fc.double({ min: -1, max: 9 }),
    });
    const nearly = fc.record(
      {
        ttl: fc.oneof(ttl, leaf),
        noStore: fc.oneof(fc.boolean(), leaf),
        storeUpTo: fc.oneof(fc.nat(), leaf),
        quotaBytes: fc.oneof(fc.nat(), leaf),
        tenantClass: fc.oneof(fc.constant('gold'), leaf),
      },
      { requiredKeys: [] },
    );
    const outcomes = { taken: 0, refused: 0 };
    const run = fc.property(fc.oneof(nearly, fc.dictionary(keys, leaf), fc.anything()), (input) => {
      try {
        const policy = parseTenantPolicy(input);
        outcomes.taken += 1;
        // Saying it again changes nothing, and what travels is what was meant.
        expect(parseTenantPolicy(policy)).toEqual(policy);
        expect(tenantPolicy.parse(policy)).toEqual(policy);
        expect(Object.values(policy)).not.toContain(undefined);
        for (const key of Object.keys(policy)) expect(Object.keys(FULL)).toContain(key);
        expect(JSON.parse(JSON.stringify(policy))).toEqual(JSON.parse(JSON.stringify(parseTenantPolicy(policy))));
      } catch (thrown) {
        if (!(thrown instanceof KvssError)) throw thrown;
        outcomes.refused += 1;
        expect(thrown.code).toBe('KVSS_BAD_INPUT');
      }
    });
    fc.assert(run, settings(4_000));
    expect(Math.min(outcomes.taken, outcomes.refused)).toBeGreaterThan(100);
  });

  test('fits a frame as often as a page may have one', () => {
    const entry = { digest: tenantDigest('someone'), policy: FULL };
    const page = {
      version: Number.MAX_SAFE_INTEGER,
      basis: Number.MAX_SAFE_INTEGER,
      reset: true,
      more: true,
      default: FULL,
      entries: Array.from({ length: MAX_POLICIES_PER_FRAME }, () => entry),
    };
    expect(payloadLength(page)).toBeLessThan(MAX_FRAME_BYTES - FrameHeaderLayout.bytes);
    encodeFrame({ type: FrameType.policiesPage, requestId: 1, payload: page });
  });
});

describe('the name of a tenant', () => {
  test.each(['a', 'acme/eu', 'ünïcode 漢字 🦊', '../..', '__proto__', 'x'.repeat(MAX_ISOLATION_ID_LENGTH)])(
    '%j can have a policy',
    (name) => expect(checkIsolationId(name)).toBe(name),
  );

  test.each([
    ['', 'non-empty'],
    [7, 'non-empty'],
    [undefined, 'non-empty'],
    ['x'.repeat(MAX_ISOLATION_ID_LENGTH + 1), '257 characters are more than 256'],
    ['a\nb', 'control characters'],
    ['a\u0000', 'control characters'],
    ['\ud800', 'unpaired surrogates'],
  ])('%j cannot', (name, complaint) => {
    expect(() => checkIsolationId(name)).toThrow(complaint);
  });

  test('is its SHA-256 on the wire', () => {
    expect(tenantDigest('abc').toString('hex')).toBe(
      'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
    );
  });
});
