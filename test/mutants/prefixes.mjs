// The map from prefixes to columns, and the names that it begins with.

import { anyDriver, map, sim, vitest } from './killers.mjs';

export const prefixes = [
  {
    name: 'map: tokens are compared behind the hash',
    file: 'src/swdriver/prefix_map.ts',
    find: 'this.#content[node] === content &&\n        this.#sameTokens(node, tokens, at)\n',
    replace: 'this.#content[node] === content\n',
    protects: 'P6: two prefixes do not meet in one column because their hashes do.',
    killers: [map('columns that differ in a single one of 64 positions are different columns'), sim(500)],
  },
  {
    name: 'map: the parent is compared behind the hash',
    file: 'src/swdriver/prefix_map.ts',
    find: '        this.#parent[node] === parent &&\n        this.#content',
    replace: '        this.#content',
    protects: 'P6: the same tokens behind other tokens are another column.',
    killers: [map('does what a plain map of whole paths does'), sim(500)],
  },
  {
    name: 'map: the continuation used last is compared',
    file: 'src/swdriver/prefix_map.ts',
    find: ' && this.#sameTokens(first, tokens, at)) return first;',
    replace: ' && (this.#sameTokens(first, tokens, at) || this.#nextSibling[first] === NONE)) return first;',
    protects: 'P6: a column is found by its own tokens only.',
    killers: [map('a map finds the longest stored prefix and nothing more')],
  },
  {
    name: 'map: all tokens are compared',
    file: 'src/swdriver/prefix_map.ts',
    find: '((mine[left + 7] as number) ^ (tokens[right + 7] as number));',
    replace: '0;',
    protects: 'P6: columns that differ in one token are different.',
    killers: [map('columns that differ in a single one of 64 positions are different columns')],
  },
  {
    name: 'map: a number is compared with its serial',
    file: 'src/swdriver/prefix_map.ts',
    find: ' && this.#serial[node] === serial);',
    replace: ');',
    protects: 'P1: a number that is used again does not mean what it meant before.',
    killers: [map('a number that is used again is not taken for what it meant before'), sim(500)],
  },
  {
    name: 'map: the serial rises when a number is free',
    file: 'src/swdriver/prefix_map.ts',
    find: '    this.#serial[node] = (this.#serial[node] as number) + 1;\n',
    replace: '',
    protects: 'P1: a number that is used again does not mean what it meant before.',
    killers: [map('a number that is used again is not taken for what it meant before')],
  },
  {
    name: 'map: a pinned column is no victim',
    file: 'src/swdriver/prefix_map.ts',
    find: ' && this.#pins[node] === 0) {',
    replace: ') {',
    protects: 'P4: a hit stays readable until it is released.',
    killers: [map('a pin protects a column and its prefix until it has been ended as often as it was made'), sim(500)],
  },
  {
    name: 'map: only leaves are victims',
    file: 'src/swdriver/prefix_map.ts',
    find: ' && this.#firstChild[node] === NONE && this.#pins[node] === 0',
    replace: ' && this.#pins[node] === 0',
    protects: 'P4: a pin on the last column protects the whole prefix.',
    killers: [map('a column that is still being stored is there'), map('does what a plain map of whole paths does')],
  },
  {
    name: 'map: a walk ends at a column that is not stored',
    file: 'src/swdriver/prefix_map.ts',
    find: 'if (node === NONE || this.#state[node] !== STORED) break;',
    replace: 'if (node === NONE) break;',
    protects: 'P1: a column is found when every shard has stored its piece.',
    killers: [map('a column that is still being stored is there for its writer and not for a match')],
  },
  {
    name: 'map: a stripe that goes takes its columns',
    file: 'src/swdriver/prefix_map.ts',
    find: '>= STORING && this.#stripe[node] === stripe) this.remove(node, visit);',
    replace: '>= STORED && this.#stripe[node] === stripe) this.remove(node, visit);',
    protects: 'P1: a column that was being stored on a stripe that went is not published.',
    killers: [map('does what a plain map of whole paths does'), anyDriver, sim(500)],
  },
  {
    name: 'key: the tenant is in the namespace',
    file: 'src/swdriver/model.ts',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is a piece of the source.
    find: '${tenantPartOf(isolationId)}${modelPart}',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: likewise.
    replace: '${modelPart}',
    protects: 'P6: tenants never share a column.',
    killers: [vitest('test/unit/model.test.ts', 'namespaces that differ in one part are different'), sim(500)],
  },
  {
    name: 'key: the revision is in the namespace',
    file: 'src/swdriver/model.ts',
    find: 'model.revision, model.dtype,',
    replace: 'model.dtype,',
    protects: 'P6: two revisions of a model never share a column.',
    killers: [vitest('test/unit/model.test.ts', 'namespaces that differ in one part are different')],
  },
  {
    name: 'key: the adapter is in the namespace',
    file: 'src/swdriver/model.ts',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is a piece of the source.
    find: '${modelPart}${spell(adapter)}`',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: likewise.
    replace: '${modelPart}`',
    protects: 'P6: sequences with different adapters never share a column.',
    killers: [vitest('test/unit/model.test.ts', 'namespaces that differ in one part are different')],
  },
  {
    name: 'key: parts carry their lengths',
    file: 'src/swdriver/model.ts',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is a piece of the source.
    find: 'return `${part.length}:${part}`;',
    replace: 'return part;',
    protects: 'P6: no two lists of parts spell one name.',
    killers: [vitest('test/unit/model.test.ts', 'parts that run into each other do not spell the same namespace')],
  },
  {
    name: 'key: two tenants with one tag are refused',
    file: 'src/swdriver/tenant_tags.ts',
    find: 'if (this.#owners.has(tag)) {',
    replace: 'if (false) {',
    protects: 'P2: shards can tell tenants apart.',
    killers: [vitest('test/unit/tenant_tags.test.ts', 'two tenants that would have the same tag are refused')],
  },
];
