// The figures of the driver in a Prometheus registry of the embedder.
//   node examples/metrics.mjs
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon, SwDriver } from 'kvss';
import { Registry } from 'prom-client';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const daemon = await KvssDaemon.start({ socket, shards: [{ budget: '8MiB' }], http: false, logLevel: 'silent' });
const driver = await SwDriver.connect({
  daemons: [socket],
  model: { id: 'my-model', revision: '7', dtype: 'bf16', layout: 'by-layer', bytesPerToken: [512] },
});

// region metrics
// Labelled by class, never by tenant: names of tenants do not end up in dashboards.
driver.policies.set('acme', { tenantClass: 'gold' });

const registry = new Registry();
driver.registerMetrics(registry);
// Serve it wherever the engine serves its own: response.end(await registry.metrics()).
// endregion

for (const isolationId of ['acme', 'acme', 'globex']) {
  const prompt = Uint32Array.from({ length: 500 }, (_, position) => position);
  const sequence = driver.openSequence({ isolationId });
  const hit = sequence.match(prompt);
  await hit.refill({ read() {} });
  hit.release();
  // Here the runtime computes the prompt; see hello.mjs.
  await sequence.evict({
    write(column, pieces) {
      for (const piece of pieces) piece.fill(column.index);
      return true;
    },
  });
}

const text = await registry.metrics();
const names = [...text.matchAll(/^# TYPE (\S+) (\S+)/gm)].map(([, name, type]) => `${name} (${type})`);
console.log(names.join('\n'));
console.log('---');
const telling = /^kvss_driver_(prompt|hit|miss)_tokens_total|^kvss_driver_columns\{/;
for (const line of text.split('\n')) if (telling.test(line) && !line.endsWith(' 0')) console.log(line);

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
