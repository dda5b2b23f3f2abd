// Why prompts were missed: of one prompt, of the driver, and as messages of node:diagnostics_channel.
//   node examples/accounting.mjs
import diagnostics from 'node:diagnostics_channel';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvssDaemon, SwDriver } from 'kvss';

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const daemon = await KvssDaemon.start({ socket, shards: [{ budget: '8MiB' }], http: false, logLevel: 'silent' });
const driver = await SwDriver.connect({
  daemons: [socket],
  model: { id: 'my-model', revision: '7', dtype: 'bf16', layout: 'by-layer', bytesPerToken: [512] },
  capacityColumns: 10,
});

// region channels
// Listeners run within the call that they hear of: note, count, or trace, and leave the rest for later.
function onMatch({ tenantClass, promptTokens, hitTokens, durationMs }) {
  if (durationMs > 50) console.log('a lookup that took long');
  console.log(`  kvss:match: class ${tenantClass}, ${hitTokens} of ${promptTokens} tokens`);
}
const onEvict = ({ stored, present, dropped }) => {
  console.log(`  kvss:evict: ${stored} stored, ${present} present, ${dropped} dropped`);
};
diagnostics.subscribe('kvss:match', onMatch);
diagnostics.subscribe('kvss:evict', onEvict);
// endregion

async function serve(what, isolationId, prompt) {
  console.log(what);
  const sequence = driver.openSequence({ isolationId });
  // region missed
  const hit = sequence.match(prompt);
  const causes = Object.entries(hit.missed).filter(([, tokens]) => tokens > 0);
  console.log(`  missed: ${causes.map(([cause, tokens]) => `${cause} ${tokens}`).join(', ')}`);
  hit.release();
  // endregion
  // Here the runtime computes the prompt; see hello.mjs.
  await sequence.evict({
    write(column, pieces) {
      for (const piece of pieces) piece.fill(column.index);
      return true;
    },
  });
}
const promptFrom = (first) => Uint32Array.from({ length: 500 }, (_, position) => first + position);
await serve('new', 'acme', promptFrom(0));
await serve('the same', 'acme', promptFrom(0));
await serve('of another tenant', 'globex', promptFrom(0));
await serve('evicted meanwhile', 'acme', promptFrom(0));
diagnostics.unsubscribe('kvss:match', onMatch);
diagnostics.unsubscribe('kvss:evict', onEvict);

// region report
// What the driver tells its daemons as well, every reportMs: `kvss stat` and /metrics of the daemon show it.
const { lookups, promptTokens, hitTokens, missTokens, curve } = driver.report;
console.log(`${lookups} lookups: ${hitTokens} of ${promptTokens} tokens hit`);
const missed = Object.values(missTokens).reduce((sum, tokens) => sum + tokens, 0);
console.log(`hits and misses make up the whole: ${hitTokens + missed === promptTokens}`);
// The hit rate that the same prompts would have had with room for so many columns.
console.log(`a what-if curve of ${curve.length} points, from ${curve[0].columns} to ${curve.at(-1).columns} columns`);
// endregion

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
