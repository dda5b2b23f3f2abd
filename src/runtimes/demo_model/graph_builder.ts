import type {
  Attribute,
  Dimension,
  ElementType,
  OnnxInitializer,
  OnnxModel,
  OnnxNode,
  OnnxValue,
} from './onnx_format.js';
import { type PlacedWeight, placeWeights, type Weight } from './weights.js';

/** The operators of ONNX Runtime that are no part of ONNX. */
const RUNTIME_DOMAIN = 'com.microsoft';
const RUNTIME_OPERATORS: ReadonlySet<string> = new Set(['GroupQueryAttention', 'SkipSimplifiedLayerNormalization']);
const OPERATOR_SETS = { '': 18, [RUNTIME_DOMAIN]: 1 };

/** A graph and the weights that belong into its data file. */
export interface BuiltGraph {
  readonly model: OnnxModel;
  readonly weights: readonly PlacedWeight[];
}

/**
 * Collects the parts of a graph in the order in which they are computed. A value is known by its name; names are made as
 * exporters make them: `/model/layers.0/mlp/Mul`, the second one of its kind `Mul_1`, and `/output_0` behind.
 */
export class GraphBuilder {
  readonly #nodes: OnnxNode[] = [];
  readonly #constants = new Map<string, OnnxInitializer>();
  readonly #weights = new Map<string, Weight>();
  readonly #inputs: OnnxValue[] = [];
  readonly #outputs: OnnxValue[] = [];
  readonly #nameCounts = new Map<string, number>();

  input(name: string, type: ElementType, dimensions: readonly Dimension[]): string {
    this.#inputs.push({ name, type, dimensions });
    return name;
  }

  /** Says that a value, which some node has under this name, is an output. */
  output(name: string, type: ElementType, dimensions: readonly Dimension[]): void {
    this.#outputs.push({ name, type, dimensions });
  }

  /** Adds an operator with one output and answers its name: a made one, or `output`. */
  node(
    scope: string,
    operator: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>> = {},
    output?: string,
  ): string {
    const name = this.#nameOf(scope, operator);
    const value = output ?? `${name}/output_0`;
    this.#push(name, operator, inputs, attributes, [value]);
    return value;
  }

  /** Adds an operator with these outputs; '' where one is not wanted. */
  nodeWithOutputs(
    scope: string,
    operator: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>>,
    outputs: readonly string[],
  ): void {
    this.#push(this.#nameOf(scope, operator), operator, inputs, attributes, outputs);
  }

  /** A weight in the data file. */
  weight(weight: Weight): string {
    this.#weights.set(weight.name, weight);
    return weight.name;
  }

  /** A vector of whole numbers in the model file; the same numbers are there once. */
  integers(values: readonly number[]): string {
    const data = BigInt64Array.from(values, BigInt);
    return this.#constant(`INT64/[${values.join(', ')}]`, 'int64', [values.length], data);
  }

  /** A whole number without dimensions. */
  integer(value: number): string {
    return this.#constant(`INT64/${value}`, 'int64', [], BigInt64Array.of(BigInt(value)));
  }

  /** A number without dimensions, of 32 bits. */
  float(value: number): string {
    return this.#constant(`FLOAT/${value}`, 'float', [], Float32Array.of(value));
  }

  /** Numbers of 32 bits in the model file. */
  floats(name: string, dimensions: readonly number[], values: Float32Array): string {
    return this.#constant(name, 'float', dimensions, values);
  }

  build(graphName: string, dataFile: string): BuiltGraph {
    const weights = placeWeights([...this.#weights.values()]);
    const placed = weights.map(({ name, type, dimensions, offset, bytes }) => ({
      name,
      type,
      dimensions,
      data: { file: dataFile, offset, bytes },
    }));
    const model = {
      graphName,
      nodes: this.#nodes,
      initializers: [...this.#constants.values(), ...placed],
      inputs: this.#inputs,
      outputs: this.#outputs,
      operatorSets: OPERATOR_SETS,
    };
    return { model, weights };
  }

  #constant(key: string, type: ElementType, dimensions: readonly number[], values: ArrayBufferView): string {
    const name = `/model/constants/${key}`;
    const data = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    this.#constants.set(name, { name, type, dimensions, data });
    return name;
  }

  #nameOf(scope: string, operator: string): string {
    const first = `${scope}/${operator}`;
    const count = this.#nameCounts.get(first) ?? 0;
    this.#nameCounts.set(first, count + 1);
    return count === 0 ? first : `${first}_${count}`;
  }

  #push(
    name: string,
    operator: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>>,
    outputs: readonly string[],
  ): void {
    const domain = RUNTIME_OPERATORS.has(operator) ? RUNTIME_DOMAIN : '';
    this.#nodes.push({ name, operator, domain, inputs, outputs, attributes });
  }
}
