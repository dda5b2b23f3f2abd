import { enlarged } from '../common/enlarged.js';
import type { Node } from './prefix_map.js';

/**
 * What the driver keeps of a column beside the map: whose it is, the fingerprint of its prefix, and when it was stored and
 * used. Typed arrays by the numbers of the map, 28 bytes a column.
 */
export class ColumnLedger {
  #root = new Int32Array(1);
  #low = new Uint32Array(1);
  #high = new Uint32Array(1);
  #storedAt = new Float64Array(1);
  #usedAt = new Float64Array(1);

  /** Makes room for columns with numbers up to `capacity`. */
  grow(capacity: number): void {
    this.#root = enlarged(this.#root, capacity + 1);
    this.#low = enlarged(this.#low, capacity + 1);
    this.#high = enlarged(this.#high, capacity + 1);
    this.#storedAt = enlarged(this.#storedAt, capacity + 1);
    this.#usedAt = enlarged(this.#usedAt, capacity + 1);
  }

  /** A column below the root of a namespace has been entered in the map; `now` in milliseconds. */
  enter(node: Node, root: Node, low: number, high: number, now: number): void {
    this.#root[node] = root;
    this.#low[node] = low;
    this.#high[node] = high;
    this.#storedAt[node] = now;
    this.#usedAt[node] = now;
  }

  /** The column is older than it seemed: it was stored, and used last, at this time. */
  backdate(node: Node, at: number): void {
    this.#storedAt[node] = at;
    this.#usedAt[node] = at;
  }

  /** A prompt has used the first columns of a path. */
  use(path: readonly Node[], columns: number, now: number): void {
    const usedAt = this.#usedAt;
    for (let column = 0; column < columns; column += 1) usedAt[path[column] as Node] = now;
  }

  /** Root of the namespace that a column belongs to. */
  root(node: Node): Node {
    return this.#root[node] as Node;
  }

  /** Halves of the fingerprint of the prefix that ends with the column. */
  low(node: Node): number {
    return this.#low[node] as number;
  }

  high(node: Node): number {
    return this.#high[node] as number;
  }

  /** When the column was stored, in milliseconds of the driver's clock. */
  storedAt(node: Node): number {
    return this.#storedAt[node] as number;
  }

  /** When a prompt used the column last, in milliseconds of the driver's clock. */
  usedAt(node: Node): number {
    return this.#usedAt[node] as number;
  }
}
