import { readFileSync, realpathSync, statSync } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { KvssError, localError, messageOf } from '../common/errors.js';
import { describeIssue } from '../common/schema.js';
import { checkIsolationId, parseTenantPolicy, type TenantPolicy } from '../common/tenant_policy.js';
import { MAX_POLICIES, Status } from '../proto/generated.js';

/** All policies of a daemon, as the API and the file have them. */
export interface PolicyList {
  /** Rises with every change. */
  version: number;
  /** Of tenants that have none of their own. */
  default: TenantPolicy;
  /** In the order of their changes. */
  policies: { isolationId: string; policy: TenantPolicy }[];
}

// The policies themselves are looked at one by one, so that an error can name the tenant.
const listSchema = z.strictObject({
  version: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).optional(),
  default: z.unknown().optional(),
  policies: z
    .array(z.strictObject({ isolationId: z.unknown(), policy: z.unknown() }))
    .max(MAX_POLICIES)
    .optional(),
});

/** Four times what the largest list takes. */
const MAX_FILE_BYTES = 16 * 2 ** 20;

/** Checks a whole list. Throws KVSS_BAD_INPUT that names the key. `version` is 0 where there is none. */
export function parsePolicyList(input: unknown, source = 'policies'): PolicyList {
  const parsed = listSchema.safeParse(input);
  if (!parsed.success) throw localError('KVSS_BAD_INPUT', `${source}: ${describeIssue(parsed.error)}`);
  const { version = 0, default: byDefault = {}, policies = [] } = parsed.data;
  const seen = new Set<string>();
  return {
    version,
    default: parseTenantPolicy(byDefault, `${source}: default`),
    policies: policies.map((entry, index) => {
      const isolationId = checkIsolationId(entry.isolationId, `${source}: 'policies.${index}.isolationId'`);
      if (seen.has(isolationId)) {
        throw localError('KVSS_BAD_INPUT', `${source}: 'policies.${index}.isolationId': the tenant comes twice`);
      }
      seen.add(isolationId);
      return { isolationId, policy: parseTenantPolicy(entry.policy, `${source}: 'policies.${index}.policy'`) };
    }),
  };
}

/**
 * The file that policies are kept in: YAML or JSON as far as it is read, JSON once it has been written. Whoever reads it
 * gets all of it or an error: rules that are lost would be columns kept that must not be.
 */
export class PolicyFile {
  /** Where the file is: not the link to it, which a rename would replace. */
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** Throws KVSS_BAD_CONFIG that names file and key where it is not there, cannot be read, or is not a list of policies. */
  static open(path: string): { file: PolicyFile; list: PolicyList } {
    const bad = (message: string, cause?: unknown) =>
      localError('KVSS_BAD_CONFIG', `'policyFile': ${path}: ${message}`, cause);
    let text: string;
    let target: string;
    try {
      target = realpathSync(path);
      if (statSync(target).size > MAX_FILE_BYTES) throw bad(`larger than ${MAX_FILE_BYTES} bytes`);
      text = readFileSync(target, 'utf8');
    } catch (thrown) {
      if (thrown instanceof KvssError) throw thrown;
      if ((thrown as NodeJS.ErrnoException).code === 'ENOENT') {
        // Starting without would store for tenants that must not be stored for, where a disk is not mounted.
        throw bad('there is no such file; write {} into it to start without policies', thrown);
      }
      throw bad(`cannot read it: ${messageOf(thrown)}`, thrown);
    }
    const document = parseDocument(text);
    const [problem] = document.errors;
    if (problem) throw bad(problem.message.split(':\n')[0] as string);
    let value: unknown;
    try {
      value = document.toJS();
    } catch (thrown) {
      throw bad(messageOf(thrown), thrown);
    }
    if (value === null || value === undefined) throw bad('the file is empty; write {} into it to have no policies');
    try {
      return { file: new PolicyFile(target), list: parsePolicyList(value, `'policyFile': ${path}`) };
    } catch (thrown) {
      throw localError('KVSS_BAD_CONFIG', messageOf(thrown), thrown);
    }
  }

  /**
   * Replaces the file: after a crash it has the old content or the new one. Rejects with KVSS_INTERNAL that names the
   * cause, and leaves the old one.
   */
  async write(list: PolicyList): Promise<void> {
    const directory = dirname(this.#path);
    // The same directory, because only a rename within one file system is atomic.
    const temporary = join(directory, `.${basename(this.#path)}.${process.pid}.tmp`);
    try {
      // What a crash left behind may belong to somebody else by now; a new file has the mode that is asked for.
      await rm(temporary, { force: true });
      const handle = await open(temporary, 'wx', 0o600);
      try {
        await handle.writeFile(`${JSON.stringify(list, null, 1)}\n`);
        await handle.sync();
      } finally {
        await handle.close();
      }
      await rename(temporary, this.#path);
      await syncDirectory(directory);
    } catch (thrown) {
      await rm(temporary, { force: true }).catch(() => {});
      throw new KvssError(
        KvssError.ofStatus(Status.internal, '').code,
        `cannot write the policy file ${this.#path}: ${messageOf(thrown)}`,
        { cause: thrown },
      );
    }
  }
}

/** Makes a rename last. */
async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
