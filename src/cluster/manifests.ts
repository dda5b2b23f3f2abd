import { Document } from 'yaml';
import type { Pod, PodSpec } from './jobs.js';
import type { PlacedJob, PlacedPod, Snapshot } from './snapshot.js';

const LABEL = 'kvss.dev';
const HOSTNAME = 'kubernetes.io/hostname';

/** What manifests say besides where pods run. */
export interface ManifestOptions {
  /** No two SwDrivers on one AX node: said to Kubernetes as well. */
  readonly exclusion: boolean;
}

/** One file of manifests. */
export interface ManifestFile {
  readonly name: string;
  readonly text: string;
}

/**
 * Kubernetes manifests of what is placed, one file for each job: a Deployment of one replica for each pod, with the
 * AX node as required node affinity and, for SwDrivers, anti-affinity to every other SwDriver in whatever namespace.
 * AX nodes are known to Kubernetes under their names in the cluster.
 */
export function manifestsOf(snapshot: Snapshot, options: ManifestOptions): ManifestFile[] {
  return snapshot.jobs.map((placed) => ({
    name: `${placed.job.name}.yaml`,
    text: placed.pods
      .map(
        (pod) => `---\n${new Document(deployment(placed, pod, options), { aliasDuplicateObjects: false }).toString()}`,
      )
      .join(''),
  }));
}

function deployment({ job }: PlacedJob, { pod, node }: PlacedPod, { exclusion }: ManifestOptions): object {
  const labels = labelsOf(pod, job.pods);
  const nodeAffinity = {
    requiredDuringSchedulingIgnoredDuringExecution: {
      nodeSelectorTerms: [{ matchExpressions: [{ key: HOSTNAME, operator: 'In', values: [node] }] }],
    },
  };
  const podAntiAffinity = {
    requiredDuringSchedulingIgnoredDuringExecution: [
      {
        labelSelector: { matchLabels: { [`${LABEL}/pod`]: 'swdriver' } },
        namespaceSelector: {},
        topologyKey: HOSTNAME,
      },
    ],
  };
  const excludes = exclusion && pod.spec.kind === 'swdriver';
  const resources = { cpu: `${pod.spec.cores}m`, memory: String(pod.spec.memory) };
  return {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { name: pod.name, labels },
    spec: {
      replicas: 1,
      // The old pod has to go first: the new one may exclude it, and there is room for one only.
      strategy: { type: 'Recreate' },
      selector: { matchLabels: labels },
      template: {
        metadata: { labels },
        spec: {
          affinity: { nodeAffinity, ...(excludes ? { podAntiAffinity } : {}) },
          containers: [
            {
              name: pod.spec.kind,
              image: pod.spec.image ?? `kvss/${pod.spec.kind}`,
              env: environmentOf(pod),
              resources: { requests: resources, limits: resources },
            },
          ],
        },
      },
    },
  };
}

/** They tell a pod from every other one of the cluster. */
function labelsOf(pod: Pod, specs: readonly PodSpec[]): Record<string, string> {
  return {
    [`${LABEL}/job`]: pod.job,
    [`${LABEL}/pod`]: pod.spec.kind,
    [`${LABEL}/entry`]: String(specs.indexOf(pod.spec)),
    ...(pod.box === undefined ? {} : { [`${LABEL}/box`]: pod.box }),
    ...(pod.domain === undefined ? {} : { [`${LABEL}/domain`]: String(pod.domain) }),
    [`${LABEL}/number`]: pod.name.slice(pod.name.lastIndexOf('.') + 1),
  };
}

/** What a pod is there for, for the program in it. */
function environmentOf({ job, box, domain }: Pod): { name: string; value: string }[] {
  return [
    { name: 'KVSS_JOB', value: job },
    ...(box === undefined ? [] : [{ name: 'KVSS_BOX', value: box }]),
    ...(domain === undefined ? [] : [{ name: 'KVSS_DOMAIN', value: String(domain) }]),
  ];
}
