import { expect, test } from 'vitest';
import { Contents, UNKNOWN_CONTENT } from '../../src/swdriver/contents.js';
import { lru } from '../../src/swdriver/eviction_policy.js';
import { PrefixMap } from '../../src/swdriver/prefix_map.js';

test('the number of a content is another one’s only when no column has it', () => {
  const contents = new Contents();
  const number = contents.retain('an image');
  expect(contents.retain('an image')).toBe(number);
  contents.release(number);
  expect(contents.retain('another')).not.toBe(number);
  expect(contents.find('an image')).toBe(number);
  contents.release(number);
  expect(contents.find('an image')).toBe(UNKNOWN_CONTENT);
  expect(contents.retain('a third')).toBe(number);
});

test('contents are told apart where all hashes are the same', () => {
  const map = new PrefixMap({ capacity: 8, columnTokens: 2, policy: lru, hashBits: 0 });
  const root = map.root('namespace');
  const tokens = Uint32Array.of(1, 2);
  const spellings = ['', 'a', 'b', 'c'];
  const nodes = spellings.map((spelling, slot) => map.insert(root, tokens, 0, 0, slot, slot + 1, spelling));
  for (const node of nodes) map.publish(node);
  for (let round = 0; round < 2; round += 1) {
    for (const [index, spelling] of spellings.entries()) {
      expect(map.child(root, tokens, 0, map.contents.find(spelling))).toBe(nodes[index]);
    }
  }
  expect(map.child(root, tokens, 0, map.contents.find('d'))).toBe(0);
});
