// Decoders in ONNX Runtime: what of their state is stored, found again, and used.

import { vitest } from './killers.mjs';

const windows = (name) => vitest('test/runtimes/onnx_windows.test.ts', name);
const speculating = (name) => vitest('test/runtimes/onnx_speculation.test.ts', name);
const identity = (name) => vitest('test/runtimes/onnx_identity.test.ts', name);
const runs = (name) => vitest('test/runtimes/onnx_model.test.ts', name);

const sequence = 'src/runtimes/onnx/onnx_sequence.ts';
const decoder = 'src/runtimes/onnx/onnx_decoder.ts';

export const onnx = [
  {
    name: 'onnx: what lies before a window is not stored',
    file: sequence,
    find: 'from < (heldFrom[at] as number) || ',
    replace: '',
    protects: 'P1: zeros that stand for what was not refilled are not stored.',
    killers: [windows('what lies before a refilled window is never stored')],
  },
  {
    name: 'onnx: what has not been computed is not stored',
    file: sequence,
    find: ' || from + this.host.columnTokens > state.length',
    replace: '',
    protects: 'P1: a column is stored when all of its tokens have been computed.',
    killers: [
      vitest(
        'test/runtimes/onnx_sequences.test.ts',
        'a prefill that is aborted between two chunks stores what it has computed',
      ),
    ],
  },
  {
    name: 'onnx: a refill that fails leaves nothing',
    file: sequence,
    find: '      for (const { state } of parts) state.truncate(0);\n',
    replace: '',
    protects: 'P1: room that was laid out for a refill is not stored as if it had been filled.',
    killers: [
      windows('a refill that ends early brings back the window of the shorter prefix, and one that fails nothing'),
    ],
  },
  {
    name: 'onnx: rejected proposals leave the state',
    file: sequence,
    find: '        state.truncate(this.#count);\n',
    replace: '',
    protects: 'P1: what the target has rejected is neither looked at nor stored.',
    killers: [speculating('a sampler that throws leaves no proposals behind, in the state and in the store')],
  },
  {
    name: 'onnx: what a window does not see is numbers',
    file: sequence,
    find: '        layout.clear(state, Math.min(reach, this.#windowFrom(layout, hit.columns)));\n',
    replace: '',
    protects: 'P2: what another sequence has left in the memory does not show.',
    killers: [windows('only the window is refilled, and the logits are those of a plain run')],
  },
  {
    name: 'onnx: the draft catches up',
    file: sequence,
    find: '    if (this.#draft) await this.#catchUp(this.#draft);\n',
    replace: '',
    protects: 'P4: a hit is one for both: a column is stored when both models have computed it.',
    killers: [speculating('what was decoded without proposals is stored for both')],
  },
  {
    name: 'onnx: which layers a group has is part of the identity',
    file: decoder,
    find: 'layout: layoutOf(models),',
    replace: 'layout: LAYOUT,',
    protects: 'P6: the state of one layer is not taken for that of another.',
    killers: [identity('a config.json that has other layers slide, of which as many bytes lie in each group')],
  },
  {
    name: 'onnx: revisions of target and draft are told apart',
    file: decoder,
    find: 'revision: revisionOf(models),',
    replace: "revision: models.map(({ revision }) => revision).join('+'),",
    protects: 'P6: two pairs of models do not make one revision.',
    killers: [identity('another draft, and revisions that only together look the same')],
  },
  {
    name: 'onnx: the files of weights are part of the revision',
    file: 'src/runtimes/onnx/revision.ts',
    find: '    for (const name of externalFiles(graph)) await addFile(hash, join(dirname(path), name));\n',
    replace: '',
    protects: 'P6: other weights are another model.',
    killers: [
      vitest(
        'test/runtimes/revision.test.ts',
        'changes with every bit of the graph and of the weights, whatever their file is called',
      ),
    ],
  },
  {
    name: 'onnx: runs take turns',
    file: 'src/runtimes/onnx/onnx_model.ts',
    find: 'this.#turn.then(() => this.#run(state, tokens, wanted));',
    replace: 'this.#run(state, tokens, wanted);',
    protects: 'P2: two sequences do not share the memory of their logits.',
    killers: [runs('runs take turns in their order, and each has logits of its own')],
  },
];
