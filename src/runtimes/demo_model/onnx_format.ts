import protobuf from 'protobufjs/light.js';

/** Types of the numbers in a tensor, with the codes of `TensorProto.DataType`. */
export const ELEMENT_TYPES = { float: 1, int32: 6, int64: 7, bool: 9, float16: 10 } as const;
export type ElementType = keyof typeof ELEMENT_TYPES;

/** A number for a dimension that is fixed, a name for one that is not. */
export type Dimension = number | string;

/** A plain number is an integer: ONNX tells them from floats. */
export type Attribute = number | readonly number[] | { readonly float: number };

/** One operator of a graph. An empty name of an input or output leaves it out. */
export interface OnnxNode {
  readonly name: string;
  readonly operator: string;
  readonly domain: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, Attribute>>;
}

/** A tensor that is given or computed. */
export interface OnnxValue {
  readonly name: string;
  readonly type: ElementType;
  readonly dimensions: readonly Dimension[];
}

/** A constant tensor: its bytes are in the model file, or in another file beside it. */
export interface OnnxInitializer {
  readonly name: string;
  readonly type: ElementType;
  readonly dimensions: readonly number[];
  readonly data: Uint8Array | { readonly file: string; readonly offset: number; readonly bytes: number };
}

/** What a model file says. */
export interface OnnxModel {
  readonly graphName: string;
  readonly nodes: readonly OnnxNode[];
  readonly initializers: readonly OnnxInitializer[];
  readonly inputs: readonly OnnxValue[];
  readonly outputs: readonly OnnxValue[];
  /** Versions of the operator sets by domain; '' is the one of ONNX itself. */
  readonly operatorSets: Readonly<Record<string, number>>;
}

/** 8 is what ONNX 1.12 and later read; it has everything that is used here. */
const IR_VERSION = 8;
const ATTRIBUTE_FLOAT = 1;
const ATTRIBUTE_INT = 2;
const ATTRIBUTE_INTS = 7;
const LOCATION_EXTERNAL = 1;

const field = (type: string, id: number) => ({ type, id });
const repeated = (type: string, id: number) => ({ rule: 'repeated', type, id });
/** One tag a number, as in all files of ONNX: its schema is of the older syntax. */
const integers = (id: number) => ({ ...repeated('int64', id), options: { packed: false } });

/** The messages and fields of onnx.proto that are used here. */
const ROOT = protobuf.Root.fromJSON({
  nested: {
    Model: {
      fields: {
        irVersion: field('int64', 1),
        producerName: field('string', 2),
        graph: field('Graph', 7),
        opsetImport: repeated('OperatorSetId', 8),
      },
    },
    OperatorSetId: { fields: { domain: field('string', 1), version: field('int64', 2) } },
    Graph: {
      fields: {
        node: repeated('Node', 1),
        name: field('string', 2),
        initializer: repeated('Tensor', 5),
        input: repeated('ValueInfo', 11),
        output: repeated('ValueInfo', 12),
      },
    },
    Node: {
      fields: {
        input: repeated('string', 1),
        output: repeated('string', 2),
        name: field('string', 3),
        opType: field('string', 4),
        attribute: repeated('Attribute', 5),
        domain: field('string', 7),
      },
    },
    Attribute: {
      fields: {
        name: field('string', 1),
        f: field('float', 2),
        i: field('int64', 3),
        ints: integers(8),
        type: field('int32', 20),
      },
    },
    ValueInfo: { fields: { name: field('string', 1), type: field('Type', 2) } },
    Type: { fields: { tensorType: field('TensorType', 1) } },
    TensorType: { fields: { elemType: field('int32', 1), shape: field('TensorShape', 2) } },
    TensorShape: { fields: { dim: repeated('TensorDimension', 1) } },
    TensorDimension: { fields: { dimValue: field('int64', 1), dimParam: field('string', 2) } },
    Tensor: {
      fields: {
        dims: integers(1),
        dataType: field('int32', 2),
        name: field('string', 8),
        rawData: field('bytes', 9),
        externalData: repeated('Entry', 13),
        dataLocation: field('int32', 14),
      },
    },
    Entry: { fields: { key: field('string', 1), value: field('string', 2) } },
  },
});

/** The bytes of a `.onnx` file: a ModelProto of onnx.proto. */
export function encodeModel(model: OnnxModel): Uint8Array {
  const message = {
    irVersion: IR_VERSION,
    producerName: 'kvss demo-model',
    graph: {
      name: model.graphName,
      node: model.nodes.map(nodeMessage),
      initializer: model.initializers.map(tensorMessage),
      input: model.inputs.map(valueMessage),
      output: model.outputs.map(valueMessage),
    },
    opsetImport: Object.entries(model.operatorSets).map(([domain, version]) => ({ domain, version })),
  };
  return ROOT.lookupType('Model').encode(message).finish();
}

function nodeMessage(node: OnnxNode) {
  return {
    input: node.inputs,
    output: node.outputs,
    name: node.name,
    opType: node.operator,
    attribute: Object.entries(node.attributes).map(([name, value]) => ({ name, ...attributeMessage(value) })),
    ...(node.domain === '' ? {} : { domain: node.domain }),
  };
}

function attributeMessage(value: Attribute) {
  if (typeof value === 'number') return { i: value, type: ATTRIBUTE_INT };
  if ('float' in value) return { f: value.float, type: ATTRIBUTE_FLOAT };
  return { ints: value, type: ATTRIBUTE_INTS };
}

function valueMessage({ name, type, dimensions }: OnnxValue) {
  const dim = dimensions.map((size) => (typeof size === 'number' ? { dimValue: size } : { dimParam: size }));
  return { name, type: { tensorType: { elemType: ELEMENT_TYPES[type], shape: { dim } } } };
}

function tensorMessage({ name, type, dimensions, data }: OnnxInitializer) {
  const head = { dims: dimensions, dataType: ELEMENT_TYPES[type], name };
  if (data instanceof Uint8Array) return { ...head, rawData: data };
  const entries = { location: data.file, offset: data.offset, length: data.bytes };
  const externalData = Object.entries(entries).map(([key, value]) => ({ key, value: String(value) }));
  return { ...head, externalData, dataLocation: LOCATION_EXTERNAL };
}
