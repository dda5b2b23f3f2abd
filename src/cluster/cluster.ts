import { z } from 'zod';
import { DOMAINS_PER_BOX } from '../common/box.js';
import { bandwidth, size } from '../common/schema.js';
import { parseYaml, readText } from '../common/yaml_file.js';

/** Of a cluster, and so of a session. */
export const MAX_BOXES = 16_384;

const MAX_LEAVES = 4_096;
const MAX_NODES = 65_536;
const MAX_PORTS = 16;
const MAX_NICS = 16;
const MAX_CORES = 4_096;

/** As Kubernetes wants names of nodes and pods: they end up in manifests. */
export const name = z
  .string()
  .max(63)
  .regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/, 'must be lower-case letters, digits and dashes, such as ax-3');

/** Whole cores, or parts of one down to a thousandth; kept in thousandths, so that sums are exact. */
export const milliCores = z
  .number()
  .min(0)
  .max(MAX_CORES)
  .refine((cores) => Number.isInteger(Math.round(cores * 1e6) / 1e3), 'must be a multiple of 0.001')
  .transform((cores) => Math.round(cores * 1000));

const leafSchema = z.strictObject({
  name,
  /** What joins the leaf to the spine. Each way. */
  uplink: bandwidth,
});

const boxSchema = z.strictObject({
  name,
  /** Of one port. Each way. */
  portBandwidth: bandwidth,
  /** Of each domain: the leaf that each of its ports is cabled to. */
  domains: z.array(z.array(name).min(1).max(MAX_PORTS)).length(DOMAINS_PER_BOX, `a box has ${DOMAINS_PER_BOX} domains`),
});

const nicSchema = z.strictObject({ leaf: name, bandwidth });

const nodeSchema = z.strictObject({
  name,
  cores: milliCores,
  memory: size,
  /** None: what needs streams cannot run there. */
  nics: z.array(nicSchema).max(MAX_NICS),
});

const clusterSchema = z.strictObject({
  leaves: z.array(leafSchema).min(1).max(MAX_LEAVES),
  spine: z.strictObject({ bandwidth }),
  boxes: z.array(boxSchema).min(1).max(MAX_BOXES),
  nodes: z.array(nodeSchema).min(1).max(MAX_NODES),
});

/** A leaf switch: a rail leads through it. `uplink` in bytes a second, each way. */
export interface Leaf {
  readonly name: string;
  readonly uplink: number;
}

/** A box (CS-X). `domains` has the names of the leaves that the ports of each domain are cabled to; bytes a second, each way. */
export interface Box {
  readonly name: string;
  readonly portBandwidth: number;
  readonly domains: readonly (readonly string[])[];
}

/** A network card of an AX node. `bandwidth` in bytes a second, each way. */
export interface Nic {
  readonly leaf: string;
  readonly bandwidth: number;
}

/** An AX node. `cores` in thousandths, `memory` in bytes. */
export interface AxNode {
  readonly name: string;
  readonly cores: number;
  readonly memory: number;
  readonly nics: readonly Nic[];
}

/** Boxes and AX nodes at leaf switches that one spine joins. Names are unique among their kind, and leaves that are named exist. */
export interface Cluster {
  readonly leaves: readonly Leaf[];
  /** Bytes a second, all streams that cross it together, each way. */
  readonly spine: { readonly bandwidth: number };
  readonly boxes: readonly Box[];
  readonly nodes: readonly AxNode[];
}

/**
 * Parses the YAML of a cluster; `source` names it in errors. Throws KVSS_BAD_INPUT with line, key and cause for what is
 * unknown, out of range, there twice, or cabled to a leaf that does not exist.
 */
export function parseCluster(text: string, source = 'cluster'): Cluster {
  const { value, bad } = parseYaml(text, source, clusterSchema);
  const leaves = new Set(value.leaves.map((leaf) => leaf.name));
  const known = (leaf: string, path: readonly PropertyKey[]) => {
    if (leaves.has(leaf)) return;
    const last = value.leaves.at(-1)?.name;
    throw bad(path, `there is no rail '${leaf}': the leaves are ${value.leaves[0]?.name} to ${last}`);
  };
  for (const kind of ['leaves', 'boxes', 'nodes'] as const) {
    const seen = new Set<string>();
    for (const [index, each] of value[kind].entries()) {
      if (seen.has(each.name)) throw bad([kind, index, 'name'], `'${each.name}' is there twice`);
      seen.add(each.name);
    }
  }
  for (const [index, { domains }] of value.boxes.entries()) {
    for (const [domain, ports] of domains.entries()) {
      for (const [port, leaf] of ports.entries()) known(leaf, ['boxes', index, 'domains', domain, port]);
    }
  }
  for (const [index, { nics }] of value.nodes.entries()) {
    for (const [nic, { leaf }] of nics.entries()) known(leaf, ['nodes', index, 'nics', nic, 'leaf']);
  }
  return value;
}

/** Reads the YAML file of a cluster. Throws as parseCluster does, and where the file cannot be read. */
export function readCluster(path: string): Cluster {
  return parseCluster(readText(path), path);
}
