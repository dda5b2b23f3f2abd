import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { AGE_BUCKETS, BUCKET_START, bucketOf } from '../../src/swdriver/eviction/age_buckets.js';
import { HitDensityRanking } from '../../src/swdriver/eviction/hit_density.js';
import { type EvictionPolicy, hitDensity, lru, POLICY_NAMES, policyNamed } from '../../src/swdriver/eviction_policy.js';
import { NONE, type Node, PrefixMap } from '../../src/swdriver/prefix_map.js';
import { settings } from '../model/property_settings.js';

const COLUMN_TOKENS = 2;
/** By density whatever the contest says. */
const density: EvictionPolicy = { name: 'density', ranking: () => new HitDensityRanking({ rule: 'density' }) };

const make = (policy: EvictionPolicy, capacity: number, hashSeed = 1) =>
  new PrefixMap({ capacity, columnTokens: COLUMN_TOKENS, policy, hashSeed });

/** A column a letter. */
const tokensOf = (letters: readonly number[]) => Uint32Array.from(letters.flatMap((letter) => [letter, 7]));
const range = (length: number, first: number) => Array.from({ length }, (_, index) => first + index);

/** Serves a prompt as the driver does, and answers how many of its columns were there. */
function serve(map: PrefixMap, letters: readonly number[], namespace = 'n'): number {
  const tokens = tokensOf(letters);
  const path: Node[] = [];
  const hits = map.walk(map.root(namespace), tokens, 0, Number.POSITIVE_INFINITY, path);
  let tip = hits === 0 ? map.root(namespace) : (path[hits - 1] as Node);
  if (hits > 0) map.touch(tip);
  for (let column = hits; column < letters.length; column += 1) {
    const serial = map.serial(tip);
    map.pin(tip);
    if (map.size === map.capacity) map.evictLeaf(() => {});
    map.unpin(tip, serial);
    if (map.size === map.capacity) break;
    tip = map.insert(tip, tokens, column * COLUMN_TOKENS, 0, 0, 1);
    map.publish(tip);
  }
  return hits;
}

const held = (map: PrefixMap, letters: readonly number[], namespace = 'n') =>
  map.walk(map.root(namespace), tokensOf(letters), 0, Number.POSITIVE_INFINITY, []);

/** Conversations that go on for ever, one turn each in turn, among prompts that come once. Answers hits of the former. */
function conversationsAmongScans(map: PrefixMap, rounds: number, scans: number): number {
  let hits = 0;
  let fresh = 1_000_000;
  const conversations = range(4, 1).map((letter) => range(40, letter * 10_000));
  for (let round = 0; round < rounds; round += 1) {
    for (const conversation of conversations) {
      const known = serve(map, conversation);
      if (round >= rounds / 2) hits += known;
      conversation.push(fresh, fresh + 1);
      fresh += 2;
    }
    for (let scan = 0; scan < scans; scan += 1) {
      serve(map, range(40, fresh));
      fresh += 40;
    }
  }
  return hits;
}

test('policies are known by name', () => {
  expect(POLICY_NAMES).toEqual(['hit-density', 'hit-density-by-cost', 'lru']);
  expect(policyNamed('lru')).toBe(lru);
  expect(policyNamed('hit-density')).toBe(hitDensity);
  expect(() => policyNamed('fifo')).toThrow("there is no 'fifo'; there are hit-density, hit-density-by-cost, lru");
});

test('ages fall into buckets that follow each other without a gap', () => {
  let before = 0;
  for (let age = 0; age < 2 ** 45; age = Math.ceil(age * 1.07) + 1) {
    const bucket = bucketOf(age);
    expect(bucket).toBeGreaterThanOrEqual(before);
    if (bucket < AGE_BUCKETS - 1) expect(age).toBeLessThan(BUCKET_START[bucket + 1] as number);
    expect(age).toBeGreaterThanOrEqual(BUCKET_START[bucket] as number);
    before = bucket;
  }
  expect(before).toBe(AGE_BUCKETS - 1);
});

describe('hit density', () => {
  test('conversations that go on outlive prompts that come once, where last use keeps nothing', () => {
    // 4 conversations of up to 160 columns, and 20 scans of 40 columns between two turns of each.
    const capacity = 700;
    expect(conversationsAmongScans(make(lru, capacity), 60, 20)).toBe(0);
    const all = 4 * range(30, 30).reduce((sum, round) => sum + 40 + 2 * round, 0);
    expect(conversationsAmongScans(make(hitDensity, capacity), 60, 20)).toBeGreaterThan(all / 2);
  });

  test('what was evicted is known again when it comes again, and then kept', () => {
    const map = make(density, 400);
    let fresh = 1_000_000;
    const scan = (count: number) => {
      for (let prompt = 0; prompt < count; prompt += 1) {
        serve(map, range(40, fresh));
        fresh += 40;
      }
    };
    // Others show that what has come twice comes again.
    conversationsAmongScans(map, 30, 10);
    const conversation = range(80, 1);
    serve(map, conversation);
    scan(12);
    expect(held(map, conversation)).toBeLessThan(80);
    serve(map, conversation);
    scan(12);
    serve(map, conversation);
    scan(12);
    expect(held(map, conversation)).toBeGreaterThan(40);
  });

  test('what was popular once does not stay for ever', () => {
    const map = make(density, 300);
    const old = range(40, 1);
    for (let round = 0; round < 50; round += 1) {
      serve(map, old);
      serve(map, range(20, 1_000_000 + round * 20));
    }
    expect(held(map, old)).toBe(40);
    conversationsAmongScans(map, 80, 2);
    expect(held(map, old)).toBeLessThan(40);
  });

  test('goes by last use where that is better', () => {
    // Prompts come again soon or never, and a scan looks no different from the rest: nothing to be learned.
    const chance = (map: PrefixMap) => {
      let hits = 0;
      for (let prompt = 0; prompt < 600; prompt += 1) {
        serve(map, range(24, prompt * 24));
        hits += serve(map, range(24, Math.max(0, prompt - (prompt % 5)) * 24));
      }
      return hits;
    };
    expect(chance(make(hitDensity, 400))).toBeGreaterThanOrEqual(0.98 * chance(make(lru, 400)));
  });

  test('does the same in every run', () => {
    const run = () => {
      const map = make(hitDensity, 300);
      const victims: Node[] = [];
      conversationsAmongScans(map, 30, 5);
      for (let node = map.evictLeaf(() => {}); node !== NONE; node = map.evictLeaf(() => {})) victims.push(node);
      return victims;
    };
    expect(run()).toEqual(run());
  });

  test('decoded columns count as part of their prompt, and their number of turns stays', () => {
    const map = make(hitDensity, 200);
    const prompt = range(20, 1);
    for (let column = 20; column < 60; column += 1) {
      serve(map, range(5, 10_000 + 5 * column));
      const path: Node[] = [];
      map.walk(map.root('n'), tokensOf(prompt), 0, Number.POSITIVE_INFINITY, path);
      const tip = path.at(-1) ?? map.root('n');
      prompt.push(500 + column);
      // As Sequence does after decoding: no match before.
      if (path.length === prompt.length - 1 && map.size < map.capacity) {
        map.publish(map.insert(tip, tokensOf(prompt), path.length * COLUMN_TOKENS, 0, 0, 1));
      } else serve(map, prompt);
    }
    expect(map.size).toBeLessThanOrEqual(200);
    expect(held(map, prompt)).toBeGreaterThan(0);
  });
});

describe.each([lru, hitDensity, density])('$name', (policy) => {
  test('a protected column goes only when nothing else is left', () => {
    const map = make(policy, 100);
    serve(map, [1, 2, 3]);
    serve(map, [4, 5]);
    serve(map, [6]);
    const path: Node[] = [];
    map.walk(map.root('n'), tokensOf([1, 2]), 0, 2, path);
    map.protect(path[1] as Node);
    const victims: Node[] = [];
    for (let node = map.evictLeaf(() => {}); node !== NONE; node = map.evictLeaf(() => {})) victims.push(node);
    expect(victims).toHaveLength(6);
    expect(victims.slice(-2)).toEqual([path[1], path[0]]);
  });

  test('a column that is protected no more goes like any other, and a new one under its number too', () => {
    const map = make(policy, 4);
    serve(map, [1]);
    const [first] = map.children(map.root('n')) as [Node];
    map.protect(first);
    serve(map, [2]);
    expect(map.evictLeaf(() => {})).not.toBe(first);
    map.unprotect(first);
    serve(map, [3]);
    map.remove(first, () => {});
    serve(map, [4]);
    map.touch(map.children(map.root('n'))[1] as Node);
    expect([map.evictLeaf(() => {}), map.evictLeaf(() => {}), map.size]).toEqual([
      expect.any(Number),
      expect.any(Number),
      0,
    ]);
  });

  test('the worst of one tenant is of that tenant', () => {
    const map = make(policy, 100);
    for (const tenant of ['a', 'b', 'c']) for (const letter of [1, 2, 3]) serve(map, [letter, letter + 10], tenant);
    const root = map.root('b');
    for (let left = 6; left > 0; left -= 1) expect(map.evictLeaf(() => {}, root)).not.toBe(NONE);
    expect(map.evictLeaf(() => {}, root)).toBe(NONE);
    expect(map.evictLeaf(() => {}, map.root('new'))).toBe(NONE);
    expect([map.size, map.children(root), held(map, [1, 11], 'a'), held(map, [3, 13], 'c')]).toEqual([12, [], 2, 2]);
  });

  test('always names a leaf that may go, as a plain model sees it, and forgets none', () => {
    const step = fc.oneof(
      {
        weight: 8,
        arbitrary: fc.record({
          act: fc.constant('serve' as const),
          path: fc.array(fc.nat(2), { minLength: 1, maxLength: 8 }),
          tenant: fc.nat(1),
        }),
      },
      {
        weight: 2,
        arbitrary: fc.record({
          act: fc.constantFrom('pin' as const, 'protect' as const, 'unprotect' as const, 'remove' as const),
          pick: fc.nat(1000),
        }),
      },
      {
        weight: 3,
        arbitrary: fc.record({ act: fc.constantFrom('evict' as const, 'evictOf' as const), tenant: fc.nat(1) }),
      },
      { weight: 1, arbitrary: fc.record({ act: fc.constant('grow' as const), more: fc.nat(5) }) },
    );
    const run = fc.property(fc.array(step, { maxLength: 60, size: 'max' }), (steps) => {
      const map = make(policy, 12);
      const pinned = new Set<Node>();
      const shielded = new Set<Node>();
      const forget = (node: Node) => {
        pinned.delete(node);
        shielded.delete(node);
      };
      const all = (): { node: Node; root: Node }[] => {
        const found: { node: Node; root: Node }[] = [];
        for (const tenant of ['0', '1']) {
          const root = map.root(tenant);
          const open = map.children(root);
          for (let node = open.pop(); node !== undefined; node = open.pop()) {
            found.push({ node, root });
            open.push(...map.children(node));
          }
        }
        return found;
      };
      const evict = (root?: Node) => {
        const leaves = all().filter(
          (each) =>
            (root === undefined || each.root === root) &&
            map.children(each.node).length === 0 &&
            !pinned.has(each.node),
        );
        const open = leaves.filter(({ node }) => !shielded.has(node));
        const allowed = (open.length > 0 ? open : leaves).map(({ node }) => node);
        const victim = map.evictLeaf(forget, root);
        if (allowed.length === 0) expect(victim).toBe(NONE);
        else expect(allowed).toContain(victim);
      };
      for (const each of steps) {
        if (each.act === 'serve') {
          const tokens = tokensOf(each.path);
          const path: Node[] = [];
          const root = map.root(String(each.tenant));
          const hits = map.walk(root, tokens, 0, Number.POSITIVE_INFINITY, path);
          let tip = hits === 0 ? root : (path[hits - 1] as Node);
          map.touch(tip);
          for (let column = hits; column < each.path.length; column += 1) {
            if (map.size === map.capacity) {
              const serial = map.serial(tip);
              map.pin(tip);
              const had = pinned.has(tip);
              pinned.add(tip);
              evict();
              map.unpin(tip, serial);
              if (!had) pinned.delete(tip);
            }
            if (map.size === map.capacity) break;
            tip = map.insert(tip, tokens, column * COLUMN_TOKENS, 0, 0, 1);
            map.publish(tip);
          }
        } else if (each.act === 'evict') evict();
        else if (each.act === 'evictOf') evict(map.root(String(each.tenant)));
        else if (each.act === 'grow') map.grow(map.capacity + each.more);
        else {
          const nodes = all();
          const chosen = nodes[('pick' in each ? each.pick : 0) % nodes.length]?.node;
          if (chosen === undefined) continue;
          if (each.act === 'pin' && !pinned.has(chosen)) {
            map.pin(chosen);
            pinned.add(chosen);
          } else if (each.act === 'protect') {
            map.protect(chosen);
            shielded.add(chosen);
          } else if (each.act === 'unprotect') {
            map.unprotect(chosen);
            shielded.delete(chosen);
          } else if (each.act === 'remove') map.remove(chosen, forget);
        }
        expect(map.hasVictim).toBe(all().some(({ node }) => map.children(node).length === 0 && !pinned.has(node)));
      }
      // Without pins everything can go, and then nothing is left.
      for (const node of pinned) map.unpin(node, map.serial(node));
      pinned.clear();
      while (map.size > 0) evict();
      expect(map.hasVictim).toBe(false);
    });
    fc.assert(run, { ...settings(150), examples: [] });
  });
});
