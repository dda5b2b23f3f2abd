import { readFileSync } from 'node:fs';
import { tmpdir, userInfo } from 'node:os';
import { dirname, join } from 'node:path';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { localError, messageOf } from '../common/errors.js';
import { describeIssue, size } from '../common/schema.js';
import { LOOPBACK, streamListens } from '../links/listen.js';
import { MAX_RING_ENTRIES, MAX_SESSIONS, MAX_SHARDS, MIN_RING_ENTRIES } from '../proto/generated.js';

const powerOfTwo = z
  .number()
  .int()
  .min(MIN_RING_ENTRIES)
  .max(MAX_RING_ENTRIES)
  .refine((entries) => (entries & (entries - 1)) === 0, 'must be a power of two');

const shardSchema = z.strictObject({
  /** Memory that the shard takes at start and cuts into grants. */
  budget: size,
  /** I/O domain of the box that it serves. */
  domain: z.number().int().min(0).max(65535).optional(),
});

const configSchema = z.strictObject({
  /** Path of the Unix socket that drivers connect to. */
  socket: z.string().min(1).default(defaultSocketPath),
  /** Shards of the box, each with an engine thread of its own: 4 of 256 MiB if left out. */
  shards: z
    .array(shardSchema)
    .min(1)
    .max(MAX_SHARDS)
    .default(() => Array.from({ length: 4 }, (_, domain) => ({ budget: 256 * 2 ** 20, domain }))),
  /**
   * Where drivers on other hosts, or in containers without shared memory, connect: host and port, or the path of a Unix
   * socket. Beyond loopback a token is needed.
   */
  streams: streamListens.default([]),
  /** Where /metrics, /healthz and /readyz are served; false for nowhere. Loopback only. */
  http: z
    .union([
      z.literal(false),
      z.strictObject({
        host: z
          .string()
          .regex(LOOPBACK, 'must be a loopback address: the endpoint has no authentication')
          .default('127.0.0.1'),
        port: z.number().int().min(0).max(65535).default(9410),
      }),
    ])
    .default({ host: '127.0.0.1', port: 9410 }),
  /**
   * Secret that /v1 of the admin endpoint asks for. Without one, whoever may open a connection to the endpoint may read and
   * change policies.
   */
  adminToken: z
    .string()
    .min(16)
    .max(1024)
    .regex(/^[\x21-\x7e]*$/, 'must be printable ASCII without spaces: it travels in a header')
    .optional(),
  /** Where tenant policies are kept; in memory only if left out. The file has to exist. */
  policyFile: z.string().min(1).optional(),
  /**
   * What becomes of drivers that do not say that they follow tenant policies, once there are some: `refuse`d, or
   * `serve`d as if there were none.
   */
  unawareDrivers: z.enum(['refuse', 'serve']).default('refuse'),
  /** Back the memory with huge pages where the system has some. */
  hugePages: z.boolean().default(true),
  /** How engines wait for work: without sleeping, sleeping at once, or looking for `spinUs` before they sleep. */
  hio: z
    .strictObject({
      mode: z.enum(['latency', 'buffered', 'adaptive']).default('adaptive'),
      /** How long an adaptive engine looks for work before it sleeps, in microseconds. */
      spinUs: z.number().int().min(0).max(1_000_000).default(30),
    })
    .default({ mode: 'adaptive', spinUs: 30 }),
  /** Largest submission ring that a driver gets, in descriptors. */
  ringEntries: powerOfTwo.default(1024),
  /** Sessions at once: one for each driver and group of layers. */
  maxSessions: z.number().int().min(1).max(MAX_SESSIONS).default(64),
  /** User ids that may connect besides the daemon's own. */
  allowUids: z.array(z.number().int().min(0)).default([]),
  /** How long a shutdown waits for submitted operations to finish, in milliseconds. */
  drainTimeoutMs: z.number().int().min(0).max(600_000).default(5_000),
  /** Longest that memory of a driver that has died waits for it to come back, in milliseconds; 0 scrubs it at once. */
  maxParkMs: z.number().int().min(0).max(86_400_000).default(60_000),
  /** Grants that may be parked at once. The oldest go. */
  maxParkedGrants: z.number().int().min(0).max(65_536).default(256),
  /** Bytes that may be parked at once, over all shards; where it is left out, as much as there is. */
  maxParkedBytes: size.optional(),
  /** What is logged, as JSON lines on standard error. */
  logLevel: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('info'),
});

/** The configuration of a daemon with all defaults filled in, sizes in bytes. */
export type DaemonConfig = z.output<typeof configSchema>;
/** The configuration of a daemon as people write it. What is left out has a default; sizes may have a unit, such as `4GiB`. */
export type DaemonConfigInput = z.input<typeof configSchema>;

/** A path that only this user can reach: in the runtime directory where there is one. */
export function defaultSocketPath(): string {
  return process.env.XDG_RUNTIME_DIR === undefined
    ? join(tmpdir(), `kvss-${userInfo().uid}`, 'kvss.sock')
    : join(process.env.XDG_RUNTIME_DIR, 'kvss.sock');
}

/** Checks a configuration and fills in defaults. Throws KVSS_BAD_CONFIG with a message that names the key. */
export function parseConfig(input: unknown, source = 'configuration'): DaemonConfig {
  const parsed = configSchema.safeParse(input ?? {});
  if (!parsed.success) throw localError('KVSS_BAD_CONFIG', `${source}: ${describeIssue(parsed.error)}`);
  return parsed.data;
}

/** Reads a YAML file as far as its syntax; pass the result through parseConfig. */
export function readConfigFile(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw localError('KVSS_BAD_CONFIG', `cannot read ${path}: ${messageOf(cause)}`, cause);
  }
  const document = parseDocument(text);
  if (document.errors[0]) {
    // What follows draws the place, over several lines.
    const [what = ''] = document.errors[0].message.split(':\n');
    throw localError('KVSS_BAD_CONFIG', `${path}: ${what}`);
  }
  const value: unknown = document.toJS() ?? {};
  if (typeof value !== 'object' || Array.isArray(value)) {
    throw localError('KVSS_BAD_CONFIG', `${path}: expected keys and values`);
  }
  return value as Record<string, unknown>;
}

/** Directory that has to exist for the socket; only this user may enter it. */
export function socketDirectory(config: DaemonConfig): string {
  return dirname(config.socket);
}
