import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import protobuf from 'protobufjs/light.js';
import { fromFloat16Bits } from '../../src/common/float16.js';

/** A constant tensor in the data file, as a model file describes it. */
export interface StoredTensor {
  readonly dimensions: number[];
  readonly values: Float64Array;
  /** Where its bytes begin. */
  readonly offset: number;
}

interface Config {
  hidden_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  num_key_value_heads: number;
  head_dim: number;
  intermediate_size: number;
  vocab_size: number;
  rms_norm_eps: number;
  rope_theta: number;
  tie_word_embeddings: boolean;
  sliding_window?: number;
  layer_types?: string[];
}

/** The fields of a protobuf message by their numbers, without knowing what they mean. */
function fieldsOf(bytes: Uint8Array): Map<number, (number | Uint8Array)[]> {
  const reader = protobuf.Reader.create(bytes);
  const fields = new Map<number, (number | Uint8Array)[]>();
  while (reader.pos < reader.len) {
    const tag = reader.uint32();
    const wire = tag & 7;
    if (wire !== 0 && wire !== 2) {
      reader.skipType(wire);
      continue;
    }
    const list = fields.get(tag >>> 3) ?? [];
    list.push(wire === 0 ? Number(reader.int64()) : reader.bytes());
    fields.set(tag >>> 3, list);
  }
  return fields;
}

const text = (bytes: number | Uint8Array | undefined) => new TextDecoder().decode(bytes as Uint8Array);

/** The weights of a model by their names, found through its graph: numbers of fields are those of onnx.proto. */
export function readWeights(directory: string): Map<string, StoredTensor> {
  const [graph] = fieldsOf(readFileSync(join(directory, 'model.onnx'))).get(7) ?? [];
  const weights = new Map<string, StoredTensor>();
  for (const initializer of fieldsOf(graph as Uint8Array).get(5) ?? []) {
    const tensor = fieldsOf(initializer as Uint8Array);
    if (tensor.get(14)?.[0] !== 1) continue;
    const entries = (tensor.get(13) ?? []).map((entry) => {
      const pair = fieldsOf(entry as Uint8Array);
      return [text(pair.get(1)?.[0]), text(pair.get(2)?.[0])] as const;
    });
    const { location = '', offset, length } = Object.fromEntries(entries);
    const file = readFileSync(join(directory, location));
    const bytes = file.buffer.slice(
      file.byteOffset + Number(offset),
      file.byteOffset + Number(offset) + Number(length),
    );
    const dimensions = (tensor.get(1) ?? []).map(Number);
    const wide = tensor.get(2)?.[0] === 1;
    const values = wide
      ? Float64Array.from(new Float32Array(bytes))
      : Float64Array.from(new Uint16Array(bytes), fromFloat16Bits);
    weights.set(text(tensor.get(8)?.[0]), { dimensions, values, offset: Number(offset) });
  }
  return weights;
}

/** A decoder as its papers describe it, in plain loops over numbers of 64 bits; nothing of it is shared with the generator. */
export class LlamaReference {
  readonly #config: Config;
  readonly #weights: Map<string, StoredTensor>;

  constructor(directory: string) {
    this.#config = JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8'));
    this.#weights = readWeights(directory);
  }

  /** Logits [tokens.length][vocab_size] of a sequence. */
  logits(tokens: readonly number[]): number[][] {
    const { hidden_size, num_hidden_layers, vocab_size, tie_word_embeddings } = this.#config;
    const embedding = this.#values('model.embed_tokens.weight');
    const states = tokens.map((token) => [...embedding.subarray(token * hidden_size, (token + 1) * hidden_size)]);
    for (let layer = 0; layer < num_hidden_layers; layer += 1) {
      const name = `model.layers.${layer}`;
      const attention = this.#attention(
        layer,
        states.map((state) => this.#norm(state, `${name}.input_layernorm.weight`)),
      );
      for (const [at, state] of states.entries()) {
        addTo(state, attention[at] as number[]);
        addTo(state, this.#feedForward(name, this.#norm(state, `${name}.post_attention_layernorm.weight`)));
      }
    }
    return states.map((state) => {
      const last = this.#norm(state, 'model.norm.weight');
      if (!tie_word_embeddings) return this.#times(last, 'lm_head.MatMul.weight');
      return Array.from({ length: vocab_size }, (_, token) =>
        dot(last, [...embedding.subarray(token * hidden_size, (token + 1) * hidden_size)]),
      );
    });
  }

  #attention(layer: number, states: readonly number[][]): number[][] {
    const { num_attention_heads: heads, num_key_value_heads, head_dim, layer_types, sliding_window } = this.#config;
    const name = `model.layers.${layer}.self_attn`;
    const perHead = (row: number[], count: number) =>
      Array.from({ length: count }, (_, head) => row.slice(head * head_dim, (head + 1) * head_dim));
    const project = (part: string, count: number) =>
      states.map((state) => perHead(this.#times(state, `${name}.${part}.MatMul.weight`), count));
    const turn = (rows: number[][][]) => rows.map((row, position) => row.map((head) => this.#rotate(head, position)));
    const queries = turn(project('q_proj', heads));
    const keys = turn(project('k_proj', num_key_value_heads));
    const values = project('v_proj', num_key_value_heads);
    const window = layer_types?.[layer] === 'sliding_attention' ? (sliding_window as number) : Infinity;
    return states.map((_, position) => {
      const mixed: number[] = [];
      for (let head = 0; head < heads; head += 1) {
        const shared = Math.floor((head * num_key_value_heads) / heads);
        const first = Math.max(0, position - window + 1);
        const scores: number[] = [];
        for (let at = first; at <= position; at += 1) {
          const key = keys[at]?.[shared] as number[];
          scores.push(dot(queries[position]?.[head] as number[], key) / Math.sqrt(head_dim));
        }
        const highest = Math.max(...scores);
        const odds = scores.map((score) => Math.exp(score - highest));
        const total = odds.reduce((sum, each) => sum + each, 0);
        const out = new Array<number>(head_dim).fill(0);
        for (const [index, each] of odds.entries()) {
          for (let at = 0; at < head_dim; at += 1) {
            out[at] = (out[at] as number) + (each / total) * (values[first + index]?.[shared]?.[at] as number);
          }
        }
        mixed.push(...out);
      }
      return this.#times(mixed, `${name}.o_proj.MatMul.weight`);
    });
  }

  /** Turns each pair (i, i + head_dim / 2) by position x theta^(-2 i / head_dim). */
  #rotate(head: readonly number[], position: number): number[] {
    const { head_dim, rope_theta } = this.#config;
    const half = head_dim / 2;
    const turned = [...head];
    for (let pair = 0; pair < half; pair += 1) {
      const angle = position / rope_theta ** ((2 * pair) / head_dim);
      const [x, y] = [head[pair] as number, head[pair + half] as number];
      turned[pair] = x * Math.cos(angle) - y * Math.sin(angle);
      turned[pair + half] = x * Math.sin(angle) + y * Math.cos(angle);
    }
    return turned;
  }

  #feedForward(name: string, state: readonly number[]): number[] {
    const gate = this.#times(state, `${name}.mlp.gate_proj.MatMul.weight`);
    const up = this.#times(state, `${name}.mlp.up_proj.MatMul.weight`);
    const product = gate.map((each, at) => (each / (1 + Math.exp(-each))) * (up[at] as number));
    return this.#times(product, `${name}.mlp.down_proj.MatMul.weight`);
  }

  #norm(state: readonly number[], weightName: string): number[] {
    const weight = this.#values(weightName);
    const root = Math.sqrt(dot(state, state) / state.length + this.#config.rms_norm_eps);
    return state.map((each, at) => (each / root) * (weight[at] as number));
  }

  #times(state: readonly number[], weightName: string): number[] {
    const matrix = this.#values(weightName);
    const width = matrix.length / state.length;
    const out = new Array<number>(width).fill(0);
    for (const [row, factor] of state.entries()) {
      for (let at = 0; at < width; at += 1) {
        out[at] = (out[at] as number) + factor * (matrix[row * width + at] as number);
      }
    }
    return out;
  }

  #values(name: string): Float64Array {
    const tensor = this.#weights.get(name);
    if (tensor === undefined) throw new Error(`no weight ${name}`);
    return tensor.values;
  }
}

function dot(left: readonly number[], right: readonly number[]): number {
  return left.reduce((sum, each, at) => sum + each * (right[at] as number), 0);
}

function addTo(target: number[], added: readonly number[]): void {
  for (const [at, each] of added.entries()) target[at] = (target[at] as number) + each;
}
