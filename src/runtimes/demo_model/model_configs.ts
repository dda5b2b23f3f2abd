import { type DemoModelSettings, NORM_EPSILON } from './options.js';

/** The config.json of a model, as Hugging Face has it. */
export function huggingFaceConfig(settings: DemoModelSettings): Record<string, unknown> {
  const window = settings.windows.find((each) => each !== null);
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: settings.vocabularySize,
    hidden_size: settings.hiddenSize,
    intermediate_size: settings.intermediateSize,
    num_hidden_layers: settings.layers,
    num_attention_heads: settings.heads,
    num_key_value_heads: settings.keyValueHeads,
    head_dim: settings.headDim,
    hidden_act: 'silu',
    rms_norm_eps: NORM_EPSILON,
    rope_theta: settings.ropeTheta,
    max_position_embeddings: settings.maxPositions,
    tie_word_embeddings: settings.tied,
    torch_dtype: settings.dtype === 'fp16' ? 'float16' : 'float32',
    use_cache: true,
    ...(window === undefined
      ? {}
      : {
          sliding_window: window,
          layer_types: settings.windows.map((each) => (each === null ? 'full_attention' : 'sliding_attention')),
        }),
  };
}

/** The genai_config.json that onnxruntime-genai reads: names of files, inputs and outputs. */
export function genaiConfig(settings: DemoModelSettings, modelFile: string): Record<string, unknown> {
  const fused = settings.attention === 'fused';
  return {
    model: {
      type: 'llama',
      vocab_size: settings.vocabularySize,
      context_length: settings.maxPositions,
      decoder: {
        filename: modelFile,
        hidden_size: settings.hiddenSize,
        head_size: settings.headDim,
        num_attention_heads: settings.heads,
        num_key_value_heads: settings.keyValueHeads,
        num_hidden_layers: settings.layers,
        inputs: {
          input_ids: 'input_ids',
          attention_mask: 'attention_mask',
          ...(fused ? {} : { position_ids: 'position_ids' }),
          past_key_names: 'past_key_values.%d.key',
          past_value_names: 'past_key_values.%d.value',
        },
        outputs: {
          logits: 'logits',
          present_key_names: 'present.%d.key',
          present_value_names: 'present.%d.value',
        },
      },
    },
    search: { max_length: settings.maxPositions, past_present_share_buffer: fused },
  };
}
