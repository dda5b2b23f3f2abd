import { z } from 'zod';

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);

/** Names that become labels of metrics. */
const label = z
  .string()
  .regex(/^[A-Za-z][A-Za-z0-9_-]{0,31}$/, 'must be a name of at most 32 letters, digits, _ and -');

/** Causes of misses that a report may tell apart. */
const MAX_CAUSES = 16;

/** Points of a what-if curve. */
export const MAX_CURVE_POINTS = 64;

/**
 * How the cache of one driver does, as the driver tells its daemons. Counts are totals since the driver started. Everything
 * is bounded, because it is kept and becomes labels of metrics.
 */
export const driverReport = z.object({
  /** Which model; a label. */
  model: z
    .string()
    .min(1)
    .max(128)
    .refine((text) => !/[\p{C}\u2028\u2029]/u.test(text), 'must have no control characters'),
  /** Name of the eviction policy. */
  policy: label,
  /** Columns that can be found now. */
  columns: count,
  /** Columns that there is room for. */
  capacityColumns: count,
  /** Prompts looked up. */
  lookups: count,
  /** Tokens of the prompts that were looked up. */
  promptTokens: count,
  /** Tokens of them that need not be computed. */
  hitTokens: count,
  /** Tokens of them that have to be, by cause. */
  missTokens: z
    .record(label, count)
    .refine((causes) => Object.keys(causes).length <= MAX_CAUSES, `at most ${MAX_CAUSES} causes`),
  /** Token hit rate (0 to 1) that the same prompts would have had with room for so many columns; rising columns. */
  curve: z
    .array(z.object({ columns: count, hitRate: z.number().min(0).max(1) }))
    .max(MAX_CURVE_POINTS)
    .refine(
      (points) => points.every(({ columns }, index) => index === 0 || columns > (points[index - 1]?.columns ?? 0)),
      'columns must rise from point to point',
    ),
});

/** How the cache of one driver does. Counts are totals since the driver started. */
export type DriverReport = z.infer<typeof driverReport>;

/** The last report of a session. */
export const reportedDriver = z.object({
  /** Number of the session at its daemon. */
  sessionId: count,
  /** Seconds since it came. */
  ageSeconds: z.number().min(0),
  report: driverReport,
});

/** The last report of a session, with its age. */
export type ReportedDriver = z.infer<typeof reportedDriver>;
