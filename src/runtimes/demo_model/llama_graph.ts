import { type BuiltGraph, GraphBuilder } from './graph_builder.js';
import { ELEMENT_TYPES, type ElementType } from './onnx_format.js';
import { type DemoModelSettings, NORM_EPSILON } from './options.js';
import type { Filling, WeightType } from './weights.js';

/**
 * How large random weights are. A matrix with n inputs has a deviation of gain / sqrt(n), so that inputs of deviation 1,
 * which a norm makes, give outputs of the deviation `gain`.
 *
 * - Queries and keys have a gain of 2 each, so scores have a deviation of about 4. The weight of the largest of T such
 *   scores stays large up to T = exp(4^2 / 2), about 3,000: attention picks a few tokens, near or far, and changing one
 *   of them shows. With 1 it would be an average of all, which says less the longer the context is.
 * - What a layer adds to the residual is as large as the embedding, so layers and context have a say in the next token.
 * - Logits have a deviation of 4, near sqrt(2 ln vocabulary): with more one token would have all the probability, with
 *   less none would stand out. That is made by the last norm; its weights have random signs. Where the head is tied, the
 *   most likely token were otherwise always the one just seen.
 */
const GAINS = { query: 2, key: 2, value: 1, output: 1.5, gate: 1, up: 1, down: 1.5, logits: 4 };
/** Norms of layers differ a little from 1, so that a wrong one shows. */
const NORM_DEVIATION = 0.1;
/**
 * What layers that the draft lacks add, against other layers: the draft then has the same most likely token as its target
 * in 69 to 78 of 100 places of greedy text, over the sizes. With 1 it has it in 4 to 6.
 */
const QUIET_GAIN = 0.1;

/** Builds the graph of a decoder with weights in `dataFile`. */
export function buildLlamaGraph(settings: DemoModelSettings, dataFile: string): BuiltGraph {
  return new LlamaGraph(settings).build(dataFile);
}

/** What the fused operator wants to know beside queries, keys and values, and the decomposed form needs instead. */
type Context =
  | {
      readonly form: 'fused';
      readonly seqlens: string;
      readonly total: string;
      readonly cos: string;
      readonly sin: string;
    }
  | {
      readonly form: 'decomposed';
      readonly batch: string;
      readonly length: string;
      readonly cos: string;
      readonly sin: string;
      /** Where attention may look, as 0 or the lowest number, for layers with that window. */
      readonly maskOf: ReadonlyMap<number | null, string>;
    };

class LlamaGraph {
  readonly #settings: DemoModelSettings;
  readonly #type: WeightType;
  readonly #graph = new GraphBuilder();

  constructor(settings: DemoModelSettings) {
    this.#settings = settings;
    this.#type = settings.dtype === 'fp16' ? 'float16' : 'float';
  }

  build(dataFile: string): BuiltGraph {
    const { vocabularySize, hiddenSize, layers, keyValueHeads, headDim } = this.#settings;
    const graph = this.#graph;
    const fused = this.#settings.attention === 'fused';
    const tokens = ['batch_size', 'sequence_length'];
    graph.input('input_ids', 'int64', tokens);
    graph.input('attention_mask', 'int64', ['batch_size', 'total_sequence_length']);
    if (!fused) graph.input('position_ids', 'int64', tokens);
    graph.output('logits', this.#type, [...tokens, vocabularySize]);
    for (let layer = 0; layer < layers; layer += 1) {
      for (const part of ['key', 'value']) {
        const dims = (length: string) => ['batch_size', keyValueHeads, length, headDim];
        graph.input(`past_key_values.${layer}.${part}`, this.#type, dims('past_sequence_length'));
        graph.output(`present.${layer}.${part}`, this.#type, dims('total_sequence_length'));
      }
    }
    const context = fused ? this.#fusedContext() : this.#decomposedContext();
    const embedding = this.#weight('model.embed_tokens.weight', [vocabularySize, hiddenSize], normal(1));
    const embedded = graph.node('/model/embed_tokens', 'Gather', [embedding, 'input_ids']);
    const states = fused ? this.#fusedLayers(embedded, context) : this.#decomposedLayers(embedded, context);
    this.#head(states, embedding);
    return graph.build('main_graph', dataFile);
  }

  #head(states: string, embedding: string): void {
    const { vocabularySize, hiddenSize, tied } = this.#settings;
    const head = tied
      ? this.#graph.node('/lm_head', 'Transpose', [embedding], { perm: [1, 0] })
      : this.#weight('lm_head.MatMul.weight', [hiddenSize, vocabularySize], normal(1));
    this.#graph.node('/lm_head', 'MatMul', [states, head], {}, 'logits');
  }

  // The norms between the parts of a layer.

  #decomposedLayers(embedded: string, context: Context): string {
    const graph = this.#graph;
    let residual = embedded;
    for (let layer = 0; layer < this.#settings.layers; layer += 1) {
      const scope = `/model/layers.${layer}`;
      const inputNorm = this.#norm(`${scope}/input_layernorm`, residual, this.#normWeight(layer, 'input'));
      residual = graph.node(scope, 'Add', [residual, this.#attention(layer, inputNorm, context)]);
      const name = 'post_attention' as const;
      const postNorm = this.#norm(`${scope}/${name}_layernorm`, residual, this.#normWeight(layer, name));
      residual = graph.node(scope, 'Add', [residual, this.#feedForward(layer, postNorm)]);
    }
    return this.#norm('/model/norm', residual, this.#lastNormWeight());
  }

  /** x / sqrt(mean(x^2) + epsilon) x weight. Squares of numbers of 16 bits would overflow. */
  #norm(scope: string, states: string, weight: string): string {
    const graph = this.#graph;
    const wide = this.#cast(scope, states, this.#type, 'float');
    const squares = graph.node(scope, 'Pow', [wide, graph.float(2)]);
    const mean = graph.node(scope, 'ReduceMean', [squares, graph.integers([-1])], { keepdims: 1 });
    const root = graph.node(scope, 'Sqrt', [graph.node(scope, 'Add', [mean, graph.float(NORM_EPSILON)])]);
    const scaled = graph.node(scope, 'Mul', [wide, graph.node(scope, 'Div', [graph.float(1), root])]);
    return graph.node(scope, 'Mul', [this.#cast(scope, scaled, 'float', this.#type), weight]);
  }

  #fusedLayers(embedded: string, context: Context): string {
    const { layers } = this.#settings;
    // The sum that the residual has so far, and what is still to be added to it.
    let residual = embedded;
    let added: string | undefined;
    for (let layer = 0; layer < layers; layer += 1) {
      const scope = `/model/layers.${layer}`;
      const first = this.#skipNorm(`${scope}/input_layernorm`, residual, added, this.#normWeight(layer, 'input'));
      const attention = this.#attention(layer, first.states, context);
      const name = 'post_attention' as const;
      const weight = this.#normWeight(layer, name);
      const second = this.#skipNorm(`${scope}/${name}_layernorm`, first.residual, attention, weight);
      residual = second.residual;
      added = this.#feedForward(layer, second.states);
    }
    return this.#skipNorm(`/model/layers.${layers}/final_norm_layernorm`, residual, added, this.#lastNormWeight())
      .states;
  }

  /** Adds to the residual, and the norm of the sum. In 32 bits: the weight is cast besides. */
  #skipNorm(scope: string, residual: string, added: string | undefined, weight: string) {
    const graph = this.#graph;
    const widen = (value: string) => this.#cast(scope, value, this.#type, 'float');
    const narrow = (value: string) => this.#cast(scope, value, 'float', this.#type);
    const epsilon = { epsilon: { float: NORM_EPSILON } };
    if (added === undefined) {
      const attributes = { ...epsilon, axis: -1, stash_type: 1 };
      const inputs = [widen(residual), widen(weight)];
      return { states: narrow(graph.node(scope, 'SimplifiedLayerNormalization', inputs, attributes)), residual };
    }
    const [states, sum] = [`${scope}/output_0`, `${scope}/output_3`];
    const inputs = [widen(residual), widen(added), widen(weight)];
    graph.nodeWithOutputs(scope, 'SkipSimplifiedLayerNormalization', inputs, epsilon, [states, '', '', sum]);
    return { states: narrow(states), residual: narrow(sum) };
  }

  #normWeight(layer: number, part: 'input' | 'post_attention'): string {
    const filling: Filling = { kind: 'normal', mean: 1, deviation: NORM_DEVIATION };
    return this.#weight(`model.layers.${layer}.${part}_layernorm.weight`, [this.#settings.hiddenSize], filling);
  }

  #lastNormWeight(): string {
    const { hiddenSize } = this.#settings;
    // The head has a deviation of 1, like the embedding, which it may be.
    const magnitude = GAINS.logits / Math.sqrt(hiddenSize);
    return this.#weight('model.norm.weight', [hiddenSize], { kind: 'signs', magnitude });
  }

  // The parts of a layer.

  #feedForward(layer: number, states: string): string {
    const { hiddenSize, intermediateSize } = this.#settings;
    const graph = this.#graph;
    const scope = `/model/layers.${layer}/mlp`;
    const gate = this.#project(`${scope}/gate_proj`, states, [hiddenSize, intermediateSize], GAINS.gate);
    const up = this.#project(`${scope}/up_proj`, states, [hiddenSize, intermediateSize], GAINS.up);
    const activated = graph.node(`${scope}/act_fn`, 'Mul', [gate, graph.node(`${scope}/act_fn`, 'Sigmoid', [gate])]);
    const product = graph.node(scope, 'Mul', [activated, up]);
    const gain = this.#addedGain(layer, GAINS.down);
    return this.#project(`${scope}/down_proj`, product, [intermediateSize, hiddenSize], gain);
  }

  #attention(layer: number, states: string, context: Context): string {
    const { hiddenSize, heads, keyValueHeads, headDim } = this.#settings;
    const scope = `/model/layers.${layer}/self_attn`;
    const [wide, narrow] = [heads * headDim, keyValueHeads * headDim];
    const query = this.#project(`${scope}/q_proj`, states, [hiddenSize, wide], GAINS.query);
    const key = this.#project(`${scope}/k_proj`, states, [hiddenSize, narrow], GAINS.key);
    const value = this.#project(`${scope}/v_proj`, states, [hiddenSize, narrow], GAINS.value);
    const mixed =
      context.form === 'fused'
        ? this.#fusedAttention(layer, [query, key, value], context)
        : this.#decomposedAttention(layer, [query, key, value], context);
    return this.#project(`${scope}/o_proj`, mixed, [wide, hiddenSize], this.#addedGain(layer, GAINS.output));
  }

  /** Layers that the draft lacks say little. */
  #addedGain(layer: number, gain: number): number {
    return layer < this.#settings.quietFrom ? gain : gain * QUIET_GAIN;
  }

  #project(scope: string, states: string, [inputs, outputs]: readonly [number, number], gain: number): string {
    const name = `${scope.slice(1).replaceAll('/', '.')}.MatMul.weight`;
    const weight = this.#weight(name, [inputs, outputs], normal(gain / Math.sqrt(inputs)));
    return this.#graph.node(scope, 'MatMul', [states, weight]);
  }

  // Attention as one operator.

  /** Lengths from the mask, as exporters compute them, and tables of rotary positions. */
  #fusedContext(): Context {
    const { maxPositions, headDim } = this.#settings;
    const graph = this.#graph;
    const scope = '/model/attn_mask_reformat';
    const seen = graph.node(scope, 'ReduceSum', ['attention_mask', graph.integers([1])], { keepdims: 1 });
    const last = graph.node(scope, 'Sub', [seen, graph.integers([1])]);
    const shape = graph.node(scope, 'Shape', ['attention_mask']);
    const total = graph.node(scope, 'Gather', [shape, graph.integer(1)], { axis: 0 });
    const frequencies = this.#frequencies();
    const table = (name: string, wave: (angle: number) => number) => {
      const values = new Float32Array(maxPositions * frequencies.length);
      for (let at = 0; at < values.length; at += 1) {
        const position = Math.floor(at / frequencies.length);
        values[at] = wave(Math.fround(position * (frequencies[at % frequencies.length] as number)));
      }
      return this.#weight(name, [maxPositions, headDim / 2], { kind: 'values', values });
    };
    return {
      form: 'fused',
      seqlens: this.#cast(scope, last, 'int64', 'int32'),
      total: this.#cast(scope, total, 'int64', 'int32'),
      cos: table('cos_cache', Math.cos),
      sin: table('sin_cache', Math.sin),
    };
  }

  #fusedAttention(
    layer: number,
    projected: readonly [query: string, key: string, value: string],
    { seqlens, total, cos, sin }: Context & { form: 'fused' },
  ): string {
    const { heads, keyValueHeads, headDim, windows } = this.#settings;
    const scope = `/model/layers.${layer}/self_attn`;
    const past = ['key', 'value'].map((part) => `past_key_values.${layer}.${part}`);
    const present = ['key', 'value'].map((part) => `present.${layer}.${part}`);
    const mixed = `${scope}/GroupQueryAttention/output_0`;
    this.#graph.nodeWithOutputs(
      scope,
      'GroupQueryAttention',
      [...projected, ...past, seqlens, total, cos, sin],
      {
        num_heads: heads,
        kv_num_heads: keyValueHeads,
        scale: { float: 1 / Math.sqrt(headDim) },
        local_window_size: windows[layer] ?? -1,
        softcap: { float: 0 },
        do_rotary: 1,
        rotary_interleaved: 0,
      },
      [mixed, ...present],
    );
    return mixed;
  }

  // Attention in plain operators.

  #decomposedContext(): Context {
    const graph = this.#graph;
    const size = (of: string, axis: number) =>
      graph.node('/model', 'Gather', [graph.node('/model', 'Shape', [of]), graph.integer(axis)], { axis: 0 });
    const vector = (scalar: string) => graph.node('/model', 'Unsqueeze', [scalar, graph.integers([0])]);
    const batch = size('input_ids', 0);
    const length = size('input_ids', 1);
    const past = size('past_key_values.0.key', 2);
    const total = graph.node('/model', 'Add', [past, length]);
    const { cos, sin } = this.#rotaryWaves();
    return {
      form: 'decomposed',
      batch: vector(batch),
      length: vector(length),
      cos,
      sin,
      maskOf: this.#masks(past, total),
    };
  }

  /** Cosines and sines [batch_size, 1, sequence_length, head_dim] of the angles at `position_ids`. */
  #rotaryWaves(): { cos: string; sin: string } {
    const graph = this.#graph;
    const scope = '/model/rotary_emb';
    const frequencies = this.#frequencies();
    const inverse = graph.floats('inv_freq', [1, 1, frequencies.length], frequencies);
    const unsqueezed = graph.node(scope, 'Unsqueeze', ['position_ids', graph.integers([2])]);
    const half = graph.node(scope, 'Mul', [this.#cast(scope, unsqueezed, 'int64', 'float'), inverse]);
    const angles = graph.node(scope, 'Concat', [half, half], { axis: -1 });
    const wave = (operator: string) => {
      const narrow = this.#cast(scope, graph.node(scope, operator, [angles]), 'float', this.#type);
      return graph.node(scope, 'Unsqueeze', [narrow, graph.integers([1])]);
    };
    return { cos: wave('Cos'), sin: wave('Sin') };
  }

  /**
   * Masks [batch_size, 1, sequence_length, total_sequence_length] to add to scores, for each window that layers have. A
   * row in which all is masked, of padding, gets equal weights and no NaN.
   */
  #masks(past: string, total: string): Map<number | null, string> {
    const graph = this.#graph;
    const scope = '/model/causal_mask';
    const one = graph.integer(1);
    const range = (from: string, axis: number) =>
      graph.node(scope, 'Unsqueeze', [graph.node(scope, 'Range', [from, total, one]), graph.integers([axis])]);
    const queries = range(past, 1);
    const keys = range(graph.integer(0), 0);
    const causal = graph.node(scope, 'LessOrEqual', [keys, queries]);
    const given = this.#cast(scope, 'attention_mask', 'int64', 'bool');
    const seen = graph.node(scope, 'Unsqueeze', [given, graph.integers([1, 2])]);
    const lowest = graph.float(Math.fround(-3.402823e38));
    return new Map(
      [...new Set(this.#settings.windows)].map((window) => {
        let allowed = causal;
        if (window !== null) {
          const before = graph.node(scope, 'Sub', [queries, graph.integer(window)]);
          allowed = graph.node(scope, 'And', [causal, graph.node(scope, 'Greater', [keys, before])]);
        }
        const both = graph.node(scope, 'And', [seen, allowed]);
        return [window, graph.node(scope, 'Where', [both, graph.float(0), lowest])];
      }),
    );
  }

  #decomposedAttention(
    layer: number,
    [query, key, value]: readonly [query: string, key: string, value: string],
    { batch, length, cos, sin, maskOf }: Context & { form: 'decomposed' },
  ): string {
    const { heads, keyValueHeads, headDim, windows } = this.#settings;
    const graph = this.#graph;
    const scope = `/model/layers.${layer}/self_attn`;
    const reshape = (states: string, sizes: readonly string[]) =>
      graph.node(scope, 'Reshape', [states, graph.node(scope, 'Concat', sizes, { axis: 0 })]);
    const perHead = (states: string, count: number) => {
      const split = reshape(states, [batch, length, graph.integers([count]), graph.integers([headDim])]);
      return graph.node(scope, 'Transpose', [split], { perm: [0, 2, 1, 3] });
    };
    const rotate = (states: string) => {
      const cut = (from: number, to: number) =>
        graph.node(scope, 'Slice', [states, ...[[from], [to], [3]].map((each) => graph.integers(each))]);
      const turned = graph.node(scope, 'Neg', [cut(headDim / 2, headDim)]);
      const other = graph.node(scope, 'Concat', [turned, cut(0, headDim / 2)], { axis: -1 });
      const parts = [graph.node(scope, 'Mul', [states, cos]), graph.node(scope, 'Mul', [other, sin])];
      return graph.node(scope, 'Add', parts);
    };
    const append = (part: string, states: string) =>
      graph.node(
        scope,
        'Concat',
        [`past_key_values.${layer}.${part}`, states],
        { axis: 2 },
        `present.${layer}.${part}`,
      );

    const queries = rotate(perHead(query, heads));
    const keys = append('key', rotate(perHead(key, keyValueHeads)));
    const values = append('value', perHead(value, keyValueHeads));
    // Query heads that share keys and values are an axis of their own: the product repeats keys and values along it.
    const group = heads / keyValueHeads;
    const grouped = (states: string) =>
      reshape(states, [
        batch,
        ...[keyValueHeads, group].map((each) => graph.integers([each])),
        length,
        graph.integers([-1]),
      ]);
    const shared = (states: string) => graph.node(scope, 'Unsqueeze', [states, graph.integers([2])]);
    const transposed = graph.node(scope, 'Transpose', [shared(keys)], { perm: [0, 1, 2, 4, 3] });
    const products = graph.node(scope, 'MatMul', [grouped(queries), transposed]);
    const perQuery = reshape(products, [batch, graph.integers([heads]), length, graph.integers([-1])]);
    const wide = this.#cast(scope, perQuery, this.#type, 'float');
    const scores = graph.node(scope, 'Mul', [wide, graph.float(Math.fround(1 / Math.sqrt(headDim)))]);
    const masked = graph.node(scope, 'Add', [scores, maskOf.get(windows[layer] ?? null) as string]);
    const weights = this.#cast(scope, graph.node(scope, 'Softmax', [masked], { axis: -1 }), 'float', this.#type);
    const mixed = graph.node(scope, 'MatMul', [grouped(weights), shared(values)]);
    const joined = reshape(mixed, [batch, graph.integers([heads]), length, graph.integers([headDim])]);
    const byToken = graph.node(scope, 'Transpose', [joined], { perm: [0, 2, 1, 3] });
    return reshape(byToken, [batch, length, graph.integers([heads * headDim])]);
  }

  /** Angles of the pairs of a head at position 1: theta^(-2 i / head_dim). */
  #frequencies(): Float32Array {
    const { headDim, ropeTheta } = this.#settings;
    return Float32Array.from({ length: headDim / 2 }, (_, pair) => ropeTheta ** ((-2 * pair) / headDim));
  }

  #weight(name: string, dimensions: readonly number[], filling: Filling): string {
    return this.#graph.weight({ name, type: this.#type, dimensions, filling });
  }

  #cast(scope: string, value: string, from: WeightType | 'int64', to: ElementType): string {
    return from === to ? value : this.#graph.node(scope, 'Cast', [value], { to: ELEMENT_TYPES[to] });
  }
}

function normal(deviation: number): Filling {
  return { kind: 'normal', mean: 0, deviation };
}
