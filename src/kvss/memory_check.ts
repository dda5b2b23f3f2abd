import { readFileSync } from 'node:fs';
import { KvssError } from '../common/errors.js';
import { formatBytes } from '../common/units.js';
import { Status } from '../proto/generated.js';

/**
 * Refuses a budget that the machine cannot hold, before anything is taken. Asking the kernel for pages that are not
 * there does not fail: it wakes the out-of-memory killer, which may pick somebody else.
 */
export function checkMemoryAvailable(wantedBytes: number): void {
  for (const { source, bytes } of [machineMemory(), controlGroupMemory()]) {
    if (wantedBytes > bytes) {
      throw KvssError.ofStatus(
        Status.noMemory,
        `the shards' budgets add up to ${formatBytes(wantedBytes)}, and ${source} has ${formatBytes(bytes)} left`,
      );
    }
  }
}

function machineMemory(): { source: string; bytes: number } {
  const kilobytes = /^MemAvailable:\s+(\d+) kB/m.exec(readOr('/proc/meminfo', ''))?.[1];
  return {
    source: 'this machine',
    bytes: kilobytes === undefined ? Number.POSITIVE_INFINITY : Number(kilobytes) * 1024,
  };
}

function controlGroupMemory(): { source: string; bytes: number } {
  const path = /^0::(.*)$/m.exec(readOr('/proc/self/cgroup', ''))?.[1] ?? '/';
  const limit = Number(readOr(`/sys/fs/cgroup${path}/memory.max`, 'max'));
  const used = Number(readOr(`/sys/fs/cgroup${path}/memory.current`, '0'));
  return { source: 'the control group', bytes: Number.isFinite(limit) ? limit - used : Number.POSITIVE_INFINITY };
}

function readOr(path: string, fallback: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return fallback;
  }
}
