import { createHash } from 'node:crypto';
import { z } from 'zod';
import { localError } from './errors.js';
import { describeIssue, size } from './schema.js';

/** Longest name of a tenant that can have a policy of its own, in UTF-16 units; fits a URL whatever it is made of. */
export const MAX_ISOLATION_ID_LENGTH = 256;

/** A year. Memory that lasts as long as its daemon does not outlive it, and nobody means longer. */
const LONGEST_TTL_SECONDS = 366 * 24 * 3600;

/** A millisecond: timers are no finer. */
const SHORTEST_TTL_SECONDS = 0.001;

/** More tokens than an array of them can have. */
const MOST_TOKENS = 2 ** 32 - 1;

const ttl = z.strictObject({
  /** What the time counts from: the last match or store that used a column, or the moment when it was first stored. */
  mode: z.enum(['last-use', 'first-use']),
  /** Seconds, fractions allowed. */
  seconds: z.number().min(SHORTEST_TTL_SECONDS).max(LONGEST_TTL_SECONDS),
});

const fields = {
  /** Columns older than this are never returned, and deleted and scrubbed. None if left out. */
  ttl: ttl.optional(),
  /** Nothing of the tenant is stored. */
  noStore: z.boolean().optional(),
  /**
   * Tokens from the start of a prompt: only columns that lie below as a whole are stored. Keeps the head that prompts
   * share, and not what the user typed. 0 stores nothing.
   */
  storeUpTo: z.number().int().min(0).max(MOST_TOKENS).optional(),
  /** Bytes of columns that the tenant may have stored at once, all shards of a stripe together. 0 stores nothing. */
  quotaBytes: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).optional(),
  /** Label for metrics, in place of the tenant's name. */
  tenantClass: z
    .string()
    .regex(/^[a-z0-9_-]{1,32}$/, 'must be 1 to 32 of a-z, 0-9, _ and -')
    .optional(),
};

/**
 * What a driver may keep of a tenant, as it travels: plain numbers. Unknown keys are refused here, unlike in frames, because
 * one that is not understood may be a restriction.
 */
export const tenantPolicy = z.strictObject(fields);

/** As people write it: quotaBytes may have a unit, such as `64GiB`. */
const writtenPolicy = z.strictObject({
  ...fields,
  quotaBytes: z
    .union([
      fields.quotaBytes.unwrap(),
      z
        .string()
        .transform((text) => text as string | number)
        .pipe(size),
    ])
    .optional(),
});

/**
 * What may be kept of a tenant, checked. Every key may be left out and then restricts nothing; unknown keys are refused with
 * KVSS_BAD_INPUT.
 */
export type TenantPolicy = z.output<typeof tenantPolicy>;
/** What people may write for a policy: as TenantPolicy, and `quotaBytes` may have a unit, such as `64GiB`. */
export type TenantPolicyInput = z.input<typeof writtenPolicy>;

/** Checks a policy that somebody wrote. Throws KVSS_BAD_INPUT that names the key, below `source`. */
export function parseTenantPolicy(input: unknown, source = 'policy'): TenantPolicy {
  const parsed = writtenPolicy.safeParse(input);
  if (!parsed.success) throw localError('KVSS_BAD_INPUT', `${source}: ${describeIssue(parsed.error)}`);
  return plain(parsed.data);
}

/** Keys that say nothing are left out, so that equal policies look alike. */
function plain(policy: TenantPolicy): TenantPolicy {
  return Object.fromEntries(Object.entries(policy).filter(([, value]) => value !== undefined));
}

/**
 * Checks the name of a tenant that is to have a policy of its own. Throws KVSS_BAD_INPUT. Any letters, compared as they
 * are: no case folding, no normal forms. Control characters and halves of letters are refused, because names go through
 * URLs and files.
 */
export function checkIsolationId(isolationId: unknown, source = 'isolationId'): string {
  const bad = (message: string) => localError('KVSS_BAD_INPUT', `${source}: ${message}`);
  if (typeof isolationId !== 'string' || isolationId === '') throw bad('a non-empty string is needed');
  if (isolationId.length > MAX_ISOLATION_ID_LENGTH) {
    throw bad(`${isolationId.length} characters are more than ${MAX_ISOLATION_ID_LENGTH}`);
  }
  if (/[\p{Cc}\p{Cs}]/u.test(isolationId)) throw bad('control characters and unpaired surrogates are not allowed');
  return isolationId;
}

/** Bytes of a tenant's digest. */
export const TENANT_DIGEST_BYTES = 32;

/**
 * How a tenant is named on the wire: SHA-256 of the isolationId in UTF-8. A driver finds the tenants that it serves, and
 * the names of others are not spelt out to it; names that can be guessed can still be looked up.
 */
export function tenantDigest(isolationId: string): Buffer {
  return createHash('sha256').update(isolationId, 'utf8').digest();
}
