#!/usr/bin/env node
// Runs every `$ kvss plan ...` in docs/PLANNING.md, puts what it prints below it, and draws its plots. With --check nothing is written,
// and it fails where the page is not what the commands say.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const page = join(root, 'docs/PLANNING.md');
const main = join(root, 'dist/cli/main.js');
/** Where the commands of the page are run: the configs are there. */
const cwd = join(root, 'test/unit/fixtures/model_configs');

const check = process.argv.includes('--check');
const scratch = mkdtempSync(join(tmpdir(), 'kvss-plan-docs-'));
const wrong = [];

function run(command) {
  const args = command.split(' ').slice(1);
  const at = args.indexOf('--svg') + 1;
  if (!check || at === 0) return execFileSync(process.execPath, [main, ...args], { cwd, encoding: 'utf8' });
  const shipped = readFileSync(resolve(cwd, args[at]), 'utf8');
  const drawn = join(scratch, 'plot.svg');
  const output = execFileSync(process.execPath, [main, ...args.with(at, drawn)], { cwd, encoding: 'utf8' });
  if (readFileSync(drawn, 'utf8') !== shipped) wrong.push(args[at]);
  return output;
}

try {
  const before = readFileSync(page, 'utf8');
  const after = before.replace(/^```console\n\$ (kvss .*)\n[\s\S]*?^```$/gm, (block, command) => {
    const now = `\`\`\`console\n$ ${command}\n${run(command)}\`\`\``;
    if (now !== block) wrong.push(command);
    return now;
  });
  if (!check) writeFileSync(page, after);
  else if (wrong.length > 0) {
    console.error(`docs/PLANNING.md is not what these say; run node scripts/plan_docs.mjs:\n${wrong.join('\n')}`);
    process.exitCode = 1;
  }
} finally {
  rmSync(scratch, { recursive: true });
}
