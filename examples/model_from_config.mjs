// Groups from a Hugging Face config.json: a target with a draft, and a hybrid of sliding and full attention.
//   node examples/model_from_config.mjs
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describeModel, groupsFrom, KvssDaemon, SwDriver } from 'kvss';

// Read them with JSON.parse(await readFile('config.json', 'utf8')). These are the keys that matter.
const llama = {
  model_type: 'llama',
  num_hidden_layers: 32,
  hidden_size: 4096,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  torch_dtype: 'bfloat16',
};
const smallLlama = { ...llama, num_hidden_layers: 16, hidden_size: 2048, head_dim: 64 };
const gptOss = {
  model_type: 'gpt_oss',
  num_hidden_layers: 24,
  hidden_size: 2880,
  num_attention_heads: 64,
  num_key_value_heads: 8,
  head_dim: 64,
  sliding_window: 128,
  layer_types: Array.from({ length: 24 }, (_, layer) => (layer % 2 === 0 ? 'sliding_attention' : 'full_attention')),
};

function show(what, { groups, bytesPerToken }) {
  console.log(`${what}: ${bytesPerToken} bytes a token`);
  for (const { name, layers, dtype, bytesPerToken, windowTokens = 'all' } of groups) {
    console.log(`  ${name}: ${layers.length} layers in ${dtype}, ${bytesPerToken} bytes a token, sees ${windowTokens}`);
  }
}

// region draft
const speculative = describeModel(llama, { draft: smallLlama, dtype: 'fp8' });
// endregion
show('target with draft', speculative);
// region hybrid
const hybrid = describeModel(gptOss, { dtype: 'bf16' });
// endregion
show('hybrid', hybrid);

// region split
// Where layers lie: in proportion, by count, or layer by layer. A function gives each group its own.
const groups = groupsFrom(hybrid, { shares: [2, 1] }, { granuleBytes: 512 });
const model = { id: 'openai/gpt-oss-20b', revision: 'main', dtype: 'bf16', layout: 'layer-major', groups };
// A draft is small enough for one shard.
const withDraft = groupsFrom(speculative, ({ kind }) => ({ shares: kind === 'draft' ? [0, 1] : [1, 1] }));
// endregion
for (const { name, bytesPerToken } of [...groups, ...withDraft]) console.log(`${name}: ${bytesPerToken.join(' + ')}`);

const directory = mkdtempSync(join(tmpdir(), 'kvss-'));
const socket = join(directory, 'kvss.sock');
const shards = [{ budget: '96MiB' }, { budget: '48MiB' }];
const daemon = await KvssDaemon.start({ socket, shards, http: false, logLevel: 'silent' });
const driver = await SwDriver.connect({ daemons: [socket], model, capacityColumns: 16 });
const sequence = driver.openSequence({ isolationId: 'acme' });
const prompt = new Uint32Array(640);
sequence.match(prompt).release();
// Here the runtime computes the prompt; see hello.mjs.
const { stored } = await sequence.evict({
  write(column, pieces) {
    for (const piece of pieces) piece.fill(column.index);
    return true;
  },
});
console.log(
  `room for ${driver.capacityColumns} columns, ${stored} stored, ${driver.pieceBytes.join(' + ')} bytes each`,
);

// region errors
try {
  describeModel({ ...llama, layer_types: Array(32).fill('linear_attention') });
} catch (error) {
  console.log(`${error.code}: ${error.message}`);
}
// endregion

await driver.close();
await daemon.stop();
rmSync(directory, { recursive: true });
