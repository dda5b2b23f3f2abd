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
 * part carries its length, so that no two different lists of parts spell the same name.
 */
export function namespaceOf(
  model: ModelIdentity,
  bytesPerToken: readonly number[],
  isolationId: string,
  adapter: string,
): string {
  const parts = [isolationId, model.id, model.revision, model.dtype, model.layout, bytesPerToken.join(','), adapter];
  return parts.map((part) => `${part.length}:${part}`).join('');
}
