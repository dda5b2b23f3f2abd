import { describe, expect, test } from 'vitest';
import { parseAllDocuments } from 'yaml';
import { type Cluster, readCluster } from '../../src/cluster/cluster.js';
import { PlacementEngine } from '../../src/cluster/engine.js';
import { readJobs } from '../../src/cluster/jobs.js';
import { manifestsOf } from '../../src/cluster/manifests.js';
import type { Snapshot } from '../../src/cluster/snapshot.js';

const example = (name: string) => new URL(`../../examples/clusters/${name}`, import.meta.url).pathname;
const cluster = readCluster(example('rails-8x8.yaml'));

function placed(exclusion: boolean): Snapshot {
  const statement = new PlacementEngine(cluster, { exclusion }).begin();
  for (const job of readJobs(example('prompt-caching-jobs.yaml'), cluster)) statement.place(job);
  return statement.snapshot;
}

interface Selector {
  matchLabels: Record<string, string>;
}

interface Deployment {
  apiVersion: string;
  kind: string;
  metadata: { name: string; labels: Record<string, string> };
  spec: {
    replicas: number;
    selector: Selector;
    template: {
      metadata: { labels: Record<string, string> };
      spec: {
        affinity: {
          nodeAffinity: {
            requiredDuringSchedulingIgnoredDuringExecution: {
              nodeSelectorTerms: { matchExpressions: { key: string; operator: string; values: string[] }[] }[];
            };
          };
          podAntiAffinity?: {
            requiredDuringSchedulingIgnoredDuringExecution: {
              labelSelector: Selector;
              namespaceSelector: object;
              topologyKey: string;
            }[];
          };
        };
        containers: { image: string; resources: Record<'requests' | 'limits', { cpu: string; memory: string }> }[];
      };
    };
  };
}

function deploymentsOf(snapshot: Snapshot, exclusion: boolean): Deployment[] {
  return manifestsOf(snapshot, { exclusion }).flatMap(({ text }) =>
    parseAllDocuments(text).map((document) => {
      if (!('contents' in document)) throw new Error('no documents');
      expect(document.errors).toEqual([]);
      return document.toJS() as Deployment;
    }),
  );
}

const podOf = ({ spec }: Deployment) => spec.template;
const matches = (selector: Selector, labels: Record<string, string>) =>
  Object.entries(selector.matchLabels).every(([key, value]) => labels[key] === value);

/** AX nodes that Kubernetes may give a pod, by its node affinity. */
function nodesFor(deployment: Deployment, { nodes }: Cluster): string[] {
  const terms =
    podOf(deployment).spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms;
  return nodes
    .filter(({ name }) =>
      terms.some(({ matchExpressions }) =>
        matchExpressions.every(
          ({ key, operator, values }) => key === 'kubernetes.io/hostname' && operator === 'In' && values.includes(name),
        ),
      ),
    )
    .map(({ name }) => name);
}

/** Names of pods that may not be where this one is, by its anti-affinity. */
function excludedBy(deployment: Deployment, all: readonly Deployment[]): string[] {
  const terms = podOf(deployment).spec.affinity.podAntiAffinity?.requiredDuringSchedulingIgnoredDuringExecution ?? [];
  return terms.flatMap(({ labelSelector, namespaceSelector, topologyKey }) => {
    expect(topologyKey).toBe('kubernetes.io/hostname');
    // Empty: pods of all namespaces.
    expect(namespaceSelector).toEqual({});
    return all
      .filter((other) => other !== deployment && matches(labelSelector, podOf(other).metadata.labels))
      .map(({ metadata }) => metadata.name);
  });
}

describe.each([
  ['with exclusion', true],
  ['without exclusion', false],
])('manifests %s', (_, exclusion) => {
  const snapshot = placed(exclusion);
  const deployments = deploymentsOf(snapshot, exclusion);
  const pods = snapshot.jobs.flatMap((job) => job.pods);

  test('let each pod run where it was placed and nowhere else', () => {
    expect(deployments.map((each) => [each.metadata.name, nodesFor(each, cluster)])).toEqual(
      pods.map(({ pod, node }) => [pod.name, [node]]),
    );
    expect(deployments.every(({ spec }) => spec.replicas === 1)).toBe(true);
  });

  test('exclude what the placement excludes: SwDrivers each other, and nothing else', () => {
    const drivers = pods.filter(({ pod }) => pod.spec.kind === 'swdriver').map(({ pod }) => pod.name);
    expect(drivers).toHaveLength(4);
    for (const deployment of deployments) {
      const { name } = deployment.metadata;
      const expected = exclusion && drivers.includes(name) ? drivers.filter((other) => other !== name) : [];
      expect([name, excludedBy(deployment, deployments)]).toEqual([name, expected]);
      const here = nodesFor(deployment, cluster);
      for (const other of deployments.filter((each) => expected.includes(each.metadata.name))) {
        expect(nodesFor(other, cluster)).not.toEqual(here);
      }
    }
  });

  test('ask for what the placement counts with', () => {
    for (const [index, deployment] of deployments.entries()) {
      const { spec } = (pods[index] as (typeof pods)[0]).pod;
      const [container] = podOf(deployment).spec.containers;
      const resources = { cpu: `${spec.cores}m`, memory: String(spec.memory) };
      expect(container?.resources).toEqual({ requests: resources, limits: resources });
    }
  });

  test('have names and labels that Kubernetes takes and that tell pods apart', () => {
    expect(new Set(deployments.map(({ metadata }) => metadata.name)).size).toBe(pods.length);
    for (const deployment of deployments) {
      expect(deployment).toMatchObject({ apiVersion: 'apps/v1', kind: 'Deployment' });
      expect(deployment.metadata.name).toMatch(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/);
      for (const value of Object.values(podOf(deployment).metadata.labels)) {
        expect(value).toMatch(/^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/);
      }
      const selected = deployments.filter((other) => matches(deployment.spec.selector, podOf(other).metadata.labels));
      expect(selected).toEqual([deployment]);
    }
  });
});

test('one file for each job, and images as the jobs say', () => {
  const snapshot = placed(true);
  const withImage = {
    ...snapshot,
    jobs: snapshot.jobs.map((job) => ({
      ...job,
      pods: job.pods.map(({ pod, node }) => ({ pod: { ...pod, spec: { ...pod.spec, image: 'registry/x:7' } }, node })),
    })),
  };
  expect(manifestsOf(snapshot, { exclusion: true }).map(({ name }) => name)).toEqual([
    'chat.yaml',
    'code.yaml',
    'search.yaml',
    'agents.yaml',
  ]);
  const images = (of: Snapshot) =>
    new Set(deploymentsOf(of, true).map((each) => podOf(each).spec.containers[0]?.image));
  expect(images(withImage)).toEqual(new Set(['registry/x:7']));
  expect(images(snapshot)).toEqual(new Set(['kvss/swdriver', 'kvss/kvss', 'kvss/chf', 'kvss/wse']));
});
