#!/usr/bin/env node
// Puts regions of examples/*.mjs into the guides, where `<!-- example: FILE REGION -->` asks for them. `--check` writes
// nothing, and fails where a guide and the examples differ.
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const GUIDES = ['docs/EMBEDDING.md', 'docs/ONNX.md'];
const BLOCK = /(<!-- example: (\S+) (\S+) -->\n)[\s\S]*?(<!-- end of example -->)/g;

/** What lies between `// region NAME` and the next `// endregion`, moved to the left. */
function region(file, name) {
  const text = readFileSync(`${root}examples/${file}.mjs`, 'utf8');
  const found = new RegExp(`^ *// region ${name}\\n([\\s\\S]*?)^ *// endregion$`, 'm').exec(text)?.[1];
  if (found === undefined) throw new Error(`examples/${file}.mjs has no region '${name}'`);
  const lines = found.trimEnd().split('\n');
  const indent = Math.min(...lines.filter((line) => line !== '').map((line) => line.search(/\S/)));
  return lines.map((line) => line.slice(indent)).join('\n');
}

for (const guide of GUIDES) {
  const before = readFileSync(root + guide, 'utf8');
  const after = before.replace(
    BLOCK,
    (_, begin, file, name, end) => `${begin}\`\`\`js\n${region(file, name)}\n\`\`\`\n${end}`,
  );
  if (before === after) continue;
  if (!process.argv.includes('--check')) writeFileSync(root + guide, after);
  else {
    console.error(`${guide} does not show the examples as they are: npm run docs`);
    process.exitCode = 1;
  }
}
