import { Command } from 'commander';
import { parseCluster } from '../cluster/cluster.js';
import { type ClusterShape, DEFAULT_SHAPE, generateCluster } from '../cluster/generate.js';
import { integerOption } from './options.js';

interface ClusterFlags extends Omit<ClusterShape, 'nodes'> {
  axNodes: number;
}

/** `kvss plan cluster`: the YAML of a cluster on rails, of any size. */
export function planClusterCommand(): Command {
  const shape = DEFAULT_SHAPE;
  return new Command('cluster')
    .description('print the YAML of a cluster on rails, of any size, for kvss plan placement')
    .option('--boxes <count>', 'boxes', integerOption(1), shape.boxes)
    .option('--ax-nodes <count>', 'AX nodes', integerOption(1), shape.nodes)
    .option(
      '--boxes-per-group <count>',
      'boxes that share leaves: one for each domain',
      integerOption(1),
      shape.boxesPerGroup,
    )
    .option('--ports <count>', 'ports of each domain', integerOption(1, 16), shape.ports)
    .option('--nics <count>', 'NICs of each AX node, on neighbouring leaves', integerOption(0, 16), shape.nics)
    .option('--cores <count>', 'cores of each AX node', integerOption(1), shape.cores)
    .option('--memory <size>', 'memory of each AX node', shape.memory)
    .option('--nic-bandwidth <rate>', 'of each NIC', shape.nicBandwidth)
    .option('--port-bandwidth <rate>', 'of each port', shape.portBandwidth)
    .option('--uplink <rate>', 'of each leaf, to the spine', shape.uplink)
    .option('--spine <rate>', 'of the spine', shape.spine)
    .action(({ axNodes, ...flags }: ClusterFlags) => {
      const text = generateCluster({ ...flags, nodes: axNodes });
      // Sizes and bandwidths are as they were given: here they are looked at.
      parseCluster(text, 'generated');
      process.stdout.write(text);
    });
}
