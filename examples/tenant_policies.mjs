// What may be kept of which tenant, and for how long: from code, over the daemon's HTTP API, and per prompt.
//   node examples/tenant_policies.mjs
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { KvssDaemon, SwDriver } from 'kvss';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const adminToken = 'a-token-of-your-own';
const daemon = await KvssDaemon.start({
  socket,
  shards: [{ budget: '8MiB' }],
  http: { port: 0 },
  adminToken,
  logLevel: 'silent',
});
const driver = await SwDriver.connect({
  daemons: [socket],
  model: { id: 'my-model', revision: '7', dtype: 'bf16', layout: 'by-layer', bytesPerToken: [512] },
  expiryTickMs: 100,
});

const prompt = Uint32Array.from({ length: 640 }, (_, position) => position);
async function store(isolationId, options) {
  const sequence = driver.openSequence({ isolationId });
  sequence.match(prompt, options).release();
  // Here the runtime computes the prompt; see hello.mjs.
  const { stored } = await sequence.evict({
    write(column, pieces) {
      for (const piece of pieces) piece.fill(column.index);
      return true;
    },
  });
  return stored;
}

// region code
// From code, in this driver only. A tenant's own policy takes the place of the default as a whole.
driver.policies.setDefault({ ttl: { mode: 'last-use', seconds: 3600 } });
driver.policies.set('acme', { ttl: { mode: 'first-use', seconds: 1 }, quotaBytes: '128KiB', tenantClass: 'gold' });
// endregion
console.log(`acme stored ${await store('acme')} columns of 32 KiB and has ${driver.columns}: its quota`);

// region expiry
// Expired columns are never returned, and deleted and scrubbed at most expiryTickMs and a deadline later.
while (driver.stats.columnsExpired === 0) await pause(50);
const { missed } = driver.openSequence({ isolationId: 'acme' }).match(prompt);
console.log(`expired: ${missed.expired} tokens, ${driver.columns} columns are left`);
// endregion

// region http
// Over HTTP, for all drivers of the daemon. Of each field the strictest holds.
async function put(path, policy) {
  const response = await fetch(`${daemon.adminUrl}/v1/${path}`, {
    method: 'PUT',
    headers: { authorization: `Bearer ${adminToken}`, 'content-type': 'application/json' },
    body: JSON.stringify(policy),
  });
  return { status: response.status, body: await response.json() };
}
await put('policies/globex', { noStore: true });
// endregion
while (!driver.policies.policyOf('globex').noStore) await pause(5);
console.log(`globex stored ${await store('globex')} columns`);
const { status, body } = await put('policies/globex', { nostore: true });
console.log(`a misspelt key: ${status} ${body.error.code}: ${body.error.message}`);

// region head
// Of this prompt only the head that other prompts share, such as a system prompt; not what the user typed.
const head = await store('initech', { storeUpTo: 200 });
// endregion
console.log(`initech stored ${head} columns of ${prompt.length / driver.columnTokens}`);

// region forget
const scrubbed = await driver.forget({ isolationId: 'initech' });
// endregion
console.log(`forgot ${scrubbed} columns`);

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
