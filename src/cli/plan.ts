import { Command } from 'commander';
import { planBandwidthCommand } from './plan_bandwidth.js';
import { planClusterCommand } from './plan_cluster.js';
import { planMemoryCommand } from './plan_memory.js';
import { planModelCommand } from './plan_model.js';
import { planPlacementCommand } from './plan_placement.js';
import { planSimulateCommand } from './plan_simulate.js';

/** `kvss plan`: what a box and a cluster need before anyone buys or boots them. */
export function planCommand(): Command {
  return new Command('plan')
    .description('sizes, bandwidth, memory and placement, before anything is bought or booted')
    .addCommand(planModelCommand())
    .addCommand(planBandwidthCommand())
    .addCommand(planMemoryCommand())
    .addCommand(planClusterCommand())
    .addCommand(planPlacementCommand())
    .addCommand(planSimulateCommand());
}
