import { KvssError } from '../../common/errors.js';
import { PlacementEngine } from '../engine.js';
import type { PlacedJob, PlacedPod } from '../snapshot.js';
import type { Scenario } from './scenario.js';

/** Where the jobs of a scenario are. */
export interface Places {
  /** In the order of the jobs. */
  readonly placed: readonly PlacedJob[];
  /** For people. */
  readonly how: string;
}

/**
 * Places the jobs of a scenario: those that it says the place of are there, and the engine places the others around them, one
 * after another. With `exclusion` the engine places all of them, and keeps SwDrivers off each other's nodes or does not,
 * whatever the scenario says. Throws KVSS_NO_PLACEMENT where there is no room, with the name of the file.
 */
export function placeScenario({ source, cluster, jobs, placement }: Scenario, exclusion?: boolean): Places {
  const explicit = exclusion === undefined ? placement.explicit : [];
  const rule = exclusion ?? placement.exclusion;
  const base = { version: 0, cluster, jobs: explicit, drained: [] };
  const statement = new PlacementEngine(base, { exclusion: rule }).begin();
  const said = new Set(explicit.map(({ job }) => job.name));
  for (const job of jobs) {
    if (said.has(job.name)) continue;
    try {
      statement.place(job);
    } catch (thrown) {
      throw thrown instanceof KvssError
        ? new KvssError(thrown.code, `${source}: ${thrown.message}`, { cause: thrown })
        : thrown;
    }
  }
  const placed = new Map(statement.snapshot.jobs.map((each) => [each.job.name, each]));
  return {
    placed: jobs.map(({ name }) => placed.get(name) as PlacedJob),
    how: `${said.size === jobs.length ? 'placed by the file' : `exclusion ${rule ? 'on' : 'off'}`}, ${sharedNodes([...placed.values()])}`,
  };
}

/** Which AX nodes have several SwDrivers. */
function sharedNodes(placed: readonly PlacedJob[]): string {
  const drivers = placed.flatMap(({ pods }) => pods.filter(({ pod }) => pod.spec.kind === 'swdriver'));
  const shared = [...podsByNode(drivers)].filter(([, some]) => some.length > 1);
  if (shared.length === 0) return 'SwDrivers on nodes of their own';
  return shared.map(([node, some]) => `${some.length} SwDrivers on ${node}`).join(', ');
}

/** The pods on each AX node that has any. */
export function podsByNode(pods: readonly PlacedPod[]): Map<string, PlacedPod[]> {
  const byNode = new Map<string, PlacedPod[]>();
  for (const placed of pods) byNode.set(placed.node, [...(byNode.get(placed.node) ?? []), placed]);
  return byNode;
}
