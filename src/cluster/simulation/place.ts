import { localError } from '../../common/errors.js';
import type { PlacedJob } from '../snapshot.js';
import type { Scenario } from './scenario.js';

/** Where the jobs of a scenario are. */
export interface Places {
  readonly placed: readonly PlacedJob[];
  /** For people. */
  readonly how: 'explicit' | 'exclusion on' | 'exclusion off';
}

export function placeScenario({ source, placement }: Scenario, exclusion?: boolean): Places {
  if (exclusion === undefined && 'explicit' in placement) return { placed: placement.explicit, how: 'explicit' };
  throw localError('KVSS_BAD_INPUT', `${source}: no engine yet`);
}
