#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { KvssError } from '../common/errors.js';
import { VERSION } from '../common/version.js';
import { benchCommand } from './bench.js';
import { demoCommand } from './demo.js';
import { demoModelCommand } from './demo_model.js';
import { planCommand } from './plan.js';
import { replayCommand } from './replay.js';
import { serveCommand } from './serve.js';
import { statCommand } from './stat.js';
import { waferCommand } from './wafer.js';

const program = new Command('kvss')
  .description('Store for the attention state (KV cache) of tokens that were seen before')
  .version(VERSION)
  .addCommand(serveCommand())
  .addCommand(statCommand())
  .addCommand(replayCommand())
  .addCommand(waferCommand())
  .addCommand(demoCommand())
  .addCommand(demoModelCommand())
  .addCommand(benchCommand())
  .addCommand(planCommand())
  .exitOverride();

for (const command of program.commands.flatMap((each) => [each, ...each.commands])) command.exitOverride();

try {
  await program.parseAsync();
} catch (thrown) {
  if (thrown instanceof CommanderError) {
    // Commander has said what it had to say.
    process.exitCode = thrown.exitCode === 0 ? 0 : 2;
  } else if (thrown instanceof KvssError) {
    console.error(`kvss: ${thrown.message} [${thrown.code}]`);
    process.exitCode = 1;
  } else {
    console.error(thrown);
    process.exitCode = 1;
  }
}
