import { localError } from '../common/errors.js';

/** Identity of the KV state: two models that differ in any field never share a column. */
export interface ModelIdentity {
  /** Name of the model, e.g. `meta-llama/Llama-3.1-8B`. */
  id: string;
  /** Revision of the weights. */
  revision: string;
  /** Type of the stored numbers, e.g. `bf16` or `fp8`. */
  dtype: string;
  /** Name of the memory layout of a piece; whoever writes and whoever reads has to agree on it. */
  layout: string;
}

/** What the driver has to know of a model. */
export interface Model extends ModelIdentity {
  /** Bytes of KV state that one token takes on each shard of a stripe, in the order of the shards. Need not be equal. */
  bytesPerToken: readonly number[];
  /** Tokens of a column; 64 if left out. */
  columnTokens?: number;
}

/** Bytes of the piece of each shard. Throws KVSS_BAD_INPUT for sizes that make no piece. */
export function pieceBytesOf(model: Model, columnTokens: number): number[] {
  return model.bytesPerToken.map((bytesPerToken, shard) => {
    const bytes = bytesPerToken * columnTokens;
    if (!Number.isSafeInteger(bytes) || bytes < 1) {
      throw localError(
        'KVSS_BAD_INPUT',
        `bytesPerToken[${shard}]: ${bytesPerToken} x ${columnTokens} tokens is no piece size`,
      );
    }
    return bytes;
  });
}

/**
 * The name under which prefixes are kept: everything that two prefixes must have in common besides their tokens. Every
 * part carries its length, so that no two different lists of parts spell the same name. `modelPart`: see modelPartOf.
 */
export function namespaceOf(modelPart: string, isolationId: string, adapter: string): string {
  return `${tenantPartOf(isolationId)}${modelPart}${spell(adapter)}`;
}

/** How the namespaces of a tenant begin, and those of no other. */
export const tenantPartOf = (isolationId: string): string => spell(isolationId);

/** The part of a namespace that is the same for all tenants and adapters. */
export function modelPartOf(model: ModelIdentity, bytesPerToken: readonly number[]): string {
  return [model.id, model.revision, model.dtype, model.layout, bytesPerToken.join(',')].map(spell).join('');
}

function spell(part: string): string {
  return `${part.length}:${part}`;
}
