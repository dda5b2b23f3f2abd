import { BYTES_OF, type KvDtype, type Plane } from '../../src/runtimes/onnx/decoder_graph.js';

/** Planes of a graph; each has its own heads and dim. */
export function planesOf(shapes: readonly (readonly [heads: number, dim: number])[], dtype: KvDtype): Plane[] {
  return shapes.map(([heads, dim], index) => {
    const layer = index >> 1;
    const kind = index % 2 === 0 ? 'key' : 'value';
    const [pastName, presentName] = [`past_key_values.${layer}.${kind}`, `present.${layer}.${kind}`];
    return { layer, kind, heads, dim, rowBytes: dim * BYTES_OF[dtype], pastName, presentName };
  });
}
