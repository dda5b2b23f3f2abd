import { z } from 'zod';
import { DOMAINS_PER_BOX } from '../common/box.js';
import { localError } from '../common/errors.js';
import { describeIssue } from '../common/schema.js';
import { streamListens } from '../links/listen.js';
import { MAX_SLOTS_PER_GRANT, MAX_WIO_STREAMS } from '../proto/generated.js';
import { LINE_BYTES } from './stamp.js';

const tokensPerSecond = z.number().positive();

const configSchema = z
  .strictObject({
    /** Where drivers connect. Beyond loopback a token is needed. */
    listen: streamListens.default([]),
    /**
     * The boxes and, as the WIO allocation has it, the bytes of one token that leave through each of their domains. They
     * are unequal where layers do not divide evenly. Domains in the order of the shards of a stripe.
     */
    boxes: z
      .array(
        z.strictObject({
          bytesPerToken: z.array(z.number().int().min(1)).length(DOMAINS_PER_BOX, 'a box has four domains'),
        }),
      )
      .min(1)
      .max(256),
    /** WIO streams that a domain has each way, at most. A driver says how many it uses. */
    streamsPerDomain: z.number().int().min(1).max(MAX_WIO_STREAMS).default(MAX_WIO_STREAMS),
    /** Columns that fit into the memory of the wafer. */
    memoryColumns: z.number().int().min(1).max(MAX_SLOTS_PER_GRANT),
    columnTokens: z.number().int().min(1).max(65_536).default(64),
    /** How fast the state of a prompt is computed; at once if left out. */
    prefillTokensPerSecond: tokensPerSecond.optional(),
    /** How fast tokens are generated; at once if left out. */
    decodeTokensPerSecond: tokensPerSecond.optional(),
  })
  .superRefine(({ boxes, columnTokens }, context) => {
    for (const [box, { bytesPerToken }] of boxes.entries()) {
      for (const [domain, bytes] of bytesPerToken.entries()) {
        if ((bytes * columnTokens) % LINE_BYTES === 0) continue;
        context.addIssue({
          code: 'custom',
          path: ['boxes', box, 'bytesPerToken', domain],
          message: `${bytes} x ${columnTokens} tokens is not a multiple of the ${LINE_BYTES} bytes of a stamped line`,
        });
      }
    }
  });

export type WaferConfig = z.output<typeof configSchema>;
/** What a caller may leave out has a default. */
export type WaferConfigInput = z.input<typeof configSchema>;

/** Checks a configuration and fills in defaults. Throws KVSS_BAD_CONFIG with a message that names the key. */
export function parseWaferConfig(input: unknown, source = 'configuration'): WaferConfig {
  const parsed = configSchema.safeParse(input ?? {});
  if (!parsed.success) throw localError('KVSS_BAD_CONFIG', `${source}: ${describeIssue(parsed.error)}`);
  return parsed.data;
}
