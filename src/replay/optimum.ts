import { LeafHeap } from '../swdriver/leaf_heap.js';
import { inOrder } from './replay.js';
import type { Trace, TraceRequest } from './trace.js';

/** What a replay comes to in which every eviction is the best one. Counts columns; tokens beyond full columns never hit. */
export interface Optimum {
  requests: number;
  promptTokens: number;
  columnRefs: number;
  columnHits: number;
}

const NEVER = 0x7fffffff;

/**
 * The most that any eviction policy could hit, knowing what comes: of the leaves, evict the one that is used again
 * last (Belady's rule). What is kept is closed under prefixes, as in a PrefixMap: all of a prompt is stored, as far as there is
 * room, and columns are used again no later than those that continue them.
 */
export function optimumOf(traces: readonly Trace[], capacityColumns: number, columnTokens: number): Optimum {
  const { prompts, parent, promptTokens } = numberPrefixes(traces, columnTokens);
  const columns = parent.length;
  const nextUses = nextUsesOf(prompts, columns);
  const stored = new Uint8Array(columns);
  const children = new Uint32Array(columns);
  const nextUse = new Int32Array(columns);
  const leaves = new LeafHeap(columns);
  let size = 0;
  let columnRefs = 0;
  let columnHits = 0;
  const evict = (tip: number): boolean => {
    const victim = leaves.lowest;
    if (victim === 0) return false;
    leaves.remove(victim);
    stored[victim] = 0;
    size -= 1;
    const above = parent[victim] as number;
    if (above === 0) return true;
    children[above] = (children[above] as number) - 1;
    if (children[above] === 0 && above !== tip) leaves.put(above, -(nextUse[above] as number));
    return true;
  };
  for (const [index, prompt] of prompts.entries()) {
    const next = nextUses[index] as Int32Array;
    for (let at = 0; at < prompt.length; at += 1) nextUse[prompt[at] as number] = next[at] as number;
    let at = 0;
    while (at < prompt.length && stored[prompt[at] as number] === 1) at += 1;
    columnRefs += prompt.length;
    columnHits += at;
    let tip = at === 0 ? 0 : (prompt[at - 1] as number);
    leaves.remove(tip);
    for (; at < prompt.length; at += 1) {
      if (size === capacityColumns && !evict(tip)) break;
      const column = prompt[at] as number;
      stored[column] = 1;
      children[column] = 0;
      children[tip] = (children[tip] as number) + 1;
      size += 1;
      tip = column;
    }
    if (tip !== 0 && children[tip] === 0) leaves.put(tip, -(nextUse[tip] as number));
  }
  return { requests: prompts.length, promptTokens, columnRefs, columnHits };
}

/** When each column of each prompt is used next, as the number of that prompt. */
function nextUsesOf(prompts: readonly Uint32Array[], columns: number): Int32Array[] {
  const upcoming = new Int32Array(columns).fill(NEVER);
  const nextUses: Int32Array[] = [];
  for (let index = prompts.length - 1; index >= 0; index -= 1) {
    const prompt = prompts[index] as Uint32Array;
    const next = new Int32Array(prompt.length);
    for (let at = 0; at < prompt.length; at += 1) {
      const column = prompt[at] as number;
      next[at] = upcoming[column] as number;
      upcoming[column] = index;
    }
    nextUses[index] = next;
  }
  return nextUses;
}

/** Prompts as numbers of their columns, from 1, in the order in which they come; equal prefixes have equal numbers. */
function numberPrefixes(
  traces: readonly Trace[],
  columnTokens: number,
): { prompts: Uint32Array[]; parent: Uint32Array; promptTokens: number } {
  const numbers = new Map<string, number>();
  const parents: number[] = [0];
  let promptTokens = 0;
  const promptOf = (trace: Trace, tenant: number, request: TraceRequest): Uint32Array => {
    const { blockTokens } = trace;
    const covered = Math.min(request.inputTokens, request.blocks.length * blockTokens);
    promptTokens += covered;
    const prompt = new Uint32Array(Math.floor(covered / columnTokens));
    let before = 0;
    for (let column = 0; column < prompt.length; column += 1) {
      const first = Math.floor((column * columnTokens) / blockTokens);
      const last = Math.floor(((column + 1) * columnTokens - 1) / blockTokens);
      const blocks = first === last ? request.blocks[first] : request.blocks.slice(first, last + 1).join();
      const key = `${before === 0 ? -tenant - 1 : before}:${blocks}:${(column * columnTokens) % blockTokens}`;
      let number = numbers.get(key);
      if (number === undefined) {
        number = parents.length;
        numbers.set(key, number);
        parents.push(before);
      }
      prompt[column] = number;
      before = number;
    }
    return prompt;
  };
  const prompts = inOrder(traces).map(({ trace, request }) => promptOf(trace, traces.indexOf(trace), request));
  return { prompts, parent: Uint32Array.from(parents), promptTokens };
}
