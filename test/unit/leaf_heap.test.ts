import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { LeafHeap } from '../../src/swdriver/leaf_heap.js';
import { settings } from '../model/property_settings.js';

const NODES = 12;

/** A heap that looks at everything, every time. */
class NaiveHeap {
  readonly priorities = new Map<number, number>();

  get lowest(): number {
    return Math.min(...this.priorities.values());
  }
}

const operation = fc.oneof(
  fc.record({
    what: fc.constant('put' as const),
    node: fc.integer({ min: 1, max: NODES }),
    // Few values, so that there are equal ones; also the ends of what a policy may answer.
    priority: fc.constantFrom(0, 1, 2, 3, 5, 8, -1, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 2 ** 53),
  }),
  fc.record({ what: fc.constant('remove' as const), node: fc.integer({ min: 1, max: NODES }) }),
  fc.record({ what: fc.constant('takeLowest' as const) }),
);

test('a heap always names a member of the lowest priority', () => {
  const run = fc.property(fc.array(operation, { maxLength: 120 }), (operations) => {
    const heap = new LeafHeap(NODES);
    const naive = new NaiveHeap();
    for (const each of operations) {
      if (each.what === 'put') {
        heap.put(each.node, each.priority);
        naive.priorities.set(each.node, each.priority);
      } else {
        const node = each.what === 'remove' ? each.node : heap.lowest;
        heap.remove(node);
        naive.priorities.delete(node);
      }
      expect(heap.size).toBe(naive.priorities.size);
      for (let node = 1; node <= NODES; node += 1) expect(heap.has(node)).toBe(naive.priorities.has(node));
      if (heap.size === 0) expect(heap.lowest).toBe(0);
      else expect(naive.priorities.get(heap.lowest)).toBe(naive.lowest);
    }
    // And emptied, it sorts.
    const order: number[] = [];
    for (let node = heap.lowest; node !== 0; node = heap.lowest) {
      order.push(naive.priorities.get(node) ?? Number.NaN);
      heap.remove(node);
    }
    expect(order).toEqual([...naive.priorities.values()].sort((left, right) => (left < right ? -1 : 1)));
  });
  fc.assert(run, settings(500));
});

test('putting a member again changes its priority in both directions', () => {
  const heap = new LeafHeap(3);
  heap.put(1, 10);
  heap.put(2, 20);
  heap.put(3, 30);
  heap.put(3, 5);
  expect(heap.lowest).toBe(3);
  heap.put(3, 40);
  expect(heap.lowest).toBe(1);
  expect(heap.size).toBe(3);
});

test('removing what is not in changes nothing', () => {
  const heap = new LeafHeap(3);
  heap.put(2, 1);
  heap.remove(1);
  heap.remove(1);
  expect([heap.size, heap.lowest]).toEqual([1, 2]);
});

test('a cleared heap is empty and can be filled again', () => {
  const heap = new LeafHeap(3);
  for (const node of [1, 2, 3]) heap.put(node, -node);
  heap.clear();
  expect([heap.size, heap.lowest, heap.has(1)]).toEqual([0, 0, false]);
  heap.put(2, 7);
  expect([heap.size, heap.lowest]).toEqual([1, 2]);
});
