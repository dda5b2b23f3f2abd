export { type GenerateOptions, Generation } from './generation.js';
export { OnnxDecoder, type OnnxDecoderOptions, type OnnxDriverOptions, type OnnxModelOptions } from './onnx_decoder.js';
export { OnnxSequence, type Prefill, type PrefillOptions, type Speculation } from './onnx_sequence.js';
export { revisionOfFile } from './revision.js';
export { greedy, type Sampler, type SamplingOptions, sampler } from './sampling.js';
