import { DOMAINS_PER_BOX } from '../common/box.js';

/** What a cluster is to be made of. Sizes and bandwidths as people write them, such as `512GiB` and `100Gbps`. */
export interface ClusterShape {
  readonly boxes: number;
  readonly nodes: number;
  /** Boxes that share leaf switches: one leaf for each domain. */
  readonly boxesPerGroup: number;
  /** Of each domain. */
  readonly ports: number;
  /** Of each AX node, on leaves of its group that follow each other. */
  readonly nics: number;
  readonly cores: number;
  readonly memory: string;
  readonly nicBandwidth: string;
  readonly portBandwidth: string;
  readonly uplink: string;
  readonly spine: string;
}

/** The cluster of the source documents, 8 boxes and 8 AX nodes, and what makes larger ones of the same kind. */
export const DEFAULT_SHAPE: ClusterShape = {
  boxes: 8,
  nodes: 8,
  boxesPerGroup: 16,
  ports: 1,
  nics: 2,
  cores: 64,
  memory: '512GiB',
  nicBandwidth: '100Gbps',
  portBandwidth: '100Gbps',
  uplink: '400Gbps',
  spine: '1600Gbps',
};

/**
 * The YAML of a cluster in groups, as rails are built: domain d of every box of a group is cabled to leaf d of the group,
 * and the AX nodes are dealt out to the groups evenly, each with its NICs on neighbouring leaves.
 */
export function generateCluster(shape: ClusterShape): string {
  const groups = Math.ceil(shape.boxes / shape.boxesPerGroup);
  const leaf = (group: number, number: number) => `leaf-${group * DOMAINS_PER_BOX + (number % DOMAINS_PER_BOX)}`;
  const list = (items: readonly string[]) => `[${items.join(', ')}]`;
  const lines = [
    `# ${shape.boxes} boxes and ${shape.nodes} AX nodes in groups of up to ${shape.boxesPerGroup} boxes, with a leaf for each domain.`,
    `spine: { bandwidth: ${shape.spine} }`,
    'leaves:',
    ...range(groups * DOMAINS_PER_BOX).map((number) => `  - { name: leaf-${number}, uplink: ${shape.uplink} }`),
    'boxes:',
    ...range(shape.boxes).map((box) => {
      const group = Math.floor(box / shape.boxesPerGroup);
      const domains = range(DOMAINS_PER_BOX).map((domain) => list(range(shape.ports).map(() => leaf(group, domain))));
      return `  - { name: box-${box}, portBandwidth: ${shape.portBandwidth}, domains: ${list(domains)} }`;
    }),
    'nodes:',
    ...range(shape.nodes).map((node) => {
      const group = Math.floor((node * groups) / shape.nodes);
      const inGroup = node - Math.ceil((group * shape.nodes) / groups);
      const nics = range(shape.nics).map((nic) => {
        return `{ leaf: ${leaf(group, inGroup * shape.nics + nic)}, bandwidth: ${shape.nicBandwidth} }`;
      });
      return `  - { name: ax-${node}, cores: ${shape.cores}, memory: ${shape.memory}, nics: ${list(nics)} }`;
    }),
  ];
  return `${lines.join('\n')}\n`;
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, index) => index);
}
