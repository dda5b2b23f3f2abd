import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { LruRanking } from '../../src/swdriver/eviction/lru.js';
import { lru } from '../../src/swdriver/eviction_policy.js';
import { NONE, type Node, PrefixMap, type PrefixMapOptions } from '../../src/swdriver/prefix_map.js';
import { settings } from '../model/property_settings.js';

const make = (options: Partial<PrefixMapOptions> = {}): PrefixMap =>
  new PrefixMap({ capacity: 64, columnTokens: 4, policy: lru, ...options });

/** Puts columns behind each other, stored; answers their nodes. */
function store(map: PrefixMap, namespace: string, tokens: readonly number[], count = Number.POSITIVE_INFINITY): Node[] {
  const nodes: Node[] = [];
  const all = Uint32Array.from(tokens);
  let parent = map.root(namespace);
  for (let at = 0; at + map.columnTokens <= all.length && nodes.length < count; at += map.columnTokens) {
    const known = map.child(parent, all, at);
    const node = known === NONE ? map.insert(parent, all, at, 0, map.size, map.size + 1) : known;
    map.publish(node);
    nodes.push(node);
    parent = node;
  }
  return nodes;
}

function walk(map: PrefixMap, namespace: string, tokens: readonly number[]): Node[] {
  const path: Node[] = [];
  path.length = map.walk(map.root(namespace), Uint32Array.from(tokens), 0, Number.POSITIVE_INFINITY, path);
  return path;
}

const ignore = () => {};
const range = (length: number, first = 1) => Array.from({ length }, (_, index) => first + index);

test('a map finds the longest stored prefix and nothing more', () => {
  const map = make();
  const nodes = store(map, 'n', range(12));
  expect(walk(map, 'n', range(12))).toEqual(nodes);
  expect(walk(map, 'n', range(15))).toEqual(nodes);
  expect(walk(map, 'n', range(11))).toEqual(nodes.slice(0, 2));
  expect(walk(map, 'n', [...range(8), 0, 10, 11, 12])).toEqual(nodes.slice(0, 2));
  expect(walk(map, 'n', range(3))).toEqual([]);
  expect(walk(map, 'n', range(12, 2))).toEqual([]);
});

test('a walk ends at the columns that it was told', () => {
  const map = make();
  const nodes = store(map, 'n', range(12));
  const path: Node[] = [];
  expect(map.walk(map.root('n'), Uint32Array.from(range(12)), 0, 2, path)).toBe(2);
  expect(path).toEqual(nodes.slice(0, 2));
});

test('a column that is still being stored is there for its writer and not for a match', () => {
  const map = make();
  const tokens = Uint32Array.from(range(8));
  const first = map.insert(map.root('n'), tokens, 0, 0, 0, 1);
  const second = map.insert(first, tokens, 4, 0, 1, 2);
  map.publish(second);
  expect(map.child(map.root('n'), tokens, 0)).toBe(first);
  expect(walk(map, 'n', range(8))).toEqual([]);
  expect([map.size, map.stored, map.hasVictim]).toEqual([2, 1, true]);
  map.publish(first);
  expect(walk(map, 'n', range(8))).toEqual([first, second]);
  map.publish(first);
  expect(map.stored).toBe(2);
});

test('columns that differ in a single one of 64 positions are different columns', () => {
  for (const hashBits of [0, 4, 32]) {
    const map = make({ columnTokens: 64, capacity: 65, hashBits, hashSeed: 1 });
    const base = range(64, 1000);
    const variants = [base, ...base.map((token, at) => base.with(at, token ^ 1))];
    const nodes = variants.map((tokens) => store(map, 'n', tokens)[0]);
    expect(new Set(nodes).size).toBe(65);
    for (const [index, tokens] of variants.entries()) expect(walk(map, 'n', tokens)).toEqual([nodes[index]]);
  }
});

test('columns that differ in a single bit of a token are different columns', () => {
  for (const hashBits of [0, 4, 32]) {
    const map = make({ capacity: 33, hashBits, hashSeed: 1 });
    const variants = [0, ...range(32, 0).map((bit) => (1 << bit) >>> 0)].map((token) => [7, 7, token, 7]);
    const nodes = variants.map((tokens) => store(map, 'n', tokens)[0]);
    expect(new Set(nodes).size).toBe(33);
    for (const [index, tokens] of variants.entries()) expect(walk(map, 'n', tokens)).toEqual([nodes[index]]);
  }
});

test('the same column below another parent, or in another namespace, is another column', () => {
  const map = make({ hashBits: 0 });
  const again = [1, 2, 3, 4];
  const [first, second] = store(map, 'n', [...again, ...again]);
  const [other] = store(map, 'm', again);
  expect(new Set([first, second, other]).size).toBe(3);
  expect(walk(map, 'm', [...again, ...again])).toEqual([other]);
});

test('collisions cost time and never correctness', () => {
  for (const hashBits of [0, 4]) {
    const map = make({ capacity: 200, hashBits, hashSeed: 5 });
    const prompts = range(200).map((token) => [token, 0, 0, 0]);
    for (const tokens of prompts.slice(0, 150)) store(map, 'n', tokens);
    for (const [index, tokens] of prompts.entries()) expect(walk(map, 'n', tokens)).toHaveLength(index < 150 ? 1 : 0);
    expect(map.collisions).toBeGreaterThan(0);
  }
});

test('the last continuation that was asked for is found without a look at its bucket', () => {
  const map = make({ hashBits: 0 });
  for (const token of range(10)) store(map, 'n', [token, 0, 0, 0]);
  walk(map, 'n', [3, 0, 0, 0]);
  const before = map.collisions;
  for (let time = 0; time < 5; time += 1) expect(walk(map, 'n', [3, 0, 0, 0])).toHaveLength(1);
  expect(map.collisions).toBe(before);
});

test('columns keep their numbers, places and pins when the map grows', () => {
  const map = make({ capacity: 3 });
  const nodes = store(map, 'n', range(12));
  const [first, second, third] = nodes as [Node, Node, Node];
  map.pin(third);
  map.grow(100);
  expect(map.capacity).toBe(100);
  expect(walk(map, 'n', range(12))).toEqual(nodes);
  expect(nodes.map((node) => [map.slot(node), map.generation(node), map.stripe(node)])).toEqual([
    [0, 1, 0],
    [1, 2, 0],
    [2, 3, 0],
  ]);
  expect(map.hasVictim).toBe(false);
  map.unpin(third, map.serial(third));
  expect(map.evictLeaf(ignore)).toBe(third);
  expect(map.evictLeaf(ignore)).toBe(second);
  expect(map.evictLeaf(ignore)).toBe(first);
  expect(store(map, 'n', range(400))).toHaveLength(100);
});

test('a map says when it is filled beyond its capacity', () => {
  const map = make({ capacity: 2 });
  store(map, 'n', range(8));
  expect(() => store(map, 'm', range(4))).toThrow('insert beyond the capacity');
});

test('a map says when it is told to continue a column that is gone', () => {
  const map = make({ capacity: 2 });
  const [first] = store(map, 'n', range(4)) as [Node];
  map.remove(first, ignore);
  expect(() => map.insert(first, Uint32Array.from(range(4)), 0, 0, 0, 1)).toThrow('insert below no column');
  expect(store(map, 'n', range(8))).toHaveLength(2);
});

test('removing a column takes everything that continues it, deepest first, and nothing else', () => {
  const map = make();
  const [root, left, leftEnd] = store(map, 'n', range(12)) as [Node, Node, Node];
  const [, right] = store(map, 'n', [...range(4), ...range(4, 50)]) as [Node, Node];
  const [other] = store(map, 'n', range(4, 90)) as [Node];
  const seen: Node[] = [];
  map.remove(root, (node) => {
    // Its place can still be asked for.
    expect(map.generation(node)).toBeGreaterThan(0);
    seen.push(node);
  });
  expect([...seen].sort()).toEqual([root, left, leftEnd, right].sort());
  expect(seen.indexOf(leftEnd)).toBeLessThan(seen.indexOf(left));
  expect(seen.at(-1)).toBe(root);
  expect([map.size, map.stored]).toEqual([1, 1]);
  expect(map.children(map.root('n'))).toEqual([other]);
});

test('removing a chain as deep as the map needs no stack', () => {
  const map = make({ capacity: 100_000, columnTokens: 1 });
  const [first] = store(map, 'n', range(100_000)) as [Node];
  let removed = 0;
  map.remove(first, () => {
    removed += 1;
  });
  expect([removed, map.size]).toEqual([100_000, 0]);
});

test('a stripe that goes takes its columns and what continues them', () => {
  const map = make();
  const tokens = Uint32Array.from(range(12));
  const first = map.insert(map.root('n'), tokens, 0, 0, 0, 1);
  const second = map.insert(first, tokens, 4, 1, 0, 2);
  const third = map.insert(second, tokens, 8, 0, 1, 3);
  for (const node of [first, second, third]) map.publish(node);
  const seen: Node[] = [];
  map.removeStripe(1, (node) => seen.push(node));
  expect(seen).toEqual([third, second]);
  expect(walk(map, 'n', range(12))).toEqual([first]);
  map.removeStripe(2, () => expect.fail('no column is there'));
});

test('a number that is used again is not taken for what it meant before', () => {
  const map = make({ capacity: 1 });
  const [first] = store(map, 'n', range(4)) as [Node];
  const serial = map.serial(first);
  expect(map.isCurrent(first, serial)).toBe(true);
  map.remove(first, ignore);
  expect(map.isCurrent(first, serial)).toBe(false);
  const [second] = store(map, 'n', range(4)) as [Node];
  expect(second).toBe(first);
  expect(map.isCurrent(first, serial)).toBe(false);
  expect(map.isCurrent(second, map.serial(second))).toBe(true);
  // A pin of before ends nothing of now.
  map.pin(second);
  map.unpin(first, serial);
  expect(map.hasVictim).toBe(false);
});

test('a pin protects a column and its prefix until it has been ended as often as it was made', () => {
  const map = make({ capacity: 4 });
  const nodes = store(map, 'n', range(12)) as [Node, Node, Node];
  const [spare] = store(map, 'n', range(4, 70)) as [Node];
  map.pin(nodes[1]);
  map.pin(nodes[1]);
  expect(map.evictLeaf(ignore)).toBe(nodes[2]);
  expect(map.evictLeaf(ignore)).toBe(spare);
  expect(map.evictLeaf(ignore)).toBe(NONE);
  map.unpin(nodes[1], map.serial(nodes[1]));
  expect(map.evictLeaf(ignore)).toBe(NONE);
  map.unpin(nodes[1], map.serial(nodes[1]));
  expect(map.evictLeaf(ignore)).toBe(nodes[1]);
  expect(map.evictLeaf(ignore)).toBe(nodes[0]);
});

test('what was used last stays longest', () => {
  const map = make();
  const [first] = store(map, 'n', range(4)) as [Node];
  const [second] = store(map, 'n', range(4, 50)) as [Node];
  const [third] = store(map, 'n', range(4, 90)) as [Node];
  map.touch(first);
  expect([map.evictLeaf(ignore), map.evictLeaf(ignore), map.evictLeaf(ignore)]).toEqual([second, third, first]);
});

test('a use of what continued a column was a use of that column', () => {
  const map = make();
  const [parent, child] = store(map, 'n', range(8)) as [Node, Node];
  const [other] = store(map, 'n', range(4, 50)) as [Node];
  map.touch(child);
  map.remove(child, ignore);
  expect([map.evictLeaf(ignore), map.evictLeaf(ignore)]).toEqual([other, parent]);
});

test('a policy decides among leaves', () => {
  class Newest extends LruRanking {
    readonly #leaves = new Set<Node>();
    override offer(node: Node): void {
      super.offer(node);
      this.#leaves.add(node);
    }
    override withdraw(node: Node): void {
      super.withdraw(node);
      this.#leaves.delete(node);
    }
    override victim(): Node {
      return Math.max(NONE, ...this.#leaves);
    }
  }
  const map = make({ policy: { name: 'newest', ranking: () => new Newest() } });
  const [first, second] = store(map, 'n', range(8)) as [Node, Node];
  const [third] = store(map, 'n', range(4, 50)) as [Node];
  expect([map.evictLeaf(ignore), map.evictLeaf(ignore), map.evictLeaf(ignore)]).toEqual([third, second, first]);
});

test('roots are compared in full and can be listed by the beginning of their name', () => {
  const map = make();
  const roots = ['1:a', '1:ab', '2:ab', '1:a1:b'].map((name) => map.root(name));
  expect(new Set(roots).size).toBe(4);
  expect(map.root('1:ab')).toBe(roots[1]);
  expect(map.rootsBelow('1:a')).toEqual([roots[0], roots[1], roots[3]]);
  expect(roots.every((root) => map.isRoot(root) && map.isStored(root) && map.isCurrent(root, 0))).toBe(true);
  expect(map.bytesPerColumn).toBeGreaterThan(4 * 4);
});

// ---------------------------------------------------------------------------------------------------------------
// The map beside an oracle: a plain Map keyed by the spelt-out path, where every use marks the whole path.

interface Column {
  readonly node: Node;
  readonly serial: number;
  readonly stripe: number;
  readonly slot: number;
  readonly generation: number;
  readonly parent: string;
  stored: boolean;
  pins: number;
  lastUse: number;
}

const NAMESPACES = ['1:a', 'a'];
// Columns of two tokens that differ in one token or one bit.
const LETTERS = [
  [1, 2],
  [1, 0x8000_0002],
  [0, 2],
];

class Oracle {
  readonly columns = new Map<string, Column>();
  readonly dead: { node: Node; serial: number }[] = [];
  tick = 0;

  childrenOf(key: string): [string, Column][] {
    return [...this.columns].filter(([, column]) => column.parent === key);
  }

  use(key: string): void {
    this.tick += 1;
    for (let at = key; ; ) {
      const column = this.columns.get(at);
      if (!column) return;
      column.lastUse = this.tick;
      at = column.parent;
    }
  }

  below(key: string): string[] {
    return [...this.childrenOf(key).flatMap(([child]) => this.below(child)), key];
  }

  victims(): [string, Column][] {
    return [...this.columns].filter(
      ([key, column]) => column.stored && column.pins === 0 && this.childrenOf(key).length === 0,
    );
  }

  /** Least recently used first. */
  victim(): [string, Column] | undefined {
    return this.victims().sort(([, left], [, right]) => left.lastUse - right.lastUse)[0];
  }

  kill(keys: readonly string[]): void {
    for (const key of keys) {
      const column = this.columns.get(key);
      if (column) this.dead.push({ node: column.node, serial: column.serial });
      this.columns.delete(key);
    }
  }
}

class Pair {
  readonly oracle = new Oracle();
  readonly map: PrefixMap;
  #generation = 0;

  constructor(options: Partial<PrefixMapOptions>) {
    this.map = make({ capacity: 6, columnTokens: 2, ...options });
  }

  tokensOf(path: readonly number[]): Uint32Array {
    return Uint32Array.from(path.flatMap((letter) => LETTERS[letter] ?? []));
  }

  keyOf(namespace: number, path: readonly number[]): string {
    return [NAMESPACES[namespace], ...path].join('/');
  }

  /** The columns of a path that are there, from the first. */
  known(namespace: number, path: readonly number[], stored: boolean): Column[] {
    const columns: Column[] = [];
    for (let length = 1; length <= path.length; length += 1) {
      const column = this.oracle.columns.get(this.keyOf(namespace, path.slice(0, length)));
      if (!column || (stored && !column.stored)) break;
      columns.push(column);
    }
    return columns;
  }

  /** Adds the first column of the path that is missing. */
  insert(namespace: number, path: readonly number[], stripe: number): void {
    const { map, oracle } = this;
    const known = this.known(namespace, path, false);
    if (known.length === path.length) return;
    // As the driver does: a pinned parent does not make the room.
    const parent = known.at(-1)?.node ?? map.root(NAMESPACES[namespace] as string);
    const tokens = this.tokensOf(path);
    const at = known.length * 2;
    expect(map.child(parent, tokens, at)).toBe(NONE);
    if (map.size === map.capacity) return;
    this.#generation += 1;
    const generation = this.#generation;
    const slot = generation * 3;
    const node = map.insert(parent, tokens, at, stripe, slot, generation);
    oracle.columns.set(this.keyOf(namespace, path.slice(0, known.length + 1)), {
      node,
      serial: map.serial(node),
      stripe,
      slot,
      generation,
      parent: this.keyOf(namespace, path.slice(0, known.length)),
      stored: false,
      pins: 0,
      lastUse: 0,
    });
    oracle.use(this.keyOf(namespace, path.slice(0, known.length + 1)));
  }

  walk(namespace: number, path: readonly number[]): void {
    const { map } = this;
    const nodes: Node[] = [];
    const columns = map.walk(
      map.root(NAMESPACES[namespace] as string),
      this.tokensOf(path),
      0,
      Number.POSITIVE_INFINITY,
      nodes,
    );
    expect(nodes.slice(0, columns)).toEqual(this.known(namespace, path, true).map((column) => column.node));
  }

  /** One of the columns that there are. */
  any(pick: number): [string, Column] | undefined {
    const all = [...this.oracle.columns];
    return all[pick % all.length];
  }

  remove(key: string, act: (visit: (node: Node) => void) => void): void {
    const doomed = this.oracle.below(key);
    const nodes = doomed.map((each) => this.oracle.columns.get(each)?.node as Node);
    const seen: Node[] = [];
    act((node) => seen.push(node));
    expect([...seen].sort()).toEqual([...nodes].sort());
    // Whatever continues a column comes before it.
    for (const each of doomed) {
      const column = this.oracle.columns.get(each);
      const parent = this.oracle.columns.get(column?.parent ?? '');
      if (column && parent && seen.includes(parent.node)) {
        expect(seen.indexOf(column.node)).toBeLessThan(seen.indexOf(parent.node));
      }
    }
    this.oracle.kill(doomed);
  }

  check(): void {
    const { map, oracle } = this;
    const columns = [...oracle.columns];
    expect(map.size).toBe(columns.length);
    expect(map.stored).toBe(columns.filter(([, column]) => column.stored).length);
    expect(map.hasVictim).toBe(oracle.victims().length > 0);
    expect(new Set(columns.map(([, column]) => column.node)).size).toBe(columns.length);
    for (const [key, { node, serial, stripe, slot, generation, stored }] of columns) {
      expect([map.serial(node), map.stripe(node), map.slot(node), map.generation(node)]).toEqual([
        serial,
        stripe,
        slot,
        generation,
      ]);
      expect([map.isCurrent(node, serial), map.isStored(node)]).toEqual([true, stored]);
      expect(map.children(node).sort()).toEqual(
        oracle
          .childrenOf(key)
          .map(([, child]) => child.node)
          .sort(),
      );
    }
    for (const { node, serial } of oracle.dead) expect(map.isCurrent(node, serial)).toBe(false);
  }
}

interface Command {
  readonly text: string;
  readonly act: (pair: Pair) => void;
}

const command = <Argument>(
  name: string,
  argument: fc.Arbitrary<Argument>,
  act: (pair: Pair, argument: Argument) => void,
): fc.Arbitrary<Command> =>
  argument.map((value) => ({ text: `${name}(${JSON.stringify(value)})`, act: (pair) => act(pair, value) }));

const place = fc.tuple(fc.nat({ max: 1 }), fc.array(fc.nat({ max: 2 }), { minLength: 1, maxLength: 5 }));
const pick = fc.nat({ max: 1_000 });

const insertOne = command('insert', fc.tuple(place, fc.nat({ max: 2 })), (pair, [[namespace, path], stripe]) =>
  pair.insert(namespace, path, stripe),
);
const storeAll = command('store', place, (pair, [namespace, path]) => {
  for (let length = 1; length <= path.length; length += 1) {
    pair.insert(namespace, path.slice(0, length), 0);
    const column = pair.oracle.columns.get(pair.keyOf(namespace, path.slice(0, length)));
    if (!column) return;
    pair.map.publish(column.node);
    column.stored = true;
  }
});
const publish = command('publish', pick, (pair, which) => {
  const [, column] = pair.any(which) ?? [];
  if (!column) return;
  pair.map.publish(column.node);
  column.stored = true;
});
const look = command('walk', place, (pair, [namespace, path]) => pair.walk(namespace, path));
const touch = command('touch', pick, (pair, which) => {
  const [key, column] = pair.any(which) ?? [];
  if (key === undefined || !column) return;
  pair.map.touch(column.node);
  pair.oracle.use(key);
});
const pin = command('pin', pick, (pair, which) => {
  const [, column] = pair.any(which) ?? [];
  if (!column?.stored) return;
  pair.map.pin(column.node);
  column.pins += 1;
});
const unpin = command('unpin', pick, (pair, which) => {
  const pinned = [...pair.oracle.columns.values()].filter((column) => column.pins > 0);
  const column = pinned[which % pinned.length];
  if (!column) return;
  pair.map.unpin(column.node, column.serial);
  column.pins -= 1;
});
const unpinDead = command('unpinDead', pick, (pair, which) => {
  const { dead } = pair.oracle;
  const gone = dead[which % dead.length];
  if (gone) pair.map.unpin(gone.node, gone.serial);
});
const remove = command('remove', pick, (pair, which) => {
  const [key, column] = pair.any(which) ?? [];
  if (key !== undefined && column) pair.remove(key, (visit) => pair.map.remove(column.node, visit));
});
const evictLeaf = command('evictLeaf', fc.constant(null), (pair) => {
  const [key, column] = pair.oracle.victim() ?? [];
  if (key === undefined || !column) expect(pair.map.evictLeaf(() => expect.fail('no victim'))).toBe(NONE);
  else pair.remove(key, (visit) => expect(pair.map.evictLeaf(visit)).toBe(column.node));
});
const removeStripe = command('removeStripe', fc.nat({ max: 2 }), (pair, stripe) => {
  const doomed = [...pair.oracle.columns].filter(([, column]) => column.stripe === stripe);
  const keys = [...new Set(doomed.flatMap(([key]) => pair.oracle.below(key)))];
  const seen: Node[] = [];
  pair.map.removeStripe(stripe, (node) => seen.push(node));
  expect(seen.sort()).toEqual(keys.map((key) => pair.oracle.columns.get(key)?.node as Node).sort());
  pair.oracle.kill(keys);
});
const grow = command('grow', fc.nat({ max: 4 }), (pair, more) => pair.map.grow(pair.map.capacity + more));

const commands = fc.array(
  fc.oneof(
    { weight: 6, arbitrary: insertOne },
    { weight: 8, arbitrary: storeAll },
    { weight: 4, arbitrary: publish },
    { weight: 6, arbitrary: look },
    { weight: 3, arbitrary: touch },
    { weight: 3, arbitrary: pin },
    { weight: 3, arbitrary: unpin },
    { weight: 1, arbitrary: unpinDead },
    { weight: 1, arbitrary: remove },
    { weight: 5, arbitrary: evictLeaf },
    { weight: 1, arbitrary: removeStripe },
    { weight: 1, arbitrary: grow },
  ),
  { maxLength: 80, size: 'max' },
);

test.each([0, 2, 4, 32])('a map with hashes of %i bits does what a plain map of whole paths does', (hashBits) => {
  let collisions = 0;
  const run = fc.property(commands, fc.nat(), (list, hashSeed) => {
    const pair = new Pair({ hashBits, hashSeed });
    for (const { act } of list) {
      act(pair);
      pair.check();
    }
    collisions += pair.map.collisions;
  });
  fc.assert(run, { ...settings(150), examples: [] });
  if (hashBits <= 4) expect(collisions).toBeGreaterThan(0);
});
