// Policies of tenants and the time that columns have, in a driver and in a daemon.

import { anyDriver, vitest } from './killers.mjs';

export const policies = [
  {
    name: 'expiry: a match finds nothing whose time is over',
    file: 'src/swdriver/driver_core.ts',
    find: '      if (expires && tenant.expiryOf(ledger.storedAt(node), ledger.usedAt(node)) <= now) {',
    replace: '      if (false) {',
    protects: 'P2: what has expired is never returned, also where nobody has come to delete it.',
    killers: [
      vitest('test/model/policies.test.ts', 'what has expired is not found, also where nobody has come to delete it'),
      anyDriver,
    ],
  },
  {
    name: 'expiry: both times count',
    file: 'src/swdriver/tenant.ts',
    find: 'return Math.min(usedAt + lastUseSeconds * 1000, storedAt + firstUseSeconds * 1000);',
    replace: 'return usedAt + lastUseSeconds * 1000;',
    protects: 'P2: a use does not make a column live longer that counts from its first.',
    killers: [
      vitest('test/model/policies.test.ts', 'what has expired is not found, also where nobody has come to delete it'),
      anyDriver,
    ],
  },
  {
    name: 'policy: a tenant that stores nothing finds nothing',
    file: 'src/swdriver/driver_core.ts',
    find: 'if (!tenant.policy.noStore) {\n      map.walk',
    replace: 'if (tenant) {\n      map.walk',
    protects: 'P2: what must not be kept is not served, nor is anything while policies are not known.',
    killers: [
      vitest(
        'test/model/policies.test.ts',
        'while policies are not known nothing is found or stored, and nothing goes',
      ),
    ],
  },
  {
    name: 'policy: a tenant that stores nothing stores nothing',
    file: 'src/swdriver/sequence.ts',
    find: '    if (policy.noStore) return 0;\n',
    replace: '',
    protects: 'P2: what must not be kept is not sent to any shard.',
    killers: [
      vitest(
        'test/model/policies.test.ts',
        'while policies are not known nothing is found or stored, and nothing goes',
      ),
    ],
  },
  {
    name: 'policy: columns beyond what may be stored are not sent',
    file: 'src/swdriver/sequence.ts',
    find: 'const full = Math.min(all, this.#storeColumns);',
    replace: 'const full = all;',
    also: [{ file: 'src/swdriver/sequence.ts', find: '|| cursor >= this.#storeColumns) break;', replace: ') break;' }],
    protects: 'P2: what a user typed stays out where only the head may be kept.',
    killers: [vitest('test/model/policies.test.ts', 'columns beyond what may be stored reach no shard')],
  },
  {
    name: 'policy: columns beyond what may be stored are not written ahead',
    file: 'src/swdriver/sequence.ts',
    find: '        if (column >= this.#storeColumns) break;\n',
    replace: '',
    also: [
      {
        file: 'src/swdriver/sequence.ts',
        find: 'Math.min(Math.floor(this.#proposedLength / map.columnTokens), this.#storeColumns)',
        replace: 'Math.floor(this.#proposedLength / map.columnTokens)',
      },
    ],
    protects: 'P2: what a user typed stays out where only the head may be kept.',
    killers: [vitest('test/model/policies.test.ts', 'columns beyond what may be stored reach no shard')],
  },
  {
    name: 'policy: what a policy does not allow any more goes',
    file: 'src/swdriver/driver_core.ts',
    find: 'if (columns !== Number.POSITIVE_INFINITY) this.#eraseFrom(root, columns);',
    replace: '',
    protects: 'P2: what must not be kept is scrubbed, and not only hidden.',
    killers: [vitest('test/model/policies.test.ts', 'a policy that comes later has what it forbids scrubbed')],
  },
  {
    name: 'policy: policies that are not known take nothing away',
    file: 'src/swdriver/driver_core.ts',
    find: '    if (policy.pending) return;\n',
    replace: '',
    protects: 'P3: a daemon that is started again does not empty the cache.',
    killers: [
      vitest(
        'test/model/policies.test.ts',
        'while policies are not known nothing is found or stored, and nothing goes',
      ),
    ],
  },
  {
    name: 'policy: a quota holds for new columns',
    file: 'src/swdriver/driver_core.ts',
    find: 'while (tenant.storedBytes + this.#wholeBytes > tenant.policy.quotaBytes) {',
    replace: 'while (false) {',
    protects: 'P3: one tenant does not take the room of all others.',
    killers: [
      vitest('test/model/policies.test.ts', 'a tenant has no more bytes than its quota, and makes room of its own'),
    ],
  },
  {
    name: 'policy: who is over a quota makes room of its own',
    file: 'src/swdriver/driver_core.ts',
    find: 'this.#map.evictLeaf((node) => this.#discard(node, reason), first);',
    replace: 'this.#map.evictLeaf((node) => this.#discard(node, reason));',
    protects: 'P2: a quota of one tenant takes nothing from another.',
    killers: [
      vitest('test/model/policies.test.ts', 'a tenant has no more bytes than its quota, and makes room of its own'),
    ],
  },
  {
    name: 'policy: unknown policies forbid everything',
    file: 'src/swdriver/tenant_policies.ts',
    find: 'return this.known || merged.noStore ? merged : { ...merged, noStore: true, pending: true };',
    replace: 'return merged;',
    protects: 'P2: nothing is kept that a policy may forbid which has not come yet.',
    killers: [
      vitest(
        'test/unit/tenant_policies.test.ts',
        'store nothing while those of any daemon are',
        'store nothing while those of any daemon are',
      ),
    ],
  },
  {
    name: 'policy: one source that forbids is enough',
    file: 'src/swdriver/tenant_policies.ts',
    find: 'noStore: a.noStore || b.noStore === true,',
    replace: 'noStore: b.noStore === true,',
    protects: 'P2: of each field the strictest holds.',
    killers: [
      vitest('test/unit/tenant_policies.test.ts', 'store nothing while those of any daemon are'),
      vitest('test/unit/tenant_policies.test.ts', 'are the strictest whatever the order of the sources'),
    ],
  },
  {
    name: 'policy: the smallest quota holds',
    file: 'src/swdriver/tenant_policies.ts',
    find: 'Math.min(a.quotaBytes, b.quotaBytes ?? Number.POSITIVE_INFINITY)',
    replace: 'b.quotaBytes ?? a.quotaBytes',
    protects: 'P2: of each field the strictest holds.',
    killers: [vitest('test/unit/tenant_policies.test.ts', 'are the strictest whatever the order of the sources')],
  },
  {
    name: 'policy: a key that is not understood is refused',
    file: 'src/common/tenant_policy.ts',
    find: 'export const tenantPolicy = z.strictObject(fields);',
    replace: 'export const tenantPolicy = z.object(fields);',
    protects: 'P2: a restriction of a later release is not overlooked.',
    killers: [
      vitest('test/unit/tenant_policy.test.ts', 'a tenant policy'),
      vitest('test/unit/tenant_policies.test.ts', 'the policies of one daemon'),
    ],
  },
  {
    name: 'policy store: what somebody writes is checked',
    file: 'src/kvss/policy_store.ts',
    find: '    const checked = parseTenantPolicy(policy);\n    return this.#change((table) => {\n      table.set',
    replace: '    const checked = policy as TenantPolicy;\n    return this.#change((table) => {\n      table.set',
    protects: 'P2: a policy that makes no sense is not taken for one that allows.',
    killers: [vitest('test/unit/policy_store.test.ts', 'refuses what is no policy or no tenant, and changes nothing')],
  },
  {
    name: 'policy store: a change is written before it is in force',
    file: 'src/kvss/policy_store.ts',
    find: '          await this.#file?.write(listOf(table));\n          this.#table = table;\n',
    replace: '          this.#table = table;\n          await this.#file?.write(listOf(table));\n',
    protects: 'P2: no policy is in force that a restart would forget.',
    killers: [
      vitest(
        'test/unit/policy_store.test.ts',
        'that cannot be written refuses the change: old policies stay in force and on disk',
      ),
    ],
  },
  {
    name: 'policy store: a driver that has missed deletions gets everything anew',
    file: 'src/kvss/policy_store.ts',
    find: 'if (!policy) this.entries.delete(isolationId);\n    this.basis += 1;\n',
    replace: 'if (!policy) this.entries.delete(isolationId);\n',
    protects: 'P2: a driver does not follow a policy that is gone.',
    killers: [
      vitest(
        'test/unit/policy_store.test.ts',
        'stays bounded and right where tenants come and go, also for a driver in the middle of its pages',
      ),
    ],
  },
];
